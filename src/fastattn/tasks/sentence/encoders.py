"""The modules that read texts: Transformer and StaticEmbedding."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from fastattn.api.encoders import Encoder
from fastattn.errors import ConfigError, InputError, ModelFormatError
from fastattn.graph.executor import Executor
from fastattn.graph.rewrites import optimize, with_pooling
from fastattn.models.inputs import read_model_batch
from fastattn.tasks.sentence.features import SENTENCE, TOKENS, Features, Rows, Widths
from fastattn.tasks.sentence.files import (
    WEIGHTS_NAME,
    find_weights,
    is_integer,
    read_floats,
    read_integers,
)
from fastattn.tasks.sentence.text_model import Encoded, Pairs, TextModel, TextTask, TextTruncation, TokenizingModule
from fastattn.tokenizer import Tokenizer
from fastattn.tokenizer.folder import Folder
from fastattn.tokenizer.library import file_errors
from fastattn.tokenizer.options import Side, TokenizerOptions

if TYPE_CHECKING:
    from typing_extensions import Self


class InputModule(TokenizingModule, Protocol):
    """A module that turns texts into features."""

    tokenizer: Tokenizer
    truncation: TextTruncation

    @property
    def max_seq_length(self) -> int | float: ...
    @max_seq_length.setter
    def max_seq_length(self, length: int | None) -> None: ...
    def get_embedding_dimension(self) -> int: ...
    def start(self, widths: Widths) -> None: ...
    def run(self, encoded: Encoded, features: Features) -> None: ...
    def preprocess(
        self, texts: Pairs, truncation: TextTruncation, task: TextTask | None
    ) -> dict[str, NDArray[Any]]: ...
    def close(self) -> None: ...


class Transformer(TextModel[Encoder]):
    """The transformer model and its tokenizer."""

    def __init__(
        self,
        model: Encoder,
        tokenizer: Tokenizer,
        *,
        do_lower_case: bool = False,
        truncation: TextTruncation | None = None,
    ) -> None:
        super().__init__(model, tokenizer, do_lower_case=do_lower_case, truncation=truncation)
        self._pooled: dict[tuple[str, bool], Executor] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pooled": {}}

    def get_embedding_dimension(self) -> int:
        """Return the width of the token vectors."""
        return self.auto_model.config.hidden_size

    get_word_embedding_dimension = get_embedding_dimension

    def start(self, widths: Widths) -> None:
        """Record the features that this module computes."""
        widths.put(TOKENS, "tokens", self.get_embedding_dimension())

    def run(self, encoded: Encoded, features: Features) -> None:
        """Compute the token vectors."""
        self.check_ids(encoded, features.where)
        ids, types = self.columns(encoded)
        if features.key_counts is None:
            features.tokens[TOKENS] = list(self.auto_model(ids, token_type_ids=types).last_hidden_state)
            return
        batch = read_model_batch(self.auto_model.config, ids, None, types)
        features.tokens[TOKENS] = list(self.auto_model.states(batch, features.key_counts))

    def run_pooled(self, encoded: Encoded, features: Features, op: str) -> None:
        """Compute one vector per text with pooling as an op of the model, without returning token vectors."""
        self.check_ids(encoded, features.where)
        ids, types = self.columns(encoded)
        batch = read_model_batch(self.auto_model.config, ids, None, types)
        executor = self._pooled_executor(op, types=self.auto_model.adds_types(batch))
        if batch.n_tokens:
            vectors = cast("NDArray[Any]", executor.run(batch.step())["embedding"])
        else:
            vectors = np.zeros((0, self.get_embedding_dimension()), np.float32)
        features.sentences[SENTENCE] = batch.restore_sequences(vectors).astype(np.float32)

    def close(self) -> None:
        """Free the model's memory."""
        pooled, self._pooled = self._pooled, {}
        for executor in pooled.values():
            executor.close()
        super().close()

    def _pooled_executor(self, op: str, *, types: bool) -> Executor:
        own = self.auto_model.executor  # raises if the model is closed
        known = self._pooled.get((op, types))
        if known is None:
            program = optimize(with_pooling(self.auto_model.trace(types=types), op))
            known = self._pooled.setdefault((op, types), own.with_program(program))
        return known


