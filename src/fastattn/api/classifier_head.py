"""A linear classifier on the vectors of an encoder, as tensors of the family's own classification head.

The heads have more than one matrix. Each of them can compute a linear function, up to float32 rounding:

- "tanh": dense = small * identity, because tanh(x) = x (1 - x^2 / 3 + ...). The last matrix divides by `small`.
- "gelu" and "silu": the same, because f(x) = x / 2 (1 + O(x)).
- "relu": dense has each row of the classifier and its negative, because relu(x) - relu(-x) = x.
- ModernBERT also has a layer norm between the matrices. Its eps is far above the variance of the small numbers, so it
  only subtracts their mean and divides by sqrt(eps).

Most heads read only the first token. So for the mean over all tokens, one layer is added to the model. Its queries and
keys are zero, so its attention is the mean of the values, which are the hidden states. Its output matrix is large *
identity, so the residual of the first token vanishes in rounding, and the layer norm computes
(mean - its average) / its standard deviation. The feed-forward part is zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastattn.errors import ConfigError

Wide = NDArray[np.float64]
Tensors = dict[str, NDArray[np.float32]]
Pooling = Literal["cls", "mean"]
# Powers of two, so scaling is exact. |x| < 2^11 gives a relative error below 2^-27.
_SMALL: Mapping[str, float] = {"tanh": 2.0**-24, "gelu_erf": 2.0**-40, "gelu_tanh": 2.0**-40, "silu": 2.0**-40}
_SLOPES: Mapping[str, float] = {"tanh": 1.0, "gelu_erf": 0.5, "gelu_tanh": 0.5, "silu": 0.5}
_LARGE = 2.0**30


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLayout:
    """The classification head of a family. Names that begin with "." are below the family's prefix.

    architecture: the prefix of transformers' classes. form: how the head computes a linear function. dense, output: the
    names of the two matrices. layer: the names of a layer's
    parts, to add one for the mean; None if that is impossible. reads_mean: the head itself can read the mean. also: a
    tensor of the encoder that is not a weight of the Program, which has a table computed from it.
    """

    architecture: str
    form: Literal["tanh", "gelu_erf", "relu", "modernbert"] = "tanh"
    dense: str
    output: str = "classifier"
    layer: LayerNames | None = None
    reads_mean: bool = False
    also: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNames:
    """The parts of a layer. prefix: before the layer's number. zero: queries and keys.

    count, width, inner: the keys of config.json for the number of layers and the widths of hidden states and of the
    feed-forward part.
    """

    count: str
    prefix: str
    width: str
    inner: str
    zero: tuple[str, str]
    value: str
    output: str
    inner_dense: str
    outer_dense: str
    norms: tuple[str, str]


_BERT_LAYER = LayerNames(
    count="num_hidden_layers",
    prefix="encoder.layer.",
    width="hidden_size",
    inner="intermediate_size",
    zero=("attention.self.query", "attention.self.key"),
    value="attention.self.value",
    output="attention.output.dense",
    inner_dense="intermediate.dense",
    outer_dense="output.dense",
    norms=("attention.output.LayerNorm", "output.LayerNorm"),
)
_DISTILBERT_LAYER = LayerNames(
    count="n_layers",
    prefix="transformer.layer.",
    width="dim",
    inner="hidden_dim",
    zero=("attention.q_lin", "attention.k_lin"),
    value="attention.v_lin",
    output="attention.out_lin",
    inner_dense="ffn.lin1",
    outer_dense="ffn.lin2",
    norms=("sa_layer_norm", "output_layer_norm"),
)


def _roberta(name: str) -> HeadLayout:
    return HeadLayout(architecture=name, dense="classifier.dense", output="classifier.out_proj", layer=_BERT_LAYER)


HEAD_LAYOUTS: Mapping[str, HeadLayout] = {
    "bert": HeadLayout(architecture="Bert", dense=".pooler.dense", layer=_BERT_LAYER),
    "distilbert": HeadLayout(architecture="DistilBert", form="relu", dense="pre_classifier", layer=_DISTILBERT_LAYER),
    "roberta": _roberta("Roberta"),
    "xlm-roberta": _roberta("XLMRoberta"),
    "camembert": _roberta("Camembert"),
    "electra": HeadLayout(
        architecture="Electra",
        form="gelu_erf",
        dense="classifier.dense",
        output="classifier.out_proj",
        layer=_BERT_LAYER,
    ),
    "mpnet": HeadLayout(  # no layer: the position bias of its attention changes the mean
        architecture="MPNet",
        dense="classifier.dense",
        output="classifier.out_proj",
        also="encoder.relative_attention_bias.weight",
    ),
    "albert": HeadLayout(architecture="Albert", dense=".pooler"),  # all of its layers have the same weights
    "nomic_bert": HeadLayout(architecture="NomicBert", dense=".pooler.dense"),
    "modernbert": HeadLayout(architecture="ModernBert", form="modernbert", dense="head.dense", reads_mean=True),
}


def adds_layer(model_type: str, pooling: Pooling) -> bool:
    """Return whether a classifier on these vectors needs one more layer.

    If so, it reads normalized vectors (mean - average) / standard deviation, otherwise the vectors themselves.
    """
    layout = HEAD_LAYOUTS.get(model_type)
    return pooling == "mean" and layout is not None and layout.layer is not None


def check_writable(model_type: str, pooling: Pooling) -> HeadLayout:
    """Return the layout of a head that reads these vectors. Raises ConfigError if the family has none."""
    layout = HEAD_LAYOUTS.get(model_type)
    if layout is None:
        raise ConfigError(
            f"model: expected one of {', '.join(HEAD_LAYOUTS)}, whose heads have the form of a linear classifier, got "
            f"{model_type}"
        )
    if pooling == "mean" and layout.layer is None and not layout.reads_mean:
        raise ConfigError(
            f'pooling: expected "cls", because the head of {model_type} reads only the first token, got "mean"; '
            'fit with pooling="cls", or call save_sentence_transformer'
        )
    return layout


def head_tensors(
    config: Any, layout: HeadLayout, prefix: str, weight: Wide, bias: Wide, *, pooling: Pooling
) -> tuple[Tensors, dict[str, object]]:
    """Return the tensors of the head (and of an added layer), and the changes of config.json.

    config: the family's config. weight [n_classes, width], bias [n_classes]: logits = vector @ weight.T + bias. The
    vector is normalized if `adds_layer`. Raises ConfigError.
    """
    tensors: Tensors = {}
    changes: dict[str, object] = {}
    width = int(config.hidden_size)
    if pooling == "mean" and layout.layer is not None:
        n_layers, eps = int(getattr(config, layout.layer.count)), float(getattr(config, "layer_norm_eps", 1e-12))
        tensors |= _mean_layer(config, layout.layer, f"{prefix}{layout.layer.prefix}{n_layers}.")
        changes[layout.layer.count] = n_layers + 1
        weight = weight * math.sqrt(1 + eps)  # the second norm divides by this
    dense = f"{prefix.removesuffix('.')}{layout.dense}" if layout.dense.startswith(".") else layout.dense
    if layout.form == "modernbert":
        changes["classifier_pooling"] = pooling
        found, weight = _modernbert(config, dense, weight)
        tensors |= found
    elif layout.form == "relu":
        found, weight = _pairs(dense, weight, width)
        tensors |= found
    else:
        small = _SMALL[layout.form]
        tensors |= _linear(dense, np.eye(width) * small, np.zeros(width))
        weight = weight / (small * _SLOPES[layout.form])
    return tensors | _linear(layout.output, weight, bias), changes


def _linear(name: str, weight: Wide, bias: Wide | None) -> Tensors:
    found = {f"{name}.weight": np.ascontiguousarray(weight, np.float32)}
    if bias is not None:
        found[f"{name}.bias"] = np.ascontiguousarray(bias, np.float32)
    return found


def _mean_layer(config: Any, names: LayerNames, prefix: str) -> Tensors:
    """Return the layer whose output at the first token is the normalized mean of all tokens."""
    d, inner = int(getattr(config, names.width)), int(getattr(config, names.inner))
    zero = np.zeros(d)
    found: Tensors = {}
    for name in names.zero:
        found |= _linear(prefix + name, np.zeros((d, d)), zero)
    found |= _linear(prefix + names.value, np.eye(d), zero)
    found |= _linear(prefix + names.output, np.eye(d) * _LARGE, zero)
    found |= _linear(prefix + names.inner_dense, np.zeros((inner, d)), np.zeros(inner))
    found |= _linear(prefix + names.outer_dense, np.zeros((d, inner)), zero)
    for name in names.norms:
        found |= _linear(prefix + name, np.ones(d), zero)
    return found


def _pairs(dense: str, weight: Wide, width: int) -> tuple[Tensors, Wide]:
    """Return a dense matrix with the classifier's rows and their negatives, and the matrix of their differences."""
    n = len(weight)
    if 2 * n > width:
        raise ConfigError(f"classes: expected at most {width // 2}, half the width of this model, got {n}")
    rows = np.zeros((width, width))
    rows[:n], rows[n : 2 * n] = weight, -weight
    outputs = np.zeros((n, width))
    outputs[:, :n], outputs[:, n : 2 * n] = np.eye(n), -np.eye(n)
    return _linear(dense, rows, np.zeros(width)), outputs


def _modernbert(config: Any, dense: str, weight: Wide) -> tuple[Tensors, Wide]:
    """Return the dense matrix and the norm after it, and the last matrix; `weight` has rows of average 0."""
    act, width = str(config.classifier_activation), int(config.hidden_size)
    if act not in _SLOPES:
        raise ConfigError(
            f"config.json: classifier_activation: expected one of {', '.join(_SLOPES)}, which are linear near 0, got "
            f"{act}"
        )
    small = 2.0**-40  # also for tanh: the norm is linear only for numbers far below sqrt(eps)
    found = _linear(dense, np.eye(width) * small, np.zeros(width) if config.classifier_bias else None)
    norm = dense.replace("dense", "norm")
    found |= {f"{norm}.weight": np.ones(width, np.float32)}
    if config.norm_bias:
        found |= {f"{norm}.bias": np.zeros(width, np.float32)}
    return found, weight * (math.sqrt(config.norm_eps) / (small * _SLOPES[act]))
