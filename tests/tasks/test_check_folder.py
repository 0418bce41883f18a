"""`check_folder` and `fastattn check`: intact and broken folders, and what they use and ignore."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import fastattn
from fastattn.errors import DTypeError, ModelNotFoundError
from fastattn.tasks.demo import demo_model
from fastattn.tasks.folder_report import folder_lines
from tests.reference import checkpoints
from tests.reference.command import run
from tests.tasks import sentence_folders
from tests.tasks.sentence_folders import POOLING, change_json, write_model, write_transformer
from tests.tasks.test_model2vec import write_model2vec
from tests.tasks.test_multi_vector_encoder import write_colbert, write_pylate
from tests.tasks.test_sparse_encoder import write_splade


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_model("text-classification"), tmp_path / "bert"))


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_model("text-generation"), tmp_path / "gpt2"))


def uses(report: fastattn.FolderReport, file: str) -> dict[str, str]:
    return {entry.key: entry.use for entry in report.settings if entry.file == file}


def test_intact_folder(bert: Path, caplog: pytest.LogCaptureFixture) -> None:
    report = fastattn.check_folder(bert)
    assert report.ok
    assert report.warnings == ()
    assert repr(report) == f"<FolderReport of '{bert}': ok>"
    assert [task.auto_class for task in report.tasks] == ["AutoModelForSequenceClassification", "AutoModel"]
    assert report.sentence_transformer
    with fastattn.AutoModelForSequenceClassification.from_pretrained(bert) as model:
        assert report.model is not None
        assert report.model.n_parameters == model.num_parameters()
        assert report.model.context == model.config.max_positions
        assert report.tokenizer == f"BertTokenizer, {len(model.tokenizer or ())} tokens"
    assert {entry.name: entry.used for entry in report.files} == {
        "1_Pooling/config.json": True,
        "config.json": True,
        "model.safetensors": True,
        "modules.json": True,
        "tokenizer.json": True,
        "tokenizer_config.json": True,
        "vocab.txt": False,
    }
    found = uses(report, "config.json")
    assert found["hidden_size"] == found["model_type"] == "used"
    assert found["hidden_dropout_prob"] == "no effect"
    assert uses(report, "modules.json")["module 1: type"] == "used"
    assert caplog.records == []


def test_unknown_settings_and_generation_options(gpt2: Path, caplog: pytest.LogCaptureFixture) -> None:
    change_json(gpt2 / "config.json", n_hidden_gates=4)
    change_json(gpt2 / "tokenizer_config.json", fold_case=True)
    change_json(gpt2 / "generation_config.json", num_beams=4, guidance_scale=2, use_cache=True)
    report = fastattn.check_folder(gpt2)
    assert report.ok
    assert uses(report, "config.json")["n_hidden_gates"] == "ignored"
    assert uses(report, "tokenizer_config.json")["fold_case"] == "ignored"
    generation = uses(report, "generation_config.json")
    assert (generation["eos_token_id"], generation["guidance_scale"]) == ("used", "ignored")
    assert generation["num_beams"] == "used"
    assert generation["use_cache"] == "no effect"
    said = "\n".join(report.warnings)
    assert all(name in said for name in ("n_hidden_gates", "fold_case", "guidance_scale"))
    assert caplog.records == []  # they are in the report instead
    with pytest.raises(DTypeError):
        fastattn.check_folder(gpt2, local_files_only="yes")  # type: ignore[arg-type]


def test_files_that_are_never_opened(gpt2: Path) -> None:
    names = {
        "pytorch_model.bin": "pickle, which can run code when loaded; never opened",
        "modeling_gpt2.py": "code; never runs",
        "old.safetensors": "weights that no file in use refers to",
        "model.onnx": "weights in another format",
        "training_args.bin": "training",
        "LICENSE": "documentation",
        "runs/data.xyz": "not a known name",
    }
    (gpt2 / "runs").mkdir()
    for name in names:
        (gpt2 / name).write_bytes(b"not read")
    (gpt2 / "link").symlink_to(gpt2 / "missing")
    report = fastattn.check_folder(gpt2)
    assert report.ok
    unused = {entry.name: entry.note for entry in report.files if not entry.used}
    assert unused == {**names, "link": "not a regular file"}
    assert [entry.name for entry in report.files if entry.pickled] == ["pytorch_model.bin"]


def test_files_that_are_not_listed(gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report says so."""
    (gpt2 / "a" / "b" / "c").mkdir(parents=True)
    (gpt2 / "a" / "b" / "c" / "pytorch_model.bin").write_bytes(b"not read")
    (gpt2 / "a" / "b" / "file").write_bytes(b"not read")
    report = fastattn.check_folder(gpt2)
    unused = {entry.name: entry.note for entry in report.files if not entry.used}
    note = "a folder below the third level; its files are not listed"
    assert unused == {"a/b/file": "not a known name", "a/b/c/": note}
    monkeypatch.setattr("fastattn.tasks.folder_files.MAX_FILES", 3)
    *listed, last = fastattn.check_folder(gpt2).files
    assert len(listed) == 3
    assert (last.name, last.note) == ("...", "only 3 files are listed")


def test_only_pickled_weights(gpt2: Path) -> None:
    (gpt2 / "model.safetensors").rename(gpt2 / "pytorch_model.bin")
    report = fastattn.check_folder(gpt2)
    assert not report.ok
    assert "expected model.safetensors, found only pytorch_model.bin" in report.problems[0]
    assert report.tasks == ()
    assert report.tokenizer == "GPT2Tokenizer, 4096 tokens"


