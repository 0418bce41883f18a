"""SparseEncoder: the vectors of sentence-transformers, equal bits in any batch, and typed errors."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn as fa
from fastattn.errors import ConfigError, DTypeError, InputError
from fastattn.tasks import sparse_encoder
from fastattn.tasks.sparse.splade import SpladePooling
from fastattn.tasks.sparse.vectors import SparseEmbedding, SparseEmbeddings, sparse_row
from tests.tasks.bounds import assert_as_good_as
from tests.tasks.sentence_folders import TEXTS, change_json, entry, write_json
from tests.tasks.tokenizers import write_bert

SIZES: dict[str, dict[str, Any]] = {
    "Bert": {"hidden_size": 36, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 50},
    "DistilBert": {"dim": 36, "n_heads": 3, "n_layers": 2, "hidden_dim": 50},
}


def write_masked(folder: Path, family: str = "Bert") -> Path:
    """Write a random masked language model with the words of `write_bert`."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests.reference import hf

    write_bert(folder)
    n_words = len((folder / "vocab.txt").read_text(encoding="utf-8").splitlines())
    sizes = {"vocab_size": n_words, "max_position_embeddings": 64, "pad_token_id": 0, **SIZES[family]}
    hf.save(hf.make(f"{family}ForMaskedLM", **sizes), folder)
    write_bert(folder)
    return folder


def write_splade(
    folder: Path, family: str = "Bert", *, old: bool = False, settings: Any = None, **pooling: Any
) -> Path:
    """Write a masked language model with a SpladePooling. old: with the modules and names of older releases."""
    write_masked(folder, family)
    kind = "sentence_transformers.sparse_encoder.models.MLMTransformer"
    first = entry(0, "Transformer", "") if not old else {"idx": 0, "name": "0", "path": "", "type": kind}
    home = "sentence_transformers.sparse_encoder.models.SpladePooling"
    write_json(folder / "modules.json", [first, {"idx": 1, "name": "1", "path": "1_SpladePooling", "type": home}])
    if not old:
        write_json(folder / "sentence_bert_config.json", {"transformer_task": "fill-mask"})
    (folder / "1_SpladePooling").mkdir()
    write_json(folder / "1_SpladePooling/config.json", pooling)
    write_json(folder / "config_sentence_transformers.json", {"model_type": "SparseEncoder", **(settings or {})})
    return folder


class Reference:
    """sentence-transformers in float64 and in float32."""

    def __init__(self, folder: Path, **options: Any) -> None:
        torch = pytest.importorskip("torch")
        torch.set_num_threads(1)
        module = pytest.importorskip("sentence_transformers")
        self.exact, self.rough = (
            module.SparseEncoder(str(folder), device="cpu", model_kwargs={"dtype": dtype}, **options)
            for dtype in (torch.float64, torch.float32)
        )

    def check(self, found: SparseEmbeddings, method: str = "encode", **options: Any) -> None:
        exact, rough = (
            getattr(model, method)(TEXTS, **options).to_dense().numpy() for model in (self.exact, self.rough)
        )
        assert_as_good_as(found.toarray(), exact, rough)


