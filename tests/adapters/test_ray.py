"""`fastattn.ray` in a local Ray: batches of Ray Data, and a Ray Serve application."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import fastattn as fa
from fastattn.tasks.columns import EmbedTexts
from fastattn.tasks.demo import demo_model

ray = pytest.importorskip("ray", reason="ray is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
TEXTS = ["a fine film", "a dull film", "", "the captain"] * 5


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
    yield
    ray.shutdown()


def computed(kind: Any, texts: list[Any], batch_format: str, **options: Any) -> list[dict[str, Any]]:
    items = ray.data.from_items([{"i": i, "text": text} for i, text in enumerate(texts)], override_num_blocks=3)
    pool = ray.data.ActorPoolStrategy(size=1)
    found = items.map_batches(
        kind, fn_constructor_kwargs=options, batch_size=4, batch_format=batch_format, num_cpus=1, compute=pool
    )
    return sorted(found.take_all(), key=lambda row: int(row["i"]))


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("batch_format", ["numpy", "pyarrow"])
def test_embeddings(batch_format: str) -> None:
    from fastattn.ray import EmbedUDF

    rows = computed(EmbedUDF, TEXTS, batch_format)
    vectors = np.array([row["embedding"] for row in rows], np.float32)
    assert vectors.tobytes() == fa.SentenceTransformer(demo_model("text-classification")).encode(TEXTS).tobytes()
    assert not any(row["error"] for row in rows)


@pytest.mark.usefixtures("cluster")
def test_labels_and_generated_texts() -> None:
    from fastattn.ray import ClassifyUDF, GenerateUDF

    rows = computed(ClassifyUDF, [*TEXTS, "word " * 400], "numpy")
    expected = fa.pipeline("text-classification")(TEXTS)
    assert [(row["label"], row["score"]) for row in rows[:-1]] == [(x["label"], x["score"]) for x in expected]
    assert (rows[-1]["label"], np.isnan(rows[-1]["score"])) == ("", True)
    assert "the model's context is 128" in rows[-1]["error"]
    (row,) = computed(GenerateUDF, ["The captain"], "numpy", max_new_tokens=4)
    (written,) = fa.pipeline("text-generation")(
        "The captain", max_new_tokens=4, do_sample=False, return_full_text=False
    )
    assert row["generated_text"] == written["generated_text"]


def test_a_batch_outside_of_ray() -> None:
    from fastattn.ray import EmbedUDF

    udf = EmbedUDF("words", threads=1, truncation=False)
    batch = udf({"words": np.array(["a", None, "word " * 400], object)})
    assert list(batch) == ["words", "embedding", "error"]
    assert batch["embedding"][0].tobytes() == EmbedTexts()(["a"]).values["embedding"][0].tobytes()
    assert np.isnan(batch["embedding"][1:]).all()
    assert [bool(error) for error in batch["error"]] == [False, True, True]
    with pytest.raises(fa.InputError, match="column: expected one of text, got 'words'"):
        udf({"text": np.array(["a"])})


@pytest.mark.usefixtures("cluster")
def test_serve() -> None:
    pytest.importorskip("prometheus_client", reason="the extra `server` is not installed")
    from ray import serve

    from fastattn.ray import serve_app

    def post(path: str, **body: Any) -> Any:
        data = json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:8000/fa{path}", data, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    serve.run(serve_app(ray_actor_options={"num_cpus": 1}), route_prefix="/fa")
    try:
        model = fa.SentenceTransformer(demo_model("text-classification"))
        vectors = model.encode(TEXTS[:2], normalize_embeddings=True)
        found = post("/v1/embeddings", input=TEXTS[:2])
        assert np.array([x["embedding"] for x in found["data"]], np.float32).tobytes() == vectors.tobytes()
        expected = fa.pipeline("text-classification")(TEXTS[0])[0]
        assert post("/predict", inputs=TEXTS[0])[0] == expected
        written = fa.pipeline("text-generation")("The captain", max_new_tokens=4, do_sample=False)[0]["generated_text"]
        found = post("/v1/completions", prompt="The captain", max_tokens=4, temperature=0)
        assert "The captain" + found["choices"][0]["text"] == written
    finally:
        serve.shutdown()
