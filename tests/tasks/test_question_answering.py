"""The pipeline "question-answering".

transformers 5 has none. The expected answers are computed here from the logits of transformers' model in float64, with
transformers' tokenizer, by the algorithm of transformers 4, whose results were compared with those of 4.57.
"""

from __future__ import annotations

import pickle
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn
from fastattn.errors import DTypeError, InputError
from tests.tasks.bounds import assert_as_good_as, assert_same_bits
from tests.tasks.tiny import write_head

pytestmark = pytest.mark.torch
FAMILIES = ("Bert", "Roberta", "DistilBert", "Electra")
QUESTION = "a good dog?"
SHORT = "The dogs, running unknown cats! A great film."
LONG = "the good dogs running, a bad cat in unknown films! " * 6 + "Great."


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_head(tmp_path_factory.mktemp("m"), f"{request.param}ForQuestionAnswering")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_head(tmp_path_factory.mktemp("bert"), "BertForQuestionAnswering")


@cache
def reference(folder: Path, dtype: str) -> tuple[Any, Any]:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder, dtype=getattr(torch, dtype))
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder)


def spans(start: np.ndarray, end: np.ndarray, mask: np.ndarray, top_k: int, longest: int) -> Any:
    """Yield (first, last, score) of the best spans, and the score of the empty answer first."""
    start, end = (np.where(mask, -10000.0, logits) for logits in (start, end))
    start, end = (np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum() for logits in (start, end))
    yield start[0] * end[0]
    start[0] = end[0] = 0
    scores = {(i, j): start[i] * end[j] for i in range(len(start)) for j in range(i, min(i + longest, len(end)))}
    for (i, j), score in sorted(scores.items(), key=lambda item: -item[1])[:top_k]:
        if not mask[i] and not mask[j] and i:  # token 0, of score 0, is no answer here
            yield i, j, score


def expected_of(
    folder: Path, dtype: str, question: str, context: str, *, top_k: int = 1, max_answer_len: int = 15,
    max_seq_len: int = 64, doc_stride: int | None = None, handle_impossible_answer: bool = False,
    align_to_words: bool = True,
) -> list[dict[str, Any]]:  # fmt: skip
    import torch

    model, tokenizer = reference(folder, dtype)
    encoded = tokenizer(
        question, context, truncation="only_second", max_length=max_seq_len, return_overflowing_tokens=True,
        stride=min(max_seq_len // 2, 128) if doc_stride is None else doc_stride, return_offsets_mapping=True,
    )  # fmt: skip
    answers: list[dict[str, Any]] = []
    lowest = 1_000_000.0
    for i, ids in enumerate(encoded["input_ids"]):
        given = {name: torch.tensor([encoded[name][i]]) for name in tokenizer.model_input_names if name in encoded}
        with torch.no_grad():
            output = model(**given)
        mask = np.array([found != 1 for found in encoded.sequence_ids(i)])
        mask[np.array(ids) == tokenizer.cls_token_id] = False
        logits = (output[name][0].numpy().astype(np.float64) for name in ("start_logits", "end_logits"))
        empty, *found = spans(*logits, mask, 2 * top_k + 10 if align_to_words else top_k, max_answer_len)
        lowest = min(lowest, empty)
        for first, last, score in found:
            words = encoded.token_to_word(i, first), encoded.token_to_word(i, last)
            start, end = encoded["offset_mapping"][i][first][0], encoded["offset_mapping"][i][last][1]
            if align_to_words and None not in words:
                start = encoded.word_to_chars(i, words[0], 1).start
                end = encoded.word_to_chars(i, words[1], 1).end
            text = context[start:end]
            same = next((answer for answer in answers if answer["answer"].lower() == text.lower()), None)
            if same is None:
                answers.append({"score": score, "start": start, "end": end, "answer": text})
            else:
                same["score"] += score
    if handle_impossible_answer:
        answers.append({"score": lowest, "start": 0, "end": 0, "answer": ""})
    return sorted(answers, key=lambda answer: -answer["score"])[:top_k]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"top_k": 4},
    {"top_k": 30, "max_answer_len": 3},
    {"top_k": 5, "handle_impossible_answer": True},
    {"top_k": 4, "align_to_words": False},
    {"top_k": 6, "max_seq_len": 40, "doc_stride": 5},
    {"top_k": 6, "max_seq_len": 40, "doc_stride": 0, "max_answer_len": 1},
]


def places(answers: Any) -> list[dict[str, Any]]:
    rows = [answers] if isinstance(answers, dict) else answers
    return [{key: value for key, value in row.items() if key != "score"} for row in rows]


def scores(answers: Any) -> list[float]:
    return [row["score"] for row in ([answers] if isinstance(answers, dict) else answers)]


