"""llama.cpp through the low-level calls of llama-cpp-python.

The KV cache of a float32 model is float32; other models use llama.cpp's default, float16.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np

from fastattn.bench.libraries.base import Array, Ids, Job, Source

_FILE = "model.gguf"
_FILE_TYPES = {"bfloat16": 32, "int8": 7, "int4": 2}  # bf16, q8_0, q4_0
_POOLING_NONE, _POOLING_RANK = 0, 4


def convert(job: Job) -> None:
    """Write the file in the dtype."""
    from fastattn.bench.libraries import gguf_files

    target = job.folder / _FILE
    if job.dtype == "float32":
        gguf_files.write(Source(job), target)
        return
    plain = job.folder / "float32.gguf"
    gguf_files.write(Source(job), plain)
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.nthread = _FILE_TYPES[job.dtype], job.threads
    code = llama_cpp.llama_model_quantize(str(plain).encode(), str(target).encode(), ctypes.byref(options))
    if code != 0:
        raise RuntimeError(f"llama_model_quantize returned {code}")
    plain.unlink()


class Model:
    """A model in float32, bfloat16, int8 (q8_0) or int4 (q4_0), and the context for the last workload's shape."""

    def __init__(self, job: Job) -> None:
        @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator, unused-ignore]
        def quiet(level: int, text: bytes, user: Any) -> None:
            pass

        self._quiet = quiet
        llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(job.folder / _FILE).encode(), options)
        if not self.model:
            raise RuntimeError("llama_model_load_from_file returned no model")
        self.job = job
        self.causal = job.task == "causal-lm"
        config = Source(job).config
        self.width = config.vocab_size if self.causal else config.hidden_size
        if job.task == "sequence-classification":
            self.width = len(config.labels)
        self.context: Any = None
        self.batch: Any = None
        self.shape: tuple[int, int, int] | None = None

    def forward(self, ids: Ids) -> Array:
        """Run all tokens of all sequences in one batch."""
        longest, total = max(map(len, ids)), sum(map(len, ids))
        if self.causal:
            self._open(len(ids), longest + 1, total)
            self._run(ids, 0)
            return np.array(self._logits(len(ids)))
        self._open(len(ids), longest, total)
        self._run(ids, 0, every=True)
        firsts = np.cumsum([0, *map(len, ids[:-1])]).tolist()
        if self.job.task == "encoder":
            found = [llama_cpp.llama_get_embeddings_ith(self.context, i) for i in firsts]
        else:
            found = [llama_cpp.llama_get_embeddings_seq(self.context, i) for i in range(len(ids))]
        return np.stack([np.ctypeslib.as_array(row, (self.width,)).copy() for row in found])

    def decode(self, ids: Ids, n_new: int) -> tuple[Ids, float]:
        """Run a greedy loop with llama_decode."""
        n, prompt = len(ids), len(ids[0])
        self._open(n, prompt + n_new, n * prompt)
        tokens, rows, begin = [], ids, 0.0
        for step in range(n_new):
            self._run(rows, prompt + step - 1 if step else 0)
            best = self._logits(n).argmax(-1)
            tokens.append(best)
            rows = best[:, None].tolist()
            begin = begin or time.perf_counter()
        return np.stack(tokens, 1).tolist(), time.perf_counter() - begin

    def _open(self, n: int, length: int, batch: int) -> None:
        """Create a context for n sequences.

        It is reused for workloads of the same shape, so its creation is not measured.
        """
        if self.shape == (n, length, batch):
            if self.causal:
                llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)
            return
        if self.context is not None:
            llama_cpp.llama_free(self.context)
            llama_cpp.llama_batch_free(self.batch)
            self.context, self.shape = None, None
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_seq_max = n * length, n
        options.n_batch = options.n_ubatch = batch
        options.n_threads = options.n_threads_batch = self.job.threads
        options.offload_kqv = options.op_offload = False
        if self.job.dtype == "float32":
            options.type_k = options.type_v = 0
        if not self.causal:
            options.embeddings = True
            options.pooling_type = _POOLING_NONE if self.job.task == "encoder" else _POOLING_RANK
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        if not self.context:
            self.context = None
            raise RuntimeError("llama_init_from_model returned no context")
        self.batch = llama_cpp.llama_batch_init(batch, 0, 1)
        self.shape = (n, length, batch)

    def _run(self, rows: Sequence[Sequence[int]], start: int, *, every: bool = False) -> None:
        """Run some tokens of every sequence; the last token (or every token) of each has an output."""
        batch, at = self.batch, 0
        for sequence, row in enumerate(rows):
            for i, token in enumerate(row):
                batch.token[at], batch.pos[at], batch.n_seq_id[at] = token, start + i, 1
                batch.seq_id[at][0] = sequence
                batch.logits[at] = every or i == len(row) - 1
                at += 1
        batch.n_tokens = at
        code = llama_cpp.llama_decode(self.context, batch)
        if code:
            raise RuntimeError(f"llama_decode returned {code}")

    def _logits(self, n: int) -> Array:
        rows: Array = np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.context), (n, self.width))
        return rows
