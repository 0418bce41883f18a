"""Pipelines: compares output shapes and values with transformers'."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn
from fastattn.errors import ContextLengthError, DTypeError, InputError
from tests.tasks.bounds import assert_as_good_as, assert_same_bits
from tests.tasks.tiny import write_bert_model, write_distilbert_model, write_gpt2_model, write_roberta_model

pytestmark = pytest.mark.torch
WORDS = ["good", "bad", "film", "a cat", "the dogs", "running", "great", "unknown"]
# Many, because errors are compared by their mean square.
MANY = [{"text": f"{a} {b}", "text_pair": f"{b}, {a}!"} for a in WORDS for b in WORDS] + [{"text": w} for w in WORDS]
TEXTS = ["good film", "a cat, the dogs running!", "unknown", ""]


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert_model(tmp_path_factory.mktemp("bert"), head=True)


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gpt2_model(tmp_path_factory.mktemp("gpt2"))


def reference(task: str, folder: Path, dtype: str = "float64") -> Any:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.set_num_threads(1)
    return transformers.pipeline(task, model=str(folder), dtype=getattr(torch, dtype), device="cpu")


def shape_of(value: Any) -> Any:
    """Return the nesting of lists and dicts, with the type in place of each float."""
    if isinstance(value, list):
        return [shape_of(item) for item in value]
    if isinstance(value, dict):
        return {key: item if isinstance(item, str) else type(item) for key, item in value.items()}
    return type(value)


def scores_of(value: Any) -> np.ndarray:
    return np.array([item["score"] if isinstance(item, dict) else scores_of(item) for item in value])


@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        ("good film", {}),
        (TEXTS, {}),
        ("good film", {"top_k": None}),
        (TEXTS, {"top_k": None}),
        ("good film", {"top_k": 1}),
        (TEXTS, {"top_k": 2}),
        (["good film"], {}),
        ({"text": "good film", "text_pair": "a bad dog"}, {}),
        ([{"text": "good film", "text_pair": "a bad dog"}, {"text": "good"}], {"top_k": None}),
        ("good film", {"function_to_apply": "sigmoid", "top_k": None}),
        ("good film", {"function_to_apply": "none", "top_k": None}),
    ],
)
def test_text_classification(bert_folder: Path, device: str, inputs: Any, options: dict[str, Any]) -> None:
    expected = reference("text-classification", bert_folder)(inputs, **options)
    found = fastattn.pipeline("text-classification", bert_folder, device=device, threads=1)(inputs, **options)
    assert shape_of(found) == shape_of(expected)


@pytest.mark.parametrize("function", [None, "sigmoid", "softmax", "none"])
def test_scores(bert_folder: Path, device: str, function: Any) -> None:
    options = {"function_to_apply": function, "top_k": None}
    found = fastattn.pipeline("text-classification", bert_folder, device=device, threads=1)(MANY, **options)
    exact, rough = (reference("text-classification", bert_folder, t)(MANY, **options) for t in ("float64", "float32"))
    assert shape_of(found) == shape_of(exact)
    assert_as_good_as(*(scores_of(x) for x in (found, exact, rough)))


@pytest.mark.parametrize("write", [write_distilbert_model, write_roberta_model])
def test_other_families(tmp_path: Path, device: str, write: Callable[[Path], Path]) -> None:
    folder = write(tmp_path / "m")
    inputs = MANY
    found = fastattn.pipeline("text-classification", folder, device=device, threads=1)(inputs, top_k=None)
    exact, rough = (
        reference("text-classification", folder, dtype)(inputs, top_k=None) for dtype in ("float64", "float32")
    )
    assert shape_of(found) == shape_of(exact)
    assert_as_good_as(*(scores_of(x) for x in (found, exact, rough)))
    vectors = fastattn.SentenceTransformer(folder, device=device, threads=1).encode(["good film", "a"])
    assert vectors.shape == (2, 32)


def test_classification_of_arrays(bert_folder: Path, device: str) -> None:
    pandas = pytest.importorskip("pandas")
    classifier = fastattn.pipeline("sentiment-analysis", bert_folder, device=device, threads=1)
    expected = classifier(TEXTS)
    assert classifier(np.array(TEXTS)) == expected
    assert classifier(pandas.Series(TEXTS, index=[5, 3, 2, 9])) == expected
    assert_same_bits(scores_of(classifier(tuple(TEXTS), batch_size=1)), scores_of(expected), device)
    assert classifier([]) == []


def test_one_label_and_regression(tmp_path: Path, device: str) -> None:
    one = {"id2label": {0: "x"}, "label2id": {"x": 0}}
    for name, problem in (("one", None), ("regression", "regression"), ("multi", "multi_label_classification")):
        options = {**({} if name == "multi" else one), "problem_type": problem}
        folder = write_bert_model(tmp_path / name, head=True, **options)
        found = fastattn.pipeline("text-classification", folder, device=device, threads=1)(MANY, top_k=None)
        exact, rough = (reference("text-classification", folder, t)(MANY, top_k=None) for t in ("float64", "float32"))
        assert shape_of(found) == shape_of(exact)
        assert_as_good_as(*(scores_of(x) for x in (found, exact, rough)))


def test_classification_refuses(bert_folder: Path, gpt2_folder: Path) -> None:
    classifier = fastattn.pipeline("text-classification", bert_folder, device="numpy", threads=1)
    with pytest.raises(ContextLengthError, match=r"inputs\[1\]: 102 tokens, the model's context is 64") as caught:
        classifier(["good", "good " * 100], batch_size=1)
    assert (caught.value.index, caught.value.n_tokens, caught.value.context) == (1, 102, 64)
    assert len(classifier("good " * 100, truncation=True)) == 1
    with pytest.raises(DTypeError, match=r"inputs\[1\]"):
        classifier(["good", None])
    with pytest.raises(InputError, match="text_pair"):
        classifier({"text": "a", "other": "b"})
    with pytest.raises(InputError, match="task: expected one of"):
        fastattn.pipeline("image-classification", bert_folder)  # type: ignore[call-overload]
    with pytest.raises(DTypeError, match="model: expected a path, a hub id or a loaded CausalLM, got SequenceCl"):
        fastattn.pipeline("text-generation", classifier.model)  # type: ignore[call-overload]


def test_text_generation(gpt2_folder: Path, device: str) -> None:
    expected = reference("text-generation", gpt2_folder)
    found = fastattn.pipeline("text-generation", gpt2_folder, device=device, threads=1)
    options = {"max_new_tokens": 8, "do_sample": False}
    assert found("the hello", **options) == expected("the hello", **options)
    batch = ["the hello", "a", "in all"]
    assert found(batch, **options) == expected(batch, **options)
    new = found("the hello", return_full_text=False, **options)
    assert new == expected("the hello", return_full_text=False, **options)
    assert found([], **options) == []


def test_text_generation_samples_until_the_context_is_full(gpt2_folder: Path) -> None:
    generator = fastattn.pipeline("text-generation", gpt2_folder, device="numpy", threads=1)
    text = generator("the hello", seed=3, eos_token_id=-1)[0]["generated_text"]
    assert text.startswith("the hello")
    assert generator("the hello", seed=3, eos_token_id=-1)[0]["generated_text"] == text
    assert generator("the hello", seed=4, eos_token_id=-1)[0]["generated_text"] != text
    cut = generator("the hello", seed=3, eos_token_id=-1, stop_strings=[text[12:14]])[0]["generated_text"]
    assert cut == text[: text.index(text[12:14], 9)]


def test_a_table_is_not_a_list_of_texts(gpt2_folder: Path, bert_folder: Path) -> None:
    """Iterating over a DataFrame yields the names of its columns."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": TEXTS})
    for task, folder in (("text-generation", gpt2_folder), ("text-classification", bert_folder)):
        pipe: Any = fastattn.pipeline(task, folder, device="numpy", threads=1)  # type: ignore[call-overload]
        for table in (frame, np.array([TEXTS])):
            with pytest.raises(InputError, match="inputs: expected one dimension of str, got a"):
                pipe(table)
            with pytest.raises(InputError, match="text: expected one dimension of str, got a"):
                pipe.tokenizer(table)
    features = fastattn.pipeline("feature-extraction", bert_folder, device="numpy", threads=1)
    with pytest.raises(InputError, match=r"inputs: expected one dimension of str, got a DataFrame.*; pass one column"):
        features(frame)


