"""Frequencies of every scaling type, and rms_norm and rotary, against transformers."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch")
pytest.importorskip("transformers")
import torch
from transformers import GPTJConfig, GPTNeoXConfig, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.gpt_neox import modeling_gpt_neox as gpt_neox
from transformers.models.gptj import modeling_gptj as gptj
from transformers.models.llama import modeling_llama as llama

from fastattn.errors import ConfigError
from fastattn.graph.ir import Op, Step
from fastattn.graph.kinds import KINDS
from fastattn.graph.op_kind import Parameter
from fastattn.graph.rotary_table import RotaryTable
from fastattn.models.rope import Rope, read_rope
from fastattn.settings import Settings
from tests import tolerances

pytestmark = pytest.mark.torch

HEADS, HEAD_DIM, LENGTH = 2, 16, 64
F64 = NDArray[np.float64]
# Each type with the parameters of a well-known checkpoint, scaled to a context of 64.
PARAMETERS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "yarn-qwen": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "attention_factor": 1.5},
    "yarn-deepseek": {
        "rope_type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 32,
        "mscale": 0.9,
        "mscale_all_dim": 0.7,
        "beta_fast": 12,
        "beta_slow": 0.5,
    },
    "yarn-gpt-oss": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32, "truncate": False},
    "longrope": {
        "short_factor": [1.0 + i / 8 for i in range(HEAD_DIM // 2)],
        "long_factor": [1.5 * (1 + i) for i in range(HEAD_DIM // 2)],
        "original_max_position_embeddings": 16,
    },
    "longrope-given": {
        "rope_type": "longrope",
        "short_factor": [1.0] * (HEAD_DIM // 2),
        "long_factor": [2.0] * (HEAD_DIM // 2),
        "factor": 8.0,
        "attention_factor": 1.25,
        "original_max_position_embeddings": LENGTH,
    },
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "proportional": {"partial_rotary_factor": 0.25},
    "proportional-all": {"rope_type": "proportional", "factor": 2.0},
}


def parameters_of(name: str, theta: float) -> dict[str, Any]:
    given = PARAMETERS[name]
    return {"rope_type": given.get("rope_type", name), "rope_theta": theta, **given}


def llama_config(parameters: dict[str, Any], **options: Any) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=HEADS * HEAD_DIM,
        num_attention_heads=HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=LENGTH,
        rope_parameters=dict(parameters),
        **options,
    )


def transformers_rope(parameters: dict[str, Any], length: int | None = None) -> tuple[F64, float]:
    """Return transformers' frequencies, in float32 arithmetic, and its attention factor."""
    config = llama_config(parameters)
    if parameters["rope_type"] == "default":
        frequencies, factor = gpt_neox.GPTNeoXRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        frequencies, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, "cpu", seq_len=length)
    return frequencies.numpy().astype(np.float64), factor


def ours(config: dict[str, Any], **options: Any) -> Rope:
    return read_rope(Settings("config.json", config), **{"head_dim": HEAD_DIM, "max_positions": LENGTH, **options})


def assert_same_frequencies(found: Rope, frequencies: F64, theta: float) -> None:
    """transformers rounds the exponent and each result to float32; an error of the exponent counts by log(theta)."""
    bound = tolerances.gamma(8 + math.log(theta)) * frequencies
    assert (np.abs(np.array(found.frequencies) - frequencies) <= bound).all()


@pytest.mark.parametrize("theta", [10000.0, 500000.0, 1e6])
@pytest.mark.parametrize("name", PARAMETERS)
def test_frequencies(name: str, theta: float) -> None:
    parameters = parameters_of(name, theta)
    frequencies, factor = transformers_rope(parameters, length=LENGTH)
    found = ours({"rope_parameters": parameters})
    assert_same_frequencies(found, frequencies, theta)
    assert found.attention_factor == pytest.approx(factor, rel=2.0**-50)


@pytest.mark.parametrize("name", ["dynamic", "longrope", "longrope-given"])
def test_frequencies_of_longer_texts(name: str) -> None:
    parameters = parameters_of(name, 10000.0)
    frequencies, _ = transformers_rope(parameters, length=4 * LENGTH)
    longer = ours({"rope_parameters": parameters}, positions=4 * LENGTH)
    assert_same_frequencies(longer, frequencies, 10000.0)
    if name != "longrope":  # whose original length is shorter anyway
        assert longer != ours({"rope_parameters": parameters})