def same(a: SparseEmbeddings, b: SparseEmbeddings) -> bool:
    parts = ("indptr", "indices", "values")
    return a.shape == b.shape and all(getattr(a, x).tobytes() == getattr(b, x).tobytes() for x in parts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = {"prompts": {"query": "good ", "passage": "the "}, "similarity_fn_name": "dot"}
    return write_splade(tmp_path_factory.mktemp("splade"), settings=settings)


@pytest.fixture(scope="module")
def model(folder: Path) -> fa.SparseEncoder:
    return fa.SparseEncoder(folder, threads=2)


@pytest.mark.torch
@pytest.mark.parametrize("family", SIZES)
@pytest.mark.parametrize("strategy", ["max", "sum"])
@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
def test_vectors_equal_sentence_transformers(tmp_path: Path, family: str, strategy: str, activation: str) -> None:
    old = strategy == "sum"
    folder = write_splade(tmp_path, family, old=old, pooling_strategy=strategy, activation_function=activation)
    with fa.SparseEncoder(folder) as model:
        Reference(folder).check(model.encode(TEXTS))


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")  # torch warns about its sparse tensors
@pytest.mark.torch
def test_methods_equal_sentence_transformers(folder: Path, model: fa.SparseEncoder) -> None:
    reference = Reference(folder)
    reference.check(model.encode_query(TEXTS), "encode_query")
    reference.check(model.encode_document(TEXTS), "encode_document")
    reference.check(model.encode(TEXTS, prompt="the "), prompt="the ")
    reference.check(model.encode(TEXTS, max_active_dims=5), max_active_dims=5)
    text = {"text": {"max_length": 4}}
    reference.check(model.encode(TEXTS, processing_kwargs=text), processing_kwargs=text)
    found, vectors = model.encode(TEXTS), reference.rough.encode(TEXTS)
    exact = reference.exact.encode(TEXTS)
    for name in ("dot", "cosine", "euclidean", "manhattan"):
        model.similarity_fn_name = name
        reference.rough.similarity_fn_name = reference.exact.similarity_fn_name = name
        if name != "manhattan":
            wide = reference.exact.similarity(exact, exact).numpy()
            narrow = reference.rough.similarity(vectors, vectors).numpy()
            scores = model.similarity(found, found)
            off = ~np.eye(len(TEXTS), dtype=bool)  # a vector's distance from itself is a difference of equal numbers
            assert_as_good_as(scores[off], wide[off], narrow[off])
        pairs = model.similarity_pairwise(found[:3], found[1:4])
        assert_as_good_as(pairs, np.diag(model.similarity(found[:3], found[1:4])), pairs)
    model.similarity_fn_name = "dot"
    assert [[token for token, _ in row] for row in model.decode(found, top_k=4)] == [
        [token for token, _ in row] for row in reference.rough.decode(vectors, top_k=4)
    ]
    assert model.sparsity(found) == pytest.approx(reference.rough.sparsity(vectors))
    shared = model.intersection(found[0], found)
    expected = reference.rough.intersection(vectors[0], vectors).to_dense().numpy()
    wide = reference.exact.intersection(exact[0], exact).to_dense().numpy()
    assert_as_good_as(shared.toarray(), wide, expected)


@pytest.mark.torch
def test_torch_tensors(model: fa.SparseEncoder) -> None:
    torch = pytest.importorskip("torch")
    found, tensor = model.encode(TEXTS), model.encode(TEXTS, convert_to_tensor=True)
    assert tensor.is_sparse
    assert tensor.to_dense().numpy().tobytes() == found.toarray().tobytes()
    assert model.encode("a", convert_to_tensor=True).shape == (found.width,)
    whole = model.encode(TEXTS, convert_to_tensor=True, convert_to_sparse_tensor=False)
    assert isinstance(whole, torch.Tensor)
    assert whole.numpy().tobytes() == found.toarray().tobytes()
    assert model.similarity(tensor, tensor).tobytes() == model.similarity(found, found).tobytes()
    assert model.decode(tensor) == model.decode(found)
    assert model.decode(tensor[0]) == model.decode(found[0])


@pytest.mark.torch
def test_equal_bits_in_any_batch(folder: Path, model: fa.SparseEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    found = model.encode(TEXTS)
    for size in (1, 2, 3):
        assert same(model.encode(TEXTS[::-1], batch_size=size)[::-1], found)
    for i, text in enumerate(TEXTS):
        one = model.encode(text)
        assert isinstance(one, SparseEmbedding)
        assert one.as_dict() == found[i].as_dict()
    with fa.SparseEncoder(folder, threads=1) as single:
        assert same(single.encode(TEXTS), found)
    monkeypatch.setattr(sparse_encoder, "_LOGITS", 1)  # one text per step
    assert same(model.encode(TEXTS), found)
    assert same(copy.copy(model).encode(TEXTS), found)


@pytest.mark.torch
def test_the_logits_of_a_step_are_bounded(model: fa.SparseEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    run = type(model.model).__call__

    def counted(self: Any, ids: Any, **options: Any) -> Any:
        sizes.append(max(len(row) for row in ids) * len(ids) * self.config.vocab_size)
        return run(self, ids, **options)

    monkeypatch.setattr(type(model.model), "__call__", counted)
    monkeypatch.setattr(sparse_encoder, "_LOGITS", 71 * 64 * 2)
    model.encode(["bad " * 80] * 7)
    assert len(sizes) == 4
    assert max(sizes) <= 71 * 64 * 2


@pytest.mark.torch
def test_a_plain_masked_model(tmp_path: Path) -> None:
    folder = write_masked(tmp_path)
    with fa.SparseEncoder(folder, max_active_dims=3, similarity_fn_name="cosine") as model:
        found = model.encode(TEXTS)
        Reference(folder, max_active_dims=3).check(found)
        assert np.diff(found.indptr).max() == 3
        assert model.similarity_fn_name == "cosine"
        assert model.pooling == SpladePooling("max", "relu")


@pytest.mark.torch
def test_other_folders(tmp_path: Path) -> None:
    folder = write_splade(tmp_path / "m", pooling_strategy="mean")
    with pytest.raises(ConfigError, match="pooling_strategy: expected one of max, sum, got 'mean'"):
        fa.SparseEncoder(folder)
    write_json(folder / "1_SpladePooling/config.json", {})
    change_json(folder / "sentence_bert_config.json", transformer_task="feature-extraction")
    with pytest.raises(ConfigError, match="transformer_task: expected fill-mask before SpladePooling"):
        fa.SparseEncoder(folder)
    change_json(folder / "config_sentence_transformers.json", model_type="SentenceTransformer")
    with pytest.raises(ConfigError, match="model_type: expected SparseEncoder, got 'SentenceTransformer'"):
        fa.SparseEncoder(folder)
    change_json(folder / "config_sentence_transformers.json", model_type="SparseEncoder")
    write_json(folder / "modules.json", [entry(0, "Transformer", "")])
    with pytest.raises(ConfigError, match="expected a Transformer and a SpladePooling, got Transformer"):
        fa.SparseEncoder(folder)
    kind = "sentence_transformers.sparse_encoder.modules.SparseAutoEncoder"
    write_json(folder / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": kind}])
    with pytest.raises(ConfigError, match="module 'SparseAutoEncoder' is not supported; supported: Transformer, MLM"):
        fa.SparseEncoder(folder)
    (folder / "modules.json").unlink()
    change_json(folder / "config.json", architectures=["BertModel"])
    with pytest.raises(ConfigError, match="architectures: expected a masked language model"):
        fa.SparseEncoder(folder)


@pytest.mark.torch
def test_wrong_arguments(model: fa.SparseEncoder) -> None:
    for options in ({"batch_size": 0}, {"task": "x"}, {"max_active_dims": 0}, {"device": "cuda"}, {"normalize": True}):
        with pytest.raises((InputError, DTypeError)):
            model.encode(TEXTS, **options)  # type: ignore[arg-type]
    for call in (
        lambda: model.encode(3),
        lambda: model.decode(model.encode("a"), top_k=0),
        lambda: model.similarity(model.encode("a"), np.zeros((2, 3))),
        lambda: model.similarity_pairwise(model.encode(["a"]), model.encode(["a", "b"])),
        lambda: model.intersection(model.encode(["a", "b"]), model.encode("a")),
    ):
        with pytest.raises((InputError, DTypeError)):
            call()
    assert model.encode([]).shape == (0, model.get_embedding_dimension())


def test_rows() -> None:
    vector = np.array([0, -3, 2, 0, 3, 2], np.float32)
    assert sparse_row(vector, None).as_dict() == {1: -3, 2: 2, 4: 3, 5: 2}
    assert sparse_row(vector, 3).as_dict() == {1: -3, 2: 2, 4: 3}
    rows = SparseEmbeddings.of([sparse_row(vector, None), sparse_row(vector * 0, None), sparse_row(vector, 1)], 6)
    assert rows.shape == (3, 6)
    assert rows.nnz == 5
    assert rows.toarray().tolist() == [vector.tolist(), [0] * 6, [0, -3, 0, 0, 0, 0]]
    assert rows[-1].as_dict() == {1: -3}
    assert rows[1:].toarray().tolist() == rows.toarray()[1:].tolist()
    assert [len(row) for row in rows] == [4, 0, 1]
    assert sorted(rows[0].as_object()) == ["indices", "values"]
    with pytest.raises(IndexError):
        rows[3]
