"""Reads LoRA adapters that peft wrote (Hu et al. 2021) and adds them to the weights of a checkpoint.

The sum is computed in float32 while the model loads, tensor by tensor, so a merged model needs no more memory than the
model itself. It equals `merge_and_unload` of peft up to rounding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastattn.checkpoint.file_names import ADAPTER_NAME, ADAPTER_WEIGHTS_NAME
from fastattn.checkpoint.safetensors import TensorInfo, read_source
from fastattn.checkpoint.source import ComputedSource, WeightSource, read_rows, read_tensor
from fastattn.checks import quote
from fastattn.errors import ConfigError, ModelNotFoundError
from fastattn.files import FileSet
from fastattn.jsonfile import CONFIG_LIMITS, read_json

Float32 = NDArray[np.float32]

_PREFIX = "base_model.model."
_PARTS = (
    "lora_A.weight",
    "lora_B.weight",
    "lora_B.bias",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_magnitude_vector",
)
_KEY = re.compile(rf"(?P<module>.+)\.(?P<part>{'|'.join(map(re.escape, _PARTS))})(?:\.weight)?")
# Keys of adapter_config.json that are read here, and those that change nothing when an adapter is loaded.
_READ = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "init_lora_weights")
_WITHOUT_EFFECT = (
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("target_modules", "exclude_modules", "lora_dropout", "fan_in_fan_out", "bias", "modules_to_save", "lora_bias"),
    *("layers_to_transform", "layers_pattern", "megatron_core", "loftq_config", "eva_config", "corda_config"),
    *("lora_ga_config", "qalora_group_size", "ensure_weight_tying", "runtime_config"),
)
# Initial values that leave the weights of the model as they are. The others (pissa, olora, loftq, ...) change them.
_INITS = (True, False, None, "gaussian", "orthogonal", "eva")

_MERGE = "merge the adapter with peft: model.merge_and_unload()"


@dataclass(frozen=True, slots=True)
class AdapterTensors:
    """The tensors of one module: by the names in _PARTS."""

    module: str
    parts: Mapping[str, TensorInfo]

    def read(self, part: str) -> Float32:
        return read_tensor(self.parts[part])


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter. Only its settings and the header of its weights have been read.

    modules: tensors to add, by the name of the module. whole: tensors that replace those of the model, by name, such as
    a classification head. base: the name of the model that it was trained for, if it says so.
    """

    path: Path
    settings: Mapping[str, Any]
    modules: Mapping[str, AdapterTensors]
    whole: Mapping[str, TensorInfo]
    files: FileSet = field(default_factory=FileSet, compare=False)

    @property
    def base(self) -> str | None:
        name = self.settings.get("base_model_name_or_path")
        return name if isinstance(name, str) and name else None

    def scale_of(self, module: str, rank: int) -> float:
        """Return the factor of the product of a module's matrices. Raises ConfigError if the rank differs."""
        expected = self._pattern("rank_pattern", module, self.settings["r"])
        if rank != expected:
            raise self._error(f"{module}: expected matrices of rank {expected}, got {rank}")
        alpha = self._pattern("alpha_pattern", module, self.settings["lora_alpha"])
        return float(alpha / (math.sqrt(rank) if self.settings["use_rslora"] else rank))

    def _pattern(self, key: str, module: str, default: Any) -> Any:
        """Return the value for a module: that of the first pattern that matches the end of its name, as in peft."""
        for pattern, value in self.settings[key].items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        return default

    def _error(self, message: str) -> ConfigError:
        return ConfigError(f"{self.path / ADAPTER_WEIGHTS_NAME}: {message}")


def read_adapter(folder: Path, files: FileSet | None = None) -> Adapter:
    """Read adapter_config.json and the header of adapter_model.safetensors.

    files: the set that both join. Raises ConfigError for an adapter that cannot be added, ModelFormatError,
    ModelNotFoundError, OSError.
    """
    files = FileSet() if files is None else files
    settings = read_settings(folder, files)
    weights = folder / ADAPTER_WEIGHTS_NAME
    try:
        tensors, _ = read_source(files.open(weights))
    except FileNotFoundError:
        raise ModelNotFoundError(
            f"{weights}: expected the weights of the adapter, found none; peft writes them with save_pretrained"
        ) from None
    modules: dict[str, dict[str, TensorInfo]] = {}
    whole: dict[str, TensorInfo] = {}
    for name, info in tensors.items():
        if not name.startswith(_PREFIX):
            raise ConfigError(f"{weights}: tensor {quote(name)}: expected a name that begins with {_PREFIX}")
        plain = name.removeprefix(_PREFIX).replace(".base_layer.", ".").replace(".modules_to_save.", ".")
        if match := _KEY.fullmatch(plain):
            modules.setdefault(match["module"], {})[match["part"]] = info
        elif "lora_" in plain:
            raise ConfigError(f"{weights}: tensor {quote(name)} is not supported; {_MERGE}")
        else:
            whole[plain] = replace(info, name=plain)
    found = {name: AdapterTensors(name, parts) for name, parts in modules.items()}
    return Adapter(folder, settings, found, whole, files)