@pytest.mark.parametrize(
    ("name", "share"),
    [
        *itertools.product(("default", "linear", "dynamic", "yarn", "llama3"), (0.25, 0.5, 0.9)),
        ("default", 0.7),  # 11 dimensions, which have six pairs
        ("llama3", 0.7),
    ],
)
def test_frequencies_of_a_part_of_the_head(name: str, share: float) -> None:
    parameters = {**parameters_of(name, 10000.0), "partial_rotary_factor": share}
    frequencies, _ = transformers_rope(parameters, length=LENGTH)
    assert_same_frequencies(ours({"rope_parameters": parameters}), frequencies, 10000.0)
    assert ours({"rope_parameters": parameters_of(name, 10000.0)}, partial=share) == ours(
        {"rope_parameters": parameters}
    )


def test_short_texts_with_long_factors_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    parameters = parameters_of("longrope-given", 10000.0)
    ours({"rope_parameters": parameters})
    assert caplog.messages == []  # the model is not longer than its original length
    ours({"rope_parameters": parameters}, positions=4 * LENGTH)
    assert [message.partition(":")[0] for message in caplog.messages] == ["longrope"]
    assert f"texts of up to {LENGTH} tokens" in caplog.text


def test_older_configs() -> None:
    """rope_theta, the share and Phi-3's original length are next to rope_scaling, whose type may be called type."""
    parameters = parameters_of("longrope", 10000.0)
    expected = ours({"rope_parameters": {**parameters, "partial_rotary_factor": 1.0}})
    scaling = {key: parameters[key] for key in ("short_factor", "long_factor")}
    older = {
        "rope_theta": 10000.0,
        "partial_rotary_factor": None,
        "original_max_position_embeddings": 16,
        "rope_scaling": {"type": "longrope", **scaling},
    }
    assert ours(older) == expected
    assert ours({"rope_theta": 500.0}) == ours({}, theta=500.0) != ours({})
    by_layer = {"rope_parameters": {"full_attention": parameters, "sliding_attention": {"rope_theta": 500.0}}}
    assert ours(by_layer, layer_type="full_attention") == expected
    assert ours(by_layer, layer_type="sliding_attention") == ours({"rope_theta": 500.0})


