"""Tokens fed in chunks with a KV cache give the same result as one call with the whole text."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from fastattn.api.auto import AutoModelForCausalLM
from fastattn.api.causal_lm import CausalLM
from fastattn.errors import ContextLengthError, DTypeError, InputError
from fastattn.generation.scheduler import Call, Request, Scheduler
from fastattn.graph.ir import Step
from fastattn.graph.rewrites import optimize, with_outputs
from tests import tolerances
from tests.models.test_layouts import same
from tests.reference.checkpoints import write_gpt2
from tests.reference.hang import HANG_SECONDS

TEXT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]


@pytest.fixture
def lm(tmp_path: Path, device: str) -> Iterator[CausalLM]:
    with AutoModelForCausalLM.from_pretrained(write_gpt2(tmp_path), device=device) as model:
        yield model


def feed(lm: CausalLM, chunks: Sequence[Sequence[int]], caches: Sequence[Any]) -> list[NDArray[Any]]:
    """Return the logits of all tokens of one step, one array per sequence."""
    ends = np.cumsum([0, *(len(chunk) for chunk in chunks)]).astype(np.int32)
    positions = [
        np.arange(cache.length, cache.length + len(chunk)) for chunk, cache in zip(chunks, caches, strict=True)
    ]
    step = Step(
        token_ids=np.concatenate([np.array(chunk, np.int32) for chunk in chunks]),
        cu_seqlens=ends,
        positions=np.concatenate(positions).astype(np.int32),
        wanted=np.arange(ends[-1], dtype=np.int32),
        caches=tuple(caches),
    )
    logits = np.asarray(lm.executor.run(step, ["logits"])["logits"])
    return np.split(logits, ends[1:-1])


def feed_one(lm: CausalLM, cache: Any) -> None:
    """Run a step of one token with a cache, without reading its length."""
    one = np.zeros(1, np.int32)
    lm.executor.run(Step(one, np.array([0, 1], np.int32), one, one, caches=(cache,)))


@pytest.mark.parametrize("size", [1, 5, 12])
def test_chunks_equal_one_call(lm: CausalLM, device: str, size: int) -> None:
    whole = np.asarray(lm(TEXT).logits)
    cache = lm.new_cache()
    parts = [feed(lm, [TEXT[start : start + size]], [cache])[0] for start in range(0, len(TEXT), size)]
    assert cache.length == len(TEXT)
    same(device, np.concatenate(parts), whole, lm)
    cache.close()


def test_mixed_steps(lm: CausalLM, device: str) -> None:
    """One sequence decodes while another sequence's prompt is read."""
    caches = [lm.new_cache(), lm.new_cache()]
    feed(lm, [TEXT[:7]], caches[:1])
    first, second = feed(lm, [TEXT[7:8], TEXT[:5]], caches)
    same(device, first, np.asarray(lm(TEXT[:8], logits_to_keep=1).logits), lm)
    same(device, second, np.asarray(lm(TEXT[:5]).logits), lm)
    assert [cache.length for cache in caches] == [8, 5]


def test_truncate_and_fork(lm: CausalLM, device: str) -> None:
    cache = lm.new_cache()
    feed(lm, [TEXT[:6]], [cache])
    other = cache.fork()
    cache.truncate(4)
    assert (cache.length, other.length) == (4, 6)
    same(device, feed(lm, [[7, 7]], [cache])[0], np.asarray(lm([*TEXT[:4], 7, 7], logits_to_keep=2).logits), lm)
    same(device, feed(lm, [TEXT[6:]], [other])[0], np.asarray(lm(TEXT, logits_to_keep=6).logits), lm)
    cache.close()
    assert other.length == 12
    with pytest.raises(InputError, match="length"):
        other.truncate(13)


def test_fault_45_a_cache_and_a_step_over_the_context(lm: CausalLM) -> None:
    cache = lm.new_cache()
    feed(lm, [TEXT], [cache])
    with pytest.raises(ContextLengthError):
        feed(lm, [[1, 2, 3, 4, 5]], [cache])
    assert cache.length == len(TEXT)
    feed(lm, [[1, 2, 3, 4]], [cache])
    assert cache.length == 16