def read_settings(folder: Path, files: FileSet | None = None) -> dict[str, Any]:
    """Read and check adapter_config.json. Raises ConfigError, ModelFormatError, OSError."""
    path = folder / ADAPTER_NAME
    settings = read_json(path, files=files, limits=CONFIG_LIMITS)
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: expected an object, got {quote(settings)}")
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise ConfigError(f"{path}: peft_type: expected 'LORA', got {quote(kind)}; {_MERGE}")
    for key, value in settings.items():
        if key not in _READ and key not in _WITHOUT_EFFECT and value not in (None, False, {}, []):
            raise ConfigError(f"{path}: {quote(key)} is not supported, got {quote(value)}; {_MERGE}")
    if settings.get("init_lora_weights") not in _INITS:
        got = quote(settings["init_lora_weights"])
        raise ConfigError(
            f"{path}: init_lora_weights: expected one that leaves the model's weights, got {got}; {_MERGE}"
        )
    checked = {**settings, "r": settings.get("r", 8), "lora_alpha": settings.get("lora_alpha", 8)}
    for key in ("rank_pattern", "alpha_pattern"):
        checked[key] = settings.get(key) or {}
        if not isinstance(checked[key], dict):
            raise ConfigError(f"{path}: {key}: expected an object, got {quote(checked[key])}")
        for pattern, value in checked[key].items():
            _check_number(path, f"{key}[{quote(pattern)}]", value)
            _check_pattern(path, key, pattern)
    for key in ("r", "lora_alpha"):
        _check_number(path, key, checked[key])
    for key in ("use_rslora", "use_dora"):
        checked[key] = settings.get(key) or False
        if not isinstance(checked[key], bool):
            raise ConfigError(f"{path}: {key}: expected true or false, got {quote(checked[key])}")
    return checked


def add_adapter(
    adapter: Adapter,
    tensors: Mapping[str, WeightSource],
    find: Callable[[str], WeightSource | None],
    *,
    transposed: Callable[[str], bool],
) -> dict[str, WeightSource]:
    """Return the tensors of a checkpoint with the adapter added.

    find: returns the checkpoint's tensor for a name in the adapter. transposed: whether a matrix is stored as
    [in_features, out_features]. Raises ConfigError if the adapter is for another model.
    """
    result = dict(tensors)
    for name, info in adapter.whole.items():
        found = find(name)
        if found is not None and found.shape != info.shape:
            raise adapter._error(
                f"tensor {quote(name)}: expected shape {list(found.shape)}, as in the model, got {list(info.shape)}"
            )
        result[name if found is None else found.name] = info if found is None else replace(info, name=found.name)
    for tensors_of in adapter.modules.values():
        for name, merge in _merges(adapter, tensors_of).items():
            found = find(name)
            if found is None:
                raise adapter._error(
                    f"{tensors_of.module}: the model has no tensor {quote(name)} of its own to add it to"
                )
            result[found.name] = merge(result[found.name], transposed(name))
    return result


_Merge = Callable[[WeightSource, bool], WeightSource]


def _merges(adapter: Adapter, tensors: AdapterTensors) -> dict[str, _Merge]:
    """Return the functions that merge one module into the model's tensors, by the names of these tensors."""
    names, found = set(tensors.parts), {}
    module = tensors.module
    if {"lora_embedding_A", "lora_embedding_B"} == names:
        found[f"{module}.weight"] = lambda source, _: _add_embedding(adapter, tensors, source)
        return found
    if not {"lora_A.weight", "lora_B.weight"} <= names or names & {"lora_embedding_A", "lora_embedding_B"}:
        raise adapter._error(f"{module}: expected lora_A and lora_B, found {', '.join(sorted(names))}")
    if ("lora_magnitude_vector" in names) != adapter.settings["use_dora"]:
        raise adapter._error(f"{module}: expected lora_magnitude_vector if use_dora is true, and only then")
    found[f"{module}.weight"] = lambda source, transposed: _add_product(adapter, tensors, source, transposed=transposed)
    if "lora_B.bias" in names:
        found[f"{module}.bias"] = lambda source, _: _add_bias(adapter, tensors, source)
    return found


