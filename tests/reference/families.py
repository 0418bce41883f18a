"""Small random checkpoints of every family with every head, without torch.

The names and shapes of the tensors come from the Program of the family, so they need no list here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastattn.checkpoint import ArraySource
from fastattn.graph.ir import Program
from fastattn.graph.tensor import Tracer, Weights
from fastattn.models import mpnet
from fastattn.models.names import resolve_names
from fastattn.models.registry import FAMILIES, Family, find_family
from fastattn.models.tasks import Task
from tests.reference.checkpoints import write

VOCAB_SIZE = 131
_SIZES: Mapping[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 96,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 140,
    "pad_token_id": 1,
}
_OLDER = {"n_embd": 96, "n_head": 3, "n_layer": 2, "n_inner": 128, "n_positions": 140, "type_vocab_size": 2,
          "qkv_proj_bias": True, "mlp_fc1_bias": True, "mlp_fc2_bias": True, "activation_function": "geglu",
          "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0, "vocab_size": VOCAB_SIZE,
          "layer_norm_epsilon": 1e-12}  # fmt: skip
_RELATIVE = {"relative_attention": True, "position_buckets": 16, "pos_att_type": ["c2p", "p2c"], "share_att_key": True,
             "norm_rel_ebd": "layer_norm"}  # fmt: skip
_LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 40}  # fmt: skip
_WINDOWS = {"use_sliding_window": True, "max_window_layers": 1}
_CAPS = {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0}
_PATTERN = {"head_dim": 40, "sliding_window_pattern": 2}
_BOTH = {"use_bidirectional_attention": True, "sliding_window": 40}
_ALIBI = {"model_type": "bert", "position_embedding_type": "alibi", "feed_forward_type": "geglu"}


@dataclass(frozen=True, slots=True)
class Variant:
    """A config.json, and parts of tensor names that its checkpoint does not have."""

    config: Mapping[str, Any]
    without: tuple[str, ...] = ()

    @property
    def family(self) -> Family:
        return find_family(self.config)


def _variant(*without: str, **config: Any) -> Variant:
    others = {
        "gpt2": "n_inner",
        "gptj": "n_inner",
        "distilbert": "hidden_dim",
        "opt": "ffn_dim",
    }  # their names of intermediate_size
    own = others.get(config["model_type"], "intermediate_size")
    sizes = {own if key == "intermediate_size" else key: size for key, size in _SIZES.items()}
    return Variant({**sizes, **config}, without)


VARIANTS: Mapping[str, Variant] = {
    "gpt2": _variant(model_type="gpt2"),
    "bert": _variant(model_type="bert"),
    "distilbert": _variant(model_type="distilbert"),
    "roberta": _variant(model_type="roberta"),
    "xlm-roberta": _variant(model_type="xlm-roberta"),
    "camembert": _variant(model_type="camembert"),
    "electra": _variant(model_type="electra", embedding_size=40),
    "albert": _variant(model_type="albert", embedding_size=40),
    "mpnet": _variant(model_type="mpnet"),
    "modernbert": _variant(model_type="modernbert", local_attention=8),
    "deberta-v2": _variant(model_type="deberta-v2", pooler_hidden_size=96, legacy=False, **_RELATIVE),
    "nomic_bert": _variant(model_type="nomic_bert"),
    "nomic_bert-older": Variant({"model_type": "nomic_bert", **_OLDER}),
    "gte": _variant(model_type="gte"),
    "new": _variant(model_type="new", rope_scaling={"type": "ntk", "factor": 8.0}, layer_norm_type="rms_norm"),
    "new-absolute": _variant(model_type="new", position_embedding_type="absolute", pack_qkv=False),
    "llama": _variant(model_type="llama", num_key_value_heads=1, attention_bias=True, rope_scaling=_LLAMA3),
    "mistral": _variant(model_type="mistral", num_key_value_heads=1, sliding_window=70),
    "qwen2": _variant(model_type="qwen2", num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen3": _variant(model_type="qwen3", num_key_value_heads=3, head_dim=40, sliding_window=16, **_WINDOWS),
    "smollm3": _variant(model_type="smollm3", num_key_value_heads=3, no_rope_layers=[0, 1]),
    "gemma": _variant(model_type="gemma", num_key_value_heads=1, head_dim=40),
    "gemma2": _variant(model_type="gemma2", num_key_value_heads=3, head_dim=32, sliding_window=20, **_CAPS),
    "gemma3_text": _variant(model_type="gemma3_text", num_key_value_heads=1, sliding_window=20, **_PATTERN),
    "embedding-gemma": _variant(model_type="gemma3_text", num_key_value_heads=1, **_PATTERN, **_BOTH),
    "phi3": _variant(model_type="phi3", num_key_value_heads=1, sliding_window=70, partial_rotary_factor=0.5),
    "olmo2": _variant(model_type="olmo2", num_key_value_heads=3, attention_bias=True),
    "stablelm": _variant(model_type="stablelm", num_key_value_heads=1),
    "gpt_neox": _variant(model_type="gpt_neox", hidden_act="gelu"),
    "gptj": _variant(model_type="gptj", n_positions=140, rotary_dim=16),
    "gpt_neo": _variant(model_type="gpt_neo", attention_types=[[["global", "local"], 1]], window_size=20),
    "opt": _variant(model_type="opt", word_embed_proj_dim=64, do_layer_norm_before=False),
    "bloom": _variant(model_type="bloom", seq_length=140),
    "jina_bert": _variant("layer_norm_q", **_ALIBI),
    "jina_bert-code": _variant(**_ALIBI),
}


@dataclass(slots=True)
class _AnyNames:
    """Says that a checkpoint has every tensor, except those with one of these parts in their names."""

    family: Family
    without: tuple[str, ...]

    def has(self, name: str) -> bool:
        return not any(part in name for part in self.without)

    def repeats(self, name: str) -> bool:
        return False

    def transposed(self, name: str) -> bool:
        suffixes = self.family.layout.transposed
        return name.endswith(suffixes) if suffixes else False


def trace(variant: Variant, task: Task) -> Program:
    """Return the Program of a checkpoint that has all tensors."""
    family = variant.family
    names = _AnyNames(family, variant.without)
    return family.build(family.read_config(variant.config), Weights(Tracer(), names), task)


def _computed(family: Family, config: Any, stored: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Return the names of the weights that a family computes, from the tensors `stored` if it needs some."""
    if family.computed is None or family in (FAMILIES["deberta-v2"], FAMILIES["mpnet"]):
        return set()
    sources = {name: ArraySource(name, np.zeros(shape, np.float32)) for name, shape in stored.items()}
    return set(family.computed(config, resolve_names(sources, family.layout)))


