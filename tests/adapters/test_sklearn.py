"""`fastattn.sklearn`: the estimators inside scikit-learn's own tools, and their errors."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_is_fitted, validate_data

import fastattn as fa
from fastattn.errors import ConfigError, DTypeError, InputError
from fastattn.sklearn import FastattnEmbedder, TextClassifier
from tests.adapters.tiny import CLASSES, TEXTS, THREE
from tests.tasks.sentence_folders import NORMALIZE, WIDTH, dense, write_model, write_static
from tests.tasks.tokenizers import WORDS

POOLING: Any = ("Pooling", {"word_embedding_dimension": WIDTH, "pooling_mode": "mean"}, None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), POOLING, NORMALIZE)


def same(a: Any, b: Any) -> bool:
    return bool(np.array_equal(np.asarray(a), np.asarray(b)))


# -- FastattnEmbedder ---------------------------------------------------------------------------------------------


def test_vectors_are_those_of_encode(folder: Path) -> None:
    expected = fa.SentenceTransformer(folder).encode(TEXTS)
    embedder = FastattnEmbedder(folder)
    assert same(embedder.fit_transform(TEXTS), expected)
    assert same(np.stack([embedder.transform([text])[0] for text in TEXTS]), expected)
    assert same(FastattnEmbedder(folder, batch_size=1, threads=1).transform(TEXTS), expected)
    short = FastattnEmbedder(folder, truncate_dim=5, normalize_embeddings=True)
    assert same(
        short.transform(TEXTS), fa.SentenceTransformer(folder).encode(TEXTS, truncate_dim=5, normalize_embeddings=True)
    )
    assert short.get_feature_names_out().tolist() == [f"fastattnembedder{i}" for i in range(5)]
    assert FastattnEmbedder().transform(TEXTS[:1]).shape == (1, 128)  # the demo model


def test_data_frames(folder: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": TEXTS, "other": range(len(TEXTS))}, index=range(100, 100 + len(TEXTS)))
    embedder = FastattnEmbedder(folder).set_output(transform="pandas")
    found = embedder.fit_transform(frame["text"])
    assert found.index.tolist() == frame.index.tolist()
    assert found.columns.tolist() == embedder.get_feature_names_out().tolist()
    assert same(found, FastattnEmbedder(folder).transform(TEXTS))
    columns = ColumnTransformer([("text", FastattnEmbedder(folder), "text")], remainder="passthrough")
    assert columns.fit_transform(frame).shape == (len(TEXTS), WIDTH + 1)
    with pytest.raises(InputError, match=r"X: expected one dimension of str, got a DataFrame .*; pass one column"):
        embedder.transform(frame[["text"]])


def test_parameters_set_later_apply(folder: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path, POOLING)
    embedder = FastattnEmbedder(folder).fit(TEXTS)
    embedder.set_params(model=other)
    assert same(embedder.transform(TEXTS), fa.SentenceTransformer(other).encode(TEXTS))
    copied = clone(embedder)
    assert copied.get_params() == embedder.get_params()
    assert not vars(copied).keys() - embedder.get_params().keys()


def test_a_loaded_model_is_shared(folder: Path) -> None:
    model = fa.SentenceTransformer(folder, threads=1)
    embedder = FastattnEmbedder(model)
    assert embedder.model_ is model
    assert same(clone(embedder).transform(TEXTS), model.encode(TEXTS))
    assert same(pickle.loads(pickle.dumps(embedder.fit(TEXTS))).transform(TEXTS), model.encode(TEXTS))
    for option in ({"threads": 1}, {"dtype": "int8"}):
        with pytest.raises(InputError, match="expected None with a loaded model"):
            FastattnEmbedder(model, **option).fit(TEXTS)


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_missing_texts_are_named(folder: Path, missing: Any) -> None:
    pandas = pytest.importorskip("pandas")
    column = pandas.Series(["a", missing], index=["p", "q"], dtype=object)
    classifier = TextClassifier(folder).fit(TEXTS, CLASSES)
    for call in (FastattnEmbedder(folder).transform, classifier.predict, classifier.predict_proba):
        with pytest.raises(DTypeError, match=r"X\[1\] \(row 'q'\): expected str, got .*; fill or drop missing texts"):
            call(column)
        with pytest.raises(DTypeError, match=r"X\[1\]: expected str, got .*; fill or drop missing texts"):
            call(np.array(["a", missing], dtype=object))
        with pytest.raises(DTypeError, match="X: expected a sequence of str, got str"):
            call("a text")
    with pytest.raises(DTypeError, match=r"X\[0\]: expected str"):
        classifier.fit([missing, "a"], [0, 1])


# -- TextClassifier -----------------------------------------------------------------------------------------------


def test_whole_vectors_equal_a_pipeline_of_scikit_learn(folder: Path) -> None:
    classifier = TextClassifier(folder, pooling="sentence").fit(TEXTS, THREE)
    vectors = fa.SentenceTransformer(folder).encode(TEXTS).astype(np.float64)
    expected = LogisticRegression(max_iter=1000).fit(vectors, THREE)
    assert same(classifier.classes_, expected.classes_)
    assert same(classifier.coef_, expected.coef_.astype(np.float32))
    assert same(classifier.predict(TEXTS), expected.predict(vectors))
    assert same(classifier.n_iter_, expected.n_iter_)
    assert classifier.score(TEXTS, THREE) == expected.score(vectors, THREE)
    weighted = TextClassifier(folder, pooling="sentence").fit(TEXTS, THREE, sample_weight=[1, 2, 3] * 4)
    assert not same(weighted.coef_, classifier.coef_)


@pytest.mark.parametrize("classes", [CLASSES, THREE, [text == "yes" for text in CLASSES], [1, 5] * 6], ids=str)
@pytest.mark.parametrize("pooling", ["cls", "mean", "sentence"])
def test_same_text_same_bits(folder: Path, pooling: Any, classes: Any) -> None:
    classifier = TextClassifier(folder, pooling=pooling, threads=1).fit(TEXTS, classes)
    found = classifier.predict_proba(TEXTS)
    assert found.shape == (len(TEXTS), len(set(classes)))
    assert np.abs(found.sum(axis=1) - 1).max() <= 4 * np.finfo(np.float64).eps
    assert same(np.concatenate([classifier.predict_proba([text]) for text in TEXTS]), found)
    assert same(classifier.predict_proba(TEXTS[::-1])[::-1], found)
    assert same(classifier.predict(TEXTS), classifier.classes_[found.argmax(axis=1)])
    logits = classifier.decision_function(TEXTS)
    assert same(np.stack([classifier.decision_function([text])[0] for text in TEXTS]), logits)
    again = pickle.loads(pickle.dumps(classifier))
    assert same(again.predict_proba(TEXTS), found)
    again.set_params(batch_size=1)
    assert same(again.predict_proba(TEXTS), found)


def test_search_and_processes(folder: Path) -> None:
    grid = {"C": [0.1, 10.0], "pooling": ["cls", "mean"]}
    alone = GridSearchCV(TextClassifier(folder, threads=1), grid, cv=2).fit(TEXTS, CLASSES)
    assert set(alone.best_params_) == set(grid)
    pipeline = make_pipeline(FastattnEmbedder(folder, threads=1), LogisticRegression())
    one = cross_val_predict(pipeline, TEXTS, CLASSES, cv=2, method="predict_proba")
    two = cross_val_predict(pipeline, TEXTS, CLASSES, cv=2, method="predict_proba", n_jobs=2)
    assert same(one, two)


def test_pickles_have_no_weights(folder: Path, tmp_path: Path) -> None:
    source = write_model(tmp_path / "model", POOLING)
    classifier = TextClassifier(source).fit(TEXTS, CLASSES)
    embedder = FastattnEmbedder(source).fit(TEXTS)
    packed = pickle.dumps((classifier, embedder))
    weights = (source / "model.safetensors").read_bytes()
    assert weights[-200:] not in packed
    again, vectors = pickle.loads(packed)
    assert same(again.predict_proba(TEXTS), classifier.predict_proba(TEXTS))
    assert same(vectors.transform(TEXTS), embedder.transform(TEXTS))
    del again, vectors, classifier, embedder
    changed = bytearray(weights)
    changed[-1] ^= 1
    (source / "model.safetensors").write_bytes(bytes(changed))
    code = "import pickle, sys; a, b = pickle.loads(sys.stdin.buffer.read()); {}"
    for call in ("a.predict(['a'])", "b.transform(['a'])"):
        done = subprocess.run([sys.executable, "-c", code.format(call)], input=packed, capture_output=True, check=False)
        assert b"ModelFormatError" in done.stderr


def test_auto_is_the_pooling_of_the_model(folder: Path, tmp_path: Path) -> None:
    found = TextClassifier(folder).fit(TEXTS, CLASSES)
    assert found.pooling_ == "mean"
    assert same(found.coef_, TextClassifier(folder, pooling="mean").fit(TEXTS, CLASSES).coef_)
    for pooling in ("max", ["cls", "mean"]):
        source = write_model(tmp_path / str(pooling), ("Pooling", {**POOLING[1], "pooling_mode": pooling}, None))
        with pytest.raises(InputError, match='pooling: expected "cls", "mean" or "sentence" for a model with'):
            TextClassifier(source).fit(TEXTS, CLASSES)
        assert TextClassifier(source, pooling="cls").fit(TEXTS, CLASSES).pooling_ == "cls"
    source = write_model(tmp_path / "dense", POOLING, dense(WIDTH, 7))
    with pytest.raises(
        InputError, match="for a model with the modules Transformer, Pooling, Dense and the pooling mean"
    ):
        TextClassifier(source).fit(TEXTS, CLASSES)
    with pytest.raises(InputError, match="pooling: expected one of"):
        TextClassifier(folder, pooling="avg").fit(TEXTS, CLASSES)  # type: ignore[arg-type]


def test_models_without_a_transformer(tmp_path: Path) -> None:
    static = write_static(tmp_path / "static")
    for pooling in ("auto", "cls", "mean"):
        with pytest.raises(InputError, match=f'pooling: expected "sentence" for a model without a .* got "{pooling}"'):
            TextClassifier(static, pooling=pooling).fit(TEXTS, CLASSES)  # type: ignore[arg-type]
    classifier = TextClassifier(static, pooling="sentence").fit(TEXTS, CLASSES)
    assert same(pickle.loads(pickle.dumps(classifier)).predict_proba(TEXTS), classifier.predict_proba(TEXTS))
    with pytest.raises(ConfigError, match="model: expected a model with a transformer, got a StaticEmbedding"):
        classifier.save_sentence_transformer(tmp_path / "new")


def test_a_language_model_has_no_such_head(tmp_path: Path) -> None:
    model = fa.pipeline("text-generation").model.path
    classifier = TextClassifier(model).fit(TEXTS, CLASSES)
    with pytest.raises(ConfigError, match="whose heads have the form of a linear classifier, got gpt2"):
        classifier.save_pretrained(tmp_path / "new")
    with fa.SentenceTransformer(classifier.save_sentence_transformer(tmp_path / "sentence")) as st:
        assert same(st.encode(TEXTS)[:, 1] * 2, classifier.decision_function(TEXTS))


def test_a_later_parameter_does_not_change_a_fitted_model(folder: Path) -> None:
    classifier = TextClassifier(folder).fit(TEXTS, CLASSES)
    before = classifier.predict_proba(TEXTS)
    classifier.set_params(model="no such folder", pooling="cls")
    assert same(classifier.predict_proba(TEXTS), before)


def test_wrong_classes(folder: Path) -> None:
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        TextClassifier(folder).fit(TEXTS, CLASSES[:-1])
    with pytest.raises(ValueError, match="at least 2 classes"):
        TextClassifier(folder).fit(TEXTS, ["a"] * len(TEXTS))


def words(X: Any) -> list[str]:
    """Return a text for each row of numbers."""
    return [" ".join(WORDS[int(number * 4) % len(WORDS)] for number in row) for row in X]


class Embedder(FastattnEmbedder):
    """Takes the arrays of scikit-learn's checks and makes a text of each row."""

    def fit(self, X: Any, y: Any = None) -> Any:
        return super().fit(words(validate_data(self, X)), y)

    def transform(self, X: Any) -> Any:
        return super().transform(words(validate_data(self, X, reset=False)))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array = False, True
        return tags


