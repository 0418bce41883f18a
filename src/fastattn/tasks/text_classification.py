"""The pipeline "text-classification"."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, TypedDict, cast, overload

import numpy as np
from numpy.typing import NDArray

from fastattn.api.encoders import SequenceClassifier
from fastattn.checks import check_choice, check_count, check_flag, check_keywords
from fastattn.errors import InputError
from fastattn.tasks.finite import check_finite
from fastattn.tasks.pipeline_base import Pipeline
from fastattn.tasks.pipeline_inputs import (
    BatchArgs,
    EncodeArgs,
    Encoding,
    Many,
    Pair,
    PairEncoder,
    need_tokens,
    read_encoding,
    read_limits,
    read_pairs,
    types_of,
)
from fastattn.tasks.pipeline_steps import Job, Named, Part, StepLimits, run_job
from fastattn.tasks.softmax import softmax
from fastattn.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

Activation: TypeAlias = Literal["sigmoid", "softmax", "none", "default"]
_ACTIVATIONS = ("sigmoid", "softmax", "none", "default")


class Prediction(TypedDict):
    """A label of a text and its score."""

    label: str
    score: float


class ScoreArgs(EncodeArgs, BatchArgs, total=False):
    """Arguments of a call other than top_k. return_all_scores: an old argument; only False is accepted."""

    function_to_apply: Activation | None
    return_all_scores: Literal[False] | None


class TextClassificationArgs(ScoreArgs, total=False):
    """Arguments of a call of `TextClassificationPipeline`."""

    top_k: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """The checked arguments of a call. legacy: top_k is not set, so a text returns one label instead of a list."""

    activation: Activation
    legacy: bool
    top_k: int | None
    encoding: Encoding
    limits: StepLimits


class TextClassificationPipeline(Pipeline[SequenceClassifier]):
    """Classifies texts or pairs of texts."""

    task: ClassVar[str] = "text-classification"

    def __init__(
        self, model: SequenceClassifier, tokenizer: object = None, **defaults: Unpack[TextClassificationArgs]
    ) -> None:
        super().__init__(model, tokenizer, **defaults)
        self._read({})

    @overload
    def __call__(self, inputs: str, *, top_k: int | None = ..., **options: Unpack[ScoreArgs]) -> list[Prediction]: ...
    @overload
    def __call__(self, inputs: Mapping[str, str], **options: Unpack[ScoreArgs]) -> Prediction: ...
    @overload
    def __call__(
        self, inputs: Mapping[str, str], *, top_k: int | None, **options: Unpack[ScoreArgs]
    ) -> list[Prediction]: ...
    @overload
    def __call__(self, inputs: Many, **options: Unpack[ScoreArgs]) -> list[Prediction]: ...
    @overload
    def __call__(self, inputs: Iterator[Any], **options: Unpack[ScoreArgs]) -> Iterator[Prediction]: ...
    @overload
    def __call__(
        self, inputs: Iterator[Any], *, top_k: int | None, **options: Unpack[ScoreArgs]
    ) -> Iterator[list[Prediction]]: ...
    @overload
    def __call__(self, inputs: Many, *, top_k: int | None, **options: Unpack[ScoreArgs]) -> list[list[Prediction]]: ...
    @overload
    def __call__(
        self, inputs: object, *, top_k: int | None = ..., **options: Unpack[ScoreArgs]
    ) -> Prediction | list[Prediction] | list[list[Prediction]] | Iterator[Prediction] | Iterator[list[Prediction]]: ...
    def __call__(self, inputs: Any, *, top_k: Any = "default", **options: Unpack[ScoreArgs]) -> Any:
        """Return [{"label", "score"}, ...] with one entry per text, also for a single str.

        inputs: a str, a pair {"text": ..., "text_pair": ...}, or a sequence or iterator of those, in which a tuple of
        two str is a pair too. A single pair returns its entry without the list. An iterator returns an iterator. With
        top_k, even 1, each text returns a list of its top_k labels, highest score first; None returns all. Scores:
        sigmoid for one label or a multi-label model, the logits for regression, else softmax; function_to_apply
        overrides that. Texts longer than the model's context are rejected unless truncation=True (or one of
        transformers' strategies); max_length cuts them shorter. Results do not depend on how texts share steps, and
        padding changes nothing. Raises DTypeError, InputError, ContextLengthError, and NonFiniteError if a score is NaN
        or infinite.
        """
        given: dict[str, Any] = {**options}
        if not (isinstance(top_k, str) and top_k in ("default", "")):
            given["top_k"] = top_k
        call = self._read(given)
        source = read_pairs(inputs, "inputs")
        results: Any = run_job(_Job(self.model, self.tokenizer, call), source, call.limits)
        if not source.single:
            return results
        # As in transformers: a top_k set on the pipeline itself adds this list around the list of labels.
        return results if isinstance(inputs, str) and "top_k" not in given else results[0]

    def _read(self, options: Mapping[str, Any]) -> _Call:
        """Check the arguments of a call."""
        merged = self._merged(options)
        if "top_k" in options:
            merged["top_k"] = options["top_k"]
        all_scores = merged.pop("return_all_scores", None)
        if all_scores is not None and check_flag("return_all_scores", all_scores):
            raise InputError("return_all_scores: expected None or False, got True; top_k=None gives all scores")
        legacy = "top_k" not in merged
        top_k = merged.pop("top_k", None)
        function = merged.pop("function_to_apply", None)
        if isinstance(function, Enum):
            function = function.value
        if isinstance(function, str):
            function = check_choice("function_to_apply", function.lower(), _ACTIVATIONS)
        elif function is not None:
            check_choice("function_to_apply", function, _ACTIVATIONS)
        call = _Call(
            activation=self._activation() if function in (None, "default") else cast(Activation, function),
            legacy=legacy,
            top_k=None if top_k is None else check_count("top_k", top_k),
            encoding=read_encoding(merged),
            limits=read_limits(merged),
        )
        check_keywords(merged, TextClassificationArgs.__annotations__, self.task)
        return call

    def _activation(self) -> Activation:
        problem = self.model.config.problem_type
        if problem == "regression":
            return "none"
        return "sigmoid" if problem == "multi_label_classification" or len(self.model.config.labels) == 1 else "softmax"


class _Job(Job[Pair, NDArray[np.floating[Any]], Any]):
    """The scores of each text, as its labels."""

    def __init__(self, model: SequenceClassifier, tokenizer: Tokenizer, call: _Call) -> None:
        self._model, self._tokenizer, self._call = model, tokenizer, call
        self._encoder = PairEncoder.of(model, tokenizer, call.encoding)

    def encode(self, index: int, item: Pair, name: str) -> list[Part]:
        return [need_tokens(self._encoder.encode(index, item, name))]

    def encode_all(self, items: Iterable[Named[Pair]]) -> Iterator[list[Part]]:
        return ([need_tokens(part)] for part in self._encoder.encode_all(items))

    def forward(self, parts: Sequence[Part]) -> Iterable[tuple[int, Any]]:
        types = types_of(self._model, self._tokenizer, parts)
        return enumerate(self._model([part.ids for part in parts], token_type_ids=types).logits)

    def reduce(self, part: Part, output: Any) -> NDArray[np.floating[Any]]:
        scores = _activate(output, self._call.activation)
        check_finite(scores, part.name, "scores")
        return scores

    def finish(self, item: Pair, reduced: list[NDArray[np.floating[Any]]]) -> Prediction | list[Prediction]:
        labels, scores = self._model.config.labels, reduced[0]
        if self._call.legacy:
            best = int(np.argmax(scores))
            return {"label": labels[best], "score": float(scores[best])}
        order = np.argsort(-scores, kind="stable")[: self._call.top_k]
        return [{"label": labels[i], "score": float(scores[i])} for i in order]


def _activate(row: NDArray[np.floating[Any]], activation: Activation) -> NDArray[np.floating[Any]]:
    if activation == "none":
        return row
    if activation == "sigmoid":
        return np.exp(-np.logaddexp(0.0, -row.astype(np.float64)))
    return softmax(row)
