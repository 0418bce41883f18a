"""Weights from file slices, arrays and functions: the same bits, for every dtype and executor."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastattn import _core, ops
from fastattn.api.loading import load_executor
from fastattn.checkpoint import (
    ArraySource,
    ComputedSource,
    TensorInfo,
    WeightSource,
    array_sources,
    open_checkpoint,
    read_rows,
    read_tensor,
)
from fastattn.checkpoint.quantized import PackedWeight
from fastattn.executors import cpu
from fastattn.formats import DTYPES, PACKED_DTYPES
from fastattn.graph.executor import Executor
from fastattn.graph.ir import Weight
from fastattn.graph.quantize import weight_formats
from fastattn.models.registry import BuiltModel, build
from tests.program.test_rewrites import ragged_step
from tests.reference.checkpoints import BERT, GPT2, bert_tensors, gpt2_tensors, write_bert, write_gpt2
from tests.reference.targets import printed_on_targets

ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml-dtypes has no wheel for musl")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-a-model.md"
ROWS, COLUMNS = 200, 96
STORED = {"F32": np.float32, "F16": np.float16, "F64": np.float64, "BF16": ml_dtypes.bfloat16}
READ_AS = [
    *(("matrix", form, turned) for form in DTYPES["cpu"] for turned in (False, True)),
    *(("table", form, False) for form in ("float32", "bfloat16", "int8")),
    ("vector", "float32", False),
]


def computed(name: str, array: NDArray[Any], slice_rows: int | None = None) -> ComputedSource:
    """Return a function's source that has the numbers of an array."""
    floats = array.astype(np.float32)
    return ComputedSource(name, array.shape, lambda begin, end: floats[begin:end], slice_rows)


