"""Writes GGUF files of GPT-2 and BERT checkpoints, for llama.cpp. Prompts are ids, so no tokenizer is written."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from fastattn.bench.libraries.base import Source, Unsupported

_GPT2 = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
_BERT = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


class _File:
    def __init__(self, source: Source, target: Path, architecture: str) -> None:
        self.source = source
        self.writer = gguf.GGUFWriter(target, architecture)
        self.writer.add_vocab_size(source.config.vocab_size)
        self.writer.add_tokenizer_model("no_vocab")
        self.writer.add_file_type(gguf.LlamaFileType.ALL_F32)

    def shape(self, layers: int, width: int, inner: int, heads: int, eps: float, context: int) -> None:
        """Add the numbers that every architecture has."""
        self.writer.add_block_count(layers)
        self.writer.add_embedding_length(width)
        self.writer.add_feed_forward_length(inner)
        self.writer.add_head_count(heads)
        self.writer.add_layer_norm_eps(eps)
        self.writer.add_context_length(context)

    def put(self, name: str, source_name: str, parts: tuple[str, ...] = ("weight", "bias")) -> None:
        for part in parts:
            array = np.ascontiguousarray(self.source(f"{source_name}.{part}"), np.float32)
            self.writer.add_tensor(f"{name}.{part}", array)

    def close(self) -> None:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()


def write(source: Source, target: Path) -> None:
    """Write the float32 file of a checkpoint. Raises Unsupported."""
    if source.model_type == "gpt2":
        _gpt2(source, target)
    elif source.model_type == "bert":
        _bert(source, target)
    else:
        raise Unsupported(f"expected gpt2 or bert for a GGUF file, got {source.model_type}")


def _gpt2(source: Source, target: Path) -> None:
    c, file = source.config, _File(source, target, "gpt2")
    if c.activation_function != "gelu_tanh" or not c.scale_attn_weights:
        raise Unsupported("llama.cpp supports GPT-2 only with gelu_new and scaled attention")
    file.shape(c.n_layer, c.n_embd, c.n_inner, c.n_head, c.layer_norm_epsilon, c.n_positions)
    file.put("token_embd", "wte", ("weight",))
    file.put("position_embd", "wpe", ("weight",))
    file.put("output_norm", "ln_f")
    if source.has("lm_head.weight"):
        file.put("output", "lm_head", ("weight",))
    for i in range(c.n_layer):
        for name, there in _GPT2.items():
            file.put(f"blk.{i}.{there}", f"h.{i}.{name}")
    file.close()


def _bert(source: Source, target: Path) -> None:
    c, file = source.config, _File(source, target, "bert")
    if c.hidden_act != "gelu_erf":
        raise Unsupported("llama.cpp supports BERT only with gelu")
    classifies = source.task == "sequence-classification"
    width, inner = c.hidden_size, c.intermediate_size
    file.shape(c.num_hidden_layers, width, inner, c.num_attention_heads, c.layer_norm_eps, c.max_position_embeddings)
    file.writer.add_causal_attention(False)
    file.writer.add_pooling_type(gguf.PoolingType.RANK if classifies else gguf.PoolingType.NONE)
    file.writer.add_token_type_count(c.type_vocab_size)
    for there, name in (("token_embd", "word"), ("token_types", "token_type"), ("position_embd", "position")):
        file.put(there, f"embeddings.{name}_embeddings", ("weight",))
    file.put("token_embd_norm", "embeddings.LayerNorm")
    if classifies:
        file.writer.add_classifier_output_labels([str(i) for i in range(len(c.labels))])
        file.put("cls", "pooler.dense")
        file.put("cls.output", "classifier")
    for i in range(c.num_hidden_layers):
        for name, there in _BERT.items():
            file.put(f"blk.{i}.{there}", f"encoder.layer.{i}.{name}")
    file.close()
