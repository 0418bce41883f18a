"""The adapters to LangChain, LlamaIndex, Chroma, BERTopic and KeyBERT, inside the real libraries."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import io
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn as fa
from fastattn.errors import ConfigError, DTypeError, InputError
from tests.adapters.tiny import TEXTS
from tests.reference import pages
from tests.tasks.sentence_folders import NORMALIZE, WIDTH, write_model

POOLING: Any = ("Pooling", {"word_embedding_dimension": WIDTH, "pooling_mode": "mean"}, None)
PACKAGES = {
    "langchain": "langchain_core",
    "llama_index": "llama_index.core",
    "chromadb": "chromadb",
    "bertopic": "bertopic",
    "keybert": "keybert",
    "lm_eval": "lm_eval",
    "ray": "ray",
    "spark": "pyspark",
    "dask": "dask",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = {"prompts": {"query": "good ", "document": "bad "}}
    return write_model(tmp_path_factory.mktemp("model"), POOLING, NORMALIZE, settings=settings)


def adapter(name: str) -> Any:
    """Import an adapter; skip if its library is missing. The libraries' own warnings are not ours."""
    pytest.importorskip(PACKAGES[name], reason=f"{PACKAGES[name]} is not installed")
    return importlib.import_module(f"fastattn.{name}")


def vectors(folder: Path, method: str = "encode", texts: Any = TEXTS, **options: Any) -> Any:
    return getattr(fa.SentenceTransformer(folder), method)(texts, **options).tolist()


