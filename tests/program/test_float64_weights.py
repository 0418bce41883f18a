"""Tensors of float64 are rounded to float32 on reading: the bits equal those of a checkpoint saved as float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fastattn import _core
from fastattn.errors import ConfigError, ModelFormatError

ROWS, COLUMNS = 130, 96
READ_AS = [
    *(("matrix", form, turned) for form in ("float32", "bfloat16", "int8", "int4") for turned in (False, True)),
    *(("table", form, False) for form in ("float32", "bfloat16", "int8")),
]
# Ties to even in the last bit of float32, numbers that become denormal or zero there, and the largest that stays
# finite.
EDGES = [
    *(1 + 2**-24, 1 + 3 * 2**-24, 1 + 2**-24 + 2**-50, 1 - 2**-25, 0.1, -0.0),
    *(2**-149, 1.5 * 2**-149, 2**-150, 1e-310, (2 - 2**-24 - 2**-50) * 2.0**127, np.inf, -np.inf, np.nan),
]


def packed(
    array: NDArray[np.float64] | NDArray[np.float32], folder: Path, use: str, form: str, transposed: bool = False
) -> list[bytes]:
    """Return the weight as the kernels read it, from a file with this array."""
    file = folder / "weights"
    array.tofile(file)
    engine = _core.Engine(2)
    code = {8: "F64", 4: "F32"}[array.itemsize]
    with open(file, "rb") as opened:
        stored = (COLUMNS, ROWS) if transposed else (ROWS, COLUMNS)
        engine.load("w", use, form, [("layer.weight", code, *stored, (opened.fileno(), 0))], transposed=transposed)
    return [piece.tobytes() for piece in engine.packed("w")]


@pytest.mark.parametrize(("use", "form", "transposed"), READ_AS)
def test_bits_equal_those_of_float32(use: str, form: str, transposed: bool, tmp_path: Path) -> None:
    weights = np.random.default_rng(3).standard_normal((ROWS, COLUMNS))
    as_float32 = weights.astype(np.float32)
    assert (as_float32 != weights).any()
    expected = packed(as_float32, tmp_path, use, form, transposed)
    assert packed(weights, tmp_path, use, form, transposed) == expected


def test_every_kind_of_rounding(tmp_path: Path) -> None:
    weights = np.random.default_rng(4).standard_normal(ROWS * COLUMNS)
    weights *= np.exp2(np.random.default_rng(5).integers(-160, 120, weights.size))
    weights[: len(EDGES)] = EDGES
    with np.errstate(under="ignore"):
        expected = weights.astype(np.float32).tobytes()
    assert packed(weights, tmp_path, "table", "float32") == [expected]
    first = np.frombuffer(expected, np.float32)[:4]
    assert [float(x) for x in first] == [1.0, 1 + 2**-22, 1 + 2**-23, 1.0]


@pytest.mark.parametrize("value", [1e39, -1e300, (2 - 2**-24) * 2.0**127])
@pytest.mark.parametrize(("use", "form", "transposed"), [("matrix", "int8", True), ("table", "float32", False)])
def test_a_number_beyond_float32_is_an_error_and_not_infinity(
    use: str, form: str, transposed: bool, value: float, tmp_path: Path
) -> None:
    weights = np.ones(ROWS * COLUMNS)
    weights[777] = value
    with pytest.raises(ConfigError, match=r"^tensor layer.weight: expected float64 numbers within .*float32, got "):
        packed(weights, tmp_path, use, form, transposed)


def test_a_file_that_ends_early_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=r"layer\.weight: the file ends "):
        packed(np.ones(ROWS * COLUMNS - 1), tmp_path, "table", "float32")
