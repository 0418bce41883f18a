"""Pipelines of iterators and data sets: lazy results in order, with the bits of each text alone; shared steps."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn
from fastattn.errors import ContextLengthError, DTypeError, InputError
from fastattn.generation import request_seed
from fastattn.tasks.pipeline_steps import DEFAULT_BATCH_SIZE, WINDOW_STEPS, StepLimits
from tests.tasks.tiny import write_bert_model, write_gpt2_model, write_head

pytestmark = pytest.mark.torch
TEXTS = ["good film", "a bad dog", "the dogs, running unknown cats! " * 3, "", "great", "a cat. " * 12, "un"]
PAIRS: list[Any] = ["good", ("good film", "bad dog"), {"text": "a", "text_pair": "the cat"}, {"text": "film"}]
QUESTIONS = [{"question": "a good dog?", "context": text} for text in TEXTS if text]
MASKED = [f"{text} [MASK]" for text in TEXTS]
WORDS = [["good", "film"], ["unknown", "cats", "!"], ["dogs"]]
LABELS = {0: "O", 1: "B-X", 2: "I-X"}
CASES: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "text-classification": ("BertForSequenceClassification", PAIRS + TEXTS, {"top_k": None}),
    "feature-extraction": ("BertModel", TEXTS, {}),
    "fill-mask": ("BertForMaskedLM", MASKED, {}),
    "token-classification": ("BertForTokenClassification", TEXTS, {"aggregation_strategy": "max", "ignore_labels": []}),
    "words": ("BertForTokenClassification", WORDS, {"is_split_into_words": True}),
    "question-answering": ("BertForQuestionAnswering", QUESTIONS, {"max_seq_len": 20, "doc_stride": 4}),
    "zero-shot-classification": ("BertForSequenceClassification", TEXTS[:4], {"candidate_labels": "good,bad,fair"}),
    "text-generation": ("GPT2", ["the hello", "a", "in all the", "hello"], {"max_new_tokens": 4, "do_sample": False}),
}


@pytest.fixture(scope="module")
def pipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, (model_class, _, options) in CASES.items():
        folder = tmp_path_factory.mktemp("m")
        if model_class == "GPT2":
            write_gpt2_model(folder)
        elif model_class == "BertForSequenceClassification":
            write_bert_model(folder, head=True)
        else:
            write_head(folder, model_class, **({"id2label": LABELS} if "Token" in model_class else {}))
        task: Any = "token-classification" if name == "words" else name
        found[name] = fastattn.pipeline(task, folder, threads=1, **options)
    return found


@pytest.fixture(scope="module")
def classify(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return fastattn.pipeline(
        "text-classification", write_bert_model(tmp_path_factory.mktemp("bert"), head=True), threads=1
    )


def alone(pipe: Any, name: str, item: Any) -> Any:
    found = pipe([item])
    return found[0] if isinstance(found, list) and name not in ("fill-mask", "question-answering") else found


@pytest.mark.parametrize("name", CASES)
def test_each_result_has_the_bits_of_its_item_alone(pipes: dict[str, Any], name: str) -> None:
    pipe, items = pipes[name], CASES[name][1]
    expected = [alone(pipe, name, item) for item in items]
    batches: list[dict[str, Any]] = [{}, {"batch_size": 1}, {"batch_size": 2}, {"batch_size": 3}]
    if name != "text-generation":
        batches += [{"max_batch_tokens": 1}, {"max_batch_tokens": 30}, {"max_batch_tokens": 40, "batch_size": 2}]
    for options in batches:
        assert pipe(items, **options) == expected
        results = pipe(iter(items), **options)
        assert isinstance(results, Iterator)
        assert list(results) == expected
    assert list(pipe(iter([]))) == []


def test_seeds_of_an_iterator_are_those_of_a_list(pipes: dict[str, Any]) -> None:
    pipe, items = pipes["text-generation"], CASES["text-generation"][1]
    options: dict[str, Any] = {"do_sample": True, "seed": 5, "num_return_sequences": 2, "max_new_tokens": 8}
    expected = pipe(items, **options)
    assert list(pipe(iter(items), **options)) == list(pipe(iter(items), batch_size=1, **options)) == expected
    third = pipe(items[1], **{**options, "seed": request_seed(5, 2), "num_return_sequences": 1})
    assert third[0] == expected[1][0]
    with pytest.raises(InputError, match="seed: expected one int for an iterator"):
        pipe(iter(items), do_sample=True, seed=[1, 2, 3, 4])
    with pytest.raises(InputError, match="streamer: expected one sequence, got an iterator"):
        pipe(iter(items), streamer=object())


# -- laziness ---------------------------------------------------------------------------------------------------------


class Counted:
    """A generator of texts that counts the texts it has given."""

    def __init__(self, n_texts: int = 10**9) -> None:
        self.read, self.n_texts = 0, n_texts

    def __iter__(self) -> Iterator[str]:
        for i in range(self.n_texts):
            self.read += 1
            yield f"good film {'a ' * (i % 5)}"


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread tokenizes ahead of the model; test_pipeline_ahead.py has what is read with one."""
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)


