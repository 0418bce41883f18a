"""Config files of code that comes with checkpoints: GTE's "new" and NomicBERT's older names.

transformers has both models. Here its weights get such a config.json, and its modules the parts that transformers does
not have.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import fastattn
from fastattn.errors import ConfigError
from fastattn.models.registry import FAMILIES, find_family
from tests.models.test_families import BERT
from tests.models.test_lenient import ODD_VALUES, refusal
from tests.reference.bounds import assert_close

pytest.importorskip("torch")
pytest.importorskip("transformers")
import torch

from tests.reference import hf

pytestmark = pytest.mark.torch

GTE = {**BERT, "type_vocab_size": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 300.0}}
NEW = {**{key: GTE[key] for key in (*BERT, "type_vocab_size")}, "model_type": "new", "rope_theta": 300.0}
HEAD_DIM = BERT["hidden_size"] // BERT["num_attention_heads"]
OLDER: dict[str, Any] = {
    "model_type": "nomic_bert",
    "architectures": ["NomicBertModel"],
    "activation_function": "swiglu",
    "n_embd": 24,
    "n_head": 3,
    "n_layer": 2,
    "n_inner": 256,
    "n_positions": 24,
    "vocab_size": 61,
    "type_vocab_size": 2,
    "layer_norm_epsilon": 1e-12,
    "qkv_proj_bias": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
}
# The other options of the files on the hub.
PUBLISHED: dict[str, Any] = {
    "attn_pdrop": 0.0,
    "causal": False,
    "dense_seq_output": True,
    "embd_pdrop": 0.0,
    "fused_bias_fc": True,
    "fused_dropout_add_ln": True,
    "initializer_range": 0.02,
    "max_trained_positions": 2048,
    "pad_vocab_size_multiple": 1,
    "parallel_block": False,
    "parallel_block_tied_norm": False,
    "prenorm": False,
    "reorder_and_upcast_attn": False,
    "resid_pdrop": 0.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "summary_type": "cls_index",
    "use_flash_attn": True,
    "use_rms_norm": False,
    "use_xentropy": True,
}
MIXED_B = 0.7


def frequencies(theta: float, factor: float, mixed_b: float | None) -> NDArray[np.float64]:
    """Compute the frequencies of kexue.fm/archives/9706 in float64."""
    i = np.arange(HEAD_DIM // 2)
    if mixed_b is None:
        return np.asarray((theta * factor) ** (-2 * i / HEAD_DIM) / factor ** (2 / HEAD_DIM))
    a = np.log(factor) / (HEAD_DIM / 2) ** mixed_b
    return np.asarray(theta ** (-2 * i / HEAD_DIM) / np.exp(a * (i + 1) ** mixed_b))


def change_rope(model: Any, values: NDArray[np.float64]) -> None:
    found = torch.tensor(values)
    model.base_model.rotary_emb.compute_default_rope_parameters = lambda config, layer_type=None: (found, 1.0)


def change_norms(model: Any) -> None:
    eps = model.config.layer_norm_eps
    for layer in model.base_model.layers:
        for name in ("post_attention_layernorm", "post_mlp_layernorm"):
            norm = torch.nn.RMSNorm(24, eps).double()
            norm.weight = getattr(layer, name).weight
            setattr(layer, name, norm)


def add_positions(model: Any) -> torch.Tensor:
    """Add a table of positions in place of rotary, and return it."""
    table = torch.randn(24, 24, dtype=torch.float64).float().double()
    change_rope(model, np.zeros(HEAD_DIM // 2))
    norm = model.base_model.embeddings.LayerNorm
    norm.register_forward_pre_hook(lambda _, inputs: (inputs[0] + table[: inputs[0].shape[1]],))
    return table


def save_new(model: Any, folder: Path, **options: Any) -> Path:
    """Save a GTE with the config.json of the code that comes with the checkpoints."""
    hf.save(model, folder)
    names = [name.replace("Gte", "New") for name in model.config.architectures]
    common = {"num_labels": model.config.num_labels, "pad_token_id": 1, "architectures": names}
    (folder / "config.json").write_text(json.dumps({**NEW, **common, **options}))
    return folder


def compare(theirs: Any, model: Any, rng: np.random.Generator, output: str = "last_hidden_state") -> None:
    """Compare a ragged batch, of which transformers gets one text at a time."""
    batch = [rng.integers(2, 61, n) for n in (1, 9, 24)]
    types = [rng.integers(0, 2, len(ids)) for ids in batch]
    found = model(batch, token_type_ids=types)[output]
    for ids, kinds, ours in zip(batch, types, found, strict=True):
        expected = hf.call(theirs, ids[None], token_type_ids=kinds[None])
        scale = max(float(np.abs(hf.array(state)).max()) for state in expected.hidden_states)
        assert_close(ours, hf.array(expected[output])[0], model.traced, longest=24, scale=scale)


@pytest.mark.parametrize(
    ("head", "auto", "output"),
    [
        ("Model", "AutoModel", "last_hidden_state"),
        ("ForMaskedLM", "AutoModelForMaskedLM", "logits"),
        ("ForSequenceClassification", "AutoModelForSequenceClassification", "logits"),
        ("ForTokenClassification", "AutoModelForTokenClassification", "logits"),
    ],
)
def test_new_equals_gte(head: str, auto: str, output: str, tmp_path: Path, device: str, rng: Any) -> None:
    theirs = hf.make(f"Gte{head}", **GTE)
    model = getattr(fastattn, auto).from_pretrained(save_new(theirs, tmp_path), device=device)
    compare(theirs, model, rng, output)


@pytest.mark.parametrize("mixed_b", [None, MIXED_B])
@pytest.mark.parametrize("factor", [1.0, 2.0, 8.0])
def test_ntk_scaling(factor: float, mixed_b: float | None, tmp_path: Path, rng: np.random.Generator) -> None:
    theirs = hf.make("GteModel", **GTE)
    scaling = {"type": "ntk", "factor": factor, **({} if mixed_b is None else {"mixed_b": mixed_b})}
    folder = save_new(theirs, tmp_path, rope_scaling=scaling)
    change_rope(theirs, frequencies(300.0, factor, mixed_b))
    compare(theirs, fastattn.AutoModel.from_pretrained(folder, device="numpy"), rng)


def test_rms_norm(tmp_path: Path, rng: np.random.Generator) -> None:
    theirs = hf.make("GteModel", **GTE)
    folder = save_new(theirs, tmp_path, layer_norm_type="rms_norm")
    drop(folder, "attn_ln.bias", "mlp_ln.bias")
    change_norms(theirs)
    compare(theirs, fastattn.AutoModel.from_pretrained(folder, device="numpy"), rng)


def drop(folder: Path, *endings: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: x for name, x in tensors.items() if not name.endswith(endings)}, folder / "model.safetensors")


def test_a_table_of_positions(tmp_path: Path, rng: np.random.Generator) -> None:
    theirs = hf.make("GteModel", **GTE)
    folder = save_new(theirs, tmp_path, position_embedding_type="absolute")
    table = add_positions(theirs)
    tensors = load_file(folder / "model.safetensors")
    tensors["new.embeddings.position_embeddings.weight"] = table.float().numpy()
    save_file(tensors, folder / "model.safetensors")
    compare(theirs, fastattn.AutoModel.from_pretrained(folder, device="numpy"), rng)


def test_separate_queries_keys_and_values(tmp_path: Path, rng: np.random.Generator) -> None:
    theirs = hf.make("GteModel", **GTE)
    folder = save_new(theirs, tmp_path, pack_qkv=False)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if "qkv_proj" in name]:
        parts = np.split(tensors.pop(name), 3)
        tensors |= {name.replace("qkv_proj", f"{x}_proj"): np.copy(part) for x, part in zip("qkv", parts, strict=True)}
    save_file(tensors, folder / "model.safetensors")
    compare(theirs, fastattn.AutoModel.from_pretrained(folder, device="numpy"), rng)


def test_heads_that_only_the_code_has(tmp_path: Path, rng: np.random.Generator) -> None:
    """Question answering: a matrix over all tokens. Multiple choice: pooler and a matrix of one row."""
    theirs = hf.make("GteModel", pooler=True, **GTE)
    folder = save_new(theirs, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors = {name if name.startswith("new.") else f"new.{name}": value for name, value in tensors.items()}
    for name, width in (("qa_outputs", 2), ("classifier", 1)):
        tensors[f"{name}.weight"] = rng.standard_normal((width, 24)).astype(np.float32)
        tensors[f"{name}.bias"] = rng.standard_normal(width).astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    ids = rng.integers(2, 61, (2, 3, 7))
    expected = hf.call(theirs, ids.reshape(6, 7))
    scale = max(float(np.abs(hf.array(state)).max()) for state in expected.hidden_states)
    with fastattn.AutoModelForMultipleChoice.from_pretrained(folder, device="numpy") as model:
        logits = hf.array(expected.pooler_output) @ tensors["classifier.weight"].T + tensors["classifier.bias"]
        assert_close(model(ids).logits, logits.reshape(2, 3), model.traced, longest=7, scale=scale)
    with fastattn.AutoModelForQuestionAnswering.from_pretrained(folder, device="numpy") as model:
        logits = hf.array(expected.last_hidden_state) @ tensors["qa_outputs.weight"].T + tensors["qa_outputs.bias"]
        found = model(ids.reshape(6, 7))
        assert_close(found.start_logits, logits[..., 0], model.traced, longest=7, scale=scale)
        assert_close(found.end_logits, logits[..., 1], model.traced, longest=7, scale=scale)


def test_the_prediction_head_has_the_activation_of_the_config(tmp_path: Path, rng: np.random.Generator) -> None:
    """transformers' GTE always has gelu there."""
    theirs = hf.make("GteForMaskedLM", **GTE, hidden_act="silu")
    folder = save_new(theirs, tmp_path, hidden_act="silu")
    state = theirs.state_dict()

    def logits(h: Any) -> Any:
        weights = {name.removeprefix("lm_head."): value for name, value in state.items() if name.startswith("lm_head.")}
        x = torch.nn.functional.silu(h @ weights["dense.weight"].T + weights["dense.bias"])
        x = torch.nn.functional.layer_norm(x, (24,), weights["layer_norm.weight"], weights["layer_norm.bias"], 1e-12)
        return x @ weights["decoder.weight"].T + weights["decoder.bias"]

    theirs.lm_head.forward = logits
    compare(theirs, fastattn.AutoModelForMaskedLM.from_pretrained(folder, device="numpy"), rng, "logits")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("logn_attention_scale", True),
        ("position_embedding_type", "relative_key"),
        ("layer_norm_type", "group_norm"),
        ("rope_scaling", {"type": "dynamic", "factor": 2.0}),
        ("rope_scaling", {"type": "ntk", "factor": 0.5}),
        ("rope_scaling", {"type": "ntk"}),
        ("rope_scaling", {"type": "ntk", "factor": 2.0, "mixed_b": -1}),
        ("rope_scaling", {"type": "ntk", "factor": 2.0, "rope_type": "linear"}),
        ("rope_theta", 1.0),
        ("rope_parameters", {"rope_type": "default"}),
        ("pack_qkv", 1),
        ("type_vocab_size", -1),
        ("hidden_act", "mish"),
        ("is_decoder", True),
    ],
)
def test_unsupported_options_of_new_are_named(key: str, value: Any) -> None:
    FAMILIES["new"].read_config(NEW)
    with pytest.raises(ConfigError, match=key):
        FAMILIES["new"].read_config({**NEW, key: value})


