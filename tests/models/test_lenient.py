"""Checkpoints that transformers loads also load here if no result can be wrong; a warning names unused options once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fastattn
from fastattn.api.auto import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from fastattn.errors import ConfigError, ModelNotFoundError
from fastattn.models import bert, distilbert, gpt2, registry, roberta
from fastattn.models.config import ConfigReader
from tests.reference.checkpoints import (
    BERT,
    DISTILBERT,
    GPT2,
    bert_tensors,
    distilbert_tensors,
    gpt2_tensors,
    write,
    write_bert,
)

Tensors = dict[str, NDArray[Any]]
ROBERTA: Mapping[str, Any] = {**BERT, "model_type": "roberta", "architectures": ["RobertaModel"], "pad_token_id": 1}


def roberta_tensors() -> Tensors:
    """Return the tensors of a RoBERTa without a head."""
    named = bert_tensors()
    return {name.replace("bert.", "roberta."): tensor for name, tensor in named.items() if "classifier" not in name}


FAMILIES: Mapping[str, tuple[Mapping[str, Any], Callable[[], Tensors], Any]] = {
    "gpt2": (GPT2, gpt2_tensors, AutoModelForCausalLM),
    "bert": (BERT, bert_tensors, AutoModelForSequenceClassification),
    "distilbert": (DISTILBERT, distilbert_tensors, AutoModel),
    "roberta": (ROBERTA, roberta_tensors, AutoModel),
}


def run(directory: Path, family: str, config: Mapping[str, Any] | None = None, tensors: Tensors | None = None) -> Any:
    """Return the first output of a few tokens from the numpy executor."""
    base, make, auto = FAMILIES[family]
    write(directory, base if config is None else config, make() if tensors is None else tensors)
    with auto.from_pretrained(directory, device="numpy") as model:
        return model([2, 3, 4])[0]


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("names", [["My_Own_Model"], ["LlamaForCausalLM", "Other"], ["a\nb" * 1000] * 50, [], None])
def test_architectures_that_are_not_known(
    family: str, names: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in transformers, model_type decides what is loaded."""
    expected = run(tmp_path / "a", family)
    found = run(tmp_path / "b", family, {**FAMILIES[family][0], "architectures": names})
    assert np.array_equal(found, expected)
    assert len(caplog.records) == bool(names)
    for message in messages(caplog):
        assert f"are not known; loaded as model_type '{family}'" in message
        assert len(message) < 400
        assert "\n" not in message


