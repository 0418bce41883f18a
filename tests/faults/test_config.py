"""Faults 32 to 40: config.json that is broken, requires unsupported features, or does not fit the tensors."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn
from fastattn.api.auto import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from fastattn.api.causal_lm import CausalLM
from fastattn.bench.run import open_model
from fastattn.checkpoint import open_checkpoint
from fastattn.errors import ConfigError, InputError
from fastattn.models.config import HARMLESS, REQUIRED
from fastattn.models.registry import BuiltModel, build
from fastattn.models.tasks import Task
from tests.reference.checkpoints import BERT, GPT2, bert_tensors, gpt2_tensors, write

DISTIL = {
    "model_type": "distilbert", "vocab_size": 31, "dim": 12, "n_layers": 2, "n_heads": 3, "hidden_dim": 20,
    "max_position_embeddings": 16,
}  # fmt: skip
TASKS: dict[str, Task] = {"gpt2": "causal-lm", "bert": "sequence-classification", "distilbert": "encoder"}
TASKS["roberta"] = "encoder"


def load(directory: Path, config: Any, tensors: Any = None, task: Task | None = None) -> BuiltModel:
    """Do everything before the weights are read."""
    if tensors is None:
        tensors = bert_tensors() if isinstance(config, dict) and config.get("model_type") == "bert" else gpt2_tensors()
    checkpoint = open_checkpoint(write(directory, config, tensors))
    return build(checkpoint.config, checkpoint.tensors, task or TASKS[str(checkpoint.config.get("model_type", "gpt2"))])


def refused(directory: Path, config: Any, tensors: Any = None, task: Task | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(directory, config, tensors, task)
    return str(caught.value)


def run(directory: Path, tensors: Any, config: Any = GPT2) -> np.ndarray[Any, Any]:
    """Return the logits of a few tokens from the numpy executor."""
    with AutoModelForCausalLM.from_pretrained(write(directory, config, tensors), device="numpy") as model:
        return np.asarray(model([1, 2, 3]).logits)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"7", b'"gpt2"', b"null", b"{}x", b"\xff{}", b'{"a":1,"a":2}', b'{"layer_norm_epsilon":NaN}',
     b'{"a":' + b"[" * 10**5],
)  # fmt: skip
def test_fault_32_config_is_not_a_json_object(tmp_path: Path, text: bytes) -> None:
    assert "config.json" in refused(tmp_path, text)


def test_fault_32_config_missing(tmp_path: Path) -> None:
    write(tmp_path, GPT2, gpt2_tensors())
    (tmp_path / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"config\.json"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("weights", ["none", "pytorch_model.bin", "model.safetensors"])
def test_fault_32_another_architecture_is_named_first(tmp_path: Path, weights: str) -> None:
    """Whatever files are next to config.json: safetensors would not help."""
    config = {"model_type": "rwkv", "architectures": ["RwkvForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    if weights != "none":
        (tmp_path / weights).write_bytes(b"")
    out = tmp_path / "out"
    for call in (
        lambda: AutoModelForCausalLM.from_pretrained(tmp_path),
        lambda: fastattn.quantize(tmp_path, out, dtype="int8"),
        lambda: fastattn.compare_dtypes(tmp_path),
        lambda: open_model(tmp_path),
    ):
        with pytest.raises(ConfigError, match=r"architectures \['RwkvForCausalLM'\] of model_type 'rwkv'"):
            call()


def test_fault_32_generation_config(tmp_path: Path) -> None:
    """Its end-of-text ids override those of config.json; if broken, it is rejected like config.json."""
    file = write(tmp_path, GPT2, gpt2_tensors()) / "generation_config.json"
    file.write_text('{"eos_token_id": [3, 5], "bos_token_id": null}')
    with AutoModelForCausalLM.from_pretrained(tmp_path, device="numpy") as model:
        assert (model.bos_token_id, model.eos_token_ids) == (0, (3, 5))
    for text in ("{", "[]", '{"eos_token_id": "x"}', '{"eos_token_id": [-1]}', '{"eos_token_id": true}'):
        file.write_text(text)
        with pytest.raises(ConfigError):
            AutoModelForCausalLM.from_pretrained(tmp_path, device="numpy")


def test_fault_35_special_ids_that_no_token_has(tmp_path: Path, device: str, caplog: pytest.LogCaptureFixture) -> None:
    """transformers loads them, and GPT2Config(vocab_size=31) has two; only an empty prompt would need one."""
    config = {**GPT2, "bos_token_id": 31, "eos_token_id": [50256, 30], "pad_token_id": -1}
    with caplog.at_level(logging.WARNING, "fastattn"):
        model = AutoModelForCausalLM.from_pretrained(write(tmp_path, config, gpt2_tensors()), device=device)
    for text in ("bos_token_id = 31", "eos_token_id = 50256", "pad_token_id = -1"):
        assert f"{text} is ignored, vocab_size is 31" in caplog.text
    with model:
        assert (model.bos_token_id, model.eos_token_ids, model.config.pad_token_id) == (None, (30,), None)
        assert model.generate([[]], max_new_tokens=1)[0][0] == 30
    write(tmp_path, {**config, "eos_token_id": 31}, gpt2_tensors())
    with AutoModelForCausalLM.from_pretrained(tmp_path, device=device) as model:
        assert len(model.generate([1, 2], max_new_tokens=3)) == 5
        with pytest.raises(InputError, match=r"^input_ids\[0\]: .* no bos or eos id to start from"):
            model.generate([[]], max_new_tokens=1)
    bert = {**BERT, "pad_token_id": 31, "bos_token_id": 31}
    assert load(tmp_path, bert, bert_tensors()).config.pad_token_id is None


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"guidance_scale": 1.5, "penalty_alpha": 0.6, "repetition_penalty": 1.2}, ["guidance_scale", "penalty_alpha"]),
        ({"top_k": -5, "temperature": "a", "top_p": 1.0}, ["top_k", "temperature"]),
        ({"do_sample": False, "top_k": 5, "temperature": 0.7}, []),
        ({"eos_token_id": 3, "pad_token_id": 3, "transformers_version": "4.40.0", "use_cache": True}, []),
        ({"suppress_tokens": [], "num_beams": 1, "max_new_tokens": None, "guidance_scale": 1.0}, []),
    ],
)
def test_fault_32_generation_options_that_are_not_applied(
    options: dict[str, Any], named: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The warning names them once per load.

    There is no warning about options that change nothing, or for a model that does not generate.
    """
    write(tmp_path, GPT2, gpt2_tensors())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 3, **options}))
    with caplog.at_level(logging.WARNING, "fastattn"), AutoModel.from_pretrained(tmp_path, device="numpy"):
        assert not caplog.records
        with AutoModelForCausalLM.from_pretrained(tmp_path, device="numpy") as model:
            assert len(np.asarray(model.generate([1, 2], max_new_tokens=3, eos_token_id=-1))) == 5
    assert len(caplog.records) == bool(named)
    for record in caplog.records:
        said = record.getMessage().partition("not applied: ")[2].partition(";")[0]
        assert [part.partition("=")[0] for part in said.split(", ")] == named


