"""The embeddings cache: the bits of `encode`, its keys, its size, several processes, and damaged files."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn as fa
from fastattn.errors import CacheError, DTypeError, InputError, ModelFormatError
from tests.reference.hang import HANG_SECONDS
from tests.tasks.sentence_folders import MEAN, NORMALIZE, POOLING, TEXTS, write_json, write_model, write_static

PROMPTS = {"prompts": {"query": "good ", "document": ""}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), POOLING, settings=PROMPTS)


@pytest.fixture(scope="module")
def model(folder: Path) -> fa.SentenceTransformer:
    return fa.SentenceTransformer(folder)


def same(a: Any, b: Any) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalize_embeddings": True},
        {"truncate_dim": 5, "normalize_embeddings": True},
        {"precision": "binary"},
        {"precision": "int8"},
        {"prompt": "the "},
        {"prompt_name": "query"},
        {"processing_kwargs": {"text": {"max_length": 4}}},
        {"batch_size": 1},
    ],
)
def test_the_bits_are_those_of_encode(model: fa.SentenceTransformer, tmp_path: Path, options: dict[str, Any]) -> None:
    with fa.EmbeddingCache(tmp_path / "c") as cache:
        expected = model.encode(TEXTS, **options)
        for _ in range(2):
            assert same(cache.encode(model, TEXTS, **options), expected)
        assert (cache.hits, cache.misses, len(cache)) == (len(TEXTS), len(TEXTS), len(TEXTS))
    with fa.EmbeddingCache(tmp_path / "c") as again:
        assert same(again.encode(model, list(reversed(TEXTS)), **options)[::-1].copy(), expected) or options == {
            "precision": "int8"
        }
        assert again.misses == 0


def test_shapes_and_kinds(model: fa.SentenceTransformer, tmp_path: Path) -> None:
    cache = fa.EmbeddingCache(tmp_path / "c")
    for texts in ("good film", [], ["a", "a", "b"], [("a", "b"), "a"], np.array(["a", "b"]), iter(["a"])):
        again = list(texts) if not isinstance(texts, (str, list, np.ndarray)) else texts
        assert same(cache.encode(model, again), model.encode(again))
    assert same(cache.encode_query(model, TEXTS), model.encode_query(TEXTS))
    assert same(cache.encode_document(model, TEXTS), model.encode_document(TEXTS))
    listed = cache.encode(model, ["a", "b"], convert_to_numpy=False)
    assert isinstance(listed, list)
    assert same(listed[1], model.encode("b"))


def test_a_pair_is_not_its_joined_text(model: fa.SentenceTransformer, tmp_path: Path) -> None:
    cache = fa.EmbeddingCache(tmp_path / "c")
    texts = [("good", "film"), "good film", ("good film", ""), 'good", "film', ("", "good film")]
    assert same(cache.encode(model, texts), model.encode(texts))
    assert cache.misses == len(texts)


def test_prompt_and_text_are_joined(model: fa.SentenceTransformer, tmp_path: Path) -> None:
    cache = fa.EmbeddingCache(tmp_path / "c")
    cache.encode(model, ["film"], prompt="good ")
    assert same(cache.encode(model, ["good film"]), model.encode(["good film"]))
    assert cache.hits == 1  # the same text for the model


def test_other_settings_are_other_entries(folder: Path, tmp_path: Path) -> None:
    cache = fa.EmbeddingCache(tmp_path / "c")
    model = fa.SentenceTransformer(folder)
    cache.encode(model, TEXTS)
    misses = cache.misses

    def missed(other: fa.SentenceTransformer, **options: Any) -> bool:
        nonlocal misses
        before, misses = misses, -1
        assert same(cache.encode(other, ["good film"], **options), other.encode(["good film"], **options))
        misses = cache.misses
        return misses > before

    assert not missed(model)
    assert not missed(fa.SentenceTransformer(folder))
    assert missed(fa.SentenceTransformer(folder, dtype="bfloat16"))
    assert missed(fa.SentenceTransformer(folder, device="numpy"))
    assert missed(model, prompt="the ")
    assert missed(model, task="query")
    model.max_seq_length = 5
    assert missed(model)
    model.max_seq_length = None
    assert not missed(model)
    model.tokenizer.add_tokens(["film"])
    assert missed(model)


def test_include_prompt_is_part_of_the_key(folder: Path, tmp_path: Path) -> None:
    cache, model = fa.EmbeddingCache(tmp_path / "c"), fa.SentenceTransformer(folder)
    first = cache.encode(model, ["film"], prompt="good ")
    model.set_pooling_include_prompt(False)
    second = cache.encode(model, ["film"], prompt="good ")
    assert same(second, model.encode(["film"], prompt="good "))
    assert not same(first, second)


def test_another_model_is_another_entry(folder: Path, tmp_path: Path) -> None:
    cache = fa.EmbeddingCache(tmp_path / "c")
    static = fa.SentenceTransformer(write_static(tmp_path / "s", NORMALIZE))
    first = fa.SentenceTransformer(write_model(tmp_path / "m", POOLING))
    for model in (first, static):
        assert same(cache.encode(model, TEXTS), model.encode(TEXTS))
    cls = {**MEAN, "pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
    write_json(next((tmp_path / "m").glob("*_Pooling")) / "config.json", cls)
    second = fa.SentenceTransformer(tmp_path / "m")
    assert same(cache.encode(second, TEXTS), second.encode(TEXTS))
    assert cache.hits == 0
    with pytest.raises(ModelFormatError, match="expected the file as it was when the model was loaded"):
        fa.EmbeddingCache(tmp_path / "d").encode(first, TEXTS)


def test_the_key_has_every_file_that_was_read(model: fa.SentenceTransformer, tmp_path: Path) -> None:
    names = {name for name, _ in model._stamp.files}
    assert {"modules.json", "config_sentence_transformers.json", "config.json", "model.safetensors"} <= names
    assert {"vocab.txt", "tokenizer_config.json", "1_Pooling/config.json"} <= names
    static = fa.SentenceTransformer(write_static(tmp_path / "s", NORMALIZE))
    assert {"modules.json", "tokenizer.json", "model.safetensors"} <= {name for name, _ in static._stamp.files}


def test_the_folder_may_move(tmp_path: Path) -> None:
    cache = fa.EmbeddingCache(tmp_path / "c")
    cache.encode(fa.SentenceTransformer(write_model(tmp_path / "m", POOLING)), TEXTS)
    (tmp_path / "m").rename(tmp_path / "n")
    cache.encode(fa.SentenceTransformer(tmp_path / "n"), TEXTS)
    assert cache.hits == len(TEXTS)


def test_the_size_is_bounded(model: fa.SentenceTransformer, tmp_path: Path) -> None:
    limit = 1 << 18
    with fa.EmbeddingCache(tmp_path / "c", max_bytes=limit) as cache:
        cache.encode(model, "the cat")
        for start in range(0, 6000, 1000):
            cache.encode(model, [f"good {i}" for i in range(start, start + 1000)])
            cache.encode(model, "the cat")
            assert cache.size_bytes() <= limit
        assert 200 < len(cache) < 6000
        hits = cache.hits
        cache.encode(model, "the cat")  # used often, so it stays
        cache.encode(model, "good 5999")
        assert cache.hits == hits + 2
        cache.encode(model, "good 0")  # the oldest one was deleted
        assert cache.hits == hits + 2
    assert (tmp_path / "c").stat().st_size <= limit + (1 << 16)


def test_clear(model: fa.SentenceTransformer, tmp_path: Path) -> None:
    cache = fa.EmbeddingCache(tmp_path / "c")
    cache.encode(model, TEXTS)
    assert len(pickle.loads(pickle.dumps(cache))) == len(TEXTS)
    cache.clear()
    assert len(cache) == 0
    cache.close()
    with pytest.raises(CacheError, match="after close"):
        cache.encode(model, TEXTS)


def test_threads(model: fa.SentenceTransformer, tmp_path: Path) -> None:
    cache, expected, wrong = fa.EmbeddingCache(tmp_path / "c"), model.encode(TEXTS), []

    def work() -> None:
        wrong.extend(not same(cache.encode(model, TEXTS), expected) for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not any(wrong)
    assert len(cache) == len(TEXTS)


WORKER = """
import sys
import fastattn as fa
model, cache = fa.SentenceTransformer(sys.argv[1]), fa.EmbeddingCache(sys.argv[2])
print("ready", flush=True)
for i in range(int(sys.argv[3])):
    cache.encode(model, [f"good {j}" for j in range(20 * i, 20 * i + 20)])
    print(i, flush=True)
