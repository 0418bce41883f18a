"""The fast ops as functions: numpy in, numpy out, with torch's argument names.

    linear  matmul  layer_norm  softmax  log_softmax  gelu  scaled_dot_product_attention

Arrays. Every array is a `numpy.ndarray` of float32. An array in non-native byte order is converted without loss. Every
other dtype raises DTypeError, because a silent cast would hide a copy or lose bits; use `x.astype(numpy.float32)`. Any
layout is accepted: an array that is not C-contiguous or not aligned is copied once. Inputs may be read-only. If another
thread changes an input during the call, the result is unspecified, but the call does not crash.

`out=` takes a writable float32 array in native byte order, of the result's shape and in any layout. The call returns
it. It may share memory with the inputs; the result is the same.

NaN and infinity propagate within their own row (softmax, layer_norm), element (gelu), output row or column (linear,
matmul) or query row (attention).

Errors: DTypeError for a wrong type, InputError for a wrong shape or value, MemoryError if the result cannot be
allocated. All arguments are checked before an array is copied or a result is computed. An error leaves `out` unchanged.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastattn import _core
from fastattn.checks import check_choice, check_count, check_flag, check_number, is_masked_array, quote
from fastattn.errors import DTypeError, InputError

Array: TypeAlias = NDArray[np.float32]

__all__ = ["gelu", "layer_norm", "linear", "log_softmax", "matmul", "scaled_dot_product_attention", "softmax"]


def __dir__() -> list[str]:
    return sorted(__all__)


_MAX_HEAD_DIM = 256  # kMaxHeadDim of csrc/kernels/kv_layout.h
_MAX_DIM = 2**31 - 1  # the kernels count rows and columns in int32
_MAX_AXES = 64  # of a numpy array
_MAX_BYTES = 2**63 - 1
_MAX_FLOAT32 = float(np.finfo(np.float32).max)
_KINDS = {"none": "gelu_erf", "tanh": "gelu_tanh"}


def linear(input: Array, weight: Array, bias: Array | None = None, *, out: Array | None = None) -> Array:
    """Compute input @ weight.T + bias.

    input [..., in_features], weight [out_features, in_features] or [in_features], bias [out_features], or [] for a
    one-dimensional weight. -> [..., out_features], or [...] for a one-dimensional weight. Raises DTypeError,
    InputError, MemoryError.
    """
    x, w = _array("input", input, at_least=1), _array("weight", weight, at_least=1)
    if w.ndim > 2:
        raise InputError(f"weight: expected [out_features, in_features] or [in_features], got shape {_shape(w.shape)}")
    if x.shape[-1] != w.shape[-1]:
        raise InputError(
            f"weight: expected in_features {x.shape[-1]}, the last axis of input {_shape(x.shape)}, "
            f"got shape {_shape(w.shape)}"
        )
    b = None if bias is None else _array("bias", bias)
    if b is not None and b.shape != w.shape[:-1]:
        raise InputError(f"bias: expected shape {w.shape[:-1]}, got {_shape(b.shape)}")
    shape = (*x.shape[:-1], *w.shape[:-1])
    _check_result(shape, out)
    n, k = math.prod(w.shape[:-1]), w.shape[-1]
    m = math.prod(x.shape[:-1])
    flat_bias = None if b is None else _dense(b).reshape(n)
    if m and n and k:
        direct = _direct_out(out, (x, w, b))
        target = None if direct is None else direct.reshape(m, n)
        y: Array = _core.linear(_dense(x).reshape(m, k), _dense(w).reshape(n, k), flat_bias, target)
        if direct is not None:
            return direct
    else:
        y = np.zeros((m, n), np.float32) + (0 if flat_bias is None else flat_bias)
    return _give(y.reshape(shape), out)


def matmul(input: Array, other: Array, *, out: Array | None = None) -> Array:
    """Multiply matrices as numpy.matmul and torch.matmul do: 1-D, 2-D and broadcast batches.

    input [..., m, k] or [k], other [..., k, n] or [k] -> [..., m, n] without the axis of a 1-D operand. Raises
    DTypeError, InputError, MemoryError.
    """
    a, b = _array("input", input, at_least=1), _array("other", other, at_least=1)
    rows, columns = a.ndim > 1, b.ndim > 1
    a2 = a if rows else a[np.newaxis, :]
    b2 = b if columns else b[:, np.newaxis]
    (m, k), n = a2.shape[-2:], b2.shape[-1]
    if b2.shape[-2] != k:
        raise InputError(
            f"other: expected {k} rows, the last axis of input {_shape(a.shape)}, got shape {_shape(b.shape)}"
        )
    batch = _broadcast("other", a2.shape[:-2], b2.shape[:-2])
    shape = (*batch, *((m,) if rows else ()), *((n,) if columns else ()))
    _check_result(shape, out)
    y = _batched_product(a2, b2, batch, (m, k, n))
    return _give(y.reshape(shape), out)


def _batched_product(a: Array, b: Array, batch: tuple[int, ...], mkn: tuple[int, int, int]) -> Array:
    m, k, n = mkn
    count = math.prod(batch)
    if not (count and m and n and k):
        return np.zeros((*batch, m, n), np.float32)
    if math.prod(b.shape[:-2]) == 1:  # all share one matrix: one product
        wide = _dense(np.broadcast_to(a, (*batch, m, k))).reshape(count * m, k)
        one: Array = _core.matmul(wide, _dense(b).reshape(k, n))
        return one
    y = np.empty((*batch, m, n), np.float32)
    a_all, b_all = np.broadcast_to(a, (*batch, m, k)), np.broadcast_to(b, (*batch, k, n))
    for i in itertools.product(*map(range, batch)):
        y[i] = _core.matmul(_dense(a_all[i]), _dense(b_all[i]))
    return y


def layer_norm(
    input: Array,
    normalized_shape: int | Sequence[int],
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    *,
    out: Array | None = None,
) -> Array:
    """Compute (x - mean) / sqrt(variance + eps) * weight + bias over the last axes (Ba et al. 2016).

    input [..., *normalized_shape], weight and bias [*normalized_shape]. -> the shape of input. Raises DTypeError,
    InputError, MemoryError.
    """
    x = _array("input", input, at_least=1)
    shape = _normalized_shape(normalized_shape)
    if not shape or x.shape[-len(shape) :] != shape:
        raise InputError(f"normalized_shape: expected the last axes of input {_shape(x.shape)}, got {_shape(shape)}")
    parts = {"weight": weight, "bias": bias}
    flat = {name: None if p is None else _array(name, p) for name, p in parts.items()}
    for name, part in flat.items():
        if part is not None and part.shape != shape:
            raise InputError(f"{name}: expected shape {_shape(shape)}, got {_shape(part.shape)}")
    added = check_number("eps", eps, low=0, high=_MAX_FLOAT32)
    _check_result(x.shape, out)
    if x.size == 0:
        return _give(np.empty(x.shape, np.float32), out)
    w, b = (None if p is None else _dense(p).reshape(-1) for p in flat.values())
    y = _core.layer_norm(_dense(x).reshape(-1, math.prod(shape)), w, b, added)
    return _give(y.reshape(x.shape), out)


def _normalized_shape(value: Any) -> tuple[int, ...]:
    many = isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim == 1)
    if many and len(value) > _MAX_AXES:
        raise InputError(f"normalized_shape: expected at most {_MAX_AXES} axes, got {len(value)}")
    axes = tuple(value) if many else (value,)
    return tuple(check_count("normalized_shape", axis, high=_MAX_DIM) for axis in axes)


def softmax(input: Array, dim: int = -1, *, out: Array | None = None) -> Array:
    """Compute exp(x) / sum of exp(x) along `dim`, with the maximum subtracted first. -> the shape of input.

    A row of only -inf gives zeros (torch: NaN). Raises DTypeError, InputError, MemoryError.
    """
    return _softmax(input, dim, out, log=False)


def log_softmax(input: Array, dim: int = -1, *, out: Array | None = None) -> Array:
    """Compute log(softmax) along `dim` without the logarithm of a small number. -> the shape of input.

    Raises DTypeError, InputError, MemoryError.
    """
    return _softmax(input, dim, out, log=True)


def _softmax(input: Array, dim: int, out: Array | None, *, log: bool) -> Array:
    x = _array("input", input)
    axes = max(x.ndim, 1)  # torch accepts dim 0 and -1 for a scalar
    axis = check_count("dim", dim, low=-axes, high=axes - 1) % axes
    _check_result(x.shape, out)
    if x.size == 0:
        return _give(np.empty(x.shape, np.float32), out)
    moved = _dense(np.moveaxis(x.reshape(x.shape or (1,)), axis, -1))
    y = _core.softmax(moved.reshape(-1, moved.shape[-1]), log).reshape(moved.shape)
    return _give(np.ascontiguousarray(np.moveaxis(y, -1, axis)).reshape(x.shape), out)


def gelu(input: Array, approximate: Literal["none", "tanh"] = "none", *, out: Array | None = None) -> Array:
    """Compute x * Phi(x), the Gaussian error linear unit (Hendrycks and Gimpel 2016). -> the shape of input.

    approximate: "none" uses erf, as BERT does; "tanh" uses the tanh formula, as GPT-2 does. Raises
    DTypeError, InputError, MemoryError.
    """
    x = _array("input", input)
    kind = _KINDS[check_choice("approximate", approximate, _KINDS)]
    _check_result(x.shape, out)
    if x.size == 0:
        return _give(np.empty(x.shape, np.float32), out)
    return _give(_core.activation(_dense(x).reshape(-1), kind).reshape(x.shape), out)


def scaled_dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | NDArray[np.bool_] | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    out: Array | None = None,
) -> Array:
    """Compute softmax(query @ key.T * scale + attn_mask) @ value without storing the matrix of scores.

    query [..., n_head, q_len, head_dim], key [..., n_kv_head, kv_len, head_dim], value [..., n_kv_head, kv_len,
    value_dim] -> [..., n_head, q_len, value_dim]. The axes before the last two broadcast. head_dim and value_dim are at
    most 256.

    attn_mask broadcasts to [..., n_head, q_len, kv_len]. A bool mask is True for keys that take part; a float32 mask is
    added to the scaled scores. is_causal: query i attends to keys 0 to i (aligned at the top left, as in torch);
    excludes attn_mask. scale: 1 / sqrt(head_dim) if None. enable_gqa: n_head is a multiple of n_kv_head, and head h
    reads key head h // (n_head // n_kv_head). dropout_p: only 0 (inference).
    A query row that attends to no key gives zeros. Raises DTypeError, InputError, MemoryError.
    """
    q, k, v = (_array(n, a, at_least=2) for n, a in (("query", query), ("key", key), ("value", value)))
    _check_attention(q, k, v)
    if check_number("dropout_p", dropout_p) != 0:
        raise InputError(f"dropout_p: expected 0 (inference only), got {quote(dropout_p)}")
    causal = check_flag("is_causal", is_causal)
    if causal and attn_mask is not None:
        raise InputError("attn_mask: expected None with is_causal=True, got an array")
    head_dim, value_dim = q.shape[-1], v.shape[-1]
    factor = _scale(scale, head_dim)
    lead, kv_lead = _attention_axes(q, k, v, enable_gqa=check_flag("enable_gqa", enable_gqa))
    shape = (*lead, q.shape[-2], value_dim)
    _check_result(shape, out)
    mask = None if attn_mask is None else _mask(attn_mask, (*lead, q.shape[-2], k.shape[-2]))
    if math.prod(shape) == 0:
        return _give(np.empty(shape, np.float32), out)
    if k.shape[-2] == 0:
        return _give(np.zeros(shape, np.float32), out)
    # Zero columns change no score and no output, so one kernel also serves value_dim != head_dim.
    width = max(head_dim, value_dim)
    y = _core.attention(
        _heads(q, lead, width), _heads(k, kv_lead, width), _heads(v, kv_lead, width), mask, causal, factor
    )
    return _give(np.ascontiguousarray(y[..., :value_dim]).reshape(shape), out)


def _check_attention(q: Array, k: Array, v: Array) -> None:
    if k.shape[-1] != q.shape[-1]:
        raise InputError(
            f"key: expected head_dim {q.shape[-1]} of query {_shape(q.shape)}, got shape {_shape(k.shape)}"
        )
    if v.shape[-2] != k.shape[-2]:
        raise InputError(f"value: expected kv_len {k.shape[-2]} of key {_shape(k.shape)}, got shape {_shape(v.shape)}")
    for name, array in (("query", q), ("value", v)):
        if array.shape[-1] > _MAX_HEAD_DIM:
            raise InputError(
                f"{name}: expected a last axis of at most {_MAX_HEAD_DIM}, got shape {_shape(array.shape)}"
            )


def _attention_axes(q: Array, k: Array, v: Array, *, enable_gqa: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the broadcast axes before the last two, of the output and of the keys and values."""
    if not enable_gqa:
        kv = _broadcast("value", k.shape[:-2], v.shape[:-2])
        lead = _broadcast("key", q.shape[:-2], kv)
        return lead, lead
    if min(q.ndim, k.ndim, v.ndim) < 3:
        shapes = f"query {_shape(q.shape)}, key {_shape(k.shape)}, value {_shape(v.shape)}"
        raise InputError(f"enable_gqa: expected a head axis, got {shapes}")
    n_head, n_kv_head = q.shape[-3], k.shape[-3]
    if v.shape[-3] != n_kv_head:
        raise InputError(f"value: expected {n_kv_head} heads, as in key {_shape(k.shape)}, got shape {_shape(v.shape)}")
    if n_kv_head == 0 or n_head % n_kv_head:
        raise InputError(f"key: expected a number of heads that divides query's {n_head}, got {n_kv_head}")
    batch = _broadcast("key", q.shape[:-3], _broadcast("value", k.shape[:-3], v.shape[:-3]))
    return (*batch, n_head), (*batch, n_kv_head)


