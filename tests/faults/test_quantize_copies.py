"""What `quantize` copies from a model's folder: regular files with known names, and no target of a link."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest

import fastattn
from fastattn.checkpoint import companions
from tests.faults.test_new_folder import EXPECTED, SECRET, SIZES, loads, names_in
from tests.reference.checkpoints import safetensors, write_gpt2


@pytest.fixture
def floats(tmp_path: Path) -> Path:
    folder = write_gpt2(tmp_path / "floats", **SIZES)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def left_out(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if "not copied" in record.getMessage())


def test_links_and_devices_in_the_source_are_left_out(
    floats: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "config.json").write_bytes(SECRET)
    (outside / "vocab.txt").write_bytes(SECRET)
    (floats / ".env").write_bytes(SECRET)
    (floats / "vocab.txt").symlink_to(outside / "vocab.txt")
    (floats / "vocab.json").symlink_to(".env")
    (floats / "added_tokens.json").symlink_to("../outside/vocab.txt")
    (floats / "2_Dense").symlink_to(outside)
    (floats / "merges.txt").symlink_to("/dev/zero")
    (floats / "spiece.model").symlink_to(floats / "spiece.model")
    (floats / "tokenizer.model").symlink_to("nothing")
    (floats / "loop").symlink_to("loop")
    os.mkfifo(floats / "tokenizer.json")
    (floats / "special_tokens_map.json").symlink_to("tokenizer_config.json")
    (floats / "generation_config.json").write_text("{}")
    with caplog.at_level(logging.WARNING, "fastattn"):
        out = fastattn.quantize(floats, tmp_path / "out", dtype="int8")
    assert names_in(out) == sorted([*EXPECTED, "generation_config.json", "special_tokens_map.json"])
    assert not any(path.is_symlink() for path in out.rglob("*"))
    assert not any(SECRET in path.read_bytes() for path in out.rglob("*") if path.is_file())
    text = left_out(caplog)
    for name in (
        "vocab.txt",
        "vocab.json",
        "added_tokens.json",
        "2_Dense/config.json",
        "merges.txt",
        "tokenizer.model",
    ):
        assert f"{name!r} (a link that is not followed)" in text
    for name in ("spiece.model", "tokenizer.json"):
        assert f"{name!r} (not a regular file)" in text
    assert "'loop' (not a known name)" in text
    assert ".env" not in text


def test_only_known_names_are_copied(floats: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("notes.txt", "secrets.json", "modeling_x.py", "id_rsa", "a\nb.json", ".hidden.json"):
        (floats / name).write_bytes(SECRET)
    for name in ("pytorch_model.bin", "model.onnx", "model.fp16.safetensors", "model.safetensors.index.json"):
        (floats / name).write_bytes(SECRET)  # other weights cause no warning
    known = ["README.md", "LICENSE", "modules.json", "sentence_bert_config.json", "sentencepiece.bpe.model"]
    for name in known:
        (floats / name).write_text("{}")
    (floats / "2_Dense").mkdir()
    (floats / "2_Dense" / "config.json").write_text("{}")
    (floats / "2_Dense" / "model.safetensors").write_bytes(safetensors({}))
    (floats / "2_Dense" / "other.json").write_text("{}")
    (floats / "onnx").mkdir()
    (floats / "onnx" / "config.json").write_text("{}")
    with caplog.at_level(logging.WARNING, "fastattn"):
        out = fastattn.quantize(floats, tmp_path / "out", dtype="int8")
    assert names_in(out) == sorted([*EXPECTED, *known, "2_Dense/config.json", "2_Dense/model.safetensors"])
    text = left_out(caplog)
    for name in ("notes.txt", "secrets.json", "modeling_x.py", "id_rsa", "a\nb.json"):
        assert f"{name!r} (not a known name)" in text
    assert "\n" not in text
    assert ".bin" not in text
    assert ".onnx" not in text


def test_files_that_are_too_large_or_too_many(
    floats: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (floats / "vocab.txt").open("wb") as file:
        file.truncate(companions.MAX_COPIED_BYTES + 1)
    with caplog.at_level(logging.WARNING, "fastattn"):
        out = fastattn.quantize(floats, tmp_path / "out", dtype="int8")
    assert names_in(out) == EXPECTED
    assert "'vocab.txt' (more than 256 MiB)" in left_out(caplog)
    for i in range(300):
        (floats / f"LICENSE.{i}").write_bytes(b"")
    caplog.clear()
    monkeypatch.setattr(companions, "MAX_COPIED_FILES", 10)
    out = fastattn.quantize(floats, tmp_path / "many", dtype="int8")
    assert len(names_in(out)) == 12
    assert len(left_out(caplog)) < 2000


def test_a_snapshot_of_a_hub_cache(floats: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its files are links to blobs, identified by their names in the snapshot; other links are treated as usual."""
    cache = tmp_path / "models--a--b"
    blobs, snapshot = cache / "blobs", cache / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    for i, name in enumerate(names_in(floats)):
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(floats / name, blobs / f"blob{i}")
        (snapshot / name).symlink_to(Path(os.path.relpath(blobs / f"blob{i}", (snapshot / name).parent)))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_bytes(SECRET)
    (snapshot / "vocab.txt").symlink_to("../../refs/main")
    with caplog.at_level(logging.WARNING, "fastattn"):
        out = fastattn.quantize(snapshot, tmp_path / "out", dtype="int8")
    assert names_in(out) == EXPECTED
    assert not any(path.is_symlink() for path in out.rglob("*"))
    assert "'vocab.txt' (a link that is not followed)" in left_out(caplog)
    assert loads(out)
