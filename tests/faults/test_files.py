"""Faults 1 to 27: safetensors files that are broken, malicious or just unusual, numbered as in the fault list."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastattn.api.auto import AutoModelForCausalLM
from fastattn.checkpoint import open_checkpoint, read_header, read_tensor
from fastattn.checkpoint.checkpoint import require_little_endian
from fastattn.checkpoint.source import require_weight_dtype
from fastattn.errors import ConfigError, ModelFormatError
from fastattn.jsonfile import parse_strict
from fastattn.models.registry import build
from tests.reference.checkpoints import GPT2, gpt2_tensors, header, safetensors, write, write_gpt2
from tests.reference.steps import count_calls

MAX_CALLS = 1000
MAX_EXTRA_BYTES = 1 << 20


def entry(shape: Any = (2,), offsets: Any = (0, 8), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def raw(text: bytes, data: bytes = b"\0" * 8) -> bytes:
    """Return a file with this header, whether valid or not."""
    return struct.pack("<Q", len(text)) + text + data


def refused(path: Path, data: bytes) -> ModelFormatError:
    """Return the error for a file; it must be raised after few steps and without much memory."""
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(ModelFormatError) as caught:
            read_header(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    def again() -> None:
        with contextlib.suppress(ModelFormatError):
            read_header(path)

    assert count_calls(again) < MAX_CALLS  # and each call of C code is linear
    error = caught.value
    assert str(path) in str(error)
    assert error.path == str(path)
    length = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
    header_bytes = min(length, len(data))
    assert peak < MAX_EXTRA_BYTES + 16 * header_bytes
    return error


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("size", range(8))
def test_fault_01_shorter_than_its_length_field(path: Path, size: int) -> None:
    assert refused(path, b"\x10\0\0\0\0\0\0\0"[:size]).code == "file_too_small"


@pytest.mark.parametrize(
    ("length", "code"),
    [(0, "header_length"), (1, "header_length"), (2**63, "header_too_large"), (2**64 - 1, "header_too_large")],
)
def test_fault_02_header_length_extreme(path: Path, length: int, code: str) -> None:
    assert refused(path, struct.pack("<Q", length) + b"{}").code == code


def test_fault_03_header_larger_than_any(path: Path) -> None:
    assert refused(path, struct.pack("<Q", 100_000_001) + b"{}").code == "header_too_large"


def test_fault_04_header_larger_than_the_file(path: Path) -> None:
    assert refused(path, struct.pack("<Q", 3) + b"{}").code == "header_truncated"


@pytest.mark.parametrize("text", [b'{"\xff":1}', b"\xef\xbb\xbf{}", b'{"a\0":1}', b'{"\\ud800":{}}'])
def test_fault_05_header_not_plain_utf8(path: Path, text: bytes) -> None:
    assert refused(path, raw(text)).code == "header_utf8"


@pytest.mark.parametrize("text", [b" {}", b"[]", b"\n{}", b'"a"', b"PK\3\4"])
def test_fault_06_first_byte_no_brace(path: Path, text: bytes) -> None:
    assert refused(path, raw(text)).code == "header_start"


def test_fault_06_trailing_spaces_are_legal(path: Path) -> None:
    path.write_bytes(header({"a": entry()}, pad=13) + b"\0" * 8)
    assert read_header(path)["a"].offset % 8 == os.path.getsize(path) % 8


@pytest.mark.parametrize(
    "text", [b'{"a":', b'{"', b"{} x", b"{}{}", b"{}\0", b'{"a":NaN}', b"{'a':1}", b'{"a":1,}', b'{"a":' + b"9" * 5000]
)
def test_fault_07_json_truncated_or_trailing(path: Path, text: bytes) -> None:
    assert refused(path, raw(text)).code in ("header_json", "header_utf8")


@pytest.mark.parametrize("end", [b"", b"\\", b"\\n", b"[" * 40])
def test_fault_07_a_string_that_never_ends(path: Path, end: bytes) -> None:
    """Each of its escaped quotes could begin a string; parsing does not restart at each of them."""
    assert refused(path, raw(b'{"' + b'\\"' * 20_000 + end)).code == "header_json"


@pytest.mark.parametrize("text", ['{"a": "#{\\\\", "b": ["#"]}', '{"a": "\\"#\\\\\\"#", "#": ["}"]}'])
def test_fault_08_brackets_in_strings_are_not_nesting(text: str) -> None:
    text = text.replace("#", "[" * 20)
    assert parse_strict(text.encode()) == json.loads(text)


@pytest.mark.parametrize("text", [b'{"a":' + b"[" * 10**6, b'{"a":' * 17 + b"1" + b"}" * 17, b'{"a":' * 10**5])
def test_fault_08_nesting(path: Path, text: bytes) -> None:
    assert refused(path, raw(text)).code == "header_depth"


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]}}',
        b'{"__metadata__":{},"__metadata__":{}}',
        b'{"__metadata__":{"k":"1","k":"2"}}',
    ],
)
def test_fault_09_duplicate_keys(path: Path, text: bytes) -> None:
    assert refused(path, raw(text)).code == "duplicate_key"


@pytest.mark.parametrize("metadata", [{"k": 1}, {"k": None}, [], "x", {"k": {"a": "b"}}])
def test_fault_10_metadata_not_strings(path: Path, metadata: Any) -> None:
    assert refused(path, header({"__metadata__": metadata, "a": entry()}) + b"\0" * 8).code == "metadata"


@pytest.mark.parametrize(
    "metadata", [{}, {"__metadata__": {}}, {"__metadata__": {"format": "pt"}}, {"__metadata__": None}]
)
def test_fault_10_metadata_missing_or_fine(path: Path, metadata: dict[str, Any]) -> None:
    path.write_bytes(header({**metadata, "a": entry()}) + b"\0" * 8)
    assert list(read_header(path)) == ["a"]


@pytest.mark.parametrize("metadata", [{"\ud800": "x"}, {"format": "\udfff"}, {"fastattn": "{}\ud800"}])
def test_fault_10_metadata_no_unicode(path: Path, metadata: dict[str, str]) -> None:
    """As in the safetensors library, half of a surrogate pair is not text."""
    assert refused(path, header({"__metadata__": metadata, "a": entry()}) + b"\0" * 8).code == "header_utf8"


@pytest.mark.parametrize("dtype", ["F31", "f32", "", 7, None, "float32"])
def test_fault_11_dtype_unknown(path: Path, dtype: Any) -> None:
    error = refused(path, header({"a": entry(dtype=dtype)}) + b"\0" * 8)
    assert error.code == "dtype_unknown"
    assert "F32, F16, BF16" in str(error)


@pytest.mark.parametrize(("dtype", "shape"), [("F8_E4M3", [8]), ("F4", [16]), ("I8", [8]), ("I64", [1]), ("C64", [1])])
def test_fault_11_dtype_known_but_no_weight(path: Path, dtype: str, shape: list[int]) -> None:
    path.write_bytes(header({"a": entry(shape, dtype=dtype)}) + b"\0" * 8)
    info = read_header(path)["a"]  # a mask or position ids may have it
    with pytest.raises(ModelFormatError, match="F32, F16, BF16") as caught:
        require_weight_dtype(info)
    assert caught.value.code == "dtype_unsupported"
    assert caught.value.tensor == "a"


def test_fault_11_a_model_with_such_a_weight(tmp_path: Path) -> None:
    tensors = gpt2_tensors()
    tensors["ln_f.bias"] = tensors["ln_f.bias"].astype(np.int64)
    checkpoint = open_checkpoint(write(tmp_path, GPT2, tensors))
    with pytest.raises(ModelFormatError) as caught:
        build(checkpoint.config, checkpoint.tensors, "causal-lm")
    assert (caught.value.code, caught.value.tensor) == ("dtype_unsupported", "ln_f.bias")


@pytest.mark.parametrize(
    "shape", ["[-1]", "[2.0]", "[1e3]", f"[{2**63}]", "[1,1,1,1,1,1,1,1,2]", "2", '["2"]', "[true]", "null", "{}"]
)
def test_fault_12_shape_no_sizes(path: Path, shape: str) -> None:
    text = b'{"a":{"dtype":"F32","shape":' + shape.encode() + b',"data_offsets":[0,8]}}'
    assert refused(path, raw(text)).code == "shape"


@pytest.mark.parametrize("shape", [[65536] * 4, [2**42 + 1, 2**22], [2**62, 2], [2**63 - 1] * 8])
def test_fault_13_product_overflow(path: Path, shape: list[int]) -> None:
    assert refused(path, header({"a": entry(shape)}) + b"\0" * 8).code == "size_overflow"


@pytest.mark.parametrize("offsets", [[8, 0], [0], [0, 4, 8], [0, 8.0], ["0", "8"], [-8, 0], None, [0, True], {}])
def test_fault_14_offsets(path: Path, offsets: Any) -> None:
    assert refused(path, header({"a": entry(offsets=offsets)}) + b"\0" * 8).code == "offsets"


@pytest.mark.parametrize(
    ("shape", "offsets", "dtype"),
    [([3], [0, 8], "F32"), ([2], [0, 4], "F32"), ([3], [0, 2], "F4"), ([0], [0, 8], "F32")],
)
def test_fault_15_span_is_not_shape_times_dtype(path: Path, shape: Any, offsets: Any, dtype: str) -> None:
    assert refused(path, header({"a": entry(shape, offsets, dtype)}) + b"\0" * 8).code == "span"


def test_fault_16_overlap(path: Path) -> None:
    assert refused(path, header({f"t{i}": entry() for i in range(10)}) + b"\0" * 8).code == "overlap"


@pytest.mark.parametrize("first", [0, 4])
def test_fault_17_hole(path: Path, first: int) -> None:
    entries = {"b": entry([2], [first + 8, first + 16]), "c": entry([1], [first, first + 4])}
    assert refused(path, header(entries) + b"\0" * 32).code == "hole"


def test_fault_18_trailing_bytes(path: Path) -> None:
    error = refused(path, header({"a": entry()}) + b"\0" * 8 + b"PK\5\6")
    assert error.code == "trailing_bytes"
    assert error.offset == os.path.getsize(path) - 4


def test_fault_19_scalars_and_empty_tensors_are_fine(path: Path) -> None:
    entries = {
        "s": entry([], [0, 4]),
        "e": entry([0, 768], [4, 4]),
        "f": entry([0], [4, 4]),
        "g": entry([5, 0], [0, 0]),
    }
    path.write_bytes(header(entries) + b"\0" * 4)
    tensors = read_header(path)
    assert read_tensor(tensors["s"]).shape == ()
    assert read_tensor(tensors["e"]).shape == (0, 768)
    path.write_bytes(header({}))
    assert read_header(path) == {}


def test_fault_19_a_required_weight_may_not_be_empty(tmp_path: Path) -> None:
    tensors = gpt2_tensors() | {"wpe.weight": np.zeros((0, 12), np.float32)}
    checkpoint = open_checkpoint(write(tmp_path, GPT2, tensors))
    with pytest.raises(ConfigError, match=r"wpe.weight: expected shape \[16, 12\] from config.json, got \[0, 12\]"):
        build(checkpoint.config, checkpoint.tensors, "causal-lm")


def test_fault_20_truncated_anywhere(path: Path) -> None:
    whole = safetensors({"a": np.ones(5, np.float32), "b": np.ones((2, 3), np.float16)})
    path.write_bytes(whole)
    assert len(read_header(path)) == 2
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ModelFormatError) as caught:
            read_header(path)
        assert caught.value.code in ("file_too_small", "header_truncated", "data_truncated")


def test_fault_20_truncated_after_the_header_was_read(path: Path) -> None:
    path.write_bytes(safetensors({"a": np.ones(5, np.float32)}))
    info = read_header(path)["a"]
    os.truncate(path, os.path.getsize(path) - 1)
    with pytest.raises(ModelFormatError) as caught:
        read_tensor(info)
    assert caught.value.code == "data_truncated"


def test_fault_21_flipped_bits_load_unless_verified(tmp_path: Path) -> None:
    directory = write_gpt2(tmp_path)
    path = directory / "model.safetensors"
    good = bytearray(path.read_bytes())
    digest = hashlib.sha256(good).hexdigest()
    (directory / "SHA256SUMS").write_text(f"{digest}  model.safetensors\n")
    open_checkpoint(directory, verify="sha256")
    open_checkpoint(directory, verify={"model.safetensors": digest.upper()})
    good[-3] ^= 4
    path.write_bytes(good)
    open_checkpoint(directory)
    for verify in ("sha256", {"model.safetensors": digest}):
        with pytest.raises(ModelFormatError, match=digest) as caught:
            open_checkpoint(directory, verify=verify)  # type: ignore[arg-type]
        assert caught.value.code == "sha256"
        with pytest.raises(ModelFormatError, match=digest):
            AutoModelForCausalLM.from_pretrained(directory, device="numpy", verify=verify)
    AutoModelForCausalLM.from_pretrained(directory, device="numpy").close()
    (directory / "SHA256SUMS").unlink()
    with pytest.raises(ModelFormatError, match="SHA256SUMS") as caught:
        open_checkpoint(directory, verify="sha256")
    assert caught.value.code == "sha256_unknown"


def test_fault_21_blobs_of_a_hub_cache_carry_their_digest(tmp_path: Path) -> None:
    source = write_gpt2(tmp_path / "source")
    data = (source / "model.safetensors").read_bytes()
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_bytes((source / "config.json").read_bytes())
    blob = blobs / hashlib.sha256(data).hexdigest()
    blob.write_bytes(data)
    (snapshot / "model.safetensors").symlink_to(f"../../blobs/{blob.name}")
    open_checkpoint(snapshot, verify="sha256")
    blob.write_bytes(data[:-1] + b"\x7f")
    with pytest.raises(ModelFormatError):
        open_checkpoint(snapshot, verify="sha256")


def test_fault_22_nan_weights_load_and_are_found(tmp_path: Path) -> None:
    tensors = gpt2_tensors()
    tensors["h.1.mlp.c_fc.weight"][3, 5] = np.nan
    tensors["h.1.mlp.c_fc.weight"][4, 5] = np.inf
    tensors["ln_f.bias"][2] = -np.inf
    directory = write(tmp_path, GPT2, tensors)
    found = {item.tensor: (item.index, item.count) for item in open_checkpoint(directory).find_nonfinite()}
    assert found == {"h.1.mlp.c_fc.weight": ((3, 5), 2), "ln_f.bias": ((2,), 1)}
    with pytest.raises(ModelFormatError, match=r"h.1.mlp.c_fc.weight\[3, 5\] = nan \(2 in all\)") as caught:
        open_checkpoint(directory, check_finite=True)
    assert caught.value.code == "not_finite"
    with pytest.raises(ModelFormatError, match=r"h.1.mlp.c_fc.weight\[3, 5\] = nan"):
        AutoModelForCausalLM.from_pretrained(directory, device="numpy", check_finite=True)
    AutoModelForCausalLM.from_pretrained(directory, device="numpy").close()


def test_fault_23_denormal_weights(tmp_path: Path, device: str) -> None:
    """They are not treated as 0: a model whose head is all denormal gives denormal logits."""
    tiny = np.float32(2.0**-140)
    tensors = gpt2_tensors()
    with AutoModelForCausalLM.from_pretrained(
        write(tmp_path / "a", GPT2, tensors | {"lm_head.weight": tensors["wte.weight"]}), device=device
    ) as model:
        normal = np.asarray(model([1, 2, 3]).logits, np.float64)
    rounded = np.round(tensors["wte.weight"] * 2**8) * tiny  # exact in denormals
    with AutoModelForCausalLM.from_pretrained(
        write(tmp_path / "b", GPT2, tensors | {"lm_head.weight": rounded.astype(np.float32)}), device=device
    ) as model:
        found = np.asarray(model([1, 2, 3]).logits, np.float64)
    assert found.any()
    grid = float(np.finfo(np.float32).smallest_subnormal)
    scale = 2.0**-132
    hidden = 4 * np.sqrt(12)  # no row after the last norm is longer than its width times a weight of at most 4
    assert np.abs(found - normal * scale).max() <= 12 * hidden * tiny / 2 + 12 * grid


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
def test_fault_24_unaligned_data(path: Path, dtype: str) -> None:
    values = np.array([1.5, -2.0, 0.25, 3.0], np.float32)
    data: NDArray[Any] = {
        "F32": values,
        "F16": values.astype(np.float16),
        "BF16": (values.view(np.uint32) >> 16).astype(np.uint16),
        "F64": values.astype(np.float64),
    }[dtype]
    raw_bytes = data.tobytes()
    entries = {"odd": entry([1], [0, 1], "U8"), "a": entry([4], [1, 1 + len(raw_bytes)], dtype)}
    for pad in range(4):
        path.write_bytes(header(entries, pad=pad) + b"\7" + raw_bytes)
        assert np.array_equal(read_tensor(read_header(path)["a"]), values)


def test_fault_25_big_endian_hosts_are_refused() -> None:
    require_little_endian("little")
    with pytest.raises(ModelFormatError, match="big-endian") as caught:
        require_little_endian("big")
    assert caught.value.code == "byte_order"


def test_fault_26_past_4_gib(path: Path) -> None:
    """A sparse file of 5 GiB; the tensor at its end is read from the right place."""
    gap = 5 << 30
    values = np.arange(6, dtype=np.float32)
    head = header({"gap": entry([gap], [0, gap], "U8"), "a": entry([2, 3], [gap, gap + 24])})
    with path.open("wb") as file:
        file.write(head)
        file.seek(len(head) + gap)
        file.write(values.tobytes())
    info = read_header(path)["a"]
    assert info.offset == len(head) + gap
    assert np.array_equal(read_tensor(info), values.reshape(2, 3))
    path.unlink()


def _directory(path: Path) -> None:
    path.mkdir()


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("make", [_directory, _fifo, _device, _loop, _dangling], ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_fault_27_no_regular_file(tmp_path: Path, make: Callable[[Path], None], name: str) -> None:
    directory = write_gpt2(tmp_path)
    (directory / name).unlink()
    make(directory / name)
    expected: tuple[type[Exception], ...] = (OSError,) if name != "config.json" else (OSError, ConfigError)
    with pytest.raises(expected):
        open_checkpoint(directory)  # it returns, although reading a FIFO or a device would never end


def test_fault_27_no_permission(tmp_path: Path) -> None:
    directory = write_gpt2(tmp_path)
    (directory / "model.safetensors").chmod(0)
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    with pytest.raises(PermissionError) as caught:
        open_checkpoint(directory)
    assert caught.value.errno == errno.EACCES


def test_fault_27_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(json.dumps({}))
    for name in ("nowhere", "file"):
        with pytest.raises(OSError, match="expected a directory"):
            open_checkpoint(tmp_path / name)


def test_faults_01_to_20_mutated_files_give_one_kind_of_error(path: Path, rng: np.random.Generator) -> None:
    """Whatever bytes change, the parser returns tensors inside the file or raises ModelFormatError."""
    whole = safetensors({"a": np.ones(5, np.float32), "b.c": np.ones((2, 3), np.float16)}, __metadata__={"k": "v"})
    words = [
        b'"',
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"-1",
        b"1e9",
        b"null",
        b"9" * 19,
        b"\\u",
        b"\xff",
        b"\0",
        b"F16",
        b" ",
    ]
    accepted, codes = 0, set()
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(int(rng.integers(1, 4))):
            place, word = int(rng.integers(0, len(data))), words[int(rng.integers(0, len(words)))]
            end = place + int(rng.integers(0, 3))
            data[place:end] = word if rng.random() < 0.8 else b""
            if rng.random() < 0.5:  # leave the length field correct, so the JSON is parsed
                close = data.rfind(b"}}") + 2
                data[:8] = struct.pack("<Q", max(0, close - 8))
        path.write_bytes(data)
        try:
            tensors = read_header(path)
        except ModelFormatError as error:
            codes.add(error.code)
            continue
        accepted += 1
        for info in tensors.values():
            assert 0 <= info.offset <= info.offset + info.nbytes <= len(data)
            if info.dtype in ("F32", "F16", "BF16"):
                assert read_tensor(info).shape == info.shape
    assert 0 < accepted < 300
    assert "malformed" not in codes