@pytest.mark.parametrize("context", [SHORT, LONG])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_answers_equal_the_algorithm_of_transformers_4(
    folder: Path, device: str, context: str, options: dict[str, Any]
) -> None:
    pipe: Any = fastattn.pipeline("question-answering", folder, device=device, max_seq_len=64)
    found = pipe(question=QUESTION, context=context, **options)
    expected = expected_of(folder, "float64", QUESTION, context, **options)
    assert places(found) == places(expected)
    assert isinstance(found, dict) == (len(expected) == 1)
    for answer in places(found):
        assert answer["answer"] == context[answer["start"] : answer["end"]]


def test_scores_equal_the_algorithm_of_transformers_4(folder: Path, device: str) -> None:
    """Of many answers, because errors are compared by their mean square."""
    pipe: Any = fastattn.pipeline("question-answering", folder, device=device, max_seq_len=64)
    options = {"top_k": 10**6, "max_answer_len": 8, "handle_impossible_answer": True}
    results = (
        pipe(question=QUESTION, context=LONG, **options),
        *(expected_of(folder, dtype, QUESTION, LONG, **options) for dtype in ("float64", "float32")),
    )
    by_place = [{row["answer"].lower(): row["score"] for row in answers} for answers in results]
    assert len(by_place[0]) > 50
    assert by_place[0].keys() == by_place[1].keys() == by_place[2].keys()
    assert_as_good_as(*([table[key] for key in sorted(table)] for table in by_place))


def test_the_ways_to_ask(bert: Path, device: str) -> None:
    pipe: Any = fastattn.pipeline("question-answering", bert, device=device)
    one, other = {"question": QUESTION, "context": SHORT}, {"question": "a cat", "context": LONG}
    first, second = pipe(one), pipe(**other)
    assert pipe([one]) == first
    for size in (1, 2, 32):
        for many in (pipe([one, other], batch_size=size), list(pipe(iter([one, other]))),
                     pipe(question=[QUESTION, "a cat"], context=[SHORT, LONG])):  # fmt: skip
            assert [places(found) for found in many] == [places(first), places(second)]
            assert_same_bits([found["score"] for found in many], [first["score"], second["score"]], device)
    same = pipe(question=[QUESTION, "a cat"], context=SHORT)
    assert places(same[0]) == places(first)
    assert pipe([]) == []
    assert places(pickle.loads(pickle.dumps(pipe))(one)) == places(first)


def test_no_answer(bert: Path) -> None:
    """A context without tokens has only the empty answer."""
    pipe: Any = fastattn.pipeline("question-answering", bert)
    assert pipe(question="a", context=" ") == {"score": 0.0, "start": 0, "end": 0, "answer": ""}
    assert pipe(question="a", context=" ", handle_impossible_answer=True)["answer"] == ""


@pytest.mark.parametrize(
    ("inputs", "options", "error", "message"),
    [
        (None, {}, InputError, "expected question= and context="),
        (None, {"question": "a"}, InputError, "expected question= and context="),
        ({"question": "a"}, {}, InputError, 'expected the keys "question" and "context"'),
        ({"question": "a", "context": ""}, {}, InputError, "got an empty one"),
        ({"question": "", "context": "a"}, {}, InputError, "got an empty one"),
        ("a", {}, DTypeError, "got str"),
        ([{"question": "a", "context": 3}], {}, DTypeError, r"inputs\[0\]"),
        ({"question": "a", "context": "a"}, {"question": "b"}, InputError, "expected None with question="),
        (None, {"question": ["a", "b"], "context": ["c"]}, InputError, "one for each of 2 questions, got 1"),
        ({"question": "a", "context": "a"}, {"top_k": 0}, InputError, "top_k"),
        ({"question": "a", "context": "a"}, {"max_answer_len": 0}, InputError, "max_answer_len"),
        ({"question": "a", "context": "a"}, {"max_seq_len": 67}, InputError, "max_seq_len"),
        ({"question": "a", "context": "a"}, {"max_seq_len": 9, "doc_stride": 10}, InputError, "doc_stride"),
        ({"question": "a", "context": LONG}, {"max_seq_len": 9, "doc_stride": 9}, InputError, "stride"),
        ({"question": "a " * 80, "context": LONG}, {}, InputError, "second"),
        (
            {"question": "a " * 37, "context": LONG},
            {},
            InputError,
            "^inputs: with max_seq_len 64, the question leaves too few",
        ),
        ({"question": "a", "context": "a"}, {"top_kk": 3}, InputError, "top_kk"),
    ],
)
def test_wrong_inputs(bert: Path, inputs: Any, options: dict[str, Any], error: Any, message: str) -> None:
    pipe: Any = fastattn.pipeline("question-answering", bert)
    with pytest.raises(error, match=message):
        pipe(inputs, **options)
