"""The pipeline "token-classification"."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, cast, overload

import numpy as np
from numpy.typing import NDArray

from fastattn.api.heads import TokenClassifier
from fastattn.checks import check_choice, check_count, check_flag, check_keywords, quote
from fastattn.errors import DTypeError, InputError
from fastattn.tasks.entities import STRATEGIES, Entity, Piece, Strategy, entities_of, without_overlaps
from fastattn.tasks.finite import check_finite
from fastattn.tasks.pipeline_base import Pipeline
from fastattn.tasks.pipeline_inputs import (
    BatchArgs,
    EncodeArgs,
    Encoding,
    Many,
    check_fits,
    check_length,
    read_encoding,
    read_limits,
    read_texts,
    types_of,
)
from fastattn.tasks.pipeline_source import Source, is_torch_dataset, read_source
from fastattn.tasks.pipeline_steps import Job, Part, StepLimits, run_job
from fastattn.tasks.softmax import softmax
from fastattn.tokenizer import Tokenizer, check_text, check_texts, is_list_like
from fastattn.tokenizer.texts import check_items, known_length, read_items

if TYPE_CHECKING:
    from typing_extensions import Unpack

AggregationStrategy: TypeAlias = Literal["none", "simple", "first", "average", "max"]


class TokenClassificationArgs(EncodeArgs, BatchArgs, total=False):
    """Arguments of a call of `TokenClassificationPipeline`.

    aggregation_strategy: "none" returns tokens; "simple" joins neighbors with the same label (B- starts a new entity);
    "first", "average" and "max" give a word one label, from its first token, the mean of its tokens, or its most
    certain token, and join the words in the same way. ignore_labels: labels to omit (["O"]). stride: cut long texts
    into parts that share this many tokens, instead of rejecting them; needs a strategy other than "none".
    is_split_into_words: each text is a list of words; start and end are positions in `delimiter.join(words)`.
    delimiter: a space; without is_split_into_words, it changes nothing. offset_mapping: only None is accepted,
    because the tokenizer provides the positions.
    """

    aggregation_strategy: AggregationStrategy | None
    ignore_labels: Sequence[str] | None
    stride: int | None
    is_split_into_words: bool | None
    delimiter: str | None
    offset_mapping: None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """The checked arguments of a call."""

    strategy: Strategy
    ignored: frozenset[str]
    stride: int | None
    encoding: Encoding
    limits: StepLimits
    words: bool
    delimiter: str


@dataclass(frozen=True, slots=True)
class _Tokens:
    """The tokens of a part of a text. offsets: the characters of each token in the text. special: added tokens."""

    text: str
    offsets: list[tuple[int, int]]
    special: list[int]


class TokenClassificationPipeline(Pipeline[TokenClassifier]):
    """Finds entities, such as names, in texts."""

    task: ClassVar[str] = "token-classification"

    def __init__(
        self, model: TokenClassifier, tokenizer: object = None, **defaults: Unpack[TokenClassificationArgs]
    ) -> None:
        super().__init__(model, tokenizer, **defaults)
        self._read({})

    @overload
    def __call__(self, inputs: str, **options: Unpack[TokenClassificationArgs]) -> list[Entity]: ...
    @overload
    def __call__(self, inputs: Many, **options: Unpack[TokenClassificationArgs]) -> list[list[Entity]]: ...
    @overload
    def __call__(self, inputs: Iterator[Any], **options: Unpack[TokenClassificationArgs]) -> Iterator[list[Entity]]: ...
    @overload
    def __call__(
        self, inputs: object, **options: Unpack[TokenClassificationArgs]
    ) -> list[Entity] | list[list[Entity]] | Iterator[list[Entity]]: ...
    def __call__(self, inputs: Any, **options: Unpack[TokenClassificationArgs]) -> Any:
        """Return the entities of a text in order, and a list of those for a sequence of texts.

        inputs: a str, or a sequence or iterator of str; an iterator returns an iterator. With is_split_into_words, a
        text is a list of words; as in transformers, one such list returns a list with one result. An entity is a dict:
        "entity", "score", "index" (of the token), "word", "start", "end"; or with an aggregation_strategy other than
        "none": "entity_group", "score", "word", "start", "end". text[start:end] is the entity in the text. Scores are
        probabilities (softmax). A text longer than the model's context is rejected unless stride is given, or
        truncation=True, which ignores the rest. Raises DTypeError, InputError, ContextLengthError, and NonFiniteError
        if a score is NaN or infinite.
        """
        call = self._read(options)
        source: Source[Any] = _read_words(inputs) if call.words else read_texts(inputs, "inputs")
        results: Any = run_job(_Job(self.model, self.tokenizer, call), source, call.limits)
        return results[0] if source.single and not call.words else results

    def _read(self, options: Mapping[str, Any]) -> _Call:
        """Check the arguments of a call."""
        merged = self._given(options)
        strategy = merged.pop("aggregation_strategy", "none")
        strategy = strategy.value if isinstance(strategy, Enum) else strategy
        strategy = strategy.lower() if isinstance(strategy, str) else strategy
        strategy = cast(Strategy, check_choice("aggregation_strategy", strategy, STRATEGIES))
        stride = merged.pop("stride", None)
        stride = None if stride is None else check_count("stride", stride)
        if stride is not None and strategy == "none":
            raise InputError(f"stride: expected None with aggregation_strategy {quote('none')}, got {stride}")
        ignored = merged.pop("ignore_labels", ("O",))
        labels = check_items(read_items(ignored, "ignore_labels"), "ignore_labels", ignored)
        words = check_flag("is_split_into_words", merged.pop("is_split_into_words", False))
        delimiter = check_text(merged.pop("delimiter", " "), "delimiter")
        if merged.pop("offset_mapping", None) is not None:
            raise InputError("offset_mapping: expected None, because the tokenizer provides the positions of tokens")
        encoding, limits = read_encoding(merged), read_limits(merged)
        if encoding.cuts and encoding.strategy == "only_second":
            raise InputError('truncation: expected a strategy for one text, got "only_second"')
        check_keywords(merged, TokenClassificationArgs.__annotations__, self.task)
        return _Call(
            strategy=strategy,
            ignored=frozenset(labels),
            stride=stride,
            encoding=encoding,
            limits=limits,
            words=words,
            delimiter=delimiter,
        )


def _read_words(inputs: Any) -> Source[list[str]]:
    """Return the words of one text, or of each text of a sequence or iterator. Raises DTypeError, InputError."""
    if not is_list_like(inputs):
        raise DTypeError(
            f"inputs: expected a list of words, because of is_split_into_words=True, got {type(inputs).__name__}"
        )
    if known_length(inputs) is not None and not is_torch_dataset(inputs):
        inputs = read_items(inputs, "inputs")
    return read_source(inputs, "inputs", check_texts, is_one=_is_one_text)


def _is_one_text(inputs: Any) -> bool:
    """Return whether a list contains the words of one text. An empty list contains no text."""
    return isinstance(inputs, list) and bool(inputs) and not is_list_like(inputs[0])


class _Job(Job["str | list[str]", list[Entity], list[Entity]]):
    """The entities of each text; a long text is read in parts."""

    def __init__(self, model: TokenClassifier, tokenizer: Tokenizer, call: _Call) -> None:
        self._model, self._tokenizer, self._call = model, tokenizer, call
        context = model.executor.program.max_positions
        self._limit = call.encoding.limit(tokenizer, context)
        if call.stride is not None and self._limit is None:
            self._limit = min(tokenizer.model_max_length, context)

    def encode(self, index: int, item: str | list[str], name: str) -> list[Part]:
        """Tokenize a text; with a stride, in parts. Raises ContextLengthError, InputError."""
        call = self._call
        encoded = self._tokenizer(
            item,
            add_special_tokens=call.encoding.add_special_tokens,
            truncation=self._limit is not None,
            max_length=self._limit,
            stride=call.stride or 0,
            is_split_into_words=call.words,
            return_overflowing_tokens=call.stride is not None,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            return_token_type_ids=True,
        )
        text = item if isinstance(item, str) else call.delimiter.join(item)
        starts = None if isinstance(item, str) else _word_starts(item, call.delimiter)
        columns = [encoded[key] for key in ("input_ids", "token_type_ids", "offset_mapping", "special_tokens_mask")]
        rows = [columns] if call.stride is None else zip(*columns, strict=True)
        hint = "pass stride= with an aggregation_strategy to read the text in parts, or truncation=True to cut it"
        if call.encoding.cuts:
            hint = call.encoding.advice(self._model.executor.program.max_positions)
        parts = []
        for i, (ids, types, offsets, special) in enumerate(rows):
            row = np.array(ids, np.int32)
            check_length(self._model, index, row, name, hint)
            check_fits(self._model, self._tokenizer, row, name)
            places = list(offsets) if starts is None else _in_text(offsets, encoded.word_ids(i), starts)
            parts.append(Part(name, row, np.array(types, np.int32), _Tokens(text, places, list(special))))
        return parts

    def forward(self, parts: Sequence[Part]) -> Iterable[tuple[int, Any]]:
        types = types_of(self._model, self._tokenizer, parts)
        return enumerate(self._model([part.ids for part in parts], token_type_ids=types).logits)

    def reduce(self, part: Part, output: Any) -> list[Entity]:
        scores = softmax(output)
        check_finite(scores, part.name, "scores")
        pieces = self._pieces(part, scores)
        entities = entities_of(pieces, self._call.strategy, self._model.config.labels, self._tokenizer)
        ignored = self._call.ignored
        return [entity for entity in entities if entity.get("entity", entity.get("entity_group")) not in ignored]

    def finish(self, item: str | list[str], reduced: list[list[Entity]]) -> list[Entity]:
        return reduced[0] if len(reduced) == 1 else without_overlaps([entity for part in reduced for entity in part])

    def _pieces(self, part: Part, scores: NDArray[np.float64]) -> list[Piece]:
        """Return the tokens of a part without special tokens, and which of them continue a word."""
        tokens: _Tokens = part.detail
        names = self._tokenizer.convert_ids_to_tokens(part.ids.tolist())
        marks_words = bool(getattr(self._tokenizer.raw.model, "continuing_subword_prefix", None))
        pieces = []
        for i, (token, (start, end)) in enumerate(zip(names, tokens.offsets, strict=True)):
            if tokens.special[i]:
                continue
            written = tokens.text[start:end]
            if marks_words:
                continues = len(token) != len(written)
            else:  # a token continues a word if there is no space before it; this rule is wrong at punctuation
                continues = start > 0 and " " not in tokens.text[start - 1 : start + 1]
            if int(part.ids[i]) == self._tokenizer.unk_token_id:
                token, continues = written, False
            pieces.append(Piece(token, scores[i], start, end, i, continues))
        return pieces


def _word_starts(words: Sequence[str], delimiter: str) -> list[int]:
    """Return the position of each word in `delimiter.join(words)`."""
    starts, place = [], 0
    for word in words:
        starts.append(place)
        place += len(word) + len(delimiter)
    return starts


def _in_text(
    offsets: Sequence[tuple[int, int]], words: Sequence[int | None], starts: Sequence[int]
) -> list[tuple[int, int]]:
    """Return positions in the text for positions in words. words: the word of each token, None for special tokens."""
    return [
        (start, end) if word is None else (starts[word] + start, starts[word] + end)
        for (start, end), word in zip(offsets, words, strict=True)
    ]
