"""store_memory and cross_attention: near the float64 formulas, and the same bits however they run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fastattn.errors import ConfigError, InputError
from fastattn.executors.cpu import CpuExecutor
from fastattn.graph.cost import ALL_FLOAT32, StepShape
from fastattn.graph.error_bounds import program_bound
from fastattn.graph.kinds import KINDS
from fastattn.graph.rewrites import optimize
from tests.reference.decoder_program import step_of
from tests.reference.memory_programs import HEAD_DIM, KV_HEADS, LAYERS, Pair, memory_programs
from tests.reference.targets import assert_same_on_targets, printed_on_targets

DTYPES = ("float32", "bfloat16", "int8")
TEXTS, SOURCES = (1, 6, 65, 17, 0), (130, 1, 64, 9, 3)  # lengths in the decoder and in the encoder


@pytest.mark.parametrize("which", [None, "wanted", "first", "last"])
@pytest.mark.parametrize("fused", [False, True])
def test_near_the_formula(which: str | None, fused: bool) -> None:
    """Ragged: every sequence has its own memory; in float32, where nothing is rounded on purpose."""
    made = memory_programs(which=which)
    wanted = [0, 3, 60, 88] if which == "wanted" else None
    found, expected = (
        pair.decode(TEXTS, pair.memories(SOURCES), wanted=wanted)
        for pair in (Pair(made, fused=fused), Pair(made, device="numpy", fused=fused))
    )
    bound = sum(
        program_bound(program, np.float32, longest=130, scale=100.0) for program in (made.encoder, made.decoder)
    )
    assert found.shape == expected.shape
    assert np.abs(expected).max() > 0.5
    assert np.abs(found - expected).max() <= bound


def test_formula_of_cross_attention() -> None:
    """The numpy executor agrees with attention that is written out here."""
    made = memory_programs(heads=KV_HEADS)
    numpy = Pair(made, device="numpy")
    memory = numpy.memories([9])[0]
    op = next(op for op in numpy.decoder.program.ops if op.kind == "cross_attention")
    q = np.random.default_rng(1).standard_normal((3, KV_HEADS * HEAD_DIM))
    program = replace(numpy.decoder.program, ops=(replace(op, inputs=(0,), output=1),))
    run = type("Run", (), {})()
    run.program, run.step, run.spans = program, step_of(3), [(0, 3)]
    run.caches = numpy.caches([memory])
    found = KINDS["cross_attention"].formula(run, op, q)
    keys, values = memory.past(0)
    for head in range(KV_HEADS):
        part = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        scores = np.exp(0.4 * q[:, part] @ keys[:, part].T)
        expected = scores / scores.sum(axis=1, keepdims=True) @ values[:, part]
        np.testing.assert_allclose(found[:, part], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kv_dtype", [None, "float32"])
def test_same_bits(dtype: str, kv_dtype: str | None) -> None:
    """Alone or in a batch in any order, encoder and decoder, on any number of threads, fused or not."""
    made = memory_programs()
    alone = Pair(made, dtype=dtype, kv_dtype=kv_dtype, threads=1)
    expected = {(n, m): alone.decode([n], alone.memories([m])) for n, m in zip(TEXTS, SOURCES, strict=True)}
    for threads, fused in ((1, True), (2, True), (3, False)):
        pair = Pair(made, dtype=dtype, kv_dtype=kv_dtype, threads=threads, fused=fused)
        for order in ((0, 1, 2, 3, 4), (4, 2, 0, 3, 1)):
            texts, sources = [TEXTS[i] for i in order], [SOURCES[i] for i in order]
            batch = pair.decode(texts, pair.memories(sources))
            for n, m, rows in zip(texts, sources, np.split(batch, np.cumsum(texts)[:-1]), strict=True):
                assert rows.tobytes() == expected[n, m].tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_cached_and_forked(dtype: str, chunk: int) -> None:
    """Token by token, with copies of the cache that share the memory: the same bits as in one step."""
    pair = Pair(memory_programs(), dtype=dtype)
    memory = pair.memories([70])[0]
    whole = pair.decode([66], [memory])
    cache, parts = pair.caches([memory])[0], []
    for at in range(0, 66, chunk):
        step = step_of(min(chunk, 66 - at), first=at, caches=[cache])
        parts.append(pair.decoder.run(step)["y"])
        copy = cache.fork()
        cache.close()
        cache = copy
    assert np.concatenate(parts).tobytes() == whole.tobytes()


def test_a_memory_does_not_change() -> None:
    """The decoder never writes to it, and later changes of the encoder's cache do not reach it."""
    pair = Pair(memory_programs())
    memory = pair.memories([70])[0]
    expected = pair.decode([5], [memory])
    caches = pair.caches([memory, memory, memory])  # shared
    pair.decoder.run(step_of(80, 3, 1, caches=caches))
    assert pair.decode([5], [memory]).tobytes() == expected.tobytes()
    kept = pair.caches([memory])
    memory.truncate(0)
    pair.encoder.run(step_of(3, caches=[memory]))
    memory.close()
    assert np.asarray(pair.decoder.run(step_of(5, caches=kept))["y"]).tobytes() == expected.tobytes()


