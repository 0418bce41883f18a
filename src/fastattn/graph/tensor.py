"""Symbolic tensors. A model is a function over them; calling it once records a Program.

Nothing is computed here. `Tokens` represents the ragged step, `Weights` the checkpoint with its own names, and `Tensor`
a matrix with one row per token (or per wanted token, or per sequence). Each function below appends one Op.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from fastattn.errors import ConfigError
from fastattn.graph.ir import Attr, Op, Program, Rows, Value, Weight

Activation = Literal["none", "gelu_erf", "gelu_tanh", "relu", "tanh", "silu"]
ACTIVATIONS: tuple[Activation, ...] = ("none", "gelu_erf", "gelu_tanh", "relu", "tanh", "silu")
Selection = Literal["wanted", "first", "last"]
Pooling = Literal["mean", "max", "mean_sqrt_len"]
ROWS_OF: Mapping[str, Rows] = {"tokens": "tokens", "wanted": "wanted", "first": "sequences", "last": "sequences"}


class Names(Protocol):
    """What a trace needs to know about the tensors of a checkpoint.

    has: whether a tensor exists. repeats: whether it is a copy of another one.
    transposed: whether it is stored as [in, out].
    """

    def has(self, name: str) -> bool: ...

    def repeats(self, name: str) -> bool: ...

    def transposed(self, name: str) -> bool: ...


@dataclass(slots=True)
class Tracer:
    """Collects values, ops and weights while a model function runs."""

    values: list[Value] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    weights: dict[str, Weight] = field(default_factory=dict)
    marks: dict[str, int] = field(default_factory=dict)

    def emit(
        self,
        kind: str,
        inputs: tuple[Tensor, ...],
        rows: Rows,
        width: int,
        *,
        weights: tuple[str, ...] = (),
        attrs: Mapping[str, Attr] | None = None,
    ) -> Tensor:
        """Append one op and return its output."""
        self.values.append(Value(rows, width))
        output = len(self.values) - 1
        self.ops.append(Op(kind, tuple(t.index for t in inputs), output, weights, dict(attrs or {})))
        return Tensor(self, output)

    def weight(self, weight: Weight) -> str:
        """Register a parameter and return its key. A table that is also used as a matrix becomes a matrix (tied)."""
        key = weight.parts[0]
        known = self.weights.get(key)
        if known is not None and known.shape != weight.shape:
            raise ConfigError(f"{key}: used both as {list(known.shape)} and as {list(weight.shape)}")
        if known is None or (known.use == "table" and weight.use == "matrix"):
            self.weights[key] = weight
        return key

    def program(
        self,
        outputs: Mapping[str, Tensor],
        *,
        max_positions: int,
        n_kv_head: int,
        head_dim: int,
    ) -> Program:
        """Return the recorded ops as a Program with these outputs."""
        attentions = [op for op in self.ops if op.kind == "attention"]
        return Program(
            values=tuple(self.values),
            ops=tuple(self.ops),
            weights=dict(self.weights),
            outputs={name: tensor.index for name, tensor in outputs.items()},
            n_layer=len(attentions),
            n_kv_head=n_kv_head,
            head_dim=head_dim,
            max_positions=max_positions,
            causal=any(bool(op.attrs["causal"]) for op in attentions),
            marks=dict(self.marks),
        )


@dataclass(frozen=True, slots=True)
class Tensor:
    """A value of the Program that is being recorded."""

    tracer: Tracer
    index: int

    @property
    def value(self) -> Value:
        return self.tracer.values[self.index]

    @property
    def rows(self) -> Rows:
        return self.value.rows

    @property
    def width(self) -> int:
        return self.value.width

    def __add__(self, other: Tensor) -> Tensor:
        if self.value != other.value:
            raise ConfigError(f"add: expected two values of one shape, got {self.value} and {other.value}")
        return self.tracer.emit("add", (self, other), self.rows, self.width)


@dataclass(frozen=True, slots=True)
class Index:
    """One of the integer inputs of a step."""

    name: Literal["token_ids", "positions", "token_type_ids"]


@dataclass(frozen=True, slots=True)
class Tokens:
    """The ragged tokens of a step, as a model sees them."""

    ids: Index = field(default_factory=lambda: Index("token_ids"))
    positions: Index = field(default_factory=lambda: Index("positions"))
    type_ids: Index = field(default_factory=lambda: Index("token_type_ids"))


@dataclass(frozen=True, slots=True)
class Weights:
    """The parameters below a prefix in the checkpoint: `w["h.0"]["ln_1"]` is everything under `h.0.ln_1.`."""

    tracer: Tracer
    names: Names
    prefix: str = ""

    def __getitem__(self, name: str) -> Weights:
        return Weights(self.tracer, self.names, self.path(name))

    def path(self, name: str) -> str:
        """Return the full checkpoint name of `name` below this prefix."""
        return f"{self.prefix}.{name}" if self.prefix else name

    def has(self, name: str) -> bool:
        """Return whether the checkpoint has this tensor."""
        return self.names.has(self.path(name))

    def repeats(self, name: str) -> bool:
        """Return whether the checkpoint has this tensor as a copy of another one; `has` is then False."""
        return self.names.repeats(self.path(name))

    def vector(self, name: str, width: int) -> str:
        return self.tracer.weight(Weight((self.path(name),), "vector", (width,)))

    def table(self, rows: int, width: int) -> str:
        return self.tracer.weight(Weight((self.path("weight"),), "table", (rows, width)))

    def matrix(self, out_features: int, in_features: int) -> str:
        part = self.path("weight")
        return self.tracer.weight(
            Weight((part,), "matrix", (out_features, in_features), transposed=self.names.transposed(part))
        )


def embedding(w: Weights, index: Index, rows: int, width: int, *, offset: int = 0) -> Tensor:
    """Look up row index + offset of a table [rows, width] for every token."""
    attrs: dict[str, Attr] = {"index": index.name, "offset": offset}
    return w.tracer.emit("embedding", (), "tokens", width, weights=(w.table(rows, width),), attrs=attrs)


def layer_norm(x: Tensor, w: Weights, eps: float) -> Tensor:
    """Compute (x - mean) / sqrt(variance + eps) * weight + bias for each row (Ba et al. 2016)."""
    weights = (w.vector("weight", x.width), w.vector("bias", x.width))
    return x.tracer.emit("layer_norm", (x,), x.rows, x.width, weights=weights, attrs={"eps": eps})


def linear(x: Tensor, w: Weights, out_features: int, *, bias: bool = True) -> Tensor:
    """Compute x @ weight.T + bias, with weight [out_features, x.width] and, if `bias`, bias [out_features]."""
    weights = (w.matrix(out_features, x.width),) + ((w.vector("bias", out_features),) if bias else ())
    attrs: dict[str, Attr] = {"activation": "none", "has_bias": bias, "has_residual": False}
    return x.tracer.emit("linear", (x,), x.rows, out_features, weights=weights, attrs=attrs)


def activate(x: Tensor, activation: Activation) -> Tensor:
    """Apply an elementwise function."""
    if activation == "none":
        return x
    return x.tracer.emit("activation", (x,), x.rows, x.width, attrs={"activation": activation})


def split(x: Tensor, parts: int) -> tuple[Tensor, ...]:
    """Split the columns of x into `parts` equal slices."""
    if x.width % parts:
        raise ConfigError(f"split: expected a width divisible by {parts}, got {x.width}")
    width = x.width // parts
    return tuple(
        x.tracer.emit("slice", (x,), x.rows, width, attrs={"offset": i * width, "width": width}) for i in range(parts)
    )


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    layer: int,
    n_head: int,
    causal: bool,
    n_kv_head: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """Compute softmax(scale * q @ k.T) @ v for every head within each sequence (Vaswani et al. 2017)."""
    kv_heads = n_kv_head or n_head
    if q.width % n_head or n_head % kv_heads or k.width != v.width or k.width * n_head != q.width * kv_heads:
        raise ConfigError(
            f"attention: {n_head} heads over {kv_heads} do not fit q, k, v of widths {q.width}, {k.width}, {v.width}"
        )
    head_dim = q.width // n_head
    attrs: dict[str, Attr] = {
        "causal": causal,
        "layer": layer,
        "n_head": n_head,
        "n_kv_head": kv_heads,
        "head_dim": head_dim,
        "scale": 1.0 / math.sqrt(head_dim) if scale is None else scale,
        "q_rows": "tokens",
    }
    return q.tracer.emit("attention", (q, k, v), q.rows, q.width, attrs=attrs)


def gather_rows(x: Tensor, which: Selection) -> Tensor:
    """Gather the wanted rows of a step, or the first or last row of every sequence."""
    return x.tracer.emit("gather_rows", (x,), ROWS_OF[which], x.width, attrs={"which": which})


def wanted_rows(x: Tensor) -> Tensor:
    """Gather the rows that need logits."""
    return gather_rows(x, "wanted")


def pool(x: Tensor, pooling: Pooling) -> Tensor:
    """Pool each sequence to one row: the mean or maximum of its n rows, or their sum / sqrt(n)."""
    return x.tracer.emit("pool", (x,), "sequences", x.width, attrs={"pool": pooling})


def l2_normalize(x: Tensor, eps: float = 1e-12) -> Tensor:
    """Compute x / max(||x||, eps) for each row."""
    return x.tracer.emit("l2_normalize", (x,), x.rows, x.width, attrs={"eps": eps})


def hidden_state(x: Tensor) -> Tensor:
    """Mark x as the model's next hidden state (see `with_outputs`) and return it."""
    x.tracer.marks[f"hidden_states.{len(x.tracer.marks)}"] = x.index
    return x