def test_options_of_published_gte_files(caplog: pytest.LogCaptureFixture) -> None:
    """The options of the files on the hub give no warning, except the code that is not run."""
    published = {"unpad_inputs": True, "use_memory_efficient_attention": True, "logn_attention_clip1": False,
                 "logn_attention_scale": False, "classifier_dropout": 0.0, "attention_probs_dropout_prob": 0.0,
                 "hidden_dropout_prob": 0.1, "layer_norm_type": "layer_norm", "position_embedding_type": "rope",
                 "pack_qkv": True, "rope_scaling": {"type": "ntk", "factor": 8.0}}  # fmt: skip
    with caplog.at_level(logging.WARNING, "fastattn"):
        config: Any = FAMILIES["new"].read_config({**NEW, **published})
    assert not caplog.records
    assert config.type_vocab_size == 2


def save_older(model: Any, folder: Path, **options: Any) -> Path:
    hf.save(model, folder)
    (folder / "config.json").write_text(json.dumps({**OLDER, "num_labels": model.config.num_labels, **options}))
    return folder


@pytest.mark.parametrize(
    ("head", "auto", "output"),
    [
        ("Model", "AutoModel", "last_hidden_state"),
        ("ForSequenceClassification", "AutoModelForSequenceClassification", "logits"),
        ("ForTokenClassification", "AutoModelForTokenClassification", "logits"),
    ],
)
@pytest.mark.parametrize("gate", ["swiglu", "geglu"])
def test_older_nomic_files(head: str, auto: str, output: str, gate: str, tmp_path: Path, rng: Any) -> None:
    act = {"swiglu": "silu", "geglu": "gelu"}[gate]
    theirs = hf.make(f"NomicBert{head}", **{**BERT, "intermediate_size": 256}, hidden_act=act)
    # n_inner is rounded up to a multiple of 256.
    folder = save_older(theirs, tmp_path, activation_function=gate, n_inner=200)
    compare(theirs, getattr(fastattn, auto).from_pretrained(folder, device="numpy"), rng, output)