@pytest.mark.usefixtures("plain")
def test_texts_are_read_on_demand_in_windows(classify: Any) -> None:
    source = Counted()
    results = classify(iter(source))
    assert source.read == 0
    next(results)
    assert source.read == DEFAULT_BATCH_SIZE  # the first window has one step
    for _ in range(20 * WINDOW_STEPS * DEFAULT_BATCH_SIZE // 8):
        next(results)
        assert source.read <= 40 * WINDOW_STEPS * DEFAULT_BATCH_SIZE
    before = source.read
    results.close()
    assert list(results) == []
    assert source.read == before


def test_one_text_at_a_time(classify: Any) -> None:
    """With batch_size=1 a text may depend on the result before it."""
    said: list[str] = []

    def texts() -> Iterator[str]:
        yield "good"
        for _ in range(3):
            yield said[-1]

    results = classify(texts(), batch_size=1)
    while (found := next(results, None)) is not None:
        said.append(found["label"])
    assert len(said) == 4


def test_an_iterable_without_length_is_read_like_an_iterator(classify: Any) -> None:
    source = Counted(5)
    results = classify(source)
    assert isinstance(results, Iterator)
    assert len(list(results)) == source.read == 5


@pytest.mark.usefixtures("plain")
def test_memory_does_not_grow_with_the_number_of_texts(classify: Any) -> None:
    def peak(n_texts: int) -> int:
        gc.collect()
        tracemalloc.start()
        try:
            assert sum(1 for _ in classify(iter(Counted(n_texts)))) == n_texts
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few = peak(2 * WINDOW_STEPS * DEFAULT_BATCH_SIZE)
    many = peak(8 * WINDOW_STEPS * DEFAULT_BATCH_SIZE)
    assert many < 1.5 * few


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("n_before", [0, 2])
def test_an_error_of_the_source_follows_the_results_before_it(pipes: dict[str, Any], name: str, n_before: int) -> None:
    pipe, items = pipes[name], CASES[name][1]

    def source() -> Iterator[Any]:
        yield from items[:n_before]
        raise KeyError("the file ended early")

    results = pipe(source())
    assert [next(results) for _ in range(n_before)] == [alone(pipe, name, item) for item in items[:n_before]]
    with pytest.raises(KeyError, match="the file ended early"):
        next(results)
    assert list(results) == []


@pytest.mark.parametrize("name", CASES)
def test_an_item_that_is_refused_follows_the_results_before_it(pipes: dict[str, Any], name: str) -> None:
    pipe, items = pipes[name], CASES[name][1]
    results = pipe(iter([items[0], items[1], 3, items[0]]))
    assert [next(results), next(results)] == [alone(pipe, name, item) for item in items[:2]]
    with pytest.raises(DTypeError, match=r"inputs\[2\]|sequences\[2\]") as caught:
        next(results)
    assert caught.value.index == 2
    assert caught.value.item in ("inputs[2]", "sequences[2]", "text_inputs[2]")
    assert str(caught.value).startswith(caught.value.item)


def test_a_text_that_is_too_long_follows_the_results_before_it(classify: Any) -> None:
    results = classify(iter(["good", "a " * 100, "bad"]))
    assert next(results) == classify("good")[0]
    with pytest.raises(ContextLengthError, match=r"^inputs\[1\]: 102 tokens") as caught:
        next(results)
    assert caught.value.index == 1


def test_a_result_that_is_not_finite_follows_the_results_before_it(classify: Any) -> None:
    """The long text is computed first, in a step of its own."""
    model = classify.model
    compute = type(model).__call__

    class Broken:
        """The model, whose logits of long texts are NaN."""

        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

        def __call__(self, ids: list[np.ndarray], **options: Any) -> Any:
            output = compute(model, ids, **options)
            output.logits[[len(row) > 10 for row in ids]] = np.nan
            return output

    from fastattn.errors import NonFiniteError

    pipe = fastattn.pipeline("text-classification", model)
    pipe.model = Broken()  # type: ignore[assignment]
    results: Any = pipe(iter(["good", "bad", "a " * 20, "good"]))
    assert [next(results), next(results)] == classify(["good", "bad"])
    with pytest.raises(NonFiniteError, match=r"^inputs\[2\]: expected finite scores") as caught:
        next(results)
    assert (caught.value.index, caught.value.item) == (2, "inputs[2]")


def test_arguments_are_checked_before_the_first_result(classify: Any) -> None:
    for options in ({"max_batch_tokens": 0}, {"batch_size": 0}, {"show_progress_bar": 1}, {"top_k": -1}):
        with pytest.raises((InputError, DTypeError), match=next(iter(options))):
            classify(iter(["good"]), **options)


# -- containers -------------------------------------------------------------------------------------------------------


def containers(texts: list[str]) -> Iterable[tuple[str, Any]]:
    yield "tuple", tuple(texts)
    yield "array", np.array(texts)
    yield "array of objects", np.array(texts, object)
    yield "dict values", dict(enumerate(texts)).values()
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    yield "pandas", pandas.DataFrame({"text": texts}, index=range(7, 7 + len(texts)))["text"]
    yield "arrow", pyarrow.chunked_array([texts[:2], texts[2:]])


def test_columns_give_lists(classify: Any) -> None:
    expected = classify(TEXTS)
    for name, column in containers(TEXTS):
        found = classify(column)
        assert isinstance(found, list), name
        assert found == expected, name


def test_a_column_of_polars(classify: Any) -> None:
    polars = pytest.importorskip("polars")
    assert classify(polars.DataFrame({"text": TEXTS})["text"]) == classify(TEXTS)


def test_a_data_set_of_hugging_face(classify: Any) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"text": TEXTS})
    expected = classify(TEXTS)
    assert classify(table["text"]) == expected
    assert list(classify(row["text"] for row in table)) == expected
    stream = table.to_iterable_dataset().select_columns("text")
    assert list(classify(row["text"] for row in stream)) == expected
    with pytest.raises(InputError, match="inputs"):
        classify(table)


