"""The pipeline "feature-extraction"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from fastattn.api.encoders import Encoder
from fastattn.checks import check_flag, check_keywords
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

if TYPE_CHECKING:
    from typing_extensions import Unpack

Features: TypeAlias = list[list[list[float]]]  # [1, seq_len, hidden_size]
FeatureArray: TypeAlias = NDArray[np.floating[Any]]  # the same
Tensors: TypeAlias = Literal[True, "np"]


class TokenizeArgs(EncodeArgs, BatchArgs, total=False):
    """Arguments of a call other than return_tensors. tokenize_kwargs: a mapping with the keys of `EncodeArgs`."""

    tokenize_kwargs: Mapping[str, Any] | None


class FeatureExtractionArgs(TokenizeArgs, total=False):
    """Arguments of a call of `FeatureExtractionPipeline`."""

    return_tensors: bool | Literal["np"] | None


class FeatureExtractionPipeline(Pipeline[Encoder]):
    """Computes the last hidden states of texts."""

    task: ClassVar[str] = "feature-extraction"

    def __init__(self, model: Encoder, tokenizer: object = None, **defaults: Unpack[FeatureExtractionArgs]) -> None:
        super().__init__(model, tokenizer, **defaults)
        self._read({})

    @overload
    def __call__(
        self, inputs: str, *, return_tensors: Literal[False] | None = ..., **options: Unpack[TokenizeArgs]
    ) -> Features: ...
    @overload
    def __call__(self, inputs: str, *, return_tensors: Tensors, **options: Unpack[TokenizeArgs]) -> FeatureArray: ...
    @overload
    def __call__(
        self, inputs: Many, *, return_tensors: Literal[False] | None = ..., **options: Unpack[TokenizeArgs]
    ) -> list[Features]: ...
    @overload
    def __call__(
        self, inputs: Many, *, return_tensors: Tensors, **options: Unpack[TokenizeArgs]
    ) -> list[FeatureArray]: ...
    @overload
    def __call__(
        self, inputs: object, *, return_tensors: bool | Literal["np"] | None = ..., **options: Unpack[TokenizeArgs]
    ) -> Features | FeatureArray | list[Features] | list[FeatureArray]: ...
    def __call__(self, inputs: Any, *, return_tensors: Any = None, **options: Unpack[TokenizeArgs]) -> Any:
        """Return nested lists [1, seq_len, hidden_size] for a str, and a list of those for a sequence.

        return_tensors=True returns arrays instead. inputs: a str or a sequence of str (also an iterator). Texts longer
        than the model's context are rejected unless truncation=True; max_length cuts them shorter. Raises DTypeError,
        InputError, ContextLengthError, and NonFiniteError if a number is NaN or infinite.
        """
        tensors, encoding, batch_size = self._read({**options, "return_tensors": return_tensors})
        texts, single = read_texts(inputs, "inputs")
        names = names_of("inputs", len(texts), single=single)
        results: list[Any] = []
        items = [(text, None) for text in texts]
        for ids, type_ids in batches(self.model, self.tokenizer, items, encoding, batch_size=batch_size, names=names):
            types = self.model.types_of(self.tokenizer, type_ids)
            for rows in self.model(ids, token_type_ids=types).last_hidden_state:
                check_finite(rows, names[len(results)], "hidden states")
                results.append(rows[None] if tensors else [rows.tolist()])
        return results[0] if single else results

    def _read(self, options: Mapping[str, Any]) -> tuple[bool, Encoding, int | None]:
        """Check the arguments of a call."""
        merged = self._given(options)
        merge_kwargs(merged, "tokenize_kwargs")
        tensors = merged.pop("return_tensors", False)
        if isinstance(tensors, str):
            if tensors != "np":
                raise InputError(
                    f'return_tensors: expected True, False or "np", got {tensors!r:.40}; results are NumPy arrays: '
                    "convert them, for example with torch.from_numpy"
                )
            tensors = True
        found = check_flag("return_tensors", tensors)
        encoding, batch_size = read_encoding(merged, reject_fixed_padding=True), read_batch_size(merged)
        check_keywords(merged, FeatureExtractionArgs.__annotations__, self.task)
        return found, encoding, batch_size