def test_fault_49_caches_closed_foreign_or_twice(lm: CausalLM, tmp_path: Path, device: str) -> None:
    closed = lm.new_cache()
    closed.close()
    closed.close()  # closing twice is fine
    for use in (lambda: closed.length, closed.fork, lambda: closed.truncate(0), lambda: feed_one(lm, closed)):
        with pytest.raises(InputError):
            use()
    good = lm.new_cache()
    with pytest.raises(InputError):
        feed(lm, [[1], [2]], [good, good])
    with AutoModelForCausalLM.from_pretrained(write_gpt2(tmp_path / "other", seed=1), device=device) as other:
        foreign = other.new_cache()
        with pytest.raises(InputError):
            feed(lm, [[1]], [foreign])
    assert good.length == 0
    feed(lm, [[1]], [good])
    assert good.length == 1


def test_fault_49_a_step_after_the_model_was_closed(lm: CausalLM) -> None:
    executor, requests = lm.executor, [Request([1, 2], 2, 4, 0)]
    with Scheduler(executor, [Call(requests)]) as scheduler:
        scheduler.step()
        lm.close()
        with pytest.raises(InputError, match="the model was closed"):
            scheduler.step()
    for use in (executor.new_cache, lambda: executor.with_program(executor.program)):
        with pytest.raises(InputError, match="the model was closed"):
            use()


@pytest.mark.parametrize("bad", [-1, 31])
def test_fault_41_ids_handed_to_an_executor(lm: CausalLM, bad: int) -> None:
    """Both give the same message: a model checks ids itself, but its executor can be called directly."""
    with pytest.raises(InputError, match=rf"^token_ids: expected 0 to 30, got {bad} at token 1$"):
        feed(lm, [[1, bad]], [lm.new_cache()])


def test_attention_maps_over_a_cache(lm: CausalLM, device: str) -> None:
    """Rows of a map sum to one over all visible positions, including the cached ones."""
    from dataclasses import replace

    from fastattn.graph.rewrites import optimize, with_outputs

    executor = lm.executor.with_program(optimize(with_outputs(lm.traced, attentions=True)))
    cache = executor.new_cache()
    ids = np.array(TEXT, np.int32)
    step = Step(ids[:8], np.array([0, 8], np.int32), np.arange(8, dtype=np.int32), np.array([7], np.int32))
    executor.run(replace(step, caches=(cache,)))
    step = Step(ids[8:], np.array([0, 4], np.int32), np.arange(8, 12, dtype=np.int32), np.array([3], np.int32))
    found = executor.run(replace(step, caches=(cache,)))
    whole = lm(TEXT, output_attentions=True).attentions
    assert whole is not None
    for layer in range(2):
        same(device, found[f"attentions.{layer}"][0], np.asarray(whole[layer])[:, 8:], lm)
    assert cache.length == 12


def test_fault_49_one_cache_in_many_threads(lm: CausalLM) -> None:
    """Calls that lose the race get an InputError; the cache contains what the others fed, and nothing crashes."""
    cache, fed = lm.new_cache(), []

    def use(number: int) -> None:
        for _ in range(40):
            with contextlib.suppress(InputError):
                if number == 0 and cache.length > 12:
                    cache.truncate(0)
                elif number == 1:
                    cache.fork().close()
                else:
                    feed_one(lm, cache)
                    fed.append(number)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_SECONDS)
    assert fed
    assert 0 <= cache.length <= 16
    feed_one(lm, fresh := lm.new_cache())
    assert fresh.length == 1


