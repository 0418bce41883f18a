"""Tiny random cross-encoders of every family, and sentence-transformers on the same folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tasks.bounds import assert_as_good_as
from tests.tasks.sentence_folders import change_json
from tests.tasks.tokenizers import write_bert

SIZES: dict[str, Any] = {
    "vocab_size": 131, "hidden_size": 36, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 50,
    "max_position_embeddings": 68, "pad_token_id": 0,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "Bert": {},
    "Roberta": {"pad_token_id": 1},
    "XLMRoberta": {"pad_token_id": 1},
    "Camembert": {"pad_token_id": 1},
    "DistilBert": {"dim": 36, "n_heads": 3, "n_layers": 2, "hidden_dim": 50},
    "Electra": {"embedding_size": 40},
    "Albert": {"embedding_size": 40, "num_hidden_groups": 1},
    "MPNet": {"pad_token_id": 1},
    "ModernBert": {
        "layer_types": ["full_attention", "sliding_attention"],
        "local_attention": 8,
        "cls_token_id": 2,
        "sep_token_id": 3,
    },
    "NomicBert": {},
}
PAIRS = [
    ("good film", "the cat"),
    ("the cat, a dog running!", ""),
    ("a", "bad " * 80),
    ("great cats " * 30, "good"),
    ("[SEP] Good FILM", "[MASK] cats"),
    ("", ""),
    ("running", "a cat"),
]


def write_cross_encoder(folder: Path, family: str = "Bert", *, num_labels: int = 1, **options: Any) -> Path:
    """Write a random classifier with a head of `num_labels` and the words of `write_bert`."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tests.reference import hf

    given = {**SIZES, **FAMILIES[family], "num_labels": num_labels, **options}
    hf.save(hf.make(f"{family}ForSequenceClassification", **given), folder)
    write_bert(folder)
    # With a tokenizer.json, because transformers knows no other kind of tokenizer for some families.
    transformers.BertTokenizer.from_pretrained(folder, model_max_length=64).save_pretrained(folder)
    change_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    return folder


class CrossReference:
    """sentence-transformers in float64 and in float32, with the same constructor options."""

    def __init__(self, folder: Path, **options: Any) -> None:
        torch = pytest.importorskip("torch")
        torch.set_num_threads(1)
        module = pytest.importorskip("sentence_transformers")
        self.exact, self.rough = (
            module.CrossEncoder(str(folder), device="cpu", model_kwargs={"dtype": dtype}, **options)
            for dtype in (torch.float64, torch.float32)
        )

    def check(self, found: np.ndarray, pairs: Any = PAIRS, **options: Any) -> None:
        """Compare scores with those of `predict`."""
        from tests.reference import hf

        with hf.exact(self.exact):
            exact = self.exact.predict(pairs, convert_to_tensor=True, **options).numpy()
        assert exact.dtype == np.float64
        assert_as_good_as(found, exact, self.rough.predict(pairs, **options))