def test_digests(gpt2: Path) -> None:
    weights = gpt2 / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    (gpt2 / "SHA256SUMS").write_text(f"{digest}  model.safetensors\n", encoding="ascii")
    report = fastattn.check_folder(gpt2)
    assert report.ok
    assert report.digests == ("model.safetensors",)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    report = fastattn.check_folder(gpt2)
    assert [f"expected SHA-256 {digest}" in problem for problem in report.problems] == [True]


def test_truncated_weights(gpt2: Path) -> None:
    weights = gpt2 / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    report = fastattn.check_folder(gpt2)
    assert len(report.problems) == 1
    assert "expected to end by byte" in report.problems[0]


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    folder = checkpoints.write_gpt2(tmp_path)
    tensors = checkpoints.gpt2_tensors()
    tensors["h.1.mlp.c_fc.bias"][3] = np.nan
    tensors["h.1.mlp.c_fc.bias"][5] = np.inf
    (folder / "model.safetensors").write_bytes(checkpoints.safetensors(tensors))
    report = fastattn.check_folder(folder)
    assert len(report.problems) == 1
    assert "h.1.mlp.c_fc.bias[3] = nan, one of 2 that are not finite" in report.problems[0]
    assert [task.task for task in report.tasks] == ["causal-lm", "encoder"]


def test_head_that_does_not_match_its_config(bert: Path) -> None:
    change_json(bert / "config.json", id2label={"0": "a", "1": "b", "2": "c"}, label2id={"a": 0, "b": 1, "c": 2})
    report = fastattn.check_folder(bert)
    assert "AutoModelForSequenceClassification: " in report.problems[0]
    assert "load it with num_labels=2" in report.problems[0]
    assert [task.task for task in report.tasks] == ["encoder"]


def test_unknown_family_and_broken_tokenizer(bert: Path) -> None:
    change_json(bert / "config.json", model_type="mamba")
    (bert / "tokenizer.json").write_text("{", encoding="utf-8")
    report = fastattn.check_folder(bert)
    assert any("model_type 'mamba'" in problem for problem in report.problems)
    assert any("tokenizer.json" in problem for problem in report.problems)
    assert report.model is report.tokenizer is None
    assert not report.sentence_transformer


def test_modules_that_do_not_fit(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "good", POOLING, sentence_folders.dense(12, 5))
    assert fastattn.check_folder(folder).sentence_transformer
    folder = write_model(tmp_path / "bad", POOLING, sentence_folders.dense(7, 5))
    report = fastattn.check_folder(folder)
    assert [problem.partition(": ")[2] for problem in report.problems] == [
        "Dense: expected sentence_embedding of width 7, got 12"
    ]
    assert not report.sentence_transformer
    plain = write_transformer(tmp_path / "plain")
    assert not fastattn.check_folder(plain).sentence_transformer


def test_static_embedding(tmp_path: Path) -> None:
    folder = sentence_folders.write_static(tmp_path)
    report = fastattn.check_folder(folder)
    assert report.ok
    assert report.sentence_transformer
    assert report.tasks == ()


def test_quantized_folder(gpt2: Path, tmp_path: Path) -> None:
    folder = fastattn.quantize(gpt2, tmp_path / "int8", dtype="int8")
    report = fastattn.check_folder(folder)
    assert report.ok
    assert report.model is not None
    assert list(report.model.stored_dtypes) == ["int8"]


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        fastattn.check_folder(tmp_path / "none")


def test_command(gpt2: Path) -> None:
    done = run("check", str(gpt2))
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == 'loads as     AutoModelForCausalLM, pipeline("text-generation")'
    assert done.stdout.splitlines()[-1] == "result       ok"
    (gpt2 / "model.safetensors").unlink()
    done = run("check", str(gpt2), "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert not found["ok"]
    assert "expected model.safetensors" in found["problems"][0]


def test_model2vec_and_unknown_kinds(tmp_path: Path) -> None:
    report = fastattn.check_folder(write_model2vec(tmp_path / "a"))
    assert report.ok
    assert report.sentence_transformer
    folder = sentence_folders.write_model(tmp_path / "b", sentence_folders.POOLING, settings={"model_type": "Other"})
    report = fastattn.check_folder(folder)
    assert report.ok
    assert any("model_type is 'Other'" in warning for warning in report.warnings)


@pytest.mark.torch
def test_sparse_and_multi_vector_encoders(tmp_path: Path) -> None:
    sparse = write_splade(tmp_path / "a")
    found = fastattn.check_folder(sparse)
    assert (found.ok, found.sparse_encoder, found.multi_vector_encoder, found.sentence_transformer) == (
        True, True, False, False,
    )  # fmt: skip
    assert "SparseEncoder" in "\n".join(folder_lines(found))
    (sparse / "1_SpladePooling" / "config.json").write_text('{"pooling_strategy": "mean"}')
    assert "pooling_strategy: expected one of" in fastattn.check_folder(sparse).problems[0]
    for folder in (write_colbert(tmp_path / "b", {}), write_pylate(tmp_path / "c")):
        found = fastattn.check_folder(folder)
        assert (found.ok, found.sparse_encoder, found.multi_vector_encoder) == (True, False, True)
    (tmp_path / "c" / "1_Dense" / "model.safetensors").unlink()
    assert not fastattn.check_folder(tmp_path / "c").ok
