"""Writes the files of a quantized directory; `checkpoint.quantized` reads them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastattn.checkpoint.new_folder import NewFolder
from fastattn.checkpoint.quantized import CONFIG_KEY, METADATA_KEY, METHOD, PIECES, VERSION
from fastattn.checkpoint.safetensors_writer import Entry, header


@dataclass(frozen=True, slots=True)
class NewWeight:
    """A weight to write. Its pieces are requested one weight at a time, so only one weight is in memory."""

    name: str
    use: str
    form: str
    shape: tuple[int, ...]
    sizes: tuple[int, ...]  # of the pieces, in bytes


def write_quantized(
    folder: NewFolder,
    config: Mapping[str, Any],
    *,
    dtype: str,
    head_dtype: str | None,
    shapes: Mapping[str, Sequence[int]],
    weights: Sequence[NewWeight],
    pieces: Iterable[Sequence[NDArray[np.uint8]]],
) -> None:
    """Write config.json and model.safetensors. pieces: the pieces of each weight, in order. Raises OSError."""
    section = {"quant_method": METHOD, "version": VERSION, "dtype": dtype, "head_dtype": head_dtype}
    with folder.create("config.json") as file:
        file.write(json.dumps({**config, CONFIG_KEY: section}, indent=2).encode() + b"\n")
    with folder.create("model.safetensors") as file:
        file.write(_header(shapes, weights))
        for weight, arrays in zip(weights, pieces, strict=True):
            if tuple(array.nbytes for array in arrays) != weight.sizes:
                raise AssertionError(f"{weight.name}: expected the sizes in the header, got others")
            for array in arrays:
                file.write(array.data)


def _header(shapes: Mapping[str, Sequence[int]], weights: Sequence[NewWeight]) -> bytes:
    said = {
        "shapes": {name: list(shape) for name, shape in shapes.items()},
        "weights": {w.name: {"use": w.use, "format": w.form, "shape": list(w.shape)} for w in weights},
    }
    entries = [
        Entry(weight.name + suffix, "U8", (size,), size)
        for weight in weights
        for suffix, size in zip(PIECES, weight.sizes, strict=False)
    ]
    return header(entries, {"format": METHOD, METADATA_KEY: json.dumps(said)})
