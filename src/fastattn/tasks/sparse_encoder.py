"""`SparseEncoder`: SPLADE vectors, with the names of sentence-transformers."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np

from fastattn.checks import check_count, check_flag, check_keywords, check_str, one_of
from fastattn.errors import InputError
from fastattn.options import Choice, Count, check_fields, option
from fastattn.tasks.finite import check_finite
from fastattn.tasks.search.similarity import Similarity, check_similarity, pair_scores, scores
from fastattn.tasks.search.vectors import Float, block_rows, blocks
from fastattn.tasks.sentence.encoding import check_place, read_tensor
from fastattn.tasks.sentence.loading import read_processing_kwargs
from fastattn.tasks.sentence.text_encoder import EncoderLoadArgs, TextEncoder, read_load_args
from fastattn.tasks.sentence.text_model import Encoded, Pairs, TextTask
from fastattn.tasks.sentence.windows import WindowEncoder
from fastattn.tasks.sparse.splade import MaskedText, SpladePooling, load_masked_text, read_sparse_folder
from fastattn.tasks.sparse.vectors import SparseEmbedding, SparseEmbeddings, read_sparse, sparse_row, to_torch
from fastattn.tokenizer import check_text

if TYPE_CHECKING:
    from typing_extensions import Unpack

ORGANIZATION = "sparse-encoder"  # the owner of short names on the hub
_LOGITS = 2**25  # numbers of one step: 128 MB in float32


class SparseEncodeArgs(TypedDict, total=False):
    """The arguments of `SparseEncoder.encode`."""

    prompt_name: str | None
    prompt: str | None
    batch_size: int
    show_progress_bar: bool | None
    convert_to_tensor: bool
    convert_to_sparse_tensor: bool
    save_to_cpu: bool
    device: object
    max_active_dims: int | None
    pool: None
    chunk_size: int | None
    task: TextTask | None
    processing_kwargs: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """The checked arguments of one call. Raises DTypeError, InputError."""

    prompt_name: str | None = option(None, check_str)
    prompt: str | None = option(None, lambda name, value: check_text(value, name))
    batch_size: int = option(32, Count(low=1))
    show_progress_bar: bool | None = option(None, check_flag)
    convert_to_tensor: bool = option(False, read_tensor)
    convert_to_sparse_tensor: bool = option(True, check_flag)
    max_active_dims: int | None = option(None, Count(low=1))
    task: Literal["query", "document"] | None = option(None, Choice("query", "document"))
    processing_kwargs: object = None

    def __post_init__(self) -> None:
        check_fields(self)


class SparseEncoder(TextEncoder):
    """A SPLADE model: a vector has one weight per token of the vocabulary, and most are zero.

    It is loaded from a folder with a modules.json of sentence-transformers (Transformer or MLMTransformer, then
    SpladePooling), or from a plain masked language model (maximum pooling). Texts longer than `max_seq_length` tokens
    are cut. A vector depends only on its own text, bit for bit. `close` or a `with` block frees the memory.
    """

    _text: MaskedText

    def __init__(
        self,
        model_name_or_path: str | Path,
        *,
        similarity_fn_name: Similarity | None = None,
        max_active_dims: int | None = None,
        **options: Unpack[EncoderLoadArgs],
    ) -> None:
        """Load a folder or a hub id; a name without an owner gets the owner "sparse-encoder".

        max_active_dims: keep only this many of the largest weights of each vector.
        similarity_fn_name: "dot" by default.
        The others: as in `SentenceTransformer`. Raises ConfigError, ModelFormatError, ModelNotFoundError, HubError,
        InputError, DTypeError.
        """
        given = check_similarity(similarity_fn_name)
        limit = None if max_active_dims is None else check_count("max_active_dims", max_active_dims, low=1)
        path, stack, prompts = read_load_args(SparseEncoder, model_name_or_path, options, ORGANIZATION)
        folder = read_sparse_folder(path)
        self._set_prompts(prompts, folder.prompts, options.get("default_prompt_name"), folder.default_prompt_name)
        self._similarity = given or check_similarity(folder.similarity_fn_name) or "dot"
        self.max_active_dims = folder.max_active_dims if limit is None else limit
        self.pooling: SpladePooling = folder.pooling
        self._text = load_masked_text(folder, stack)

    def __repr__(self) -> str:
        return (
            f"<SparseEncoder of {self.model!r}, {self.get_embedding_dimension()} numbers, {self.max_seq_length} tokens>"
        )

    def get_embedding_dimension(self) -> int:
        """Return the length of a whole vector: the size of the vocabulary."""
        return int(self._text.auto_model.config.vocab_size)

    get_sentence_embedding_dimension = get_embedding_dimension

    # -- texts to vectors ---------------------------------------------------------------------------------------

    def encode(self, inputs: object = None, *, sentences: object = None, **options: Unpack[SparseEncodeArgs]) -> Any:
        """Return the sparse vectors of texts in order: SparseEmbeddings [n, width]; a str gives a SparseEmbedding.

        inputs (or sentences): as in `SentenceTransformer.encode`. convert_to_sparse_tensor=False: return whole vectors,
        float32 [n, width]. convert_to_tensor=True: return torch tensors, sparse COO or whole; torch must be imported.
        max_active_dims: for this call. batch_size: the maximum number of texts in one step; a step of several
        texts has fewer if its logits would need more than 128 MB. It changes no number. prompt, prompt_name,
        show_progress_bar, task, processing_kwargs, device, pool, chunk_size: as in `SentenceTransformer.encode`.
        save_to_cpu changes nothing. Raises DTypeError, InputError, and NonFiniteError if a logit is NaN or infinite.
        """
        check_keywords(options, SparseEncodeArgs.__annotations__, "encode")
        given: dict[str, Any] = {key: value for key, value in options.items() if key not in _PLACE}
        call = _Call(**given)
        check_place(self.device, options.get("device"), options.get("pool"), options.get("chunk_size"))
        check_flag("save_to_cpu", options.get("save_to_cpu", False))
        texts, single = self._texts(one_of("inputs", inputs, "sentences", sentences))
        truncation = read_processing_kwargs("processing_kwargs", call.processing_kwargs, self._text.truncation)
        prefix = self._prefix(call.prompt, call.prompt_name)
        tokens = WindowEncoder(
            module=self._text, truncation=truncation, task=call.task, prefix=prefix, where=lambda i: f"inputs[{i}]"
        )
        most = self.max_active_dims if call.max_active_dims is None else call.max_active_dims
        rows = self._rows(tokens, texts, call, most)
        found = SparseEmbeddings.of(rows, self.get_embedding_dimension())
        return _packed(found, call, single=single)

    def encode_query(self, inputs: object = None, **options: Unpack[SparseEncodeArgs]) -> Any:
        """Call `encode` with task="query"; the default prompt is the one named "query"."""
        return self.encode(inputs, **self._of_task("query", options))

    def encode_document(self, inputs: object = None, **options: Unpack[SparseEncodeArgs]) -> Any:
        """Call `encode` with task="document"; the default prompt is named "document", "passage" or "corpus"."""
        return self.encode(inputs, **self._of_task("document", options))

    def _rows(self, tokens: WindowEncoder, texts: Pairs, call: _Call, most: int | None) -> list[SparseEmbedding]:
        """Return the vector of each text. Texts of similar length share a step."""
        width = self.get_embedding_dimension()
        rows: list[SparseEmbedding | None] = [None] * len(texts)
        for batch, encoded in tokens.batches(texts, call.batch_size, show=call.show_progress_bar):
            for step in _steps(encoded, width):
                part = encoded[step]
                where = [tokens.where(i) for i in batch[step]]
                self._text.check_ids(part, where)
                ids, types = self._text.columns(part)
                found = self._text.model(ids, token_type_ids=types).logits
                for i, name, logits in zip(batch[step], where, found, strict=True):
                    check_finite(logits, name, "logits")
                    rows[i] = sparse_row(self.pooling.pool(logits, width), most)
        return [row for row in rows if row is not None]

    # -- vectors ------------------------------------------------------------------------------------------------

    def decode(self, embeddings: object, top_k: int | None = None) -> Any:
        """Return [(token, weight), ...] of a vector, the largest weight first; of several vectors, a list of these.

        embeddings: what `encode` returns. Raises DTypeError, InputError.
        """
        count = None if top_k is None else check_count("top_k", top_k, low=1)
        rows = read_sparse(embeddings, "embeddings")
        found = []
        for row in rows:
            order = np.argsort(-row.values, kind="stable")[:count]
            tokens = self.tokenizer.convert_ids_to_tokens(row.indices[order].tolist())
            found.append(list(zip(tokens, row.values[order].tolist(), strict=True)))
        single = isinstance(embeddings, SparseEmbedding) or getattr(embeddings, "ndim", 2) == 1
        return found[0] if single else found

    @staticmethod
    def sparsity(embeddings: object) -> dict[str, float]:
        """Return "active_dims", the mean number of nonzero weights, and "sparsity_ratio", the fraction of zeros.

        Raises DTypeError, InputError.
        """
        rows = read_sparse(embeddings, "embeddings")
        active = rows.nnz / len(rows) if len(rows) else 0.0
        return {"active_dims": active, "sparsity_ratio": 1 - active / rows.width if rows.width else 1.0}

    @staticmethod
    def intersection(embeddings_1: object, embeddings_2: object) -> SparseEmbedding | SparseEmbeddings:
        """Return the products of the weights of one vector and of each other vector, where the product is positive.

        Raises DTypeError, InputError.
        """
        first, second = read_sparse(embeddings_1, "embeddings_1"), read_sparse(embeddings_2, "embeddings_2")
        if len(first) != 1 or first.width != second.width:
            raise InputError(
                f"embeddings_1: expected one vector of width {second.width}, got shape {list(first.shape)}"
            )
        weights = first[0].toarray()
        rows = []
        for row in second:
            products = weights[row.indices] * row.values
            kept = products > 0
            rows.append(SparseEmbedding(row.indices[kept], products[kept], second.width))
        single = isinstance(embeddings_2, SparseEmbedding) or getattr(embeddings_2, "ndim", 2) == 1
        return rows[0] if single else SparseEmbeddings.of(rows, second.width)

    @property
    def similarity_fn_name(self) -> Similarity:
        """The similarity function: "dot" unless the folder or the caller names another. Can be set."""
        return self._similarity

    @similarity_fn_name.setter
    def similarity_fn_name(self, name: object) -> None:
        self._similarity = check_similarity(name) or "dot"

    def similarity(self, embeddings1: object, embeddings2: object) -> Float:
        """Return scores [n_1, n_2] with the model's similarity function. Raises DTypeError, InputError."""
        first, second = read_sparse(embeddings1, "embeddings1"), read_sparse(embeddings2, "embeddings2")
        found = np.zeros((len(first), len(second)), np.float32)
        size = block_rows(max(first.width, second.width))
        for one in blocks(len(first), size):
            dense = first[one].toarray()
            for two in blocks(len(second), size):
                names = ("embeddings1", "embeddings2")
                found[one, two] = scores(self._similarity, dense, second[two].toarray(), names)
        return found

    def similarity_pairwise(self, embeddings1: object, embeddings2: object) -> Float:
        """Return scores [n] of vectors [n, width] and [n, width], row by row. Raises DTypeError, InputError."""
        first, second = read_sparse(embeddings1, "embeddings1"), read_sparse(embeddings2, "embeddings2")
        if first.shape != second.shape:
            raise InputError(f"embeddings2: expected shape {list(first.shape)}, got {list(second.shape)}")
        parts = [
            pair_scores(self._similarity, first[rows].toarray(), second[rows].toarray())
            for rows in blocks(len(first), block_rows(first.width))
        ]
        return np.concatenate([np.zeros(0, np.float32), *parts])


def _steps(encoded: Encoded, width: int) -> Iterator[slice]:
    """Yield the texts of each step of a batch: at most _LOGITS logits unless it is one text."""
    longest = max(1, *(len(ids) for ids, _ in encoded))
    count = max(1, _LOGITS // (longest * width))
    for start in range(0, len(encoded), count):
        yield slice(start, start + count)


def _packed(rows: SparseEmbeddings, call: _Call, *, single: bool) -> Any:
    """Return the vectors in the requested container; with `single`, the first one."""
    if call.convert_to_tensor:
        torch = sys.modules["torch"]
        tensor = to_torch(rows, torch) if call.convert_to_sparse_tensor else torch.from_numpy(rows.toarray())
        return tensor[0] if single else tensor
    if not call.convert_to_sparse_tensor:
        return rows.toarray()[0] if single else rows.toarray()
    return rows[0] if single else rows


_PLACE = ("device", "pool", "chunk_size", "save_to_cpu")