def test_what_objects_say_of_themselves(bert_folder: Path) -> None:
    classifier = fastattn.pipeline("text-classification", bert_folder, device="numpy", threads=1)
    model = f"<SequenceClassifier bert from {str(bert_folder)!r}>"
    assert repr(classifier) == f"<TextClassificationPipeline of {model}>"
    assert repr(classifier.tokenizer) == f"<Tokenizer WordPiece with {len(classifier.tokenizer)} tokens>"
    vectors = fastattn.SentenceTransformer(bert_folder, device="numpy", threads=1)
    assert repr(vectors) == f"<SentenceTransformer of {vectors.model!r}, 32 numbers, 64 tokens>"


def test_a_with_block_frees_the_memory(gpt2_folder: Path, bert_folder: Path) -> None:
    with fastattn.pipeline("text-generation", gpt2_folder, threads=1) as generator:
        generator("the", max_new_tokens=1)
    with fastattn.pipeline("text-classification", bert_folder, threads=1) as classifier:
        classifier("good film")
    with fastattn.pipeline("feature-extraction", bert_folder, threads=1) as extractor:
        extractor("good film")
    with fastattn.SentenceTransformer(bert_folder, threads=1) as vectors:
        vectors.encode("good film")
    calls = (lambda: generator("the", max_new_tokens=1), lambda: classifier("a"), lambda: extractor("a"))
    for call in (*calls, lambda: vectors.encode("a")):
        with pytest.raises(InputError, match="close"):
            call()


def test_feature_extraction(bert_folder: Path, device: str) -> None:
    expected = reference("feature-extraction", bert_folder)
    found = fastattn.pipeline("feature-extraction", bert_folder, device=device, threads=1)
    one = np.array(found("good film"))
    assert one.shape == (1, 4, 32)
    assert_as_good_as(one, expected("good film"), reference("feature-extraction", bert_folder, "float32")("good film"))
    many = found(TEXTS)
    assert [np.shape(x) for x in many] == [np.shape(x) for x in expected(TEXTS)]
    array = found("good film", return_tensors=True)
    assert array.shape == (1, 4, 32)
    assert array.tolist() == found("good film")
