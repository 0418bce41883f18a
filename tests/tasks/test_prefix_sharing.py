"""Prompts with equal beginnings share keys and values, and their results are the same as alone."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fastattn import AutoModelForCausalLM
from fastattn.api.causal_lm import CausalLM
from fastattn.errors import ContextLengthError, DTypeError, InputError, ModelFormatError
from fastattn.generation import scheduler
from fastattn.generation.call import Call
from fastattn.generation.prefix_tree import PrefixTree, first_seen
from fastattn.generation.request import Request
from tests.reference.checkpoints import write_gpt2
from tests.tasks.test_engine import alone, assert_free

SIZES = {"vocab_size": 300, "n_positions": 640, "n_embd": 48, "n_layer": 2, "n_head": 3}
PAGE_BYTES = 2 * 48 * 4 * 64 * 2
NUMBERS = random.Random(5)
PREFIX = [NUMBERS.randrange(300) for _ in range(500)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gpt2(tmp_path_factory.mktemp("gpt2"), **SIZES)


class Fed:
    """Counts the tokens of all steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n = 0
        step_of = scheduler.step_of

        def counted(chunks: Any) -> Any:
            step = step_of(chunks)
            self.n += len(step.token_ids)
            return step

        monkeypatch.setattr(scheduler, "step_of", counted)

    def take(self) -> int:
        n, self.n = self.n, 0
        return n


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> Fed:
    return Fed(monkeypatch)


def generate(lm: CausalLM, prompts: Sequence[Sequence[int]], n_new: int = 1) -> list[list[int]]:
    found: Any = lm.generate([list(ids) for ids in prompts], max_new_tokens=n_new, eos_token_id=-1)
    return [ids.tolist() for ids in found]


@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16", "int8"])
def test_a_prefix_is_computed_once_in_a_batch(folder: Path, kv_dtype: str, fed: Fed) -> None:
    """16 continuations of 500 equal tokens: at least 8 times less work."""
    prompts = [PREFIX + [NUMBERS.randrange(300) for _ in range(i % 8 + 1)] for i in range(16)]
    with AutoModelForCausalLM.from_pretrained(folder, kv_dtype=kv_dtype) as lm:
        expected = [alone(lm, ids, max_new_tokens=9) for ids in prompts]
        work = fed.take()
        assert work >= sum(map(len, prompts))
        assert generate(lm, prompts) == [ids[: len(prompt) + 1] for ids, prompt in zip(expected, prompts, strict=True)]
        assert 8 * fed.take() <= sum(map(len, prompts))
        assert generate(lm, prompts, 9) == expected
        assert_free(lm)


def test_a_second_call_starts_where_the_first_one_is_equal(lm: CausalLM, fed: Fed) -> None:
    first = generate(lm, [PREFIX[:300]], 40)[0]
    for n, more in ((340, 5), (300, 3), (130, 7), (64, 1)):
        prompt = first[:n] + [NUMBERS.randrange(300) for _ in range(more)]
        expected = alone(lm, prompt, max_new_tokens=20)
        fed.take()
        assert generate(lm, [prompt], 1)[0] == expected[: len(prompt) + 1]
        computed = fed.take()
        # The last page of the first text has 19 tokens more than n = 320; fewer than 16 equal ones are not worth it.
        shared = 339 if n == 340 else n if n % 64 >= 16 or n % 64 == 0 else n // 64 * 64
        assert computed == len(prompt) - shared, (n, computed)
        assert generate(lm, [prompt], 20)[0] == expected
    assert_free(lm)


def test_equal_prompts_at_the_same_time(lm: CausalLM, fed: Fed) -> None:
    expected = alone(lm, PREFIX[:200], max_new_tokens=5)
    fed.take()
    assert generate(lm, [PREFIX[:200]] * 10, 5) == [expected] * 10
    assert fed.take() < 2 * 200