@pytest.mark.parametrize(
    "names",
    [
        {"architectures": ["RwkvForCausalLM"], "model_type": None},
        {"architectures": ["GPT2LMHeadModel", "Other"], "model_type": None},
        {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt3"},
        {"architectures": "GPT2LMHeadModel"},
        {"architectures": [7]},
        {"architectures": None, "model_type": "rwkv"},
        {"architectures": [], "model_type": 7},
        {"architectures": None, "model_type": None},
        {"architectures": ["x" * 200_000], "model_type": "y" * 200_000},
    ],
)
def test_fault_32_architecture_unknown(tmp_path: Path, names: dict[str, Any]) -> None:
    message = refused(tmp_path, {**GPT2, **names}, task="causal-lm")
    assert "gpt2" in message.lower() or "a list of names" in message
    assert "\n" not in message
    assert len(message) < 600


def test_fault_32_architectures_or_model_type_will_do(tmp_path: Path) -> None:
    for i, left_out in enumerate(("architectures", "model_type")):
        config = {key: value for key, value in GPT2.items() if key != left_out}
        assert load(tmp_path / str(i), config, task="causal-lm").config.model_type == "gpt2"


def test_fault_32_a_task_that_the_family_does_not_have(tmp_path: Path) -> None:
    assert "causal-lm" in refused(tmp_path, BERT, task="causal-lm")


@pytest.mark.parametrize(
    ("config", "key", "values"),
    [
        (GPT2, "n_head", [0, -1, 5, 2**31, 3.0, "3", True]),
        (GPT2, "n_embd", [0, -12, 2**31, 13]),
        (GPT2, "n_layer", [0, -1, 10**9, 2**31, 1.5]),
        (GPT2, "n_positions", [0, -1, 2**31]),
        (GPT2, "n_inner", [0, -1, 2**31, "x"]),
        (GPT2, "vocab_size", [0, -1, 2**31, [31]]),
        (BERT, "num_attention_heads", [0, 7, -3]),
        (BERT, "hidden_size", [0, 14, 2**40]),
        (BERT, "num_hidden_layers", [0, 10**9]),
        (BERT, "type_vocab_size", [0, -1]),
        (BERT, "intermediate_size", [0, -20]),
        (DISTIL, "n_heads", [0, 5]),
        (DISTIL, "dim", [0, 2**31]),
        (DISTIL, "n_layers", [10**9]),
    ],
)
def test_fault_33_sizes(tmp_path: Path, config: dict[str, Any], key: str, values: list[Any]) -> None:
    for i, value in enumerate(values):
        assert (
            key in refused(tmp_path / str(i), {**config, key: value})
            or "head" in key
            or key in ("n_embd", "hidden_size")
        )


@pytest.mark.parametrize(
    ("config", "key", "value", "tensor"),
    [
        (GPT2, "n_embd", 24, "wte.weight"),
        (GPT2, "n_positions", 17, "wpe.weight"),
        (GPT2, "n_inner", 47, "h.0.mlp.c_fc.weight"),
        (BERT, "hidden_size", 24, "bert.embeddings.word_embeddings.weight"),
        (BERT, "intermediate_size", 21, "bert.encoder.layer.0.intermediate.dense.weight"),
        (BERT, "max_position_embeddings", 15, "bert.embeddings.position_embeddings.weight"),
        (BERT, "type_vocab_size", 3, "bert.embeddings.token_type_embeddings.weight"),
        (BERT, "id2label", {"0": "a"}, "classifier.weight"),
    ],
)
def test_fault_34_shapes_do_not_fit(tmp_path: Path, config: dict[str, Any], key: str, value: Any, tensor: str) -> None:
    message = refused(tmp_path, {**config, key: value})
    assert message.startswith(f"{tensor}: expected shape [")
    assert ", got [" in message


def test_fault_34_layers_that_are_not_there(tmp_path: Path) -> None:
    assert "h.2.ln_1.weight" in refused(tmp_path, {**GPT2, "n_layer": 3})


def test_fault_34_a_head_that_is_not_there(tmp_path: Path) -> None:
    """transformers would create a random one."""
    tensors = {name: tensor for name, tensor in bert_tensors().items() if not name.startswith("classifier")}
    assert "classifier.weight" in refused(tmp_path, BERT, tensors)


@pytest.mark.parametrize("size", [30, 32, 50257])
def test_fault_35_vocab_size_is_not_the_table(tmp_path: Path, size: int) -> None:
    message = refused(tmp_path, {**GPT2, "vocab_size": size})
    assert message.startswith(f"wte.weight: expected shape [{size}, 12] from config.json, got [31, 12]")


def test_fault_35_tokenizer_with_more_tokens(tmp_path: Path) -> None:
    """Its other ids work; an id that the model does not have is an error that names the token and the cause."""
    tokenizers = pytest.importorskip("tokenizers")
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(31)}, unk_token="w0"))
    raw.add_special_tokens(["[PAD]"])
    raw.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    directory = write(tmp_path, GPT2, gpt2_tensors())
    with AutoModelForCausalLM.from_pretrained(directory, device="numpy") as model:
        with pytest.raises(InputError, match=r"^input_ids\[1\]: expected a token id from 0 to 30, got 31$"):
            model([1, 31])
        assert model.tokenizer is not None
        assert model.tokenizer.id_limit == 32
        assert np.asarray(model([1, 30]).logits).shape == (2, 31)
        with pytest.raises(InputError) as caught:
            model([1, 31])
    assert str(caught.value) == (
        "input_ids[1]: expected a token id from 0 to 30, got 31; it is the tokenizer's token '[PAD]': the tokenizer "
        "has ids up to 31, but vocab_size of config.json is 31"
    )


