"""OpenVINO's CPU plugin."""

from __future__ import annotations

import time

import numpy as np
import openvino as ov

from fastattn.bench.libraries.base import Array, Ids, Job, pad

_FILE = "model.xml"


def convert(job: Job) -> None:
    """Write the graph with weights in the dtype; needs PyTorch, which the process that runs it does not load."""
    from fastattn.bench.libraries import openvino_graphs

    openvino_graphs.write(job, job.folder / _FILE)


class Model:
    """A compiled graph and one request, in float32 or bfloat16, or with weights in int8 or int4."""

    def __init__(self, job: Job) -> None:
        lower = job.dtype == "bfloat16"
        options = {
            "INFERENCE_NUM_THREADS": job.threads, "NUM_STREAMS": "1", "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if lower else "f32", "ENABLE_CPU_PINNING": False,
        }  # fmt: skip
        if job.dtype == "float32" and job.task == "causal-lm":
            options["KV_CACHE_PRECISION"] = "f32"
        self.task = job.task
        self.request = ov.Core().compile_model(str(job.folder / _FILE), "CPU", options).create_infer_request()

    def forward(self, ids: Ids) -> Array:
        """Run the padded rectangle with a mask."""
        if self.task == "causal-lm":
            return self._greedy(ids, 1)[2]
        padded, mask = pad(ids)
        out: Array = self.request.infer({"input_ids": padded, "attention_mask": mask}, share_inputs=True)[0]
        return np.array(out[:, 0] if self.task == "encoder" else out)

    def decode(self, ids: Ids, n_new: int) -> tuple[Ids, float]:
        """Run a greedy loop with the request."""
        tokens, seconds, _ = self._greedy(ids, n_new)
        return tokens, seconds

    def _greedy(self, ids: Ids, n_new: int) -> tuple[Ids, float, Array]:
        x = np.asarray(ids, np.int64)
        batch, prompt = x.shape
        self.request.reset_state()
        mask, rows = np.ones((batch, prompt + n_new), np.int64), np.arange(batch, dtype=np.int32)
        tokens: list[Array] = []
        begin = 0.0
        out: Array = np.zeros((batch, 0), np.float32)
        for total in range(prompt, prompt + n_new):
            positions = np.broadcast_to(np.arange(total - x.shape[1], total, dtype=np.int64), x.shape)
            feed = {"input_ids": x, "attention_mask": np.ascontiguousarray(mask[:, :total]),
                    "position_ids": np.ascontiguousarray(positions), "beam_idx": rows}  # fmt: skip
            self.request.infer(feed, share_inputs=True)
            out = self.request.get_output_tensor(0).data
            x = out.argmax(-1)[:, None]
            tokens.append(x)
            begin = begin or time.perf_counter()
        return np.concatenate(tokens, 1).tolist(), time.perf_counter() - begin, out.copy()
