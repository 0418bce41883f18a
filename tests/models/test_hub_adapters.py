"""LoRA adapters with hub ids: what is fetched, and what the cache must have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fastattn.api.auto import AutoModelForCausalLM
from fastattn.errors import HubError
from tests.models import test_hub
from tests.models.test_hub import Hub
from tests.reference.checkpoints import write_gpt2

pytest.importorskip("huggingface_hub")
hub = test_hub.hub  # the fixture
save_file = pytest.importorskip("safetensors.numpy").save_file


@pytest.fixture
def base(hub: Hub, tmp_path: Path) -> Path:
    """Return a model; the hub has an adapter for it, and nothing else."""
    base, adapter = write_gpt2(tmp_path / "base"), tmp_path / "adapter"
    adapter.mkdir()
    width = json.loads((base / "config.json").read_text())["n_embd"]
    rng, module = np.random.default_rng(0), "base_model.model.transformer.h.0.attn.c_attn"
    tensors = {
        f"{module}.lora_A.weight": rng.standard_normal((2, width), np.float32),
        f"{module}.lora_B.weight": rng.standard_normal((3 * width, 2), np.float32),
    }
    save_file(tensors, adapter / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": str(base)}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    hub.files = {file.name: file.read_bytes() for file in adapter.iterdir()} | {"README.md": b"#"}
    return base


def logits(*args: object, **options: object) -> list[np.ndarray]:
    with AutoModelForCausalLM.from_pretrained(*args, **options) as model:  # type: ignore[arg-type]
        return [np.asarray(row) for row in model([[1, 2, 3]]).logits]


def test_the_adapter_of_a_model(hub: Hub, base: Path, tmp_path: Path) -> None:
    expected, cache = logits(base, adapter=tmp_path / "adapter"), tmp_path / "cache"
    np.testing.assert_array_equal(logits(base, adapter="tiny/gpt2", cache_dir=cache), expected)
    assert not any("README" in line for line in hub.asked)
    found = logits(base, adapter="tiny/gpt2", cache_dir=cache, local_files_only=True)
    np.testing.assert_array_equal(found, expected)
    assert np.abs(logits(base)[0] - expected[0]).max() > 1e-3


def test_a_repository_with_only_an_adapter(base: Path, tmp_path: Path) -> None:
    expected, cache = logits(tmp_path / "adapter"), tmp_path / "cache"
    np.testing.assert_array_equal(logits("tiny/gpt2", cache_dir=cache), expected)
    np.testing.assert_array_equal(logits("tiny/gpt2", cache_dir=cache, local_files_only=True), expected)


def test_a_part_of_an_adapter_in_the_cache(base: Path, tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    cache = tmp_path / "cache"
    snapshot_download("tiny/gpt2", allow_patterns=["adapter_config.json"], cache_dir=cache)
    with pytest.raises(HubError, match="no complete copy in the local cache"):
        logits(base, adapter="tiny/gpt2", cache_dir=cache, local_files_only=True)
