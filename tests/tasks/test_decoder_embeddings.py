"""Embedding models that are decoders: the last token of Qwen3-Embedding, the mean of EmbeddingGemma; a reranker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn
from tests.models.decoder_cases import GEMMA3, QWEN3, SIZES
from tests.reference.bounds import assert_close
from tests.tasks.sentence_folders import NORMALIZE, dense, write_modules
from tests.tasks.sentence_reference import Reference

pytest.importorskip("torch")
pytest.importorskip("transformers")
from tests.reference import hf

pytestmark = pytest.mark.torch
TEXTS = ["good film", "the cat, a dog running!", "bad " * 40, "a", "Good FILM", "great unknown cats"]
PROMPTS = {"query": "find the film: ", "document": ""}
END = "<|endoftext|>"


def write_tokenizer(folder: Path, *, end: bool) -> int:
    """Write a tokenizer of bytes that pads on the left, and return its number of tokens. end: texts end with END."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({letter: i + 1 for i, letter in enumerate(letters)} | {END: 0}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([END])
    if end:
        raw.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 0)])
    raw.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": END, "eos_token": END,
                "padding_side": "left", "model_max_length": 24}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return raw.get_vocab_size()


def write_model(folder: Path, model_class: str, options: dict[str, Any], *modules: Any, end: bool) -> Path:
    folder.mkdir(exist_ok=True)
    size = write_tokenizer(folder, end=end)
    hf.save(hf.make(model_class, **{**options, "vocab_size": size, "max_position_embeddings": 64}), folder)
    return write_modules(folder, *modules, settings={"prompts": PROMPTS})


def pooling(mode: str) -> Any:
    return "Pooling", {"word_embedding_dimension": SIZES["hidden_size"], f"pooling_mode_{mode}": True}, None


@pytest.mark.parametrize("kind", ["qwen3", "gemma3", "llama"])
def test_as_sentence_transformers(kind: str, tmp_path: Path) -> None:
    made: dict[str, tuple[str, dict[str, Any], tuple[Any, ...], bool]] = {
        "qwen3": ("Qwen3Model", QWEN3, (pooling("lasttoken"), NORMALIZE), True),
        "llama": ("LlamaModel", SIZES, (pooling("weightedmean_tokens"),), False),
        "gemma3": (
            "Gemma3TextModel",
            {**GEMMA3, "use_bidirectional_attention": True},
            (pooling("mean_tokens"), dense(24, 40), dense(40, 24, bias=False), NORMALIZE),
            False,
        ),
    }
    model_class, options, modules, end = made[kind]
    folder = write_model(tmp_path / "m", model_class, options, *modules, end=end)
    reference = Reference(folder)
    with fastattn.SentenceTransformer(folder, threads=2) as model:
        alone = np.stack([model.encode(text) for text in TEXTS])
        assert np.array_equal(model.encode(TEXTS, batch_size=4), alone)
        reference.check(alone, "encode", TEXTS)
        reference.check(model.encode(TEXTS, prompt_name="query"), "encode", TEXTS, prompt_name="query")
        queries, documents = model.encode_query(TEXTS[:2]), model.encode_document(TEXTS)
        reference.check(queries, "encode_query", TEXTS[:2])
        reference.check(documents, "encode_document", TEXTS)
    assert not np.array_equal(queries, documents[:2])


def test_a_reranker_with_a_classification_head(tmp_path: Path) -> None:
    """One score per pair, from the last token: rerankers that were saved as Qwen3ForSequenceClassification."""
    folder = tmp_path / "m"
    folder.mkdir()
    size = write_tokenizer(folder, end=True)
    options = {**QWEN3, "vocab_size": size, "num_labels": 1, "max_position_embeddings": 64}
    theirs = hf.make("Qwen3ForSequenceClassification", **options)
    hf.save(theirs, folder)
    pairs = [("good film", "the film"), ("a", "the cat, a dog"), ("query", "text")]
    with fastattn.CrossEncoder(folder, threads=2) as model:
        found = model.predict(pairs, activation_fn=lambda x: x)
        assert [float(model.predict(pair, activation_fn=lambda x: x)) for pair in pairs] == found.tolist()
        tokenizer: Any = model.tokenizer
        for pair, score in zip(pairs, found, strict=True):
            ids = tokenizer.encode(*pair)
            expected = hf.array(hf.call(theirs, [ids]).logits)
            assert_close(np.array([[score]]), expected, model.model.traced, longest=len(ids), scale=8.0)
