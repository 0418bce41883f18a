"""`MultiVectorEncoder`: one vector per token (ColBERT), with the names of sentence-transformers."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from fastattn.api.auto import AutoModel
from fastattn.checks import check_choice, check_count, check_flag, check_keywords, check_str, one_of
from fastattn.errors import ConfigError, InputError
from fastattn.options import Choice, Count, check_fields, option
from fastattn.tasks.multi.expansion import QueryExpansion, why_all_are_attended
from fastattn.tasks.multi.folder import SIMILARITIES, MultiVectorFolder, read_multi_vector_folder
from fastattn.tasks.multi.mask import MultiVectorMask
from fastattn.tasks.search.maxsim import maxsim, maxsim_pairwise
from fastattn.tasks.search.vectors import Rows, normalized
from fastattn.tasks.sentence.encoders import Transformer
from fastattn.tasks.sentence.encoding import check_place, read_tensor, to_tensors
from fastattn.tasks.sentence.features import TOKENS
from fastattn.tasks.sentence.load_text import load_text_model
from fastattn.tasks.sentence.loading import read_config_kwargs, read_processing_kwargs
from fastattn.tasks.sentence.stack import Stack
from fastattn.tasks.sentence.text_encoder import EncoderLoadArgs, TextEncoder, read_load_args
from fastattn.tasks.sentence.text_model import TextTask
from fastattn.tasks.sentence.windows import WindowEncoder
from fastattn.tokenizer import check_text

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

ORGANIZATION = "multi-vector-encoder"  # the owner of short names on the hub
MultiSimilarity = Literal["maxsim", "meanmaxsim"]
_log = logging.getLogger("fastattn")


class MultiVectorEncodeArgs(TypedDict, total=False):
    """The arguments of `MultiVectorEncoder.encode`."""

    prompt_name: str | None
    prompt: str | None
    batch_size: int
    show_progress_bar: bool | None
    output_value: Literal["token_embeddings"]
    convert_to_numpy: bool
    normalize_embeddings: bool
    device: object
    pool: None
    chunk_size: int | None
    token_pooling: None
    task: TextTask | None
    processing_kwargs: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """The checked arguments of one call. Raises DTypeError, InputError."""

    prompt_name: str | None = option(None, check_str)
    prompt: str | None = option(None, lambda name, value: check_text(value, name))
    batch_size: int = option(32, Count(low=1))
    show_progress_bar: bool | None = option(None, check_flag)
    output_value: str = option("token_embeddings", Choice("token_embeddings"))
    convert_to_numpy: bool = option(True, check_flag)
    normalize_embeddings: bool = option(False, check_flag)
    task: Literal["query", "document"] | None = option(None, Choice("query", "document"))
    processing_kwargs: object = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.convert_to_numpy:
            read_tensor("convert_to_numpy=False", True)


class _ExpandedTransformer(Transformer):
    """A transformer whose queries may be lengthened."""

    expands: ClassVar[bool] = True


class MultiVectorEncoder(TextEncoder):
    """A model with one vector per token, whose texts are compared with MaxSim.

    It is loaded from a folder of sentence-transformers' MultiVectorEncoder, or of PyLate. Texts longer than
    `max_seq_length` tokens are cut. The vectors depend only on their own text, bit for bit. `close` or a `with` block
    frees the memory.
    """

    _text: Transformer

    def __init__(
        self,
        model_name_or_path: str | Path,
        *,
        similarity_fn_name: MultiSimilarity | None = None,
        **options: Unpack[EncoderLoadArgs],
    ) -> None:
        """Load a folder or a hub id; a name without an owner gets the owner "multi-vector-encoder".

        similarity_fn_name: "maxsim" by default. The others: as in `SentenceTransformer`. Raises ConfigError,
        ModelFormatError, ModelNotFoundError, HubError, InputError, DTypeError.
        """
        self._similarity = self._check_similarity(similarity_fn_name)
        path, stack, prompts = read_load_args(MultiVectorEncoder, model_name_or_path, options, ORGANIZATION)
        read_config_kwargs("config_kwargs", stack.config_kwargs)
        folder = read_multi_vector_folder(path, stack)
        self._set_prompts(prompts, folder.prompts, options.get("default_prompt_name"), folder.default_prompt_name)
        self._similarity = self._similarity or self._check_similarity(folder.similarity_fn_name)
        self.mask = folder.mask or MultiVectorMask()
        # Without this module, sentence-transformers leaves out the tokens that are not attended to.
        self._has_mask = folder.mask is not None
        self.query_expansion: QueryExpansion | None = folder.expansion
        load = AutoModel.from_pretrained
        self._text = load_text_model(folder.path, folder.settings, stack, load, _ExpandedTransformer)
        try:
            self._finish(folder, path)
        except BaseException:
            self.close()
            raise

    def _finish(self, folder: MultiVectorFolder, path: Path) -> None:
        """Build the modules, register the markers of PyLate, and find the ids of the tokens."""
        self._stack = Stack(self._text, folder.modules, path)
        if self._stack.known.get(TOKENS, ("sentences", 0))[0] != "tokens":
            raise ConfigError(f"{path}: expected token_embeddings from the last module")
        self._register(folder.prefixes)
        self._skipped = self.mask.skipped(self.tokenizer)
        self._expansion_id = 0
        if self.query_expansion is None:
            return
        check_count("query_expansion: length", self.query_expansion.length, low=1, high=self._text.context)
        self.query_expansion.check(str(path), folder.settings.truncation.query_length)
        self._expansion_id = self.query_expansion.token_id(self.tokenizer, path)
        why = None if self.query_expansion.attend else why_all_are_attended(self._text.auto_model, self.query_expansion)
        if why is not None:
            _log.warning("%s: query_expansion: attend=false is not supported for queries: %s", path, why)

    def _register(self, prefixes: tuple[str, ...]) -> None:
        """Make known markers such as "[Q] " special tokens, so that each is one token, as in training."""
        vocabulary = self.tokenizer.get_vocab()
        found = []
        for value in prefixes:
            known = [name for name in (value, *value.split(None, 1)[:1]) if name in vocabulary]
            if known and self.tokenizer.tokenize(known[0]) != [known[0]]:
                found.append(known[0])
        if found:
            self.tokenizer.add_tokens(found, special_tokens=True)

    def __copy__(self) -> Self:
        """Return another model with the same weights; closing one does not close the other."""
        found = super().__copy__()
        stack = copy.copy(self._stack)
        stack.first = found._text
        found._stack = stack
        return found

    def __repr__(self) -> str:
        return f"<MultiVectorEncoder of {self.model!r}, {self.get_embedding_dimension()} numbers per token>"

    def get_embedding_dimension(self) -> int:
        """Return the length of the vector of a token."""
        return self._stack.known[TOKENS][1]

    # -- texts to vectors ---------------------------------------------------------------------------------------

    def encode(
        self, inputs: object = None, *, sentences: object = None, **options: Unpack[MultiVectorEncodeArgs]
    ) -> Any:
        """Return a list of float32 [n_tokens, d], one per text, in order; one array for a str.

        inputs (or sentences): as in `SentenceTransformer.encode`. task: "query" or "document", as in `encode_query` and
        `encode_document`; None is a document. Tokens that the model's mask leaves out have no row.
        normalize_embeddings: scale each row to length 1. convert_to_numpy=False: return torch tensors; torch must be
        imported. token_pooling must be None. prompt, prompt_name, batch_size, show_progress_bar, processing_kwargs,
        device, pool, chunk_size: as in `SentenceTransformer.encode`. Raises DTypeError, InputError, NonFiniteError.
        """
        check_keywords(options, MultiVectorEncodeArgs.__annotations__, "encode")
        if options.get("token_pooling") is not None:
            raise InputError("token_pooling: expected None, because pooling of tokens is not supported")
        given: dict[str, Any] = {key: value for key, value in options.items() if key not in _PLACE}
        call = _Call(**given)
        check_place(self.device, options.get("device"), options.get("pool"), options.get("chunk_size"))
        texts, single = self._texts(one_of("inputs", inputs, "sentences", sentences))
        rows: list[Rows] = [np.zeros((0, 0), np.float32)] * len(texts)
        expansion = self.query_expansion if call.task == "query" else None
        tokens = self._tokens(call, expansion)
        for batch, encoded in tokens.batches(texts, call.batch_size, show=call.show_progress_bar):
            full, key_counts = encoded, None
            if expansion is not None and (expansion.attend or self._has_mask):
                full = expansion.expand(encoded, self._expansion_id)
                key_counts = None if expansion.attend else [len(ids) for ids, _ in encoded]
            where = [tokens.where(i) for i in batch]
            found = self._stack.run(full, where, prompt_len=0, output=TOKENS, key_counts=key_counts)
            for i, (ids, _), states in zip(batch, full, found.tokens[TOKENS], strict=True):
                kept = self.mask.kept(ids, call.task, self._skipped)
                vectors = np.ascontiguousarray(states[kept], np.float32)
                rows[i] = cast(Rows, normalized(vectors)) if call.normalize_embeddings else vectors
        packed: Any = rows[0] if single else rows
        return packed if call.convert_to_numpy else to_tensors(packed)

    def _tokens(self, call: _Call, expansion: QueryExpansion | None) -> WindowEncoder:
        """Return how the texts of a call are tokenized."""
        truncation = read_processing_kwargs("processing_kwargs", call.processing_kwargs, self._text.truncation)
        if expansion is not None:
            why = None if expansion.attend else why_all_are_attended(self._text.auto_model, expansion)
            if why is not None:
                raise InputError(f"task: expected document, because of query_expansion with attend=false: {why}")
            if expansion.strategy == "fixed" and truncation.max_length not in (None, expansion.length):
                _log.warning(
                    "max_length %s is ignored: queries have %d tokens", truncation.max_length, expansion.length
                )
            truncation = expansion.truncation(truncation)
        prefix = self._prefix(call.prompt, call.prompt_name)
        return WindowEncoder(
            module=self._text, truncation=truncation, task=call.task, prefix=prefix, where=lambda i: f"inputs[{i}]"
        )

    def encode_query(self, inputs: object = None, **options: Unpack[MultiVectorEncodeArgs]) -> Any:
        """Call `encode` with task="query"; the default prompt is the one named "query"."""
        return self.encode(inputs, **self._of_task("query", options))

    def encode_document(self, inputs: object = None, **options: Unpack[MultiVectorEncodeArgs]) -> Any:
        """Call `encode` with task="document"; the default prompt is named "document", "passage" or "corpus"."""
        return self.encode(inputs, **self._of_task("document", options))

    # -- similarity ---------------------------------------------------------------------------------------------

    @staticmethod
    def _check_similarity(value: object) -> str | None:
        name = getattr(value, "value", value)
        return None if name is None else check_choice("similarity_fn_name", name, SIMILARITIES)

    @property
    def similarity_fn_name(self) -> str:
        """The similarity function, "maxsim" or "meanmaxsim". Can be set."""
        return self._similarity or "maxsim"

    @similarity_fn_name.setter
    def similarity_fn_name(self, name: object) -> None:
        self._similarity = self._check_similarity(name)

    def similarity(self, embeddings1: object, embeddings2: object) -> Rows:
        """Return the scores float32 [n_1, n_2] of queries and documents, each given as `encode` returns them.

        Raises DTypeError, InputError.
        """
        return maxsim(embeddings1, embeddings2, length_normalize=self.similarity_fn_name == "meanmaxsim")

    def similarity_pairwise(self, embeddings1: object, embeddings2: object) -> NDArray[np.float32]:
        """Return the scores float32 [n] of queries and documents, each given as `encode` returns them, pair by pair.

        Raises DTypeError, InputError.
        """
        return maxsim_pairwise(embeddings1, embeddings2, length_normalize=self.similarity_fn_name == "meanmaxsim")


_PLACE = ("device", "pool", "chunk_size", "token_pooling")