def test_attention_maps_need_a_cache_for_every_sequence(tmp_path: Path) -> None:
    """The size of the maps is computed from the caches, so too few caches must be rejected first."""
    with AutoModelForCausalLM.from_pretrained(write_gpt2(tmp_path)) as lm:
        executor = lm.executor.with_program(optimize(with_outputs(lm.traced, attentions=True)))
        ids = np.array([1, 2, 3, 4], np.int32)
        cu_seqlens = np.array([0, 1, 2, 3, 4], np.int32)
        step = Step(
            ids, cu_seqlens, np.zeros(4, np.int32), np.arange(4, dtype=np.int32), caches=(executor.new_cache(),)
        )
        with pytest.raises(InputError, match="one per sequence"):
            executor.run(step)


def test_objects_that_are_not_outputs_or_caches(lm: CausalLM) -> None:
    one, cu_seqlens = np.zeros(1, np.int32), np.array([0, 1], np.int32)
    with pytest.raises(InputError, match="outputs: expected some of"):
        lm.executor.run(Step(one, cu_seqlens, one, one), ["nonsense"])
    with pytest.raises(InputError, match="caches: expected KV caches of this executor, got str"):
        lm.executor.run(Step(one, cu_seqlens, one, one, caches=("cache",)))


def test_positions_and_caches_that_do_not_fit(lm: CausalLM, device: str) -> None:
    """Only the C++ executor checks this: its memory safety depends on it."""
    if device == "numpy":
        return
    cache = lm.new_cache()
    feed(lm, [TEXT[:3]], [cache])
    ids = np.array(TEXT[:2], np.int32)
    ends, wanted = np.array([0, 2], np.int32), np.array([1], np.int32)
    for positions, caches in (([0, 1], (cache,)), ([3, 5], (cache,)), ([0, 1], ())):
        step = Step(
            token_ids=ids, cu_seqlens=ends, positions=np.array(positions, np.int32), wanted=wanted, caches=caches
        )
        with pytest.raises(InputError, match=r"positions|caches"):
            lm.executor.run(step)
    assert cache.length == 3


@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16", "int8"])
def test_pages_are_as_large_as_their_dtype(tmp_path: Path, kv_dtype: str) -> None:
    """64 positions of 2 layers with 2 heads of 16: keys and values, and a scale for each in int8."""
    with AutoModelForCausalLM.from_pretrained(write_gpt2(tmp_path), kv_dtype=kv_dtype) as lm:
        executor: Any = lm.executor
        assert executor.kv_dtype == kv_dtype
        head = lm.config.n_embd // lm.config.n_head
        element = {"float32": 4, "bfloat16": 2, "int8": 1}[kv_dtype]
        scale = 4 if kv_dtype == "int8" else 0
        cache = lm.new_cache()
        feed(lm, [TEXT], [cache])
        expected = 64 * lm.config.n_layer * lm.config.n_head * 2 * (head * element + scale)
        assert executor.kv_bytes == expected


@pytest.mark.parametrize(("dtype", "kv_dtype"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("int8", "int8"),
                                                 ("int4", "int8")])  # fmt: skip
def test_kv_dtype_follows_the_weights(tmp_path: Path, dtype: str, kv_dtype: str) -> None:
    with AutoModelForCausalLM.from_pretrained(write_gpt2(tmp_path), dtype=dtype) as lm:
        executor: Any = lm.executor
        assert executor.kv_dtype == kv_dtype


def test_caches_of_another_kv_dtype(tmp_path: Path) -> None:
    with (
        AutoModelForCausalLM.from_pretrained(write_gpt2(tmp_path), kv_dtype="int8") as lm,
        AutoModelForCausalLM.from_pretrained(tmp_path) as other,
        pytest.raises(InputError, match="another model"),
    ):
        feed(lm, [[1]], [other.new_cache()])


@pytest.mark.parametrize("kv_dtype", ["int4", "INT8", "", 8, b"int8"])
def test_invalid_kv_dtypes(tmp_path: Path, kv_dtype: Any) -> None:
    error = InputError if isinstance(kv_dtype, str) else DTypeError
    with pytest.raises(error, match="kv_dtype: expected None or one of float32, bfloat16, int8 on cpu"):
        AutoModelForCausalLM.from_pretrained(write_gpt2(tmp_path), kv_dtype=kv_dtype)


