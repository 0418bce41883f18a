"""A model and its tokenizer, which turn texts into token ids and cut long ones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from fastattn.api.model import Model
from fastattn.checks import check_count
from fastattn.errors import ContextLengthError, InputError
from fastattn.tasks.pipeline_inputs import check_fits
from fastattn.tokenizer import Tokenizer
from fastattn.tokenizer.call import TruncationArg
from fastattn.tokenizer.encoder import full_copy
from fastattn.tokenizer.truncation import DO_NOT_TRUNCATE

if TYPE_CHECKING:
    from typing_extensions import Self

Ids: TypeAlias = "NDArray[np.int32]"
Encoded: TypeAlias = "list[tuple[Ids, Ids]]"
Pairs: TypeAlias = "Sequence[tuple[str, str | None]]"  # None: a single text
TextTask: TypeAlias = Literal["query", "document"]
ModelType = TypeVar("ModelType", bound=Model)


@dataclass(frozen=True, slots=True)
class TextTruncation:
    """How to cut texts: transformers' strategy, and the number of tokens per task if it is not max_seq_length."""

    strategy: str = "longest_first"
    max_length: int | None = None
    query_length: int | None = None
    document_length: int | None = None

    @property
    def enabled(self) -> bool:
        """Whether texts are cut."""
        return self.strategy != DO_NOT_TRUNCATE

    def length(self, task: TextTask | None) -> int | None:
        """Return the number of tokens that a task's texts are cut to; None for max_seq_length."""
        if self.max_length is not None:
            return self.max_length
        return self.query_length if task == "query" else self.document_length if task == "document" else None


class TokenizingModule(Protocol):
    """A module that tokenizes texts."""

    def encode(
        self,
        texts: Iterable[tuple[str, str | None]],
        truncation: TextTruncation,
        task: TextTask | None,
        cut: dict[int, int] | None = None,
        names: Sequence[str] | None = None,
    ) -> Encoded: ...


class TextModel(Generic[ModelType]):
    """A model and its tokenizer.

    This object owns the tokenizer: `tokenizer.model_max_length` and `max_seq_length` are one setting.
    """

    pairs: ClassVar[bool] = False  # whether every input is a pair of texts
    expands: ClassVar[bool] = False  # whether queries can be lengthened

    def __init__(
        self,
        model: ModelType,
        tokenizer: Tokenizer,
        *,
        do_lower_case: bool = False,
        truncation: TextTruncation | None = None,
    ) -> None:
        self.auto_model = model
        self.do_lower_case = do_lower_case
        self.tokenizer = tokenizer
        self.truncation = truncation or TextTruncation()
        self._context = model.executor.program.max_positions

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.auto_model!r}, max_seq_length={self.max_seq_length})"

    def __copy__(self) -> Self:
        """Return a module with the same weights and its own settings; closing one does not close the other."""
        found = object.__new__(type(self))
        parts = {"auto_model": copy.copy(self.auto_model), "_tokenizer": copy.copy(self.tokenizer)}
        found.__dict__.update(self.__getstate__() | parts)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; with `do_lower_case`, a tokenizer that is set also lowercases text."""
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = _lowercase(tokenizer) if self.do_lower_case else tokenizer

    @property
    def model(self) -> ModelType:
        """The transformer model."""
        return self.auto_model

    @property
    def max_seq_length(self) -> int:
        """The maximum number of tokens of a text, including special tokens; longer texts are cut."""
        return min(self.tokenizer.model_max_length, self._context)

    @max_seq_length.setter
    def max_seq_length(self, length: int | None) -> None:
        """Set the limit: at least the number of special tokens; None is the model's context.

        Raises DTypeError, InputError.
        """
        high = self._context
        low = max(1, self.n_special) if self.truncation.enabled else 1
        limit = high if length is None else check_count("max_seq_length", length, low=low, high=high)
        self.tokenizer.model_max_length = limit

    @property
    def context(self) -> int:
        """The number of tokens that the model can read."""
        return self._context

    @property
    def n_special(self) -> int:
        """The number of special tokens of an input."""
        return self.tokenizer.num_special_tokens_to_add(pair=self.pairs)

    def encode(
        self,
        texts: Iterable[tuple[str, str | None]],
        truncation: TextTruncation,
        task: TextTask | None,
        cut: dict[int, int] | None = None,
        names: Sequence[str] | None = None,
    ) -> Encoded:
        """Return (token ids, token type ids) of each text. cut, names: as in `Tokenizer.encode_pairs`."""
        return self.tokenizer.encode_pairs(
            texts, max_length=self._limit(truncation, task), strategy=truncation.strategy, cut=cut, names=names
        )

    def preprocess(self, texts: Pairs, truncation: TextTruncation, task: TextTask | None) -> dict[str, NDArray[Any]]:
        """Return the padded arrays of the tokenizer."""
        items = [first if second is None else (first, second) for first, second in texts]
        return self.tokenizer(
            items,
            padding=True,
            truncation=cast(TruncationArg, truncation.strategy),
            max_length=self._limit(truncation, task),
            return_tensors="np",
        )

    def _limit(self, truncation: TextTruncation, task: TextTask | None) -> int | None:
        """Return the number of tokens that a text is cut to; None if it is not cut."""
        if not truncation.enabled:
            return None
        return min(truncation.length(task) or self.max_seq_length, self._context)

    def close(self) -> None:
        """Free the model's memory."""
        self.auto_model.close()

    def columns(self, encoded: Encoded) -> tuple[list[Ids], list[Ids] | None]:
        """Return the ids, and the token types if both the tokenizer and the model have them."""
        return [ids for ids, _ in encoded], self.auto_model.types_of(self.tokenizer, [types for _, types in encoded])

    def check_ids(self, encoded: Encoded, where: Sequence[str]) -> None:
        """Reject tokenizer ids that the model does not have."""
        if self.tokenizer.id_limit > self.auto_model.config.vocab_size:
            for (ids, _), name in zip(encoded, where, strict=True):
                check_fits(self.auto_model, self.tokenizer, ids, name)


def read_token_ids(
    token_ids: Sequence[Sequence[int]], vocab_size: int, longest: float, where: Callable[[int], str]
) -> Encoded:
    """Return a caller's token ids in the form that the tokenizer returns, with token type 0.
    where: names for messages.

    Raises DTypeError, InputError, ContextLengthError.
    """
    encoded = []
    for i, ids in enumerate(token_ids):
        found = [check_count(where(i), token_id, high=vocab_size - 1) for token_id in ids]
        if not found:
            raise InputError(f"{where(i)}: expected at least one token id, got none")
        if len(found) > longest:
            raise ContextLengthError(
                f"{where(i)}: expected at most {longest} token ids, got {len(found)}",
                index=i,
                n_tokens=len(found),
                context=int(longest),
            )
        encoded.append((np.array(found, np.int32), np.zeros(len(found), np.int32)))
    return encoded


def _lowercase(tokenizer: Tokenizer) -> Tokenizer:
    """Add lowercasing as the first step of the normalizer; special tokens in a text are unchanged."""
    from tokenizers import normalizers

    raw = full_copy(tokenizer.raw)
    own: Any = raw.normalizer
    steps: list[Any] = [] if own is None else [own]
    if isinstance(own, normalizers.Sequence):
        steps = [*cast("Sequence[Any]", own)]
    if not any(isinstance(step, normalizers.Lowercase) for step in steps):
        raw.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])
    return Tokenizer(raw, tokenizer.options)
