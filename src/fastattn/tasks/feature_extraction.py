"""The pipeline "feature-extraction"."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    PairEncoder,
    merge_kwargs,
    read_encoding,
    read_limits,
    read_texts,
    types_of,
)
from fastattn.tasks.pipeline_steps import Job, Named, Part, StepLimits, run_job
from fastattn.tokenizer import Tokenizer

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
        self, inputs: Iterator[Any], *, return_tensors: Literal[False] | None = ..., **options: Unpack[TokenizeArgs]
    ) -> Iterator[Features]: ...
    @overload
    def __call__(
        self, inputs: Iterator[Any], *, return_tensors: Tensors, **options: Unpack[TokenizeArgs]
    ) -> Iterator[FeatureArray]: ...
    @overload
    def __call__(
        self, inputs: object, *, return_tensors: bool | Literal["np"] | None = ..., **options: Unpack[TokenizeArgs]
    ) -> (
        Features | FeatureArray | list[Features] | list[FeatureArray] | Iterator[Features] | Iterator[FeatureArray]
    ): ...
    def __call__(self, inputs: Any, *, return_tensors: Any = None, **options: Unpack[TokenizeArgs]) -> Any:
        """Return nested lists [1, seq_len, hidden_size] for a str, and a list of those for a sequence of str.

        An iterator over str returns an iterator. return_tensors=True returns arrays instead of lists. Texts longer than
        the model's context are rejected unless truncation=True; max_length cuts them shorter. Raises DTypeError,
        InputError, ContextLengthError, and NonFiniteError if a number is NaN or infinite.
        """
        tensors, encoding, limits = self._read({**options, "return_tensors": return_tensors})
        source = read_texts(inputs, "inputs")
        results: Any = run_job(_Job(self.model, self.tokenizer, encoding, tensors=tensors), source, limits)
        return results[0] if source.single else results

    def _read(self, options: Mapping[str, Any]) -> tuple[bool, Encoding, StepLimits]:
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
        encoding, limits = read_encoding(merged, reject_fixed_padding=True), read_limits(merged)
        check_keywords(merged, FeatureExtractionArgs.__annotations__, self.task)
        return found, encoding, limits


class _Job(Job[str, NDArray[Any], Any]):
    """The hidden states of each text."""

    def __init__(self, model: Encoder, tokenizer: Tokenizer, encoding: Encoding, *, tensors: bool) -> None:
        self._model, self._tokenizer, self._tensors = model, tokenizer, tensors
        self._encoder = PairEncoder.of(model, tokenizer, encoding)

    def encode(self, index: int, item: str, name: str) -> list[Part]:
        return [self._encoder.encode(index, (item, None), name)]

    def encode_all(self, items: Iterable[Named[str]]) -> Iterator[list[Part]]:
        return ([part] for part in self._encoder.encode_texts(items))

    def forward(self, parts: Sequence[Part]) -> Iterable[tuple[int, Any]]:
        types = types_of(self._model, self._tokenizer, parts)
        return enumerate(self._model([part.ids for part in parts], token_type_ids=types).last_hidden_state)

    def reduce(self, part: Part, output: Any) -> NDArray[Any]:
        check_finite(output, part.name, "hidden states")
        found: NDArray[Any] = output
        return found

    def finish(self, item: str, reduced: list[NDArray[Any]]) -> FeatureArray | Features:
        return reduced[0][None] if self._tensors else [reduced[0].tolist()]