def shapes(variant: Variant, task: Task) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the tensors of a checkpoint with this head."""
    family, program = variant.family, trace(variant, task)
    config: Any = family.read_config(variant.config)
    hidden = family.hidden_tensors(config)
    stored = dict(hidden) if isinstance(hidden, Mapping) else {}
    computed = _computed(family, config, stored)
    found = {}
    for name, weight in program.weights.items():
        if not weight.exact and name not in computed:
            found[name] = weight.shape[::-1] if weight.transposed else weight.shape
    found |= stored
    if family is FAMILIES["deberta-v2"]:
        tables = [name for name in found if ".self.position_" in name]  # computed from these tensors
        found = {name: shape for name, shape in found.items() if name not in tables}
        width = config.hidden_size
        found["encoder.rel_embeddings.weight"] = (2 * config.span, width)
        found |= {f"encoder.LayerNorm.{part}": (width,) for part in ("weight", "bias")}
    if family is FAMILIES["mpnet"]:  # the table is computed from it
        found[f"{mpnet.BIAS}.weight"] = (mpnet.BUCKETS.num_buckets, config.num_attention_heads)
    return found


def tensors(variant: Variant, task: Task, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Return random tensors that affect every result; scales of norms are around 1."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in shapes(variant, task).items():
        noise = rng.standard_normal(shape)
        scale = 1 + noise / 4 if len(shape) == 1 and name.endswith("weight") else noise / math.sqrt(shape[-1])
        found[name] = scale.astype(np.float32)
    return found


def write_variant(folder: Path, name: str, task: Task, **options: Any) -> Path:
    """Write a checkpoint of a variant with a head. options: of config.json."""
    variant = VARIANTS[name]
    variant = Variant({**variant.config, **options}, variant.without)
    return write(folder, variant.config, tensors(variant, task))


def heads() -> Iterator[tuple[str, Task]]:
    """Yield every variant with every task of its family, but no language model that reads the tokens to come."""
    for name, variant in VARIANTS.items():
        for task in variant.family.tasks:
            if task != "causal-lm" or not variant.config.get("use_bidirectional_attention"):
                yield name, task