@pytest.mark.parametrize("biases", [False, True])
def test_older_nomic_masked_language_models(biases: bool, tmp_path: Path, rng: np.random.Generator) -> None:
    """Their class is NomicBertForPreTraining. Without mlp_fc1_bias, the head has no biases."""
    theirs = hf.make("NomicBertForMaskedLM", **{**BERT, "intermediate_size": 256})
    folder = save_older(theirs, tmp_path, architectures=["NomicBertForPreTraining"], mlp_fc1_bias=biases)
    tensors = {name.replace("nomic_bert.", "bert."): x for name, x in load_file(folder / "model.safetensors").items()}
    head = theirs.cls.predictions
    with torch.no_grad():
        if biases:
            for layer in range(2):
                for name in ("fc11", "fc12"):
                    tensors[f"bert.encoder.layers.{layer}.mlp.{name}.bias"] = np.zeros(256, np.float32)
        else:
            head.transform.dense.bias.zero_()
            head.decoder.bias.zero_()
            tensors = {name: x for name, x in tensors.items() if not (name.startswith("cls") and "dense.bias" in name)}
    save_file(tensors, folder / "model.safetensors")
    compare(theirs, fastattn.AutoModelForMaskedLM.from_pretrained(folder, device="numpy"), rng, "logits")


