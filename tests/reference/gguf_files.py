"""GGUF files written by hand, without the `gguf` package: tiny random models and intentionally broken files."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastattn.checkpoint.gguf.blocks import BLOCK_TYPES
from tests.reference.checkpoints import BERT, GPT2, bert_tensors, gpt2_tensors

TYPES = {kind.name: number for number, kind in BLOCK_TYPES.items()}
QUANTIZED = tuple(kind.name for kind in BLOCK_TYPES.values() if kind.decode is not None)
_NUMPY_TYPES = {"uint8": 0, "int8": 1, "uint16": 2, "int16": 3, "uint32": 4, "int32": 5, "float32": 6, "bool": 7,
                "uint64": 10, "int64": 11, "float64": 12}  # fmt: skip
GPT2_NAMES = {
    r"wte\.": "token_embd.", r"wpe\.": "position_embd.", r"ln_f\.": "output_norm.", r"lm_head\.": "output.",
    r"h\.(\d+)\.ln_1\.": r"blk.\1.attn_norm.", r"h\.(\d+)\.ln_2\.": r"blk.\1.ffn_norm.",
    r"h\.(\d+)\.attn\.c_attn\.": r"blk.\1.attn_qkv.", r"h\.(\d+)\.attn\.c_proj\.": r"blk.\1.attn_output.",
    r"h\.(\d+)\.mlp\.c_fc\.": r"blk.\1.ffn_up.", r"h\.(\d+)\.mlp\.c_proj\.": r"blk.\1.ffn_down.",
}  # fmt: skip
_BERT_LAYER = r"bert\.encoder\.layer\.(\d+)\."
BERT_NAMES = {
    r"bert\.embeddings\.word_embeddings\.": "token_embd.",
    r"bert\.embeddings\.token_type_embeddings\.": "token_types.",
    r"bert\.embeddings\.position_embeddings\.": "position_embd.",
    r"bert\.embeddings\.LayerNorm\.": "token_embd_norm.",
    _BERT_LAYER + r"attention\.self\.(q|k|v)\w+\.": r"blk.\1.attn_\2.",
    _BERT_LAYER + r"attention\.output\.dense\.": r"blk.\1.attn_output.",
    _BERT_LAYER + r"attention\.output\.LayerNorm\.": r"blk.\1.attn_output_norm.",
    _BERT_LAYER + r"intermediate\.dense\.": r"blk.\1.ffn_up.",
    _BERT_LAYER + r"output\.dense\.": r"blk.\1.ffn_down.",
    _BERT_LAYER + r"output\.LayerNorm\.": r"blk.\1.layer_output_norm.",
    r"bert\.pooler\.dense\.": "cls.",
    r"classifier\.": "cls.output.",
}


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as it is in a file. shape: as in numpy. offset: None for the next free place."""

    data: bytes
    shape: tuple[int, ...]
    kind: int = 0
    offset: int | None = None


@dataclass(frozen=True, slots=True)
class Raw:
    """A value of metadata as bytes, with the number of its type."""

    kind: int
    data: bytes


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def typed(value: Any) -> bytes:
    """Return the type and the bytes of a value: an int is uint32, a float is float32."""
    if isinstance(value, Raw):
        return struct.pack("<I", value.kind) + value.data
    if isinstance(value, np.ndarray):
        return struct.pack("<IIQ", 9, _NUMPY_TYPES[value.dtype.name], len(value)) + value.tobytes()
    if isinstance(value, list):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    return struct.pack("<II", 4, value) if isinstance(value, int) else struct.pack("<If", 6, value)


def gguf_bytes(
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Stored],
    *,
    version: int = 3,
    alignment: int = 32,
    n_tensors: int | None = None,
    n_keys: int | None = None,
) -> bytes:
    """Return a file. n_tensors, n_keys: other counts than the right ones."""
    counts = (len(tensors) if n_tensors is None else n_tensors, len(metadata) if n_keys is None else n_keys)
    head = b"GGUF" + struct.pack("<IQQ", version, *counts)
    head += b"".join(text(key) + typed(value) for key, value in metadata.items())
    data = b""
    for name, tensor in tensors.items():
        offset = len(data) if tensor.offset is None else tensor.offset
        sizes = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape[::-1])
        head += text(name) + sizes + struct.pack("<IQ", tensor.kind, offset)
        data += tensor.data + bytes(-len(tensor.data) % alignment)
    return head + bytes(-len(head) % alignment) + data


