"""Model folders of model2vec without modules.json: the mean of token vectors, as `model2vec.StaticModel` computes it.

https://github.com/MinishLab/model2vec (release 0.10) is the reference. It differs from a StaticEmbedding of
sentence-transformers: unknown tokens are left out, and texts are cut to `max_length` tokens, 512 if config.json has no
such key. Before that, a text is cut to `max_length` times the median length of a token in characters.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fastattn.settings import Settings
from fastattn.tasks.sentence.encoders import StaticEmbedding, read_static_embedding
from fastattn.tasks.sentence.features import Module, Rows
from fastattn.tasks.sentence.files import read_settings
from fastattn.tasks.sentence.modules import Normalize
from fastattn.tasks.sentence.text_model import Encoded, TextTask, TextTruncation
from fastattn.tokenizer import Tokenizer

_DEFAULT_MAX_LENGTH = 512
# How the vectors were made; they change nothing afterwards.
_OF_DISTILLATION = ("model_type", "architectures", "tokenizer_name", "apply_pca", "apply_zipf", "sif_coefficient",
                    "hidden_dim", "seq_length", "pooling", "embedding_dtype", "vocabulary_quantization",
                    "token_remove_pattern", "head_config", "model2vec_version")  # fmt: skip


class Model2vecEmbedding(StaticEmbedding):
    """The mean vector of the known tokens of a text, cut to max_length tokens; None: not cut."""

    def __init__(self, tokenizer: Tokenizer, embedding: Rows, max_length: int | None) -> None:
        super().__init__(tokenizer, embedding)
        self.max_length = max_length
        self._unknown = _unknown_id(tokenizer.raw)
        self._median = int(statistics.median(map(len, tokenizer.raw.get_vocab())))

    def encode(
        self,
        texts: Iterable[tuple[str, str | None]],
        truncation: TextTruncation,
        task: TextTask | None,
        cut: dict[int, int] | None = None,
        names: Sequence[str] | None = None,
    ) -> Encoded:
        """Return the ids of the known tokens of each text."""
        limit = self.max_length if truncation.enabled else None
        if limit is not None:
            longest = limit * self._median
            texts = [(first[:longest], None if second is None else second[:longest]) for first, second in texts]
        encoded = self.tokenizer.encode_pairs(
            texts, add_special_tokens=False, max_length=limit, strategy=truncation.strategy, cut=cut, names=names
        )
        return [(ids[ids != self._unknown], types[ids != self._unknown]) for ids, types in encoded]


def read_model2vec(folder: Path) -> tuple[StaticEmbedding, list[Module]]:
    """Return the modules of a model2vec folder. Raises ConfigError, ModelFormatError."""
    settings = read_settings(folder / "config.json")
    normalize = settings.flag("normalize", False)
    max_length = _max_length(settings)
    settings.ignore(*_OF_DISTILLATION)
    settings.finish()
    plain = read_static_embedding(folder)
    return Model2vecEmbedding(plain.tokenizer, plain.embedding, max_length), [Normalize()] if normalize else []


def _max_length(settings: Settings) -> int | None:
    if "max_length" in settings.values and settings.raw("max_length") is None:
        return None
    return settings.count("max_length", _DEFAULT_MAX_LENGTH, low=1)


def _unknown_id(raw: Any) -> int:
    """Return the id of the unknown token; -1 if the tokenizer has none."""
    token = getattr(raw.model, "unk_token", None)
    found = raw.token_to_id(token) if token is not None else json.loads(raw.to_str())["model"].get("unk_id")
    return -1 if found is None else int(found)