def sources_of(array: NDArray[Any], folder: Path) -> dict[str, WeightSource]:
    """Return the sources of an array: a file, the array, and functions with different slices."""
    path = folder / "weight"
    array.tofile(path)
    dtype = ArraySource("w", array).dtype
    found: dict[str, WeightSource] = {
        "file": TensorInfo("w", dtype, array.shape, path, 0, array.nbytes),
        "array": ArraySource("w", array),
    }
    for slice_rows in (None, 1, 7, 64, len(array), 1000):
        found[f"rows {slice_rows}"] = computed("w", array, slice_rows)
    return found


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize(("use", "form", "transposed"), READ_AS)
def test_the_packed_bits_are_those_of_the_file(
    use: Any, form: str, transposed: bool, dtype: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    shape = (ROWS,) if use == "vector" else (ROWS, COLUMNS)
    array = rng.standard_normal(shape[::-1] if transposed else shape).astype(STORED[dtype])
    weight = Weight(("w",), use, shape, transposed)
    found = {
        name: [piece.tobytes() for piece in cpu.pack_weight("w", weight, form, {"w": source}, 2)]
        for name, source in sources_of(array, tmp_path).items()
    }
    assert all(packed == found["file"] for packed in found.values())


@pytest.mark.parametrize("dtype", STORED)
def test_reading_gives_the_same_floats(dtype: str, tmp_path: Path, rng: np.random.Generator) -> None:
    array = rng.standard_normal((ROWS, COLUMNS)).astype(STORED[dtype])
    for source in sources_of(array, tmp_path).values():
        assert np.array_equal(read_tensor(source), array.astype(np.float32))
        assert np.array_equal(read_rows(source, 13, 140), array[13:140].astype(np.float32))


def test_parts_of_one_weight_have_different_sources(tmp_path: Path, rng: np.random.Generator) -> None:
    q, k, v = (rng.standard_normal((70, COLUMNS)).astype(STORED[dtype]) for dtype in ("F16", "F32", "F64"))
    sources = {
        "q": sources_of(q, tmp_path)["file"],
        "k": ArraySource("k", k),
        "v": computed("v", v, 9),
    }
    weight = Weight(("q", "k", "v"), "matrix", (210, COLUMNS))
    stacked = np.concatenate([part.astype(np.float32) for part in (q, k, v)])
    expected = cpu.pack_weight("w", Weight(("w",), "matrix", (210, COLUMNS)), "int8", array_sources({"w": stacked}), 2)
    found = cpu.pack_weight("w", weight, "int8", sources, 2)
    assert [piece.tobytes() for piece in found] == [piece.tobytes() for piece in expected]


def built_from(family: str, sources: Mapping[str, WeightSource]) -> BuiltModel:
    if family == "gpt2":
        return build(GPT2, sources, "causal-lm")
    return build(BERT, sources, "sequence-classification")


def models_of(family: str, folder: Path) -> dict[str, BuiltModel]:
    """Return a tiny model with its tensors in files, in arrays and computed."""
    write, tensors = (write_gpt2, gpt2_tensors) if family == "gpt2" else (write_bert, bert_tensors)
    arrays = tensors()
    return {
        "file": built_from(family, open_checkpoint(write(folder)).tensors),
        "array": built_from(family, array_sources(arrays)),
        "computed": built_from(family, {name: computed(name, array, 5) for name, array in arrays.items()}),
    }


def outputs_of(executor: Executor, rng: np.random.Generator) -> dict[str, bytes]:
    return {name: np.asarray(value).tobytes() for name, value in executor.run(ragged_step(rng)).items()}


@pytest.mark.parametrize("family", ["gpt2", "bert"])
@pytest.mark.parametrize(
    ("device", "dtype"), [(device, dtype) for device in ("cpu", "numpy") for dtype in DTYPES[device]]
)
def test_a_model_gives_the_same_bits(family: str, device: str, dtype: str, tmp_path: Path) -> None:
    found = {
        name: outputs_of(
            load_executor(built.program, built.tensors, dtype=dtype, device=device, threads=2),
            np.random.default_rng(1),
        )
        for name, built in models_of(family, tmp_path).items()
    }
    assert found["array"] == found["file"]
    assert found["computed"] == found["file"]


@pytest.mark.parametrize("dtype", PACKED_DTYPES)
def test_packed_weights_come_from_arrays_too(tmp_path: Path, dtype: str) -> None:
    built = models_of("gpt2", tmp_path)["array"]
    formats = weight_formats(built.program, dtype)
    packed = {}
    for name, weight in built.program.weights.items():
        pieces = cpu.pack_weight(name, weight, formats[name], built.tensors, 1)
        sources = tuple(ArraySource(name, piece) for piece in pieces)
        packed[name] = PackedWeight(weight.use, formats[name], weight.shape, sources)
    expected = cpu.CpuExecutor(built.program, built.tensors, dtype=dtype, threads=2)
    found = cpu.CpuExecutor(built.program, {}, dtype=dtype, packed=packed, threads=2)
    assert outputs_of(found, np.random.default_rng(1)) == outputs_of(expected, np.random.default_rng(1))


# Prints digests of packed weights, and whether a weight that was loaded packed gives the same bytes again.
PACK = """
import hashlib
import numpy as np
from fastattn import _core

numbers = np.random.default_rng(3)
for format in ("bfloat16", "int8", "int4"):
    for rows, columns in ((1, 7), (64, 64), (70, 33), (200, 768), (130, 3)):
        engine = _core.Engine(2)
        w = numbers.standard_normal((rows, columns)).astype(np.float32)
        engine.load("w", "matrix", format, [("w", "F32", rows, columns, w)])
        pieces = engine.packed("w")
        engine.load_packed(
            "again", "matrix", format, rows, columns, [(f"p{i}", "U8", p.size, 1, p) for i, p in enumerate(pieces)]
        )
        same = all(np.array_equal(a, b) for a, b in zip(pieces, engine.packed("again"), strict=True))
        print(hashlib.sha256(b"".join(p.tobytes() for p in pieces)).hexdigest(), same)
"""


def test_packed_bytes_do_not_depend_on_the_target() -> None:
    """A quantized directory loads on every machine, because the layout in memory does not affect its bytes."""
    printed = printed_on_targets(PACK)
    expected = printed["scalar"]
    assert set(expected[1::2]) == {"True"}
    assert all(found == expected for found in printed.values())


def test_the_example_of_an_adapter() -> None:
    """The code of docs/adding-a-model.md runs, and equals the sum of whole matrices."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    name, a, b, scale = (names[key] for key in ("name", "a", "b", "scale"))
    with open_checkpoint(names["folder"]) as checkpoint:
        tensors = checkpoint.tensors
        whole = ArraySource(name, read_tensor(tensors[name]) + scale * (b @ a))
        expected, without = (
            outputs_of(
                load_executor(built.program, built.tensors, dtype="float32", device="cpu", threads=2),
                np.random.default_rng(1),
            )
            for built in (
                build(checkpoint.config, sources, names["task"]) for sources in ({**tensors, name: whole}, tensors)
            )
        )
    assert outputs_of(names["executor"], np.random.default_rng(1)) == expected
    assert expected != without


def same_arrays(a: NDArray[Any], b: NDArray[Any]) -> tuple[WeightSource, WeightSource]:
    return ArraySource("wte.weight", a), ArraySource("lm_head.weight", b)


def same_function(a: NDArray[Any], b: NDArray[Any]) -> tuple[WeightSource, WeightSource]:
    def compute(begin: int, end: int) -> NDArray[np.float32]:
        return np.asarray((a if a is b else b)[begin:end], np.float32)

    other = compute if a is b else lambda begin, end: a[begin:end]
    return ComputedSource("wte.weight", a.shape, other), ComputedSource("lm_head.weight", b.shape, compute)


@pytest.mark.parametrize("pair", [same_arrays, same_function])
def test_a_head_that_repeats_the_embeddings_is_stored_once(
    pair: Callable[..., tuple[WeightSource, WeightSource]],
) -> None:
    arrays = gpt2_tensors()
    embeddings = arrays["wte.weight"]
    for head, tied in ((embeddings, True), (embeddings + 1, False)):
        wte, lm_head = pair(embeddings, head)
        built = built_from("gpt2", {**array_sources(arrays), "wte.weight": wte, "lm_head.weight": lm_head})
        assert ("lm_head.weight" in built.tensors) is not tied


def asked(shape: tuple[int, ...], transposed: bool = False, slice_rows: int | None = None) -> list[tuple[int, int]]:
    """Return the rows that a function is asked for while a weight is packed."""
    calls: list[tuple[int, int]] = []
    threads = set()

    def compute(begin: int, end: int) -> NDArray[np.float32]:
        calls.append((begin, end))
        threads.add(threading.get_ident())
        return np.zeros((end - begin, *shape[1:]), np.float32)

    use: Any = "matrix" if len(shape) > 1 else "vector"
    weight = Weight(("w",), use, shape[::-1] if transposed else shape, transposed)
    cpu.pack_weight("w", weight, "float32", {"w": ComputedSource("w", shape, compute, slice_rows)}, 2)
    assert threads <= {threading.get_ident()}
    return calls


def test_a_function_is_asked_for_ascending_slices() -> None:
    assert asked((5000, 1024)) == [(0, 1024), (1024, 2048), (2048, 3072), (3072, 4096), (4096, 5000)]
    assert asked((1024, 5000), transposed=True)[0] == (0, 192)
    assert asked((3, 3_000_000)) == [(0, 1), (1, 2), (2, 3)]
    assert asked((100, 30), slice_rows=40) == [(0, 40), (40, 80), (80, 100)]
    assert asked((100,)) == [(0, 100)]


def test_a_function_without_slices_is_called_once() -> None:
    assert asked((5000, 1024), slice_rows=5000) == [(0, 5000)]


def test_a_function_of_no_numbers_is_not_called() -> None:
    assert asked((0, 30)) == []
    assert asked((30, 0)) == []
    assert asked((0,)) == []


def test_a_function_may_use_the_library() -> None:
    identity = np.eye(COLUMNS, dtype=np.float32)
    array = np.random.default_rng(1).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    source = ComputedSource("w", array.shape, lambda begin, end: ops.matmul(array[begin:end], identity), 50)
    weight = Weight(("w",), "matrix", array.shape)
    expected = cpu.pack_weight("w", weight, "float32", array_sources({"w": array}), 2)
    found = cpu.pack_weight("w", weight, "float32", {"w": source}, 2)
    assert found[0].tobytes() == expected[0].tobytes()


def test_the_core_checks_what_memory_safety_needs() -> None:
    """The checks of ComputedSource and ArraySource come first; these hold without them."""
    engine = _core.Engine(2)
    wrong: list[Any] = [
        lambda begin, end: np.zeros((end - begin, 3)),
        lambda begin, end: np.zeros((end - begin - 1, 3), np.float32),
        lambda begin, end: np.zeros((3, end - begin), np.float32).T,
        lambda begin, end: [[0.0] * 3] * (end - begin),
    ]
    for function in wrong:
        with pytest.raises((TypeError, ValueError), match=r"tensor w: expected .* from its function"):
            engine.load("w", "matrix", "float32", [("w", "F32", 4, 3, (function, 2))])
    for array in (np.zeros((4, 2), np.float32), np.zeros((3, 4), np.float32).T):
        with pytest.raises(ValueError, match="tensor w: expected a C-contiguous array of 48 bytes"):
            engine.load("w", "matrix", "float32", [("w", "F32", 4, 3, array)])
    with pytest.raises(ValueError, match="expected sizes of at least 0"):
        engine.load("w", "matrix", "float32", [("w", "F32", -1, 3, np.zeros(0, np.float32))])
    with pytest.raises(TypeError, match="expected dtype F32 for a function"):
        engine.load("w", "matrix", "float32", [("w", "F64", 4, 3, (wrong[0], 2))])
    with pytest.raises(TypeError, match="expected dtype U8"):
        engine.load_packed("w", "matrix", "float32", 4, 3, [("w", "F32", 4, 3, np.zeros((4, 3), np.float32))])
    with pytest.raises(ValueError, match="tensor w: expected rows of 1 byte, got 12"):
        engine.load_packed("w", "table", "float32", 4, 3, [("w", "U8", 4, 12, np.zeros((4, 12), np.uint8))])
    with pytest.raises(ValueError, match="only a matrix can be transposed"):
        engine.load("w", "table", "float32", [("w", "F32", 4, 3, np.zeros((4, 3), np.float32))], transposed=True)
    assert engine.weight_bytes == 0