def _heads(x: Array, lead: tuple[int, ...], width: int) -> Array:
    """Broadcast the leading axes and pad with zeros on the right: [batch, n_head, len, width], C-contiguous."""
    length, dim = x.shape[-2:]
    y = np.broadcast_to(x, (*lead, length, dim)).reshape((*_batch_heads(lead), length, dim))
    if dim < width:
        y = np.pad(y, ((0, 0), (0, 0), (0, 0), (0, width - dim)))
    return _dense(y)


def _batch_heads(lead: tuple[int, ...]) -> tuple[int, int]:
    return (math.prod(lead[:-1]), lead[-1]) if lead else (1, 1)


def _mask(mask: Any, shape: tuple[int, ...]) -> Array:
    """Return the mask as additive float32 [batch or 1, n_head or 1, q_len, kv_len]."""
    _check_plain("attn_mask", mask, "a bool or float32")
    if mask.dtype != np.bool_:
        _array("attn_mask", mask)
    if mask.ndim > len(shape) or _try_broadcast(mask.shape, shape) != shape:
        raise InputError(f"attn_mask: expected a shape that broadcasts to {_shape(shape)}, got {_shape(mask.shape)}")
    lead = (1,) * (len(shape) - mask.ndim) + mask.shape[:-2]
    one = all(n == 1 for n in lead[: len(shape) - 3])
    full = (*((1,) * (len(shape) - 3) if one else shape[:-3]), *lead[max(len(shape) - 3, 0) : len(shape) - 2])
    y = np.broadcast_to(mask, (*full, *shape[-2:])).reshape((*_batch_heads(full), *shape[-2:]))
    return _dense(np.where(y, np.float32(0), np.float32(-np.inf)) if mask.dtype == np.bool_ else y)


