"""The pipeline "fill-mask"."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict, overload

import numpy as np
from numpy.typing import NDArray

from fastattn.api.heads import MaskedLM
from fastattn.checks import check_count, check_keywords, quote
from fastattn.errors import InputError
from fastattn.tasks.finite import check_finite
from fastattn.tasks.pipeline_base import Pipeline
from fastattn.tasks.pipeline_inputs import (
    BatchArgs,
    EncodeArgs,
    Encoding,
    Many,
    PairEncoder,
    merge_kwargs,
    read_encoding,
    read_limits,
    read_texts,
    types_of,
)
from fastattn.tasks.pipeline_steps import Job, Named, Part, StepLimits, run_job
from fastattn.tasks.softmax import softmax
from fastattn.tokenizer import Tokenizer, check_text, is_list_like
from fastattn.tokenizer.texts import check_items, read_items

if TYPE_CHECKING:
    from typing_extensions import Unpack

DEFAULT_TOP_K = 5
_log = logging.getLogger("fastattn")


class Filling(TypedDict):
    """A token in place of a mask. score: its probability. sequence: the whole text with the token in it."""

    score: float
    token: int
    token_str: str
    sequence: str


class FillMaskArgs(EncodeArgs, BatchArgs, total=False):
    """Arguments of a call of `FillMaskPipeline`.

    top_k: how many tokens to return for each mask (5). targets: the only words to consider; if a word has several
    tokens, the first one is used, with a warning. tokenizer_kwargs: a mapping with the keys of `EncodeArgs`.
    """

    top_k: int | None
    targets: str | Sequence[str] | None
    tokenizer_kwargs: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """The checked arguments of a call. targets: ids, None for the whole vocabulary."""

    top_k: int
    targets: NDArray[np.intp] | None
    encoding: Encoding
    limits: StepLimits


class FillMaskPipeline(Pipeline[MaskedLM]):
    """Predicts the masked tokens of texts."""

    task: ClassVar[str] = "fill-mask"

    def __init__(self, model: MaskedLM, tokenizer: object = None, **defaults: Unpack[FillMaskArgs]) -> None:
        super().__init__(model, tokenizer, **defaults)
        self._mask_id()
        self._read({})

    @overload
    def __call__(self, inputs: str, **options: Unpack[FillMaskArgs]) -> list[Filling] | list[list[Filling]]: ...
    @overload
    def __call__(
        self, inputs: Many, **options: Unpack[FillMaskArgs]
    ) -> list[Filling] | list[list[Filling]] | list[list[Filling] | list[list[Filling]]]: ...
    @overload
    def __call__(
        self, inputs: Iterator[Any], **options: Unpack[FillMaskArgs]
    ) -> Iterator[list[Filling] | list[list[Filling]]]: ...
    @overload
    def __call__(self, inputs: object, **options: Unpack[FillMaskArgs]) -> list[Any] | Iterator[Any]: ...
    def __call__(self, inputs: Any, **options: Unpack[FillMaskArgs]) -> Any:
        """Return a list of {"score", "token", "token_str", "sequence"} for a text, the most probable first.

        inputs: a str, or a sequence or iterator of str, each with `tokenizer.mask_token` in it. A text with several
        masks returns one such list for each mask; the other masks stay in "sequence". A sequence of texts returns a
        list with the result of each; as in transformers, a list of one text returns the result itself. An iterator
        returns an iterator. Each mask is predicted on its own, so the scores are not those of the masks together. Texts
        longer than the model's context are rejected unless truncation=True. Raises DTypeError, InputError (also for a
        text without a mask), ContextLengthError, and NonFiniteError if a score is NaN or infinite.
        """
        call = self._read(options)
        source = read_texts(inputs, "inputs")
        results: Any = run_job(_Job(self.model, self.tokenizer, call, self._mask_id()), source, call.limits)
        return results[0] if source.single or (isinstance(inputs, list) and len(results) == 1) else results

    def _mask_id(self) -> int:
        found = self.tokenizer.mask_token_id
        if found is None:
            raise InputError("tokenizer: expected one with a mask_token for fill-mask, found none")
        return int(found)

    def _read(self, options: Mapping[str, Any]) -> _Call:
        """Check the arguments of a call."""
        merged = self._given(options)
        merge_kwargs(merged, "tokenizer_kwargs")
        n_tokens = self.model.config.vocab_size
        top_k = check_count("top_k", merged.pop("top_k", DEFAULT_TOP_K), low=1)
        targets = merged.pop("targets", None)
        ids = None if targets is None else self._target_ids(targets, n_tokens)
        if ids is None and top_k > n_tokens:
            raise InputError(f"top_k: expected at most {n_tokens}, the size of the vocabulary, got {top_k}")
        encoding, limits = read_encoding(merged), read_limits(merged)
        check_keywords(merged, FillMaskArgs.__annotations__, self.task)
        return _Call(top_k=top_k, targets=ids, encoding=encoding, limits=limits)

    def _target_ids(self, targets: Any, n_tokens: int) -> NDArray[np.intp]:
        """Return the ids of the targets in ascending order, each once. Raises InputError, DTypeError."""
        if isinstance(targets, str) or not is_list_like(targets):
            words = [check_text(targets, "targets")]
        else:
            words = check_items(read_items(targets, "targets"), "targets", targets)
        vocabulary = self.tokenizer.get_vocab()
        found: set[int] = set()
        for word in words:
            token_id = vocabulary.get(word)
            if token_id is None:
                pieces = self.tokenizer.encode(word, add_special_tokens=False)
                if not pieces:
                    _log.warning("targets: %s has no tokens and is ignored", quote(word))
                    continue
                token_id = pieces[0]
                token = quote(self.tokenizer.convert_ids_to_tokens(token_id))
                _log.warning("targets: %s is not a token; its first token %s is used instead", quote(word), token)
            if token_id >= n_tokens:
                raise InputError(f"targets: expected ids below vocab_size {n_tokens}, got {token_id} for {quote(word)}")
            found.add(token_id)
        if not found:
            raise InputError("targets: expected at least one word with a token, got none")
        return np.array(sorted(found), np.intp)


@dataclass(frozen=True, slots=True)
class _Masks:
    """The masks of a text: their places, and the best ids and their scores for each."""

    ids: NDArray[np.int32]
    places: list[int]
    best: list[list[tuple[int, float]]]


class _Job(Job[str, _Masks, Any]):
    """The best tokens for each mask of each text."""

    def __init__(self, model: MaskedLM, tokenizer: Tokenizer, call: _Call, mask_id: int) -> None:
        self._model, self._tokenizer, self._call, self._mask_id = model, tokenizer, call, mask_id
        self._encoder = PairEncoder.of(model, tokenizer, call.encoding)

    def encode(self, index: int, item: str, name: str) -> list[Part]:
        return [self._need_mask(self._encoder.encode(index, (item, None), name))]

    def encode_all(self, items: Iterable[Named[str]]) -> Iterator[list[Part]]:
        return ([self._need_mask(part)] for part in self._encoder.encode_texts(items))

    def _need_mask(self, part: Part) -> Part:
        if self._mask_id not in part.ids:
            cut = " among the tokens that truncation leaves" if self._call.encoding.cuts else ""
            mask = quote(self._tokenizer.mask_token)
            raise InputError(f"{part.name}: expected the mask token {mask}{cut}, found none")
        return part

    def forward(self, parts: Sequence[Part]) -> Iterable[tuple[int, Any]]:
        types = types_of(self._model, self._tokenizer, parts)
        return enumerate(self._model.logits_at([part.ids for part in parts], self._mask_id, token_type_ids=types))

    def reduce(self, part: Part, output: Any) -> _Masks:
        scores = softmax(output)
        check_finite(scores, part.name, "scores")
        best = []
        for row in scores:
            known = np.arange(len(row)) if self._call.targets is None else self._call.targets
            order = np.argsort(-row[known], kind="stable")[: self._call.top_k]
            best.append([(token, float(row[token])) for token in known[order].tolist()])
        return _Masks(part.ids, np.flatnonzero(part.ids == self._mask_id).tolist(), best)

    def finish(self, item: str, reduced: list[_Masks]) -> list[Filling] | list[list[Filling]]:
        """Return the best tokens of each mask of a text: a list per mask, or one list if there is only one mask."""
        found = reduced[0]
        filled = [
            [self._filling(found, place, token, score) for token, score in best]
            for place, best in zip(found.places, found.best, strict=True)
        ]
        return filled[0] if len(filled) == 1 else filled

    def _filling(self, found: _Masks, place: int, token: int, score: float) -> Filling:
        tokens = found.ids.tolist()
        tokens[place] = token
        padding = self._tokenizer.pad_token_id
        text = self._tokenizer.decode([t for t in tokens if t != padding], skip_special_tokens=len(found.places) == 1)
        return {"score": score, "token": token, "token_str": self._tokenizer.decode([token]), "sequence": text}
