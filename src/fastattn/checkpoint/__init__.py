"""Reads the files of a checkpoint into validated tables of tensors. Independent of the model."""

from fastattn.checkpoint.checkpoint import Checkpoint, NonFinite, open_checkpoint, read_tensor
from fastattn.checkpoint.safetensors import TensorInfo, read_header

__all__ = ["Checkpoint", "NonFinite", "TensorInfo", "open_checkpoint", "read_header", "read_tensor"]
