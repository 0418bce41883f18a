"""Faults 28 to 31: sharded indexes and directories."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastattn.api.auto import AutoModelForCausalLM
from fastattn.checkpoint import open_checkpoint
from fastattn.checkpoint.index import INDEX_LIMITS, INDEX_NAME
from fastattn.errors import ModelFormatError
from tests.reference.checkpoints import GPT2, gpt2_tensors, safetensors, write_gpt2
from tests.reference.steps import count_calls

MAX_CALLS = 3000
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def shard(directory: Path, weight_map: Any = None, **changes: Any) -> Path:
    """Write a GPT-2 in two shards. changes: first, second = lists of tensor names instead of one half each."""
    directory.mkdir(exist_ok=True)
    tensors = gpt2_tensors()
    names = list(tensors)
    first, second = changes.get("first", names[::2]), changes.get("second", names[1::2])
    (directory / "config.json").write_text(json.dumps(GPT2))
    (directory / FIRST).write_bytes(safetensors({name: tensors[name] for name in first}))
    (directory / SECOND).write_bytes(safetensors({name: tensors[name] for name in second}))
    if weight_map is None:
        weight_map = dict.fromkeys(names[::2], FIRST) | dict.fromkeys(names[1::2], SECOND)
    (directory / INDEX_NAME).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return directory


def refused(directory: Path) -> ModelFormatError:
    with pytest.raises(ModelFormatError) as caught:
        open_checkpoint(directory)

    def again() -> None:
        with contextlib.suppress(ModelFormatError):
            open_checkpoint(directory)

    assert count_calls(again) < MAX_CALLS
    return caught.value


def test_shards_are_one_model(tmp_path: Path, device: str) -> None:
    with (
        AutoModelForCausalLM.from_pretrained(shard(tmp_path / "two"), device=device) as sharded,
        AutoModelForCausalLM.from_pretrained(write_gpt2(tmp_path / "one"), device=device) as single,
    ):
        assert np.array_equal(np.asarray(sharded([1, 2, 3]).logits), np.asarray(single([1, 2, 3]).logits))


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/passwd",
        "a/../../b.safetensors",
        "C:\\x.safetensors",
        "a\0.safetensors",
        "a" * 5000 + ".safetensors",
        "..",
        ".",
        "",
        "sub/model.safetensors",
        "pytorch_model.bin",
        "a\n.safetensors",
        "a.safetensors\n",
        7,
        None,
        ["a.safetensors"],
    ],
)
def test_fault_28_file_names_of_an_index(tmp_path: Path, name: Any) -> None:
    (tmp_path.parent / "x.safetensors").unlink(missing_ok=True)
    error = refused(shard(tmp_path, {"wte.weight": name}))
    assert error.code == "shard_name"
    assert error.tensor == "wte.weight"


def test_fault_28_symlinks_of_a_hub_cache_are_fine(tmp_path: Path) -> None:
    blobs = shard(tmp_path / "blobs")
    snapshot = tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    assert open_checkpoint(snapshot).tensors.keys() == gpt2_tensors().keys()


def test_fault_29_a_shard_is_missing(tmp_path: Path) -> None:
    (shard(tmp_path) / SECOND).unlink()
    error = refused(tmp_path)
    assert error.code == "shard"
    assert SECOND in str(error)


def test_fault_29_a_listed_tensor_is_not_there(tmp_path: Path) -> None:
    names = list(gpt2_tensors())
    error = refused(shard(tmp_path, first=names[2::2]))
    assert (error.code, error.tensor) == ("shard_missing_tensor", names[0])


def test_fault_29_a_tensor_in_two_shards(tmp_path: Path) -> None:
    names = list(gpt2_tensors())
    error = refused(shard(tmp_path, second=[*names[1::2], names[0]]))
    assert (error.code, error.tensor) == ("shard_twice", names[0])


def test_fault_29_an_unlisted_tensor_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = list(gpt2_tensors())
    weight_map = dict.fromkeys(names[::2], FIRST) | dict.fromkeys(names[3::2], SECOND)
    with caplog.at_level(logging.WARNING, "fastattn"):
        checkpoint = open_checkpoint(shard(tmp_path, weight_map))
    assert names[1] in checkpoint.tensors
    assert f"not listed in {INDEX_NAME}: {names[1]!r}" in caplog.text


def test_fault_30_an_index_of_200_mb(tmp_path: Path) -> None:
    index = shard(tmp_path) / INDEX_NAME
    with index.open("r+b") as file:
        file.truncate(200_000_000)
    error = refused(tmp_path)
    assert error.code == "file_too_large"
    assert str(INDEX_LIMITS.n_bytes) in str(error)


def test_fault_30_a_million_entries(tmp_path: Path) -> None:
    directory = shard(tmp_path)
    entries = ",".join(f'"{i}":"a.safetensors"' for i in range(10**6))
    (directory / INDEX_NAME).write_text('{"weight_map":{' + entries + "}}")
    assert refused(directory).code == "index_too_large"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map":[]}', '{"weight_map":{}}', '{"weight_map":', "{" * 99])
def test_fault_30_text_that_is_not_an_index(tmp_path: Path, text: str) -> None:
    (shard(tmp_path) / INDEX_NAME).write_text(text)
    assert refused(tmp_path).code == "index_json"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "tf_model.h5", "model.gguf", "model.onnx", "x.ckpt"])
def test_fault_31_other_formats(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GPT2))
    (tmp_path / name).write_bytes(b"\x80\x04.")
    error = refused(tmp_path)
    assert error.code == "other_format"
    assert name in str(error)
    assert "save_pretrained" in str(error)


def test_fault_31_no_weights_at_all(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GPT2))
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        open_checkpoint(tmp_path)


def test_fault_31_pickle_is_never_imported() -> None:
    """None of our modules names pickle; numpy imports it for itself.

    The exception is the pickle of an estimator, which has the recipe of its model as bytes. It reads no files.
    """
    import fastattn.api.auto
    import fastattn.checkpoint

    for name, module in sys.modules.items():
        if name.startswith("fastattn") and name != "fastattn.tasks.lazy_model":
            assert not hasattr(module, "pickle"), name
    source = Path(fastattn.checkpoint.__file__).parent
    assert not any(
        "import pickle" in file.read_text() or "torch.load" in file.read_text() for file in source.glob("*.py")
    )


def test_a_single_file_wins_over_an_index(tmp_path: Path) -> None:
    """As in transformers, an index left behind by an earlier save is ignored."""
    write_gpt2(shard(tmp_path, {"no": "shard.safetensors"}))
    assert {info.path.name for info in open_checkpoint(tmp_path).tensors.values()} == {"model.safetensors"}
