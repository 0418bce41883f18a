"""transformers on PyTorch, eager."""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers

from fastattn.bench.libraries.base import Array, Ids, Job, pad
from fastattn.models.tasks import TASKS


def load_transformers(job: Job, dtype: Any = torch.float32) -> Any:
    """Load the model of transformers for inference."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(job.threads)
    torch.set_grad_enabled(False)
    auto = getattr(transformers, TASKS[job.task].auto_class)
    return auto.from_pretrained(job.path, dtype=dtype, local_files_only=True).eval()


class Model:
    """A model of transformers in float32 or bfloat16."""

    def __init__(self, job: Job) -> None:
        self.model = load_transformers(job, torch.bfloat16 if job.dtype == "bfloat16" else torch.float32)
        self.task = job.task

    def forward(self, ids: Ids) -> Array:
        """Run the padded rectangle, with a mask if needed."""
        padded, mask = pad(ids)
        options: dict[str, Any] = {} if mask.all() else {"attention_mask": torch.from_numpy(mask)}
        with torch.inference_mode():
            if self.task == "causal-lm":
                rows = self.model(torch.from_numpy(padded), use_cache=False, logits_to_keep=1, **options).logits[:, -1]
            elif self.task == "encoder":
                rows = self.model(torch.from_numpy(padded), **options).last_hidden_state[:, 0]
            else:
                rows = self.model(torch.from_numpy(padded), **options).logits
        out: Array = rows.float().numpy()
        return out

    def decode(self, ids: Ids, n_new: int) -> tuple[Ids, float]:
        """Run a plain greedy loop, because transformers' generate() adds overhead."""
        with torch.inference_mode():
            out = self.model(torch.tensor(ids), use_cache=True, logits_to_keep=1)
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            tokens, begin = [token], time.perf_counter()
            for _ in range(n_new - 1):
                out = self.model(token, past_key_values=out.past_key_values, use_cache=True)
                token = out.logits[:, -1].argmax(-1, keepdim=True)
                tokens.append(token)
            seconds = time.perf_counter() - begin
        return torch.cat(tokens, 1).tolist(), seconds
