"""The pipeline "question-answering"."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from fastattn.api.heads import QuestionAnswerer
from fastattn.checks import check_count, check_flag, check_keywords, one_of, quote
from fastattn.errors import DTypeError, InputError
from fastattn.tasks.answers import Answer, Passage, best_spans, empty_probability, place_of_span
from fastattn.tasks.finite import check_finite
from fastattn.tasks.pipeline_base import Pipeline
from fastattn.tasks.pipeline_inputs import BatchArgs, check_fits, is_one_mapping, read_limits, types_of
from fastattn.tasks.pipeline_source import Source, read_source
from fastattn.tasks.pipeline_steps import Job, Part, StepLimits, run_job
from fastattn.tokenizer import Tokenizer, check_text
from fastattn.tokenizer.call import PaddingArg
from fastattn.tokenizer.padding import read_padding
from fastattn.tokenizer.texts import read_items

if TYPE_CHECKING:
    from typing_extensions import Unpack

MAX_SEQ_LEN, DOC_STRIDE, MAX_ANSWER_LEN = 384, 128, 15


class Question(TypedDict):
    """A question, and the text with its answer."""

    question: str
    context: str


class QuestionAnsweringArgs(BatchArgs, total=False):
    """Arguments of a call of `QuestionAnsweringPipeline`.

    top_k: the number of answers (1). max_answer_len: the longest answer, in tokens (15). max_seq_len: the maximum
    number of tokens of a part, including the question (384, at most the model's context). doc_stride: how many tokens
    two parts of a long context share (128, or half of max_seq_len if that is less). handle_impossible_answer: whether
    the empty answer may be returned (False). align_to_words: whether answers begin and end at words (True). topk: an
    old name of top_k. max_question_len and padding change nothing: as in transformers with these tokenizers, questions
    are not cut, and nothing is padded.
    """

    top_k: int | None
    topk: int | None
    max_question_len: int | None
    padding: PaddingArg | None
    max_answer_len: int | None
    max_seq_len: int | None
    doc_stride: int | None
    handle_impossible_answer: bool | None
    align_to_words: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """The checked arguments of a call."""

    top_k: int
    max_answer_len: int
    max_seq_len: int
    doc_stride: int
    allow_empty: bool
    align: bool
    limits: StepLimits


class QuestionAnsweringPipeline(Pipeline[QuestionAnswerer]):
    """Finds answers to questions in texts."""

    task: ClassVar[str] = "question-answering"

    def __init__(
        self, model: QuestionAnswerer, tokenizer: object = None, **defaults: Unpack[QuestionAnsweringArgs]
    ) -> None:
        super().__init__(model, tokenizer, **defaults)
        self._read({})

    def __call__(
        self,
        inputs: Any = None,
        second: Any = None,
        *,
        question: Any = None,
        context: Any = None,
        data: Any = None,
        X: Any = None,
        **options: Unpack[QuestionAnsweringArgs],
    ) -> Any:
        """Return {"score", "start", "end", "answer"}: the answer is context[start:end].

        inputs: {"question": ..., "context": ...}, or a sequence or iterator of those; data and X are old names of
        this argument.
        Two str, inputs and second, are a question and its context. question and context: a str each instead, or
        sequences; one context may serve several questions. An iterator returns an iterator. Several questions return a
        list; as in transformers 4, a list of one question returns its result. top_k > 1 returns a list of answers for
        each question, the best first; if there is only one answer, it is returned without a list. The score is the
        probability of the first token times that of the last one. Long contexts are read in overlapping parts; the
        scores of an answer that is found several times are added, so a score can exceed 1. Raises DTypeError,
        InputError, and NonFiniteError if a score is NaN or infinite.
        """
        call = self._read(options)
        given = one_of("inputs", inputs, "data", one_of("data", data, "X", X))
        if second is not None:
            if not isinstance(given, str) or not isinstance(second, str):
                raise DTypeError("second: expected a question and its context as two str, got other types")
            given = {"question": given, "context": second}
        source = _questions(given, question, context)
        results: Any = run_job(_Job(self.model, self.tokenizer, call), source, call.limits)
        return results[0] if isinstance(results, list) and len(results) == 1 else results

    def _read(self, options: Mapping[str, Any]) -> _Call:
        """Check the arguments of a call."""
        merged = self._given(options)
        top_k = one_of("top_k", merged.pop("top_k", None), "topk", merged.pop("topk", None))
        check_count("max_question_len", merged.pop("max_question_len", 64), low=1)
        read_padding("padding", merged.pop("padding", False))
        context = self.model.executor.program.max_positions
        longest = min(self.tokenizer.model_max_length, context)
        length = check_count("max_seq_len", merged.pop("max_seq_len", min(longest, MAX_SEQ_LEN)), low=1, high=context)
        stride = check_count("doc_stride", merged.pop("doc_stride", min(length // 2, DOC_STRIDE)))
        if stride > length:
            raise InputError(f"doc_stride: expected at most max_seq_len {length}, got {stride}")
        call = _Call(
            top_k=1 if top_k is None else check_count("top_k", top_k, low=1),
            max_answer_len=check_count("max_answer_len", merged.pop("max_answer_len", MAX_ANSWER_LEN), low=1),
            max_seq_len=length,
            doc_stride=stride,
            allow_empty=check_flag("handle_impossible_answer", merged.pop("handle_impossible_answer", False)),
            align=check_flag("align_to_words", merged.pop("align_to_words", True)),
            limits=read_limits(merged),
        )
        check_keywords(merged, QuestionAnsweringArgs.__annotations__, self.task)
        return call


class _Job(Job[Question, "tuple[list[Answer], float]", Any]):
    """The best answers to each question in the parts of its context."""

    def __init__(self, model: QuestionAnswerer, tokenizer: Tokenizer, call: _Call) -> None:
        self._model, self._tokenizer, self._call = model, tokenizer, call

    def encode(self, index: int, item: Question, name: str) -> list[Part]:
        """Tokenize a question with its context, in parts if they are long. Raises InputError."""
        call, tokenizer = self._call, self._tokenizer
        question_first = tokenizer.padding_side == "right"
        texts = (item["question"], item["context"]) if question_first else (item["context"], item["question"])
        try:
            encoded = tokenizer(
                *texts,
                truncation="only_second" if question_first else "only_first",
                max_length=call.max_seq_len,
                stride=call.doc_stride,
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
                return_token_type_ids=True,
            )
        except InputError as error:
            raise InputError(
                f"{name}: with max_seq_len {call.max_seq_len}, the question leaves too few tokens for the context, "
                f"whose parts share doc_stride {call.doc_stride}; shorten the question or lower doc_stride ({error})"
            ) from None
        cls_id = -1 if tokenizer.cls_token_id is None else tokenizer.cls_token_id
        parts = []
        for i, raw in enumerate(encoded.encodings or ()):
            ids = np.array(encoded["input_ids"][i], np.int32)
            check_fits(self._model, tokenizer, ids, name)
            in_context = np.array([found == int(question_first) for found in raw.sequence_ids], np.bool_)
            known: NDArray[np.bool_] = in_context | (ids == cls_id)
            types = np.array(encoded["token_type_ids"][i], np.int32)
            passage = Passage(item["context"], in_context, known, raw, int(question_first))
            parts.append(Part(name, ids, types, passage))
        return parts

    def forward(self, parts: Sequence[Part]) -> Iterable[tuple[int, Any]]:
        types = types_of(self._model, self._tokenizer, parts)
        output = self._model([part.ids for part in parts], token_type_ids=types)
        return enumerate(zip(output.start_logits, output.end_logits, strict=True))

    def reduce(self, part: Part, output: Any) -> tuple[list[Answer], float]:
        """Return the best answers in a part, and the probability that there is none."""
        call, passage = self._call, part.detail
        start, end = output
        check_finite(np.stack([start, end]), part.name, "logits")
        # As in transformers 4: aligned spans may be the same words, whose scores are added.
        n_spans = 2 * call.top_k + 10 if call.align else call.top_k
        spans = best_spans(passage, start, end, n_spans, call.max_answer_len)
        answers = [place_of_span(passage, span, align=call.align) for span in spans]
        return answers, empty_probability(passage, start, end)

    def finish(self, item: Question, reduced: list[tuple[list[Answer], float]]) -> Answer | list[Answer]:
        """Return the best answers; the empty one if there is no other."""
        call = self._call
        found: dict[str, Answer] = {}  # by their text, whose case may differ
        for answer in (answer for answers, _ in reduced for answer in answers):
            known = found.setdefault(answer["answer"].lower(), answer)
            if known is not answer:
                known["score"] += answer["score"]
        answers = list(found.values())
        if call.allow_empty or not answers:
            lowest = min(empty for _, empty in reduced)
            answers.append({"score": lowest if call.allow_empty else 0.0, "start": 0, "end": 0, "answer": ""})
        best = sorted(answers, key=lambda answer: answer["score"], reverse=True)[: call.top_k]
        return best[0] if len(best) == 1 else best


def _questions(inputs: Any, question: Any, context: Any) -> Source[Question]:
    """Return the questions of a call. Raises InputError, DTypeError."""
    if inputs is None:
        if question is None or context is None:
            raise InputError("inputs: expected question= and context=, or one mapping with both, got neither")
        if isinstance(question, str):
            return read_source({"question": question, "context": context}, "inputs", _question, is_one=is_one_mapping)
        asked = list(read_items(question, "question"))
        texts = [context] * len(asked) if isinstance(context, str) else list(read_items(context, "context"))
        if len(texts) != len(asked):
            raise InputError(f"context: expected one, or one for each of {len(asked)} questions, got {len(texts)}")
        inputs = [{"question": a, "context": b} for a, b in zip(asked, texts, strict=True)]
    elif question is not None or context is not None:
        raise InputError("inputs: expected None with question= or context=")
    return read_source(inputs, "inputs", _question, is_one=is_one_mapping)


def _question(item: Any, name: str) -> Question:
    if not isinstance(item, Mapping):
        raise DTypeError(f'{name}: expected {{"question": ..., "context": ...}}, got {type(item).__name__}')
    if set(item) != {"question", "context"}:
        raise InputError(f'{name}: expected the keys "question" and "context", got {quote(sorted(map(str, item)))}')
    for key in ("question", "context"):
        if not check_text(item[key], f"{name}[{quote(key)}]"):
            raise InputError(f"{name}[{quote(key)}]: expected a text, got an empty one")
    return cast(Question, dict(item))
