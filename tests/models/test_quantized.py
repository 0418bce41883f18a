"""A directory from `quantize` gives the bits of the float checkpoint in the same dtype."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn
from fastattn.api.auto import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from fastattn.checkpoint import open_checkpoint
from fastattn.checkpoint.safetensors import read_header
from fastattn.errors import ConfigError, DTypeError, InputError
from tests.reference.checkpoints import gpt2_tensors, write, write_bert, write_gpt2

DTYPES = ("bfloat16", "int8", "int4")
GPT2: dict[str, Any] = {"vocab_size": 131, "n_positions": 40, "n_embd": 78, "n_layer": 2, "n_head": 3}
BERT: dict[str, Any] = {"vocab_size": 131, "hidden_size": 78, "num_attention_heads": 3, "intermediate_size": 101}
IDS = [[3, 1, 4, 1, 5, 9, 2, 6], [7, 7, 130]]


def write_floats(kind: str, folder: Path) -> Path:
    if kind == "gpt2-classifier":
        config = {"model_type": "gpt2", "pad_token_id": 0, "id2label": {str(i): str(i) for i in range(70)}, **GPT2}
        score = np.random.default_rng(1).normal(size=(70, config["n_embd"])).astype(np.float32)
        return write(folder, config, {**gpt2_tensors(config), "score.weight": score})
    return write_gpt2(folder, **GPT2) if kind == "gpt2" else write_bert(folder, **BERT)


CASES = [
    ("gpt2", AutoModelForCausalLM),
    ("gpt2", AutoModel),
    ("gpt2-classifier", AutoModel),
    ("gpt2-classifier", AutoModelForSequenceClassification),
    ("bert", AutoModelForSequenceClassification),
    ("bert", AutoModel),
]


def outputs(model: Any) -> list[np.ndarray]:
    out = model(IDS, output_hidden_states=True, output_attentions=True)
    main = out.logits if hasattr(out, "logits") else out.last_hidden_state
    groups = [main, *out.hidden_states, *out.attentions]
    return [np.asarray(array) for group in groups for array in (group if isinstance(group, list) else [group])]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dtype", [None, "float32"])
@pytest.mark.parametrize(("kind", "auto"), CASES)
def test_same_bits(kind: str, auto: Any, dtype: str, head_dtype: str | None, tmp_path: Path) -> None:
    floats = write_floats(kind, tmp_path / "floats")
    folder = fastattn.quantize(floats, tmp_path / "out", dtype=dtype, head_dtype=head_dtype)
    assert folder == tmp_path / "out"
    with (
        auto.from_pretrained(folder) as found,
        auto.from_pretrained(folder, dtype=dtype, head_dtype=head_dtype) as named,
        auto.from_pretrained(floats, dtype=dtype, head_dtype=head_dtype) as expected,
    ):
        assert found.executor.weight_bytes == expected.executor.weight_bytes
        for model in (found, named):
            for ours, theirs in zip(outputs(model), outputs(expected), strict=True):
                np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


def test_the_file_is_as_small_as_the_weights(tmp_path: Path) -> None:
    floats = write_gpt2(tmp_path / "floats", **{**GPT2, "n_embd": 192})
    for dtype in DTYPES:
        folder = fastattn.quantize(floats, tmp_path / dtype, dtype=dtype)
        with AutoModelForCausalLM.from_pretrained(folder) as model:
            weights = model.executor.weight_bytes
        tensors = read_header(folder / "model.safetensors")
        assert sum(info.nbytes for info in tensors.values()) == weights
        assert weights < (floats / "model.safetensors").stat().st_size


def test_head_dtype_keeps_the_head_and_its_embeddings(tmp_path: Path) -> None:
    floats = write_floats("gpt2", tmp_path / "floats")
    tables = []
    for head_dtype in (None, "float32"):
        with AutoModelForCausalLM.from_pretrained(floats, dtype="int4", head_dtype=head_dtype) as model:
            states = model([5], output_hidden_states=True).hidden_states
            assert states is not None
            tables.append(np.asarray(states[0]))
    raw = gpt2_tensors({**GPT2, "n_inner": None})
    expected = raw["wte.weight"][5] + raw["wpe.weight"][0]
    coarse, fine = (np.abs(table - expected).max() for table in tables)
    assert fine < coarse  # positions are int8 in both
    with AutoModelForCausalLM.from_pretrained(floats, dtype="float32", head_dtype="int8") as model:
        assert np.isfinite(np.asarray(model([5]).logits)).all()


def test_untied_heads_are_kept_too(tmp_path: Path) -> None:
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **GPT2, "tie_word_embeddings": False}
    tensors = gpt2_tensors(config)
    tensors["lm_head.weight"] = tensors["wte.weight"][::-1].copy()
    floats = write(tmp_path / "floats", config, tensors)
    folder = fastattn.quantize(floats, tmp_path / "out", dtype="int4", head_dtype="float32")
    with AutoModelForCausalLM.from_pretrained(folder) as found:
        expected = AutoModelForCausalLM.from_pretrained(floats, dtype="int4", head_dtype="float32")
        for ours, theirs in zip(outputs(found), outputs(expected), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_untied_heads_that_repeat_the_embeddings_are_kept_once(tmp_path: Path) -> None:
    config = {"model_type": "gpt2", **GPT2, "tie_word_embeddings": False}
    tensors = gpt2_tensors(config)
    floats = write(tmp_path / "floats", config, {**tensors, "lm_head.weight": tensors["wte.weight"]})
    folder = fastattn.quantize(floats, tmp_path / "out", dtype="int8")
    for auto in (AutoModelForCausalLM, AutoModel):
        with auto.from_pretrained(folder) as found, auto.from_pretrained(floats, dtype="int8") as expected:
            for ours, theirs in zip(outputs(found), outputs(expected), strict=True):
                np.testing.assert_array_equal(ours, theirs)


def test_files_next_to_the_weights_are_copied(tmp_path: Path) -> None:
    floats = write_floats("bert", tmp_path / "floats")
    (floats / "tokenizer.json").write_text("{}")
    (floats / "1_Pooling").mkdir()
    (floats / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    (floats / "pytorch_model.bin").write_bytes(b"x")
    folder = fastattn.quantize(floats, tmp_path / "new" / "out", dtype="int8")
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert names == ["1_Pooling/config.json", "config.json", "model.safetensors", "tokenizer.json"]
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"] == {
        "quant_method": "fastattn", "version": 1, "dtype": "int8", "head_dtype": None
    }  # fmt: skip
    assert {**json.loads((floats / "config.json").read_text()), "quantization_config": None} == {
        **config,
        "quantization_config": None,
    }


def test_a_program_of_another_kind(tmp_path: Path) -> None:
    """A language model's directory is an encoder too; a missing head is a ConfigError."""
    folder = fastattn.quantize(write_floats("gpt2", tmp_path / "floats"), tmp_path / "out", dtype="int8")
    with AutoModel.from_pretrained(folder) as encoder, AutoModelForCausalLM.from_pretrained(folder) as lm:
        models: tuple[Any, ...] = (encoder, lm)
        states = [model(IDS[0], output_hidden_states=True).hidden_states[-1] for model in models]
        np.testing.assert_array_equal(*(np.asarray(state) for state in states))
    with pytest.raises(ConfigError, match="no classification head"):
        AutoModelForSequenceClassification.from_pretrained(folder)


