"""Weights in float64 are rounded to float32, and float16 is widened: the bits equal a model saved in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fastattn
from fastattn.api.auto import AutoModelForCausalLM
from fastattn.checkpoint import open_checkpoint, read_header, read_tensor
from fastattn.errors import ConfigError, ModelFormatError
from tests.reference.checkpoints import GPT2, gpt2_tensors, safetensors, write

IDS = [1, 2, 3, 4]


def wide(seed: int = 0) -> dict[str, NDArray[Any]]:
    """Return weights with digits that float32 does not have."""
    rng = np.random.default_rng(seed)
    return {name: array * (1 + rng.uniform(-1e-7, 1e-7, array.shape)) for name, array in gpt2_tensors().items()}


def test_every_rounding(tmp_path: Path) -> None:
    values = np.array(
        [1 + 2**-24, 1 + 3 * 2**-24, 1 - 2**-25, 0.1, -0.0, 2**-149, 2**-150, 1e-310, 1e308 * 10, -np.inf, np.nan],
        np.float64,
    )
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors({"a": values}))
    found = read_tensor(read_header(path)["a"])
    expected = [1.0, 1 + 2**-22, 1.0, float(np.float32(0.1)), -0.0, 2**-149, 0.0, 0.0, np.inf, -np.inf, np.nan]
    assert found.dtype == np.float32
    assert np.array_equal(found, np.array(expected, np.float32), equal_nan=True)
    assert np.signbit(found[4])


def test_tensors_of_several_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastattn.checkpoint.source._READ_BYTES", 16)
    values = np.arange(35, dtype=np.float64).reshape(5, 7) / 3
    path = tmp_path / "a.safetensors"
    for array in (values, values.astype(np.float32), values.astype(np.float16)):
        path.write_bytes(safetensors({"a": array}))
        assert np.array_equal(read_tensor(read_header(path)["a"]), array.astype(np.float32))


@pytest.mark.parametrize("value", [1e39, -1e300])
def test_a_number_beyond_float32(tmp_path: Path, device: str, value: float) -> None:
    tensors = wide()
    tensors["ln_f.weight"][3] = value
    folder = write(tmp_path / "model", GPT2, tensors)
    with pytest.raises(ConfigError, match=r"expected float64 numbers within the range of float32, got [-e+0-9]+$"):
        AutoModelForCausalLM.from_pretrained(folder, device=device)
    with pytest.raises((ConfigError, ModelFormatError), match="float32"):
        open_checkpoint(folder, check_finite=True)
    with pytest.raises(ConfigError, match="range of float32"):
        fastattn.quantize(folder, tmp_path / "out", dtype="int8")
    assert not (tmp_path / "out").exists()


def test_models(tmp_path: Path, device: str) -> None:
    tensors = wide()
    double = write(tmp_path / "double", GPT2, tensors)
    single = write(tmp_path / "single", GPT2, {name: array.astype(np.float32) for name, array in tensors.items()})
    assert open_checkpoint(double, check_finite=True).tensors["wte.weight"].dtype == "F64"
    for dtype in ("float32", "bfloat16", "int8", "int4"):
        with (
            AutoModelForCausalLM.from_pretrained(double, device=device, dtype=dtype) as found,
            AutoModelForCausalLM.from_pretrained(single, device=device, dtype=dtype) as expected,
        ):
            assert np.array_equal(np.asarray(found(IDS).logits), np.asarray(expected(IDS).logits))


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_quantize(tmp_path: Path, dtype: str) -> None:
    tensors = wide()
    double = write(tmp_path / "double", GPT2, tensors)
    single = write(tmp_path / "single", GPT2, {name: array.astype(np.float32) for name, array in tensors.items()})
    files = [
        (fastattn.quantize(folder, tmp_path / f"{folder.name}-out", dtype=dtype) / "model.safetensors").read_bytes()
        for folder in (double, single)
    ]
    assert files[0] == files[1]
