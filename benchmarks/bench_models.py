"""pytest-benchmark of whole models with random weights, fastattn beside PyTorch: `make bench`.

Both libraries share one process here; percent_of_limit.py gives each its own and is the one to quote.
"""

from __future__ import annotations

from typing import Any

import pytest

import peers
from make_models import build
from work import WORKS

pytestmark = pytest.mark.bench
THREADS = 2


@pytest.mark.parametrize("library", ["fastattn", "torch"])
@pytest.mark.parametrize("name", ["gpt2-prefill-512", "bert-1x128", "bert-8x128", "bert-ragged", "minilm-1x16"])
def bench_forward(benchmark: Any, name: str, library: str) -> None:
    pytest.importorskip("torch")
    work = WORKS[name]
    peer = peers.load(library, build(work.model), THREADS)
    benchmark.group = name
    benchmark.pedantic(peer.forward, args=(work.inputs(),), rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("library", ["fastattn", "torch"])
def bench_decode(benchmark: Any, library: str) -> None:
    """32 tokens of prompt, then 64 new ones, the prefill included."""
    pytest.importorskip("torch")
    work = WORKS["gpt2-decode"]
    peer = peers.load(library, build(work.model), THREADS)
    benchmark.group = work.name
    benchmark.pedantic(peer.decode, args=(work.inputs(), work.n_new), rounds=3, warmup_rounds=1)