def test_unknown_parameters_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    for name in PARAMETERS:
        ours({"rope_parameters": parameters_of(name, 10000.0), "original_max_position_embeddings": 16})
    assert [message for message in caplog.messages if not message.startswith("longrope: ")] == []
    caplog.clear()
    ours({"rope_parameters": {"rope_type": "default", "factr": 2.0}})
    assert caplog.messages == ["config.json: rope_parameters: unknown settings are ignored: 'factr'"]


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("default", {"rope_type": "axial"}, "rope_type: expected one of default, linear, dynamic"),
        ("default", {"rope_theta": 1}, "rope_theta: expected a number above 1, got 1"),
        ("default", {"rope_theta": float("nan")}, "rope_theta: expected a number above 1"),
        ("default", {"partial_rotary_factor": 1.5}, "partial_rotary_factor: expected a fraction of head_dim = 16"),
        ("default", {"partial_rotary_factor": 0.01}, "partial_rotary_factor: expected a fraction of head_dim = 16"),
        ("linear", {"factor": None}, "factor: expected a number above 0, got None"),
        ("linear", {"factor": 0.0}, "factor: expected a number above 0, got 0.0"),
        ("dynamic", {"factor": "2"}, "factor: expected a number"),
        ("dynamic", {"partial_rotary_factor": 0.125}, "dynamic: expected heads with more than 2 rotary dimensions"),
        ("yarn", {"original_max_position_embeddings": 0}, "original_max_position_embeddings: expected an integer"),
        ("yarn", {"beta_fast": -1}, "beta_fast: expected a number above 0"),
        ("longrope", {"long_factor": [1.0]}, "long_factor: expected a list of 8 numbers above 0"),
        ("longrope", {"short_factor": [0.0] * 8}, "short_factor: expected a list of 8 numbers above 0"),
        ("llama3", {"high_freq_factor": 1.0}, "high_freq_factor: expected a number above low_freq_factor = 1.0"),
    ],
)
def test_parameters_that_do_not_fit(name: str, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^config.json: rope_parameters: {message}"):
        ours({"rope_parameters": {**parameters_of(name, 10000.0), **changed}})


def run_of(step: Step, values: NDArray[Any]) -> Any:
    return SimpleNamespace(weights={"w": Parameter("float32", values.astype(np.float64))}, step=step, spans=[])


def rotated(x: F64, rope: Rope, *, interleaved: bool) -> tuple[F64, F64]:
    """Return x [LENGTH, heads, head_dim] rotated by the formula of the kind, and a bound for float32 angles."""
    table = RotaryTable(
        frequencies=rope.frequencies, positions=LENGTH, factor=rope.attention_factor, interleaved=interleaved
    )
    positions = np.arange(LENGTH, dtype=np.int32)
    step = Step(token_ids=positions, cu_seqlens=np.array([0, LENGTH], np.int32), positions=positions, wanted=positions)
    attrs = {"n_head": HEADS, "head_dim": HEAD_DIM, "dimensions": table.shape[1]}
    op = Op("rotary", (0,), 1, ("w",), {**attrs, "interleaved": interleaved, "rows": "tokens"})
    KINDS["rotary"].check(op)
    result = KINDS["rotary"].formula(run_of(step, table.rows(0, LENGTH)), op, x.reshape(LENGTH, -1))
    # the frequency, the angle, the cosine and the attention factor are rounded, there and here
    error = tolerances.gamma(2 * (8 + math.log(10000)) * LENGTH) + tolerances.gamma(8)
    bound = rope.attention_factor * error * 2 * np.abs(x).max(axis=-1, keepdims=True)
    return np.asarray(result).reshape(x.shape), np.broadcast_to(bound, x.shape)


def random_heads() -> F64:
    return np.random.default_rng(3).standard_normal((LENGTH, HEADS, HEAD_DIM))


def swapped(x: F64) -> torch.Tensor:
    """[tokens, heads, head_dim] as transformers' [1, heads, tokens, head_dim]."""
    return torch.tensor(x).transpose(0, 1)[None]


@pytest.mark.parametrize("name", ["default", "yarn-deepseek", "llama3"])
def test_rotary_of_llama(name: str) -> None:
    x, parameters = random_heads(), parameters_of(name, 10000.0)
    embedding = llama.LlamaRotaryEmbedding(llama_config(parameters))
    cosine, sine = embedding(torch.zeros(1, dtype=torch.float64), torch.arange(LENGTH)[None])
    expected, _ = llama.apply_rotary_pos_emb(swapped(x), swapped(x), cosine, sine)
    found, bound = rotated(x, ours({"rope_parameters": parameters}), interleaved=False)
    assert (np.abs(found - expected[0].transpose(0, 1).numpy()) <= bound).all()


def test_rotary_of_gpt_j() -> None:
    x, dimensions = random_heads(), 8
    config = GPTJConfig(n_embd=HEADS * HEAD_DIM, n_head=HEADS, n_positions=LENGTH, rotary_dim=dimensions)
    table = gptj.create_sinusoidal_positions(config.n_positions, dimensions)
    sine, cosine = (part[None].double() for part in torch.split(table, dimensions // 2, dim=-1))
    expected = torch.tensor(x)[None].clone()
    expected[..., :dimensions] = gptj.apply_rotary_pos_emb(expected[..., :dimensions], sine, cosine)
    found, bound = rotated(x, ours({}, partial=dimensions / HEAD_DIM), interleaved=True)
    assert (np.abs(found - expected[0].numpy()) <= bound).all()


def test_rotary_of_gpt_neox() -> None:
    x = random_heads()
    config = GPTNeoXConfig(
        hidden_size=HEADS * HEAD_DIM,
        num_attention_heads=HEADS,
        max_position_embeddings=LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
    )
    embedding = gpt_neox.GPTNeoXRotaryEmbedding(config)
    cosine, sine = embedding(torch.zeros(1, dtype=torch.float64), torch.arange(LENGTH)[None])
    expected, _ = gpt_neox.apply_rotary_pos_emb(swapped(x), swapped(x), cosine, sine)
    found, bound = rotated(x, ours({}, partial=0.25), interleaved=False)
    assert (np.abs(found - expected[0].transpose(0, 1).numpy()) <= bound).all()
    assert (found[..., 4:] == x[..., 4:]).all()


@pytest.mark.parametrize("family", ["llama", "gemma", "by head"])
def test_rms_norm(family: str) -> None:
    """transformers computes in float32, which is the naive formula."""
    rng = np.random.default_rng(4)
    x, weight = rng.standard_normal((7, 48)).astype(np.float32), rng.standard_normal(48).astype(np.float32)
    groups = 3 if family == "by head" else 1
    weight = weight[: 48 // groups]
    module = (GemmaRMSNorm if family == "gemma" else llama.LlamaRMSNorm)(len(weight), eps=1e-5)
    with torch.no_grad():
        module.weight.copy_(torch.tensor(weight))
        expected = module(torch.tensor(x.reshape(7, groups, -1))).numpy().reshape(x.shape)
    if family == "gemma":
        weight = np.float32(1) + weight
    op = Op("rms_norm", (0,), 1, ("w",), {"eps": 1e-5, "groups": groups})
    KINDS["rms_norm"].check(op)
    found = KINDS["rms_norm"].formula(
        SimpleNamespace(weights={"w": Parameter("float32", weight)}), op, x.astype(np.float64)
    )
    bound = tolerances.rms_norm(len(weight) * tolerances.LANES, found) + tolerances.U * np.abs(found)
    assert (np.abs(found - expected) <= bound).all()