def test_a_data_set_of_torch_is_read_lazily_as_in_transformers(classify: Any, pipes: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.pipelines.pt_utils import KeyDataset, KeyPairDataset

    rows = [{"text": text, "other": "a dog"} for text in TEXTS]
    theirs = transformers.pipeline("text-classification", model=str(classify.model.path), device="cpu")
    results, expected = classify(KeyDataset(rows, "text")), theirs(KeyDataset(rows, "text"))
    assert isinstance(results, Iterator)
    assert len(results) == len(expected) == len(TEXTS)
    assert [row["label"] for row in expected] == [row["label"] for row in classify(TEXTS)]
    assert list(results) == classify(TEXTS)
    assert list(classify(KeyPairDataset(rows, "text", "other"))) == classify([(text, "a dog") for text in TEXTS])
    closed = classify(KeyDataset(rows, "text"))
    closed.close()
    assert list(closed) == []
    assert list(pipes["token-classification"](KeyDataset(rows, "text"))) == pipes["token-classification"](TEXTS)


@pytest.mark.parametrize("lazy", [False, True])
def test_a_text_without_tokens_is_refused_by_its_name(classify: Any, lazy: bool) -> None:
    texts = ["good", "", "a bad dog"]
    found: list[Any] = []
    with pytest.raises(InputError, match=r"^inputs\[1\]: expected at least one token, got none") as caught:
        found.extend(classify(iter(texts) if lazy else texts, add_special_tokens=False))
    assert found == classify(texts[:1] if lazy else [], add_special_tokens=False)
    assert (caught.value.index, caught.value.item) == (1, "inputs[1]")


def test_an_iterator_with_a_length_is_read_lazily(classify: Any) -> None:
    import torch
    from tqdm import tqdm

    class Texts(torch.utils.data.Dataset[str]):
        def __len__(self) -> int:
            return len(TEXTS)

        def __getitem__(self, index: int) -> str:
            return TEXTS[index]

    expected = classify(TEXTS)
    first = classify(Texts())
    assert len(first) == len(TEXTS)
    assert list(classify(label["label"] for label in first)) == classify([label["label"] for label in expected])

    class Labels(Iterator[str]):
        def __init__(self) -> None:
            self.results = classify(Texts())

        def __len__(self) -> int:
            return len(TEXTS)

        def __next__(self) -> str:
            return str(next(self.results)["label"])

    found = classify(Labels())
    assert isinstance(found, Iterator)
    assert list(found) == classify([label["label"] for label in expected])
    for bar in (tqdm((text for text in TEXTS), disable=True), tqdm(iter(TEXTS), disable=True)):
        assert list(classify(bar)) == expected  # its len() raises TypeError


def test_a_file_is_an_iterator_of_lines(classify: Any, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("good film\na bad dog\n")
    with open(tmp_path / "lines.txt") as file:
        assert list(classify(line.rstrip("\n") for line in file)) == classify(["good film", "a bad dog"])


# -- steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, [[1, 4, 0, 3, 2]]),
        ({"batch_size": 2}, [[1, 4], [0, 3], [2]]),
        ({"max_batch_tokens": 20}, [[1], [4, 0], [3, 2]]),
        ({"max_batch_tokens": 20, "batch_size": 1}, [[1], [4], [0], [3], [2]]),
        ({"max_batch_tokens": 10**6}, [[1, 4, 0, 3, 2]]),
    ],
)
def test_similar_lengths_share_a_step(limits: dict[str, int], expected: list[list[int]]) -> None:
    """The longest first; one that is longer than max_batch_tokens has a step of its own."""
    assert list(StepLimits(**limits).steps([9, 30, 2, 5, 11])) == expected
    assert list(StepLimits(**limits).steps([])) == []


