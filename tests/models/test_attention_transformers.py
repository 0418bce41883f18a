"""Windows and attention biases against transformers: the formulas of tables, and attention layers of random models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch")
pytest.importorskip("transformers")
import torch
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor
from transformers.models.t5.modeling_t5 import T5Attention

from fastattn.checkpoint import ArraySource, ComputedSource, WeightSource, array_sources
from fastattn.errors import ConfigError
from fastattn.executors.cpu import CpuExecutor
from fastattn.executors.numpy_executor import NumpyExecutor
from fastattn.graph.attention_bias import AlibiBias, RelativeBias, T5Buckets, alibi_slopes, relative_positions
from fastattn.graph.ir import Step
from fastattn.graph.kinds import attention, embedding, linear, rotary
from fastattn.graph.rewrites import optimize
from fastattn.graph.rotary_table import RotaryTable
from fastattn.graph.tensor import Tokens, Tracer, Weights
from tests import tolerances
from tests.reference import hf
from tests.reference.bounds import assert_close
from tests.reference.decoder_program import AllNames

pytestmark = pytest.mark.torch

F32 = NDArray[np.float32]
HEADS, HEAD_DIM, LENGTH = 3, 16, 150
WIDTH = HEADS * HEAD_DIM


@pytest.mark.parametrize("n_head", [*range(1, 41), 64, 71, 112, 128])
def test_alibi_slopes(n_head: int) -> None:
    """transformers computes them in float32: the exponent is a product of two roundings, the power of one."""
    bound = tolerances.gamma(4 + 8)
    mask = torch.ones(1, 7)
    bloom = build_alibi_tensor(mask, n_head, torch.float32).numpy().reshape(n_head, 7)
    ours = AlibiBias(slopes=alibi_slopes(n_head), positions=7).rows(0, n_head)
    # BLOOM's depends on the position of the key alone: the last row's differs by a constant.
    np.testing.assert_allclose(ours - ours[:, :1], bloom, rtol=bound, atol=2.0**-24 * 8)
    for most in (8.0, 16.0):
        mpt = build_mpt_alibi_tensor(n_head, 7, alibi_bias_max=most).numpy().reshape(n_head, 7)
        table = AlibiBias(slopes=alibi_slopes(n_head, most=most), positions=7).rows(0, n_head)
        np.testing.assert_allclose(table, mpt, rtol=tolerances.gamma(4 + most))


def test_alibi_in_both_directions() -> None:
    table = AlibiBias(slopes=alibi_slopes(4), positions=5, causal=False)
    assert table.shape == (4, 9)
    rows = table.rows(0, 4)
    assert np.array_equal(rows, rows[:, ::-1])
    assert np.array_equal(rows[:, :5], AlibiBias(slopes=alibi_slopes(4), positions=5).rows(0, 4))
    assert np.array_equal(table.rows(1, 3), rows[1:3])
    with pytest.raises(ConfigError, match="n_head: expected at least 1, got 0"):
        alibi_slopes(0)


@pytest.mark.parametrize("num_buckets", [4, 8, 16, 20, 32, 64, 320])
@pytest.mark.parametrize("max_distance", [100, 128, 256, 800, 1000])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_buckets(num_buckets: int, max_distance: int, bidirectional: bool) -> None:
    if max_distance <= num_buckets // (4 if bidirectional else 2):
        return
    relative = np.arange(-1200, 1201 if bidirectional else 1)
    found = T5Buckets(num_buckets=num_buckets, max_distance=max_distance, bidirectional=bidirectional).of(relative)
    t5 = T5Attention._relative_position_bucket(torch.tensor(relative), bidirectional, num_buckets, max_distance)
    np.testing.assert_array_equal(found, t5.numpy())
    if bidirectional:
        mpnet = MPNetEncoder.relative_position_bucket(torch.tensor(relative), num_buckets, max_distance)
        np.testing.assert_array_equal(found, mpnet.numpy())


def test_buckets_that_do_not_fit() -> None:
    for wrong in ({"num_buckets": 3}, {"num_buckets": 1, "bidirectional": False}, {"max_distance": 8}):
        with pytest.raises(ConfigError, match="relative attention: expected at least"):
            T5Buckets(**wrong)
    weight = ArraySource("bias", np.zeros((31, 4), np.float32))
    with pytest.raises(ConfigError, match=r"bias: expected shape \[32, n_head\], got \[31, 4\]"):
        RelativeBias(weight=weight, buckets=T5Buckets(), positions=9)


@pytest.mark.parametrize("causal", [False, True])
def test_relative_bias_has_the_learned_numbers(causal: bool) -> None:
    numbers = np.random.default_rng(0).standard_normal((32, 5)).astype(np.float32)
    buckets = T5Buckets(bidirectional=not causal)
    table = RelativeBias(weight=ArraySource("w", numbers), buckets=buckets, positions=200, causal=causal)
    rows = table.rows(0, 5)
    assert rows.shape == table.shape == (5, 200 if causal else 399)
    assert rows.flags.c_contiguous
    relative = relative_positions(200, causal=causal)
    assert np.array_equal(rows.T, numbers[buckets.of(relative)])
    assert np.array_equal(table.rows(2, 4), rows[2:4])


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """An attention layer of a model: its weights by our names, and what our Program needs to know of it."""

    module: Any
    weights: Mapping[str, Any]  # q, k, v, o, each with a weight and perhaps a bias
    causal: bool
    kv_heads: int = HEADS
    scale: float | None = None
    window: int = 0
    theta: float = 0.0  # of rotary; 0: none
    bias: AlibiBias | RelativeBias | None = None


def program_of(layer: Layer, states: F32) -> tuple[Any, dict[str, WeightSource]]:
    """Trace a Program whose embedding of token i is row i of the layer's input."""
    tracer = Tracer()
    w = Weights(tracer, AllNames())
    arrays = {"x.weight": states}
    for name, module in layer.weights.items():
        for part, tensor in module.items():
            arrays[f"{name}.{part}"] = np.ascontiguousarray(hf.array(tensor).astype(np.float32))
    sources: dict[str, WeightSource] = dict(array_sources(arrays))
    x = embedding(w["x"], Tokens().ids, len(states), states.shape[1])
    q, k, v = (linear(x, w[n], len(arrays[f"{n}.weight"]), bias=f"{n}.bias" in arrays) for n in "qkv")
    if layer.theta:
        frequencies = tuple(layer.theta ** (-2 * i / HEAD_DIM) for i in range(HEAD_DIM // 2))
        table = RotaryTable(frequencies=frequencies, positions=LENGTH)
        sources["angles.weight"] = ComputedSource("angles.weight", table.shape, table.rows)
        q, k = (
            rotary(y, w["angles"], n_head=n, dimensions=HEAD_DIM, max_positions=LENGTH)
            for y, n in ((q, HEADS), (k, layer.kv_heads))
        )
    if layer.bias:
        sources["bias.weight"] = ComputedSource("bias.weight", layer.bias.shape, layer.bias.rows)
    y = attention(
        q,
        k,
        v,
        layer=0,
        n_head=HEADS,
        n_kv_head=layer.kv_heads,
        causal=layer.causal,
        scale=layer.scale,
        window=layer.window,
        bias=w["bias"] if layer.bias else None,
        bias_positions=LENGTH if layer.bias else 0,
    )
    y = linear(y, w["o"], states.shape[1], bias="o.bias" in arrays)
    return tracer.program({"y": y}, LENGTH), sources


def run_with_layer(model: Any, module: Any, **inputs: Any) -> tuple[F32, NDArray[np.float64]]:
    """Run transformers' model, and return the input of one of its modules, rounded to float32, and its output for it.

    So the masks and biases are those that the model gives to its layer.
    """
    seen: dict[str, Any] = {}

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        seen["in"] = states = states.float().double()
        if "hidden_states" in kwargs:
            return args, {**kwargs, "hidden_states": states}
        return (states, *args[1:]), kwargs

    def after(_: Any, args: tuple[Any, ...], output: Any) -> None:
        seen["out"] = output[0] if isinstance(output, tuple) else output

    handles = [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return hf.array(seen["in"])[0].astype(np.float32), hf.array(seen["out"])[0]


def check_layer(model: Any, layer: Layer, **inputs: Any) -> None:
    """transformers' softmax, rotary and biases are float32, in a float64 model, too."""
    states, theirs = run_with_layer(model, layer.module, **inputs)
    program, sources = program_of(layer, states)
    ids = np.arange(LENGTH, dtype=np.int32)
    step = Step(ids, np.array([0, LENGTH], np.int32), ids, ids)
    exact = NumpyExecutor(program, sources).run(step)["y"]
    scale = float(np.abs(states).max())
    assert_close(theirs.astype(np.float32), exact, program, longest=LENGTH, scale=scale)
    for target in (program, optimize(program)):
        ours = CpuExecutor(target, sources, threads=2).run(step)["y"]
        assert_close(ours, exact, program, longest=LENGTH, scale=scale)


def named(module: Any, **names: str) -> dict[str, dict[str, Any]]:
    """Return the parameters of linears by our names."""
    return {ours: dict(getattr(module, theirs).named_parameters()) for ours, theirs in names.items()}


def split(fused: Any, parts: Callable[[Any], Any]) -> dict[str, dict[str, Any]]:
    """Return the parameters of q, k and v of a fused linear. parts: reshapes its rows to [3, rows]."""
    split_up = {name: parts(tensor) for name, tensor in fused.named_parameters()}
    return {ours: {name: tensor[i] for name, tensor in split_up.items()} for i, ours in enumerate("qkv")}


IDS = torch.arange(LENGTH)[None] % 61
SIZES: dict[str, Any] = {"vocab_size": 61, "hidden_size": WIDTH, "num_attention_heads": HEADS}


@pytest.mark.parametrize("window", [1, 7, 64, 65, 149, 1000])
def test_mistral(window: int) -> None:
    model = hf.make(
        "MistralModel",
        **SIZES,
        num_key_value_heads=1,
        head_dim=HEAD_DIM,
        intermediate_size=40,
        num_hidden_layers=2,
        sliding_window=window,
        max_position_embeddings=LENGTH,
    )
    module = model.layers[1].self_attn
    weights = named(module, q="q_proj", k="k_proj", v="v_proj", o="o_proj")
    layer = Layer(module=module, weights=weights, causal=True, kv_heads=1, window=window, theta=10000.0)
    check_layer(model, layer, input_ids=IDS)


@pytest.mark.parametrize("local_attention", [2, 7, 64, 65, 128])
def test_modernbert(local_attention: int) -> None:
    """It sees local_attention // 2 positions on each side."""
    model = hf.make(
        "ModernBertModel",
        **SIZES,
        intermediate_size=40,
        num_hidden_layers=2,
        global_attn_every_n_layers=3,
        local_attention=local_attention,
        max_position_embeddings=LENGTH,
        pad_token_id=0,
        cls_token_id=1,
        sep_token_id=2,
    )
    module = model.layers[1].attn
    weights = {**split(module.Wqkv, lambda x: x.reshape(3, WIDTH, -1)), **named(module, o="Wo")}
    window = local_attention // 2 + 1
    layer = Layer(module=module, weights=weights, causal=False, window=window, theta=10000.0)
    check_layer(model, layer, input_ids=IDS)


def test_bloom() -> None:
    model = hf.make("BloomModel", vocab_size=61, hidden_size=WIDTH, n_head=HEADS, n_layer=2)
    module = model.h[1].self_attention

    def parts(x: Any) -> Any:
        return x.reshape(HEADS, 3, HEAD_DIM, *x.shape[1:]).transpose(0, 1).reshape(3, WIDTH, *x.shape[1:])

    weights = {**split(module.query_key_value, parts), **named(module, o="dense")}
    # BLOOM's layer adds its residual to the result.
    module.register_forward_hook(lambda _, args, output: (output[0] - args[1], *output[1:]))
    bias = AlibiBias(slopes=alibi_slopes(HEADS), positions=LENGTH)
    check_layer(model, Layer(module=module, weights=weights, causal=True, bias=bias), input_ids=IDS)


@pytest.mark.parametrize("decoder", [False, True])
def test_t5(decoder: bool) -> None:
    """The second layer reads the bias of the first. Scores have no scale."""
    model = hf.make(
        "T5Model",
        vocab_size=61,
        d_model=WIDTH,
        d_kv=HEAD_DIM,
        num_heads=HEADS,
        d_ff=40,
        num_layers=2,
        relative_attention_max_distance=90,
        pad_token_id=0,
        decoder_start_token_id=0,
    )
    stack = model.decoder if decoder else model.encoder
    module = stack.block[1].layer[0].SelfAttention
    learned = stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    bias = RelativeBias(
        weight=ArraySource("bias", hf.array(learned).astype(np.float32)),
        buckets=T5Buckets(max_distance=90, bidirectional=not decoder),
        positions=LENGTH,
        causal=decoder,
    )
    weights = named(module, q="q", k="k", v="v", o="o")
    layer = Layer(module=module, weights=weights, causal=decoder, scale=1.0, bias=bias)
    check_layer(model, layer, input_ids=IDS, decoder_input_ids=IDS)


def test_mpnet() -> None:
    model = hf.make(
        "MPNetModel",
        **SIZES,
        intermediate_size=40,
        num_hidden_layers=2,
        max_position_embeddings=LENGTH + 2,
        relative_attention_num_buckets=32,
    )
    module = model.encoder.layer[1].attention.attn
    learned = model.encoder.relative_attention_bias.weight
    bias = RelativeBias(
        weight=ArraySource("bias", hf.array(learned).astype(np.float32)), buckets=T5Buckets(), positions=LENGTH
    )
    weights = named(module, q="q", k="k", v="v", o="o")
    check_layer(model, Layer(module=module, weights=weights, causal=False, bias=bias), input_ids=IDS)
