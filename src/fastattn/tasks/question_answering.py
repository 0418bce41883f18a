"""The pipeline "question-answering"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from fastattn.api.heads import QuestionAnswerer
from fastattn.checks import check_count, check_flag, check_keywords, quote
from fastattn.errors import DTypeError, InputError
from fastattn.tasks.answers import Answer, Part, best_spans, empty_probability, place_of_span
from fastattn.tasks.finite import check_finite
from fastattn.tasks.pipeline_base import Pipeline
from fastattn.tasks.pipeline_inputs import DEFAULT_BATCH_SIZE, BatchArgs, check_fits, read_batch_size
from fastattn.tokenizer import check_text, is_list_like
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
    the empty answer may be returned (False). align_to_words: whether answers begin and end at words (True).
    """

    top_k: int | None
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
    batch_size: int | None


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
        *,
        question: Any = None,
        context: Any = None,
        **options: Unpack[QuestionAnsweringArgs],
    ) -> Any:
        """Return {"score", "start", "end", "answer"}: the answer is context[start:end].

        inputs: {"question": ..., "context": ...} or a sequence of those. question and context: a str each instead, or
        sequences; one context may serve several questions. Several questions return a list; as in transformers 4, a
        list of one question returns its result. top_k > 1 returns a list of answers for each question, the best
        first; if there is only one answer, it is returned without a list. The score is the probability of the first
        token times that of the last one. Long contexts are read in overlapping parts; the scores of an answer that is
        found several times are added, so a score can exceed 1. Raises DTypeError, InputError, and NonFiniteError if a
        score is NaN or infinite.
        """
        call = self._read(options)
        items = _questions(inputs, question, context)
        parts = [part for i, item in enumerate(items) for part in self._parts(i, item, f"inputs[{i}]", call)]
        answers: list[list[Answer]] = [[] for _ in items]
        lowest = [np.inf] * len(items)
        size = call.batch_size or DEFAULT_BATCH_SIZE
        # As in transformers 4: aligned spans may be the same words, whose scores are added.
        n_spans = 2 * call.top_k + 10 if call.align else call.top_k
        for first in range(0, len(parts), size):
            together = parts[first : first + size]
            types = self.model.types_of(self.tokenizer, [part.type_ids for part in together])
            output = self.model([part.ids for part in together], token_type_ids=types)
            for part, start, end in zip(together, output.start_logits, output.end_logits, strict=True):
                check_finite(np.stack([start, end]), f"inputs[{part.item}]", "logits")
                lowest[part.item] = min(lowest[part.item], empty_probability(part, start, end))
                for span in best_spans(part, start, end, n_spans, call.max_answer_len):
                    _add(answers[part.item], place_of_span(part, span, items[part.item]["context"], align=call.align))
        results = [self._best(found, low, call) for found, low in zip(answers, lowest, strict=True)]
        return results[0] if len(results) == 1 else results

    def _best(self, found: list[Answer], lowest: float, call: _Call) -> Answer | list[Answer]:
        """Return the best answers; the empty one if there is no other."""
        if call.allow_empty or not found:
            found.append({"score": float(lowest) if call.allow_empty else 0.0, "start": 0, "end": 0, "answer": ""})
        best = sorted(found, key=lambda answer: answer["score"], reverse=True)[: call.top_k]
        return best[0] if len(best) == 1 else best

    def _parts(self, index: int, item: Question, name: str, call: _Call) -> list[Part]:
        """Tokenize a question with its context, in parts if they are long. Raises InputError."""
        question_first = self.tokenizer.padding_side == "right"
        texts = (item["question"], item["context"]) if question_first else (item["context"], item["question"])
        try:
            encoded = self.tokenizer(
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
        cls_id = -1 if self.tokenizer.cls_token_id is None else self.tokenizer.cls_token_id
        parts = []
        for i, raw in enumerate(encoded.encodings or ()):
            ids = np.array(encoded["input_ids"][i], np.int32)
            check_fits(self.model, self.tokenizer, ids, name)
            in_context = np.array([found == int(question_first) for found in raw.sequence_ids], np.bool_)
            known: NDArray[np.bool_] = in_context | (ids == cls_id)
            types = np.array(encoded["token_type_ids"][i], np.int32)
            parts.append(Part(index, ids, types, in_context, known, raw, int(question_first)))
        return parts

    def _read(self, options: Mapping[str, Any]) -> _Call:
        """Check the arguments of a call."""
        merged = self._given(options)
        context = self.model.executor.program.max_positions
        longest = min(self.tokenizer.model_max_length, context)
        length = check_count("max_seq_len", merged.pop("max_seq_len", min(longest, MAX_SEQ_LEN)), low=1, high=context)
        stride = check_count("doc_stride", merged.pop("doc_stride", min(length // 2, DOC_STRIDE)))
        if stride > length:
            raise InputError(f"doc_stride: expected at most max_seq_len {length}, got {stride}")
        call = _Call(
            top_k=check_count("top_k", merged.pop("top_k", 1), low=1),
            max_answer_len=check_count("max_answer_len", merged.pop("max_answer_len", MAX_ANSWER_LEN), low=1),
            max_seq_len=length,
            doc_stride=stride,
            allow_empty=check_flag("handle_impossible_answer", merged.pop("handle_impossible_answer", False)),
            align=check_flag("align_to_words", merged.pop("align_to_words", True)),
            batch_size=read_batch_size(merged),
        )
        check_keywords(merged, QuestionAnsweringArgs.__annotations__, self.task)
        return call


def _add(answers: list[Answer], new: Answer) -> None:
    """Add an answer; if there is one with the same text except for case, only add to its score."""
    for answer in answers:
        if answer["answer"].lower() == new["answer"].lower():
            answer["score"] += new["score"]
            return
    answers.append(new)


def _questions(inputs: Any, question: Any, context: Any) -> list[Question]:
    """Return the questions of a call. Raises InputError, DTypeError."""
    if inputs is None:
        if question is None or context is None:
            raise InputError("inputs: expected question= and context=, or one mapping with both, got neither")
        if isinstance(question, str):
            return [_question({"question": question, "context": context}, "inputs")]
        asked = list(read_items(question, "question"))
        texts = [context] * len(asked) if isinstance(context, str) else list(read_items(context, "context"))
        if len(texts) != len(asked):
            raise InputError(f"context: expected one, or one for each of {len(asked)} questions, got {len(texts)}")
        pairs = zip(asked, texts, strict=True)
        return [_question({"question": a, "context": b}, f"inputs[{i}]") for i, (a, b) in enumerate(pairs)]
    if question is not None or context is not None:
        raise InputError("inputs: expected None with question= or context=")
    if isinstance(inputs, Mapping) or not is_list_like(inputs):
        return [_question(inputs, "inputs")]
    return [_question(item, f"inputs[{i}]") for i, item in enumerate(read_items(inputs, "inputs"))]


def _question(item: Any, name: str) -> Question:
    if not isinstance(item, Mapping):
        raise DTypeError(f'{name}: expected {{"question": ..., "context": ...}}, got {type(item).__name__}')
    if set(item) != {"question", "context"}:
        raise InputError(f'{name}: expected the keys "question" and "context", got {quote(sorted(map(str, item)))}')
    for key in ("question", "context"):
        if not check_text(item[key], f"{name}[{quote(key)}]"):
            raise InputError(f"{name}[{quote(key)}]: expected a text, got an empty one")
    return cast(Question, dict(item))