class Classifier(TextClassifier):
    """The same for the classifier."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        X, y = validate_data(self, X, y)
        return super().fit(words(X), y, sample_weight)

    def decision_function(self, X: Any) -> Any:
        check_is_fitted(self)
        return super().decision_function(words(validate_data(self, X, reset=False)))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array = False, True
        return tags


ACCURACY = {"check_classifiers_train": "it expects an accuracy of 0.83, too much for such texts and random weights"}


@pytest.mark.parametrize("kind", [Embedder, Classifier])
def test_check_estimator(kind: Any, folder: Path) -> None:
    """With texts, scikit-learn skips nearly all of its checks, so the classes above make texts of its numbers."""
    expected = ACCURACY if kind is Classifier else {}
    results = check_estimator(kind(folder, threads=1), expected_failed_checks=expected, on_skip=None, on_fail=None)
    assert len(results) > 40
    assert not [result["check_name"] for result in results if result["status"] not in ("passed", "skipped", "xfail")]


@pytest.mark.filterwarnings("ignore:Can't test estimator")
@pytest.mark.parametrize("kind", [FastattnEmbedder, TextClassifier])
def test_check_estimator_of_texts(kind: Any, folder: Path) -> None:
    results = check_estimator(kind(folder), on_skip=None)
    assert [result["status"] for result in results] == ["passed"]
