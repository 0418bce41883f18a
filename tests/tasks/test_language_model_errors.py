"""Errors of a language model's methods other than `generate`: keywords, files of prefixes, and limits of memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn
from fastattn.api.auto import AutoModelForCausalLM
from fastattn.api.causal_lm import CausalLM
from fastattn.errors import InputError
from fastattn.files import replaced_file
from tests.reference.checkpoints import write_gpt2
from tests.tasks import test_speculation

SIZES: dict[str, Any] = {"vocab_size": 300, "n_positions": 256, "n_embd": 48, "n_layer": 2, "n_head": 3}
PAGE_BYTES = 2 * 48 * 4 * 64 * 2
eager = test_speculation.eager  # the fixture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gpt2(tmp_path_factory.mktemp("gpt2"), **SIZES)


@pytest.fixture(scope="module")
def lm() -> Iterator[CausalLM]:
    with fastattn.pipeline("text-generation", threads=1).model as found:
        yield found


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda lm: lm.score("a", ["b"], prefx=1), "score: unknown keyword 'prefx'; did you mean 'prefix'?"),
        (lambda lm: lm.score("a", ["b"], zzz=1), "score: unknown keyword 'zzz'; it takes prefix and continuations"),
        (lambda lm: lm.surprisal("a b", strid=1), "surprisal: unknown keyword 'strid'; did you mean 'stride'?"),
        (lambda lm: lm.perplexity("a b", q=1), "perplexity: unknown keyword 'q'; it takes text_or_ids and stride"),
        (lambda lm: lm.cache_prefix("a", text=1), "cache_prefix: unknown keyword 'text'"),
        (lambda lm: lm.cache_prefix("a", ttl=1), "cache_prefix: unknown keyword 'ttl'; it takes text_or_ids"),
        (lambda lm: lm.load_prefix("a", mmap=1), "load_prefix: unknown keyword 'mmap'"),
    ],
)
def test_unknown_keywords(lm: CausalLM, call: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        call(lm)
    assert str(caught.value).startswith(message)


def test_a_prefix_is_not_written_to_a_missing_folder(lm: CausalLM, tmp_path: Path) -> None:
    path = tmp_path / "missing" / "prefix"
    (tmp_path / "file").touch()
    with lm.cache_prefix("Once upon a time") as prefix:
        with pytest.raises(FileNotFoundError) as caught:
            prefix.save(path)
        assert caught.value.filename == str(path)
        with pytest.raises(NotADirectoryError) as other:
            prefix.save(tmp_path / "file" / "prefix")
        assert other.value.filename == str(tmp_path / "file" / "prefix")
        with pytest.raises(IsADirectoryError) as third:
            prefix.save(tmp_path)
        assert third.value.filename == str(tmp_path)
        prefix.save(tmp_path / "prefix")  # it is still usable, and may be shorter than what is shared
        with lm.load_prefix(tmp_path / "prefix") as same:
            assert same.token_ids.tolist() == lm.tokenizer.encode("Once upon a time")
    assert sorted(found.name for found in tmp_path.iterdir()) == ["file", "prefix"]


def test_an_error_leaves_a_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with replaced_file(path) as file:
        file.write(b"first")

    def fail() -> None:
        with replaced_file(path) as file:
            file.write(b"second")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with pytest.raises(OSError, match="No space left on device") as caught, replaced_file(path):
        raise OSError(28, "No space left on device")
    assert caught.value.filename == str(path)
    assert [(found, found.read_bytes()) for found in tmp_path.iterdir()] == [(path, b"first")]


def test_memory_for_less_than_a_page(folder: Path) -> None:
    message = (
        rf"^kv_cache_bytes: expected at least {PAGE_BYTES}, the bytes of one page of 64 tokens, got {PAGE_BYTES - 1}$"
    )
    with pytest.raises(InputError, match=message):
        AutoModelForCausalLM.from_pretrained(folder, kv_cache_bytes=PAGE_BYTES - 1)
    with pytest.raises(InputError, match=rf"expected at least {PAGE_BYTES // 2},"):
        AutoModelForCausalLM.from_pretrained(folder, kv_cache_bytes=1, kv_dtype="bfloat16")
    with AutoModelForCausalLM.from_pretrained(folder, kv_cache_bytes=PAGE_BYTES) as lm:
        assert lm.kv_stats().limit == 1
        assert len(lm.generate([1, 2], max_new_tokens=62, eos_token_id=-1)) == 64


def test_kv_stats_report_the_memory_of_a_draft_model(folder: Path, eager: None) -> None:
    """It does not count toward the limit, which is full here."""
    with AutoModelForCausalLM.from_pretrained(folder, kv_cache_bytes=2 * PAGE_BYTES) as lm:
        seen = list[int]()

        def look(ids: Any, scores: Any) -> Any:
            seen.append(lm.kv_stats().draft_bytes)
            return scores

        plain = lm.generate([5] * 60, max_new_tokens=60, eos_token_id=-1)
        assert lm.kv_stats().draft_bytes == 0
        options: dict[str, Any] = {"assistant_model": "bfloat16", "max_new_tokens": 60, "eos_token_id": -1}
        found = lm.generate([5] * 60, **options, logits_processor=look)
        np.testing.assert_array_equal(found, plain)
        assert max(seen) == PAGE_BYTES  # two pages, with keys and values of bfloat16
        assert lm.kv_stats().draft_bytes == 0
        assert lm.kv_stats().limit == 2
        lm.copy_in("bfloat16").close()
        assert lm.kv_stats().draft_bytes == 0