def _scale(scale: float | None, head_dim: int) -> float:
    if scale is None:
        return 1.0 / math.sqrt(head_dim) if head_dim else 1.0
    return check_number("scale", scale, low=-_MAX_FLOAT32, high=_MAX_FLOAT32)


def _shape(shape: tuple[int, ...]) -> str:
    """Format a shape for an error message."""
    return str(shape) if len(shape) <= 8 else f"{str(shape[:8])[:-1]}, ...) of {len(shape)} axes"


def _check_plain(name: str, array: Any, expected: str) -> None:
    """Refuse everything but arrays. Masked arrays are refused too, because their mask would be lost."""
    if not isinstance(array, np.ndarray):
        raise DTypeError(f"{name}: expected {expected} numpy array, got {type(array).__name__}")
    if is_masked_array(array):
        raise DTypeError(f"{name}: expected {expected} numpy array, got a masked array; call .filled() first")


def _array(name: str, array: Any, *, at_least: int = 0) -> Array:
    """Return the array after checking its type and lengths. Any layout and byte order; see `_dense`."""
    _check_plain(name, array, "a float32")
    if array.dtype.newbyteorder("=") != np.float32:
        raise DTypeError(
            f"{name}: expected float32, got {_dtype(array)} {_shape(array.shape)}; "
            "convert it with .astype(numpy.float32)"
        )
    if array.ndim < at_least:
        raise InputError(f"{name}: expected at least {at_least} axes, got shape {_shape(array.shape)}")
    if any(n > _MAX_DIM for n in array.shape):
        raise InputError(f"{name}: expected axes of at most {_MAX_DIM}, got shape {_shape(array.shape)}")
    plain: Array = array.view(np.ndarray)
    return plain