def rows(found: Any) -> Any:
    return np.asarray(found, np.float32).tolist()


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_library_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = PACKAGES[name].split(".")[0]
    for module in [key for key in sys.modules if key == root or key.startswith(f"{root}.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, root, None)
    monkeypatch.delitem(sys.modules, f"fastattn.{name}", raising=False)
    extra = name.replace("_", "-")
    with pytest.raises(
        ImportError, match=rf'^fastattn.{name}: expected the package .*; run pip install "fastattn\[{extra}\]"'
    ):
        importlib.import_module(f"fastattn.{name}")


@pytest.mark.filterwarnings("ignore")
def test_langchain(folder: Path) -> None:
    found = adapter("langchain").FastattnEmbeddings(folder, normalize_embeddings=True, threads=1)
    documents = vectors(folder, "encode_document", normalize_embeddings=True)
    assert found.embed_documents(TEXTS) == documents
    assert found.embed_query(TEXTS[0]) == vectors(folder, "encode_query", TEXTS[0], normalize_embeddings=True)
    assert found.embed_query(TEXTS[0]) != documents[0]
    assert asyncio.run(found.aembed_documents(TEXTS)) == documents
    assert pickle.loads(pickle.dumps(found)).embed_documents(TEXTS) == documents
    from langchain_core.vectorstores import InMemoryVectorStore

    store = InMemoryVectorStore.from_texts(TEXTS, found)
    hits = store.similarity_search("great cat", k=3)
    scores = np.array(documents) @ found.embed_query("great cat")
    assert [hit.page_content for hit in hits] == [TEXTS[i] for i in np.argsort(-scores)[:3]]
    with pytest.raises(DTypeError, match=r"sentences\[0\]: expected str, got None"):
        found.embed_documents([None])


@pytest.mark.filterwarnings("ignore")
def test_llama_index(folder: Path) -> None:
    kind = adapter("llama_index").FastattnEmbedding
    found = kind(str(folder), embed_batch_size=5, threads=1)
    documents = vectors(folder, "encode_document")
    assert found.get_text_embedding_batch(TEXTS) == documents
    assert found.get_text_embedding(TEXTS[1]) == documents[1]
    assert found.get_query_embedding(TEXTS[0]) == vectors(folder, "encode_query", TEXTS[0])
    assert asyncio.run(found.aget_text_embedding_batch(TEXTS)) == documents
    assert asyncio.run(found.aget_query_embedding(TEXTS[0])) == found.get_query_embedding(TEXTS[0])
    assert kind.from_dict(found.to_dict()).get_text_embedding(TEXTS[1]) == documents[1]
    assert pickle.loads(pickle.dumps(found)).get_text_embedding(TEXTS[1]) == documents[1]
    from llama_index.core import VectorStoreIndex
    from llama_index.core.schema import TextNode

    index = VectorStoreIndex([TextNode(text=text) for text in TEXTS], embed_model=found)
    hits = index.as_retriever(similarity_top_k=3).retrieve("great cat")
    query = np.array(found.get_query_embedding("great cat"))
    scores = np.array(documents) @ query
    assert [hit.node.text for hit in hits] == [TEXTS[i] for i in np.argsort(-scores)[:3]]
    assert len(kind().get_text_embedding("a")) == 128  # the demo model


@pytest.mark.filterwarnings("ignore")
def test_chromadb(folder: Path, tmp_path: Path) -> None:
    kind = adapter("chromadb").FastattnEmbeddingFunction
    import chromadb
    from chromadb.config import Settings

    found = kind(folder, normalize_embeddings=True, threads=1)
    expected = vectors(folder, "encode_document", normalize_embeddings=True)
    assert rows(found(TEXTS)) == expected
    assert rows(found.embed_query(TEXTS)) == vectors(folder, "encode_query", normalize_embeddings=True)
    settings = Settings(anonymized_telemetry=False)
    client = chromadb.PersistentClient(str(tmp_path / "db"), settings)
    collection = client.create_collection("texts", embedding_function=found)
    collection.add(ids=[str(i) for i in range(len(TEXTS))], documents=TEXTS)
    assert rows(collection.get(include=["embeddings"], ids=["3"])["embeddings"]) == [expected[3]]
    again = client.get_collection("texts")  # the function comes from the stored configuration
    asked = again.query(query_texts=["great cat"], n_results=3)
    query = vectors(folder, "encode_query", ["great cat"], normalize_embeddings=True)[0]
    scores = np.array(expected) @ query
    assert asked["documents"] == [[TEXTS[i] for i in np.argsort(-scores)[:3]]]
    config = found.get_config()
    assert config["model"] == str(folder)
    assert rows(kind.build_from_config(config)(TEXTS)) == expected
    with pytest.raises(ConfigError, match="expected the model files with which the collection was made"):
        kind.build_from_config({**config, "sha256": "0" * 64})
    with pytest.raises(ConfigError, match="expected the keys model"):
        kind.build_from_config({**config, "other": 1})
    with pytest.raises(ConfigError, match="dtype: expected None, as in the collection, got 'int8'"):
        found.validate_config_update(config, {**config, "dtype": "int8"})


@pytest.mark.filterwarnings("ignore")
def test_keybert(folder: Path) -> None:
    backend = adapter("keybert").FastattnBackend(folder, threads=1)
    assert backend.embed(TEXTS).tolist() == vectors(folder)
    assert pickle.loads(pickle.dumps(backend)).embed(TEXTS).tolist() == vectors(folder)
    from keybert import KeyBERT

    text = "the good film runs a great cat and the bad dog runs a film"
    found = KeyBERT(model=backend).extract_keywords(text, top_n=3, stop_words=None)
    document, words = backend.embed([text])[0], [word for word, _ in found]
    known = sorted(set(text.split()) - {"a"})
    scores = backend.embed(known) @ document / np.linalg.norm(backend.embed(known), axis=1) / np.linalg.norm(document)
    assert words == [known[i] for i in np.argsort(-scores)[:3]]


@pytest.mark.filterwarnings("ignore")
def test_bertopic(folder: Path) -> None:
    backend = adapter("bertopic").FastattnBackend(folder, threads=1)
    assert backend.embed(TEXTS).tolist() == backend.embed_documents(TEXTS).tolist() == vectors(folder)
    from bertopic import BERTopic
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    parts = {"umap_model": PCA(2, random_state=0), "hdbscan_model": KMeans(2, random_state=0, n_init=1)}
    topics, _ = BERTopic(embedding_model=backend, **parts).fit_transform(TEXTS)
    parts = {"umap_model": PCA(2, random_state=0), "hdbscan_model": KMeans(2, random_state=0, n_init=1)}
    given, _ = BERTopic(embedding_model=backend, **parts).fit_transform(TEXTS, np.array(vectors(folder), np.float32))
    assert topics == given
    assert len(set(topics)) == 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "kind"), [("langchain", "FastattnEmbeddings"), ("keybert", "FastattnBackend")])
def test_a_loaded_model_can_be_passed(name: str, kind: str, folder: Path) -> None:
    model = fa.SentenceTransformer(folder, threads=1)
    found = getattr(adapter(name), kind)(model)
    assert found._lazy.open() is model
    with pytest.raises(InputError, match="threads: expected None with a loaded model, got 1"):
        getattr(adapter(name), kind)(model, threads=1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("package", ["langchain_core", "llama_index.core", "chromadb", "keybert", "lm_eval"])
def test_the_page_of_other_libraries(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks that `test_pages` leaves out, because they need the libraries."""
    pytest.importorskip(package, reason=f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    text = (pages.ROOT / "docs/how-to/other-libraries.md").read_text(encoding="utf-8")
    first = re.compile(rf"(from|import) {re.escape(package)}\b")
    (block,) = [block for block in pages.blocks(text) if first.match(block.body)]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(block.body, {"__name__": "__page__"})
    assert block.output is not None
    assert pages.matches(block.output.body, printed.getvalue())
