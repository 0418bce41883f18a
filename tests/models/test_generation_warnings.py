"""Options of generation_config.json, or else of config.json, are applied; a warning names those that cannot be."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

import fastattn as fa
from fastattn.errors import InputError
from tests.reference.checkpoints import write_gpt2


def warnings_of(folder: Path, caplog: pytest.LogCaptureFixture) -> str:
    caplog.clear()
    fa.AutoModelForCausalLM.from_pretrained(folder, threads=1).close()
    return caplog.text


def write(folder: Path, config: dict[str, Any], generation: dict[str, Any] | None) -> Path:
    write_gpt2(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@pytest.mark.parametrize(
    "options", [{"max_length": 10}, {"repetition_penalty": 1.8}, {"no_repeat_ngram_size": 1}, {"num_beams": 3}]
)
def test_options_of_config_json(tmp_path: Path, caplog: pytest.LogCaptureFixture, options: dict[str, Any]) -> None:
    """transformers reads them from config.json only if there is no generation_config.json."""
    for i, (config, generation) in enumerate(((options, None), ({}, options))):
        folder = write(tmp_path / str(i), config, generation)
        assert "not applied" not in warnings_of(folder, caplog)
        with fa.AutoModelForCausalLM.from_pretrained(folder, threads=1) as model:
            assert dict(model.generation_config) == options
            assert dict(pickle.loads(pickle.dumps(model)).generation_config) == options
    with fa.AutoModelForCausalLM.from_pretrained(write(tmp_path / "b", options, {"bos_token_id": 0})) as model:
        assert dict(model.generation_config) == {}


@pytest.mark.parametrize(
    "options", [{"guidance_scale": 2}, {"temperature": "hot"}, {"suppress_tokens": [-1]}, {"token_healing": True}]
)
def test_options_that_cannot_be_applied(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, options: dict[str, Any]
) -> None:
    (name,) = options
    assert f"config.json: not applied: {name}=" in warnings_of(write(tmp_path / "a", options, None), caplog)
    folder = write(tmp_path / "c", {}, options)
    assert f"generation_config.json: not applied: {name}=" in warnings_of(folder, caplog)
    with fa.AutoModelForCausalLM.from_pretrained(folder, threads=1) as model:
        assert dict(model.generation_config) == {}
        assert len(model.generate([1, 2], max_new_tokens=2)) == 4


def test_neutral_options_are_not_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert warnings_of(write(tmp_path, {"max_length": 20, "num_beams": 1, "prefix": None}, None), caplog) == ""


def test_an_eos_that_only_config_json_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = warnings_of(write(tmp_path / "a", {"eos_token_id": 3}, {"bos_token_id": 0}), caplog)
    assert "generation_config.json has no eos_token_id" in found
    assert "eos_token_id" not in warnings_of(write(tmp_path / "b", {"eos_token_id": 3}, None), caplog)


def test_a_prefix_of_config_json(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert "prefix 'Say: ' is not added to prompts" in warnings_of(write(tmp_path, {"prefix": "Say: "}, None), caplog)


def test_tables_of_classes_refuse_changes() -> None:
    with fa.pipeline("text-classification", threads=1) as classify:
        config: Any = classify.model.config
        for table, key in ((config.id2label, 0), (config.label2id, "POSITIVE")):
            before = dict(table)
            for change in (
                lambda table=table, key=key: table.__setitem__(key, 7),
                lambda table=table: table.update({5: 5}),
                lambda table=table: table.clear(),
            ):
                with pytest.raises(InputError, match="id2label"):
                    change()
            assert table == before == copy.deepcopy(table) == pickle.loads(pickle.dumps(table))
