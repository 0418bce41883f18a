"""Compares every family, head and option with transformers in float64."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastattn.api.auto import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from tests.models.decoder_cases import DECODER_CASES, ROUNDED
from tests.reference.bounds import assert_close

pytest.importorskip("torch")
pytest.importorskip("transformers")
from tests.reference import hf

pytestmark = pytest.mark.torch

GPT2 = {"vocab_size": 61, "n_positions": 32, "n_embd": 24, "n_head": 3, "n_layer": 2}
BERT = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 24,
}
ELECTRA = {**BERT, "embedding_size": 10}
MODERN = {**BERT, "num_hidden_layers": 4, "local_attention": 4, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2}
ALBERT = {**BERT, "embedding_size": 10}
DEBERTA = {
    **BERT,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
}
DISTIL = {"vocab_size": 61, "dim": 24, "n_heads": 3, "n_layers": 2, "hidden_dim": 40, "max_position_embeddings": 24}


@dataclass(frozen=True, slots=True)
class Case:
    """A transformers class, its options, and how the checkpoint is loaded."""

    name: str
    model_class: str
    base: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)


CASES = [
    Case("gpt2", "GPT2LMHeadModel", GPT2),
    Case(
        "gpt2-odd-untied",
        "GPT2LMHeadModel",
        GPT2,
        {"n_embd": 20, "n_head": 5, "n_layer": 3, "n_inner": 33, "tie_word_embeddings": False},
    ),
    Case("gpt2-relu", "GPT2LMHeadModel", GPT2, {"activation_function": "relu", "n_layer": 1, "n_head": 1}),
    Case("gpt2-gelu-unscaled", "GPT2LMHeadModel", GPT2, {"activation_function": "gelu", "scale_attn_weights": False}),
    Case("gpt2-silu", "GPT2LMHeadModel", GPT2, {"activation_function": "silu", "layer_norm_epsilon": 0.01}),
    Case("gpt2-tanh", "GPT2LMHeadModel", GPT2, {"activation_function": "tanh", "vocab_size": 7}),
    Case("gpt2-base", "GPT2Model", GPT2),
    Case("gpt2-classify-5", "GPT2ForSequenceClassification", GPT2, {"num_labels": 5}),
    Case("bert", "BertModel", BERT),
    Case("bert-no-pooler", "BertModel", BERT, {"pooler": False, "type_vocab_size": 1}),
    Case("bert-relu", "BertModel", BERT, {"hidden_act": "relu", "hidden_size": 20, "num_attention_heads": 5}),
    Case("bert-classify-1", "BertForSequenceClassification", BERT, {"num_labels": 1, "hidden_act": "gelu_new"}),
    Case("bert-classify-2", "BertForSequenceClassification", BERT, {"num_labels": 2, "type_vocab_size": 3}),
    Case("bert-classify-5", "BertForSequenceClassification", BERT, {"num_labels": 5, "num_hidden_layers": 1}),
    Case("minilm", "BertModel", BERT, {"intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 12}),
    Case("distilbert", "DistilBertModel", DISTIL),
    Case("distilbert-sinus", "DistilBertModel", DISTIL, {"sinusoidal_pos_embds": True, "activation": "relu"}),
    Case("distilbert-classify-1", "DistilBertForSequenceClassification", DISTIL, {"num_labels": 1}),
    Case("distilbert-classify-5", "DistilBertForSequenceClassification", DISTIL, {"num_labels": 5, "n_heads": 1}),
    Case("roberta", "RobertaModel", BERT),
    Case("roberta-no-pooler", "RobertaModel", BERT, {"pooler": False, "pad_token_id": 3}),
    Case("roberta-classify-2", "RobertaForSequenceClassification", BERT, {"num_labels": 2, "type_vocab_size": 1}),
    Case("roberta-classify-5", "RobertaForSequenceClassification", BERT, {"num_labels": 5, "pad_token_id": 0}),
    Case("xlm-roberta", "XLMRobertaModel", BERT),
    Case("camembert", "CamembertModel", BERT),
    Case("camembert-classify-3", "CamembertForSequenceClassification", BERT, {"num_labels": 3, "pad_token_id": 2}),
    Case("electra", "ElectraModel", ELECTRA),
    Case("electra-one-width", "ElectraModel", ELECTRA, {"embedding_size": 24, "hidden_act": "relu"}),
    Case("electra-classify-3", "ElectraForSequenceClassification", ELECTRA, {"num_labels": 3, "hidden_act": "silu"}),
    Case("albert", "AlbertModel", ALBERT),
    Case("albert-one-width", "AlbertModel", ALBERT, {"embedding_size": 24, "type_vocab_size": 3}),
    Case("albert-groups", "AlbertModel", ALBERT, {"num_hidden_layers": 5, "num_hidden_groups": 3, "pooler": False}),
    Case("albert-inner", "AlbertModel", ALBERT, {"inner_group_num": 2, "num_hidden_groups": 2, "hidden_act": "gelu"}),
    Case("albert-classify-3", "AlbertForSequenceClassification", ALBERT, {"num_labels": 3}),
    Case("mpnet", "MPNetModel", BERT),
    Case("mpnet-no-pooler", "MPNetModel", BERT, {"pooler": False, "pad_token_id": 3, "hidden_act": "gelu_new"}),
    Case("mpnet-classify-3", "MPNetForSequenceClassification", BERT, {"num_labels": 3, "num_attention_heads": 6}),
    Case("modernbert", "ModernBertModel", MODERN),
    Case(
        "modernbert-types",
        "ModernBertModel",
        MODERN,
        {"layer_types": ["sliding_attention", "full_attention"], "num_hidden_layers": 2, "local_attention": 5},
    ),
    Case(
        "modernbert-thetas",
        "ModernBertModel",
        MODERN,
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 77.0, "factor": 3.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
            }
        },
    ),
    Case(
        "modernbert-biases",
        "ModernBertForSequenceClassification",
        MODERN,
        {
            "norm_bias": True,
            "attention_bias": True,
            "mlp_bias": True,
            "classifier_bias": True,
            "num_labels": 3,
            "classifier_pooling": "mean",
            "classifier_activation": "silu",
            "hidden_activation": "relu",
        },
    ),
    Case("modernbert-classify-3", "ModernBertForSequenceClassification", MODERN, {"num_labels": 3}),
    Case("modernbert-of-masked-lm", "ModernBertForMaskedLM", MODERN),
    Case("nomic", "NomicBertModel", BERT),
    Case("nomic-pooler", "NomicBertModel", BERT, {"pooler": True, "hidden_act": "gelu", "type_vocab_size": 3}),
    Case("nomic-heads", "NomicBertModel", BERT, {"head_dim": 10, "num_attention_heads": 5}),
    Case(
        "nomic-scaled",
        "NomicBertModel",
        BERT,
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 500.0,
                "factor": 4.0,
                "original_max_position_embeddings": 6,
            }
        },
    ),
    Case("nomic-classify-3", "NomicBertForSequenceClassification", BERT, {"num_labels": 3}),
    Case("nomic-of-masked-lm", "NomicBertForMaskedLM", BERT),
    Case("deberta-v3", "DebertaV2Model", DEBERTA),
    Case("deberta-defaults", "DebertaV2Model", BERT),
    Case("deberta-absolute", "DebertaV2Model", BERT, {"pos_att_type": "c2p|p2c", "type_vocab_size": 3}),
    Case("deberta-distances", "DebertaV2Model", DEBERTA, {"position_buckets": -1, "max_relative_positions": 4}),
    Case("deberta-own-keys", "DebertaV2Model", DEBERTA, {"share_att_key": False, "norm_rel_ebd": "none"}),
    Case("deberta-c2p", "DebertaV2Model", DEBERTA, {"share_att_key": False, "pos_att_type": "c2p"}),
    Case("deberta-p2c", "DebertaV2Model", DEBERTA, {"share_att_key": False, "pos_att_type": ["p2c"]}),
    Case("deberta-no-type", "DebertaV2Model", DEBERTA, {"pos_att_type": None, "position_biased_input": True}),
    Case("deberta-buckets", "DebertaV2Model", DEBERTA, {"position_buckets": 5, "max_relative_positions": 7}),
    Case(
        "deberta-narrow",
        "DebertaV2Model",
        DEBERTA,
        {"embedding_size": 10, "type_vocab_size": 2, "position_biased_input": True, "hidden_act": "gelu_new"},
    ),
    Case("deberta-convolution", "DebertaV2Model", DEBERTA, {"conv_kernel_size": 3, "conv_act": "gelu"}),
    Case("deberta-convolution-5", "DebertaV2Model", BERT, {"conv_kernel_size": 5}),
    Case("deberta-classify-3", "DebertaV2ForSequenceClassification", DEBERTA, {"num_labels": 3}),
    Case(
        "deberta-classify-tanh",
        "DebertaV2ForSequenceClassification",
        DEBERTA,
        {"num_labels": 1, "pooler_hidden_act": "tanh", "layer_norm_eps": 0.01},
    ),
    Case("deberta-of-masked-lm", "DebertaV2ForMaskedLM", DEBERTA),
    Case("gte", "GteModel", BERT, {"type_vocab_size": 2}),
    Case("gte-pooler", "GteModel", BERT, {"pooler": True, "hidden_act": "silu", "type_vocab_size": 0}),
    Case(
        "gte-scaled",
        "GteModel",
        BERT,
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}, "layer_norm_eps": 0.01},
    ),
    Case("gte-classify-3", "GteForSequenceClassification", BERT, {"num_labels": 3}),
    Case("gte-of-masked-lm", "GteForMaskedLM", BERT),
    Case("camembert-of-masked-lm", "CamembertForMaskedLM", BERT),
    Case("electra-of-masked-lm", "ElectraForMaskedLM", ELECTRA),
    Case("electra-of-pretraining", "ElectraForPreTraining", ELECTRA),
    Case("albert-of-masked-lm", "AlbertForMaskedLM", ALBERT),
    Case("albert-of-pretraining", "AlbertForPreTraining", ALBERT),
    Case("mpnet-of-masked-lm", "MPNetForMaskedLM", BERT),
    Case("bert-of-masked-lm", "BertForMaskedLM", BERT),
    Case("roberta-of-masked-lm", "RobertaForMaskedLM", BERT),
    Case("distilbert-of-masked-lm", "DistilBertForMaskedLM", DISTIL),
    *(Case(*case) for case in DECODER_CASES),
]


def auto_class(model_class: str) -> Any:
    if model_class.endswith("ForSequenceClassification"):
        return AutoModelForSequenceClassification
    return AutoModelForCausalLM if model_class.endswith(("LMHeadModel", "ForCausalLM")) else AutoModel


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_all_outputs_equal_transformers(case: Case, tmp_path: Path, device: str, rng: np.random.Generator) -> None:
    reference = hf.make(case.model_class, **{**case.base, **case.options})
    model = auto_class(case.model_class).from_pretrained(hf.save(reference, tmp_path), device=device)
    pad = reference.config.pad_token_id
    low = 0 if pad is None else pad + 1
    ids = rng.integers(low, reference.config.vocab_size, (1, 9))
    inputs: dict[str, Any] = {}
    if model.config.type_vocab_size:
        inputs["token_type_ids"] = rng.integers(0, model.config.type_vocab_size, ids.shape)
    pretrained = case.model_class.endswith(("ForMaskedLM", "ForPreTraining"))
    backbone = reference.base_model if pretrained else reference
    expected = hf.call(backbone, ids, **inputs)
    found = model(ids, output_hidden_states=True, output_attentions=True, **inputs)
    scale = max(float(np.abs(hf.array(state)).max()) for state in expected.hidden_states)
    pairs = list(zip(found.hidden_states, expected.hidden_states, strict=True))
    pairs += list(zip(found.attentions, expected.attentions, strict=True))
    name = "last_hidden_state" if hasattr(found, "last_hidden_state") else "logits"
    pairs.append((getattr(found, name), expected[name]))
    if getattr(expected, "pooler_output", None) is not None and not pretrained:
        pairs.append((found.pooler_output, expected.pooler_output))
    if case.model_class.startswith(("DebertaV2", *ROUNDED)):  # DeBERTa's position tables are float32 in every executor
        pairs = [(ours.astype(np.float32), theirs) for ours, theirs in pairs]
    for ours, theirs in pairs:
        assert_close(ours, hf.array(theirs), model.traced, longest=9, scale=scale)
    fast = getattr(model(ids, **inputs), name)
    assert_close(fast.astype(pairs[0][0].dtype), hf.array(expected[name]), model.traced, longest=9, scale=scale)
    if case.options.get("pooler") is False:
        assert found.pooler_output is None


def test_xl_configs_trace() -> None:
    """distilgpt2 to gpt2-xl are the same model code with other numbers; tracing needs no weights."""
    from fastattn.graph.rewrites import optimize
    from fastattn.graph.tensor import Tracer, Weights
    from fastattn.models import gpt2
    from fastattn.models.names import ModelNames

    for n_layer, n_embd, n_head in ((6, 768, 12), (24, 1024, 16), (36, 1280, 20), (48, 1600, 25)):
        config = gpt2.read_config({"model_type": "gpt2", "n_layer": n_layer, "n_embd": n_embd, "n_head": n_head})
        program = gpt2.build(config, Weights(Tracer(), ModelNames(gpt2.LAYOUT, {})), "causal-lm")
        assert program.n_layer == n_layer
        assert program.weights["h.0.mlp.c_fc.weight"].shape == (4 * n_embd, n_embd)
        assert len(optimize(program).ops) == 10 * n_layer + 7
