"""The decoder families: generation as in transformers, chunks and caches with the same bits, and refused options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastattn.api.auto import AutoModelForCausalLM
from fastattn.errors import ConfigError
from fastattn.models.registry import FAMILIES
from tests.models.decoder_cases import BASES, DECODER_CASES, LONGROPE, SIZES
from tests.models.test_kv_cache import feed
from tests.reference.families import VOCAB_SIZE, heads, write_variant

DTYPES = ("float32", "bfloat16", "int8", "int4")
DECODERS = [name for name, task in heads() if task == "causal-lm"]
# transformers changes the frequencies of longrope when a text becomes longer than the original positions.
GENERATORS = [case for case in DECODER_CASES if case[1].endswith("ForCausalLM") and case[0] != "phi3-longrope"]
N_NEW = 8


@pytest.mark.torch
@pytest.mark.parametrize(
    ("model_class", "base", "options"), [c[1:] for c in GENERATORS], ids=[c[0] for c in GENERATORS]
)
def test_greedy_texts_of_a_ragged_batch(
    model_class: str, base: dict[str, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    """Prompts are shorter and longer than the window of 4 tokens; texts become longer than it."""
    torch = pytest.importorskip("torch")
    from tests.reference import hf

    rng = np.random.default_rng(5)
    prompts = [rng.integers(3, SIZES["vocab_size"], n).tolist() for n in (1, 3, 14, 9)]
    theirs = hf.make(model_class, seed=2, **{**base, **options})
    with AutoModelForCausalLM.from_pretrained(hf.save(theirs, tmp_path), threads=2) as model:
        found = model.generate(prompts, max_new_tokens=N_NEW, eos_token_id=-1)
        for prompt, text in zip(prompts, found, strict=True):
            ids = torch.tensor([prompt])
            with torch.no_grad(), hf.exact(theirs):
                for _ in range(N_NEW):
                    ids = torch.cat([ids, theirs(ids).logits[:, -1:].argmax(-1)], 1)
            assert np.asarray(text).tolist() == ids[0].tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", DECODERS)
def test_chunks_and_steps_give_the_bits_of_one_call(name: str, dtype: str, tmp_path: Path) -> None:
    text = np.random.default_rng(4).integers(2, VOCAB_SIZE, 135).tolist()
    with AutoModelForCausalLM.from_pretrained(write_variant(tmp_path, name, "causal-lm"), dtype=dtype) as model:
        whole = np.asarray(model(text).logits)
        for ends in ((1, 17, 64, 65, 133, 134, 135), (70, 71, 135)):
            cache, start, rows = model.new_cache(), 0, []
            for end in ends:
                rows.append(feed(model, [text[start:end]], [cache])[0])
                start = end
            assert np.concatenate(rows).tobytes() == whole.tobytes()
            cache.close()


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"num_key_value_heads": 3}, "num_key_value_heads"),
    ("llama", {"num_key_value_heads": 0}, "num_key_value_heads"),
    ("llama", {"head_dim": 7}, "head_dim"),
    ("llama", {"head_dim": "8"}, "head_dim"),
    ("llama", {"hidden_size": 26}, "num_attention_heads"),
    ("llama", {"hidden_act": "relu2"}, "hidden_act"),
    ("llama", {"rope_scaling": {"type": "su", "factor": 2.0}}, "type"),
    ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
    ("llama", {"rope_parameters": {"rope_type": "linear"}}, "factor"),
    ("llama", {"rope_theta": 0}, "rope_theta"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("gemma2", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("llama", {"attention_bias": "no"}, "attention_bias"),
    ("mistral", {"sliding_window": 0}, "sliding_window"),
    ("mistral", {"layer_types": ["full_attention"] * 2}, "layer_types"),
    ("qwen2", {"use_sliding_window": False, "layer_types": ["sliding_attention"] * 2}, "sliding_window"),
    ("qwen2", {"layer_types": ["full_attention"]}, "layer_types"),
    ("qwen2", {"layer_types": ["full_attention", "chunked_attention"]}, "layer_types"),
    ("llama", {"rope_interleaved": True}, "rope_interleaved"),
    ("qwen2", {"use_mrope": True}, "use_mrope"),
    ("qwen3", {"head_dim": None}, "head_dim"),
    ("qwen3", {"max_window_layers": -1}, "max_window_layers"),
    ("gpt_neox", {"rope_theta": 77.0}, "rope_theta"),
    ("gpt_neox", {"rotary_pct": 0.0}, "partial_rotary_factor"),
    ("gptj", {"rotary_dim": 5}, "rotary_dim"),
    ("gptj", {"rotary_dim": 10}, "rotary_dim"),
    ("gptj", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
    ("gpt_neo", {"attention_types": [[["global", "local"], 1]]}, "attention_types"),
    ("gpt_neo", {"attention_types": [[["global", "sparse"], 2]]}, "attention_types"),
    ("gpt_neo", {"attention_types": "global"}, "attention_types"),
    ("gpt_neo", {"attention_layers": ["local"] * 4}, "attention_layers"),
    ("opt", {"word_embed_proj_dim": 0}, "word_embed_proj_dim"),
    ("bloom", {"seq_length": 2**21}, "seq_length"),
    ("bloom", {"n_embed": 25}, "n_head"),
    ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gemma", {"hidden_activation": "silu"}, "hidden_activation"),
    ("gemma2", {"final_logit_softcapping": 0.0}, "final_logit_softcapping"),
    ("gemma2", {"attn_logit_softcapping": -1.0}, "attn_logit_softcapping"),
    ("gemma2", {"sliding_window": None}, "sliding_window"),
    ("gemma3_text", {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping"),
    ("gemma3_text", {"rope_parameters": {"rope_type": "default"}}, "rope_parameters"),
    ("gemma3_text", {"sliding_window_pattern": 0}, "sliding_window_pattern"),
    ("phi3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
    ("phi3", {"rope_parameters": {**LONGROPE, "long_factor": [1.0]}}, "long_factor"),
    ("phi3", {"attention_bias": True}, "attention_bias"),
    ("stablelm", {"qk_layernorm": True}, "qk_layernorm"),
    ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers"),
    ("smollm3", {"no_rope_layers": [1, 2]}, "no_rope_layers"),
    ("smollm3", {"no_rope_layer_interval": 0}, "no_rope_layer_interval"),
]


@pytest.mark.parametrize(("family", "options", "key"), REFUSED, ids=str)
def test_unsupported_options_are_named(family: str, options: dict[str, Any], key: str) -> None:
    config = {**BASES[family], "model_type": family}
    FAMILIES[family].read_config(config)
    with pytest.raises(ConfigError, match=key):
        FAMILIES[family].read_config({**config, **options})


def test_both_spellings_of_rope() -> None:
    """rope_scaling next to rope_theta, as transformers 4 wrote it, and rope_parameters of transformers 5."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8}  # fmt: skip
    read: Any = FAMILIES["llama"].read_config
    older = read({**SIZES, "rope_theta": 500000.0, "rope_scaling": scaling})
    newer = read({**SIZES, "rope_parameters": {**scaling, "rope_theta": 500000.0}})
    assert older.rope == newer.rope
    assert older.rope != read({**SIZES, "rope_theta": 500000.0}).rope