def test_older_nomic_biases_are_added(tmp_path: Path, rng: np.random.Generator) -> None:
    """transformers' model has none: its linears get some here."""
    theirs = hf.make("NomicBertModel", **{**BERT, "intermediate_size": 256})
    folder = save_older(theirs, tmp_path, qkv_proj_bias=True, mlp_fc1_bias=True, mlp_fc2_bias=True)
    tensors = load_file(folder / "model.safetensors")
    for i, layer in enumerate(theirs.layers):
        names = {"attn.Wqkv": ("q_proj", "k_proj", "v_proj"), "attn.out_proj": ("o_proj",), "mlp.fc11": ("up_proj",),
                 "mlp.fc12": ("gate_proj",), "mlp.fc2": ("down_proj",)}  # fmt: skip
        prefix = next(name for name in tensors if f"layers.{i}.attn.Wqkv" in name).partition("attn.")[0]
        for ours, parts in names.items():
            found = []
            for part in parts:
                module = getattr(layer.self_attn if ours.startswith("attn") else layer.mlp, part)
                bias = torch.randn(module.weight.shape[0]).double()
                module.bias = torch.nn.Parameter(bias)
                found.append(bias.float().numpy())
            tensors[f"{prefix}{ours}.bias"] = np.concatenate(found)
    save_file(tensors, folder / "model.safetensors")
    compare(theirs, fastattn.AutoModel.from_pretrained(folder, device="numpy"), rng)


