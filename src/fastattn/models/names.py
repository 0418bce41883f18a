"""The oddities of checkpoints, all in one place: prefixes, the old gamma and beta, Conv1D's transposed matrices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fastattn.checkpoint.checkpoint import require_weight_dtype, same_data
from fastattn.checkpoint.safetensors import TensorInfo
from fastattn.errors import ConfigError
from fastattn.graph.ir import Program

Task = Literal["causal-lm", "encoder", "sequence-classification"]
TASKS: tuple[Task, ...] = ("causal-lm", "encoder", "sequence-classification")


@dataclass(frozen=True, slots=True)
class Layout:
    """How a family's checkpoints differ from the names and orientations that the model text uses.

    prefixes: may stand before every name. transposed: names that end so are held as [in_features, out_features].
    """

    prefixes: tuple[str, ...] = ()
    transposed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelNames:
    """The tensors of a checkpoint by the names that the model text uses. Masks and position ids are simply not asked
    for."""

    layout: Layout
    found: Mapping[str, tuple[TensorInfo, ...]]
    hidden: frozenset[str] = frozenset()  # duplicates of another tensor, as if they were not there

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds a tensor for this name."""
        return name in self.found and name not in self.hidden

    def repeats(self, name: str) -> bool:
        """Whether its tensor for this name only repeats another one: `has` says no then."""
        return name in self.hidden

    def transposed(self, name: str) -> bool:
        """Whether it holds it as [in_features, out_features]."""
        return name.endswith(self.layout.transposed) if self.layout.transposed else False

    def get(self, name: str) -> TensorInfo:
        """The one tensor for this name. Raises ConfigError where there is none, or more than one."""
        candidates = self.found.get(name, ())
        if not candidates:
            prefixes = " or ".join(repr(prefix) for prefix in ("", *self.layout.prefixes))
            raise ConfigError(f"{name}: expected this tensor in the checkpoint (prefix {prefixes}), found none")
        if len(candidates) > 1:
            raise ConfigError(f"{name}: ambiguous, the checkpoint holds {' and '.join(t.name for t in candidates)}")
        return candidates[0]


def resolve_names(tensors: Mapping[str, TensorInfo], layout: Layout) -> ModelNames:
    """Sort the tensors of a checkpoint by the names that the model text uses."""
    found: dict[str, tuple[TensorInfo, ...]] = {}
    for name, info in tensors.items():
        plain = next((name[len(p) :] for p in layout.prefixes if name.startswith(p)), name)
        for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
            if plain.endswith(old):
                plain = plain[: -len(old)] + new
        found[plain] = (*found.get(plain, ()), info)
    hidden = set()
    if "lm_head.weight" in found and "wte.weight" in found:
        pair = found["lm_head.weight"][0], found["wte.weight"][0]
        if same_data(*pair):
            hidden.add("lm_head.weight")
    return ModelNames(layout, found, frozenset(hidden))


def check_tensors(program: Program, names: ModelNames) -> dict[str, TensorInfo]:
    """Every weight part of a Program with its tensor, after its shape and dtype have been checked.

    Nothing has been allocated yet. Raises ConfigError, ModelFormatError for a dtype that is no weight's.
    """
    tensors: dict[str, TensorInfo] = {}
    for weight in program.weights.values():
        if len(weight.parts) > 1:
            raise ConfigError(f"{weight.parts}: expected a Program that is not optimised yet")
        info = names.get(weight.parts[0])
        expected = weight.shape[::-1] if weight.transposed else weight.shape
        if info.shape != expected:
            raise ConfigError(
                f"{info.name}: expected shape {list(expected)} from config.json, got {list(info.shape)} in {info.path}"
            )
        require_weight_dtype(info)
        tensors[weight.parts[0]] = info
    return tensors
