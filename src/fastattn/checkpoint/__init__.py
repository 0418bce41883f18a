"""Reads the files of a checkpoint into validated tables of tensors, and declares other sources of weights.

Independent of the model.
"""

from fastattn.checkpoint.checkpoint import Checkpoint, NonFinite, open_checkpoint
from fastattn.checkpoint.safetensors import TensorInfo, read_header
from fastattn.checkpoint.source import ArraySource, ComputedSource, WeightSource, array_sources, read_rows, read_tensor

__all__ = [
    "ArraySource",
    "Checkpoint",
    "ComputedSource",
    "NonFinite",
    "TensorInfo",
    "WeightSource",
    "array_sources",
    "open_checkpoint",
    "read_header",
    "read_rows",
    "read_tensor",
]