def test_the_model_gets_no_larger_steps(classify: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    model = type(classify.model)
    compute = model.__call__

    def counted(self: Any, ids: Any, *rest: Any, **options: Any) -> Any:
        seen.append([len(row) for row in ids])
        return compute(self, ids, *rest, **options)

    monkeypatch.setattr(model, "__call__", counted)
    texts = [f"good {'a ' * (i * 7 % 50)}" for i in range(60)]
    classify(texts, max_batch_tokens=120)
    assert sum(map(len, seen)) == 60
    assert all(sum(step) <= 120 for step in seen)
    assert sum(map(sum, seen)) / len(seen) > 90
    assert all(max(step) - min(step) <= 10 for step in seen[:-1])
    seen.clear()
    classify(texts, batch_size=16)
    assert [len(step) for step in seen] == [16, 16, 16, 12]


# -- the progress bar -------------------------------------------------------------------------------------------------


class Bar:
    """Takes the place of tqdm."""

    made: list[Bar] = []  # noqa: RUF012

    def __init__(self, *, total: int | None, delay: float, **_: object) -> None:
        self.total, self.delay, self.done = total, delay, 0
        Bar.made.append(self)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, count: int) -> None:
        self.done += count


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("show", [None, False, True])
@pytest.mark.parametrize("lazy", [False, True])
def test_the_progress_bar(
    pipes: dict[str, Any], monkeypatch: pytest.MonkeyPatch, terminal: bool, show: bool | None, lazy: bool
) -> None:
    """On a terminal, but not for an iterator, unless it is asked for. It counts items, not their sequences."""
    import tqdm.auto

    from fastattn.tasks import progress

    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)
    monkeypatch.setattr(progress, "on_terminal", lambda: terminal)
    for name, pipe in pipes.items():
        Bar.made.clear()
        items = CASES[name][1]
        list(pipe(iter(items) if lazy else items, show_progress_bar=show))
        if show or (show is None and terminal and not lazy):
            (bar,) = Bar.made
            assert (bar.total, bar.done) == (None if lazy else len(items), len(items))
            assert (bar.delay > 0) == (not show)
        else:
            assert not Bar.made
