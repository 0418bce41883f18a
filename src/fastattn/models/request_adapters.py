"""Reads LoRA adapters that stay apart from the weights, so that each sequence of a step may have another one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastattn.checkpoint.lora import Adapter, AdapterTensors, read_adapter
from fastattn.checks import quote
from fastattn.errors import ConfigError
from fastattn.graph.ir import Program
from fastattn.graph.kinds import LoraAdapter, LoraPart
from fastattn.graph.rewrites import linear_targets

_MAX_RANK = 1024
_MERGE = "load the model with adapter=, which adds the adapter to the weights"


def read_request_adapter(folder: Path, program: Program, name: str) -> LoraAdapter:
    """Read an adapter that peft wrote, for the linears of a traced Program.

    Raises ConfigError for one that does not fit, or that changes more than products of linears, ModelFormatError,
    ModelNotFoundError, OSError.
    """
    adapter = read_adapter(folder)
    if adapter.whole:
        whole = quote(next(iter(adapter.whole)))
        raise ConfigError(f"{folder}: expected only matrices of LoRA, got the whole tensor {whole}; {_MERGE}")
    if not adapter.modules:
        raise ConfigError(f"{folder}: expected matrices of LoRA, found none")
    targets = linear_targets(program)
    parts = {}
    for tensors in adapter.modules.values():
        weight = _find(folder, tensors.module, targets)
        if targets[weight] in parts:
            raise ConfigError(f"{folder}: {tensors.module}: expected one module per weight, got two for {weight}")
        parts[targets[weight]] = _part(adapter, tensors, targets[weight], program.weights[weight].shape)
    return LoraAdapter(name, tuple(parts[target] for target in sorted(parts)))


def _find(folder: Path, module: str, targets: dict[str, int]) -> str:
    """Return the weight of a module; the adapter's names may have prefixes that the Program's have not."""
    parts = f"{module}.weight".split(".")
    for begin in range(len(parts) - 1):
        weight = ".".join(parts[begin:])
        if weight in targets:
            return weight
    raise ConfigError(
        f"{folder}: {module}: the model has no linear of this name that adapters of requests can change; {_MERGE}"
    )


def _part(adapter: Adapter, tensors: AdapterTensors, target: int, shape: tuple[int, ...]) -> LoraPart:
    names = set(tensors.parts)
    if names != {"lora_A.weight", "lora_B.weight"} or adapter.settings["use_dora"]:
        found = ", ".join(sorted(names))
        raise ConfigError(
            f"{adapter.path}: {tensors.module}: expected lora_A and lora_B without DoRA, got {found}; {_MERGE}"
        )
    down, up = tensors.read("lora_A.weight"), tensors.read("lora_B.weight")
    if down.ndim != 2 or up.ndim != 2 or up.shape[1] != len(down) or (len(up), down.shape[1]) != shape:
        raise ConfigError(
            f"{adapter.path}: {tensors.module}: expected matrices whose product has the shape {list(shape)}, got "
            f"{list(up.shape)} times {list(down.shape)}; the adapter was trained for another model"
        )
    if not 0 < len(down) <= _MAX_RANK:
        raise ConfigError(f"{adapter.path}: {tensors.module}: expected a rank up to {_MAX_RANK}, got {len(down)}")
    scaled = up * np.float32(adapter.scale_of(tensors.module, len(down)))
    return LoraPart(target, np.ascontiguousarray(down), np.ascontiguousarray(scaled))
