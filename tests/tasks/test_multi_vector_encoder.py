"""MultiVectorEncoder and MaxSim: the results of sentence-transformers, equal bits, folders and errors."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn as fa
from fastattn import util
from fastattn.errors import ConfigError, DTypeError, InputError
from fastattn.tasks.search import maxsim
from tests.tasks.bounds import assert_as_good_as
from tests.tasks.sentence_folders import (
    TEXTS,
    WIDTH,
    ModuleFiles,
    change_json,
    dense,
    write_json,
    write_model,
    write_modules,
    write_transformer,
)

TOKENS = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
IDENTITY = "torch.nn.modules.linear.Identity"
DENSE = dense(WIDTH, 5, bias=False, activation_function=IDENTITY, **TOKENS)
NORMALIZE: ModuleFiles = ("Normalize", TOKENS, None)
SETTINGS = {"model_type": "MultiVectorEncoder", "prompts": {"query": "good ", "document": "the "}}


def write_colbert(folder: Path, mask: dict[str, Any] | None = None, **settings: Any) -> Path:
    """Write a BERT, a projection, a mask and a normalization. settings: of the transformer."""
    write_model(folder, DENSE, NORMALIZE, settings=SETTINGS)
    if mask is not None:
        kind = "sentence_transformers.multi_vector_encoder.modules.multi_vector_mask.MultiVectorMask"
        listed = [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Dense", "type": "sentence_transformers.models.Dense"},
            {"idx": 2, "name": "2", "path": "3_Mask", "type": kind},
            {"idx": 3, "name": "3", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ]
        write_json(folder / "modules.json", listed)
        (folder / "3_Mask").mkdir()
        write_json(folder / "3_Mask/config.json", mask)
    write_json(folder / "sentence_bert_config.json", settings)
    return folder


def write_pylate(folder: Path, **settings: Any) -> Path:
    """Write a folder as PyLate 1 saves it: a BERT and a projection, everything else in the settings."""
    write_transformer(folder)
    _, config, tensors = dense(WIDTH, 5, bias=False, activation_function=IDENTITY)
    write_modules(folder, ("Dense", config, tensors))
    listed = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Dense", "type": "pylate.models.Dense.Dense"},
    ]
    write_json(folder / "modules.json", listed)
    write_json(folder / "config_sentence_transformers.json", {"model_type": "ColBERT", **settings})
    return folder


class Reference:
    """sentence-transformers in float64 and in float32."""

    def __init__(self, folder: Path) -> None:
        torch = pytest.importorskip("torch")
        torch.set_num_threads(1)
        module = pytest.importorskip("sentence_transformers")
        self.exact, self.rough = (
            module.MultiVectorEncoder(str(folder), device="cpu", model_kwargs={"dtype": dtype})
            for dtype in (torch.float64, torch.float32)
        )

    def check(self, found: list[Any], method: str, **options: Any) -> None:
        exact, rough = (
            getattr(model, method)(TEXTS, convert_to_numpy=True, **options) for model in (self.exact, self.rough)
        )
        assert [len(rows) for rows in found] == [len(rows) for rows in exact]
        assert_as_good_as(*(np.concatenate(rows) for rows in (found, exact, rough)))


def same(a: list[Any], b: list[Any]) -> bool:
    return [(x.shape, x.tobytes()) for x in a] == [(x.shape, x.tobytes()) for x in b]


SKIP = {"skiplist_words": [",", "!", "no such word"]}


@pytest.mark.torch
@pytest.mark.parametrize(
    ("mask", "settings"),
    [
        (None, {}),
        (SKIP, {"document_length": 20, "query_length": 5}),
        ({**SKIP, "skiplist_tasks": ["query", "document"]}, {}),
        ({"keep_only_token_ids": [2, 3, 30, 31]}, {"max_seq_length": 30}),
        (SKIP, {"query_expansion": {"strategy": "fixed", "attend": True, "length": 10}}),
        (SKIP, {"query_expansion": {"strategy": "min", "attend": True, "length": 6}, "query_length": 7}),
        (SKIP, {"query_expansion": {"strategy": "fixed", "attend": False, "length": 10}}),
        (None, {"query_expansion": {"strategy": "min", "length": 12, "token": "cat"}, "query_length": 20}),
        ({"skiplist_words": ["cat"], "skiplist_tasks": "query"},
         {"query_expansion": {"strategy": "min", "attend": True, "length": 9, "token": "cat"}}),
    ],
)  # fmt: skip
def test_vectors_equal_sentence_transformers(
    tmp_path: Path, mask: dict[str, Any] | None, settings: dict[str, Any]
) -> None:
    folder = write_colbert(tmp_path, mask, **settings)
    reference = Reference(folder)
    with fa.MultiVectorEncoder(folder, threads=2) as model:
        for method in ("encode", "encode_query", "encode_document"):
            found = getattr(model, method)(TEXTS)
            reference.check(found, method)
            for size in (1, 3):
                assert same(getattr(model, method)(TEXTS[::-1], batch_size=size)[::-1], found)
            assert all(same([getattr(model, method)(text)], [rows]) for text, rows in zip(TEXTS, found, strict=True))
        assert same(copy.copy(model).encode(TEXTS), model.encode(TEXTS))
        reference.check(model.encode(TEXTS, normalize_embeddings=True), "encode", normalize_embeddings=True)


@pytest.mark.torch
@pytest.mark.parametrize(
    "settings",
    [
        {"query_prefix": "[Q] ", "document_prefix": "[D] ", "attend_to_expansion_tokens": True, "query_length": 12},
        {"query_prefix": "[Q] ", "document_prefix": "[D] ", "attend_to_expansion_tokens": False, "query_length": 12},
        {"attend_to_mask_tokens": True, "query_length": 9},
        {"query_length": 14},
        {"query_prefix": "[unused1] ", "document_prefix": "cat ", "do_query_expansion": False, "document_length": 9},
        {"skiplist_words": ["cat"], "prompts": {"query": "good "}, "query_prefix": "a ", "do_query_expansion": False},
    ],
)
def test_folders_of_pylate(tmp_path: Path, settings: dict[str, Any]) -> None:
    folder = write_pylate(tmp_path, **settings)
    reference = Reference(folder)
    with fa.MultiVectorEncoder(folder) as model:
        for method in ("encode", "encode_query", "encode_document"):
            reference.check(getattr(model, method)(TEXTS), method)


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_added_tokens_change_no_other_vector(tmp_path: Path, dtype: Any) -> None:
    """With attend=false, the tokens of a query have the bits of the query without the added tokens."""
    expanded = write_colbert(tmp_path / "a", {}, query_expansion={"strategy": "min", "length": 12})
    plain = write_colbert(tmp_path / "b")
    with (
        fa.MultiVectorEncoder(expanded, model_kwargs={"dtype": dtype}) as model,
        fa.MultiVectorEncoder(plain, model_kwargs={"dtype": dtype}) as other,
    ):
        longer = [text for text in TEXTS if text]
        for found, expected in zip(model.encode_query(longer), other.encode_query(longer), strict=True):
            assert len(found) >= 12
            assert found[: len(expected)].tobytes() == expected.tobytes()


@pytest.mark.torch
def test_windows_that_do_not_reach_all_tokens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """ModernBERT: queries are refused if a layer's window is shorter than they are; documents are not."""
    transformers = pytest.importorskip("transformers")
    folder = write_colbert(tmp_path, SKIP, query_expansion={"strategy": "fixed", "length": 10})
    n_words = len((folder / "vocab.txt").read_text(encoding="utf-8").splitlines())
    options = {"hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = transformers.ModernBertConfig(
        vocab_size=n_words, local_attention=16, max_position_embeddings=64, pad_token_id=0, bos_token_id=2,
        eos_token_id=3, cls_token_id=2, sep_token_id=3, **options,
    )  # fmt: skip
    fa.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)  # tokenizer.json, as ModernBERT needs
    change_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    transformers.ModernBertModel(config).eval().save_pretrained(folder)
    message = "length: expected at most 9, the window of attention, got 10"
    with caplog.at_level(logging.WARNING, "fastattn"):
        model = fa.MultiVectorEncoder(folder)
    assert f"query_expansion: attend=false is not supported for queries: {message}" in caplog.text
    Reference(folder).check(model.encode_document(TEXTS), "encode_document")
    with pytest.raises(InputError, match=f"task: expected document, .*{message}"):
        model.encode_query(TEXTS)
    change_json(folder / "sentence_bert_config.json", query_expansion={"strategy": "fixed", "length": 9})
    Reference(folder).check(fa.MultiVectorEncoder(folder).encode_query(TEXTS), "encode_query")