def _add_product(adapter: Adapter, tensors: AdapterTensors, source: WeightSource, *, transposed: bool) -> WeightSource:
    """Return W + scale * B @ A. A magnitude vector (DoRA) then sets the lengths of its rows."""
    down, up = tensors.read("lora_A.weight"), tensors.read("lora_B.weight")  # [rank, in], [out, rank]
    _check_matrices(adapter, tensors.module, down, up, source.shape[::-1] if transposed else source.shape)
    up = up * np.float32(adapter.scale_of(tensors.module, len(down)))
    left, right = (np.ascontiguousarray(down.T), np.ascontiguousarray(up.T)) if transposed else (up, down)

    def add_to_rows(begin: int, end: int) -> Float32:
        return _product(left[begin:end], right) + read_rows(source, begin, end)

    if "lora_magnitude_vector" not in tensors.parts:
        return ComputedSource(source.name, source.shape, add_to_rows)
    lengths = tensors.read("lora_magnitude_vector").reshape(-1)
    if len(lengths) != len(up):
        raise adapter._error(f"{tensors.module}: expected {len(up)} magnitudes, got {len(lengths)}")

    def scaled_rows(begin: int, end: int) -> Float32:
        rows = add_to_rows(begin, end).astype(np.float64)
        factors = (
            lengths / np.sqrt((rows * rows).sum(axis=0))
            if transposed
            else (lengths[begin:end] / np.sqrt((rows * rows).sum(axis=1)))[:, None]
        )
        return np.ascontiguousarray(rows * factors, dtype=np.float32)

    # The length of a column needs all rows.
    return ComputedSource(source.name, source.shape, scaled_rows, slice_rows=source.shape[0] if transposed else None)


def _add_embedding(adapter: Adapter, tensors: AdapterTensors, source: WeightSource) -> WeightSource:
    """Return W + scale * (B @ A).T of a table of embeddings."""
    down, up = tensors.read("lora_embedding_A"), tensors.read("lora_embedding_B")  # [rank, tokens], [width, rank]
    _check_matrices(adapter, tensors.module, down, up, source.shape[::-1])
    right = np.ascontiguousarray(up.T) * np.float32(adapter.scale_of(tensors.module, len(down)))
    left = np.ascontiguousarray(down.T)
    return ComputedSource(
        source.name, source.shape, lambda begin, end: _product(left[begin:end], right) + read_rows(source, begin, end)
    )


def _add_bias(adapter: Adapter, tensors: AdapterTensors, source: WeightSource) -> WeightSource:
    added = tensors.read("lora_B.bias") * np.float32(
        adapter.scale_of(tensors.module, tensors.parts["lora_A.weight"].shape[0])
    )
    if added.shape != source.shape:
        raise adapter._error(
            f"{tensors.module}: expected a bias of shape {list(source.shape)}, got {list(added.shape)}"
        )
    return ComputedSource(
        source.name, source.shape, lambda begin, end: read_rows(source, begin, end) + added[begin:end]
    )


def _product(left: Float32, right: Float32) -> Float32:
    """Multiply with the library's own kernel: the result does not depend on slices, threads or numpy's BLAS."""
    from fastattn.ops import matmul

    return matmul(left, right)


def _check_matrices(adapter: Adapter, module: str, down: Float32, up: Float32, shape: tuple[int, ...]) -> None:
    """shape: [out_features, in_features] of the model's matrix."""
    if down.ndim != 2 or up.ndim != 2 or up.shape[1] != down.shape[0] or (up.shape[0], down.shape[1]) != shape:
        raise adapter._error(
            f"{module}: expected matrices whose product has the shape {list(shape)} of the model's, got "
            f"{list(up.shape)} times {list(down.shape)}; the adapter was trained for another model"
        )


def _check_number(path: Path, key: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0 or not math.isfinite(value):
        raise ConfigError(f"{path}: {key}: expected a number above 0, got {quote(value)}")


def _check_pattern(path: Path, key: str, pattern: str) -> None:
    """Accept only word characters and the few others that patterns need, because the patterns come from a file."""
    if not re.fullmatch(r"[\w.^$|()\\\[\]-]{1,200}", pattern):
        raise ConfigError(f"{path}: {key}: expected names of modules, got {quote(pattern)}")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{path}: {key}: expected a pattern, got {quote(pattern)}: {error}") from None