def test_classes_of_transformers_are_known(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("BertLMHeadModel", "BertForMaskedLM", "BertForPreTraining", "BertForTokenClassification"):
        run(tmp_path / name, "bert", {**BERT, "architectures": [name]})
    assert not caplog.records


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("outer", ["module.", "_orig_mod.", "0.auto_model.", "model.encoder."])
def test_names_of_a_model_inside_another(
    family: str, outer: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = run(tmp_path / "a", family)
    inside = {f"{outer}{name}": tensor for name, tensor in FAMILIES[family][1]().items()}
    assert np.array_equal(run(tmp_path / "b", family, None, inside), expected)
    assert messages(caplog) == [f"{tmp_path / 'b'}: the tensor names begin with {outer!r}; this prefix is ignored"]


def test_such_files_are_quantized_too(tmp_path: Path) -> None:
    config = {**GPT2, "vocab_size": 131, "n_embd": 96}
    tensors = gpt2_tensors(config)
    renamed = {f"module.{'lm_head.weight' if name == 'wte.weight' else name}": t for name, t in tensors.items()}
    folder = fastattn.quantize(write(tmp_path / "a", config, renamed), tmp_path / "b", dtype="int8")
    write(tmp_path / "c", config, tensors)
    with (
        AutoModelForCausalLM.from_pretrained(folder) as small,
        AutoModelForCausalLM.from_pretrained(tmp_path / "c", dtype="int8") as expected,
    ):
        assert np.array_equal(small([1, 2, 3]).logits, expected([1, 2, 3]).logits)


def test_two_models_in_one_file_are_not_guessed_at(tmp_path: Path) -> None:
    both = {f"{outer}.{name}": tensor for outer in ("query", "text") for name, tensor in bert_tensors().items()}
    with pytest.raises(ConfigError, match=r"found none; it has 'query\.bert\.embeddings\.word_embeddings\.weight' and"):
        AutoModel.from_pretrained(write(tmp_path, BERT, both), device="numpy")


@pytest.mark.parametrize(
    ("family", "embeddings", "head"),
    [
        ("gpt2", "wte.weight", "lm_head.weight"),
        ("bert", "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
        ("roberta", "roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
        ("distilbert", "embeddings.word_embeddings.weight", "vocab_projector.weight"),
    ],
)
def test_tied_weights_under_either_name(
    family: str, embeddings: str, head: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, make, _ = FAMILIES[family]
    expected = run(tmp_path / "a", family)
    tensors = make()
    renamed = {head if name == embeddings else name: tensor for name, tensor in tensors.items()}
    assert np.array_equal(run(tmp_path / "b", family, None, renamed), expected)
    both = {**tensors, head: tensors[embeddings].copy()}
    assert np.array_equal(run(tmp_path / "c", family, None, both), expected)
    assert not caplog.records
    with pytest.raises(ConfigError, match="expected this tensor in the checkpoint"):
        run(tmp_path / "d", family, {**config, "tie_word_embeddings": False}, renamed)


HARMLESS: Mapping[str, tuple[str, ...]] = {
    "gpt2": ("h.0.attn.bias", "h.1.attn.masked_bias", "score.weight", "multiple_choice_head.summary.weight"),
    "bert": ("bert.embeddings.position_ids", "cls.predictions.bias", "cls.seq_relationship.weight", "qa_outputs.bias"),
    "roberta": ("roberta.embeddings.position_ids", "lm_head.bias", "lm_head.dense.weight", "classifier.dense.weight"),
    "distilbert": ("vocab_transform.weight", "vocab_layer_norm.bias", "vocab_projector.bias", "pre_classifier.weight"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_without_use_are_named_once(family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected, tensors = run(tmp_path / "a", family), FAMILIES[family][1]()
    known = {name: np.zeros(2, np.float32) for name in HARMLESS[family]}
    assert np.array_equal(run(tmp_path / "b", family, None, {**tensors, **known}), expected)
    assert not caplog.records
    extra = {"slot_classifier.linear.weight": np.zeros(2, np.float32), "x\n" * 1000: np.zeros(2, np.float32)}
    extra |= {f"adapter.{i}": np.zeros(1, np.float32) for i in range(50)}
    assert np.array_equal(run(tmp_path / "c", family, None, {**tensors, **extra}), expected)
    (message,) = messages(caplog)
    assert "does not use the tensors 'slot_classifier.linear.weight', 'x\\nx" in message
    assert message.endswith("and 44 more")
    assert len(message) < 1000
    assert "\n" not in message


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_without_weights_is_an_error(family: str, tmp_path: Path) -> None:
    """As in transformers: the model would be another one without its adapter."""
    run(tmp_path, family)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(ModelNotFoundError, match=r"adapter_model\.safetensors: expected the weights of the adapter"):
        FAMILIES[family][2].from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match=r"found neither; found adapter_config\.json: load the model that"):
        FAMILIES[family][2].from_pretrained(tmp_path)


def test_fewer_layers_than_the_file_has(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path / "a", "gpt2", {**GPT2, "n_layer": 1})
    run(tmp_path / "b", "bert", {**BERT, "num_hidden_layers": 1})
    first, second = messages(caplog)
    assert "does not use the tensors 'h.1.ln_1.weight'" in first
    assert "'bert.encoder.layer.1.attention.self.query.weight'" in second


def test_the_common_names_of_options(tmp_path: Path) -> None:
    for family, names in (("gpt2", gpt2.NAMES), ("distilbert", distilbert.NAMES)):
        config, expected = dict(FAMILIES[family][0]), run(tmp_path / family, family)
        for common, own in names.items():
            if own in config:
                config[common] = config.pop(own)
        assert np.array_equal(run(tmp_path / "x", family, config), expected)


def test_the_right_class_is_named(tmp_path: Path) -> None:
    write_bert(tmp_path / "bert")
    with pytest.raises(ConfigError, match="use AutoModel or AutoModelForSequenceClassification"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "bert")
    write(tmp_path / "gpt2", GPT2, gpt2_tensors())
    with pytest.raises(ConfigError, match=r"no classification head .* AutoModel or"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "gpt2")
    tensors = {name: tensor for name, tensor in bert_tensors().items() if "pooler" not in name}
    write(tmp_path / "tokens", {**BERT, "architectures": ["BertForTokenClassification"]}, tensors)
    with pytest.raises(
        ConfigError, match=r"pooler\.dense.*architectures of config.json is \['BertForTokenClassification"
    ):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "tokens")


def test_unknown_options_are_one_short_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A value of megabytes or with line ends cannot fill or forge a log."""
    odd = {f"k{i}\nINFO forged": "v" * 100_000 for i in range(100)}
    with caplog.at_level(logging.WARNING, "fastattn"):
        run(tmp_path, "gpt2", {**GPT2, "rotary_dim": 4, **odd})
    (message,) = messages(caplog)
    assert "unknown options are ignored: " in message
    assert len(message) < 3000
    assert "\n" not in message
    assert "more" in message


def test_ids_without_tokens_are_one_short_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path, "gpt2", {**GPT2, "eos_token_id": [3, *range(100, 100_000)]})
    (message,) = messages(caplog)
    assert "eos_token_id = [100, 101," in message
    assert len(message) < 300


LABELS: list[dict[str, Any]] = [
    {}, {"num_labels": 3}, {"num_labels": 1}, {"id2label": {"0": "a", "1": "b", "2": "c"}},
    {"id2label": {"0": "a", "1": "b"}, "num_labels": 2}, {"id2label": {"0": "a", "1": "b"}, "num_labels": 3},
    {"id2label": {"0": "a", "1": "b", "2": "c"}, "num_labels": 2}, {"label2id": {"x": 0, "y": 1, "z": 2}},
    {"num_labels": 3, "label2id": {"x": 0, "y": 1, "z": 2}}, {"id2label": {"0": "a", "1": "a"}},
    {"id2label": {"1": "b", "0": "a"}, "label2id": {"b": 1, "a": 0}}, {"id2label": {}}, {"id2label": None},
    {"id2label": {"0": "a", "1": "b"}, "label2id": {"A": 0, "B": 1}},
]  # fmt: skip
NAMES: list[tuple[str, ...]] = [
    ("LABEL_0", "LABEL_1"), ("LABEL_0", "LABEL_1", "LABEL_2"), ("LABEL_0",), ("a", "b", "c"), ("a", "b"),
    ("LABEL_0", "LABEL_1", "LABEL_2"), ("LABEL_0", "LABEL_1"), ("LABEL_0", "LABEL_1"),
    ("LABEL_0", "LABEL_1", "LABEL_2"), ("a", "a"), ("a", "b"), (), ("LABEL_0", "LABEL_1"), ("a", "b"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "names"), list(zip(LABELS, NAMES, strict=True)), ids=range(len(LABELS)))
def test_labels(options: dict[str, Any], names: tuple[str, ...], caplog: pytest.LogCaptureFixture) -> None:
    config = bert.read_config({**BERT, "id2label": None, **options})
    assert config.labels == names
    assert config.num_labels == len(names)
    assert dict(config.id2label) == dict(enumerate(names))
    differ = options.get("id2label") and options.get("num_labels", len(names)) != len(options["id2label"])
    assert len(caplog.records) == bool(differ)


@pytest.mark.torch
@pytest.mark.parametrize("options", LABELS, ids=range(len(LABELS)))
def test_labels_are_those_of_transformers(options: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertConfig.from_dict(dict(options))
    ours = bert.read_config({**BERT, "id2label": None, **options})
    assert ours.num_labels == theirs.num_labels
    assert dict(ours.id2label) == theirs.id2label
    if theirs.label2id is not None:
        assert dict(ours.label2id) == theirs.label2id


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        ({"0": "a", "2": "c"}, ("a", "LABEL_1")), ({"1": "a", "2": "b"}, ("LABEL_0", "a")),
        ({"0": "a", "1": None}, ("a", "LABEL_1")), ({"0": 1, "1": 2.5}, ("1", "2.5")),
    ],
)  # fmt: skip
def test_classes_without_names(names: Any, labels: tuple[str, ...], caplog: pytest.LogCaptureFixture) -> None:
    """transformers loads them, and fails when it predicts such a class."""
    assert bert.read_config({**BERT, "id2label": names}).labels == labels
    assert len(caplog.records) == any(label.startswith("LABEL") for label in labels)


@pytest.mark.parametrize(
    "options",
    [
        {"id2label": ["a"]}, {"id2label": {"x": "a"}}, {"id2label": {"0": ["a"]}}, {"num_labels": "3"},
        {"num_labels": -1}, {"num_labels": 10**9}, {"label2id": ["a"]}, {"label2id": {"a": "b"}},
        {"label2id": {"a": "9" * 1000}}, {"id2label": {"9" * 1000: "a"}}, {"problem_type": 7},
    ],
)  # fmt: skip
def test_invalid_labels(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))) as caught:
        bert.read_config({**BERT, **options})
    assert len(str(caught.value)) < 300


def test_problem_types(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert bert.read_config({**BERT, "problem_type": "regression"}).problem_type == "regression"
    assert bert.read_config({**BERT, "problem_type": "multi_label"}).problem_type is None
    assert "problem_type = 'multi_label' is ignored" in caplog.text
    one = {**BERT, "id2label": {"0": "a"}, "problem_type": "single_label_classification"}
    write(tmp_path, one, bert_tensors(one))
    with pytest.raises(ConfigError, match=r"problem_type: expected .* for one class"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path, device="numpy")
    with AutoModelForSequenceClassification.from_pretrained(
        tmp_path, device="numpy", problem_type="regression"
    ) as model:
        assert model.config.problem_type == "regression"


DEFAULTS = [
    *("GPT2", "Bert", "Roberta", "XLMRoberta", "DistilBert", "Camembert"),
    *("Electra", "Albert", "MPNet", "ModernBert", "NomicBert", "DebertaV2"),
]


@pytest.mark.torch
@pytest.mark.parametrize("family", DEFAULTS)
def test_defaults_are_those_of_transformers(family: str) -> None:
    """For a config.json that omits an option, and one that sets it to null."""
    transformers = pytest.importorskip("transformers")
    theirs = getattr(transformers, f"{family}Config")()
    read: Any = registry.FAMILIES[theirs.model_type].read_config
    ours = read({"model_type": theirs.model_type})
    for key in (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings",
        "pad_token_id", "bos_token_id", "eos_token_id", "num_labels", "id2label", "label2id", "problem_type",
        "model_type", "output_hidden_states", "output_attentions",
    ):  # fmt: skip
        assert getattr(ours, key) == getattr(theirs, key), key
    ids = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    if family in ("Roberta", "XLMRoberta", "Camembert"):  # positions start after the padding id, so theirs fails
        with pytest.raises(ConfigError, match="pad_token_id"):
            read({"model_type": theirs.model_type, **ids})
        del ids["pad_token_id"]
    null = read({"model_type": theirs.model_type, **ids})
    assert {key: getattr(null, key) for key in ids} == ids
    assert read({"model_type": theirs.model_type, "vocab_size": 1}).eos_token_id is None


def test_a_family_s_own_names_of_options() -> None:
    reader = ConfigReader({"n_embd": 7, "hidden_size": 12}, "GPT-2", gpt2.NAMES)
    assert reader.size("n_embd") == 12  # as in transformers
    assert reader.unused() == []


ODD_VALUES: list[Any] = [
    "x" * 200_000, "\ud800", "a\nb", [["x" * 200_000]], {"k" * 200_000: 1}, 10**300, -1, 1e300, True, [], {}, None,
    ["\ud800"] * 1000, {"\ud800": "\ud800"}, {"0": "\ud800"},
]  # fmt: skip


def refusal(read: Any, base: Mapping[str, Any], key: str, value: Any) -> str:
    """Return the ConfigError message for a value; "" if it is accepted."""
    try:
        read({**base, key: value})
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("family", FAMILIES)
def test_any_value_of_any_option(family: str, caplog: pytest.LogCaptureFixture) -> None:
    """Any value is accepted, or rejected in one short line that names the option."""
    base = FAMILIES[family][0]
    read: Any = {"gpt2": gpt2, "bert": bert, "distilbert": distilbert, "roberta": roberta}[family].read_config
    keys = {*base, "id2label", "label2id", "num_labels", "problem_type", "pad_token_id", "eos_token_id", "auto_map"}
    keys |= {
        "is_decoder",
        "pruned_heads",
        "tie_word_embeddings",
        "output_attentions",
        "hidden_act",
        "activation",
        "what",
    }
    keys |= {"position_embedding_type", "return_dict", "layer_norm_eps", "layer_norm_epsilon", "activation_function"}
    refused = [(key, text) for key in sorted(keys) for value in ODD_VALUES if (text := refusal(read, base, key, value))]
    assert len(refused) > 10 * len(base)
    for key, text in refused:
        assert key in text or key in ("hidden_size", "dim", "n_embd")
        assert len(text) < 500
        assert text.isprintable()
    for message in messages(caplog):
        assert len(message) < 2500
        assert message.isprintable()
