"""`verify_model` and `fastattn verify`: correct models pass, and faults in one op, one layer or one thread fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn
from fastattn.errors import ConfigError, DTypeError, InputError
from fastattn.graph.error_bounds import eps
from fastattn.tasks import op_errors, verify_model
from fastattn.tasks.demo import demo_model
from tests.reference import checkpoints
from tests.reference.command import run
from tests.reference.families import write_variant

DTYPES = ("float32", "bfloat16", "int8", "int4")


class Changed:
    """An executor whose results are changed by a function of their names and values."""

    def __init__(self, executor: Any, change: Callable[[str, Any], Any]) -> None:
        self._executor, self._change = executor, change

    def run(self, step: Any) -> dict[str, Any]:
        return {name: self._change(name, value) for name, value in self._executor.run(step).items()}

    def close(self) -> None:
        self._executor.close()


def break_executors(
    monkeypatch: pytest.MonkeyPatch, module: Any, change: Callable[[str, Any], Any], *, threads: int | None = None
) -> None:
    """Change the results of the executors that a module loads, or only of those with this number of threads."""
    load = module.load_executor

    def loaded(*args: Any, **options: Any) -> Any:
        executor = load(*args, **options)
        return Changed(executor, change) if threads in (None, options["threads"]) else executor

    monkeypatch.setattr(module, "load_executor", loaded)


def test_demo_models() -> None:
    report = fastattn.verify_model(demo_model("text-classification"), dtypes=DTYPES)
    assert report.ok
    assert (report.task, report.n_texts, report.transformers) == ("sequence-classification", 4, None)
    assert 4 < report.n_tokens <= verify_model.MAX_TOKENS
    assert [check.dtype for check in report.dtypes] == list(DTYPES)
    for check in report.dtypes:
        assert check.same_bits
        assert [layer.name for layer in check.layers] == ["embeddings", "layer 1", "layer 2", "layer 3", "head"]
        assert all(0 <= layer.used <= 1 for layer in check.layers)
        assert [layer.error is not None for layer in check.layers] == [check.dtype == "float32"] * 5
    # a last layer of hidden states that ends with the final norm, and then only the product with the embeddings
    report = fastattn.verify_model(demo_model("text-generation"), ["one text", "another one"], max_tokens=6)
    assert report.ok
    assert report.n_tokens == 6
    assert [layer.name for layer in report.dtypes[0].layers][-2:] == ["layer 4", "head"]


def test_wrong_op(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of 0.1 % in one op shows in its layer, in every dtype."""

    def change(name: str, value: Any) -> Any:
        return value * 1.001 if name == "layer_norm.1" else value  # the norm in the middle of layer 1

    break_executors(monkeypatch, op_errors, change)
    report = fastattn.verify_model(demo_model("text-classification"), dtypes=DTYPES)
    assert not report.ok
    for check in report.dtypes:
        assert [layer.name for layer in check.layers if layer.used > 1] == ["layer 1"]


def test_result_that_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    break_executors(monkeypatch, op_errors, lambda name, value: value * np.nan if name == "pool.0" else value)
    report = fastattn.verify_model(demo_model("text-generation"))
    assert report.ok  # it has no such op
    break_executors(monkeypatch, op_errors, lambda name, value: value * np.nan if name == "attention.3" else value)
    report = fastattn.verify_model(demo_model("text-generation"))
    assert [layer.name for layer in report.dtypes[0].layers if not layer.ok] == ["layer 4"]
    assert max(layer.used for layer in report.dtypes[0].layers) == np.inf


