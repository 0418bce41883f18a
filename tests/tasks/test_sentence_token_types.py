"""GPT-2 adds token types if its tokenizer makes them, in sentence vectors as in token vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import fastattn as fa
from tests.reference import checkpoints
from tests.tasks.bounds import assert_as_good_as
from tests.tasks.sentence_folders import write_json, write_modules
from tests.tasks.tokenizers import write_bert

TEXTS = ["good film", "the cat, a dog", "a"]


def write_gpt2(folder: Path, mode: str, *, types: bool) -> Path:
    """Write a GPT-2 with a BERT tokenizer, as Chinese GPT-2 models have."""
    write_bert(folder)
    words = len((folder / "vocab.txt").read_text(encoding="utf-8").splitlines())
    checkpoints.write_gpt2(folder, vocab_size=words, n_positions=32)
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if types else [])]
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "model_input_names": names})
    width = fa.AutoModel.from_pretrained(folder, threads=1).config.hidden_size
    return write_modules(folder, ("Pooling", {"word_embedding_dimension": width, f"pooling_mode_{mode}": True}, None))


@pytest.mark.parametrize("mode", ["cls_token", "lasttoken", "max_tokens"])
def test_vectors_are_pooled_from_the_token_vectors(tmp_path: Path, mode: str) -> None:
    model = fa.SentenceTransformer(write_gpt2(tmp_path, mode, types=True), threads=1)
    pool = {"cls_token": lambda rows: rows[0], "lasttoken": lambda rows: rows[-1], "max_tokens": lambda r: r.max(0)}
    tokens = model.encode(TEXTS, output_value="token_embeddings")
    for vector, rows in zip(model.encode(TEXTS), tokens, strict=True):
        np.testing.assert_array_equal(vector, pool[mode](np.asarray(rows)))


def test_types_change_the_vectors(tmp_path: Path) -> None:
    with_types = fa.SentenceTransformer(write_gpt2(tmp_path / "a", "mean_tokens", types=True), threads=1)
    without = fa.SentenceTransformer(write_gpt2(tmp_path / "b", "mean_tokens", types=False), threads=1)
    assert not np.array_equal(with_types.encode(TEXTS), without.encode(TEXTS))


@pytest.mark.torch
@pytest.mark.parametrize("mode", ["mean_tokens", "cls_token", "max_tokens", "weightedmean_tokens"])
def test_vectors_of_sentence_transformers(tmp_path: Path, mode: str) -> None:
    reference = pytest.importorskip("sentence_transformers")
    folder = write_gpt2(tmp_path, mode, types=True)
    for text in TEXTS:  # one at a time: in batches their vectors depend on the padding
        ours = fa.SentenceTransformer(folder, threads=1).encode(text)
        rough = reference.SentenceTransformer(str(folder), device="cpu")
        exact = reference.SentenceTransformer(str(folder), device="cpu").double()
        assert_as_good_as(ours, exact.encode(text), rough.encode(text))
