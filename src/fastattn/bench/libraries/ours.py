"""fastattn itself."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from fastattn.api.auto import AUTO_CLASSES
from fastattn.bench.libraries.base import Array, Ids, Job
from fastattn.executors.cpu import CpuExecutor
from fastattn.generation.generate import make_requests
from fastattn.generation.options import GenerationOptions
from fastattn.generation.scheduler import Call, Failure, Scheduler


class Model:
    """A fastattn model as a `Peer`. Raises FastattnError."""

    def __init__(self, job: Job) -> None:
        self.task, self.dtype = job.task, job.dtype
        self.model: Any = AUTO_CLASSES[job.task].from_pretrained(
            job.path, dtype=job.dtype, kv_dtype=job.kv_dtype, head_dtype=job.head_dtype, threads=job.threads
        )

    @property
    def executor(self) -> CpuExecutor:
        """The executor of the model; the read rate is measured over its weights."""
        executor = self.model.executor
        assert isinstance(executor, CpuExecutor)
        return executor

    def forward(self, ids: Ids) -> Array:
        if self.task == "causal-lm":
            return np.stack([rows[-1] for rows in self.model(ids, logits_to_keep=1).logits])
        if self.task == "encoder":
            return np.stack([rows[0] for rows in self.model(ids).last_hidden_state])
        logits: Array = self.model(ids).logits
        return logits

    def decode(self, ids: Ids, n_new: int) -> tuple[Ids, float]:
        """Do what `generate` does, and record the time when every sequence has its first token."""
        options = GenerationOptions(max_new_tokens=n_new, eos_token_id=-1, max_batch_size=len(ids))
        requests = make_requests(self.model, [np.array(row, np.int32) for row in ids], options, tokenizer=None)
        with Scheduler(self.executor, [Call(requests, max_running=len(ids))]) as scheduler:
            while any(request.new_len == 0 for request in requests):
                _step(scheduler)
            begin = time.perf_counter()
            n_left = n_new - min(request.new_len for request in requests)
            while not scheduler.done:
                _step(scheduler)
            seconds = time.perf_counter() - begin
        return [request.ids[request.prompt_len :] for request in requests], seconds * (n_new - 1) / max(n_left, 1)


def _step(scheduler: Scheduler) -> None:
    for result in scheduler.step():
        if isinstance(result, Failure):
            raise result.error
