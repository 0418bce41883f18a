"""Texts longer than the context: an error by default; overflow="slide" reads the end of the text again."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastattn import AutoModelForCausalLM
from fastattn.api.causal_lm import CausalLM
from fastattn.errors import ContextLengthError, InputError
from fastattn.generation.request import window_start
from tests.reference.checkpoints import write_gpt2
from tests.tasks.test_engine import assert_free, in_threads

SLIDE: Any = {"eos_token_id": -1, "overflow": "slide"}


def test_where_windows_begin() -> None:
    """At least half a context before a token, at most a whole one; it moves in steps of half a context."""
    for context in (1, 2, 7, 8, 64):
        starts = [window_start(n, context) for n in range(1, 5 * context)]
        assert all(max(1, context - context // 2) <= n - start <= context for n, start in enumerate(starts, 1) if start)
        assert set(starts) <= set(range(0, 5 * context, max(1, context // 2)))
        assert starts == sorted(starts)
        assert starts[:context] == [0] * context


def one_by_one(lm: CausalLM, ids: list[int], n_new: int) -> list[int]:
    """Greedy search where each token is computed from its whole window, without a cache."""
    ids = list(ids)
    for _ in range(n_new):
        window = ids[window_start(len(ids), lm.executor.program.max_positions) :]
        ids.append(int(np.asarray(lm(window, logits_to_keep=1).logits)[0].argmax()))
    return ids


@pytest.mark.parametrize("context", [16, 130])
def test_a_text_beyond_the_context(tmp_path: Path, context: int) -> None:
    prompts = [[1, 2, 3], [(5 * i) % 31 for i in range(context)], [(3 * i) % 31 for i in range(3 * context)]]
    with AutoModelForCausalLM.from_pretrained(write_gpt2(tmp_path, n_positions=context)) as lm:
        expected = [one_by_one(lm, ids, 2 * context + 3) for ids in prompts]
        found: Any = lm.generate(prompts, max_new_tokens=2 * context + 3, **SLIDE)
        assert [ids.tolist() for ids in found] == expected
        assert lm.generate(prompts[2], **SLIDE).tolist() == expected[2][: 3 * context + 20]
        barrier = threading.Barrier(6)

        def run(i: int) -> list[int]:
            barrier.wait()
            return [int(token) for token in lm.generate(prompts[i % 3], max_new_tokens=2 * context + 3, **SLIDE)]

        assert in_threads(run, 6) == expected * 2
        assert_free(lm)


def test_a_text_beyond_the_context_with_little_memory(tmp_path: Path) -> None:
    folder, page = write_gpt2(tmp_path, n_positions=130), 2 * 12 * 4 * 64 * 2
    prompts = [[i, i + 1] for i in range(5)]
    with AutoModelForCausalLM.from_pretrained(folder, kv_cache_bytes=4 * page) as lm:
        assert lm.kv_stats().limit == 4
        expected = [one_by_one(lm, ids, 300) for ids in prompts]
        found: Any = lm.generate(prompts, max_new_tokens=300, **SLIDE)
        assert [ids.tolist() for ids in found] == expected
        assert_free(lm)


def test_the_default_is_an_error(tmp_path: Path) -> None:
    with AutoModelForCausalLM.from_pretrained(write_gpt2(tmp_path)) as lm:
        with pytest.raises(ContextLengthError, match=r"the context of 16 positions, got 3 \+ 14; .*overflow=\"slide\""):
            lm.generate([1, 2, 3], max_new_tokens=14)
        with pytest.raises(ContextLengthError, match=r"overflow=\"slide\" continues beyond the context"):
            lm.generate([1] * 17)
        with pytest.raises(InputError, match="overflow: expected 'error' with truncate='left', got 'slide'"):
            lm.generate([1], truncate="left", **SLIDE)
        with pytest.raises(InputError, match="overflow: expected one of 'error', 'slide', got 'shift'"):
            lm.generate([1], overflow="shift")  # type: ignore[typeddict-item]
        assert len(lm.generate([1, 2, 3], max_new_tokens=13, eos_token_id=-1)) == 16
