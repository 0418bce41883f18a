"""Options of `from_pretrained`: accepts transformers' spellings, and rejects by name what would change something."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastattn.api.auto import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from fastattn.api.load_options import LoadOptions, read_options
from fastattn.errors import ConfigError, DTypeError, FastattnError, InputError, ModelNotFoundError
from tests.reference.checkpoints import write_bert, write_gpt2


def options(**given: Any) -> LoadOptions:
    return read_options(given)[0]


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        ({}, None), ({"dtype": "auto"}, None), ({"torch_dtype": "auto"}, None), ({"torch_dtype": None}, None),
        ({"torch_dtype": "int8"}, "int8"), ({"dtype": "torch.bfloat16"}, "bfloat16"), ({"dtype": "bf16"}, "bfloat16"),
        ({"dtype": np.float32}, "float32"), ({"dtype": np.dtype("int8")}, "int8"),
        ({"dtype": "float16"}, "float32"), ({"dtype": np.float16}, "float32"), ({"dtype": "half"}, "float32"),
        ({"dtype": "int8", "torch_dtype": "int8"}, "int8"), ({"dtype": "float16", "device": "cuda"}, "float16"),
        ({"dtype": "float64", "device": "numpy"}, "float64"),
    ],
)  # fmt: skip
def test_dtypes(given: dict[str, Any], dtype: str | None) -> None:
    assert options(**given).dtype == dtype


@pytest.mark.parametrize(
    ("given", "device"),
    [
        ({}, "cpu"), ({"device": None}, "cpu"), ({"device": -1}, "cpu"), ({"device": "cpu:0"}, "cpu"),
        ({"device": "auto"}, "cpu"), ({"device_map": "auto"}, "cpu"), ({"device_map": "cpu"}, "cpu"),
        ({"device_map": {"": "cpu"}}, "cpu"), ({"device_map": {"a": "cpu", "b": -1}}, "cpu"),
        ({"device_map": "sequential"}, "cpu"), ({"device": 0}, "cuda"), ({"device": "cuda:0"}, "cuda"),
        ({"device_map": {"": 0}}, "cuda"), ({"device": "numpy"}, "numpy"),
    ],
)  # fmt: skip
def test_devices(given: dict[str, Any], device: str) -> None:
    assert options(**given).device == device


@pytest.mark.torch
def test_objects_of_torch() -> None:
    torch = pytest.importorskip("torch")
    assert options(dtype=torch.float32, device=torch.device("cpu")) == options(dtype="float32")
    assert options(torch_dtype=torch.bfloat16).dtype == "bfloat16"
    assert options(torch_dtype=torch.float16).dtype == "float32"
    assert options(device=torch.device("cuda", 0)).device == "cuda"
    for bad in (torch.float64, torch.complex64, torch.uint8):
        with pytest.raises(InputError, match=r"^dtype: expected one of float32, bfloat16, int8, int4, auto on cpu"):
            options(dtype=bad)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"dtype": "float64"}, InputError, 'dtype: expected .*; device="numpy" computes in float64'),
        (
            {"dtype": "int2"},
            InputError,
            "dtype: expected one of float32, bfloat16, int8, int4, auto on cpu, got 'int2'",
        ),
        ({"dtype": 7}, DTypeError, "dtype: expected"),
        ({"dtype": float}, DTypeError, "dtype: expected"),
        ({"dtype": ["int8"]}, DTypeError, "dtype: expected"),
        (
            {"dtype": "int8", "torch_dtype": "int4"},
            InputError,
            "torch_dtype: expected None or the same as dtype, got 'int8'",
        ),
        ({"head_dtype": "tf32", "device": "cuda"}, InputError, "head_dtype: expected"),
        ({"kv_dtype": 16}, DTypeError, "kv_dtype: expected None or one of"),
        ({"device": "cpu", "device_map": "cuda"}, InputError, "device_map: expected None or the same as device"),
        ({"kv_dtype": "int4"}, InputError, "kv_dtype: expected None or one of"),
        ({"device": "gpu"}, InputError, "device: expected one of 'cpu', 'cuda', 'numpy', got 'gpu'; use 'cuda'"),
        ({"device": "mps"}, InputError, "device: expected"),
        ({"device": "cuda:1"}, InputError, "device: expected the first visible GPU"),
        ({"device": 1}, InputError, "device: expected the first visible GPU"),
        ({"device": True}, DTypeError, "device: expected"),
        ({"device": 1.0}, DTypeError, "device: expected"),
        ({"device_map": {"a": "cpu", "b": 0}}, InputError, "device_map: expected one device"),
        ({"device_map": {}}, InputError, "device_map: expected one device"),
        ({"device_map": {"a": "disk"}}, InputError, "device: expected"),
        ({"threads": "4"}, DTypeError, "threads: expected int"),
        ({"threads": True}, DTypeError, "threads: expected int"),
        ({"threads": 10**400}, InputError, "threads: expected 1 to 1024"),
        ({"threads": 2, "device": "cuda"}, InputError, "threads: expected None on cuda"),
        ({"verify": "sha1"}, InputError, 'verify: expected None, "sha256" or digests by file name, got .sha1'),
        ({"verify": True}, DTypeError, "verify: expected"),
        ({"verify": {"model.safetensors": "abc"}}, InputError, r"verify\[.*: expected 64 hexadecimal digits"),
        ({"verify": {1: "0" * 64}}, DTypeError, "verify: expected a mapping of str to str"),
        ({"check_finite": "false"}, DTypeError, "check_finite: expected True or False"),
        ({"local_files_only": 1}, DTypeError, "local_files_only: expected True or False"),
        ({"revision": 7}, DTypeError, "revision: expected str"),
        ({"cache_dir": 7}, DTypeError, "cache_dir: expected a path"),
        ({"subfolder": "../x"}, InputError, "subfolder: expected a folder inside"),
        ({"subfolder": "/x"}, InputError, "subfolder: expected a folder inside"),
        ({"subfolder": 7}, DTypeError, "subfolder: expected str"),
        ({"num_labels": "2"}, DTypeError, "num_labels: expected int"),
        ({"num_labels": 2, "id2label": {0: "a"}}, InputError, "id2label: expected num_labels=2 names, got 1"),
        ({"id2label": ["a"]}, DTypeError, "id2label: expected a mapping"),
        ({"label2id": ["a"]}, DTypeError, "label2id: expected a mapping"),
        ({"problem_type": "multi"}, InputError, "problem_type: expected one of"),
        ({"output_attentions": "yes"}, DTypeError, "output_attentions: expected True or False"),
        ({"use_safetensors": False}, InputError, "use_safetensors: expected None or True, got False; only safetensors"),
        ({"load_in_8bit": True}, InputError, 'load_in_8bit: .*; use dtype="int8"'),
        ({"load_in_4bit": True}, InputError, 'load_in_4bit: .*; use dtype="int4"'),
        ({"quantization_config": {"bits": 4}}, InputError, "quantization_config: expected None"),
        ({"variant": "fp16"}, InputError, "variant: expected None, got 'fp16'"),
        ({"use_safetensors": 1}, InputError, "use_safetensors: expected None or True, got 1"),
        ({"thread": 2}, InputError, "unknown keyword 'thread'; did you mean 'threads'"),
        ({"torch_dtyp": "int8"}, InputError, "unknown keyword 'torch_dtyp'; did you mean 'torch_dtype'"),
        ({"n_layer": 6}, InputError, "unknown keyword 'n_layer'; config.json determines the architecture"),
        ({"x" * 10_000: 1}, InputError, "unknown keyword 'xxx"),
        ({"variant": "y\n" * 10_000}, InputError, "variant: expected None"),
    ],
    ids=lambda value: ascii(value)[:40] if isinstance(value, dict) else "",
)
def test_refused(given: dict[str, Any], error: type[FastattnError], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        options(**given)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_threads_on_numpy(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fastattn"):
        assert options(device="numpy").threads is None
        assert not caplog.records
        options(device="numpy", threads=3)
    assert [record.getMessage() for record in caplog.records] == ["threads: ignored on device numpy, got 3"]


@pytest.mark.parametrize("name", ["token", "use_auth_token"])
def test_a_token_may_be_a_flag_and_is_not_shown(tmp_path: Path, name: str) -> None:
    folder = write_gpt2(tmp_path)
    for value in ("hf_secret", True, False, None):
        AutoModelForCausalLM.from_pretrained(folder, **{name: value}).close()
    with pytest.raises(DTypeError, match=r"^token: expected str, True, False or None, got list") as caught:
        AutoModelForCausalLM.from_pretrained(folder, **{name: ["hf_secret"]})
    assert "hf_secret" not in str(caught.value)
    with pytest.raises(InputError, match=r"^use_auth_token: expected None or the same as token$"):
        AutoModelForCausalLM.from_pretrained(folder, token="hf_secret", use_auth_token="hf_another")


@pytest.mark.parametrize(
    ("given", "dtype", "device"),
    [
        ({"dtype": "fp32", "torch_dtype": "float32"}, "float32", "cpu"),
        ({"dtype": np.float32, "torch_dtype": "torch.float32"}, "float32", "cpu"),
        ({"device": "cpu", "device_map": {"": -1}}, None, "cpu"),
        ({"device": 0, "device_map": "cuda:0"}, None, "cuda"),
        ({"device": "cuda", "device_map": "auto"}, None, "cuda"),
        ({"device": "numpy", "device_map": "sequential"}, None, "numpy"),
    ],
)
def test_two_names_that_say_the_same(given: dict[str, Any], dtype: str | None, device: str) -> None:
    found = options(**given)
    assert (found.dtype, found.device) == (dtype, device)


@pytest.mark.parametrize(
    ("value", "device", "found"),
    [
        ("auto", "cpu", None), ("auto", "numpy", None), ("float16", "cpu", "float32"), (np.float16, "cpu", "float32"),
        ("float16", "cuda", "float16"), ("bf16", "cpu", "bfloat16"),
    ],
)  # fmt: skip
def test_dtypes_of_keys_and_values(value: Any, device: str, found: str | None) -> None:
    assert options(kv_dtype=value, device=device).kv_dtype == found


def test_what_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_gpt2(tmp_path)
    given: dict[str, Any] = {
        "trust_remote_code": True, "use_safetensors": True, "low_cpu_mem_usage": True, "attn_implementation": "sdpa",
        "variant": None, "ignore_mismatched_sizes": False, "subfolder": "", "load_in_8bit": False, "revision": "main",
        "config": None, "proxies": None, "output_loading_info": False, "resume_download": None, "max_memory": None,
        "use_auth_token": True, "return_dict": True, "torch_dtype": "auto", "device_map": "auto",
        "force_download": False,
    }  # fmt: skip
    with AutoModelForCausalLM.from_pretrained(folder, dtype="float32") as model:
        expected = model([1, 2]).logits
    with (
        caplog.at_level(logging.WARNING, "fastattn"),
        AutoModelForCausalLM.from_pretrained(folder, **given) as model,
    ):
        assert np.array_equal(model([1, 2]).logits, expected)
        assert (model.device, model.dtype) == ("cpu", "float32")
    assert not caplog.records


def test_subfolder(tmp_path: Path) -> None:
    write_gpt2(tmp_path / "a" / "b")
    with AutoModelForCausalLM.from_pretrained(tmp_path, subfolder="a/b/") as model:
        assert model.path == tmp_path / "a" / "b"
        assert model.name_or_path == str(tmp_path)
    with pytest.raises(ModelNotFoundError, match=r"a/c: expected the subfolder of a model, found none"):
        AutoModelForCausalLM.from_pretrained(tmp_path, subfolder="a/c")


def test_labels_are_replaced(tmp_path: Path) -> None:
    """As in transformers, except that label2id becomes the inverse of the new names."""
    folder = write_bert(tmp_path, label2id={"a": 0, "b": 1, "c": 2})
    load = AutoModelForSequenceClassification.from_pretrained
    names = ["x", "y", "z"]
    with load(folder, id2label=dict(enumerate(names))) as model:
        assert list(model.config.id2label.values()) == list(model.id2label.values()) == names
        assert model.config.label2id == {"x": 0, "y": 1, "z": 2}
    with load(folder, num_labels=3, problem_type="multi_label_classification") as model:
        assert model.config.labels == ("a", "b", "c")
        assert model.config.problem_type == "multi_label_classification"
    with pytest.raises(ConfigError, match=r"classifier\.weight: .*the classifier has 3 classes.*num_labels=3"):
        load(folder, num_labels=2)


def test_what_a_model_says_of_itself(tmp_path: Path, device: str) -> None:
    with AutoModelForCausalLM.from_pretrained(write_gpt2(tmp_path / "g"), device=device) as model:
        assert (model.device, model.dtype) == (device, "float32")
        assert model.eval() is model
        assert model.to(device) is model.to(dtype="float32") is model.to(device, "float32") is model
        for bad in ("mps", "int8", 7, object()):
            with pytest.raises(InputError, match=r"^to: expected .* load it with from_pretrained"):
                model.to(bad)
        for name, hint in (("half", "from_pretrained"), ("train", "inference"), ("parameters", "num_parameters")):
            with pytest.raises(AttributeError, match=rf"^CausalLM has no '{name}'; .*{hint}"):
                getattr(model, name)
        assert not hasattr(model, "something")
        config = model.config
        assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (12, 2, 3)
        assert (config.max_position_embeddings, config.vocab_size, config.eos_token_id) == (16, 31, 0)
        assert (config.model_type, config.architectures) == ("gpt2", ("GPT2LMHeadModel",))
        assert (config.num_labels, dict(config.id2label)) == (2, {0: "LABEL_0", 1: "LABEL_1"})
        with pytest.raises(
            InputError, match=r"^config\.pad_token_id: expected no change after loading.*from_pretrained"
        ):
            config.pad_token_id = 3  # type: ignore[misc]
        tables = 31 * 12 + 16 * 12
        assert model.num_parameters() == tables + 2 * (12 * 36 + 36 + 12 * 12 + 12 + 2 * 12 * 48 + 48 + 12 + 48) + 24
        assert model.num_parameters(exclude_embeddings=True) == model.num_parameters() - tables


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "auto"),
    [
        ("GPT2LMHeadModel", AutoModelForCausalLM),
        ("BertModel", AutoModel),
        ("BertForSequenceClassification", AutoModelForSequenceClassification),
        ("DistilBertModel", AutoModel),
    ],
)
def test_attributes_are_those_of_transformers(tmp_path: Path, name: str, auto: Any) -> None:
    pytest.importorskip("torch")
    from tests.reference import hf

    sizes = {"vocab_size": 31, "num_hidden_layers": 1, "hidden_size": 12, "num_attention_heads": 3}
    theirs = hf.make(name, **sizes)
    ours = auto.from_pretrained(hf.save(theirs, tmp_path))
    for flag in (False, True):
        assert ours.num_parameters(exclude_embeddings=flag) == theirs.num_parameters(exclude_embeddings=flag)
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "num_labels"):
        assert getattr(ours.config, key) == getattr(theirs.config, key)
    for key in ("id2label", "label2id", "pad_token_id", "bos_token_id", "eos_token_id", "model_type", "problem_type"):
        assert getattr(ours.config, key) == getattr(theirs.config, key)
