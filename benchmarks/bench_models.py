"""pytest-benchmark of whole models with random weights, fastattn and PyTorch: `make bench`.

Both libraries share one process here. Quote percent_of_limit.py instead, which gives each its own process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastattn.bench.libraries import Job, Peer, load
from fastattn.bench.run import open_model
from fastattn.bench.works import Work, works_of
from make_models import build

pytestmark = pytest.mark.bench
THREADS = 2


def opened(library: str, model: str, name: str) -> tuple[Peer, Work, int]:
    """Return the library's model, the workload of this name, and the vocabulary size."""
    pytest.importorskip("torch")
    built = open_model(build(model)).built
    work = next(work for work in works_of(built.task, built.config.max_positions) if work.name == name)
    job = Job(build(model), built.task, "float32", THREADS, Path())
    return load(library, job), work, built.config.vocab_size


@pytest.mark.parametrize("library", ["fastattn", "torch"])
@pytest.mark.parametrize(
    "name", ["gpt2/prefill-512", "bert-base/1x128", "bert-base/8x128", "bert-base/ragged-32", "minilm-l6/1x16"]
)
def bench_forward(benchmark: Any, name: str, library: str) -> None:
    peer, work, vocab_size = opened(library, *name.split("/"))
    benchmark.group = name
    benchmark.pedantic(peer.forward, args=(work.ids(vocab_size),), rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("library", ["fastattn", "torch"])
def bench_decode(benchmark: Any, library: str) -> None:
    """Measure a prompt of 32 tokens and then the new ones, including the prefill."""
    peer, work, vocab_size = opened(library, "gpt2", "decode-1")
    benchmark.group = "gpt2/decode-1"
    benchmark.pedantic(peer.decode, args=(work.ids(vocab_size), work.n_new), rounds=3, warmup_rounds=1)
