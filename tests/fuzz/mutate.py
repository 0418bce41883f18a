"""Changes valid files in random ways: as JSON, as safetensors, as GGUF, as lines and as bytes."""

from __future__ import annotations

import copy
import json
import math
import random
import struct
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastattn.checkpoint.gguf.blocks import BLOCK_TYPES, OTHER_TYPES
from fastattn.checkpoint.gguf.reader import read_gguf
from fastattn.errors import ModelFormatError
from fastattn.files import SourceFile
from tests.reference.gguf_files import TYPES, Raw, Stored, gguf_bytes

Files = dict[str, bytes]

NUMBERS: list[Any] = [0, 1, -1, 2, 3, 7, 13, 64, 255, 256, 65535, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63,
                      2**64, -(2**31) - 1, -(2**63), 10**30, 0.5, -0.0, 1.0, 1e-45, 1e-12, 1e38, 1e308, math.nan,
                      math.inf, -math.inf]  # fmt: skip
WORDS = ["", "a", "\0", "\ud800", "é", "x" * 2000, "../x", "/dev/zero", "F32", "BF16", "I8", "int8", "gelu", "relu",
         "gpt2", "bert", "[UNK]", "<s>", "<|endoftext|>", "model.safetensors", "__metadata__", "1", "nan"]  # fmt: skip
OTHERS: list[Any] = [None, True, False, [], {}, [1], [[]], {"a": 1}, [None] * 9, {"": ""}]
FLOATS = [b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff", b"\xff\xff\x7f\x7f", b"\1\0\0\0", b"\0\0\0\x80"]
MAX_BYTES = 1 << 20


def anything(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(rng.choice([NUMBERS, NUMBERS, WORDS, OTHERS])))


def places(value: Any, found: list[tuple[Any, Any]] | None = None) -> list[tuple[Any, Any]]:
    """Return every (container, key) of a JSON value."""
    found = [] if found is None else found
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        found.append((value, key))
        places(value[key], found)
    return found


def change_json(value: Any, rng: random.Random) -> Any:
    """Change one place of a JSON value, which is modified; return the new value."""
    found = places(value)
    if not found or rng.random() < 0.01:
        return anything(rng)
    # First a depth, then a place: otherwise nearly all changes would be to a vocabulary.
    top = [place for place in found if place[0] is value]
    box, key = rng.choice(top if rng.random() < 0.4 else found)
    what = rng.randrange(9)
    if what == 0:
        del box[key]
    elif what == 1 and isinstance(box[key], (int, float)) and not isinstance(box[key], bool):
        box[key] = rng.choice([box[key] + 1, box[key] - 1, box[key] * 2, -box[key], box[key] // 2, float(box[key])])
    elif what == 2:
        other, name = rng.choice(found)
        box[key], other[name] = copy.deepcopy(other[name]), copy.deepcopy(box[key])
    elif what == 3:
        other, name = rng.choice(found)
        box[key] = copy.deepcopy(other[name])
    elif what == 4 and isinstance(box, dict):
        box[rng.choice([*WORDS, *box])] = box.pop(key)
    elif what == 5 and isinstance(box, list):
        box[key:key] = [anything(rng) if rng.random() < 0.5 else copy.deepcopy(box[key])] * rng.choice([1, 1, 2, 40])
    elif what == 6 and isinstance(box[key], str) and box[key]:
        box[key] = change_text(box[key], rng)
    elif what == 7:
        box[key] = rng.choice([[box[key]], {"a": box[key]}, str(box[key])])
    else:
        box[key] = anything(rng)
    return value


def change_text(text: str, rng: random.Random) -> str:
    at = rng.randrange(len(text))
    return rng.choice([text[:at], text[at:], text * 2, text[:at] + rng.choice(WORDS) + text[at:], text.upper()])


def to_json(value: Any, rng: random.Random) -> bytes:
    text = json.dumps(value, ensure_ascii=rng.random() < 0.9, indent=rng.choice([None, None, 2]))
    if rng.random() < 0.03 and isinstance(value, dict) and value:
        key = rng.choice(list(value))
        text = "{" + json.dumps(key) + ": " + json.dumps(anything(rng)) + "," + text[1:]  # the key twice
    return text.encode("utf-8", "surrogatepass")


def change_json_file(data: bytes, rng: random.Random) -> bytes:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return change_bytes(data, rng)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        value = change_json(value, rng)
    return to_json(value, rng)


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    short = min(b, a + rng.choice([1, 1, 2, 4, 8, 64]))
    return rng.choice([
        lambda: data[:a] + rng.randbytes(short - a) + data[short:],
        lambda: data[:a] + bytes([rng.choice(b'\0\xff{}[]",:0-\\ \n')]) + data[a + 1 :],
        lambda: data[:a] + data[short:],
        lambda: data[:a],
        lambda: data[:a] + data[a:short] * rng.choice([2, 3, 50]) + data[short:],
        lambda: data + rng.randbytes(rng.choice([1, 8, 100])),
        lambda: b"",
    ])()  # fmt: skip


def change_lines(data: bytes, rng: random.Random) -> bytes:
    lines = data.split(b"\n")
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    what = rng.randrange(5)
    if what == 0:
        del lines[at]
    elif what == 1:
        lines[at:at] = [lines[other]] * rng.choice([1, 2, 50])
    elif what == 2:
        lines[at], lines[other] = lines[other], lines[at]
    elif what == 3:
        lines[at] = anything_bytes(rng)
    else:
        lines[at] += anything_bytes(rng)
    return b"\n".join(lines)


def anything_bytes(rng: random.Random) -> bytes:
    return rng.choice([b" ", b"\r", b"\xff", b"\0", b"\xef\xbb\xbf", rng.choice(WORDS).encode("utf-8", "replace")])


def split(data: bytes) -> tuple[Any, bytes] | None:
    """Return the header and the data of a safetensors file, None if it is broken already."""
    try:
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + length])
        return (header, data[8 + length :]) if isinstance(header, dict) else None
    except (ValueError, struct.error, OverflowError, RecursionError):
        return None


def join(header: Any, data: bytes, rng: random.Random) -> bytes:
    text = to_json(header, rng)
    return struct.pack("<Q", len(text)) + text + data


def change_safetensors(data: bytes, rng: random.Random) -> bytes:
    parts = split(data)
    if parts is None or rng.random() < 0.05:
        return change_bytes(data, rng)
    header, body = parts
    change = rng.choice([_any_header, _metadata, _metadata, _values, _tensors, _tensors, _tensors])
    return change(header, body, rng)


def _any_header(header: Any, body: bytes, rng: random.Random) -> bytes:
    return join(change_json(header, rng), body, rng)


def _metadata(header: Any, body: bytes, rng: random.Random) -> bytes:
    """Change the metadata; a quantized file has JSON in it."""
    found = header.get("__metadata__")
    if not isinstance(found, dict) or not found:
        header["__metadata__"] = {"format": rng.choice(["pt", "np", anything(rng)])}
        return join(header, body, rng)
    key = rng.choice(list(found))
    try:
        found[key] = json.dumps(change_json(json.loads(found[key]), rng))
    except (ValueError, TypeError, RecursionError):
        found[key] = anything(rng)
    return join(header, body, rng)


def _values(header: Any, body: bytes, rng: random.Random) -> bytes:
    """Replace some numbers of the tensors."""
    changed = bytearray(body)
    for _ in range(rng.choice([1, 3, 50])):
        at = rng.randrange(0, max(1, len(body) - 3), 4)
        changed[at : at + 4] = rng.choice(FLOATS) if rng.random() < 0.8 else rng.randbytes(4)
    return join(header, bytes(changed[: len(body)]), rng)


def _tensors(header: Any, body: bytes, rng: random.Random) -> bytes:
    """Change a tensor and write the file again, so that all offsets are right."""
    metadata = header.pop("__metadata__", None)
    try:
        tensors = {
            name: [entry["dtype"], list(entry["shape"]), body[slice(*entry["data_offsets"])]]
            for name, entry in header.items()
        }
        _change_tensor(tensors, rng)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        return change_bytes(join(header, body, rng), rng)
    entries: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name, (dtype, shape, raw) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(raw)]}
        end += len(raw)
    return join(entries, b"".join(raw for _, _, raw in tensors.values()), rng)


