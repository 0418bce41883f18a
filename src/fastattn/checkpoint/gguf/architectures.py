"""Translates the architecture in a GGUF file to config.json and tensor names of Hugging Face.

A new architecture is one function and one entry in ARCHITECTURES. Names: gguf-py/gguf/constants.py and
tensor_mapping.py of https://github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fastattn.checkpoint.gguf.keys import Keys
from fastattn.checkpoint.gguf.reader import GgufFile
from fastattn.checks import quote
from fastattn.errors import ConfigError

_LAYER = re.compile(r"blk\.(\d{1,6})\.(.+)")
_EMBEDDINGS = "token_embd.weight"
_Config = dict[str, Any]


class Place(NamedTuple):
    """Where a tensor belongs in a Hugging Face checkpoint.

    transposed: it is stored there as [in_features, out_features]. n_heads: not 0 if its rows are in the order of
    llama.cpp's rotation, in so many heads.
    """

    name: str
    transposed: bool = False
    n_heads: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How to read one architecture.

    names: GGUF's names of tensors, without ".weight" or ".bias", to Hugging Face's; layer: those after "blk.N.".
    prefix: the name of layer N there, with {} for N. read: returns the config. transposed: the names in `layer` of
    matrices that Hugging Face stores as [in_features, out_features]. rotated: the names whose rows llama.cpp reorders,
    to the key of config.json with their number of heads.
    """

    names: Mapping[str, str]
    layer: Mapping[str, str]
    prefix: str
    read: Callable[[GgufFile, Keys], _Config]
    transposed: tuple[str, ...] = ()
    rotated: Mapping[str, str] = field(default_factory=dict)

    def place(self, name: str, config: Mapping[str, Any]) -> Place | None:
        """Return where a tensor belongs; None for an unknown name."""
        base, _, kind = name.rpartition(".")
        if kind not in ("weight", "bias"):
            return None
        found = _LAYER.fullmatch(base)
        if found is None:
            there = self.names.get(base)
            return None if there is None else Place(f"{there}.{kind}")
        there = self.layer.get(found[2])
        if there is None or int(found[1]) >= config["num_hidden_layers"]:
            return None
        heads = self.rotated.get(found[2])
        transposed = found[2] in self.transposed and kind == "weight"
        return Place(
            f"{self.prefix.format(int(found[1]))}.{there}.{kind}", transposed, config[heads] if heads is not None else 0
        )


def find_architecture(gguf: GgufFile) -> Architecture:
    """Return the architecture of a file. Raises ConfigError, also for a file that is not a whole model."""
    keys = Keys(gguf, "")
    keys.must_be("general.type", "model")
    keys.must_be("split.count", 0, 1)
    keys.must_be("general.quantization_version", 2)
    name = keys.text("general.architecture")
    if name not in ARCHITECTURES:
        raise ConfigError(
            f"{gguf.path}: general.architecture: expected one of {', '.join(ARCHITECTURES)}, got {quote(name, 60)}"
        )
    return ARCHITECTURES[name]


def read_architecture(gguf: GgufFile) -> tuple[_Config, dict[str, Place]]:
    """Return the config, and the place of every tensor by its name in the file. Raises ConfigError."""
    architecture = find_architecture(gguf)
    keys = Keys(gguf, f"{gguf.metadata['general.architecture']}.")
    config = {**architecture.read(gguf, keys), **_token_ids(gguf)}
    keys.finish()
    places, unknown = {}, []
    for name in gguf.tensors:
        place = architecture.place(name, config)
        if place is not None:
            places[name] = place
        elif name not in _COMPUTED:
            unknown.append(name)
    if unknown:
        raise ConfigError(
            f"{gguf.path}: expected only tensors of the architecture {quote(config['model_type'])}, got "
            f"{quote(unknown[0], 80)} ({len(unknown)} unknown)"
        )
    return config, places


_COMPUTED = ("rope_freqs.weight",)  # `_frequencies` reads it


