"""The frequencies of rotary position embeddings, from a config.json with any of transformers' scaling types.

Everything is computed in float64 (powers and logarithms in decimal arithmetic), so the frequencies are the same on
every machine. In transformers, the frequencies of some types depend on the length of the text. Here they are those of
the length that the model is loaded for, because a row must not depend on the batch or on the content of the KV cache
(docs/numerics.md).
"""

from __future__ import annotations

import decimal
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from fastattn.errors import ConfigError
from fastattn.settings import Settings

_DIGITS = decimal.Context(prec=40)
_logger = logging.getLogger("fastattn")


@dataclass(frozen=True, slots=True)
class Rope:
    """What a `RotaryTable` needs: radians per position for each pair of a head, and the factor of cos and sin."""

    frequencies: tuple[float, ...]
    attention_factor: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """The sizes that frequencies depend on.

    dimensions: how many of head_dim rotate. max_positions: max_position_embeddings. positions: the longest text that
    the model is loaded for.
    """

    head_dim: int
    dimensions: int
    max_positions: int
    positions: int


def read_rope(
    config: Settings,
    *,
    head_dim: int,
    max_positions: int,
    positions: int | None = None,
    theta: float = 10000.0,
    partial: float = 1.0,
    layer_type: str | None = None,
) -> Rope:
    """Read rope_parameters (or rope_scaling, and rope_theta and partial_rotary_factor next to it). Raises ConfigError.

    max_positions: max_position_embeddings. positions: the longest text that the model is loaded for, at least
    max_positions. theta, partial: the family's defaults. layer_type: the key of the parameters in a config that has
    them by type of layer.
    """
    p = _parameters(config, layer_type)
    rotary_type = p.choice("rope_type", _TYPES, p.choice("type", _TYPES, "default"))
    if layer_type is None and "rope_theta" in config.values and p.values.get("rope_theta") is None:
        raise config.error("rope_theta", "a number above 1")  # null, for which transformers fails
    base = p.number("rope_theta", theta)
    share = p.number("partial_rotary_factor", partial)
    if not 1 < base < math.inf:
        raise p.error("rope_theta", "a number above 1")
    dimensions = int(head_dim * share) if 0 < share <= 1 else 0
    if rotary_type == "proportional":
        dimensions = head_dim
    if dimensions == 0 or dimensions + dimensions % 2 > head_dim:
        raise p.error("partial_rotary_factor", f"a fraction of head_dim = {head_dim} that leaves at least one pair")
    model = _Model(
        head_dim=head_dim,
        dimensions=dimensions,
        max_positions=max_positions,
        positions=max(positions or 0, max_positions),
    )
    rope = _TYPES[rotary_type](p, model, base)
    p.ignore("original_max_position_embeddings")  # some types do not need it
    p.finish()
    return rope


def plain_rope(dimensions: int, theta: float = 10000.0) -> Rope:
    """Return the frequencies without scaling: theta^(-2 i / dimensions) (Su et al. 2021)."""
    return Rope(_frequencies(Decimal(theta), dimensions))


