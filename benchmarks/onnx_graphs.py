"""ONNX graphs of GPT-2 and BERT checkpoints, of the fused operators that onnxruntime's own optimizer produces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DOMAIN = "com.microsoft"
Weights = dict[str, NDArray[Any]]


def read_config(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((path / "config.json").read_text(encoding="utf-8"))
    return config


def write(path: Path) -> Path:
    """The graph beside the checkpoint, written now if it is not there."""
    target = path / "onnx" / "model.onnx"
    if not target.exists():
        import onnx
        from safetensors.numpy import load_file

        config, weights = read_config(path), load_file(path / "model.safetensors")
        target.parent.mkdir(exist_ok=True)
        make = _gpt2 if config["model_type"] == "gpt2" else _bert
        onnx.save(make(config, {k.partition(".")[2] if _prefixed(k) else k: v for k, v in weights.items()}), target)
    return target


def _prefixed(name: str) -> bool:
    return name.startswith(("transformer.", "bert."))


class _Graph:
    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def const(self, array: Any) -> str:
        from onnx import numpy_helper

        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def op(
        self, kind: str, inputs: list[str], names: list[str] | None = None, *, domain: str = "", **attrs: Any
    ) -> str:
        """Adds a node; returns its first output."""
        from onnx import helper

        outputs = names or [f"v{len(self.nodes)}"]
        node = helper.make_node(kind, inputs, outputs, name=f"n{len(self.nodes)}", domain=domain, **attrs)
        self.nodes.append(node)
        return str(outputs[0])

    def model(self, inputs: list[Any], outputs: list[Any]) -> Any:
        from onnx import helper

        graph = helper.make_graph(self.nodes, "graph", inputs, outputs, self.constants)
        sets = [helper.make_opsetid("", 17), helper.make_opsetid(_DOMAIN, 1)]
        model = helper.make_model(graph, opset_imports=sets)
        model.ir_version = 9
        return model


def _info(name: str, kind: str, shape: list[Any]) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, getattr(TensorProto, kind), shape)


def _skip_norm(g: _Graph, parts: list[str], eps: float, names: tuple[str, str]) -> tuple[str, str]:
    """layer_norm(a + skip + bias), and the sum itself."""
    g.op("SkipLayerNormalization", parts, [names[0], "", "", names[1]], domain=_DOMAIN, epsilon=eps)
    return names


def _gpt2(config: dict[str, Any], w: Weights) -> Any:
    g, eps, heads = _Graph(), config["layer_norm_epsilon"], config["n_head"]
    head_dim = config["n_embd"] // heads
    ids = [_info("input_ids", "INT64", ["b", "s"]), _info("position_ids", "INT64", ["b", "s"])]
    inputs = [*ids, _info("seqlens_k", "INT32", ["b"]), _info("total_len", "INT32", [1])]
    outputs = [_info("logits", "FLOAT", ["b", 1, config["vocab_size"]])]
    tokens = g.op("Gather", [g.const(w["wte.weight"]), "input_ids"])
    x = g.op("Add", [tokens, g.op("Gather", [g.const(w["wpe.weight"]), "position_ids"])])
    first = [x, g.const(w["h.0.ln_1.weight"]), g.const(w["h.0.ln_1.bias"])]
    h = g.op("LayerNormalization", first, epsilon=eps, axis=-1)
    for i in range(config["n_layer"]):
        p = f"h.{i}."
        for part in "kv":
            inputs.append(_info(f"past_{part}{i}", "FLOAT", ["b", heads, "max", head_dim]))
            outputs.append(_info(f"present_{part}{i}", "FLOAT", ["b", heads, "max", head_dim]))
        qkv = g.op("MatMul", [h, g.const(w[p + "attn.c_attn.weight"])])
        qkv = g.op("Add", [qkv, g.const(w[p + "attn.c_attn.bias"])])
        caches = [f"past_k{i}", f"past_v{i}", "seqlens_k", "total_len"]
        names = [f"a{i}", f"present_k{i}", f"present_v{i}"]
        options = {"num_heads": heads, "kv_num_heads": heads}
        a = g.op("GroupQueryAttention", [qkv, "", "", *caches], names, domain=_DOMAIN, **options)
        a = g.op("MatMul", [a, g.const(w[p + "attn.c_proj.weight"])])
        after = [g.const(w[p + name]) for name in ("ln_2.weight", "ln_2.bias", "attn.c_proj.bias")]
        h, x = _skip_norm(g, [a, x, *after], eps, (f"h2_{i}", f"x2_{i}"))
        f = g.op("MatMul", [h, g.const(w[p + "mlp.c_fc.weight"])])
        f = g.op("FastGelu", [f, g.const(w[p + "mlp.c_fc.bias"])], domain=_DOMAIN)
        f = g.op("MatMul", [f, g.const(w[p + "mlp.c_proj.weight"])])
        norm = f"h.{i + 1}.ln_1" if i + 1 < config["n_layer"] else "ln_f"
        after = [g.const(w[name]) for name in (norm + ".weight", norm + ".bias", p + "mlp.c_proj.bias")]
        h, x = _skip_norm(g, [f, x, *after], eps, (f"h1_{i}", f"x1_{i}"))
    last = g.op("Gather", [h, g.const(np.array([-1], np.int64))], axis=1)
    g.op("MatMul", [last, g.const(w["wte.weight"].T)], ["logits"])
    return g.model(inputs, outputs)


def _bert(config: dict[str, Any], w: Weights) -> Any:
    g, eps = _Graph(), config["layer_norm_eps"]
    norm = [g.const(w["embeddings.LayerNorm.weight"]), g.const(w["embeddings.LayerNorm.bias"])]
    # One segment only: its embedding is added to the positions once.
    positions = w["embeddings.position_embeddings.weight"] + w["embeddings.token_type_embeddings.weight"][0]
    tables = [g.const(w["embeddings.word_embeddings.weight"]), g.const(positions)]
    g.op(
        "EmbedLayerNormalization",
        ["input_ids", "", *tables, "", *norm, "mask"],
        ["embedded", "mask_index"],
        domain=_DOMAIN,
        epsilon=eps,
    )
    x = "embedded"
    for i in range(config["num_hidden_layers"]):
        p = f"encoder.layer.{i}."
        names = [f"{p}attention.self.{part}" for part in ("query", "key", "value")]
        qkv = g.const(np.concatenate([w[f"{n}.weight"].T for n in names], 1))
        bias = g.const(np.concatenate([w[f"{n}.bias"] for n in names]))
        heads = config["num_attention_heads"]
        a = g.op("Attention", [x, qkv, bias, "mask_index"], domain=_DOMAIN, num_heads=heads)
        a = g.op("MatMul", [a, g.const(w[p + "attention.output.dense.weight"].T)])
        x = _bert_norm(g, w, [a, x], p + "attention.output", eps)
        f = g.op("MatMul", [x, g.const(w[p + "intermediate.dense.weight"].T)])
        f = g.op("BiasGelu", [f, g.const(w[p + "intermediate.dense.bias"])], domain=_DOMAIN)
        f = g.op("MatMul", [f, g.const(w[p + "output.dense.weight"].T)])
        x = _bert_norm(g, w, [f, x], p + "output", eps)
    h = g.op("Gather", [x, g.const(np.array(0, np.int64))], axis=1)
    h = g.op("Tanh", [g.op("Gemm", [h, *(g.const(v) for v in _linear(w, "pooler.dense"))])])
    g.op("Gemm", [h, *(g.const(v) for v in _linear(w, "classifier"))], ["logits"])
    inputs = [_info("input_ids", "INT32", ["b", "s"]), _info("mask", "INT32", ["b", "s"])]
    return g.model(inputs, [_info("logits", "FLOAT", ["b", w["classifier.bias"].shape[0]])])


def _linear(w: Weights, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    return w[f"{name}.weight"].T, w[f"{name}.bias"]


def _bert_norm(g: _Graph, w: Weights, inputs: list[str], prefix: str, eps: float) -> str:
    parts = [f"{prefix}.LayerNorm.weight", f"{prefix}.LayerNorm.bias", f"{prefix}.dense.bias"]
    return g.op("SkipLayerNormalization", [*inputs, *(g.const(w[p]) for p in parts)], domain=_DOMAIN, epsilon=eps)
