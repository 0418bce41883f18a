"""`compare_dtypes` and `fastattn quality`: compares results with their definitions, from separately computed logits."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

import fastattn
from fastattn.api.encoders import Encoder
from fastattn.errors import ConfigError, DTypeError, InputError, NonFiniteError
from fastattn.tasks.quality import default_texts
from tests.reference.checkpoints import write_gpt2
from tests.tasks.test_cli import run
from tests.tasks.tiny import write_bert_model, write_gpt2_model, write_sentence_model

pytestmark = pytest.mark.torch
TEXTS = ["the hello hello the", "the the hello", "hello"]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gpt2_model(tmp_path_factory.mktemp("gpt2"))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    return wide - np.logaddexp.reduce(wide, axis=1, keepdims=True)


def test_language_models(gpt2: Path) -> None:
    report = fastattn.compare_dtypes(gpt2, TEXTS, dtypes=["int4"])
    assert (report.task, report.n_texts) == ("causal-lm", 3)
    assert repr(report) == f"<QualityReport of '{gpt2}' as causal-lm: float32, int4 on {report.n_tokens} tokens>"
    models = [fastattn.AutoModelForCausalLM.from_pretrained(gpt2, dtype=name) for name in ("float32", "int4")]
    tokenizer = models[0].tokenizer
    assert tokenizer is not None
    ids = np.concatenate([tokenizer.encode(f"{text}\n") for text in TEXTS])
    assert report.n_tokens == len(ids) < 64  # one window
    exact, found = (log_softmax(np.asarray(model(ids).logits)) for model in models)
    for row, logs in zip(report.dtypes, (exact, found), strict=True):
        nats = -logs[np.arange(len(ids) - 1), ids[1:]].mean()
        n_bytes = sum(len(text) + 1 for text in TEXTS)
        assert row.perplexity == pytest.approx(math.exp(nats))
        assert row.bits_per_byte == pytest.approx(nats * len(ids) / math.log(2) / n_bytes)
        assert row.kl == pytest.approx((np.exp(exact) * (exact - logs)).sum(axis=1).mean())
        assert row.top1_agreement == (exact.argmax(axis=1) == logs.argmax(axis=1)).mean()
        assert row.cosine is row.label_agreement is None
    baseline, int4 = report.dtypes
    assert baseline.kl == 0.0
    assert int4.kl is not None
    assert int4.kl > 0
    assert baseline.hidden_state_errors == (0.0,) * 4
    states = [model(ids, output_hidden_states=True).hidden_states for model in models]
    expected = [np.linalg.norm(b - a) / np.linalg.norm(a) for a, b in zip(*states, strict=True)]
    np.testing.assert_allclose(int4.hidden_state_errors, expected, rtol=np.finfo(np.float32).eps * states[0][0].size)
    assert int4.weight_bytes < baseline.weight_bytes


def test_several_windows_and_few_tokens(gpt2: Path) -> None:
    """The context is 64, so 60 lines are several windows, and max_tokens stops the reading in the middle of a line."""
    report = fastattn.compare_dtypes(gpt2, TEXTS * 20, dtypes=["bfloat16"])
    assert report.n_texts == 60
    assert report.n_tokens > 128
    few = fastattn.compare_dtypes(gpt2, TEXTS * 20, dtypes=["bfloat16"], max_tokens=report.n_tokens // 2)
    assert 20 < few.n_texts < 40
    assert few.n_tokens == report.n_tokens // 2


def test_a_corpus_on_one_line(gpt2: Path) -> None:
    """It is cut at max_tokens, and bits per byte only counts the bytes that were read."""
    tokenizer = fastattn.AutoTokenizer.from_pretrained(gpt2)
    ids = tokenizer.encode(" ".join(TEXTS) + "\n")[:7]
    report = fastattn.compare_dtypes(gpt2, [" ".join(TEXTS)], dtypes=["int8"], max_tokens=7)
    assert (report.n_texts, report.n_tokens) == (1, 7)
    baseline = report.dtypes[0]
    assert baseline.perplexity is not None
    nats = math.log(baseline.perplexity) * 7
    assert baseline.bits_per_byte == pytest.approx(nats / math.log(2) / len(tokenizer.decode(ids).encode()))


def test_long_texts_of_encoders_keep_their_last_special_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_sentence_model(tmp_path)
    tokenizer = fastattn.AutoTokenizer.from_pretrained(folder)
    read: list[list[int]] = []
    call = Encoder.__call__
    monkeypatch.setattr(Encoder, "__call__", lambda self, ids, **o: read.append(ids.tolist()) or call(self, ids, **o))
    report = fastattn.compare_dtypes(folder, ["the cat " * 200], dtypes=["int8"])
    context = fastattn.AutoModel.from_pretrained(folder).config.max_positions
    assert report.n_tokens == len(read[0]) == context
    assert (read[0][0], read[0][-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    expected = rf"^max_tokens: expected at least {context}, the length of the first text, got 5$"
    with pytest.raises(InputError, match=expected):
        fastattn.compare_dtypes(folder, ["the cat " * 200], dtypes=["int8"], max_tokens=5)


def test_encoders_and_classifiers(tmp_path: Path) -> None:
    texts = ["good film", "a bad dog", "the cat, running", "great"]
    classifier = write_bert_model(tmp_path / "classifier", head=True)
    report = fastattn.compare_dtypes(classifier, texts, dtypes=["int8", "int4"])
    assert report.task == "sequence-classification"
    assert [row.dtype for row in report.dtypes] == ["float32", "int8", "int4"]
    assert report.dtypes[0].label_agreement == 1.0
    assert report.dtypes[0].cosine == pytest.approx(1.0)
    models = [fastattn.pipeline("text-classification", classifier, dtype=name) for name in ("float32", "int4")]
    labels = [[item[0]["label"] for item in model(texts, top_k=1)] for model in models]
    assert report.dtypes[2].label_agreement == np.mean([a == b for a, b in zip(*labels, strict=True)])
    encoder = write_sentence_model(tmp_path / "encoder")
    report = fastattn.compare_dtypes(encoder, texts, dtypes=["int8"])
    assert report.task == "encoder"
    vectors = [fastattn.SentenceTransformer(encoder, dtype=row.dtype).encode(texts) for row in report.dtypes]
    cosines = (
        (vectors[0] * vectors[1]).sum(axis=1) / np.linalg.norm(vectors[0], axis=1) / np.linalg.norm(vectors[1], axis=1)
    )
    assert report.dtypes[1].cosine == pytest.approx(cosines.mean())
    assert report.dtypes[1].lowest_cosine == pytest.approx(cosines.min())
    assert report.dtypes[1].perplexity is report.dtypes[1].label_agreement is None


def test_refuses(gpt2: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dtypes\[0\]: expected one of 'bfloat16', 'int8', 'int4', got 'int2'"):
        fastattn.compare_dtypes(gpt2, TEXTS, dtypes=["int2"])
    with pytest.raises(InputError, match="max_tokens"):
        fastattn.compare_dtypes(gpt2, TEXTS, max_tokens=1)
    with pytest.raises(InputError, match="at least two tokens"):
        fastattn.compare_dtypes(gpt2, [])
    with pytest.raises(DTypeError, match="texts"):
        fastattn.compare_dtypes(gpt2, [3])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="tokenizer"):
        fastattn.compare_dtypes(write_gpt2(tmp_path), TEXTS)


def test_refuses_what_has_no_float32_to_compare_with(gpt2: Path, tmp_path: Path) -> None:
    packed = fastattn.quantize(gpt2, tmp_path / "int8", dtype="int8")
    with pytest.raises(ConfigError, match="expected a float checkpoint to compare with, got one quantized to int8"):
        fastattn.compare_dtypes(packed, TEXTS)
    broken = tmp_path / "nan"
    shutil.copytree(gpt2, broken)
    data = bytearray((broken / "model.safetensors").read_bytes())
    data[-4:] = np.float32(np.nan).tobytes()
    (broken / "model.safetensors").write_bytes(data)
    with pytest.raises(NonFiniteError, match="texts: expected finite float32 values from the model, got nan"):
        fastattn.compare_dtypes(broken, TEXTS)


def test_the_text_of_the_package_is_there() -> None:
    assert len(default_texts()) > 20


def test_command(gpt2: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("\n".join(TEXTS))
    options = ("quality", "-m", gpt2, "-f", tmp_path / "lines.txt")
    done = run(*options, "--dtypes", "int8,int4")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split()[:3] == ["dtype", "weights", "perplexity"]
    assert [line.split()[0] for line in lines[1:4]] == ["float32", "int8", "int4"]
    assert [line.split()[0] for line in lines[5:]] == ["error", "embeddings", "layer", "layer", "layer"]
    found = json.loads(run(*options, "--json").stdout)
    assert [row["dtype"] for row in found["dtypes"]] == ["float32", "bfloat16", "int8", "int4"]
    assert found["n_texts"] == 3
    done = run(*options, "--dtypes", "int8,int2")
    assert (done.returncode, "--dtypes: expected some of bfloat16,int8,int4, got 'int2'" in done.stderr) == (2, True)