@pytest.mark.torch
def test_other_folders(tmp_path: Path) -> None:
    for number, (change, message) in enumerate(
        [
            ({"query_expansion": {"strategy": "fixed", "length": 10, "x": 1}}, "expected only strategy, attend"),
            ({"query_expansion": {"strategy": "fixed"}}, "query_expansion: length: expected a value"),
            ({"query_expansion": {"strategy": "all", "length": 3}}, "strategy: expected one of fixed, min"),
            ({"query_expansion": {"strategy": "min", "length": 3, "token": "no such"}}, "expected a tokenizer with"),
            (
                {"query_expansion": {"strategy": "min", "length": 9}, "query_length": 4},
                "query_length: expected at least 9",
            ),
            ({"query_expansion": {"strategy": "min", "length": 300}}, "query_expansion: length: expected 1 to 64"),
        ]
    ):
        with pytest.raises((ConfigError, InputError), match=message):
            fa.MultiVectorEncoder(write_colbert(tmp_path / str(number), SKIP, **change))
    folder = write_colbert(tmp_path / "m", query_expansion={"strategy": "min", "length": 3, "attend": True})
    change_json(folder / "config_sentence_transformers.json", model_type="SentenceTransformer")
    with pytest.raises(ConfigError, match="model_type: expected MultiVectorEncoder or ColBERT"):
        fa.MultiVectorEncoder(folder)
    with pytest.raises(ConfigError, match=r"query_expansion: expected null, got .*; load the folder with MultiVector"):
        fa.SentenceTransformer(folder)
    (folder / "modules.json").unlink()
    with pytest.raises(ConfigError, match="expected the modules of a multi-vector model, found no such file"):
        fa.MultiVectorEncoder(folder)


