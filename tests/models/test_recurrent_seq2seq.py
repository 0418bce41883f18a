"""RecurrentSeq2Seq: near torch, beam search finds the best, the same bits however called, and typed errors."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn as fa
from fastattn.errors import ConfigError, DTypeError, InputError
from tests.reference.recurrent_torch import CONFIG, TorchSeq2Seq

pytestmark = pytest.mark.torch
pytest.importorskip("torch")
SOURCES = [[4, 5, 6, 7], [8], [9, 10, 4, 4, 5, 6, 7, 8, 9, 10, 3], [8, 9]]
VARIANTS: dict[str, dict[str, Any]] = {
    "gru-bahdanau": {},
    "lstm-bahdanau": {"cell": "lstm", "num_layers": 2},
    "gru-dot": {"attention": "luong_dot", "decoder_hidden_size": 24},
    "lstm-general": {"cell": "lstm", "attention": "luong_general", "input_feeding": True},
    "gru-concat": {"attention": "luong_concat", "num_layers": 2, "bidirectional": False},
}


def made(variant: str) -> TorchSeq2Seq:
    return TorchSeq2Seq({**CONFIG, **VARIANTS[variant]})


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("device", ["cpu", "numpy"])
def test_greedy_parity_with_torch(tmp_path: Path, variant: str, device: str) -> None:
    theirs = made(variant)
    model = fa.RecurrentSeq2Seq.from_pretrained(theirs.save(tmp_path), device=device)
    found = model.generate(SOURCES, max_new_tokens=8)
    for source, ids, score, maps in zip(SOURCES, found.sequences, found.scores, found.attentions, strict=True):
        fed = ids if len(ids) == 8 else [*ids, 2]
        logprobs, probs = theirs.follow(source, fed)
        assert fed == logprobs.argmax(axis=1).tolist()
        # float32 in about ten ops per step over eight steps, with sums of at most 40 terms of magnitude 3
        bound = 8 * 40 * 10 * 3 * 2.0**-24
        assert abs(score - logprobs[np.arange(len(fed)), fed].mean()) <= bound
        assert maps.shape == (len(ids), len(source))
        assert np.abs(maps - probs[: len(ids)]).max(initial=0.0) <= bound
        assert np.abs(maps.sum(axis=1) - 1).max(initial=0.0) <= 1e-6


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_a_wide_beam_search_finds_the_best(tmp_path: Path, length_penalty: float) -> None:
    """With more beams than hypotheses it finds the best of all results, which are enumerated with torch."""
    theirs = TorchSeq2Seq({**CONFIG, "target_vocab_size": 4})
    model = fa.RecurrentSeq2Seq.from_pretrained(theirs.save(tmp_path, vocab=False))
    for source in SOURCES[:2]:
        found = model.generate([source], num_beams=64, max_new_tokens=3, length_penalty=length_penalty)
        scores: dict[tuple[int, ...], float] = {}
        for ids in itertools.product((0, 1, 2, 3), repeat=3):
            target = list(ids[: ids.index(2) + 1] if 2 in ids else ids)
            if tuple(target) not in scores:
                rows, _ = theirs.follow(source, target)
                scores[tuple(target)] = rows[np.arange(len(target)), target].sum() / len(target) ** length_penalty
        best = max(scores, key=lambda target: scores[target])
        assert found.sequences[0] == [token for token in best if token != 2]
        assert abs(found.scores[0] - scores[best]) <= 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_same_bits(tmp_path: Path, variant: str, dtype: str, num_beams: int) -> None:
    """Alone, in a batch in any order, on any number of threads."""
    folder = made(variant).save(tmp_path)
    options = {"num_beams": num_beams, "max_new_tokens": 6}
    first = fa.RecurrentSeq2Seq.from_pretrained(folder, dtype=dtype, threads=1)
    expected = [first.generate([source], **options) for source in SOURCES]
    for threads in (1, 2):
        with fa.RecurrentSeq2Seq.from_pretrained(folder, dtype=dtype, threads=threads) as model:
            for order in ([0, 1, 2, 3], [3, 2, 1, 0, 0]):
                found = model.generate([SOURCES[i] for i in order], **options)
                assert found.sequences == [expected[i].sequences[0] for i in order]
                assert found.scores == [expected[i].scores[0] for i in order]
                for maps, i in zip(found.attentions, order, strict=True):
                    assert maps.tobytes() == expected[i].attentions[0].tobytes()


def test_texts(tmp_path: Path) -> None:
    model = fa.RecurrentSeq2Seq.from_pretrained(made("gru-bahdanau").save(tmp_path))
    found = model.generate(["la maison est bleue", "le  chien"], max_new_tokens=4)
    ids = model.generate([[4, 5, 6, 7], [8, 3]], max_new_tokens=4)
    assert found.sequences == ids.sequences
    assert found.source_tokens == [["la", "maison", "est", "bleue"], ["le", "<unk>"]]
    assert found.texts == [" ".join(tokens) for tokens in found.target_tokens]
    assert model.generate("la maison est bleue", max_new_tokens=4).sequences == found.sequences[:1]
    assert model.generate([4, 5, 6, 7], max_new_tokens=4).sequences == found.sequences[:1]
    assert model.generate([]).sequences == []


def test_characters_and_an_end(tmp_path: Path) -> None:
    theirs = TorchSeq2Seq({**CONFIG, "tokens": "characters", "append_eos": True, "unk_token_id": None})
    folder = theirs.save(tmp_path)
    (folder / "source_vocab.json").write_text(json.dumps(["<pad>", "<s>", "</s>", *"abc def"]))
    (folder / "config.json").write_text(json.dumps({**theirs.config, "source_vocab_size": 10}))
    with pytest.raises(ConfigError, match=r"encoder.embedding.weight: expected a tensor \[10, 10\], got \[11, 10\]"):
        fa.RecurrentSeq2Seq.from_pretrained(folder)
    theirs = TorchSeq2Seq({**theirs.config, "source_vocab_size": 10})
    folder = theirs.save(tmp_path, vocab=False)
    model = fa.RecurrentSeq2Seq.from_pretrained(folder)
    found = model.generate("a b", max_new_tokens=3)
    assert found.source_tokens == [["a", " ", "b", "</s>"]]
    assert found.sequences == model.generate([[3, 6, 4, 2]], max_new_tokens=3).sequences
    with pytest.raises(InputError, match=r"expected tokens of source_vocab\.json, got 'x'"):
        model.generate("ax")


def test_picture(tmp_path: Path) -> None:
    model = fa.RecurrentSeq2Seq.from_pretrained(made("gru-dot").save(tmp_path))
    picture = fa.viz.alignment(model, "la maison est bleue", max_new_tokens=5)
    output = model.generate("la maison est bleue", max_new_tokens=5)
    assert picture.data["source_tokens"] == output.source_tokens[0]
    assert picture.data["target_tokens"] == output.target_tokens[0]
    assert picture.data["attention"].tobytes() == output.attentions[0].tobytes()
    for token in ("maison", *output.target_tokens[0]):
        assert token in picture.svg
        assert token in picture.html


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gru"}, "model_type: expected recurrent-seq2seq"),
        ({"cell": "rnn"}, "cell: expected one of gru, lstm"),
        ({"attention": None}, "attention: expected one of bahdanau"),
        ({"attention": "luong_dot"}, "decoder_hidden_size: expected 24"),
        ({"input_feeding": True}, "input_feeding: expected false with bahdanau"),
        ({"hidden_size": 0}, "hidden_size: expected an integer"),
        ({"decoder_layers": 2}, "decoder_layers: expected 1"),
        ({"bos_token_id": 9}, "bos_token_id: expected an integer from 0 to 8"),
        ({"attention_size": 8}, r"attention.key.weight: expected a tensor \[8, 24\]"),
        ({"num_layers": 2}, "encoder.rnn.weight_ih_l1: expected a tensor"),
        ({"tokens": "pieces"}, "tokens: expected one of characters, words"),
    ],
)
def test_wrong_configs(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    theirs = made("gru-bahdanau")
    folder = theirs.save(tmp_path)
    (folder / "config.json").write_text(json.dumps({**theirs.config, **change}))
    with pytest.raises(ConfigError, match=message):
        fa.RecurrentSeq2Seq.from_pretrained(folder)


def test_wrong_inputs(tmp_path: Path) -> None:
    folder = made("gru-bahdanau").save(tmp_path, vocab=False)
    model = fa.RecurrentSeq2Seq.from_pretrained(folder)
    with pytest.raises(ConfigError, match=r"expected ids, because the model has no source_vocab\.json"):
        model.generate("la maison")
    for sources, error, message in (
        ([[4], []], InputError, r"sources\[1\]: expected at least one token"),
        ([[4, 11]], InputError, r"sources\[0\]\[1\]"),
        ([[4.0]], DTypeError, r"sources\[0\]\[0\]"),
        (None, DTypeError, "sources: expected texts"),
        ([None], DTypeError, r"sources\[0\]"),
    ):
        with pytest.raises(error, match=message):
            model.generate(sources)
    with pytest.raises(InputError, match="num_beams"):
        model.generate([[4]], num_beams=0)
    (folder / "target_vocab.json").write_text(json.dumps(["a", "a"]))
    with pytest.raises(ConfigError, match="expected a list of 9 different tokens"):
        fa.RecurrentSeq2Seq.from_pretrained(folder)