def _dtype(array: NDArray[Any]) -> str:
    """Format a dtype for an error message."""
    fields = array.dtype.names
    return str(array.dtype) if fields is None else f"a record of {len(fields)} fields"


def _dense(array: Array) -> Array:
    """Return the array as aligned, C-contiguous float32 in native byte order: itself, or one copy."""
    dense: Array = np.require(array, np.float32, ("C", "A"))
    return dense


def _try_broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape that both broadcast to. numpy.broadcast_shapes accepts at most 32 axes."""
    ones = (1,) * abs(len(a) - len(b))
    a, b = (ones + a, b) if len(a) < len(b) else (a, ones + b)
    if any(n != m and 1 not in (n, m) for n, m in zip(a, b, strict=True)):
        return None
    return tuple(m if n == 1 else n for n, m in zip(a, b, strict=True))


def _broadcast(name: str, a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    shape = _try_broadcast(a, b)
    if shape is None:
        raise InputError(f"{name}: expected leading axes that broadcast with {_shape(a)}, got {_shape(b)}")
    return shape


def _check_result(shape: tuple[int, ...], out: Any) -> None:
    """Refuse a result that is too large for any array, and an `out` that does not fit it."""
    if math.prod(shape) * 4 > _MAX_BYTES:
        raise InputError(f"input: expected a result of at most {_MAX_BYTES} bytes, got shape {_shape(shape)}")
    if out is None:
        return
    _check_plain("out", out, "a float32")
    if out.dtype != np.float32:
        raise DTypeError(f"out: expected float32, got {_dtype(out)}")
    if out.shape != shape:
        raise InputError(f"out: expected shape {_shape(shape)}, got {_shape(out.shape)}")
    if not out.flags.writeable:
        raise InputError("out: expected a writable array, got a read-only one")


def _direct_out(out: Array | None, inputs: tuple[Array | None, ...]) -> Array | None:
    """Return `out` if a kernel may write into it: C-contiguous, aligned, no memory shared with inputs."""
    if out is None or not (out.flags.c_contiguous and out.flags.aligned):
        return None
    return None if any(x is not None and np.may_share_memory(out, x) for x in inputs) else out


def _give(result: Array, out: Array | None) -> Array:
    """Return the result, copied to `out` if given."""
    if out is None:
        return result
    np.copyto(out, result)
    return out
