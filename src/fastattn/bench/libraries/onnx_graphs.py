"""Writes ONNX graphs of checkpoints with the fused operators that onnxruntime's own optimizer produces."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fastattn.bench.libraries.base import Source, Unsupported

_DOMAIN = "com.microsoft"
_GELUS = {"gelu_erf": "BiasGelu", "gelu_tanh": "FastGelu"}


@dataclass(frozen=True, slots=True)
class _Encoder:
    """The options and names of a BERT or DistilBERT."""

    n_layer: int
    n_head: int
    eps: float
    activation: str
    layer: str
    qkv: tuple[str, str, str]
    projection: str
    norm_1: str
    up: str
    down: str
    norm_2: str


def write(source: Source, target: Path) -> None:
    """Write the graph of a checkpoint. Raises Unsupported."""
    model = _gpt2(source) if source.model_type == "gpt2" else _encoder(source)
    onnx.save(model, target)


class _Graph:
    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def const(self, array: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def op(
        self, kind: str, inputs: list[str], names: list[str] | None = None, *, domain: str = "", **attrs: Any
    ) -> str:
        """Add a node and return its first output."""
        outputs = names or [f"v{len(self.nodes)}"]
        node = helper.make_node(kind, inputs, outputs, name=f"n{len(self.nodes)}", domain=domain, **attrs)
        self.nodes.append(node)
        return str(outputs[0])

    def model(self, inputs: list[Any], outputs: list[Any]) -> Any:
        graph = helper.make_graph(self.nodes, "graph", inputs, outputs, self.constants)
        sets = [helper.make_opsetid("", 17), helper.make_opsetid(_DOMAIN, 1)]
        model = helper.make_model(graph, opset_imports=sets)
        model.ir_version = 9
        return model


def _info(name: str, kind: str, shape: list[Any]) -> Any:
    return helper.make_tensor_value_info(name, getattr(TensorProto, kind), shape)


def _gelu(name: str) -> str:
    if name not in _GELUS:
        raise Unsupported(f"expected a gelu for the ONNX graph, got {name}")
    return _GELUS[name]


def _gpt2(w: Source) -> Any:
    config = w.config
    if not config.scale_attn_weights:
        raise Unsupported("expected scale_attn_weights true for the ONNX graph, got false")
    g, eps, heads = _Graph(), config.layer_norm_epsilon, config.n_head
    head_dim = config.n_embd // heads
    ids = [_info("input_ids", "INT64", ["b", "s"]), _info("position_ids", "INT64", ["b", "s"])]
    inputs = [*ids, _info("seqlens_k", "INT32", ["b"]), _info("total_len", "INT32", [1])]
    outputs = [_info("logits", "FLOAT", ["b", 1, config.vocab_size])]
    table = w("wte.weight")
    tokens = g.op("Gather", [g.const(table), "input_ids"])
    x = g.op("Add", [tokens, g.op("Gather", [g.const(w("wpe.weight")), "position_ids"])])
    first = [x, g.const(w("h.0.ln_1.weight")), g.const(w("h.0.ln_1.bias"))]
    h = g.op("LayerNormalization", first, epsilon=eps, axis=-1)
    for i in range(config.n_layer):
        p = f"h.{i}."
        for part in "kv":
            inputs.append(_info(f"past_{part}{i}", "FLOAT", ["b", heads, "max", head_dim]))
            outputs.append(_info(f"present_{part}{i}", "FLOAT", ["b", heads, "max", head_dim]))
        qkv = g.op("MatMul", [h, g.const(w(p + "attn.c_attn.weight").T)])
        qkv = g.op("Add", [qkv, g.const(w(p + "attn.c_attn.bias"))])
        caches = [f"past_k{i}", f"past_v{i}", "seqlens_k", "total_len"]
        names = [f"a{i}", f"present_k{i}", f"present_v{i}"]
        options = {"num_heads": heads, "kv_num_heads": heads}
        a = g.op("GroupQueryAttention", [qkv, "", "", *caches], names, domain=_DOMAIN, **options)
        a = g.op("MatMul", [a, g.const(w(p + "attn.c_proj.weight").T)])
        h, x = _skip_norm(g, w, [a, x], p + "ln_2", p + "attn.c_proj.bias", eps, (f"h2_{i}", f"x2_{i}"))
        f = g.op("MatMul", [h, g.const(w(p + "mlp.c_fc.weight").T)])
        f = g.op(_gelu(config.activation_function), [f, g.const(w(p + "mlp.c_fc.bias"))], domain=_DOMAIN)
        f = g.op("MatMul", [f, g.const(w(p + "mlp.c_proj.weight").T)])
        norm = f"h.{i + 1}.ln_1" if i + 1 < config.n_layer else "ln_f"
        h, x = _skip_norm(g, w, [f, x], norm, p + "mlp.c_proj.bias", eps, (f"h1_{i}", f"x1_{i}"))
    last = g.op("Gather", [h, g.const(np.array([-1], np.int64))], axis=1)
    head = w("lm_head.weight") if w.has("lm_head.weight") else table
    g.op("MatMul", [last, g.const(head.T)], ["logits"])
    return g.model(inputs, outputs)


def _skip_norm(
    g: _Graph, w: Source, parts: list[str], norm: str, bias: str, eps: float, names: tuple[str, str]
) -> tuple[str, str]:
    """Add layer_norm(a + skip + bias); return it and the sum itself."""
    inputs = [*parts, *(g.const(w(name)) for name in (f"{norm}.weight", f"{norm}.bias", bias))]
    g.op("SkipLayerNormalization", inputs, [names[0], "", "", names[1]], domain=_DOMAIN, epsilon=eps)
    return names


def _options(w: Source) -> _Encoder:
    c = w.config
    if w.model_type == "distilbert":
        return _Encoder(
            c.n_layers, c.n_heads, 1e-12, c.activation, "transformer.layer.",
            ("attention.q_lin", "attention.k_lin", "attention.v_lin"), "attention.out_lin", "sa_layer_norm",
            "ffn.lin1", "ffn.lin2", "output_layer_norm",
        )  # fmt: skip
    return _Encoder(
        c.num_hidden_layers, c.num_attention_heads, c.layer_norm_eps, c.hidden_act, "encoder.layer.",
        ("attention.self.query", "attention.self.key", "attention.self.value"), "attention.output.dense",
        "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm",
    )  # fmt: skip


def _encoder(w: Source) -> Any:
    dense, last, activation = w.head_names()
    g, c = _Graph(), _options(w)
    e = "embeddings."
    # There is only one segment, so its embedding is added to the positions once.
    positions = w(e + "position_embeddings.weight")[getattr(w.config, "position_offset", 0) :]
    if w.has(e + "token_type_embeddings.weight"):
        positions = positions + w(e + "token_type_embeddings.weight")[0]
    tables = [g.const(w(e + "word_embeddings.weight")), g.const(positions)]
    norm = [g.const(w(e + "LayerNorm.weight")), g.const(w(e + "LayerNorm.bias"))]
    inputs, names = ["input_ids", "", *tables, "", *norm, "mask"], ["embedded", "mask_index"]
    x = g.op("EmbedLayerNormalization", inputs, names, domain=_DOMAIN, epsilon=c.eps)
    for i in range(c.n_layer):
        p = f"{c.layer}{i}."
        qkv = g.const(np.concatenate([w(f"{p}{name}.weight").T for name in c.qkv], 1))
        bias = g.const(np.concatenate([w(f"{p}{name}.bias") for name in c.qkv]))
        a = g.op("Attention", [x, qkv, bias, "mask_index"], domain=_DOMAIN, num_heads=c.n_head)
        x = _project(g, w, a, x, p + c.projection, p + c.norm_1, c.eps)
        f = g.op("MatMul", [x, g.const(w(f"{p}{c.up}.weight").T)])
        f = g.op(_gelu(c.activation), [f, g.const(w(f"{p}{c.up}.bias"))], domain=_DOMAIN)
        x = _project(g, w, f, x, p + c.down, p + c.norm_2, c.eps)
    inputs_info = [_info("input_ids", "INT32", ["b", "s"]), _info("mask", "INT32", ["b", "s"])]
    if w.task == "encoder":
        g.op("Identity", [x], ["hidden"])
        return g.model(inputs_info, [_info("hidden", "FLOAT", ["b", "s", w.config.hidden_size])])
    h = g.op("Gather", [x, g.const(np.array(0, np.int64))], axis=1)
    h = g.op({"tanh": "Tanh", "relu": "Relu"}[activation], [g.op("Gemm", [h, *_linear(g, w, dense)])])
    g.op("Gemm", [h, *_linear(g, w, last)], ["logits"])
    return g.model(inputs_info, [_info("logits", "FLOAT", ["b", len(w.config.labels)])])


def _project(g: _Graph, w: Source, a: str, skip: str, dense: str, norm: str, eps: float) -> str:
    """Add layer_norm(skip + a @ weight + bias)."""
    a = g.op("MatMul", [a, g.const(w(f"{dense}.weight").T)])
    parts = [g.const(w(name)) for name in (f"{norm}.weight", f"{norm}.bias", f"{dense}.bias")]
    return g.op("SkipLayerNormalization", [a, skip, *parts], domain=_DOMAIN, epsilon=eps)


def _linear(g: _Graph, w: Source, name: str) -> list[str]:
    return [g.const(w(f"{name}.weight").T), g.const(w(f"{name}.bias"))]
