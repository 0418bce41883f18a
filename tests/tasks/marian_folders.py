"""Folders of MarianTokenizer, created with the sentencepiece library, and the differences from transformers there."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastattn.tokenizer import Tokenizer, load_tokenizer
from tests.tasks.tokenizer_differences import theirs_of
from tests.tasks.tokenizer_folders import write_json, write_sentencepiece

CODES = (">>de<<", ">>zle_x<<")
# Texts with unusual language codes.
CODED = [
    ">>de<< Hello world",
    ">>de<<Hello",
    "  >>de<< Hello",
    ">>xx<< Hello",
    ">>two words<< x",
    ">>de<<>>zle_x<< x",
    "Hello >>de<< world",
    ">>de<",
    ">><<",
    ">>de<< </s>>>de<< a",
    "</s> >>zle_x<< b",
    "<<>>",
]
# vocab.json by name: all pieces of both models in different orders, without some of them, without language codes.
LAYOUTS = ("shared", "missing", "plain")


def write_models(folder: Path) -> Path:
    """Write source.spm and target.spm. The second has rare characters that the first does not know, and no capitals."""
    source: dict[str, Any] = {}
    target = {"vocab_size": 900, "character_coverage": 1.0, "normalization_rule_name": "nmt_nfkc_cf"}
    for name, options in (("source", source), ("target", target)):
        write_sentencepiece(folder, **options)
        (folder / "x.model").rename(folder / f"{name}.spm")
    return folder


def write_marian(folder: Path, models: Path, layout: str = "shared", **config: object) -> Path:
    """Write the models, vocab.json and the configuration; `layout` is one of LAYOUTS."""
    from sentencepiece import SentencePieceProcessor

    pieces: dict[str, None] = {}
    for name in ("source.spm", "target.spm"):
        shutil.copy(models / name, folder)
        model = SentencePieceProcessor(model_file=str(models / name))
        pieces |= dict.fromkeys(model.id_to_piece(i) for i in range(model.get_piece_size()))
    rng = random.Random(4)
    tokens = [token for token in pieces if token not in ("<s>", "</s>", "<unk>")]
    rng.shuffle(tokens)
    if layout == "missing":  # unknown characters and runs of them are tokens here, and pieces of the model are not
        tokens = [*tokens[: len(tokens) * 2 // 3], "\ue000", "\ue000\ue001", "\u2581foo", "<s>"]
    if layout != "plain":
        tokens = [*tokens, *CODES]
    vocab = {token: i for i, token in enumerate(["</s>", "<unk>", *tokens, "<pad>"])}
    write_json(folder / "vocab.json", vocab)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "MarianTokenizer", **config})
    write_json(folder / "config.json", {"model_type": "marian"})
    return folder


def differences(folder: Path, texts: Sequence[str]) -> list[str]:
    """Return the differences in ids, masks, labels, cut and padded rows, decoded texts, vocabulary and settings."""
    theirs, ours = theirs_of(folder), load_tokenizer(folder)
    assert type(theirs).__name__ == "MarianTokenizer"
    return [*_settings(ours, theirs), *_texts(ours, theirs, texts), *_batches(ours, theirs, texts)]


def _settings(ours: Tokenizer, theirs: Any) -> Iterator[str]:
    names = ["special_tokens_map", "all_special_tokens", "all_special_ids", "extra_special_tokens", "vocab_size"]
    names += ["model_max_length", "model_input_names", "padding_side", "truncation_side", "split_special_tokens"]
    names += ["clean_up_tokenization_spaces"]
    pairs: dict[str, tuple[Any, Any]] = {name: (getattr(ours, name), getattr(theirs, name)) for name in names}
    pairs["vocabulary"] = (ours.get_vocab(), theirs.get_vocab())
    pairs["length"] = (len(ours), len(theirs))
    pairs["added"] = tuple({i: str(t) for i, t in found.added_tokens_decoder.items()} for found in (ours, theirs))
    pairs["n_special"] = tuple(
        [found.num_special_tokens_to_add(pair) for pair in (False, True)] for found in (ours, theirs)
    )
    for name, (found, expected) in pairs.items():
        if found != expected:
            yield f"{name}: {found!r:.300}, not {expected!r:.300}"


def _texts(ours: Tokenizer, theirs: Any, texts: Sequence[str]) -> Iterator[str]:
    rng = random.Random(1)
    for i, text in enumerate(texts):
        pair = rng.choice(texts) if i % 4 == 1 else None
        for options in ({}, {"add_special_tokens": False}):
            keywords = {"return_special_tokens_mask": True, **options}
            found, expected = ours(text, pair, **keywords), theirs(text, pair, **keywords)
            if dict(found) != dict(expected):
                yield f"{text!r:.80} and {pair!r:.80}, {options}: {dict(found)}, not {dict(expected)}"
        found, expected = ours(text_target=text).input_ids, theirs(text_target=text).input_ids
        if found != expected:
            yield f"text_target={text!r:.80}: {found}, not {expected}"
        ids = ours.encode(text, pair)
        yield from _decoded(ours, theirs, ids)
        yield from _decoded(ours, theirs, [rng.randrange(len(theirs)) for _ in range(rng.randrange(9))])


def _decoded(ours: Tokenizer, theirs: Any, ids: list[int]) -> Iterator[str]:
    for skip in (False, True):
        for source in (None, True, False):
            keywords = {"skip_special_tokens": skip} | ({} if source is None else {"use_source_tokenizer": source})
            found, expected = ours.decode(ids, **keywords), theirs.decode(ids, **keywords)
            if found != expected:
                yield f"decode({ids}, {keywords}): {found!r}, not {expected!r}"


def _batches(ours: Tokenizer, theirs: Any, texts: Sequence[str]) -> Iterator[str]:
    words = [text.split() or ["a"] for text in texts]
    calls: list[tuple[Any, dict[str, Any]]] = [
        (list(texts), {"padding": True, "truncation": True, "max_length": 12, "return_tensors": "np"}),
        (list(texts), {"padding": "max_length", "max_length": 40, "truncation": True, "return_tensors": "np"}),
        (words, {"is_split_into_words": True, "padding": True, "return_tensors": "np"}),
        (list(zip(texts, reversed(texts), strict=True)), {"padding": True, "truncation": True, "max_length": 9}),
        (list(zip(texts, reversed(texts), strict=True)), {"truncation": "only_second", "max_length": 9000}),
        (list(texts), {"split_special_tokens": True}),
    ]
    for rows, keywords in calls:
        found, expected = ours(rows, **keywords), theirs(rows, **keywords)
        same = list(found) == list(expected) and all(
            np.array_equal(a, b) for name in found for a, b in zip(found[name], expected[name], strict=True)
        )
        if not same:
            yield f"a batch with {keywords}"
