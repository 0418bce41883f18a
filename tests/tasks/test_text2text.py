"""The pipelines of models with an encoder and a decoder: the texts of `generate`, in the shapes of transformers 4."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn as fa
from fastattn.api.seq2seq_lm import Seq2SeqLM
from fastattn.cli import main
from fastattn.errors import DTypeError, InputError
from fastattn.tokenizer import load_tokenizer
from tests.models.test_seq2seq import UNKNOWN, write
from tests.tasks.test_tokenizer_marian import write_small

OPTIONS: dict[str, Any] = {
    "max_new_tokens": 6, "min_new_tokens": 4, "suppress_tokens": UNKNOWN, "forced_eos_token_id": 2,
}  # fmt: skip
TEXTS = ["cats", "cat cat", "cat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("marian")
    write(folder, "marian")
    write_small(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Seq2SeqLM:
    return fa.AutoModelForSeq2SeqLM.from_pretrained(folder)


@pytest.mark.parametrize(
    ("task", "key"),
    [("translation", "translation"), ("summarization", "summary"), ("text2text-generation", "generated")],
)
def test_records(folder: Path, model: Seq2SeqLM, task: Any, key: str) -> None:
    expected = model.generate(TEXTS, **OPTIONS)
    assert any(expected)
    with fa.pipeline(task, folder) as pipe:
        assert pipe(TEXTS[0], **OPTIONS) == [{f"{key}_text": expected[0]}]
        assert pipe(TEXTS, **OPTIONS) == [{f"{key}_text": text} for text in expected]
        assert pipe(TEXTS, **OPTIONS, batch_size=1) == [{f"{key}_text": text} for text in expected]
        assert list(pipe(iter(TEXTS), **OPTIONS)) == [{f"{key}_text": text} for text in expected]
        (ids,) = pipe(TEXTS[0], **OPTIONS, return_tensors=True)
        tokenizer = load_tokenizer(folder)
        (wanted,) = model.generate([tokenizer.encode(TEXTS[0])], **OPTIONS)
        assert ids == {f"{key}_token_ids": wanted.tolist()}


def test_several_sequences(model: Seq2SeqLM) -> None:
    pipe = fa.pipeline("translation", model)
    options = {**OPTIONS, "num_beams": 3, "num_return_sequences": 2}
    expected = model.generate(TEXTS, **options)
    records = [{"translation_text": text} for text in expected]
    assert pipe(TEXTS, **options) == [records[i : i + 2] for i in range(0, 6, 2)]
    assert pipe(TEXTS[1], **options) == records[2:4]
    sampled = {**OPTIONS, "do_sample": True, "seed": 5}
    together = pipe(TEXTS, **sampled)
    assert together == pipe(TEXTS, **sampled, batch_size=2) == list(pipe(iter(TEXTS), **sampled))
    assert together[0] == pipe(TEXTS[0], **sampled)[0]


def test_settings_of_the_task(folder: Path, tmp_path: Path, model: Seq2SeqLM) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    settings = {"prefix": "cat ", "max_length": 9, "num_beams": 2}
    config["task_specific_params"] = {"translation_en_to_de": settings, "summarization": {"prefix": None}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    plain = {name: value for name, value in OPTIONS.items() if name != "max_new_tokens"}
    with fa.pipeline("translation_en_to_de", tmp_path) as pipe:
        found = pipe("cats", **plain)
    assert found == [{"translation_text": model.generate("cat cats", **plain, max_length=9, num_beams=2)}]
    with fa.pipeline("summarization", tmp_path) as pipe:
        assert pipe("cats", **OPTIONS) == [{"summary_text": model.generate("cats", **OPTIONS)}]


def test_languages(tmp_path: Path) -> None:
    """A tokenizer that puts the language before a text, as those of NLLB and M2M100."""
    tokenizers = pytest.importorskip("tokenizers")
    write(tmp_path, "m2m_100")
    vocab = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "cat": 4, "dog": 5, "eng_Latn": 9, "deu_Latn": 10}
    vocab["__fr__"] = 11
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    raw.post_processor = tokenizers.processors.TemplateProcessing(
        single="eng_Latn $A </s>", special_tokens=[("eng_Latn", 9), ("</s>", 2)]
    )
    raw.save(str(tmp_path / "tokenizer.json"))
    options: dict[str, Any] = {"max_new_tokens": 5, "return_tensors": True}
    with fa.pipeline("translation", tmp_path) as pipe:
        model = pipe.model
        for source, target, ids, forced in (
            (None, None, [9, 4, 5, 2], None),
            ("deu_Latn", "fr", [10, 4, 5, 2], 11),
            ("fr", "eng_Latn", [11, 4, 5, 2], 9),
        ):
            given = {} if forced is None else {"forced_bos_token_id": forced}
            (expected,) = model.generate([ids], attention_mask=[np.ones(4)], max_new_tokens=5, **given)
            found = pipe("cat dog", **options, src_lang=source, tgt_lang=target)
            assert found == [{"translation_token_ids": expected.tolist()}]
        with pytest.raises(InputError, match="tgt_lang: expected a language that the tokenizer has a token for"):
            pipe("cat", tgt_lang="xyz")
    with fa.pipeline("translation_en_to_fr", tmp_path) as pipe:  # "en" has no token here
        assert pipe("cat dog", **options) == [
            {"translation_token_ids": pipe.model.generate([[9, 4, 5, 2]], max_new_tokens=5)[0].tolist()}
        ]


def test_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [flag for name, value in OPTIONS.items() for flag in ("--set", f"{name}={json.dumps(value)}")]
    with fa.pipeline("translation", folder) as pipe:
        expected = pipe(TEXTS, **OPTIONS)
    for task in ("translation", "translation_en_to_de"):
        assert main(["run", task, "-m", str(folder), *flags, *(word for text in TEXTS for word in ("-p", text))]) == 0
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert found == [{"input": text, "result": row} for text, row in zip(TEXTS, expected, strict=True)]


def test_errors(model: Seq2SeqLM, folder: Path) -> None:
    pipe = fa.pipeline("translation", model)
    with pytest.raises(InputError, match="unknown keyword 'max_new_token'"):
        pipe("cat", max_new_token=3)
    with pytest.raises(DTypeError, match=r"inputs\[1\]"):
        pipe(["cat", 3])
    with pytest.raises(InputError, match="return_text"):
        pipe("cat", return_text=True, return_tensors=True)
    with pytest.raises(InputError, match="return_type"):
        pipe("cat", return_type=2)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="src_lang"):
        pipe("cat", src_lang="deu_Latn")
    with pytest.raises(InputError, match="task: expected one of"):
        fa.pipeline("translation_en_de", folder)  # type: ignore[call-overload]
