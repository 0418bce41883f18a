"""Tiny random encoders with a tokenizer, and texts with classes, for the adapters to other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastattn.tokenizer import load_tokenizer
from tests.tasks.sentence_folders import write_modules
from tests.tasks.tokenizers import write_bert

TEXTS = [
    "a good film", "the bad cat", "great dogs, running!", "unknown", "bad bad bad film.", "a dog", "good",
    "the film runs", "a great great cat!", "bad dog running the film", "cats, dogs", "a",
]  # fmt: skip
CLASSES = ["yes", "no", "yes", "no", "no", "yes", "yes", "no", "yes", "no", "yes", "no"]
THREE = ["a", "b", "c"] * 4
SIZES: dict[str, Any] = {
    "hidden_size": 36,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 50,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
_MODERN = {"layer_types": ["full_attention", "sliding_attention"], "local_attention": 8, "cls_token_id": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {}),
    "distilbert": ("DistilBert", {}),
    "roberta": ("Roberta", {}),
    "xlm-roberta": ("XLMRoberta", {"layer_norm_eps": 1e-5}),
    "camembert": ("Camembert", {}),
    "electra": ("Electra", {"embedding_size": 20}),
    "mpnet": ("MPNet", {}),
    "albert": ("Albert", {"embedding_size": 20}),
    "nomic_bert": ("NomicBert", {}),
    "modernbert": ("ModernBert", {**_MODERN, "sep_token_id": 3}),
}


def write_encoder(folder: Path, family: str = "bert", **options: Any) -> Path:
    """Write an encoder of a family without a head, with the words of `write_bert`. Needs torch and transformers."""
    from tests.reference import hf

    words = len((write_bert(folder) / "vocab.txt").read_text(encoding="utf-8").splitlines())
    if family == "modernbert":  # it has no tokenizer class of its own
        load_tokenizer(folder).save_pretrained(folder)
    name, own = FAMILIES[family]
    sizes = {**SIZES, "vocab_size": words, **own, **options}
    if family == "distilbert":
        names = {"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers",
                 "intermediate_size": "hidden_dim"}  # fmt: skip
        sizes = {names.get(key, key): value for key, value in sizes.items()}
    return hf.save(hf.make(f"{name}Model", **sizes), folder)


def write_sentence_encoder(folder: Path, family: str = "bert", mode: str = "mean", **options: Any) -> Path:
    """Write an encoder with the modules Pooling and Normalize."""
    pooling = ("Pooling", {"word_embedding_dimension": SIZES["hidden_size"], "pooling_mode": mode}, None)
    return write_modules(write_encoder(folder, family, **options), pooling, ("Normalize", None, None))