def _token_ids(gguf: GgufFile) -> _Config:
    """Return the ids of the tokenizer that config.json has. Texts also end at the end of a turn or of a message."""
    keys = Keys(gguf, "tokenizer.ggml.")
    ids = {
        name: keys.size(f"{name}_token_id", low=0)
        for name in ("bos", "eos", "padding", "eot", "eom")
        if keys.raw(f"{name}_token_id") is not None
    }
    ends = list(dict.fromkeys(ids[name] for name in ("eos", "eot", "eom") if name in ids))
    return {
        "bos_token_id": ids.get("bos"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": ids.get("padding"),
    }


def _vocabulary(gguf: GgufFile, keys: Keys) -> int:
    """Return the number of rows of the token embeddings."""
    table = gguf.tensors.get(_EMBEDDINGS)
    if table is None or len(table.shape) != 2:
        raise ConfigError(f"{gguf.path}: expected a matrix {_EMBEDDINGS}, got {'none' if table is None else 'another'}")
    if keys.size("vocab_size", table.shape[0]) != table.shape[0]:
        keys.fail("vocab_size", f"{table.shape[0]}, the rows of {_EMBEDDINGS}")
    return table.shape[0]


def _common(keys: Keys) -> _Config:
    return {
        "hidden_size": keys.size("embedding_length"),
        "num_hidden_layers": keys.size("block_count", high=1000),
        "intermediate_size": keys.size("feed_forward_length"),
        "num_attention_heads": keys.size("attention.head_count"),
        "max_position_embeddings": keys.size("context_length"),
    }


def _gpt2(gguf: GgufFile, keys: Keys) -> _Config:
    found = _common(keys)
    keys.must_be("attention.causal", True)
    kv = keys.size("attention.head_count_kv", found["num_attention_heads"])
    if kv != found["num_attention_heads"]:
        keys.fail("attention.head_count_kv", f"{found['num_attention_heads']}, as attention.head_count")
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        **{name: found[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")},
        "max_position_embeddings": found["max_position_embeddings"],
        "n_inner": found["intermediate_size"],
        "activation_function": "gelu_new",
        "layer_norm_epsilon": keys.number("attention.layer_norm_epsilon"),
        "vocab_size": _vocabulary(gguf, keys),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
    }


def _bert(gguf: GgufFile, keys: Keys) -> _Config:
    keys.must_be("attention.causal", False)
    keys.ignore("pooling_type")  # of llama.cpp's embeddings; the hidden states do not depend on it
    types = gguf.tensors.get("token_types.weight")
    config: _Config = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        **_common(keys),
        "hidden_act": "gelu",
        "layer_norm_eps": keys.number("attention.layer_norm_epsilon"),
        "vocab_size": _vocabulary(gguf, keys),
        "type_vocab_size": types.shape[0] if types is not None and len(types.shape) == 2 else 1,
    }
    head, labels = gguf.tensors.get("cls.output.weight"), keys.texts("classifier.output_labels")
    if head is not None:
        config["architectures"] = ["BertForSequenceClassification"]
        config["num_labels"] = head.shape[0]
        if labels is not None:
            config["id2label"] = {str(i): label for i, label in enumerate(labels)}
    return config


ARCHITECTURES: Mapping[str, Architecture] = {
    "gpt2": Architecture(
        names={"token_embd": "wte", "position_embd": "wpe", "output_norm": "ln_f", "output": "lm_head"},
        layer={
            "attn_norm": "ln_1",
            "attn_qkv": "attn.c_attn",
            "attn_output": "attn.c_proj",
            "ffn_norm": "ln_2",
            "ffn_up": "mlp.c_fc",
            "ffn_down": "mlp.c_proj",
        },
        prefix="h.{}",
        read=_gpt2,
        transposed=("attn_qkv", "attn_output", "ffn_up", "ffn_down"),
    ),
    "bert": Architecture(
        names={
            "token_embd": "embeddings.word_embeddings",
            "token_types": "embeddings.token_type_embeddings",
            "position_embd": "embeddings.position_embeddings",
            "token_embd_norm": "embeddings.LayerNorm",
            "cls": "pooler.dense",
            "cls.output": "classifier",
        },
        layer={
            "attn_q": "attention.self.query",
            "attn_k": "attention.self.key",
            "attn_v": "attention.self.value",
            "attn_output": "attention.output.dense",
            "attn_output_norm": "attention.output.LayerNorm",
            "ffn_up": "intermediate.dense",
            "ffn_down": "output.dense",
            "layer_output_norm": "output.LayerNorm",
        },
        prefix="encoder.layer.{}",
        read=_bert,
    ),
}