def test_numpy_has_no_kv_dtype(tmp_path: Path) -> None:
    """It stores keys and values unchanged, because it is the specification."""
    with pytest.raises(InputError, match="kv_dtype: expected None on numpy, got 'int8'"):
        AutoModelForCausalLM.from_pretrained(write_gpt2(tmp_path), kv_dtype="int8", device="numpy")


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "int8"])
def test_attention_maps_in_any_kv_dtype(tmp_path: Path, kv_dtype: str) -> None:
    """Rows sum to one up to twice the error of exp2_rough: in a weight and in their sum."""
    with AutoModelForCausalLM.from_pretrained(write_gpt2(tmp_path), kv_dtype=kv_dtype) as lm:
        maps = lm(TEXT, output_attentions=True).attentions
        assert maps is not None
        for layer in maps:
            totals = np.asarray(layer, np.float64).sum(axis=-1)
            assert (np.abs(totals - 1) <= 4 * tolerances.EXP2_ROUGH + tolerances.gamma(2 * len(TEXT))).all()


def test_caches_share_pages(tmp_path: Path) -> None:
    """An attached page gives the bits of a computed one, and writing to it does not change the other cache."""
    ids = [(7 * i) % 31 for i in range(150)]
    folder = write_gpt2(tmp_path / "model", n_positions=256)
    with AutoModelForCausalLM.from_pretrained(folder) as lm:
        executor: Any = lm.executor
        length = executor.kv_page_len
        first, second = executor.new_cache(), executor.new_cache()
        (whole,) = feed(lm, [ids], [first])
        assert executor.kv_pages_in_use == 3
        second.attach(first.share_page(0), length)
        second.attach(first.share_page(1), 10)  # a part of it
        assert (second.length, executor.kv_pages_in_use) == (length + 10, 3)
        (rest,) = feed(lm, [ids[length + 10 :]], [second])
        np.testing.assert_array_equal(rest, whole[length + 10 :])
        assert executor.kv_pages_in_use == 5  # the part was copied
        (more,) = feed(lm, [[5]], [first])
        np.testing.assert_array_equal(more[0], np.asarray(lm([*ids, 5], logits_to_keep=1).logits)[0])
        third = executor.new_cache()
        third.attach(executor.new_page(first.share_page(0).read()), length)
        np.testing.assert_array_equal(feed(lm, [ids[length:]], [third])[0], whole[length:])
        for cache in (first, second, third):
            cache.close()
        assert executor.kv_pages_in_use == 0


def test_pages_that_cannot_be_attached(tmp_path: Path) -> None:
    folder = write_gpt2(tmp_path / "model", n_positions=256)
    with AutoModelForCausalLM.from_pretrained(folder) as lm, AutoModelForCausalLM.from_pretrained(folder) as other:
        executor: Any = lm.executor
        cache, foreign, closed = executor.new_cache(), cast(Any, other.executor).new_cache(), executor.new_cache()
        closed.close()
        feed(lm, [[1] * 70], [cache])
        page = cache.share_page(0)
        for index in (-1, 2):
            with pytest.raises(InputError, match=f"index: expected a page of the 70 positions, got {index}"):
                cache.share_page(index)
        for count in (0, 65, -1):
            with pytest.raises(InputError, match=f"count: expected 1 to 64, got {count}"):
                executor.new_cache().attach(page, count)
        with pytest.raises(InputError, match="expected whole pages of 64 positions to attach another, got 70"):
            cache.attach(page, 1)
        with pytest.raises(InputError, match="page: expected a page of this model"):
            foreign.attach(page, 1)
        with pytest.raises(InputError, match="closed"):
            closed.attach(page, 1)
        with pytest.raises(DTypeError):
            executor.new_page(np.zeros(executor.kv_page_bytes, np.float32))
        with pytest.raises(InputError, match=r"bytes: expected the .* bytes of a page, got 3"):
            executor.new_page(np.zeros(3, np.uint8))
        assert cache.length == 70