class StaticEmbedding:
    """Computes the mean of one vector per token; the vectors do not depend on context.

    embedding: float32 [num_embeddings, embedding_dim].
    """

    def __init__(self, tokenizer: Tokenizer, embedding: Rows) -> None:
        self.tokenizer = tokenizer
        self.embedding = embedding
        self.num_embeddings, self.embedding_dim = embedding.shape
        self.truncation = TextTruncation()
        self._closed = False

    def __repr__(self) -> str:
        return f"StaticEmbedding({self.num_embeddings} vectors of width {self.embedding_dim})"

    def __copy__(self) -> Self:
        """Return a module that shares the vectors, which never change."""
        found = object.__new__(type(self))
        found.__dict__.update(self.__dict__ | {"tokenizer": copy.copy(self.tokenizer)})
        return found

    @property
    def max_seq_length(self) -> float:
        """No limit."""
        return math.inf

    @max_seq_length.setter
    def max_seq_length(self, length: int | None) -> None:
        raise InputError("max_seq_length: a StaticEmbedding has no limit that could be set; cut the texts instead")

    def get_embedding_dimension(self) -> int:
        """Return the width of the vectors."""
        return int(self.embedding_dim)

    def start(self, widths: Widths) -> None:
        """Record the features that this module computes."""
        widths.put(SENTENCE, "sentences", self.get_embedding_dimension())

    def encode(
        self,
        texts: Iterable[tuple[str, str | None]],
        truncation: TextTruncation,
        task: TextTask | None,
        cut: dict[int, int] | None = None,
        names: Sequence[str] | None = None,
    ) -> Encoded:
        """Return the token ids of each text without special tokens, cut as tokenizer.json specifies."""
        limit = self.tokenizer.options.model_max_length if truncation.enabled else None
        return self.tokenizer.encode_pairs(
            texts, add_special_tokens=False, max_length=limit, strategy=truncation.strategy, cut=cut, names=names
        )

    def preprocess(self, texts: Pairs, truncation: TextTruncation, task: TextTask | None) -> dict[str, NDArray[Any]]:
        """Return input_ids [n_tokens] of all texts, and the offset [n_texts] of the start of each."""
        ids = [ids for ids, _ in self.encode(texts, truncation, task)]
        ends = np.cumsum([0, *(len(row) for row in ids)])
        return {"input_ids": np.concatenate([np.zeros(0, np.int32), *ids]), "offsets": ends[:-1]}

    def run(self, encoded: Encoded, features: Features) -> None:
        """Compute the vectors; a text without tokens gives zeros."""
        if self._closed:
            raise InputError("model: expected an open model, got one after close()")
        vectors = np.zeros((len(encoded), self.embedding_dim), np.float32)
        for i, (ids, _) in enumerate(encoded):
            bad = ids[ids >= self.num_embeddings]
            if bad.size:
                raise InputError(
                    f"{features.where[i]}: token id {bad[0]} has no vector; the model has {self.num_embeddings}"
                )
            if len(ids):
                vectors[i] = self.embedding[ids].sum(axis=0, dtype=np.float64) / len(ids)
        features.sentences[SENTENCE] = vectors

    def close(self) -> None:
        """Free the vectors."""
        self._closed, self.embedding = True, np.zeros((0, self.embedding_dim), np.float32)


def read_static_embedding(folder: Path) -> StaticEmbedding:
    """Load a StaticEmbedding of sentence-transformers or model2vec. Raises ConfigError, ModelFormatError."""
    from tokenizers import Tokenizer as RawTokenizer

    from fastattn.tokenizer.vocabulary import check_tokenizer_json  # imports the tokenizers library

    with Folder(folder) as files:
        path, text = files.path("tokenizer.json"), files.text("tokenizer.json")
        if text is None:
            raise ConfigError(f"{path}: expected the tokenizer of module StaticEmbedding, found no such file")
        check_tokenizer_json(path, files.json("tokenizer.json"))
        with file_errors(path):
            raw = RawTokenizer.from_str(text)
        files.check_unchanged()
    cut = raw.truncation or {}
    side: Side = "left" if cut.get("direction") == "left" else "right"
    columns = ("input_ids",)
    options = TokenizerOptions(model_max_length=cut.get("max_length"), truncation_side=side, model_input_names=columns)
    return StaticEmbedding(Tokenizer(raw, options), _vectors(folder))


def _vectors(folder: Path) -> Rows:
    """Return the matrix with one row per token id."""
    tensors = find_weights(folder, "module StaticEmbedding")
    path = folder / WEIGHTS_NAME
    name = "embedding.weight" if "embedding.weight" in tensors else "embeddings"
    if name not in tensors or len(tensors[name].shape) != 2:
        raise ModelFormatError(f"{path}: expected a matrix named embedding.weight or embeddings", path=str(path))
    info = tensors[name]
    scaled = is_integer(info) and "weights" in tensors
    vectors = read_integers(info).astype(np.float32) if scaled else read_floats(info)
    if name == "embeddings":  # model2vec: one row and one factor per token
        if "mapping" in tensors:
            mapping = read_integers(tensors["mapping"])
            if mapping.ndim != 1 or ((mapping < 0) | (mapping >= len(vectors))).any():
                raise ModelFormatError(f"{path}: mapping: expected row numbers of embeddings", path=str(path))
            vectors = vectors[mapping]
        if "weights" in tensors:
            vectors = vectors * read_floats(tensors["weights"], (len(vectors),))[:, None]
    vectors.setflags(write=False)
    return vectors
