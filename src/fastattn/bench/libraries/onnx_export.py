"""Exports encoders that `onnx_graphs` cannot write: like most users, from transformers' model. Needs PyTorch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from fastattn.bench.libraries.base import Job
from fastattn.bench.libraries.torch_peer import load_transformers

_OPSET = 17


class _FirstOutput(torch.nn.Module):  # type: ignore[misc]  # an optional library
    """An encoder with one output: logits, or the last hidden state."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any, mask: Any) -> Any:
        return self.model(input_ids=input_ids.long(), attention_mask=mask.long())[0]


def write(job: Job, target: Path) -> None:
    """Write the graph in float32, for batches of any size and length."""
    ids = torch.full((2, 8), 3, dtype=torch.int32)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    sizes = {0: "batch", 1: "length"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _FirstOutput(load_transformers(job)),
            (ids, mask),
            str(target),
            input_names=["input_ids", "mask"],
            output_names=["out"],
            dynamic_axes={"input_ids": sizes, "mask": sizes, "out": {0: "batch"}},
            opset_version=_OPSET,
            dynamo=False,
        )
