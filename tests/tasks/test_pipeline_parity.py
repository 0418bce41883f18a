"""Pipelines on real texts and random ones in many scripts: the results of transformers, to the character.

Token classification of BERT reads all 700 texts, the other families and tasks read some of them.

Both compute in float64: among 60,000 tokens, two labels of one may differ by less than float32's rounding. Labels,
words, positions and order are equal, and so are scores, rounded to float32. The float32 results of the CPU have their
own tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn
from fastattn.tasks.entities import STRATEGIES
from tests.reference.package import SOURCES
from tests.tasks.parity import (
    FAMILIES,
    LABELS,
    masked,
    random_texts,
    real_texts,
    scores_of,
    without_scores,
    write_family,
)
from tests.tasks.test_pipelines import reference
from tests.tasks.tokenizer_folders import Maker

pytestmark = pytest.mark.torch
NLI = {0: "contradiction", 1: "neutral", 2: "entailment"}
BATCH = 50  # of transformers, which is slow with one text at a time


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    return Maker(tmp_path_factory.mktemp("families"))


@pytest.fixture(scope="module")
def texts(data_folder: Path) -> list[str]:
    found = real_texts(data_folder) + random_texts()
    assert len(found) == 700
    return found


def ours(task: Any, folder: Path, **options: Any) -> Any:
    return fastattn.pipeline(task, folder, device="numpy", **options)


class RunsOnce:
    """A model that stores the output of each step, for calls with other arguments for the same texts."""

    def __init__(self, model: Any) -> None:
        self._model, self._outputs = model, dict[bytes, Any]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, ids: list[Any], **options: Any) -> Any:
        step = b"|".join(row.tobytes() for row in ids)
        if step not in self._outputs:
            self._outputs[step] = self._model(ids, **options)
        return self._outputs[step]


def assert_equal(found: Any, expected: Any) -> None:
    for mine, theirs in zip(without_scores(found), without_scores(expected), strict=True):
        assert mine == theirs
    precision = np.finfo(np.float32).eps
    np.testing.assert_allclose(scores_of(found), scores_of(expected), rtol=precision, atol=precision)


@pytest.mark.parametrize("family", FAMILIES)
def test_token_classification(maker: Maker, texts: list[str], family: str) -> None:
    folder = write_family(maker, family, "TokenClassification", id2label=LABELS)
    texts = texts if family == "bert" else texts[::2]
    pipe = ours("ner", folder, truncation=True)
    pipe.model = RunsOnce(pipe.model)
    words = [text.split() for text in texts if text.split()]
    for inputs, split, strategies in ((texts, False, STRATEGIES), (words[::3], True, ("none", "max"))):
        results = _results_of_transformers(folder, inputs, split=split)
        for strategy in strategies:
            options: dict[str, Any] = {"aggregation_strategy": strategy, "ignore_labels": ["O"] if split else []}
            assert_equal(pipe(inputs, is_split_into_words=split, **options), results(**options))


def _results_of_transformers(folder: Path, inputs: list[Any], *, split: bool) -> Callable[..., list[Any]]:
    """Run transformers' model once; return a function that makes results from the outputs."""
    pipe = reference("token-classification", folder)
    params, _, _ = pipe._sanitize_parameters(is_split_into_words=split)
    outputs = [[pipe.forward(part) for part in pipe.preprocess(item, **params)] for item in inputs]

    def results(**options: Any) -> list[Any]:
        _, _, params = pipe._sanitize_parameters(**options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it warns of tokenizers without words
            return [pipe.postprocess([_copy(part) for part in output], **params) for output in outputs]

    return results


def _copy(output: dict[str, Any]) -> dict[str, Any]:
    """Return an output with positions of its own: with words, postprocess adds the place of each word to them."""
    return {**output, "offset_mapping": output["offset_mapping"].clone()}


@pytest.mark.parametrize("family", FAMILIES)
def test_fill_mask(maker: Maker, texts: list[str], family: str) -> None:
    folder = write_family(maker, family, "MaskedLM")
    pipe, theirs = ours("fill-mask", folder), reference("fill-mask", folder)
    inputs = masked(texts[::3], str(pipe.tokenizer.mask_token), seed=5)
    assert_equal(pipe(inputs, top_k=3), theirs(inputs, top_k=3, batch_size=BATCH))
    targets = sorted(pipe.tokenizer.get_vocab())[100:110]
    assert_equal(pipe(inputs[::10], targets=targets), theirs(inputs[::10], targets=targets))


@pytest.mark.parametrize("family", ["bert", "xlm-roberta"])
def test_classification_of_texts_and_pairs(maker: Maker, texts: list[str], family: str) -> None:
    folder = write_family(
        maker, family, "SequenceClassification", id2label=NLI, label2id={name: i for i, name in NLI.items()}
    )
    texts = texts[1::3]
    pairs = [{"text": a, "text_pair": b} for a, b in zip(texts, reversed(texts), strict=True)]
    pipe, theirs = ours("text-classification", folder), reference("text-classification", folder)
    assert_equal(pipe(texts, top_k=None), theirs(texts, top_k=None, batch_size=BATCH))
    options = {"top_k": 2, "function_to_apply": "sigmoid"}
    assert_equal(pipe(pairs[::2], **options), theirs(pairs[::2], batch_size=BATCH, **options))
    pipe, theirs = ours("zero-shot-classification", folder), reference("zero-shot-classification", folder)
    labels, some = ["sport", "\u597d world", "\u6771\u4eac"], [text for text in texts if text][::4]
    for multi_label in (False, True):
        options = {"multi_label": multi_label, "hypothesis_template": "It is {}!"}
        assert_equal(pipe(some, labels, **options), theirs(some, labels, **options))


def test_feature_extraction(maker: Maker, texts: list[str]) -> None:
    texts = texts[::2]
    folder = write_family(maker, "roberta", "")
    found = ours("feature-extraction", folder)(texts, return_tensors=True)
    expected = reference("feature-extraction", folder)(texts, return_tensors=True)
    precision = np.finfo(np.float32).eps
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == tuple(theirs.shape)
        np.testing.assert_allclose(mine, theirs, rtol=precision, atol=precision)


def test_text_generation(maker: Maker, texts: list[str]) -> None:
    folder = _write_gpt2(maker)
    some = [text for text in texts if text][::20]
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}
    assert ours("text-generation", folder)(some, **options) == reference("text-generation", folder)(some, **options)


