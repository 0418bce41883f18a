"""The modules Dense, LayerNorm and Normalize of sentence-transformers.

Each row of the result depends only on its own row, bit for bit: products use `fastattn.ops`, everything else is
elementwise or a sum within the row.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from fastattn import ops
from fastattn.checks import closest, quote
from fastattn.errors import ConfigError
from fastattn.settings import Settings
from fastattn.tasks.search.vectors import normalized
from fastattn.tasks.sentence.features import SENTENCE, Features, Rows, Widths
from fastattn.tasks.sentence.files import check_names, find_weights, read_floats, read_settings
from fastattn.tasks.sentence.read_only import read_only

Wide = NDArray[np.float64]
_log = logging.getLogger("fastattn")


def _softplus(x: Wide) -> Wide:
    return cast(Wide, np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))))


def _sigmoid(x: Wide) -> Wide:
    small = np.exp(-np.abs(x))
    return cast(Wide, np.where(x >= 0, 1, small) / (1 + small))


def _elu(x: Wide) -> Wide:
    return cast(Wide, np.where(x > 0, x, np.expm1(np.minimum(x, 0))))


_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
# The activations of torch.nn with their default arguments, in float64.
_FORMULAS: Mapping[str, Callable[[Wide], Wide]] = {
    "Tanh": np.tanh,
    "ReLU": lambda x: np.maximum(x, 0),
    "ReLU6": lambda x: np.clip(x, 0, 6),
    "Sigmoid": _sigmoid,
    "LogSigmoid": lambda x: -_softplus(-x),
    "SiLU": lambda x: x * _sigmoid(x),
    "Mish": lambda x: x * np.tanh(_softplus(x)),
    "Softplus": lambda x: np.where(x > 20, x, _softplus(x)),
    "Softsign": lambda x: x / (1 + np.abs(x)),
    "LeakyReLU": lambda x: np.where(x >= 0, x, 0.01 * x),
    "ELU": _elu,
    "CELU": _elu,
    "SELU": lambda x: _SELU_SCALE * np.where(x > 0, x, _SELU_ALPHA * np.expm1(np.minimum(x, 0))),
    "Hardtanh": lambda x: np.clip(x, -1, 1),
    "Hardsigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "Hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "Tanhshrink": lambda x: x - np.tanh(x),
    "Softshrink": lambda x: np.sign(x) * np.maximum(np.abs(x) - 0.5, 0),
    "Hardshrink": lambda x: np.where(np.abs(x) > 0.5, x, 0),
}
ACTIVATIONS = ("Identity", "GELU", *_FORMULAS)


def activate(name: str, x: Rows) -> Rows:
    """Apply an activation function of torch.nn, given its class name."""
    if name == "Identity":
        return x
    if name == "GELU":
        return ops.gelu(x)
    # The array must be contiguous: numpy uses different code for other arrays, which changes the last bits.
    return _FORMULAS[name](np.ascontiguousarray(x, np.float64)).astype(np.float32)


@read_only()
@dataclass(frozen=True, slots=True)
class Normalize:
    """Scales vectors to length 1."""

    module_input_name: str = SENTENCE
    module_output_name: str = SENTENCE

    @property
    def reads(self) -> str:
        """The feature that the module reads."""
        return self.module_input_name

    def check(self, widths: Widths) -> None:
        """Record the feature that the module computes.

        As in sentence-transformers, the module changes nothing if its input is missing.
        """
        if self.module_input_name not in widths.known:
            _log.warning("Normalize changes nothing: no module before it computes %s", quote(self.module_input_name))
            return
        widths.known[self.module_output_name] = widths.known[self.module_input_name]

    def __call__(self, features: Features) -> None:
        """Normalize each row."""
        features.transform(self.module_input_name, self.module_output_name, normalized)


@read_only()
@dataclass(frozen=True, slots=True, eq=False)
class LayerNorm:
    """Computes (x - mean) / sqrt(variance + 1e-5) * weight + bias for each vector."""

    dimension: int
    weight: Rows = field(repr=False)
    bias: Rows = field(repr=False)
    reads: ClassVar[str] = SENTENCE

    def get_embedding_dimension(self) -> int:
        """Return the width of the vectors."""
        return self.dimension

    def check(self, widths: Widths) -> None:
        """Check the input."""
        widths.need(SENTENCE, "LayerNorm", width=self.dimension)

    def __call__(self, features: Features) -> None:
        """Normalize each vector."""
        features.transform(SENTENCE, SENTENCE, self._norm)

    def _norm(self, x: Rows) -> Rows:
        return ops.layer_norm(x, self.dimension, self.weight, self.bias, eps=1e-5)


@read_only()
@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """Computes activation(x @ weight.T + bias); use_residual adds x or x @ residual.T.

    weight [out_features, in_features], bias [out_features] or None, residual [out_features, in_features] or None.
    """

    in_features: int
    out_features: int
    weight: Rows = field(repr=False)
    bias: Rows | None = field(repr=False)
    residual: Rows | None = field(repr=False)
    activation_function: str = "Tanh"
    module_input_name: str = SENTENCE
    module_output_name: str = SENTENCE
    use_residual: bool = False

    @property
    def reads(self) -> str:
        """The feature that the module reads."""
        return self.module_input_name

    def get_embedding_dimension(self) -> int:
        """Return the width of the vectors."""
        return self.out_features

    def check(self, widths: Widths) -> None:
        """Check the input and record the feature that the module computes."""
        widths.need(self.module_input_name, "Dense", width=self.in_features)
        level, _ = widths.known[self.module_input_name]
        widths.put(self.module_output_name, level, self.out_features)

    def __call__(self, features: Features) -> None:
        """Project each vector."""
        features.transform(self.module_input_name, self.module_output_name, self._project)

    def _project(self, x: Rows) -> Rows:
        y = activate(self.activation_function, ops.linear(x, self.weight, self.bias))
        if not self.use_residual:
            return y
        return np.add(y, x if self.residual is None else ops.linear(x, self.residual))


def read_normalize(folder: Path) -> Normalize:
    """Read a Normalize module; older folders have no config.json for it."""
    settings = read_settings(folder / "config.json")
    source, target = _feature_names(settings)
    settings.finish()
    return Normalize(source, target)


def read_layer_norm(folder: Path) -> LayerNorm:
    """Read a LayerNorm module. Raises ConfigError, ModelFormatError."""
    settings = read_settings(folder / "config.json", needed_by="module LayerNorm")
    size = settings.count("dimension", None, low=1)
    settings.finish()
    if size is None:
        raise settings.error("dimension", "the width of the vectors")
    tensors = find_weights(folder, "module LayerNorm")
    check_names(folder, tensors, ("norm.weight", "norm.bias"))
    return LayerNorm(size, *(read_floats(tensors[name], (size,)) for name in ("norm.weight", "norm.bias")))


def read_dense(folder: Path, *, trust_remote_code: bool = False) -> Dense:
    """Read a Dense module. Raises ConfigError, ModelFormatError."""
    settings = read_settings(folder / "config.json", needed_by="module Dense")
    n_in, n_out = settings.count("in_features", None, low=1), settings.count("out_features", None, low=1)
    with_bias = settings.flag("bias", True)
    activation = _activation(settings, trust_remote_code=trust_remote_code)
    source, target = _feature_names(settings)
    use_residual = settings.flag("use_residual", False)
    settings.finish()
    if n_in is None or n_out is None:
        raise settings.error("in_features" if n_in is None else "out_features", "a width")
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (n_out, n_in)}
    if with_bias:
        shapes["linear.bias"] = (n_out,)
    if use_residual and n_in != n_out:
        shapes["residual.weight"] = (n_out, n_in)
    tensors = find_weights(folder, "module Dense")
    check_names(folder, tensors, shapes)
    weights = {name: read_floats(tensors[name], shape) for name, shape in shapes.items()}
    return Dense(
        n_in,
        n_out,
        weights["linear.weight"],
        weights.get("linear.bias"),
        weights.get("residual.weight"),
        activation,
        source,
        target,
        use_residual,
    )


def _feature_names(settings: Settings) -> tuple[str, str]:
    """Return module_input_name and module_output_name; the latter defaults to the former if missing or null."""
    if settings.values.get("module_input_name", SENTENCE) is None:
        raise settings.error("module_input_name", "the name of a feature")
    source = settings.text("module_input_name", SENTENCE)
    return source, settings.text("module_output_name", source)


def _activation(settings: Settings, *, trust_remote_code: bool) -> str:
    """Return activation_function: a class of torch.nn; Tanh if it is missing."""
    key = "activation_function"
    if key in settings.values and settings.values[key] is None:
        raise settings.error(key, "the path of a class, such as torch.nn.modules.linear.Identity")
    path = settings.text(key, "torch.nn.modules.activation.Tanh")
    name = path.rpartition(".")[2]
    if path.startswith("torch.nn.") and name in ACTIVATIONS:
        return name
    if path.startswith("torch.") or trust_remote_code:
        raise ConfigError(
            f"{settings.where}: {key}: expected a class of torch.nn among {', '.join(ACTIVATIONS)}, got {quote(path)}"
            f"{closest(name, ACTIVATIONS)}"
        )
    # As in sentence-transformers without trust_remote_code.
    _log.warning("%s: %s %s is not part of torch; Tanh is used instead", settings.where, key, quote(path))
    return "Tanh"
