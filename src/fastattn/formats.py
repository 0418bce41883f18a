"""The table of number formats: how weights, keys and values are stored, and on which devices.

This is the only place in Python that describes formats by name. `graph/quantize.py` has the formulas and csrc/kernels
the C++. docs/adding-a-format.md lists the changes for a new format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

INT4_GROUP = 32  # values along k that share one integer scale


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A number format.

    weights_on, kv_on: the devices that support it for weights, or for keys and values.
    element_bytes: bytes per element, including its share of a group's scale. scale_bytes: bytes per row for its scale.
    product: the format whose arithmetic computes its products on the CPU, None if the CPU does not support it.
    stored_as: the storage format of the weights, if the name only describes how they are multiplied.
    kv, table: the format of keys and values, and of embedding tables, for weights of this format, if different.
    integers: whether it has rows of integers with one scale per row.
    packed: whether `quantize` writes checkpoints in it.
    """

    weights_on: tuple[str, ...] = ()
    kv_on: tuple[str, ...] = ()
    element_bytes: float = 4
    scale_bytes: int = 0
    product: str | None = None
    stored_as: str | None = None
    kv: str | None = None
    table: str | None = None
    integers: bool = False
    packed: bool = False


FORMATS: Mapping[str, Format] = {
    "float32": Format(weights_on=("cpu", "cuda", "numpy"), kv_on=("cpu", "cuda"), product="float32"),
    "tf32": Format(weights_on=("cuda",), stored_as="float32"),
    "bfloat16": Format(
        weights_on=("cpu", "cuda", "numpy"), kv_on=("cpu", "cuda"), element_bytes=2, product="bfloat16", packed=True
    ),
    "float16": Format(weights_on=("cuda",), kv_on=("cuda",), element_bytes=2),
    "int8": Format(
        weights_on=("cpu", "numpy"),
        kv_on=("cpu",),
        element_bytes=1,
        scale_bytes=4,
        product="int8",
        integers=True,
        packed=True,
    ),
    "int4": Format(
        weights_on=("cpu", "numpy"),
        element_bytes=0.5 + 1 / INT4_GROUP,
        scale_bytes=4,
        product="int8",
        kv="int8",
        table="int8",
        integers=True,
        packed=True,
    ),
    "float64": Format(weights_on=("numpy",), element_bytes=8, stored_as="float32"),
}
DEVICES = ("cpu", "cuda", "numpy")
# Names by device, in the order of the table.
DTYPES: Mapping[str, tuple[str, ...]] = {
    device: tuple(name for name, found in FORMATS.items() if device in found.weights_on) for device in DEVICES
}
KV_DTYPES: Mapping[str, tuple[str, ...]] = {
    device: tuple(name for name, found in FORMATS.items() if device in found.kv_on) for device in DEVICES
}
# The formats that `quantize` writes.
PACKED_DTYPES = tuple(name for name, found in FORMATS.items() if found.packed)


def stored_dtype(dtype: str) -> str:
    """Return the format in which weights of a dtype are stored."""
    return FORMATS[dtype].stored_as or dtype


def default_kv_dtype(dtype: str) -> str:
    """Return the default format of keys and values for weights of a dtype."""
    return FORMATS[dtype].kv or stored_dtype(dtype)