def test_fault_36_tied_or_not(tmp_path: Path) -> None:
    tensors = gpt2_tensors()
    wte = tensors["wte.weight"]
    tied = run(tmp_path / "absent", tensors)
    same = load(tmp_path / "same", GPT2, {**tensors, "lm_head.weight": wte.copy()})
    assert "lm_head.weight" not in same.program.weights  # stored once
    other = {**tensors, "lm_head.weight": wte * 2}
    assert "lm_head.weight" in load(tmp_path / "other", GPT2, other).program.weights
    assert np.array_equal(run(tmp_path / "run", other), tied * 2)


def test_fault_36_untied_without_a_head(tmp_path: Path) -> None:
    """transformers would create a random head, and wte contradicts the config."""
    untied, tensors = {**GPT2, "tie_word_embeddings": False}, gpt2_tensors()
    message = refused(tmp_path / "no", untied, tensors, "causal-lm")
    assert message.startswith("lm_head.weight: expected this tensor in the checkpoint")
    assert load(tmp_path / "no", untied, tensors, "encoder").program.weights["wte.weight"].use == "table"
    same = load(tmp_path / "same", untied, {**tensors, "lm_head.weight": tensors["wte.weight"].copy()})
    assert "lm_head.weight" not in same.program.weights


def test_fault_37_orientation_is_pinned_by_the_architecture(tmp_path: Path) -> None:
    """attn.c_proj is square: a checkpoint with its transpose gives other numbers, and no shape reveals it.

    The golden test is test_gpt_nano_sort. This test checks that a transposed c_attn, which is not square, is rejected.
    """
    tensors = gpt2_tensors()
    turned = {**tensors, "h.0.attn.c_proj.weight": tensors["h.0.attn.c_proj.weight"].T.copy()}
    assert not np.array_equal(run(tmp_path / "a", tensors), run(tmp_path / "b", turned))
    turned = {**tensors, "h.0.attn.c_attn.weight": tensors["h.0.attn.c_attn.weight"].T.copy()}
    assert "expected shape [12, 36]" in refused(tmp_path / "c", GPT2, turned)


