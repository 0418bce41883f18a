"""The map of texts is the projection on the principal components, as in scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import fastattn as fa
from fastattn.errors import DTypeError, InputError, NonFiniteError
from fastattn.tasks.demo import demo_model
from fastattn.viz.embeddings_view import principal_components

TEXTS = ["a fine film", "a dull film", "rain in the city", "a great story"]


@pytest.mark.parametrize("shape", [(20, 7), (5, 30), (3, 2)])
def test_points_are_the_first_two_principal_components(shape: tuple[int, int], rng: np.random.Generator) -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    vectors = rng.standard_normal(shape)
    points, shares = principal_components(vectors)
    pca = decomposition.PCA(2, svd_solver="full").fit(vectors)
    expected = pca.transform(vectors)
    expected *= np.sign(expected[np.abs(expected).argmax(axis=0), [0, 1]])
    limit = 64 * max(shape) * np.finfo(np.float64).eps * np.abs(expected).max()
    assert np.abs(points - expected).max() <= limit
    assert np.abs(shares - pca.explained_variance_ratio_).max() <= limit


def test_the_map_does_not_depend_on_the_sign_or_place_of_the_vectors(rng: np.random.Generator) -> None:
    vectors = rng.integers(-64, 64, (9, 4)).astype(np.float64)
    points, _ = principal_components(vectors)
    assert (points[np.abs(points).argmax(axis=0), [0, 1]] > 0).all()
    moved, _ = principal_components(vectors + 1024)
    assert np.abs(points - moved).max() <= 1e-9 * np.abs(points).max() + 1e-9


def test_one_axis_and_equal_texts() -> None:
    points, shares = principal_components(np.array([[1.0], [3.0]], np.float32))
    assert np.abs(np.abs(points) - [[1, 0], [1, 0]]).max() <= 4 * np.finfo(np.float64).eps
    assert points[0, 0] * points[1, 0] < 0
    assert shares.tolist() == [1.0, 0.0]
    points, shares = principal_components(np.ones((3, 4), np.float32))
    assert not points.any()
    assert not shares.any()
    assert "NaN" not in fa.viz.embeddings(np.ones((3, 4), np.float32), ["a", "b", "c"]).svg


def test_models_folders_and_vectors_give_one_map() -> None:
    folder = demo_model("text-classification")
    with fa.SentenceTransformer(folder) as st:
        picture = fa.viz.embeddings(st, TEXTS, labels=[1, 2, 3, 1])
        vectors = st.encode(TEXTS)
    assert (picture.data["vectors"] == vectors).all()
    assert picture.data["labels"] == ["1", "2", "3", "1"]
    for other in (folder, str(folder), vectors):
        assert fa.viz.embeddings(other, TEXTS, labels=[1, 2, 3, 1]).html == picture.html


def test_many_points_can_be_reached_with_the_keyboard(rng: np.random.Generator) -> None:
    vectors = rng.standard_normal((60, 8)).astype(np.float32)
    names = [f"text {i}" for i in range(60)]
    page = fa.viz.embeddings(vectors, names).html
    assert page.count('tabindex="0" role="img" aria-label="text ') == 60
    assert page.count('class="point named"') == 0
    assert fa.viz.embeddings(vectors[:40], names[:40]).html.count('class="point named"') == 40


def test_wrong_arguments(tmp_path: Path) -> None:
    vectors = np.zeros((2, 3), np.float32)
    with pytest.raises(InputError, match="texts: expected at least two texts, got 1"):
        fa.viz.embeddings(vectors, ["a"])
    with pytest.raises(InputError, match="labels: expected one for each of the 2 texts, got 1"):
        fa.viz.embeddings(vectors, ["a", "b"], labels=["c"])
    with pytest.raises(InputError, match="model: expected a vector for each of the 3 texts, got 2"):
        fa.viz.embeddings(vectors, ["a", "b", "c"])
    for wrong in (vectors[0], vectors.astype(int), [[1.0]], None):
        with pytest.raises(DTypeError, match="model: expected a SentenceTransformer"):
            fa.viz.embeddings(wrong, ["a", "b"])  # type: ignore[arg-type]
    with pytest.raises(DTypeError, match="texts: expected a sequence of str"):
        fa.viz.embeddings(vectors, "ab")
    with pytest.raises(NonFiniteError, match="texts: expected finite vectors"):
        fa.viz.embeddings(vectors * np.nan, ["a", "b"])
