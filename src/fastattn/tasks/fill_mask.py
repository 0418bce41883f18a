"""The pipeline "fill-mask"."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
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
    batches,
    merge_kwargs,
    names_of,
    read_batch_size,
    read_encoding,
    read_texts,
)
from fastattn.tasks.softmax import softmax
from fastattn.tokenizer import check_text, is_list_like
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

    top_k: how many tokens to return for each mask (5). targets: the only words to consider; of a word of several
    tokens, the first token is used, with a warning. tokenizer_kwargs: a mapping with the keys of `EncodeArgs`.
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
    batch_size: int | None


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
    def __call__(self, inputs: object, **options: Unpack[FillMaskArgs]) -> list[Any]: ...
    def __call__(self, inputs: Any, **options: Unpack[FillMaskArgs]) -> Any:
        """Return a list of {"score", "token", "token_str", "sequence"} for a text, the most probable first.

        inputs: a str, or a sequence of str (also an iterator), each with `tokenizer.mask_token` in it. A text with
        several masks returns one such list for each mask; the other masks stay in "sequence". A sequence of texts
        returns a list with the result of each; as in transformers, a list of one text returns the result itself. Each
        mask is predicted on its own, so the scores are not those of the masks together. Texts longer than the model's
        context are rejected unless truncation=True. Raises DTypeError, InputError (also for a text without a mask),
        ContextLengthError, and NonFiniteError if a score is NaN or infinite.
        """
        call, mask_id = self._read(options), self._mask_id()
        texts, single = read_texts(inputs, "inputs")
        names = names_of("inputs", len(texts), single=single)
        results: list[Any] = []
        items = [(text, None) for text in texts]
        for ids, type_ids in batches(
            self.model, self.tokenizer, items, call.encoding, batch_size=call.batch_size, names=names
        ):
            for i, row in enumerate(ids, len(results)):
                if mask_id not in row:
                    cut = " among the tokens that truncation leaves" if call.encoding.cuts else ""
                    mask = quote(self.tokenizer.mask_token)
                    raise InputError(f"{names[i]}: expected the mask token {mask}{cut}, found none")
            types = self.model.types_of(self.tokenizer, type_ids)
            for row, logits in zip(ids, self.model.logits_at(ids, mask_id, token_type_ids=types), strict=True):
                scores = softmax(logits)
                check_finite(scores, names[len(results)], "scores")
                results.append(self._fillings(row, scores, call, mask_id))
        return results[0] if single or (len(results) == 1 and isinstance(inputs, list)) else results

    def _fillings(self, ids: NDArray[np.int32], scores: NDArray[np.float64], call: _Call, mask_id: int) -> Any:
        """Return the best tokens of each mask of a text; of the only mask, without the list of masks."""
        places = np.flatnonzero(ids == mask_id)
        filled: list[list[Filling]] = []
        for place, row in zip(places, scores, strict=True):
            known = np.arange(len(row)) if call.targets is None else call.targets
            order = np.argsort(-row[known], kind="stable")[: call.top_k]
            best = known[order].tolist()
            filled.append([self._filling(ids, int(place), token, float(row[token]), len(places)) for token in best])
        return filled[0] if len(filled) == 1 else filled

    def _filling(self, ids: NDArray[np.int32], place: int, token: int, score: float, n_masks: int) -> Filling:
        tokens = ids.tolist()
        tokens[place] = token
        padding = self.tokenizer.pad_token_id
        text = self.tokenizer.decode([t for t in tokens if t != padding], skip_special_tokens=n_masks == 1)
        return {"score": score, "token": token, "token_str": self.tokenizer.decode([token]), "sequence": text}

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
        encoding, batch_size = read_encoding(merged), read_batch_size(merged)
        check_keywords(merged, FillMaskArgs.__annotations__, self.task)
        return _Call(top_k=top_k, targets=ids, encoding=encoding, batch_size=batch_size)

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
