"""Compares prompts, lengths, widths and similarities of SentenceTransformer with sentence-transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn
from fastattn.errors import ConfigError, DTypeError, InputError
from tests.tasks.bounds import assert_as_good_as
from tests.tasks.sentence_folders import (
    NORMALIZE,
    POOLING,
    TEXTS,
    WIDTH,
    change_json,
    random,
    write_json,
    write_model,
    write_transformer,
)
from tests.tasks.sentence_reference import Reference

pytestmark = pytest.mark.torch
ATTRIBUTES = ("prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim", "max_seq_length")


def compare(folder: Path, *, texts: list[str] = TEXTS, **options: Any) -> fastattn.SentenceTransformer:
    """Assert that attributes and vectors of all encode methods equal those of sentence-transformers; return ours."""
    found, expected = fastattn.SentenceTransformer(folder, threads=1, **options), Reference(folder, **options)
    for name in ATTRIBUTES:
        assert getattr(found, name) == getattr(expected.exact, name), name
    assert found.get_embedding_dimension() == expected.exact.get_embedding_dimension()
    calls: list[tuple[str, dict[str, Any]]] = [
        ("encode", {}), ("encode_query", {}), ("encode_document", {}), ("encode", {"prompt": "the "}),
        ("encode", {"prompt": ""}), ("encode", {"task": "query"}), ("encode_query", {"prompt": "cat "}),
        ("encode_document", {"prompt_name": "query"}), ("encode", {"normalize_embeddings": True, "truncate_dim": 6}),
    ]  # fmt: skip
    models = (found, expected.exact, expected.rough)
    results = [[getattr(model, method)(texts, **arguments) for method, arguments in calls] for model in models]
    assert len({tuple(array.shape for array in arrays) for arrays in results}) == 1
    assert_as_good_as(*(np.concatenate([array.ravel() for array in arrays]) for arrays in results))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "m", POOLING)


@pytest.mark.parametrize("given", [None, {}, {"query": "dog "}, {"query": ""}, {"passage": "film "}, {"x": "a "}])
@pytest.mark.parametrize(
    "saved",
    [
        None,
        {},
        {"query": "the film: ", "document": None},
        {"document": "cat ", "passage": "a "},
        {"passage": "a ", "corpus": "b "},
    ],
)
def test_prompts_of_caller_and_folder(folder: Path, given: Any, saved: Any) -> None:
    change_json(folder / "config_sentence_transformers.json", prompts=saved)
    compare(folder, prompts=given)


@pytest.mark.parametrize(("saved", "given"), [("query", None), (None, "x"), ("query", "x"), ("x", None)])
def test_the_default_prompt(folder: Path, saved: str | None, given: str | None) -> None:
    change_json(folder / "config_sentence_transformers.json", prompts={"query": "good "}, default_prompt_name=saved)
    compare(folder, prompts={"x": "running "}, default_prompt_name=given)


def test_prompts_of_other_models(tmp_path: Path) -> None:
    """Without modules.json, or in a folder of another kind of model, prompts and settings do not apply."""
    plain = write_transformer(tmp_path / "plain")
    write_json(plain / "config_sentence_transformers.json", {"prompts": {"query": "x "}, "similarity_fn_name": "dot"})
    write_json(plain / "sentence_bert_config.json", {"max_seq_length": 5})
    found = compare(plain)
    assert (found.max_seq_length, found.similarity_fn_name) == (64, "cosine")
    other = write_model(
        tmp_path / "other", NORMALIZE, settings={"model_type": "CrossEncoder", "prompts": {"query": "x "}}
    )
    compare(other)


def test_names_of_prompts(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = fastattn.SentenceTransformer(folder, threads=1, prompts={"x": "running "})
    assert model.encode("a", prompt_name="x").tobytes() == model.encode("running a").tobytes()
    assert model.encode("a", prompt="the ", prompt_name="x").tobytes() == model.encode("the a").tobytes()
    assert "prompt_name 'x' is ignored" in caplog.text
    for name in ("", "passage", "y" * 10_000):
        with pytest.raises(InputError, match=r"^prompt_name: expected one of the prompts") as caught:
            model.encode("a", prompt_name=name)
        assert len(str(caught.value)) < 300
    for bad in (3, ["x"], b"x"):
        with pytest.raises(DTypeError, match="prompt_name"):
            model.encode("a", prompt_name=bad)  # type: ignore[call-overload]
    model.default_prompt_name = "gone"
    with pytest.raises(InputError, match="default_prompt_name"):
        model.encode("a")
    for prompts in ({"x": 3}, {3: "x"}, ["x"], "x"):
        with pytest.raises(DTypeError, match="prompts"):
            fastattn.SentenceTransformer(folder, prompts=prompts)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^default_prompt_name: expected one of"):
        fastattn.SentenceTransformer(folder, default_prompt_name="missing")


@pytest.mark.parametrize("length", [None, 3, 16, 64])
@pytest.mark.parametrize("tokenizer", [None, 10, 64, 10**30])
def test_the_length_of_texts(folder: Path, length: int | None, tokenizer: int | None) -> None:
    change_json(folder / "tokenizer_config.json", model_max_length=tokenizer)
    change_json(folder / "sentence_bert_config.json", max_seq_length=length, do_lower_case=False)
    compare(folder)


def test_the_length_of_texts_beyond_the_context(folder: Path) -> None:
    """sentence-transformers fails for a text longer than the 64 positions; ours is cut to them."""
    change_json(folder / "sentence_bert_config.json", max_seq_length=500)
    model = fastattn.SentenceTransformer(folder, threads=1)
    assert model.max_seq_length == 64
    Reference(folder).check(model.encode(TEXTS), "encode", TEXTS)
    assert len(model.encode("bad " * 100, output_value="token_embeddings")) == 64


@pytest.mark.parametrize(
    "options",
    [
        {"model_max_length": 7},
        {"truncation_side": "left"},
        {"model_max_length": 9, "truncation_side": "left", "do_lower_case": False},
    ],
)
@pytest.mark.parametrize("name", ["processor_kwargs", "tokenizer_kwargs"])
def test_processor_kwargs(folder: Path, options: dict[str, Any], name: str) -> None:
    change_json(folder / "sentence_bert_config.json", max_seq_length=12)
    compare(folder, **{name: options})


def test_the_side_of_pads_changes_nothing(folder: Path) -> None:
    """sentence-transformers gives different vectors for a BERT padded on the left, but not for a single text."""
    options: dict[str, Any] = {"processor_kwargs": {"padding_side": "left"}}
    model, expected = fastattn.SentenceTransformer(folder, threads=1, **options), Reference(folder, **options)
    assert model.tokenizer.padding_side == "left"
    exact, rough = (np.stack([one.encode(text) for text in TEXTS]) for one in (expected.exact, expected.rough))
    assert_as_good_as(model.encode(TEXTS), exact, rough)


@pytest.mark.parametrize("length", [1, 5, 40])
def test_setting_the_length(folder: Path, length: int) -> None:
    model, expected = fastattn.SentenceTransformer(folder, threads=1), Reference(folder)
    length = max(length, 2)
    model.max_seq_length = expected.exact.max_seq_length = expected.rough.max_seq_length = length
    expected.check(model.encode(TEXTS), "encode", TEXTS)
    assert model.max_seq_length == model.get_max_seq_length() == model.tokenizer.model_max_length == length
    model.tokenizer.model_max_length = 4
    assert len(model.encode("a " * 9, output_value="token_embeddings")) == model.max_seq_length == 4
    model.max_seq_length = None
    assert model.max_seq_length == 64
    for bad, error in ((0, InputError), (65, InputError), (True, DTypeError), ("5", DTypeError), (5.0, DTypeError)):
        with pytest.raises(error, match=r"^max_seq_length: "):
            model.max_seq_length = bad


@pytest.mark.parametrize(
    "settings",
    [
        {"query_length": 4},
        {"document_length": 5, "query_length": 30},
        {"processing_kwargs": {"text": {"max_length": 6}}},
        {"processing_kwargs": {"common": {"max_length": 6}, "text": {"max_length": 3, "padding": "max_length"}}},
        {"tokenizer_args": {"model_max_length": 6}},
        {"processor_kwargs": {"model_max_length": 6}, "max_seq_length": 9},
        {"tokenizer_args": {"truncation_side": "left"}, "processor_kwargs": {"model_max_length": 6}},
        {"tokenizer_args": {}, "processor_kwargs": {"model_max_length": 6}, "max_seq_length": 9},
        {"model_args": {"attn_implementation": "eager"}, "config_args": {"use_cache": False}},
        {"transformer_task": "feature-extraction", "unpad_inputs": False},
    ],
)
def test_settings_of_the_transformer(folder: Path, settings: dict[str, Any]) -> None:
    change_json(folder / "sentence_bert_config.json", **settings)
    compare(folder)


def test_lengths_of_one_call(folder: Path) -> None:
    model, expected = fastattn.SentenceTransformer(folder, threads=1), Reference(folder)
    for settings in (
        {"text": {"max_length": 5}},
        {"text": {"truncation": "only_first", "max_length": 7}},
        {"common": {}},
    ):
        options = {"processing_kwargs": settings}
        expected.check(model.encode(TEXTS, **options), "encode", TEXTS, **options)
    short = TEXTS[:3]
    options = {"processing_kwargs": {"text": {"truncation": False}}}
    expected.check(model.encode(short, **options), "encode", short, **options)
    with pytest.raises(InputError):
        model.encode("bad " * 100, **options)
    for bad in ({"text": {"add_special_tokens": False}}, {"texts": {}}, {"text": {"max_length": 0}}):
        with pytest.raises(InputError, match="processing_kwargs"):
            model.encode("a", processing_kwargs=bad)
    with pytest.raises(DTypeError, match="processing_kwargs"):
        model.encode("a", processing_kwargs={"text": {"truncation": 1}})


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("tokenizer", [True, False])
def test_lowercase(folder: Path, lower: bool, tokenizer: bool) -> None:
    """Special tokens in a text are found before it is lowercased."""
    change_json(folder / "tokenizer_config.json", do_lower_case=tokenizer)
    change_json(folder / "sentence_bert_config.json", do_lower_case=lower)
    compare(folder, texts=["Good FILM", "[SEP] A [MASK] Cat", "İSTANBUL ΣΑΣ", "a"])


@pytest.mark.parametrize(("saved", "given"), [(None, 7), (7, None), (7, 5), (100, None)])
def test_truncate_dim(folder: Path, saved: int | None, given: int | None) -> None:
    change_json(folder / "config_sentence_transformers.json", truncate_dim=saved)
    model = compare(folder, truncate_dim=given)
    with model.truncate_embeddings(3):
        assert model.encode("a").shape == (3,)
    with model.truncate_sentence_embeddings(None):
        assert model.encode("a").shape == (WIDTH,)
    assert model.truncate_dim == (given or saved)
    for bad, error in ((0, InputError), (-3, InputError), ("7", DTypeError), (True, DTypeError), (7.0, DTypeError)):
        with pytest.raises(error, match=r"^truncate_dim: "):
            model.truncate_dim = bad
        with pytest.raises(error, match=r"^truncate_dim: "):
            model.encode("a", truncate_dim=bad)
        with pytest.raises(error, match=r"^truncate_dim: "):
            fastattn.SentenceTransformer(folder, truncate_dim=bad)


@pytest.mark.parametrize("saved", [None, "dot", "euclidean", "manhattan", "cosine", "maxsim"])
@pytest.mark.parametrize("given", [None, "dot", "manhattan"])
def test_similarity(folder: Path, saved: str | None, given: Any, caplog: pytest.LogCaptureFixture) -> None:
    change_json(folder / "config_sentence_transformers.json", similarity_fn_name=saved)
    found, theirs = (
        fastattn.SentenceTransformer(folder, similarity_fn_name=given),
        Reference(folder, similarity_fn_name=given),
    )
    assert found.similarity_fn_name == theirs.exact.similarity_fn_name
    assert ("maxsim" in caplog.text) == (saved == "maxsim")
    a, b = random(5, WIDTH), random(5, WIDTH, seed=1)
    b[2] = 0
    for method in ("similarity", "similarity_pairwise"):
        for first, second in ((a, b), (a[0], b[0]), (list(a), list(b)), (a.tolist(), b.tolist())):
            wide = [np.asarray(x, np.float64) for x in (first, second)]
            exact = getattr(theirs.exact, method)(*wide)
            ours = getattr(found, method)(first, second)
            assert ours.dtype == np.float32
            assert_as_good_as(ours, exact, getattr(theirs.exact, method)(first, second))
            assert getattr(found, method)(*wide).dtype == np.float64
    with pytest.raises(InputError, match="embeddings2: expected"):
        found.similarity_pairwise(a, b[:3])


def test_setting_the_similarity(folder: Path) -> None:
    from sentence_transformers import SimilarityFunction

    model = fastattn.SentenceTransformer(folder)
    a = random(3, WIDTH)
    for name in (SimilarityFunction.DOT_PRODUCT, "dot"):
        model.similarity_fn_name = name
        assert model.similarity_fn_name == "dot"
        assert np.allclose(model.similarity(a, a), a @ a.T)
    model.similarity_fn_name = None
    assert model.similarity_fn_name == "cosine"
    for bad, error in (("maxsim", InputError), ("cosin", InputError), (3, DTypeError), (["dot"], DTypeError)):
        with pytest.raises(error, match=r"^similarity_fn_name: expected one of cosine, dot"):
            model.similarity_fn_name = bad


def test_tensors_have_similarities(folder: Path) -> None:
    torch = pytest.importorskip("torch")
    model, a = fastattn.SentenceTransformer(folder), random(3, WIDTH)
    expected = model.similarity(a, a)
    assert np.array_equal(model.similarity(torch.from_numpy(a), list(torch.from_numpy(a))), expected)
    with pytest.raises(DTypeError, match=r"^embeddings1: "):
        model.similarity(torch.from_numpy(a).requires_grad_(), a)


def test_plain_folders_are_pooled_by_mean_or_last_token(tmp_path: Path) -> None:
    folder = write_transformer(tmp_path / "m")
    assert type(compare(folder)[1]).__name__ == "Pooling"
    change_json(folder / "tokenizer_config.json", chat_template="{{ messages }}")
    with pytest.raises(ConfigError, match="chat template"):
        fastattn.SentenceTransformer(folder)


def test_a_tokenizer_without_masks(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """sentence-transformers then pads a batch without a mask; one text at a time, the vectors are equal."""
    change_json(folder / "tokenizer_config.json", model_input_names=["input_ids"])
    found = fastattn.SentenceTransformer(folder, threads=1).encode(TEXTS)
    assert "model_input_names has no attention_mask: sentence-transformers reads the padding" in caplog.text
    Reference(folder).check(found, "encode", TEXTS, batch_size=1)
