"""The pipeline "token-classification"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, cast, overload

import numpy as np
from numpy.typing import NDArray

from fastattn.api.heads import TokenClassifier
from fastattn.checks import check_choice, check_count, check_keywords, quote
from fastattn.errors import ContextLengthError, InputError
from fastattn.tasks.entities import STRATEGIES, Entity, Piece, Strategy, entities_of, without_overlaps
from fastattn.tasks.finite import check_finite
from fastattn.tasks.pipeline_base import Pipeline
from fastattn.tasks.pipeline_inputs import (
    DEFAULT_BATCH_SIZE,
    BatchArgs,
    EncodeArgs,
    Encoding,
    Many,
    check_fits,
    names_of,
    read_batch_size,
    read_encoding,
    read_texts,
)
from fastattn.tasks.softmax import softmax
from fastattn.tokenizer.texts import check_items, read_items

if TYPE_CHECKING:
    from typing_extensions import Unpack

AggregationStrategy: TypeAlias = Literal["none", "simple", "first", "average", "max"]


class TokenClassificationArgs(EncodeArgs, BatchArgs, total=False):
    """Arguments of a call of `TokenClassificationPipeline`.

    aggregation_strategy: "none" returns tokens; "simple" joins neighbors with the same label (B- starts a new entity);
    "first", "average" and "max" give a word one label, from its first token, the mean of its tokens, or its most
    certain token, and join the words in the same way. ignore_labels: labels to omit (["O"]). stride: cut long texts
    into parts that share this many tokens, instead of rejecting them; needs a strategy other than "none".
    """

    aggregation_strategy: AggregationStrategy | None
    ignore_labels: Sequence[str] | None
    stride: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """The checked arguments of a call."""

    strategy: Strategy
    ignored: frozenset[str]
    stride: int | None
    encoding: Encoding
    batch_size: int | None


@dataclass(frozen=True, slots=True)
class _Part:
    """The tokens of a text, or of a part of it. offsets: the characters of each token. special: added tokens."""

    text: int
    ids: NDArray[np.int32]
    type_ids: NDArray[np.int32]
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
    def __call__(
        self, inputs: object, **options: Unpack[TokenClassificationArgs]
    ) -> list[Entity] | list[list[Entity]]: ...
    def __call__(self, inputs: Any, **options: Unpack[TokenClassificationArgs]) -> Any:
        """Return the entities of a text in order, and a list of those for a sequence of texts.

        inputs: a str, or a sequence of str (also an iterator). An entity is a dict: "entity", "score", "index" (of the
        token), "word", "start", "end"; or with an aggregation_strategy other than "none": "entity_group", "score",
        "word", "start", "end". text[start:end] is the entity in the text. Scores are probabilities (softmax). A text
        longer than the model's context is rejected unless stride is given, or truncation=True, which ignores the rest.
        Raises DTypeError, InputError, ContextLengthError, and NonFiniteError if a score is NaN or infinite.
        """
        call = self._read(options)
        texts, single = read_texts(inputs, "inputs")
        names = names_of("inputs", len(texts), single=single)
        parts = [part for i, text in enumerate(texts) for part in self._parts(i, text, names[i], call)]
        found: list[list[Entity]] = [[] for _ in texts]
        counts = np.bincount([part.text for part in parts], minlength=len(texts))
        for part, scores in self._scores(parts, names, call.batch_size or DEFAULT_BATCH_SIZE):
            pieces = self._pieces(part, texts[part.text], scores)
            entities = entities_of(pieces, call.strategy, self.model.config.labels, self.tokenizer)
            found[part.text] += [
                entity for entity in entities if entity.get("entity", entity.get("entity_group")) not in call.ignored
            ]
        results = [
            without_overlaps(entities) if count > 1 else entities for entities, count in zip(found, counts, strict=True)
        ]
        return results[0] if single else results

    def _parts(self, index: int, text: str, name: str, call: _Call) -> list[_Part]:
        """Tokenize a text; with a stride, in parts. Raises ContextLengthError, InputError."""
        context = self.model.executor.program.max_positions
        limit = call.encoding.limit(self.tokenizer, context)
        if call.stride is not None and limit is None:
            limit = min(self.tokenizer.model_max_length, context)
        encoded = self.tokenizer(
            text,
            add_special_tokens=call.encoding.add_special_tokens,
            truncation=limit is not None,
            max_length=limit,
            stride=call.stride or 0,
            return_overflowing_tokens=call.stride is not None,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            return_token_type_ids=True,
        )
        columns = [encoded[key] for key in ("input_ids", "token_type_ids", "offset_mapping", "special_tokens_mask")]
        rows = zip(*columns, strict=True) if call.stride is not None else [columns]
        parts = [
            _Part(index, np.array(ids, np.int32), np.array(types, np.int32), list(offsets), list(special))
            for ids, types, offsets, special in rows
        ]
        for part in parts:
            if len(part.ids) > context:
                raise ContextLengthError(
                    f"{name}: {len(part.ids)} tokens, the model's context is {context}; pass stride= with "
                    "an aggregation_strategy to read the text in parts, or truncation=True to cut it",
                    index=index,
                    n_tokens=len(part.ids),
                    context=context,
                )
            check_fits(self.model, self.tokenizer, part.ids, name)
        return parts

    def _scores(
        self, parts: Sequence[_Part], names: Sequence[str], size: int
    ) -> Iterator[tuple[_Part, NDArray[np.float64]]]:
        """Yield each part and the probabilities of the labels of its tokens, [n_tokens, num_labels]."""
        for start in range(0, len(parts), size):
            together = parts[start : start + size]
            types = self.model.types_of(self.tokenizer, [part.type_ids for part in together])
            logits = self.model([part.ids for part in together], token_type_ids=types).logits
            for part, rows in zip(together, logits, strict=True):
                scores = softmax(rows)
                check_finite(scores, names[part.text], "scores")
                yield part, scores

    def _pieces(self, part: _Part, text: str, scores: NDArray[np.float64]) -> list[Piece]:
        """Return the tokens of a part without special tokens, and which of them continue a word."""
        tokens = self.tokenizer.convert_ids_to_tokens(part.ids.tolist())
        marks_words = bool(getattr(self.tokenizer.raw.model, "continuing_subword_prefix", None))
        pieces = []
        for i, (token, (start, end)) in enumerate(zip(tokens, part.offsets, strict=True)):
            if part.special[i]:
                continue
            written = text[start:end]
            if marks_words:
                continues = len(token) != len(written)
            else:  # a token continues a word if there is no space before it, which fails at punctuation
                continues = start > 0 and " " not in text[start - 1 : start + 1]
            if int(part.ids[i]) == self.tokenizer.unk_token_id:
                token, continues = written, False
            pieces.append(Piece(token, scores[i], start, end, i, continues))
        return pieces

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
        encoding, batch_size = read_encoding(merged), read_batch_size(merged)
        if encoding.cuts and encoding.strategy == "only_second":
            raise InputError('truncation: expected a strategy for one text, got "only_second"')
        check_keywords(merged, TokenClassificationArgs.__annotations__, self.task)
        return _Call(
            strategy=strategy, ignored=frozenset(labels), stride=stride, encoding=encoding, batch_size=batch_size
        )
