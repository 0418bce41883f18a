"""The pipeline "zero-shot-classification"."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict, overload

import numpy as np
from numpy.typing import NDArray

from fastattn.api.encoders import SequenceClassifier
from fastattn.checks import check_flag, check_keywords, quote
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
    read_texts,
    types_of,
)
from fastattn.tasks.pipeline_steps import Job, Named, Part, StepLimits, run_job
from fastattn.tasks.softmax import softmax
from fastattn.tokenizer import Tokenizer, check_text, is_list_like
from fastattn.tokenizer.texts import check_items, read_items

if TYPE_CHECKING:
    from typing_extensions import Unpack

TEMPLATE = "This example is {}."
_log = logging.getLogger("fastattn")


class Classified(TypedDict):
    """A text, its labels with the best first, and their scores."""

    sequence: str
    labels: list[str]
    scores: list[float]


class HypothesisArgs(EncodeArgs, BatchArgs, total=False):
    """Keyword arguments of a call of `ZeroShotClassificationPipeline`.

    hypothesis_template: a text with {} for the label. multi_label: whether several labels can be true, so each score is
    between 0 and 1 on its own.
    """

    hypothesis_template: str | None
    multi_label: bool | None


class ZeroShotArgs(HypothesisArgs, total=False):
    """Arguments of a call of `ZeroShotClassificationPipeline`, which may be set on the pipeline.

    candidate_labels: a sequence of str, or one str with commas between the labels. The others: as in `HypothesisArgs`.
    """

    candidate_labels: str | Sequence[str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """The checked arguments of a call. hypotheses: the template with each label."""

    labels: list[str]
    hypotheses: list[str]
    multi_label: bool
    encoding: Encoding
    limits: StepLimits


class ZeroShotClassificationPipeline(Pipeline[SequenceClassifier]):
    """Classifies texts by labels of your choice, with a model of natural-language inference."""

    task: ClassVar[str] = "zero-shot-classification"

    def __init__(self, model: SequenceClassifier, tokenizer: object = None, **defaults: Unpack[ZeroShotArgs]) -> None:
        super().__init__(model, tokenizer, **defaults)
        labels = self._defaults.get("candidate_labels")
        self._read({"candidate_labels": "label" if labels is None else labels})
        if len(model.config.labels) < 2:
            raise InputError(f"model: expected at least 2 classes, got {len(model.config.labels)}")
        if self.entailment_id >= len(model.config.labels):
            raise InputError(
                f"model: label2id of config.json: expected class numbers below {len(model.config.labels)}, got "
                f"{self.entailment_id} for entailment; load the model with label2id="
            )
        if self.entailment_id == -1:
            _log.warning(
                "%s: no name in label2id of config.json begins with 'entail'; the last class is used as entailment",
                model.path,
            )

    @property
    def entailment_id(self) -> int:
        """The number of the class whose name begins with "entail"; -1, the last one, if there is none."""
        found = (i for name, i in self.model.config.label2id.items() if name.lower().startswith("entail"))
        return next(found, -1)

    @overload
    def __call__(
        self, sequences: str, candidate_labels: str | Sequence[str] | None = ..., **options: Unpack[HypothesisArgs]
    ) -> Classified: ...
    @overload
    def __call__(
        self, sequences: Many, candidate_labels: str | Sequence[str] | None = ..., **options: Unpack[HypothesisArgs]
    ) -> list[Classified]: ...
    @overload
    def __call__(
        self,
        sequences: Iterator[Any],
        candidate_labels: str | Sequence[str] | None = ...,
        **options: Unpack[HypothesisArgs],
    ) -> Iterator[Classified]: ...
    def __call__(self, sequences: Any, candidate_labels: Any = None, **options: Any) -> Any:
        """Return {"sequence", "labels", "scores"} for a text, and a list of those for a sequence of texts.

        An iterator over texts returns an iterator. Each text and label are a pair: the text, and hypothesis_template
        with the label. The scores are the softmax of the entailment logits over the labels; with multi_label, or with
        one label, of entailment against contradiction (class 0, or the last one if entailment is 0). Texts longer than
        the model's context are rejected unless truncation=True, which cuts only the text. Raises DTypeError,
        InputError, ContextLengthError, and NonFiniteError if a logit is NaN or infinite.
        """
        call = self._read({**options, "candidate_labels": candidate_labels})
        source = read_texts(sequences, "sequences")
        results: Any = run_job(_Job(self.model, self.tokenizer, call, self.entailment_id), source, call.limits)
        return results[0] if source.single else results

    def _read(self, options: Mapping[str, Any]) -> _Call:
        """Check the arguments of a call."""
        merged = self._given(options)
        labels = _read_labels(merged.pop("candidate_labels", None))
        template = check_text(merged.pop("hypothesis_template", TEMPLATE), "hypothesis_template")
        multi_label = check_flag("multi_label", merged.pop("multi_label", False))
        encoding, limits = read_encoding(merged), read_limits(merged)
        if encoding.strategy == "longest_first":
            encoding = replace(encoding, strategy="only_first")
        check_keywords(merged, ZeroShotArgs.__annotations__, self.task)
        try:
            hypotheses = [template.format(label) for label in labels]
        except (AttributeError, IndexError, KeyError, ValueError):
            hypotheses = [template]
        if hypotheses[0] == template:
            raise InputError(f"hypothesis_template: expected a text with {{}} for the label, got {quote(template)}")
        return _Call(labels=labels, hypotheses=hypotheses, multi_label=multi_label, encoding=encoding, limits=limits)


class _Job(Job[str, NDArray[np.float64], Classified]):
    """The logits of each text with each label, as scores of the labels."""

    def __init__(self, model: SequenceClassifier, tokenizer: Tokenizer, call: _Call, entailment_id: int) -> None:
        self._model, self._tokenizer, self._call, self._entailment = model, tokenizer, call, entailment_id
        self._encoder = PairEncoder.of(model, tokenizer, call.encoding)
        self.n_sequences = len(call.hypotheses)

    def encode(self, index: int, item: str, name: str) -> list[Part]:
        hypotheses = self._call.hypotheses
        return [need_tokens(self._encoder.encode(index, (item, hypothesis), name)) for hypothesis in hypotheses]

    def encode_all(self, items: Iterable[Named[str]]) -> Iterator[list[Part]]:
        hypotheses = self._call.hypotheses
        parts = self._encoder.encode_all(_pair_of(one, hypothesis) for one in items for hypothesis in hypotheses)
        while part := next(parts, None):
            yield list(map(need_tokens, (part, *islice(parts, len(hypotheses) - 1))))

    def forward(self, parts: Sequence[Part]) -> Iterable[tuple[int, Any]]:
        types = types_of(self._model, self._tokenizer, parts)
        return enumerate(self._model([part.ids for part in parts], token_type_ids=types).logits)

    def reduce(self, part: Part, output: Any) -> NDArray[np.float64]:
        check_finite(output, part.name, "logits")
        found: NDArray[np.float64] = output
        return found

    def finish(self, item: str, reduced: list[NDArray[np.float64]]) -> Classified:
        labels, scores = self._call.labels, self._scores(np.stack(reduced))
        order = np.argsort(scores, kind="stable")[::-1].tolist()  # equal scores in reverse, as in transformers
        return Classified(sequence=item, labels=[labels[i] for i in order], scores=scores[order].tolist())

    def _scores(self, logits: NDArray[Any]) -> NDArray[np.float64]:
        """Return the score of each label from its logits [n_labels, n_classes]."""
        entailment = self._entailment
        if self._call.multi_label or len(logits) == 1:
            return softmax(logits[:, [-1 if entailment == 0 else 0, entailment]])[:, 1]
        return softmax(logits[:, entailment])


def _pair_of(given: Named[str], hypothesis: str) -> Named[Pair]:
    return Named(given.index, (given.item, hypothesis), given.name)


def _read_labels(given: Any) -> list[str]:
    """Return the labels of a sequence, or of a str with commas between them. Raises InputError, DTypeError."""
    if isinstance(given, str) or (given is not None and not is_list_like(given)):
        labels = [part.strip() for part in check_text(given, "candidate_labels").split(",") if part.strip()]
    else:
        labels = [] if given is None else check_items(read_items(given, "candidate_labels"), "candidate_labels", given)
    if not labels:
        raise InputError("candidate_labels: expected at least one label, got none")
    return list(labels)