@pytest.mark.torch
def test_torch_and_wrong_arguments(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = fa.MultiVectorEncoder(write_colbert(tmp_path, SKIP))
    tensors = model.encode(TEXTS, convert_to_numpy=False)
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors)
    assert same([tensor.numpy() for tensor in tensors], model.encode(TEXTS))
    assert model.encode([]) == []
    for options in ({"batch_size": 0}, {"token_pooling": 3}, {"task": "x"}, {"output_value": "x"}, {"other": 1}):
        with pytest.raises((InputError, DTypeError)):
            model.encode(TEXTS, **options)  # type: ignore[arg-type]
    assert model.similarity_fn_name == "maxsim"
    with pytest.raises(InputError, match="similarity_fn_name: expected one of 'maxsim', 'meanmaxsim'"):
        model.similarity_fn_name = "cosine"
    model.similarity_fn_name = "meanmaxsim"
    assert np.array_equal(model.similarity(tensors, tensors), util.mean_maxsim(tensors, tensors))
    assert np.array_equal(model.similarity_pairwise(tensors, tensors), np.diag(model.similarity(tensors, tensors)))


# -- MaxSim -----------------------------------------------------------------------------------------------------------


def texts(*lengths: int, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((n, 33)).astype(np.float32) for n in lengths]


def formula(queries: list[Any], documents: list[Any]) -> Any:
    def score(query: Any, document: Any) -> float:
        return float((query.astype(np.float64) @ document.astype(np.float64).T).max(axis=1).sum())

    return np.array([[score(query, document) for document in documents] for query in queries])


def test_maxsim(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    reference = pytest.importorskip("sentence_transformers").util
    queries, documents = texts(4, 1, 9, 30), texts(7, 50, 1, 3, 20, seed=1)
    found, exact = util.maxsim(queries, documents), formula(queries, documents)
    tensors = [[torch.from_numpy(rows) for rows in side] for side in (queries, documents)]
    assert found.dtype == np.float32
    assert_as_good_as(found, exact, reference.maxsim(*tensors).numpy())
    counts = np.array([4, 1, 9, 30])[:, None]
    assert_as_good_as(util.mean_maxsim(queries, documents), exact / counts, reference.mean_maxsim(*tensors).numpy())
    pairs = util.maxsim_pairwise(queries, documents[:4])
    assert np.array_equal(pairs, found.diagonal())
    assert np.array_equal(util.mean_maxsim_pairwise(queries, documents[:4]), np.diag(util.mean_maxsim(*tensors)))
    for i, query in enumerate(queries):
        for j, document in enumerate(documents):
            assert util.maxsim(query, [document])[0, 0] == found[i, j]
    for size in (1, 40, 700):
        monkeypatch.setattr(maxsim, "BLOCK_ELEMENTS", size)
        assert util.maxsim(queries, documents).tobytes() == found.tobytes()


def test_texts_without_vectors(caplog: pytest.LogCaptureFixture) -> None:
    empty = np.zeros((0, 33), np.float32)
    one = texts(3)
    assert util.maxsim([*one, empty], [empty, *one, empty]).tolist() == [
        [-1e9, util.maxsim(one, one)[0, 0], -1e9],
        [-1e9, 0, -1e9],
    ]
    assert "2 documents have no vectors" in caplog.text
    assert util.maxsim([], one).shape == (0, 1)
    assert util.maxsim(one, []).shape == (1, 0)
    for a, b in ((np.zeros((2, 2, 2)), one), (3, one), (one, [np.zeros((1, 4))]), (one, ["x"])):
        with pytest.raises((InputError, DTypeError)):
            util.maxsim(a, b)
    with pytest.raises(InputError, match="b: expected 1 documents"):
        util.maxsim_pairwise(one, texts(1, 2))
