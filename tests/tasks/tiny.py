"""Tiny random checkpoints, saved by transformers, with the small tokenizers next to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tasks.tokenizers import write_bert, write_gpt2, write_roberta


def write_gpt2_model(folder: Path) -> Path:
    """Write a GPT-2 with 3 layers, 64 positions and the 266 ids of `write_gpt2`."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.set_num_threads(1)
    torch.manual_seed(1)
    config = transformers.GPT2Config(
        vocab_size=266, n_positions=64, n_embd=32, n_layer=3, n_head=2, bos_token_id=265, eos_token_id=265,
        initializer_range=0.3,
    )  # fmt: skip
    transformers.GPT2LMHeadModel(config).eval().save_pretrained(folder)
    return write_gpt2(folder)


def write_bert_model(folder: Path, *, head: bool, **options: Any) -> Path:
    """Write a BERT with 2 layers and the words of `write_bert`; with a head of three labels or a pooler."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.set_num_threads(1)
    torch.manual_seed(2)
    write_bert(folder)
    n_words = len((folder / "vocab.txt").read_text(encoding="utf-8").splitlines())
    labels = {0: "bad", 1: "fair", 2: "good"}
    config = transformers.BertConfig(
        vocab_size=n_words, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.3,
        **{"id2label": labels, "label2id": {name: i for i, name in labels.items()}, **options},
    )  # fmt: skip
    kind = transformers.BertForSequenceClassification if head else transformers.BertModel
    kind(config).eval().save_pretrained(folder)
    return folder


def write_sentence_model(folder: Path, *, normalize: bool = False, **pooling: Any) -> Path:
    """Write the tiny BERT as a sentence-transformers folder."""
    write_bert_model(folder, head=False)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")] + ([("2_Normalize", "Normalize")] if normalize else [])
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16, "do_lower_case": False}))
    for path, _ in kinds[1:]:
        (folder / path).mkdir()
    config = {"word_embedding_dimension": 32, **(pooling or {"pooling_mode_mean_tokens": True})}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    return folder


def write_distilbert_model(folder: Path) -> Path:
    """Write a DistilBERT with 2 layers, a head of two labels and the words of `write_bert`; it has no token types."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(4)
    write_bert(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, "model_max_length": 64}))
    config = transformers.DistilBertConfig(
        vocab_size=len((folder / "vocab.txt").read_text(encoding="utf-8").splitlines()), dim=32, n_layers=2, n_heads=2,
        hidden_dim=64, max_position_embeddings=64, initializer_range=0.3, seq_classif_dropout=0.0,
    )  # fmt: skip
    transformers.DistilBertForSequenceClassification(config).eval().save_pretrained(folder)
    return folder


def write_roberta_model(folder: Path) -> Path:
    """Write a RoBERTa with 2 layers, a head of two labels and the ids of `write_roberta`."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(5)
    write_roberta(folder)
    config = transformers.RobertaConfig(
        vocab_size=len(json.loads((folder / "vocab.json").read_text(encoding="utf-8"))), hidden_size=32,
        num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=66,
        type_vocab_size=1, initializer_range=0.3, bos_token_id=0, pad_token_id=1, eos_token_id=2,
    )  # fmt: skip
    transformers.RobertaForSequenceClassification(config).eval().save_pretrained(folder)
    return folder


def write_head(folder: Path, model_class: str, **options: Any) -> Path:
    """Write a tiny BERT, ELECTRA, RoBERTa or DistilBERT with a head and the words of `write_bert` (`write_roberta`)."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.set_num_threads(1)
    torch.manual_seed(6)
    kind = getattr(transformers, model_class)
    given: dict[str, Any] = {"initializer_range": 0.3, "max_position_embeddings": 66, **options}
    if model_class.startswith("Roberta"):
        write_roberta(folder)
        words = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        given |= {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "type_vocab_size": 1}
    else:
        write_bert(folder)
        words = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    if model_class.startswith("DistilBert"):
        given |= {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
        (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, "model_max_length": 64}))
    else:
        given |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    kind(kind.config_class(vocab_size=len(words), **given)).eval().save_pretrained(folder)
    return folder


def write_masked_lm(folder: Path, family: str) -> Path:
    """Write a masked language model of a family: "Bert", "Electra", "Roberta" or "DistilBert"."""
    return write_head(folder, f"{family}ForMaskedLM")
