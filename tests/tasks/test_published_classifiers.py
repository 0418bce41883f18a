"""Folders of classifiers as people publish them: old files, odd settings, half precision. Results as transformers'."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fastattn
from fastattn.errors import ModelFormatError
from tests.tasks.test_pipeline_parity import assert_equal
from tests.tasks.test_pipelines import reference
from tests.tasks.tiny import write_bert_model, write_distilbert_model, write_roberta_model

pytestmark = pytest.mark.torch
TEXTS = ["A good film!", "Bad DOGS run unknown", "", "the [MASK] cat [SEP] dog", "a " * 40, "@USER good <e1> film"]
Change = Callable[[Path], Any]


def edit(path: Path, **values: Any) -> None:
    """Change a JSON file; None removes a key."""
    content = json.loads(path.read_text()) if path.exists() else {}
    content |= values
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def change_tensors(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    torch_files = pytest.importorskip("safetensors.torch")
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in torch_files.load_file(path).items()}
    torch_files.save_file(change(tensors), path, metadata={"format": "pt"})


def half(folder: Path) -> None:
    change_tensors(folder, lambda tensors: {name: tensor.half() for name, tensor in tensors.items()})
    edit(folder / "config.json", torch_dtype="float16", dtype=None)


def old_names(folder: Path) -> None:
    """The names of the first BERT checkpoints, and a buffer that older versions stored."""
    torch = pytest.importorskip("torch")

    def rename(tensors: dict[str, Any]) -> dict[str, Any]:
        found = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
            for name, tensor in tensors.items()
        }
        return {**found, "bert.embeddings.position_ids": torch.arange(64)[None]}

    change_tensors(folder, rename)


def tokenizer_settings(**values: Any) -> Change:
    return lambda folder: edit(folder / "tokenizer_config.json", **values)


def config_settings(**values: Any) -> Change:
    return lambda folder: edit(folder / "config.json", **values)


def only_vocabulary(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()


def windows_lines(folder: Path) -> None:
    path = folder / "vocab.txt"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def added_tokens(folder: Path) -> None:
    """Tokens of the old files, for ids that the model has because its vocabulary is larger than vocab.txt."""
    n_words = len((folder / "vocab.txt").read_text().splitlines())
    (folder / "added_tokens.json").write_text(json.dumps({"@USER": n_words, "<e1>": n_words + 1}))
    names = {name: f"[{name[:-6].upper()}]" for name in ("unk_token", "sep_token", "pad_token", "cls_token")}
    (folder / "special_tokens_map.json").write_text(json.dumps({**names, "additional_special_tokens": ["<e1>"]}))


def training_files(folder: Path) -> None:
    for name in (
        "optimizer.pt",
        "training_args.bin",
        "tf_model.h5",
        "flax_model.msgpack",
        "README.md",
        "trainer_state.json",
    ):
        (folder / name).write_bytes(b"{}")


BERT: dict[str, Change] = {
    "half precision": half,
    "old names": old_names,
    "only vocab.txt": only_vocabulary,
    "vocab.txt with \\r\\n": windows_lines,
    "max_len": tokenizer_settings(max_len=20, do_lower_case=False),
    "settings of old versions": tokenizer_settings(
        model_max_length=1000000000000000019884624838656,
        never_split=None,
        do_basic_tokenize=True,
        name_or_path="/tmp/x",
        special_tokens_map_file="/root/.cache/x",
        tokenize_chinese_chars=True,
    ),
    "files of a training run": training_files,
    "several labels": config_settings(problem_type="multi_label_classification"),
    "labels by number, out of order": config_settings(
        id2label={"2": "c", "0": "a", "1": "b"}, label2id={"c": 2, "a": 0, "b": 1}
    ),
    "names of label2id only": config_settings(id2label=None, label2id=None, num_labels=3),
    "options of old versions": config_settings(
        finetuning_task="sst-2",
        output_past=True,
        pruned_heads={},
        gradient_checkpointing=False,
        transformers_version="2",
    ),
}


def assert_as_transformers(folder: Path) -> None:
    theirs = reference("text-classification", folder)
    pipe = fastattn.pipeline("text-classification", folder, device="numpy")  # both in float64
    options: dict[str, Any] = {"top_k": None, "truncation": True, "max_length": 48}
    assert_equal([pipe([text], **options)[0] for text in TEXTS], [theirs([text], **options)[0] for text in TEXTS])


@pytest.mark.parametrize("name", BERT)
def test_bert(name: str, tmp_path: Path) -> None:
    folder = write_bert_model(tmp_path, head=True)
    BERT[name](folder)
    assert_as_transformers(folder)


def test_added_tokens(tmp_path: Path) -> None:
    folder = write_bert_model(tmp_path, head=True)
    torch = pytest.importorskip("torch")
    name = "bert.embeddings.word_embeddings.weight"
    change_tensors(folder, lambda found: {**found, name: torch.cat([found[name], 0.5 * found[name][:2]])})
    n_words = len((folder / "vocab.txt").read_text().splitlines())
    edit(folder / "config.json", vocab_size=n_words + 2)
    added_tokens(folder)
    assert set(fastattn.AutoTokenizer.from_pretrained(folder)(TEXTS[-1])["input_ids"]) >= {n_words, n_words + 1}
    assert_as_transformers(folder)


@pytest.mark.parametrize("write", [write_distilbert_model, write_roberta_model])
def test_other_families(write: Callable[[Path], Path], tmp_path: Path) -> None:
    half(write(tmp_path))
    edit(tmp_path / "tokenizer_config.json", max_len=40)
    assert_as_transformers(tmp_path)


def test_pickled_weights_name_the_class_that_keeps_the_head(tmp_path: Path) -> None:
    folder = write_bert_model(tmp_path, head=True)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelFormatError, match=r"transformers: BertForSequenceClassification\.from_pretrained"):
        fastattn.pipeline("text-classification", folder)
    edit(folder / "config.json", architectures=["os.system('x')"])
    with pytest.raises(ModelFormatError, match=r"transformers: AutoModel\.from_pretrained"):
        fastattn.AutoModel.from_pretrained(folder)
