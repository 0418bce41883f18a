"""Handles checkpoint oddities in one place: prefixes, the old names gamma and beta, Conv1D's transposed matrices."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from fastattn.checkpoint.safetensors import NOT_THERE, TensorInfo
from fastattn.checkpoint.source import WeightSource, place_of, require_weight_dtype, same_data
from fastattn.checks import quote
from fastattn.errors import ConfigError
from fastattn.graph.ir import Program
from fastattn.models.tasks import TASKS, Task


@dataclass(frozen=True, slots=True)
class Layout:
    """How a family's checkpoints differ from the names and orientations in the model code.

    prefixes: optional prefixes of every name. transposed: suffixes of names stored as [in_features, out_features].
    anchor: a tensor that every checkpoint has, which reveals any other prefix. tied: the name of the token embeddings,
    and an alternative name for them. unused: patterns of names that are not used here.
    """

    prefixes: tuple[str, ...] = ()
    transposed: tuple[str, ...] = ()
    anchor: str = ""
    tied: tuple[str, str] | None = None
    unused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelNames:
    """The tensors of a checkpoint by their names in the model code, which never reads masks and position ids."""

    layout: Layout
    found: Mapping[str, tuple[WeightSource, ...]]
    hidden: frozenset[str] = frozenset()  # duplicates of another tensor, treated as missing
    outer: str = ""  # the prefix of all names before the family's prefix

    def has(self, name: str) -> bool:
        """Return whether the checkpoint has a tensor with this name."""
        return name in self.found and name not in self.hidden

    def repeats(self, name: str) -> bool:
        """Return whether the tensor with this name is a copy of another one; `has` is then False."""
        return name in self.hidden

    def transposed(self, name: str) -> bool:
        """Return whether this tensor is stored as [in_features, out_features]."""
        return name.endswith(self.layout.transposed) if self.layout.transposed else False

    def get(self, name: str) -> WeightSource:
        """Return the tensor with this name. Raises ConfigError if there is none, or more than one."""
        candidates = self.found.get(name, ())
        if not candidates:
            prefixes = " or ".join(repr(prefix) for prefix in ("", *self.layout.prefixes))
            others = [other for other in self.found if other.endswith(f".{name}")]
            hint = f"; it has {' and '.join(quote(other) for other in others[:2])}" if others else ""
            raise ConfigError(f"{name}: expected this tensor in the checkpoint (prefix {prefixes}), found none{hint}")
        if len(candidates) > 1:
            names = " and ".join(quote(info.name) for info in candidates[:4])
            raise ConfigError(f"{name}: expected one tensor, got {names}")
        return candidates[0]

    def with_computed(self, sources: Mapping[str, WeightSource]) -> ModelNames:
        """Add tensors that a family computes, unless a quantized folder has them.

        Raises ConfigError if a float folder has one.
        """
        for name in filter(self.has, sources):
            found = self.get(name)
            if not isinstance(found, TensorInfo) or found.offset != NOT_THERE:
                raise ConfigError(
                    f"{name}: expected no such tensor with this config.json, found it in {place_of(found)}"
                )
        return replace(self, found={**{name: (source,) for name, source in sources.items()}, **self.found})

    def unexpected(self, used: Mapping[str, WeightSource]) -> list[str]:
        """Return the names of the tensors that a model does not use, except those known to be unused."""
        known = {info.name for info in used.values()}
        patterns = [re.compile(pattern) for pattern in self.layout.unused]
        return [
            info.name
            for name, candidates in self.found.items()
            for info in candidates
            if info.name not in known
            and name not in self.hidden
            and not any(pattern.fullmatch(name) for pattern in patterns)
        ]


def resolve_names(tensors: Mapping[str, WeightSource], layout: Layout, *, tied: bool = True) -> ModelNames:
    """Map the tensors of a checkpoint to the names in the model code.

    tied: whether the token embeddings may have the name of the output matrix, according to config.json.
    """
    found: dict[str, tuple[WeightSource, ...]] = {}
    outer = _outer_prefix(tensors, layout)
    for name, info in tensors.items():
        plain = name.removeprefix(outer)
        plain = next((plain[len(p) :] for p in layout.prefixes if plain.startswith(p)), plain)
        for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
            if plain.endswith(old):
                plain = plain[: -len(old)] + new
        found[plain] = (*found.get(plain, ()), info)
    hidden = set()
    if layout.tied is not None:
        embeddings, head = layout.tied
        if tied and embeddings not in found and head in found:
            found[embeddings] = found[head]
            hidden.add(head)
        if embeddings in found and head in found and same_data(found[head][0], found[embeddings][0]):
            hidden.add(head)
    return ModelNames(layout, found, frozenset(hidden), outer)


def _outer_prefix(tensors: Mapping[str, WeightSource], layout: Layout) -> str:
    """Return the prefix of all names before the family's own prefix; "" if there is none, or more than one.

    A model that was saved from inside another one has such a prefix, for example "module.".
    """
    if not layout.anchor:
        return ""
    prefixes = {name[: -len(layout.anchor)] for name in tensors if name.endswith(layout.anchor)}
    if "" in prefixes or prefixes.intersection(layout.prefixes) or len(prefixes) != 1:
        return ""
    before = prefixes.pop()
    if not before.endswith("."):
        return ""
    return next((before.removesuffix(p) for p in layout.prefixes if before.endswith(p)), before)


def check_tensors(program: Program, names: ModelNames, task: Task) -> dict[str, WeightSource]:
    """Check the shape and dtype of every weight part of a Program; return the tensors by part.

    Allocates no weights. Raises ConfigError, ModelFormatError for a dtype that weights cannot have.
    """
    tensors: dict[str, WeightSource] = {}
    for weight in program.weights.values():
        if len(weight.parts) > 1:
            raise ConfigError(f"{weight.parts}: expected a Program that is not optimized yet")
        info = names.get(weight.parts[0])
        expected = weight.shape[::-1] if weight.transposed else weight.shape
        if info.shape != expected:
            raise ConfigError(
                f"{quote(info.name)[1:-1]}: expected shape {list(expected)} from config.json, got {list(info.shape)} "
                f"in {place_of(info)}{_why_of_shape(task, weight.parts[0], expected, info.shape)}"
            )
        require_weight_dtype(info)
        tensors[weight.parts[0]] = info
    return tensors


def _why_of_shape(task: Task, name: str, expected: tuple[int, ...], found: tuple[int, ...]) -> str:
    """Return advice if the classifier's number of classes differs from config.json, else ""."""
    if (
        task not in ("sequence-classification", "token-classification")
        or not name.startswith(TASKS["sequence-classification"].heads)
        or len(expected) != len(found)
        or expected[1:] != found[1:]
    ):
        return ""
    return (
        f"; the classifier has {found[0]} classes, but num_labels and id2label say {expected[0]} (2 if both are "
        f"missing); load it with num_labels={found[0]}"
    )