def test_wrong_hidden_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of eight roundings in a state is far below the bounds of its ops, but above that of the contract."""

    def change(name: str, value: Any) -> Any:
        return value * np.float32(1 + 16 * eps(np.float32)) if name == "hidden_states.2" else value

    break_executors(monkeypatch, verify_model, change)
    report = fastattn.verify_model(demo_model("text-classification"))
    assert [layer.name for layer in report.dtypes[0].layers if not layer.ok] == ["layer 2"]
    assert report.dtypes[0].same_bits


def test_bits_that_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(name: str, value: Any) -> Any:
        return np.nextafter(value, np.float32(9)) if name == "logits" else value

    break_executors(monkeypatch, verify_model, change, threads=1)
    report = fastattn.verify_model(demo_model("text-classification"), threads=2)
    assert not report.ok
    assert not report.dtypes[0].same_bits
    assert all(layer.ok for layer in report.dtypes[0].layers)


def test_without_a_tokenizer(tmp_path: Path) -> None:
    folder = checkpoints.write_gpt2(tmp_path)
    report = fastattn.verify_model(folder)
    assert report.ok
    assert report.n_texts == 3
    with pytest.raises(InputError, match="texts: expected None, because"):
        fastattn.verify_model(folder, ["a text"])


def test_bad_arguments(tmp_path: Path) -> None:
    folder = demo_model("text-generation")
    with pytest.raises(DTypeError, match="dtypes: expected a list"):
        fastattn.verify_model(folder, dtypes="int8")
    with pytest.raises(InputError, match=r"dtypes\[0\]: expected one of"):
        fastattn.verify_model(folder, dtypes=["int3"])
    with pytest.raises(InputError, match="texts: expected at least one token"):
        fastattn.verify_model(folder, [""])
    with pytest.raises(InputError, match="against: expected one of 'transformers'"):
        fastattn.verify_model(folder, against="torch")  # type: ignore[arg-type]
    quantized = fastattn.quantize(folder, tmp_path / "int8", dtype="int8")
    with pytest.raises(ConfigError, match="expected a float checkpoint, got one quantized to int8"):
        fastattn.verify_model(quantized)


def test_command() -> None:
    folder = str(demo_model("text-classification"))
    done = run("verify", folder, "--dtypes", "float32,int8", "--max-tokens", "32")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].startswith("ok: sequence-classification, target ")
    done = run("verify", "-m", folder, "--max-tokens", "32", "--json")
    found = json.loads(done.stdout)
    assert found["ok"]
    assert found["dtypes"][0]["layers"][0]["name"] == "embeddings"
    assert run("verify").returncode == 2


@pytest.mark.torch
@pytest.mark.parametrize(
    "model_class",
    [
        "GPT2LMHeadModel",
        "BertModel",
        "BertForMaskedLM",
        "BertForPreTraining",
        "BertForMultipleChoice",
        "RobertaForQuestionAnswering",
        "DistilBertForTokenClassification",
        "AlbertForSequenceClassification",
        "ModernBertForSequenceClassification",
        "MPNetModel",
        "ElectraForPreTraining",
        "AlbertForPreTraining",
        "NomicBertForMaskedLM",
    ],
)
def test_against_transformers(model_class: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    from tests.reference import hf

    common = {"vocab_size": 97, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes: dict[str, Any] = {
        "G": {"vocab_size": 97, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 80},
        "D": {"vocab_size": 97, "dim": 24, "n_layers": 2, "n_heads": 4, "hidden_dim": 40},
    }
    options = sizes.get(model_class[0], {**common, "intermediate_size": 40})
    if model_class.startswith(("Albert", "Modern")):
        options |= {"pad_token_id": 0, "embedding_size": 16} if model_class[0] == "A" else {"pad_token_id": 0}
    folder = hf.save(hf.make(model_class, **options), tmp_path)
    report = fastattn.verify_model(folder, max_tokens=60, against="transformers")
    assert report.ok
    assert report.transformers is not None
    their_outputs = verify_model._their_outputs

    def changed(*args: Any) -> list[Any]:
        *states, result = their_outputs(*args)
        return [*states, result + 1e-4]

    monkeypatch.setattr(verify_model, "_their_outputs", changed)
    report = fastattn.verify_model(folder, max_tokens=60, against="transformers")
    assert not report.ok


@pytest.mark.parametrize("name", ["new", "jina_bert", "nomic_bert-older"])
def test_models_that_transformers_reads_only_with_their_code(name: str, tmp_path: Path) -> None:
    folder = write_variant(tmp_path, name, "encoder")
    assert fastattn.verify_model(folder, max_tokens=20).ok
    with pytest.raises(ConfigError, match=r"^against: expected None, because transformers reads .*only with the code"):
        fastattn.verify_model(folder, max_tokens=20, against="transformers")
