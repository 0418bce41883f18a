"""Decodes the block formats of GGML to float32. A block has one or more scales and a fixed number of small integers.

The layouts are those of ggml-common.h in https://github.com/ggml-org/ggml. Every formula is computed in float32 in the
same order as in the `gguf` package, so results are the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Float32 = NDArray[np.float32]

_SUPER = 256  # numbers in a block of the K formats
_BITS = np.arange(8, dtype=np.uint8).reshape(1, 1, 8, 1)
_CRUMBS = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
_NIBBLES = np.array([0, 4], np.uint8).reshape(1, 1, 2, 1)


@dataclass(frozen=True, slots=True)
class BlockType:
    """A type of tensors in a GGUF file.

    n_values: numbers per block; n_bytes: bytes per block. dtype: the same type in safetensors, "" for blocks.
    decode: [n_blocks, n_bytes] -> [n_blocks, n_values]. scales: byte offsets of the float16 scales in a block.
    """

    name: str
    n_values: int
    n_bytes: int
    dtype: str = ""
    decode: Callable[[Bytes], Float32] | None = None
    scales: tuple[int, ...] = ()


def decode_blocks(kind: BlockType, data: Bytes) -> Float32:
    """Decode blocks, [n_blocks, n_bytes] -> [n_blocks, n_values]."""
    assert kind.decode is not None
    with np.errstate(over="ignore", invalid="ignore"):  # the caller checks the scales
        return kind.decode(data)


def bad_scale(kind: BlockType, data: Bytes) -> int | None:
    """Return the index of the first block with a scale that is NaN or infinite; None if there is none."""
    bad = np.zeros(len(data), bool)
    for at in kind.scales:
        bad |= (data[:, at + 1] & 0x7C) == 0x7C  # all bits of the exponent
    found = np.flatnonzero(bad)
    return int(found[0]) if len(found) else None


def _half(data: Bytes, at: int) -> Float32:
    """Return the float16 at a byte of every block, [n_blocks, 1]."""
    return np.ascontiguousarray(data[:, at : at + 2]).view(np.float16).astype(np.float32)


def _nibbles(data: Bytes) -> Bytes:
    """[n_blocks, 16] -> [n_blocks, 32]: the low halves of all bytes, then the high halves."""
    return np.concatenate([data & np.uint8(15), data >> np.uint8(4)], axis=1)


def _fifth_bits(data: Bytes) -> Bytes:
    """Return 32 bits per block, [n_blocks, 4] -> [n_blocks, 32]."""
    return np.unpackbits(np.ascontiguousarray(data), axis=1, bitorder="little")


def _q4_0(data: Bytes) -> Float32:
    found: Float32 = _half(data, 0) * (_nibbles(data[:, 2:]).astype(np.int8) - np.int8(8)).astype(np.float32)
    return found


def _q4_1(data: Bytes) -> Float32:
    return _half(data, 0) * _nibbles(data[:, 4:]).astype(np.float32) + _half(data, 2)


def _q5_0(data: Bytes) -> Float32:
    values = _nibbles(data[:, 6:]) | (_fifth_bits(data[:, 2:6]) << np.uint8(4))
    found: Float32 = _half(data, 0) * (values.astype(np.int8) - np.int8(16)).astype(np.float32)
    return found


def _q5_1(data: Bytes) -> Float32:
    values = _nibbles(data[:, 8:]) | (_fifth_bits(data[:, 4:8]) << np.uint8(4))
    found: Float32 = _half(data, 0) * values.astype(np.float32) + _half(data, 2)
    return found


def _q8_0(data: Bytes) -> Float32:
    return _half(data, 0) * data[:, 2:].view(np.int8).astype(np.float32)


def _split(data: Bytes, shifts: Bytes, width: int) -> Bytes:
    """Shift each group of `width` bytes by every shift: [n_blocks, n * width] -> [n_blocks, n * len(shifts), width]."""
    return (data.reshape(len(data), -1, 1, width) >> shifts).reshape(len(data), -1, width)


def _scaled(scales: Any, values: NDArray[Any]) -> Float32:
    """Multiply groups by their scales: [n_blocks, n_groups, 1] and [n_blocks, n_groups, width] -> [n_blocks, 256]."""
    product: Float32 = (scales * values.astype(np.float32)).reshape(len(values), _SUPER)
    return product


def _q2_k(data: Bytes) -> Float32:
    scales, d, lowest = data[:, :16], _half(data, 80), _half(data, 82)
    values = _split(data[:, 16:80], _CRUMBS, 32).reshape(len(data), 16, 16) & np.uint8(3)
    step = (d * (scales & np.uint8(15)).astype(np.float32))[:, :, None]
    offset = (lowest * (scales >> np.uint8(4)).astype(np.float32))[:, :, None]
    found: Float32 = (step * values.astype(np.float32) - offset).reshape(len(data), _SUPER)
    return found


def _q3_k(data: Bytes) -> Float32:
    low = _split(data[:, 32:96], _CRUMBS, 32).reshape(len(data), 16, 16) & np.uint8(3)
    high = (_split(data[:, :32], _BITS, 32).reshape(len(data), 16, 16) & np.uint8(1)) ^ np.uint8(1)
    values = low.astype(np.int8) - (high << np.uint8(2)).astype(np.int8)
    packed = data[:, 96:108]
    low_scales = _split(packed[:, :8], _NIBBLES, 8).reshape(len(data), 16) & np.uint8(15)
    high_scales = _split(packed[:, 8:], _CRUMBS, 4).reshape(len(data), 16) & np.uint8(3)
    scales = (low_scales | (high_scales << np.uint8(4))).astype(np.int8) - np.int8(32)
    return _scaled((_half(data, 108) * scales.astype(np.float32))[:, :, None], values)


def _six_bit_scales(data: Bytes) -> tuple[Float32, Float32]:
    """Return the 8 scales and the 8 minimums of each block of Q4_K and Q5_K, from 12 bytes."""
    first, second, third = data[:, :4], data[:, 4:8], data[:, 8:]
    scales = [first & np.uint8(63), (third & np.uint8(15)) | ((first >> np.uint8(2)) & np.uint8(48))]
    lowest = [second & np.uint8(63), (third >> np.uint8(4)) | ((second >> np.uint8(2)) & np.uint8(48))]
    return np.concatenate(scales, axis=1).astype(np.float32), np.concatenate(lowest, axis=1).astype(np.float32)


def _with_minimums(data: Bytes, values: Bytes) -> Float32:
    """Apply the scales and minimums of Q4_K and Q5_K to values [n_blocks, 8, 32]."""
    scales, lowest = _six_bit_scales(data[:, 4:16])
    step, offset = (_half(data, 0) * scales)[:, :, None], (_half(data, 2) * lowest)[:, :, None]
    return (step * values.astype(np.float32) - offset).reshape(len(data), _SUPER)


def _q4_k(data: Bytes) -> Float32:
    return _with_minimums(data, _split(data[:, 16:], _NIBBLES, 32) & np.uint8(15))


def _q5_k(data: Bytes) -> Float32:
    low = _split(data[:, 48:], _NIBBLES, 32) & np.uint8(15)
    high = _split(data[:, 16:48], _BITS, 32) & np.uint8(1)
    return _with_minimums(data, low | (high << np.uint8(4)))


def _q6_k(data: Bytes) -> Float32:
    low = _split(data[:, :128], _NIBBLES, 64).reshape(len(data), 8, 32) & np.uint8(15)
    high = _split(data[:, 128:192], _CRUMBS, 32) & np.uint8(3)
    values = ((low | (high << np.uint8(4))).astype(np.int8) - np.int8(32)).reshape(len(data), 16, 16)
    scales = data[:, 192:208].view(np.int8).astype(np.float32)
    return _scaled((_half(data, 208) * scales)[:, :, None], values)


# By the number in the file.
BLOCK_TYPES: Mapping[int, BlockType] = {
    0: BlockType("F32", 1, 4, "F32"),
    1: BlockType("F16", 1, 2, "F16"),
    2: BlockType("Q4_0", 32, 18, decode=_q4_0, scales=(0,)),
    3: BlockType("Q4_1", 32, 20, decode=_q4_1, scales=(0, 2)),
    6: BlockType("Q5_0", 32, 22, decode=_q5_0, scales=(0,)),
    7: BlockType("Q5_1", 32, 24, decode=_q5_1, scales=(0, 2)),
    8: BlockType("Q8_0", 32, 34, decode=_q8_0, scales=(0,)),
    10: BlockType("Q2_K", _SUPER, 84, decode=_q2_k, scales=(80, 82)),
    11: BlockType("Q3_K", _SUPER, 110, decode=_q3_k, scales=(108,)),
    12: BlockType("Q4_K", _SUPER, 144, decode=_q4_k, scales=(0, 2)),
    13: BlockType("Q5_K", _SUPER, 176, decode=_q5_k, scales=(0, 2)),
    14: BlockType("Q6_K", _SUPER, 210, decode=_q6_k, scales=(208,)),
    28: BlockType("F64", 1, 8, "F64"),
    30: BlockType("BF16", 1, 2, "BF16"),
}
# For messages.
OTHER_TYPES: Mapping[int, str] = {
    **{9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S"},
    **{22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0"},
    39: "MXFP4",
}