def test_the_least_recently_used_pages_go_first(folder: Path, fed: Fed) -> None:
    with AutoModelForCausalLM.from_pretrained(folder, kv_cache_bytes=7 * PAGE_BYTES) as lm:
        texts = [[i] * 128 for i in range(4)]
        for ids in texts[:3]:
            generate(lm, [ids])
        generate(lm, [texts[0]])  # used again
        generate(lm, [texts[3]])
        assert lm.kv_stats().limit == 7
        assert lm.kv_stats().idle <= 7
        fed.take()
        generate(lm, [texts[0]])
        assert fed.take() == 1
        generate(lm, [texts[1]])
        assert fed.take() > 32
        assert_free(lm)


def test_sequences_that_grow_beyond_the_memory_are_computed_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[int] = []
    preempt = scheduler.Scheduler._preempt

    def noted(self: Any, request: Any, **options: Any) -> None:
        stopped.append(request.index)
        preempt(self, request, **options)

    monkeypatch.setattr(scheduler.Scheduler, "_preempt", noted)
    with AutoModelForCausalLM.from_pretrained(folder, kv_cache_bytes=8 * PAGE_BYTES) as lm:
        prompts = [[i] * (20 + i) for i in range(4)]
        expected = [alone(lm, ids, max_new_tokens=300) for ids in prompts]
        assert generate(lm, prompts, 300) == expected
        assert stopped
        assert_free(lm)


def test_a_pinned_prefix_stays(folder: Path, fed: Fed) -> None:
    with AutoModelForCausalLM.from_pretrained(folder, kv_cache_bytes=16 * PAGE_BYTES) as lm:
        prompt = [*PREFIX[:300], 1, 2, 3]
        expected = alone(lm, prompt, max_new_tokens=4)
        with lm.cache_prefix(PREFIX[:300]) as prefix:
            assert prefix.token_ids.tolist() == PREFIX[:300]
            assert prefix.n_bytes == 5 * PAGE_BYTES
            assert lm.kv_stats().in_use == 5
            for i in range(6):
                generate(lm, [[i] * 600])
            fed.take()
            assert generate(lm, [prompt], 4)[0] == expected
            assert fed.take() == 3 + 1  # and the first step of the decode loop
            assert lm.kv_stats().in_use == 5
        prefix.close()
        assert_free(lm)
        for i in range(6):
            generate(lm, [[i] * 600])
        fed.take()
        generate(lm, [prompt], 4)
        assert fed.take() > 300
        dropped = lm.cache_prefix(PREFIX[:200])
        del dropped
        assert_free(lm)


def test_bad_prefixes(lm: CausalLM) -> None:
    with pytest.raises(InputError, match="text_or_ids: expected"):
        lm.cache_prefix([])
    with pytest.raises(ContextLengthError, match="fewer tokens than the context of 640 positions, got 640"):
        lm.cache_prefix([1] * 640)
    with pytest.raises(DTypeError):
        lm.cache_prefix(b"text")
    with pytest.raises(InputError, match="got several"):
        lm.cache_prefix([[1], [2]])


def test_a_prefix_of_the_numpy_executor_is_refused(folder: Path) -> None:
    with (
        AutoModelForCausalLM.from_pretrained(folder, device="numpy") as lm,
        pytest.raises(InputError, match="cache_prefix: expected a model with pages"),
    ):
        lm.cache_prefix([1, 2])


@pytest.mark.parametrize("n", [500, 128, 30])
def test_a_file_of_a_prefix(folder: Path, tmp_path: Path, n: int, fed: Fed) -> None:
    path, prompt = tmp_path / "prefix", [*PREFIX[:n], 5, 6]
    with AutoModelForCausalLM.from_pretrained(folder) as lm:
        expected = alone(lm, prompt, max_new_tokens=9)
        with lm.cache_prefix(PREFIX[:n]) as prefix:
            prefix.save(path)
        with pytest.raises(InputError, match=r"expected an open prefix, got one after close\(\)"):
            prefix.save(path)
    assert list(tmp_path.iterdir()) == [path]
    with AutoModelForCausalLM.from_pretrained(folder) as lm:
        fed.take()
        with lm.load_prefix(path) as prefix:
            assert fed.take() == n % 64 or 1  # the last token is always computed
            assert prefix.token_ids.tolist() == PREFIX[:n]
            assert generate(lm, [prompt], 9)[0] == expected
        assert_free(lm)