def test_pages_are_shared_and_freed() -> None:
    pair = Pair(memory_programs())
    before = pair.decoder.kv_pages_in_use
    memory = pair.memories([130])[0]
    caches = pair.caches([memory] * 4)
    assert pair.decoder.kv_pages_in_use == before + 3  # of 64 positions, once for all
    memory.close()
    for cache in caches[:3]:
        cache.close()
    assert pair.decoder.kv_pages_in_use == before + 3
    caches[3].close()
    assert pair.decoder.kv_pages_in_use == before


PRINT = """
import hashlib
from fastattn import _core
from tests.reference.memory_programs import Pair, memory_programs
for dtype in ("float32", "int8", "bfloat16"):
    if dtype == "bfloat16" and _core.bfloat16_sums(_core.active_target()) != "portable":
        continue
    pair = Pair(memory_programs(), dtype=dtype)
    print(hashlib.sha256(pair.decode([1, 70], pair.memories([90, 33])).tobytes()).hexdigest())
"""


def test_all_targets_have_the_same_bits() -> None:
    assert_same_on_targets(printed_on_targets(PRINT), count=3, without_bfloat16=2)


@pytest.mark.parametrize("device", ["cpu", "numpy"])
def test_wrong_caches(device: str) -> None:
    pair = Pair(memory_programs(), device=device)
    with pytest.raises(InputError, match="expected a cache for every sequence"):
        pair.encoder.run(step_of(3))
    with pytest.raises(InputError, match="expected a cache for every sequence"):
        pair.decoder.run(step_of(3))
    with pytest.raises(InputError, match="expected caches with a memory"):
        pair.decoder.run(step_of(3, caches=[pair.decoder.new_cache()]))
    memory = pair.memories([3])[0]
    with pytest.raises(InputError, match=r"expected empty ones for store_memory|expected to continue"):
        pair.encoder.run(step_of(1, first=3, caches=[memory]))
    other = Pair(memory_programs(), device=device).memories([3])[0]
    with pytest.raises(InputError, match="expected a cache of this model"):
        pair.decoder.new_cache().set_memory(other)


@pytest.mark.parametrize(
    ("kind", "attrs", "message"),
    [
        ("store_memory", {"layer": LAYERS}, "expected a layer below"),
        ("store_memory", {"layer": 0}, "expected one store_memory per layer"),
        ("store_memory", {"head_dim": 6}, "expected n_kv_head and head_dim of the Program"),
        ("cross_attention", {"layer": -1}, "expected a layer below"),
        ("cross_attention", {"n_head": 3}, "expected n_head as a multiple"),
        ("cross_attention", {"rows": "wanted"}, "rows"),
    ],
)
def test_programs_that_do_not_fit(kind: str, attrs: dict[str, int | str], message: str) -> None:
    made = memory_programs()
    program = made.encoder if kind == "store_memory" else made.decoder
    ops = tuple(replace(op, attrs={**op.attrs, **attrs}) if op.kind == kind else op for op in program.ops)
    with pytest.raises(ConfigError, match=message):
        CpuExecutor(replace(program, ops=ops), made.sources)


def test_cost() -> None:
    """Both products with the memory, whose keys and values are read once per sequence that has queries."""
    program = optimize(memory_programs(heads=4).decoder)
    op = next(op for op in program.ops if op.kind == "cross_attention")
    shape = StepShape((1, 5, 0), (7.0, 0.0, 2.0), memory_lens=(10, 20, 30))
    cost = KINDS["cross_attention"].cost(program, op, shape, ALL_FLOAT32)
    assert cost.multiply_adds == 2 * (1 * 10 + 5 * 20) * 4 * HEAD_DIM
    assert cost.kv_bytes == 2 * (10 + 20) * KV_HEADS * HEAD_DIM * 4
    assert cost.weight_bytes == 0