"""


def worker(folder: Path, path: Path, rounds: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", WORKER, str(folder), str(path), str(rounds)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def test_two_processes(folder: Path, model: fa.SentenceTransformer, tmp_path: Path) -> None:
    both = [worker(folder, tmp_path / "c", 20) for _ in range(2)]
    for process in both:
        process.communicate(timeout=HANG_SECONDS)
        assert process.returncode == 0
    cache, texts = fa.EmbeddingCache(tmp_path / "c"), [f"good {i}" for i in range(400)]
    assert same(cache.encode(model, texts), model.encode(texts))
    assert cache.misses == 0
    assert len(cache) == 400


def test_opening_waits_for_the_lock_of_another_process(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "c", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.2, other.execute, ["COMMIT"])
    release.start()
    with fa.EmbeddingCache(tmp_path / "c") as cache:
        assert len(cache) == 0
    release.join()
    other.close()


def test_opening_does_not_wait_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastattn.tasks.cache.store._WAIT_SECONDS", 0.1)
    other = sqlite3.connect(tmp_path / "c", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(CacheError, match="locked"):
        fa.EmbeddingCache(tmp_path / "c")
    other.close()


def test_a_killed_process_leaves_a_usable_file(folder: Path, model: fa.SentenceTransformer, tmp_path: Path) -> None:
    process = worker(folder, tmp_path / "c", 100_000)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "5":
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    cache, texts = fa.EmbeddingCache(tmp_path / "c"), [f"good {i}" for i in range(120)]
    assert same(cache.encode(model, texts), model.encode(texts))
    assert cache.misses == 0
    assert same(cache.encode(model, TEXTS), model.encode(TEXTS))


def test_a_forked_child_opens_the_file_again(model: fa.SentenceTransformer, tmp_path: Path) -> None:
    cache = fa.EmbeddingCache(tmp_path / "c")
    cache.encode(model, TEXTS)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if len(cache) == len(TEXTS) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(cache) == len(TEXTS)


def test_a_full_disk_only_warns(
    model: fa.SentenceTransformer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache, texts = fa.EmbeddingCache(tmp_path / "c"), [f"good {i}" for i in range(500)]
    with cache._store._using() as connection:
        connection.execute("PRAGMA max_page_count = 12")  # SQLite then reports a full disk
    with caplog.at_level(logging.WARNING, "fastattn"):
        assert same(cache.encode(model, texts), model.encode(texts))
    assert "c: results are not stored: database or disk is full" in caplog.text
    assert same(cache.encode(model, TEXTS), model.encode(TEXTS))


@pytest.mark.parametrize("damage", ["text", "middle", "entry", "short"])
def test_a_damaged_file_is_an_error_that_names_it(model: fa.SentenceTransformer, tmp_path: Path, damage: str) -> None:
    path, texts = tmp_path / "c", [f"good {i}" for i in range(300)]
    with fa.EmbeddingCache(path) as cache:
        cache.encode(model, texts)
    data = bytearray(path.read_bytes())
    if damage == "text":
        data = bytearray(b"this is no database " * 500)
    elif damage == "middle":
        data[4096:] = b"\xff" * (len(data) - 4096)
    elif damage == "entry":
        vector = model.encode("good 7").tobytes()
        data[data.index(vector)] ^= 1
    else:
        del data[9000:]
    path.write_bytes(data)
    with pytest.raises(CacheError, match=r"c: expected an embeddings cache, got a damaged file"):
        fa.EmbeddingCache(path).encode(model, texts)


def test_files_of_other_programs(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "c")
    connection.execute("CREATE TABLE t (x)")
    connection.commit()
    connection.close()
    with pytest.raises(CacheError, match="got another SQLite database"):
        fa.EmbeddingCache(tmp_path / "c")
    with pytest.raises(CacheError, match="unable to open"):
        fa.EmbeddingCache(tmp_path / "no" / "folder")
    with fa.EmbeddingCache(tmp_path / "d") as cache, cache._store._using() as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(CacheError, match="expected format 1 of the cache, got 99"):
        fa.EmbeddingCache(tmp_path / "d")


def test_wrong_arguments(model: fa.SentenceTransformer, tmp_path: Path) -> None:
    cache = fa.EmbeddingCache(tmp_path / "c")
    with pytest.raises(DTypeError, match="model: expected a SentenceTransformer, got str"):
        cache.encode("m", TEXTS)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unknown keyword 'output_value'"):
        cache.encode(model, TEXTS, output_value="token_embeddings")  # type: ignore[call-arg]
    with pytest.raises(InputError, match="max_bytes: expected"):
        fa.EmbeddingCache(tmp_path / "c", max_bytes=10)
    with pytest.raises(DTypeError, match="path: expected a path"):
        fa.EmbeddingCache(1)  # type: ignore[arg-type]


def test_the_file_contains_no_texts(model: fa.SentenceTransformer, tmp_path: Path) -> None:
    with fa.EmbeddingCache(tmp_path / "c") as cache:
        cache.encode(model, ["a secret film"])
    assert b"secret" not in (tmp_path / "c").read_bytes()