@pytest.mark.parametrize("value", [0, -1e-5, 1.0, "1e-5", None, True, 10**400], ids=lambda value: str(value)[:9])
@pytest.mark.parametrize(("config", "key"), [(GPT2, "layer_norm_epsilon"), (BERT, "layer_norm_eps")])
def test_fault_38_epsilon(tmp_path: Path, config: dict[str, Any], key: str, value: Any) -> None:
    assert key in refused(tmp_path, {**config, key: value})


def test_fault_38_epsilon_nan(tmp_path: Path) -> None:
    for i, word in enumerate(("NaN", "Infinity", "1e999")):
        text = json.dumps(GPT2)[:-1] + f', "layer_norm_epsilon": {word}}}'
        refused(tmp_path / str(i), text.encode())


@pytest.mark.parametrize("value", ["quick_gelu", "mish", "GELU", 7, None, ["gelu"]])
@pytest.mark.parametrize(
    ("config", "key"), [(GPT2, "activation_function"), (BERT, "hidden_act"), (DISTIL, "activation")]
)
def test_fault_38_activation_unknown(tmp_path: Path, config: dict[str, Any], key: str, value: Any) -> None:
    message = refused(tmp_path, {**config, key: value})
    assert key in message
    assert "gelu_new" in message


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [
        (GPT2, "scale_attn_by_inverse_layer_idx", True),
        (GPT2, "reorder_and_upcast_attn", True),
        (GPT2, "scale_attn_by_inverse_layer_idx", 1),
        (GPT2, "add_cross_attention", True),
        (GPT2, "is_encoder_decoder", True),
        (GPT2, "scale_attn_weights", "yes"),
        (BERT, "position_embedding_type", "relative_key"),
        (BERT, "is_decoder", True),
        (BERT, "add_cross_attention", True),
        (BERT, "pruned_heads", {"0": [1]}),
        (BERT, "quantization_config", {"bits": 4}),
        (DISTIL, "is_decoder", True),
        ({**BERT, "model_type": "roberta", "architectures": None}, "position_embedding_type", "relative_key_query"),
    ],
)
def test_fault_38_unsupported_options_are_named(tmp_path: Path, config: dict[str, Any], key: str, value: Any) -> None:
    message = refused(tmp_path, {**config, key: value})
    assert key in message
    assert repr(value)[:40] in message


