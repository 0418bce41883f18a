"""How an architecture of GGUF files maps to config.json and tensor names of Hugging Face, and what they all share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fastattn.checkpoint.gguf.keys import Keys
from fastattn.checkpoint.gguf.reader import GgufFile
from fastattn.errors import ConfigError

Config = dict[str, Any]
EMBEDDINGS, OUTPUT = "token_embd.weight", "output.weight"
MAX_LAYERS = 1000
_LAYER = re.compile(r"blk\.(\d{1,6})\.(.+)")


class Place(NamedTuple):
    """Where a tensor belongs in a Hugging Face checkpoint.

    transposed: it is stored there as [in_features, out_features]. n_heads: the number of heads if its rows are in the
    order of llama.cpp's rotation, else 0.
    """

    name: str
    transposed: bool = False
    n_heads: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How to read one architecture.

    names: GGUF's names of tensors, without ".weight" or ".bias", to Hugging Face's; layer: those after "blk.N.".
    prefix: the name of layer N there, with {} for N. read: returns config.json. transposed: the names in `layer` of
    matrices that Hugging Face stores as [in_features, out_features]. rotated: the names whose rows llama.cpp reorders,
    to the key of config.json with their number of heads. computed: the tensors that only `read` uses. layers: the key
    of config.json with the number of layers.
    """

    names: Mapping[str, str]
    layer: Mapping[str, str]
    prefix: str
    read: Callable[[GgufFile, Keys], Config]
    transposed: tuple[str, ...] = ()
    rotated: Mapping[str, str] = field(default_factory=dict)
    computed: tuple[str, ...] = ()
    layers: str = "num_hidden_layers"

    def place(self, name: str, config: Mapping[str, Any]) -> Place | None:
        """Return where a tensor belongs; None for an unknown name."""
        base, _, kind = name.rpartition(".")
        if kind not in ("weight", "bias"):
            return None
        found = _LAYER.fullmatch(base)
        if found is None:
            there = self.names.get(base)
            return None if there is None else Place(f"{there}.{kind}")
        number, part = int(found[1]), found[2]
        if part not in self.layer or number >= config[self.layers]:
            return None
        return Place(
            f"{self.prefix.format(number)}.{self.layer[part]}.{kind}",
            part in self.transposed and kind == "weight",
            config[self.rotated[part]] if part in self.rotated else 0,
        )


def read_vocabulary_size(gguf: GgufFile, keys: Keys) -> int:
    """Return the number of rows of the token embeddings."""
    table = gguf.tensors.get(EMBEDDINGS)
    if table is None or len(table.shape) != 2:
        found = "none" if table is None else f"shape {list(table.shape)}"
        raise ConfigError(f"{gguf.path}: expected a matrix {EMBEDDINGS}, got {found}")
    if keys.size("vocab_size", table.shape[0]) != table.shape[0]:
        keys.fail("vocab_size", f"{table.shape[0]}, the rows of {EMBEDDINGS}")
    return table.shape[0]


def read_sizes(gguf: GgufFile, keys: Keys) -> Config:
    """Return the sizes that every architecture has, by transformers' common option names."""
    return {
        "hidden_size": keys.size("embedding_length"),
        "num_hidden_layers": keys.size("block_count", high=MAX_LAYERS),
        "intermediate_size": keys.size("feed_forward_length"),
        "num_attention_heads": keys.size("attention.head_count"),
        "max_position_embeddings": keys.size("context_length"),
        "vocab_size": read_vocabulary_size(gguf, keys),
    }
