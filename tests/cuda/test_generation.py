"""Generation on the CUDA executor: steps over KV caches, graphs, and tokens drawn on the device."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastattn.api.auto import AutoModelForCausalLM
from fastattn.api.causal_lm import CausalLM
from fastattn.errors import ContextLengthError, InputError, NonFiniteError, OutOfMemory
from fastattn.executors.cuda import CudaExecutor
from fastattn.graph.ir import Step
from fastattn.graph.sampling import SAMPLE_PARAMS, Sampling
from tests.reference import checkpoints

OPTIONS = {"vocab_size": 131, "n_positions": 200, "n_embd": 24, "n_head": 3, "n_layer": 2}
PROMPTS = [[5, 6, 7], [9] * 61, [11, 12, 13, 14, 15, 16, 17]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkpoints.write_gpt2(tmp_path / "gpt2", **OPTIONS)


@pytest.fixture
def ours(gpu: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CausalLM]:
    """Compute products with the built-in kernel, to get the CPU's bits."""
    without = CudaExecutor.__init__
    monkeypatch.setattr(CudaExecutor, "__init__", lambda *args, **named: without(*args, **named, library=False))
    with AutoModelForCausalLM.from_pretrained(folder, device="cuda") as model:
        yield model


@pytest.fixture
def theirs(folder: Path) -> Iterator[CausalLM]:
    with AutoModelForCausalLM.from_pretrained(folder, device="cpu") as model:
        yield model


def feed(lm: CausalLM, chunks: Sequence[Sequence[int]], caches: Sequence[Any]) -> NDArray[Any]:
    """Return the logits of all tokens of one step."""
    ends = np.cumsum([0, *(len(chunk) for chunk in chunks)]).astype(np.int32)
    positions = [np.arange(len(chunk)) + cache.length for chunk, cache in zip(chunks, caches, strict=True)]
    step = Step(
        token_ids=np.concatenate([np.array(chunk, np.int32) for chunk in chunks]),
        cu_seqlens=ends,
        positions=np.concatenate(positions).astype(np.int32),
        wanted=np.arange(ends[-1], dtype=np.int32),
        caches=tuple(caches),
    )
    return np.asarray(lm.executor.run(step, ["logits"])["logits"])


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"temperature": 0.8, "top_k": 20, "seed": 3},
        {"temperature": 1.3, "top_p": 0.7, "seed": 4},
        {"repetition_penalty": 1.4, "min_p": 0.05, "seed": [1, 2, 3]},
        {"repetition_penalty": 1.2, "do_sample": False, "min_new_tokens": 8, "eos_token_id": 9},
    ],
    ids=["greedy", "top-k", "top-p", "penalty", "suppressed"],
)
def test_texts_are_those_of_the_cpu(ours: CausalLM, theirs: CausalLM, options: dict[str, Any]) -> None:
    asked = {"max_new_tokens": 70, "return_dict_in_generate": True, **options}
    found, expected = ours.generate(PROMPTS, **asked), theirs.generate(PROMPTS, **asked)
    assert [ids.tolist() for ids in found.sequences] == [ids.tolist() for ids in expected.sequences]
    for a, b in zip(found.logprobs, expected.logprobs, strict=True):
        assert np.array_equal(a, b)
    alone = [ours.generate(PROMPTS[1], **{**asked, "seed": 2 if isinstance(options.get("seed"), list) else None})]
    if options.get("do_sample") is False:
        assert alone[0].sequences[0].tolist() == found.sequences[1].tolist()


def test_steps_are_replayed_as_graphs(ours: CausalLM, theirs: CausalLM) -> None:
    """There is one graph per batch size and doubling of the length; every step has the CPU's bits."""
    executor: Any = ours.executor
    caches = [[lm.new_cache() for _ in PROMPTS] for lm in (ours, theirs)]
    first = [feed(lm, PROMPTS, held) for lm, held in zip((ours, theirs), caches, strict=True)]
    assert np.array_equal(*first)
    assert executor._executor.graphs == 0
    for i in range(70):
        tokens = [[(7 * i + j) % 131] for j in range(3)]
        found, expected = (feed(lm, tokens, held) for lm, held in zip((ours, theirs), caches, strict=True))
        assert np.array_equal(found, expected), i
    # 62 to 64 positions, then 65 to 128, then more; each is captured on its second use.
    assert executor._executor.graphs == 3
    # Fewer sequences, and a prompt next to a sequence that decodes.
    for chunks in ([[1]], [[2]], [[3], [4, 5, 6]], [[3], [4, 5, 6]]):
        pairs = [held[: len(chunks)] for held in caches]
        found, expected = (feed(lm, chunks, held) for lm, held in zip((ours, theirs), pairs, strict=True))
        assert np.array_equal(found, expected), chunks


