"""Every installed library gives the results of fastattn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastattn.bench.libraries import LIBRARIES, missing
from fastattn.bench.libraries.base import HEADS, Source, pad
from fastattn.bench.process import convert_apart
from fastattn.bench.run import ModelBench, Options, bench_model
from fastattn.bench.turns import OURS
from tests.bench.test_process import SOON, job
from tests.reference.checkpoints import write_bert, write_gpt2
from tests.tasks.tiny import write_bert_model, write_distilbert_model, write_gpt2_model, write_roberta_model

OTHERS = [name for name in LIBRARIES if name != OURS]


def compared(path: Path, library: str, **options: Any) -> ModelBench:
    if missing(library):
        pytest.skip(f"{library} is not installed")
    chosen = Options(threads=1, rounds=1, seconds=0.001, against=(library,), **options)
    return bench_model(path, chosen)


def check(bench: ModelBench, library: str) -> None:
    assert bench.left_out == []
    for row in bench.rows:
        assert row.errors == {}
        agreement = row.agreement(library)
        assert agreement is not None
        if library == "llama_cpp" and agreement.difference is None:
            # Its gelu is a float16 table: texts diverge at the first near tie, but all begin with the same token.
            ours, theirs = ([tokens[0] for tokens in row.results[name]["tokens"]] for name in (OURS, library))
            assert ours == theirs
        else:
            assert agreement.same == 1.0, f"{row.name}: {agreement}"
        assert row.ratio(library) > 0
        assert row.percent(library) > 0


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gpt2_model(tmp_path_factory.mktemp("models") / "gpt2")


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    return {
        "bert": write_bert_model(root / "bert", head=True),
        "without a head": write_bert_model(root / "plain", head=False),
        "distilbert": write_distilbert_model(root / "distilbert"),
        "roberta": write_roberta_model(root / "roberta"),
    }


@pytest.mark.torch
@pytest.mark.parametrize("library", OTHERS)
def test_a_language_model(gpt2: Path, library: str) -> None:
    bench = compared(gpt2, library)
    assert [row.name for row in bench.rows] == ["prefill-64", "decode-1", "decode-8", "decode-32"]
    check(bench, library)


@pytest.mark.torch
@pytest.mark.parametrize("library", OTHERS)
@pytest.mark.parametrize("model", ["bert", "without a head", "distilbert", "roberta"])
def test_an_encoder(encoders: dict[str, Path], model: str, library: str) -> None:
    if library == "llama_cpp" and model in ("distilbert", "roberta"):
        pytest.skip("GGUF files are only for gpt2 and bert")
    bench = compared(encoders[model], library, works=("8x64", "ragged-32"))
    assert bench.task == ("encoder" if model == "without a head" else "sequence-classification")
    check(bench, library)


def test_what_the_onnx_graphs_do_not_know(tmp_path: Path) -> None:
    if missing("onnxruntime"):
        pytest.skip("onnxruntime is not installed")
    path = write_gpt2(tmp_path / "m", activation_function="relu")
    reason = convert_apart("onnxruntime", job(path, tmp_path / "converted"), SOON)
    assert reason == "Unsupported: expected a gelu for the ONNX graph, got relu"


def test_a_checkpoint_by_the_names_of_the_model_code(tmp_path: Path) -> None:
    gpt2 = Source(job(write_gpt2(tmp_path / "gpt2"), tmp_path))
    assert gpt2.model_type == "gpt2"
    assert gpt2("h.0.mlp.c_fc.weight").shape == (48, 12)  # [out, in], although the file has [in, out]
    assert not gpt2.has("lm_head.weight")
    bert = Source(job(write_bert(tmp_path / "bert"), tmp_path, task="sequence-classification"))
    assert bert("encoder.layer.0.intermediate.dense.weight").shape == (20, 12)
    assert bert.head()(bert("embeddings.word_embeddings.weight")).shape == (31, 3)
    assert set(HEADS) == {"bert", "distilbert", "roberta", "xlm-roberta"}


def test_padding() -> None:
    padded, mask = pad([[1, 2, 3], [4]])
    assert padded.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