def test_refuses(tmp_path: Path) -> None:
    floats = write_floats("gpt2", tmp_path / "floats")
    folder = fastattn.quantize(floats, tmp_path / "out", dtype="int8")
    for options in ({"dtype": "float32"}, {"dtype": "int4"}, {"head_dtype": "float32"}):
        with pytest.raises(ConfigError, match=r"expected None( or 'int8')?, as this checkpoint is quantized, got"):
            AutoModelForCausalLM.from_pretrained(folder, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected device cpu for quantized weights, got numpy"):
        AutoModelForCausalLM.from_pretrained(folder, device="numpy")
    with pytest.raises(ConfigError, match="expected a float checkpoint, got one quantized to int8"):
        fastattn.quantize(folder, tmp_path / "again", dtype="int8")
    with pytest.raises(ConfigError, match="new or an empty folder"):
        fastattn.quantize(floats, folder, dtype="int8")
    with pytest.raises(InputError, match=r"got 'float32', which is not quantized$"):
        fastattn.quantize(floats, tmp_path / "third", dtype="float32")
    for options in ({"dtype": "float32"}, {"dtype": "int8", "head_dtype": "int2"}):
        with pytest.raises(InputError, match="dtype: expected"):
            fastattn.quantize(floats, tmp_path / "third", **options)  # type: ignore[arg-type]
    for threads in ("a", 1.5, True):
        with pytest.raises(DTypeError, match="threads: expected int"):
            fastattn.quantize(floats, tmp_path / "third", dtype="int8", threads=threads)  # type: ignore[arg-type]
    for count in (0, -1, 10**400):
        with pytest.raises(InputError, match="threads: expected 1 to 1024"):
            fastattn.quantize(floats, tmp_path / "third", dtype="int8", threads=count)
    for directory in (None, 7, b"out"):
        with pytest.raises(DTypeError, match="directory: expected a path"):
            fastattn.quantize(floats, directory, dtype="int8")  # type: ignore[arg-type]
    assert not (tmp_path / "third").exists()
    checkpoint = open_checkpoint(folder)
    for read in (checkpoint.find_nonfinite, lambda: checkpoint.read("wte.weight")):
        with pytest.raises(ConfigError, match="expected a float checkpoint"):
            read()
    with pytest.raises(ConfigError, match="quantized to int8"):
        fastattn.compare_dtypes(folder, ["a"])


def test_a_numpy_dtype_is_not_a_name(tmp_path: Path) -> None:
    """It equals its name and would pass a lookup in a tuple of names; `from_pretrained` uses its name."""
    floats = write_floats("gpt2", tmp_path / "floats")
    given: Any = np.dtype("float32")
    with AutoModelForCausalLM.from_pretrained(floats, dtype=given, kv_dtype=given, head_dtype=given) as model:
        assert type(model.dtype) is str
    with pytest.raises(DTypeError, match="device: expected"):
        AutoModelForCausalLM.from_pretrained(floats, device=given)
    wrong: Any = np.dtype("int8")
    with pytest.raises(DTypeError, match="dtype: expected one of"):
        fastattn.quantize(floats, tmp_path / "out", dtype=wrong)
    with pytest.raises((InputError, DTypeError), match=r"dtypes\[0\]: expected"):
        fastattn.compare_dtypes(floats, ["a text"], dtypes=[wrong])
