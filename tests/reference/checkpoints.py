"""Checkpoints written by hand, without torch: tiny random models and intentionally broken files."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DTYPE_NAMES = {"float32": "F32", "float16": "F16", "float64": "F64", "int64": "I64", "uint8": "U8", "uint16": "BF16"}

GPT2: Mapping[str, Any] = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 31,
    "n_positions": 16,
    "n_embd": 12,
    "n_layer": 2,
    "n_head": 3,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
BERT: Mapping[str, Any] = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "vocab_size": 31,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
    "id2label": {"0": "a", "1": "b", "2": "c"},
}

DISTILBERT: Mapping[str, Any] = {
    "model_type": "distilbert",
    "architectures": ["DistilBertModel"],
    "vocab_size": 31,
    "dim": 12,
    "n_layers": 2,
    "n_heads": 3,
    "hidden_dim": 20,
    "max_position_embeddings": 16,
}


def header(entries: Mapping[str, Any], *, pad: int = 0) -> bytes:
    """Return the length and the JSON of a safetensors header."""
    text = json.dumps(entries).encode() + b" " * pad
    return struct.pack("<Q", len(text)) + text


def safetensors(tensors: Mapping[str, NDArray[Any]], **extra: Any) -> bytes:
    """Return a correct file. uint16 arrays are treated as bfloat16 bits."""
    entries: dict[str, Any] = dict(extra)
    data = b""
    for name, array in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        dtype = DTYPE_NAMES[array.dtype.name]
        entries[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    return header(entries) + data


def _vectors(rng: np.random.Generator, name: str, width: int) -> dict[str, NDArray[Any]]:
    return {
        f"{name}.weight": (1 + rng.normal(size=width) / 4).astype(np.float32),
        f"{name}.bias": (rng.normal(size=width) / 4).astype(np.float32),
    }


def _linear(rng: np.random.Generator, name: str, rows: int, columns: int, bias: int) -> dict[str, NDArray[Any]]:
    weight = rng.normal(size=(rows, columns)) / np.sqrt(max(rows, columns) / 2)
    return {f"{name}.weight": weight.astype(np.float32), f"{name}.bias": (rng.normal(size=bias) / 4).astype(np.float32)}


def gpt2_tensors(config: Mapping[str, Any] = GPT2, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Return random weights with GPT-2's names; Conv1D's matrices are [in, out]."""
    rng, d, inner = np.random.default_rng(seed), config["n_embd"], config.get("n_inner") or 4 * config["n_embd"]
    tensors = {
        "wte.weight": rng.normal(size=(config["vocab_size"], d)).astype(np.float32),
        "wpe.weight": rng.normal(size=(config["n_positions"], d)).astype(np.float32),
    }
    for i in range(config["n_layer"]):
        h = f"h.{i}"
        tensors |= _vectors(rng, f"{h}.ln_1", d) | _vectors(rng, f"{h}.ln_2", d)
        tensors |= _linear(rng, f"{h}.attn.c_attn", d, 3 * d, 3 * d) | _linear(rng, f"{h}.attn.c_proj", d, d, d)
        tensors |= _linear(rng, f"{h}.mlp.c_fc", d, inner, inner) | _linear(rng, f"{h}.mlp.c_proj", inner, d, d)
    return tensors | _vectors(rng, "ln_f", d)


def bert_tensors(config: Mapping[str, Any] = BERT, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Return random weights with BERT's names, with pooler and classifier."""
    rng, d, inner = np.random.default_rng(seed), config["hidden_size"], config["intermediate_size"]
    sizes = {"word": "vocab_size", "position": "max_position_embeddings", "token_type": "type_vocab_size"}
    tensors = {
        f"embeddings.{name}_embeddings.weight": rng.normal(size=(config[key], d)).astype(np.float32)
        for name, key in sizes.items()
    }
    tensors |= _vectors(rng, "embeddings.LayerNorm", d)
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            tensors |= _linear(rng, f"{layer}.attention.{name}", d, d, d)
        tensors |= _vectors(rng, f"{layer}.attention.output.LayerNorm", d)
        tensors |= _linear(rng, f"{layer}.intermediate.dense", inner, d, inner)
        tensors |= _linear(rng, f"{layer}.output.dense", d, inner, d)
        tensors |= _vectors(rng, f"{layer}.output.LayerNorm", d)
    tensors |= _linear(rng, "pooler.dense", d, d, d)
    labels = len(config["id2label"])
    classifier = _linear(rng, "classifier", labels, d, labels)
    return {f"bert.{name}": tensor for name, tensor in tensors.items()} | classifier


def distilbert_tensors(config: Mapping[str, Any] = DISTILBERT, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Return random weights with DistilBERT's names, without a head."""
    rng, d, inner = np.random.default_rng(seed), config["dim"], config["hidden_dim"]
    sizes = {"word": "vocab_size", "position": "max_position_embeddings"}
    tensors = {
        f"embeddings.{name}_embeddings.weight": rng.normal(size=(config[key], d)).astype(np.float32)
        for name, key in sizes.items()
    }
    tensors |= _vectors(rng, "embeddings.LayerNorm", d)
    for i in range(config["n_layers"]):
        layer = f"transformer.layer.{i}"
        for name in ("q_lin", "k_lin", "v_lin", "out_lin"):
            tensors |= _linear(rng, f"{layer}.attention.{name}", d, d, d)
        tensors |= _vectors(rng, f"{layer}.sa_layer_norm", d) | _vectors(rng, f"{layer}.output_layer_norm", d)
        tensors |= _linear(rng, f"{layer}.ffn.lin1", inner, d, inner) | _linear(rng, f"{layer}.ffn.lin2", d, inner, d)
    return tensors


def write(directory: Path, config: Mapping[str, Any] | bytes, tensors: Mapping[str, NDArray[Any]] | bytes) -> Path:
    """Write a directory with config.json and model.safetensors."""
    directory.mkdir(parents=True, exist_ok=True)
    text = config if isinstance(config, bytes) else json.dumps(config).encode()
    (directory / "config.json").write_bytes(text)
    data = tensors if isinstance(tensors, bytes) else safetensors(tensors)
    (directory / "model.safetensors").write_bytes(data)
    return directory


def write_gpt2(directory: Path, seed: int = 0, **options: Any) -> Path:
    """Write a tiny GPT-2 with the given options."""
    config = {**GPT2, **options}
    return write(directory, config, gpt2_tensors(config, seed))


def write_bert(directory: Path, seed: int = 0, **options: Any) -> Path:
    """Write a tiny BERT with a classifier and the given options."""
    config = {**BERT, **options}
    return write(directory, config, bert_tensors(config, seed))


def write_distilbert(directory: Path, seed: int = 0, **options: Any) -> Path:
    """Write a tiny DistilBERT with the given options."""
    config = {**DISTILBERT, **options}
    return write(directory, config, distilbert_tensors(config, seed))