def test_options_of_published_nomic_files(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fastattn"):
        config: Any = FAMILIES["nomic_bert"].read_config({**OLDER, **PUBLISHED})
    assert not caplog.records
    assert config == FAMILIES["nomic_bert"].read_config(OLDER)
    padded: Any = FAMILIES["nomic_bert"].read_config({**OLDER, "pad_vocab_size_multiple": 64})
    assert (config.vocab_size, padded.vocab_size) == (61, 64)
    assert (config.hidden_size, config.max_positions, config.num_hidden_layers) == (24, 24, 2)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rotary_emb_fraction", 0.5),
        ("rotary_emb_fraction", None),
        ("rotary_emb_interleaved", True),
        ("rotary_emb_scale_base", 512),
        ("rotary_scaling_factor", 2),
        ("rotary_emb_base", None),
        ("prenorm", True),
        ("parallel_block", True),
        ("use_rms_norm", True),
        ("causal", True),
        ("activation_function", "gelu"),
        ("activation_function", None),
        ("qkv_proj_bias", None),
        ("mlp_fc1_bias", "no"),
        ("n_inner", None),
        ("layer_norm_epsilon", None),
        ("n_layer", 0),
        ("n_head", 5),
        ("type_vocab_size", 0),
        ("num_experts", 8),
        ("moe_every_n_layers", 2),
        ("num_heads_kv", 1),
        ("norm_mlp", True),
        ("scale_attn_weights", False),
    ],
)
def test_unsupported_options_of_older_nomic_files_are_named(key: str, value: Any) -> None:
    named = "rope_theta|rotary_emb_base" if key == "rotary_emb_base" else key
    with pytest.raises(ConfigError, match=named):
        FAMILIES["nomic_bert"].read_config({**OLDER, key: value})


def test_older_nomic_files_need_an_epsilon() -> None:
    """The default of the code that comes with them is that of GPT-2, so fastattn does not choose one."""
    without = {key: value for key, value in OLDER.items() if key != "layer_norm_epsilon"}
    with pytest.raises(ConfigError, match="layer_norm_epsilon: expected a number above 0 and below 1, got None"):
        FAMILIES["nomic_bert"].read_config(without)


def test_names_of_both_formats_are_refused() -> None:
    for key, value in (("n_head", 3), ("n_embd", 24)):
        with pytest.raises(ConfigError, match=key):
            FAMILIES["nomic_bert"].read_config({"model_type": "nomic_bert", **BERT, key: value})
    assert find_family(OLDER) is FAMILIES["nomic_bert"]


CONFIGS = {
    "new": NEW,
    "nomic_bert": {**OLDER, **PUBLISHED},
    "jina_bert": {**BERT, "model_type": "bert", "position_embedding_type": "alibi", "feed_forward_type": "geglu"},
}


@pytest.mark.parametrize("family", CONFIGS)
def test_any_value_of_any_option(family: str) -> None:
    """Any value is accepted, or rejected in one short line that names the option."""
    read: Any = FAMILIES[family].read_config
    base = CONFIGS[family]
    read(base)
    keys = {*base, "rope_scaling", "logn_attention_scale", "layer_norm_type", "pad_token_id", "id2label"}
    refused = [(key, text) for key in sorted(keys) for value in ODD_VALUES if (text := refusal(read, base, key, value))]
    assert len(refused) > 60
    for key, text in refused:
        # A size is refused with the option that it does not fit.
        assert key in text or key in ("hidden_size", "n_embd")
        assert len(text) < 500
        assert text.isprintable()