def test_fault_38_the_supported_values_pass(tmp_path: Path) -> None:
    options = {"scale_attn_by_inverse_layer_idx": False, "reorder_and_upcast_attn": False, "pruned_heads": {}}
    load(tmp_path, {**GPT2, **options, "n_inner": None, "is_decoder": False})
    assert not HARMLESS & REQUIRED.keys()


def test_fault_38_unknown_options_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fastattn"):
        load(tmp_path / "known", {**GPT2, "resid_pdrop": 0.1, "_name_or_path": "x", "torch_dtype": "float32"})
        assert not caplog.records
        load(tmp_path / "unknown", {**GPT2, "rotary_dim": 4})
    assert "rotary_dim = 4" in caplog.text


def test_fault_39_prefixes_and_old_names(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = gpt2_tensors()
    expected = run(tmp_path / "plain", tensors)
    prefixed = {f"transformer.{name}": tensor for name, tensor in tensors.items()}
    prefixed["transformer.h.0.attn.bias"] = np.ones((1, 1, 16, 16), np.uint8)
    prefixed["transformer.h.0.attn.masked_bias"] = np.float32(-1e4).reshape(())
    assert np.array_equal(run(tmp_path / "prefixed", prefixed), expected)
    assert load(tmp_path / "both", GPT2, prefixed).tensors["h.0.attn.c_attn.bias"].name.endswith("attn.c_attn.bias")

    bert = bert_tensors()
    ids = [1, 2, 3]
    with AutoModelForSequenceClassification.from_pretrained(
        write(tmp_path / "bert", BERT, bert), device="numpy"
    ) as model:
        logits = model(ids).logits
    swap = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    old = {}
    for name, tensor in bert.items():
        ending = next((end for end in swap if name.endswith(end)), "")
        old[(name[: -len(ending)] + swap[ending] if ending else name).removeprefix("bert.")] = tensor
    old["embeddings.position_ids"] = np.arange(16).reshape(1, 16)
    with AutoModelForSequenceClassification.from_pretrained(
        write(tmp_path / "old", BERT, old), device="numpy"
    ) as model:
        assert np.array_equal(model(ids).logits, logits)
    with AutoModel.from_pretrained(tmp_path / "old", device="numpy") as encoder:
        assert encoder(ids).pooler_output is not None


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("h.0.ln_1.weight", "transformer.h.0.ln_1.weight"),
        ("ln_f.weight", "ln_f.gamma"),
        ("h.1.ln_2.bias", "transformer.h.1.ln_2.beta"),
    ],
)
def test_fault_39_ambiguous_names(tmp_path: Path, name: str, twin: str) -> None:
    tensors = gpt2_tensors()
    message = refused(tmp_path, GPT2, {**tensors, twin: tensors[name] * 2})
    assert "expected one tensor, got" in message
    assert name in message
    assert twin in message


def test_fault_40_code_of_a_checkpoint_is_never_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "modeling.py").write_text("raise SystemExit")
    config = {**GPT2, "auto_map": {"AutoModelForCausalLM": "modeling.Model"}, "trust_remote_code": True}
    directory = write(tmp_path, config, gpt2_tensors())
    with (
        caplog.at_level(logging.WARNING, "fastattn"),
        AutoModelForCausalLM.from_pretrained(directory, device="numpy") as model,
    ):
        assert isinstance(model, CausalLM)
    assert "auto_map is ignored" in caplog.text
    assert "trust_remote_code is ignored" in caplog.text


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"device": "gpu"}, "device"),
        ({"dtype": "int2"}, "dtype"),
        ({"threads": 0}, "threads"),
        ({"threads": 2**40}, "threads"),
        ({"threads": 1.5}, "threads"),
    ],
)
def test_loading_options(tmp_path: Path, options: dict[str, Any], word: str) -> None:
    directory = write(tmp_path, GPT2, gpt2_tensors())
    with pytest.raises((ValueError, TypeError), match=f"^{word}: expected"):
        AutoModelForCausalLM.from_pretrained(directory, **{"device": "numpy", **options})