def test_a_step_that_cannot_be_captured_runs_without_a_graph(
    ours: CausalLM, theirs: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTATTN_EMULATED_CAPTURE_FAILS", "1")
    executor: Any = ours.executor
    if executor._module.__name__ != "_cuda_emulated":
        pytest.skip("a real capture does not fail on request")
    caches = [lm.new_cache() for lm in (ours, theirs)]
    for i in range(4):
        found, expected = (feed(lm, [[i]], [cache]) for lm, cache in zip((ours, theirs), caches, strict=True))
        assert np.array_equal(found, expected), i
    assert (executor._executor.graphs, executor.failed_graphs) == (0, 1)


def test_chunks_equal_one_call(ours: CausalLM) -> None:
    text = np.random.default_rng(0).integers(0, 131, 150).tolist()
    whole = np.asarray(ours(text).logits)
    for size in (1, 7, 64, 100):
        cache = ours.new_cache()
        parts = [feed(ours, [text[start : start + size]], [cache]) for start in range(0, len(text), size)]
        assert np.array_equal(np.concatenate(parts), whole), size
        cache.close()


def test_truncate_and_fork(ours: CausalLM) -> None:
    """Forks share pages until one writes; pages of closed caches are reused, in any order."""
    text = list(range(100))
    cache = ours.new_cache()
    feed(ours, [text], [cache])
    forks = [cache.fork() for _ in range(3)]
    forks[0].truncate(70)
    found = [feed(ours, [[i, i + 1]], [fork]) for i, fork in enumerate(forks)]
    expected = [
        feed(ours, [ids], [ours.new_cache()])[-2:] for ids in ([*text[:70], 0, 1], [*text, 1, 2], [*text, 2, 3])
    ]
    for a, b in zip(found, expected, strict=True):
        assert np.array_equal(a, b)
    assert np.array_equal(feed(ours, [[9]], [cache])[0], feed(ours, [[*text, 9]], [ours.new_cache()])[-1])
    assert [held.length for held in (cache, *forks)] == [101, 72, 102, 102]


def test_pages_grow_and_are_used_again(ours: CausalLM) -> None:
    """More sequences than the first pages can store, so pages are added while caches are in use."""
    executor: Any = ours.executor
    caches, expected = [], []
    for i in range(20):
        cache = ours.new_cache()
        feed(ours, [[i] * 60], [cache])
        caches.append(cache)
    grown = executor.kv_bytes
    for i, cache in enumerate(caches):
        expected.append(feed(ours, [[i] * 61], [ours.new_cache()])[-1])
        assert np.array_equal(feed(ours, [[i]], [cache])[0], expected[-1])
    for cache in caches:
        cache.close()
    for _ in range(20):
        feed(ours, [[3] * 60], [ours.new_cache()])
    assert executor.kv_bytes >= grown > 0
    assert executor.used_bytes >= executor.kv_bytes + executor.weight_bytes


def test_pages_fill_the_budget(gpu: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When twice the pages do not fit any more, fewer are added, down to one; the caches stay as they are."""
    without = CudaExecutor.__init__
    monkeypatch.setattr(CudaExecutor, "__init__", lambda *args, **named: without(*args, **named, library=False))
    monkeypatch.setenv("FASTATTN_CUDA_MEMORY_MB", "3")
    with AutoModelForCausalLM.from_pretrained(folder, device="cuda") as lm:
        executor: Any = lm.executor
        feed(lm, [[5] * 4], [lm.new_cache()])  # the workspace of all steps below
        expected = feed(lm, [[5, 6]], [lm.new_cache()])
        following = feed(lm, [[5, 6, 7]], [lm.new_cache()])[-1:]
        caches: list[Any] = []

        def fill() -> None:
            while len(caches) < 1000:
                caches.append(lm.new_cache())
                assert np.array_equal(feed(lm, [[5, 6]], [caches[-1]]), expected)

        with pytest.raises(OutOfMemory, match="for pages of keys and values"):
            fill()
        page_bytes = 2 * 2 * 3 * 8 * 64 * 4
        assert executor.kv_bytes >= page_bytes * (len(caches) - 1)
        assert executor.budget_bytes - executor.used_bytes < page_bytes
        for cache in caches[:-1]:
            assert np.array_equal(feed(lm, [[7]], [cache]), following)
        # A step that fails because it cannot get its last page frees the others.
        for cache in caches[:2]:
            cache.close()
        crowd = [lm.new_cache() for _ in range(3)]
        with pytest.raises(OutOfMemory, match="for pages of keys and values"):
            feed(lm, [[5, 6]] * 3, crowd)
        for cache in (crowd[2], lm.new_cache()):
            assert np.array_equal(feed(lm, [[5, 6]], [cache]), expected)
            caches.append(cache)  # keeps its page


def test_a_failed_step_leaves_caches_alone(ours: CausalLM, folder: Path) -> None:
    cache, other = ours.new_cache(), ours.new_cache()
    feed(ours, [[1, 2, 3]], [cache])
    one = np.ones(1, np.int32)
    ends = np.array([0, 1], np.int32)
    for error, step in (
        (InputError, Step(one * 131, ends, one * 3, one * 0, caches=(cache,))),
        (InputError, Step(one, ends, one * 2, one * 0, caches=(cache,))),
        (InputError, Step(one, ends, one * 3, one, caches=(cache,))),
        (InputError, Step(one, ends, one * 3, one * 0, caches=(cache, other))),
        (InputError, Step(np.ones(2, np.int32), np.arange(3, dtype=np.int32), one, one, caches=(cache, cache))),
        (
            ContextLengthError,
            Step(np.ones(201, np.int32), ends * 201, np.arange(201, dtype=np.int32), one, caches=(other,)),
        ),
    ):
        with pytest.raises(error):
            ours.executor.run(step)
    assert (cache.length, other.length) == (3, 0)
    assert np.array_equal(feed(ours, [[4]], [cache])[0], np.asarray(ours([1, 2, 3, 4]).logits)[-1])
    with (
        AutoModelForCausalLM.from_pretrained(folder, device="cuda") as second,
        pytest.raises(InputError, match="another"),
    ):
        second.executor.run(Step(one, ends, one * 3, one * 0, caches=(cache,)))
    cache.close()
    with pytest.raises(InputError, match="closed"):
        ours.executor.run(Step(one, ends, one * 3, one * 0, caches=(cache,)))


def test_logits_that_are_not_finite(gpu: str, tmp_path: Path) -> None:
    config = {**checkpoints.GPT2, **OPTIONS}
    for bad, message in ((np.nan, "NaN"), (np.inf, "NaN")):
        tensors = checkpoints.gpt2_tensors(config)
        tensors["wpe.weight"][2] = bad
        model = AutoModelForCausalLM.from_pretrained(
            checkpoints.write(tmp_path / message, config, tensors), device="cuda"
        )
        for options in ({"do_sample": False}, {"temperature": 0.7, "seed": 1}):
            assert len(model.generate([1], max_new_tokens=1, **options)) == 2
            with pytest.raises(NonFiniteError, match=f"got {message} in row 0"):
                model.generate([1], max_new_tokens=4, **options)
        model.close()


def test_decoding_goes_on_after_an_error(ours: CausalLM) -> None:
    """At the end of the context nothing is lost: the loop remains at the same point."""
    cache = ours.new_cache()
    feed(ours, [[1] * 198], [cache])
    zero = np.zeros(1, np.int32)
    step = Step(zero + 5, np.array([0, 1], np.int32), zero + 198, zero, caches=(cache,))
    params = np.zeros(1, SAMPLE_PARAMS)
    params["temperature"] = params["top_p"] = params["repetition_penalty"] = 1
    executor = ours.executor
    assert isinstance(executor, CudaExecutor)
    loop = executor.decoding(step, Sampling(params, zero[:0], np.zeros(2, np.int64)))
    drawn = [loop.draw()[0] for _ in range(2)]
    for _ in range(2):
        with pytest.raises(ContextLengthError):
            loop.draw()
    cache.truncate(198)
    assert executor.decoding(step, Sampling(params, zero[:0], np.zeros(2, np.int64))).draw()[0] == drawn[0]


def test_batches_of_every_size(ours: CausalLM, theirs: CausalLM) -> None:
    """Sizes on both sides of every bound: of graphs, of powers of two, of pages."""
    rng = np.random.default_rng(1)
    for n, length in itertools.product((1, 2, 3, 5, 33, 65), (1, 2, 63, 64, 65)):
        if n * length > 400:
            continue
        prompts = [rng.integers(0, 131, length).tolist() for _ in range(n)]
        found, expected = (lm.generate(prompts, max_new_tokens=3, do_sample=False) for lm in (ours, theirs))
        assert [ids.tolist() for ids in found] == [ids.tolist() for ids in expected], (n, length)