def _write_gpt2(maker: Maker) -> Path:
    import torch
    import transformers

    from tests.tasks.tokenizer_folders import KINDS

    torch.manual_seed(3)
    folder = maker.files(next(kind for kind in KINDS if str(kind) == "GPT2Tokenizer-gpt2"), model_max_length=512)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=512, initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    transformers.GPT2LMHeadModel(config).eval().save_pretrained(folder)
    return folder


THEIRS = """
import json, sys
import torch, transformers

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
with open(sys.argv[1]) as file:
    job = json.load(file)
names = ("cls_token", "sep_token", "pad_token", "unk_token", "mask_token", "bos_token", "eos_token")
tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_file=job["folder"] + "/tokenizer.json",
    model_max_length=512,
    model_input_names=job["inputs"],
    **{name: job["config"][name] for name in names if job["config"].get(name)},
)
pipe = transformers.pipeline(
    "question-answering", model=job["folder"], tokenizer=tokenizer, device="cpu", torch_dtype=torch.float64
)
found = [[pipe(question=q, context=c, **options) for q, c in job["questions"]] for options in job["options"]]
with open(sys.argv[2], "w") as file:
    json.dump([transformers.__version__, found], file)
"""
ASKED: list[dict[str, Any]] = [
    {},
    {"top_k": 5, "handle_impossible_answer": True},
    {"top_k": 3, "align_to_words": False, "max_seq_len": 40, "doc_stride": 8},
    {"topk": 2, "max_question_len": 3, "padding": True},
]


@pytest.mark.parametrize("family", FAMILIES)
def test_question_answering_equals_transformers_4(maker: Maker, texts: list[str], family: str, tmp_path: Path) -> None:
    """transformers 5 has no such pipeline. FASTATTN_TRANSFORMERS_4 names a folder with transformers 4.57.

    transformers 4 may append answers of probability 0 if there are few others. Ours has none.
    """
    older = os.environ.get("FASTATTN_TRANSFORMERS_4")
    if older is None:
        pytest.skip("FASTATTN_TRANSFORMERS_4 names no folder with transformers 4.57")
    folder = write_family(maker, family, "QuestionAnswering")
    contexts = [text for text in texts if text.strip()]
    asked = [("Who was the good dog?", text) for text in contexts[::6]]
    asked += [(text[:20], f"{contexts[0]} {contexts[-1]}") for text in contexts[1::30]]
    job = {
        "folder": str(folder),
        "config": json.loads((folder / "tokenizer_config.json").read_text()),
        "inputs": ["input_ids", "attention_mask", *(["token_type_ids"] if family == "bert" else [])],
        "questions": asked,
        "options": ASKED,
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([older, str(SOURCES)])}
    arguments = [sys.executable, "-W", "ignore", "-c", THEIRS, str(tmp_path / "job.json"), str(tmp_path / "out.json")]
    subprocess.run(arguments, env=environment, check=True, capture_output=True, timeout=600)
    version, expected = json.loads((tmp_path / "out.json").read_text())
    assert version.startswith("4.57.")
    pipe = ours("question-answering", folder)
    for options, results in zip(ASKED, expected, strict=True):
        found = pipe([{"question": question, "context": context} for question, context in asked], **options)
        for mine, theirs in zip(found, results, strict=True):
            answers = [theirs] if isinstance(theirs, dict) else [row for row in theirs if row["score"] > 0]
            assert_equal([mine] if isinstance(mine, dict) else mine, answers)