def plain(array: NDArray[Any], kind: str = "F32") -> Stored:
    """Store an array as F32, F16, BF16 (rounded toward zero) or F64."""
    if kind == "BF16":
        data = (np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    else:
        data = array.astype({"F32": np.float32, "F16": np.float16, "F64": np.float64}[kind]).tobytes()
    return Stored(data, array.shape, TYPES[kind])


def random_blocks(rng: np.random.Generator, kind: str, n_blocks: int) -> NDArray[np.uint8]:
    """Return random blocks whose float16 scales are between 1/256 and 1/64."""
    found = BLOCK_TYPES[TYPES[kind]]
    blocks = rng.integers(0, 256, (n_blocks, found.n_bytes), dtype=np.uint8)
    for at in found.scales:
        scale = rng.uniform(1 / 256, 1 / 64, n_blocks).astype(np.float16)
        blocks[:, at : at + 2] = scale.view(np.uint8).reshape(-1, 2)
    return blocks


def random_tensor(rng: np.random.Generator, kind: str, shape: tuple[int, int]) -> Stored:
    """Return a matrix of a block type."""
    n_blocks = shape[0] * shape[1] // BLOCK_TYPES[TYPES[kind]].n_values
    return Stored(random_blocks(rng, kind, n_blocks).tobytes(), shape, TYPES[kind])


def renamed(name: str, names: Mapping[str, str]) -> str:
    """Return the name of a tensor in a GGUF file."""
    for pattern, there in names.items():
        if re.match(pattern, name):
            return re.sub(pattern, there, name, count=1)
    raise KeyError(name)


def gpt2_metadata(config: Mapping[str, Any] = GPT2) -> dict[str, Any]:
    return {
        "general.architecture": "gpt2",
        "gpt2.context_length": config["n_positions"],
        "gpt2.embedding_length": config["n_embd"],
        "gpt2.feed_forward_length": config.get("n_inner") or 4 * config["n_embd"],
        "gpt2.block_count": config["n_layer"],
        "gpt2.attention.head_count": config["n_head"],
        "gpt2.attention.layer_norm_epsilon": 1e-5,
        "tokenizer.ggml.bos_token_id": config["bos_token_id"],
        "tokenizer.ggml.eos_token_id": config["eos_token_id"],
    }


def gpt2_stored(config: Mapping[str, Any] = GPT2, seed: int = 0, kind: str = "F32") -> dict[str, Stored]:
    """Return the tensors of `gpt2_tensors`, as [out_features, in_features]. kind: of the matrices."""
    found = {}
    for name, array in gpt2_tensors(config, seed).items():
        there = renamed(name, GPT2_NAMES)
        matrix = array.T if array.ndim == 2 and there.startswith("blk.") else array
        found[there] = plain(np.ascontiguousarray(matrix), kind if array.ndim == 2 else "F32")
    return found


def bert_metadata(config: Mapping[str, Any] = BERT) -> dict[str, Any]:
    return {
        "general.architecture": "bert",
        "bert.context_length": config["max_position_embeddings"],
        "bert.embedding_length": config["hidden_size"],
        "bert.feed_forward_length": config["intermediate_size"],
        "bert.block_count": config["num_hidden_layers"],
        "bert.attention.head_count": config["num_attention_heads"],
        "bert.attention.layer_norm_epsilon": 1e-12,
        "bert.attention.causal": False,
        "bert.classifier.output_labels": list(config["id2label"].values()),
        "tokenizer.ggml.token_type_count": config["type_vocab_size"],
    }


def bert_stored(config: Mapping[str, Any] = BERT, seed: int = 0) -> dict[str, Stored]:
    """Return the tensors of `bert_tensors`."""
    return {renamed(name, BERT_NAMES): plain(array) for name, array in bert_tensors(config, seed).items()}