def _change_tensor(tensors: dict[str, list[Any]], rng: random.Random) -> None:
    name = rng.choice(list(tensors))
    dtype, shape, raw = tensors[name]
    what = rng.randrange(8)
    if what == 0:
        del tensors[name]
    elif what == 1:
        tensors[rng.choice([*WORDS, *(f"{name}{end}" for end in (".scales", ".sums", "2"))])] = [dtype, shape, raw]
    elif what == 2:
        other = rng.choice(list(tensors))
        tensors[name], tensors[other] = tensors[other], tensors[name]
    elif what == 3:
        rng.shuffle(shape)
    elif what == 4:  # the same bytes as other numbers
        bits = {"F64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
        new = rng.choice(list(bits))
        tensors[name] = [new, [*shape[:-1], shape[-1] * bits[dtype] // bits[new]] if shape else shape, raw]
    elif what == 5:
        shape.insert(rng.randrange(len(shape) + 1), 1)
    elif what == 6:  # another size of the first dimension
        row, n = len(raw) // max(1, shape[0]), rng.choice([0, 1, shape[0] - 1, shape[0] + 1, 2 * shape[0]])
        tensors[name] = [dtype, [n, *shape[1:]], (raw * 2 + bytes(row))[: n * row]]
    else:
        tensors[name] = [dtype, [math.prod(shape)], raw]


def change_gguf(data: bytes, rng: random.Random) -> bytes:
    """Change metadata or tensors and write the file again, or change bytes, mostly of the header."""
    parts = split_gguf(data) if rng.random() < 0.7 else None
    if parts is None:
        return change_bytes(data, rng) if rng.random() < 0.3 else _change_numbers(data, rng)
    metadata, tensors = parts
    if not metadata:
        return change_bytes(data, rng)
    (_change_metadata if rng.random() < 0.6 or not tensors else _change_stored)(metadata, tensors, rng)
    options = {"version": rng.choice([2, 3, 3, 3, 3, 3, 0, 2**31])}
    if rng.random() < 0.03:
        options[rng.choice(["n_keys", "n_tensors"])] = rng.choice([0, 1, 2**32, 2**64 - 1])
    try:
        return gguf_bytes(metadata, tensors, **options)
    except (struct.error, KeyError, OverflowError):  # a value that the format does not have
        return change_bytes(data, rng)


def split_gguf(data: bytes) -> tuple[dict[str, Any], dict[str, Stored]] | None:
    """Return the metadata and the tensors of a file, None if it is broken already."""
    with tempfile.NamedTemporaryFile(suffix=".gguf") as scratch:
        scratch.write(data)
        scratch.flush()
        file = SourceFile(Path(scratch.name))
        try:
            found = read_gguf(file)
        except ModelFormatError:
            return None
        finally:
            file.close()
    tensors = {
        name: Stored(data[tensor.offset : tensor.offset + tensor.nbytes], tensor.shape, TYPES[tensor.kind.name])
        for name, tensor in found.tensors.items()
    }
    return dict(found.metadata), tensors


def _change_numbers(data: bytes, rng: random.Random) -> bytes:
    """Replace a few little-endian integers, mostly in the first kilobytes."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randrange(max(1, len(data) if rng.random() < 0.2 else min(len(data), 4000)))
        size = rng.choice([1, 2, 4, 8])
        number = rng.choice([0, 1, 2, 4, 8, 9, 32, 255, 2**16, 2**31, 2**32 - 1, 2**63, 2**64 - 1])
        changed[at : at + size] = (number % 256**size).to_bytes(size, "little")
    return bytes(changed[: len(data)])


def _change_metadata(metadata: dict[str, Any], _: dict[str, Stored], rng: random.Random) -> None:
    key = rng.choice(list(metadata))
    value, what = metadata[key], rng.randrange(7)
    if what == 0:
        del metadata[key]
    elif what == 1:
        metadata[rng.choice([*WORDS, *metadata]).encode("utf-8", "replace").decode()] = metadata.pop(key)
    elif what == 2:
        metadata[key] = metadata[rng.choice(list(metadata))]
    elif what == 3 and isinstance(value, list) and value:
        metadata[key] = [*value[: rng.randrange(len(value))], rng.choice(["", "a", "a b c", "x" * 2000, value[0]])]
    elif what == 4 and hasattr(value, "dtype") and len(value):
        changed = value.copy()
        changed[rng.randrange(len(value))] = rng.choice([0, 1, 2, 3, 4, 6, 7, 100])
        metadata[key] = changed if rng.random() < 0.8 else changed[: rng.randrange(len(value))]
    elif what == 5:
        metadata[key] = Raw(rng.choice([0, 1, 5, 6, 7, 8, 9, 10, 12, 13]), rng.randbytes(rng.choice([1, 4, 8, 12])))
    else:
        numbers = [0, 1, 2, 3, 255, 265, 2**31 - 1, 2**31, 2**32 - 1]
        metadata[key] = rng.choice([*numbers, *WORDS[3:], True, False, 0.5, math.nan, math.inf, []])


def _change_stored(_: dict[str, Any], tensors: dict[str, Stored], rng: random.Random) -> None:
    name = rng.choice(list(tensors))
    tensor, what = tensors[name], rng.randrange(7)
    if what == 0:
        del tensors[name]
    elif what == 1:
        tensors[rng.choice(["output.weight", "rope_freqs.weight", "blk.9.attn_q.weight", "", f"{name}2"])] = tensor
    elif what == 2:
        other = rng.choice(list(tensors))
        tensors[name], tensors[other] = tensors[other], tensor
    elif what == 3:
        tensors[name] = replace(tensor, shape=tuple(rng.sample(tensor.shape, len(tensor.shape))))
    elif what == 4:
        tensors[name] = replace(tensor, kind=rng.choice([*BLOCK_TYPES, *OTHER_TYPES, 4, 2**32 - 1]))
    elif what == 5:
        tensors[name] = replace(tensor, offset=rng.choice([0, 32, 64, 31, 2**32, 2**64 - 32]))
    elif tensor.data:
        at = rng.randrange(len(tensor.data))
        tensors[name] = replace(tensor, data=tensor.data[:at] + rng.randbytes(2) + tensor.data[at + 2 :])


CHANGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": change_json_file,
    ".txt": change_lines,
    ".safetensors": change_safetensors,
    ".gguf": change_gguf,
}


def change(files: Files, rng: random.Random) -> Files:
    """Return the files of a folder with one to three changes. An empty folder stays empty."""
    changed = dict(files)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if not changed:
            break
        name = rng.choice(list(changed))
        if rng.random() < 0.01:
            del changed[name]
            continue
        structural = CHANGES.get("." + name.rpartition(".")[2], change_bytes)
        one = structural if rng.random() < 0.85 else change_bytes
        changed[name] = one(changed[name], rng)[:MAX_BYTES]
    return changed
