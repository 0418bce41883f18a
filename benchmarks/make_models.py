"""Writes checkpoints with real architectures and random weights (seed 0) for the benchmarks.

    python benchmarks/make_models.py [gpt2 bert-base minilm-l6 ...]

They are written to the folder in FASTATTN_BENCH_HOME, by default fastattn-bench in the user's cache folder. Speed does
not depend on the values of the weights. Needs PyTorch and transformers.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def home() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("FASTATTN_BENCH_HOME") or cache / "fastattn-bench")


def makers() -> dict[str, Callable[[], Any]]:
    import transformers as t

    minilm = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    return {
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config()),
        "gpt2-medium": lambda: t.GPT2LMHeadModel(t.GPT2Config(n_embd=1024, n_layer=24, n_head=16)),
        "bert-base": lambda: t.BertForSequenceClassification(t.BertConfig(num_labels=2)),
        "minilm-l6": lambda: t.BertForSequenceClassification(t.BertConfig(num_labels=2, **minilm)),
        "distilbert": lambda: t.DistilBertForSequenceClassification(t.DistilBertConfig(num_labels=2)),
        "roberta": lambda: t.RobertaForSequenceClassification(t.RobertaConfig(num_labels=2)),
        "modernbert": lambda: t.ModernBertModel(t.ModernBertConfig()),
        # the shape of base-sized multilingual rerankers
        "xlm-r-reranker": lambda: t.XLMRobertaForSequenceClassification(
            t.XLMRobertaConfig(vocab_size=250002, max_position_embeddings=514, type_vocab_size=1, num_labels=1)
        ),
    }


def build(name: str) -> Path:
    """Return the folder of a checkpoint; create it if it does not exist."""
    path = home() / name
    if (path / "model.safetensors").exists():
        return path
    import torch

    torch.manual_seed(0)
    model = makers()[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases and norms too, to catch a peer that ignores one
                parameter.add_(torch.randn_like(parameter) * 0.02)
    model.save_pretrained(path)
    print(f"made {path}", file=sys.stderr)
    return path


if __name__ == "__main__":
    for wanted in sys.argv[1:] or ["gpt2", "bert-base", "minilm-l6"]:
        print(build(wanted))
