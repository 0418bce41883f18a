"""The numerics contract for random batches: a row has the bits that its sequence has alone (docs/numerics.md)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.program.test_same_bits import DTYPES, FAMILIES, assert_same, feed, rows

LONGEST = 150  # more than two KV blocks of 64
THREADS = (1, 2, 3)
lengths = st.one_of(st.integers(1, 20), st.sampled_from((63, 64, 65, 127, 128, 129)), st.integers(1, LONGEST))
batches = st.lists(lengths, min_size=1, max_size=9)
chunks = st.sampled_from((1, 5, 16, 33, 64, 65, 100))


@pytest.fixture(scope="module", params=DTYPES)
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Any]:
    """Return every family with every number of threads, in one dtype."""
    folder = tmp_path_factory.mktemp("models")
    return {
        (family.name, threads): family.load(folder / family.name, threads, dtype=request.param)
        for family in FAMILIES
        for threads in THREADS
    }


def texts(sizes: list[int], seed: int) -> list[NDArray[np.int32]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 131, n).astype(np.int32) for n in sizes]


@settings(max_examples=8)
@given(sizes=batches, seed=st.integers(0, 2**32), data=st.data())
def test_a_ragged_batch(models: dict[tuple[str, int], Any], sizes: list[int], seed: int, data: Any) -> None:
    name = data.draw(st.sampled_from([family.name for family in FAMILIES]))
    together, alone = data.draw(st.sampled_from(THREADS)), data.draw(st.sampled_from(THREADS))
    batch = texts(sizes, seed)
    expected = [rows(models[name, alone], [text])[0] for text in batch]
    assert_same(rows(models[name, together], batch), expected)


@settings(max_examples=6)
@given(sizes=st.lists(lengths, min_size=1, max_size=3), seed=st.integers(0, 2**32), data=st.data())
def test_cached_chunks(models: dict[tuple[str, int], Any], sizes: list[int], seed: int, data: Any) -> None:
    """Each text is fed in its own chunks, with a fork or a truncated cache on the way, next to the other texts."""
    model, alone = (models["gpt2", data.draw(st.sampled_from(THREADS))] for _ in range(2))
    batch = texts(sizes, seed)
    caches = [model.new_cache() for _ in batch]
    found: list[list[NDArray[np.float32]]] = [[] for _ in batch]
    unfinished, truncations = set(range(len(batch))), 0
    while unfinished:
        i = data.draw(st.sampled_from(sorted(unfinished)))
        if caches[i].length and truncations < 2 and data.draw(st.booleans()):
            truncations += 1
            back = data.draw(st.integers(0, caches[i].length))
            caches[i].truncate(back)
            found[i] = [np.concatenate(found[i])[:back]]
        if data.draw(st.booleans()):
            caches[i] = caches[i].fork()
        begin = caches[i].length
        found[i].append(feed(model, caches[i], batch[i][begin : begin + data.draw(chunks)]))
        if caches[i].length == len(batch[i]):
            unfinished.discard(i)
    assert_same([np.concatenate(parts) for parts in found], [rows(alone, [text])[0] for text in batch])


@settings(max_examples=8)
@given(sizes=batches, seed=st.integers(0, 2**32), data=st.data())
def test_generated_tokens(models: dict[tuple[str, int], Any], sizes: list[int], seed: int, data: Any) -> None:
    """A sampled text and its log-probabilities depend only on its own prompt and seed."""
    together, alone = (models["gpt2", data.draw(st.sampled_from(THREADS))] for _ in range(2))
    batch = texts(sizes, seed)
    options = data.draw(st.sampled_from(({}, {"do_sample": True, "top_k": 5}, {"do_sample": True, "top_p": 0.9})))
    options = {**options, "max_new_tokens": 3, "eos_token_id": -1, "return_dict_in_generate": True}
    seeds = [seed % 1000 + i for i in range(len(batch))]
    found = together.generate(batch, seed=seeds, **options)
    for i, text in enumerate(batch):
        expected = alone.generate([text], seed=[seeds[i]], **options)
        assert_same([found.sequences[i], found.logprobs[i]], [expected.sequences[0], expected.logprobs[0]])