def ntk_frequencies(theta: float, factor: float, mixed_b: float | None, dimensions: int) -> tuple[float, ...]:
    """Return the frequencies of fixed NTK scaling, or with `mixed_b` of its mixed form (kexue.fm/archives/9706).

    Frequency i of d / 2 is (theta * factor)^(-2 i / d) / factor^(2 / d), or theta^(-2 i / d) / exp(a (i + 1)^mixed_b)
    with a = log(factor) / (d / 2)^mixed_b. factor: at least 1.
    """
    scale = Decimal(factor)
    with decimal.localcontext(_DIGITS):
        if mixed_b is None:
            divisor = scale ** (Decimal(2) / dimensions)
            powers = [(Decimal(theta) * scale) ** -(Decimal(i) / dimensions) for i in range(0, dimensions, 2)]
            return tuple(float(power / divisor) for power in powers)
        half, b = Decimal(dimensions) / 2, Decimal(mixed_b)
        a = scale.ln() / half**b
        plain = [Decimal(theta) ** -(Decimal(2 * i) / dimensions) for i in range(dimensions // 2)]
        return tuple(float(f / (a * Decimal(i + 1) ** b).exp()) for i, f in enumerate(plain))


def _parameters(config: Settings, layer_type: str | None) -> Settings:
    """Return the parameters of one type of layer. As in transformers, rope_scaling takes precedence."""
    scaling, parameters = config.table("rope_scaling"), config.table("rope_parameters")
    where, values = ("rope_scaling", scaling) if scaling else ("rope_parameters", parameters)
    if layer_type is not None:
        values = Settings(f"{config.where}: {where}", values).table(layer_type)
    beside = ("rope_theta", "partial_rotary_factor")
    defaults = {key: config.raw(key) for key in beside}
    given = {key: value for key, value in values.items() if value is not None}
    original = config.raw("original_max_position_embeddings")  # Phi-3 has it here, and it takes precedence
    if original is not None:
        given["original_max_position_embeddings"] = original
    return Settings(f"{config.where}: {where}", {**defaults, **given})


def _default(p: Settings, model: _Model, base: float) -> Rope:
    """base^(-2 i / dimensions) (Su et al. 2021)."""
    return plain_rope(model.dimensions, base)


def _linear(p: Settings, model: _Model, base: float) -> Rope:
    """All positions are divided by a factor (kaiokendev 2023)."""
    factor = _positive(p, "factor")
    return Rope(tuple(f / factor for f in _frequencies(Decimal(base), model.dimensions)))


def _dynamic(p: Settings, model: _Model, base: float) -> Rope:
    """NTK-aware scaling of the base for texts longer than max_position_embeddings (emozilla 2023)."""
    factor = _positive(p, "factor")
    if model.dimensions <= 2:
        raise ConfigError(f"{p.where}: dynamic: expected heads with more than 2 rotary dimensions")
    growth = factor * model.positions / model.max_positions - (factor - 1)
    with decimal.localcontext(_DIGITS):
        scaled = Decimal(base) * Decimal(growth) ** (Decimal(model.dimensions) / Decimal(model.dimensions - 2))
    return Rope(_frequencies(scaled, model.dimensions))


def _yarn(p: Settings, model: _Model, base: float) -> Rope:
    """High frequencies do not change, low ones are divided by a factor, with a ramp between them (Peng et al. 2023)."""
    original = _original(p, model)
    factor = _positive(p, "factor", model.max_positions / original)
    dimensions, truncate = model.dimensions, p.flag("truncate", True)

    def dimension(turns: float) -> float:
        """Return the dimension that makes this many turns over the original positions."""
        return dimensions * _log(original / (turns * 2 * math.pi)) / (2 * _log(base))

    low, high = dimension(_positive(p, "beta_fast", 32.0)), dimension(_positive(p, "beta_slow", 1.0))
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dimensions - 1)
    high += 0.001 if low == high else 0.0
    frequencies = []
    for i, f in enumerate(_frequencies(Decimal(base), dimensions)):
        ramp = min(max((i - low) / (high - low), 0.0), 1.0)
        frequencies.append(f / factor * ramp + f * (1 - ramp))
    return Rope(tuple(frequencies), _yarn_factor(p, factor))


def _yarn_factor(p: Settings, factor: float) -> float:
    given = p.number("attention_factor", None)
    mscale, all_dims = p.number("mscale", None), p.number("mscale_all_dim", None)

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * _log(factor) + 1.0

    if given is not None:
        return given
    return scale(mscale) / scale(all_dims) if mscale and all_dims else scale(1.0)


def _longrope(p: Settings, model: _Model, base: float) -> Rope:
    """Every frequency has its own divisor, one for short and one for long texts (Ding et al. 2024)."""
    original = _original(p, model)
    factor = _positive(p, "factor", model.max_positions / original)
    divisors = {key: _positives(p, key, -(-model.dimensions // 2)) for key in ("short_factor", "long_factor")}
    extended = model.positions > original
    if extended and divisors["long_factor"] != divisors["short_factor"]:
        _logger.warning(
            "longrope: the long factors apply to every text; transformers uses the short factors for texts of up to %d "
            "tokens, so its results for these differ",
            original,
        )
    chosen = divisors["long_factor" if extended else "short_factor"]
    frequencies = _frequencies(Decimal(base), model.dimensions)
    attention = p.number("attention_factor", None)
    if attention is None:
        attention = 1.0 if factor <= 1 else math.sqrt(1 + _log(factor) / _log(original))
    return Rope(tuple(f / divisor for f, divisor in zip(frequencies, chosen, strict=True)), attention)


def _llama3(p: Settings, model: _Model, base: float) -> Rope:
    """Low frequencies are divided by a factor, with a smooth transition (Llama 3.1)."""
    factor, original = _positive(p, "factor"), _original(p, model)
    low, high = _positive(p, "low_freq_factor"), _positive(p, "high_freq_factor")
    if high <= low:
        raise p.error("high_freq_factor", f"a number above low_freq_factor = {low}")
    frequencies = []
    for f in _frequencies(Decimal(base), model.dimensions):
        turns = original * f / (2 * math.pi)  # over the original positions
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        frequencies.append((1 - kept) * f / factor + kept * f)
    return Rope(tuple(frequencies))


def _proportional(p: Settings, model: _Model, base: float) -> Rope:
    """The frequencies of a whole head; the last ones are 0, so only a fraction of the head rotates."""
    factor, share = _positive(p, "factor", 1.0), p.number("partial_rotary_factor", 1.0)
    count = int(share * model.head_dim // 2)
    frequencies = _frequencies(Decimal(base), model.head_dim)
    return Rope(tuple(f / factor if i < count else 0.0 for i, f in enumerate(frequencies)))


_TYPES: Mapping[str, Callable[[Settings, _Model, float], Rope]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
    "proportional": _proportional,
}


def _frequencies(base: Decimal, dimensions: int) -> tuple[float, ...]:
    with decimal.localcontext(_DIGITS):
        return tuple(float(base ** -(Decimal(i) / Decimal(dimensions))) for i in range(0, dimensions, 2))


def _log(x: float) -> float:
    return float(Decimal(x).ln(_DIGITS))


def _original(p: Settings, model: _Model) -> int:
    return p.count("original_max_position_embeddings", model.max_positions, low=2)


def _positive(p: Settings, key: str, default: float | None = None) -> float:
    value = p.number(key, default)
    if value is None or not 0 < value < math.inf:
        raise p.error(key, "a number above 0")
    return value


def _positives(p: Settings, key: str, count: int) -> list[float]:
    value: Any = p.raw(key)
    numbers = value if isinstance(value, list) else []
    fits = [type(number) in (int, float) and 0 < number < math.inf for number in numbers]
    if len(fits) != count or not all(fits):
        raise p.error(key, f"a list of {count} numbers above 0")
    return [float(number) for number in numbers]
