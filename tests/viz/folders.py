"""Tiny random checkpoints of several families, saved by transformers, with the words of a tokenizer. Needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastattn.tokenizer import load_tokenizer
from tests.tasks.tokenizers import write_bert, write_gpt2

pytest.importorskip("torch")
pytest.importorskip("transformers")
from tests.reference import hf

SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "num_attention_heads": 3,
    "num_hidden_layers": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 68,
    "vocab_size": 140,
    "pad_token_id": 0,
}
GPT2: dict[str, Any] = {"vocab_size": 280, "n_positions": 64, "n_embd": 24, "n_head": 3, "n_layer": 3}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertModel", SIZES),
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "modernbert": (
        "ModernBertModel",
        {**SIZES, "local_attention": 4, "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
         "cls_token_id": 1, "sep_token_id": 2},
    ),
    "mpnet": ("MPNetModel", SIZES),
}  # fmt: skip


def make(family: str) -> Any:
    """Return transformers' model in float64."""
    name, options = MODELS[family]
    return hf.make(name, **options)


def write(family: str, folder: Path, model: Any = None) -> Path:
    """Save a model with a tokenizer; return the folder."""
    hf.save(make(family) if model is None else model, folder)
    if family == "modernbert":  # its tokenizer is a tokenizer.json
        load_tokenizer(write_bert(folder / "words")).raw.save(str(folder / "tokenizer.json"))
    else:
        (write_gpt2 if family == "gpt2" else write_bert)(folder)
    return folder
