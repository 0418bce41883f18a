"""Options of config.json that are null: refused where transformers fails, the default where it is the default."""

from __future__ import annotations

from typing import Any

import pytest

from fastattn.errors import ConfigError
from fastattn.models.registry import FAMILIES
from fastattn.settings import recorded_settings
from tests.models import decoder_cases

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 24, "max_position_embeddings": 32}  # fmt: skip
BASES: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 64, "n_positions": 32,
             "bos_token_id": 1, "eos_token_id": 2},
    "bert": SIZES,
    "distilbert": {"vocab_size": 40, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24,
                   "max_position_embeddings": 32},
    "roberta": {**SIZES, "pad_token_id": 1},
    "xlm-roberta": {**SIZES, "pad_token_id": 1},
    "camembert": {**SIZES, "pad_token_id": 1},
    "electra": {**SIZES, "embedding_size": 8},
    "albert": {**SIZES, "embedding_size": 8},
    "mpnet": SIZES,
    "modernbert": {**SIZES, "local_attention": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
                   "cls_token_id": 1, "sep_token_id": 2},
    "nomic_bert": SIZES,
    "gte": SIZES,
    "deberta-v2": {**SIZES, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8,
                   "norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False,
                   "type_vocab_size": 0},
    **decoder_cases.BASES,
}  # fmt: skip
# Null is accepted although transformers 5 fails: it switches nothing on, and version 4 read it as false. Version 4 of
# ModernBERT used the global theta. The model type is found before any option is read.
ACCEPTED = {"is_decoder", "add_cross_attention", "local_rope_theta", "model_type"}
# transformers only warns that the option is old.
WARNED = {("gptj", "rope_scaling")}
# Null is refused although it changes no vector: it would change a masked language model or a classifier.
REFUSED = {("nomic_bert", "tie_word_embeddings"), ("deberta-v2", "pooler_hidden_size")}
# Null means that there is no cap; the default has one.
NO_DEFAULT = {("gemma2", "attn_logit_softcapping")}
# Without these keys, the default of transformers does not fit the other sizes.
OUT_OF_RANGE = {
    ("modernbert", "pad_token_id"),
    ("qwen2", "num_key_value_heads"),
    ("qwen3", "num_key_value_heads"),
    ("smollm3", "pad_token_id"),
    ("phi3", "pad_token_id"),
}


def run(family: str, options: dict[str, Any]) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """Return the output of transformers' model with random weights, and the shapes of its weights."""
    config = transformers.AutoConfig.for_model(family, **options)
    model = transformers.AutoModel.from_config(config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * 0.2)
        output = model(input_ids=torch.arange(5, 25)[None])[0]
    return output, {name: tuple(weight.shape) for name, weight in model.named_parameters()}


def refuses(family: str, options: dict[str, Any], key: str) -> bool:
    try:
        FAMILIES[family].read_config({**options, "model_type": family, key: None})
    except ConfigError as error:
        return key in str(error)
    return False


@pytest.mark.parametrize("family", BASES)
def test_null_is_refused_or_the_default_as_in_transformers(family: str) -> None:
    base = BASES[family]
    with recorded_settings() as read:
        FAMILIES[family].read_config({**base, "model_type": family})
    keys = sorted(set().union(*(settings.read for settings in read)) - ACCEPTED)
    n_refused = n_default = 0
    for key in keys:
        try:
            output, shapes = run(family, {**base, key: None})
        except Exception:  # of any type: transformers checks few options
            assert refuses(family, base, key) or (family, key) in WARNED, key
            n_refused += 1
            continue
        if (family, key) in REFUSED:
            assert refuses(family, base, key), key
            continue
        assert not refuses(family, base, key), key
        if (family, key) not in OUT_OF_RANGE | NO_DEFAULT:
            expected, of_default = run(family, {name: value for name, value in base.items() if name != key})
            assert shapes == of_default, key
            assert torch.equal(output, expected), key
        n_default += 1
    assert n_refused >= 4
    assert n_default >= 15


@pytest.mark.parametrize("key", ["layer_norm_type", "pack_qkv", "position_embedding_type", "rope_theta", "hidden_size"])
def test_null_in_a_config_of_remote_code(key: str) -> None:
    """The remote code fails with None, or for pack_qkv uses other weights."""
    base = {**SIZES, "position_embedding_type": "rope", "rope_theta": 10000.0, "pack_qkv": True}
    FAMILIES["new"].read_config({**base, "model_type": "new"})
    with pytest.raises(ConfigError, match=key):
        FAMILIES["new"].read_config({**base, "model_type": "new", key: None})