def test_files_of_other_models_and_damaged_files(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "prefix"
    with AutoModelForCausalLM.from_pretrained(folder) as lm, lm.cache_prefix(PREFIX[:200]) as prefix:
        prefix.save(path)
    other = write_gpt2(tmp_path / "other", seed=9, **SIZES)
    for options in ({"path": other}, {"path": folder, "kv_dtype": "int8"}, {"path": folder, "dtype": "int8"}):
        where = options.pop("path")
        with (
            AutoModelForCausalLM.from_pretrained(where, **options) as lm,
            pytest.raises(InputError, match="expected keys and values of this model with its dtype and kv_dtype"),
        ):
            lm.load_prefix(path)
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[-5] ^= 1
    with AutoModelForCausalLM.from_pretrained(folder) as lm:
        for bad in (
            bytes(flipped),
            good[:-1],
            good[:100],
            b"",
            good.replace(b"fastattn-prefix-1", b"fastattn-prefix-2"),
        ):
            path.write_bytes(bad)
            with pytest.raises(ModelFormatError):
                lm.load_prefix(path)
        with pytest.raises(FileNotFoundError):
            lm.load_prefix(tmp_path / "absent")
        shutil.copy(folder / "model.safetensors", path)
        with pytest.raises(ModelFormatError, match="expected a file of the format fastattn-prefix-1"):
            lm.load_prefix(path)
        assert_free(lm)


class FakeCache:
    """A cache with pages that are just numbers."""

    def __init__(self) -> None:
        self.pages: list[Any] = []
        self.length = 0

    def skip_page(self) -> None:
        self.pages.append(None)
        self.length += 32

    def attach(self, page: Any, count: int) -> None:
        self.pages.append(page)
        self.length += count

    def share_page(self, index: int) -> Any:
        return index


@pytest.mark.parametrize("window", [0, 1, 40])
def test_the_tree_compares_tokens_and_counts_users(window: int) -> None:
    """Random texts over two tokens: what is attached always has the same tokens, and nothing stays in use.

    With a window, every page that the next token sees is attached, and nodes before it are no longer in use.
    """
    tree, numbers = PrefixTree(32, 20, window), random.Random(3)
    owners: dict[int, list[int]] = {}

    class Page:
        def __init__(self, ids: list[int]) -> None:
            self.ids = ids

    running: list[tuple[Any, int, Any, list[int]]] = []
    for _ in range(3000):
        if running and numbers.random() < 0.5:
            node, n_unseen, cache, ids = running.pop(numbers.randrange(len(running)))
            fed = numbers.randint(cache.length, len(ids))
            cache.share_page = lambda index, ids=ids: Page(ids[index * 32 :])
            node = tree.insert(node, cache, ids, fed, tail=numbers.random() < 0.7)
            if window and numbers.random() < 0.5:
                first = min(first_seen(fed, window, 32), node.depth - 1)
                tree.leave(node, n_unseen, first)
                n_unseen = max(n_unseen, first)
            tree.leave(node, n_unseen)
            continue
        ids = [numbers.randrange(2) if numbers.random() < 0.04 else 1 for _ in range(numbers.randint(1, 150))]
        cache: Any = FakeCache()
        node, n_unseen = tree.extend(tree.root(), cache, ids, len(ids) - 1)
        assert n_unseen == 0 or n_unseen == min(first_seen(cache.length, window, 32), node.depth - 1)
        assert cache.length < len(ids)
        for i, page in enumerate(cache.pages):
            begin = 32 * i
            count = min(32, cache.length - begin)
            assert (page is None) == (i < n_unseen)
            assert page is None or page.ids[:count] == ids[begin : begin + count]
        running.append((node, n_unseen, cache, ids))
        assert not owners
    for node, n_unseen, cache, ids in running:
        tree.leave(node, n_unseen)
        assert cache.length < len(ids)
    assert tree.n_idle <= 20
    tree.clear()
    assert tree.n_idle == 0
    assert not tree.root().children
    assert not tree.root().heads


def test_a_prefix_that_is_canceled_pins_no_pages(lm: CausalLM) -> None:
    draws = lm.engine.draws(Call([Request(list(PREFIX), len(PREFIX), 4, 0, pins=True)], every_token=True))
    next(draws)
    draws.close()
    assert_free(lm)
