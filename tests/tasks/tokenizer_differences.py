"""Finds the differences between our tokenizer of a folder and transformers'."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fastattn.tokenizer import Tokenizer, load_tokenizer

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


def theirs_of(folder: Path) -> Any:
    """Return transformers' tokenizer."""
    import transformers

    return transformers.AutoTokenizer.from_pretrained(folder)


def differences(folder: Path, texts: Sequence[str]) -> list[str]:
    """Return differences in ids, types, masks, offsets, decoded texts, added tokens and settings; also for pairs."""
    theirs, ours = theirs_of(folder), load_tokenizer(folder)
    return [*_settings(ours, theirs), *_texts(ours, theirs, texts), *_random_ids(ours, theirs)]


def _settings(ours: Tokenizer, theirs: Any) -> Iterator[str]:
    raw, options = ours.raw, ours.options
    standard = [f"{role}_token" for role in ROLES]
    longest = theirs.model_max_length
    pairs: dict[str, tuple[Any, Any]] = {
        "roles": (dict(options.special_tokens), {r: t for r in ROLES if (t := getattr(theirs, f"{r}_token"))}),
        "extra": (set(options.extra_special_tokens), set(theirs.extra_special_tokens)),
        "named": (
            dict(options.named_special_tokens),
            {
                key.removesuffix("_token"): str(token)
                for key, token in theirs._special_tokens_map.items()
                if key not in standard
            },
        ),
        "model_max_length": (options.model_max_length, longest if longest < 2**31 else None),
        "model_input_names": (list(options.model_input_names), list(theirs.model_input_names)),
        "padding_side": (options.padding_side, theirs.padding_side),
        "truncation_side": (options.truncation_side, theirs.truncation_side),
        "split_special_tokens": (options.split_special_tokens, theirs.split_special_tokens),
        "clean_up": (options.clean_up_tokenization_spaces, theirs.clean_up_tokenization_spaces),
        "vocabulary": (raw.get_vocab(True), theirs.get_vocab()),
        "added": (_added(raw), _added(theirs.backend_tokenizer)),
        "n_special": (
            [raw.num_special_tokens_to_add(pair) for pair in (False, True)],
            [theirs.num_special_tokens_to_add(pair) for pair in (False, True)],
        ),
    }
    for name in ("special_tokens_map", "all_special_tokens", "all_special_ids", "vocab_size"):
        pairs[name] = (getattr(ours, name), getattr(theirs, name))
    for name, (found, expected) in pairs.items():
        if found != expected:
            yield f"{name}: {found!r:.300}, not {expected!r:.300}"


def _added(raw: Any) -> dict[int, str]:
    return {i: repr(token) for i, token in raw.get_added_tokens_decoder().items()}


def _texts(ours: Tokenizer, theirs: Any, texts: Sequence[str]) -> Iterator[str]:
    rng = random.Random(1)
    raw = ours.raw
    raw.encode_special_tokens = ours.options.split_special_tokens
    for i, text in enumerate(texts):
        pair = rng.choice(texts) or None if i % 2 else None
        for add in (True, False):
            found = raw.encode(text, pair, add_special_tokens=add)
            expected = theirs(
                text,
                pair,
                add_special_tokens=add,
                return_offsets_mapping=True,
                return_special_tokens_mask=True,
                return_token_type_ids=True,
                return_attention_mask=True,
            )
            columns = {
                "input_ids": found.ids,
                "token_type_ids": found.type_ids,
                "attention_mask": found.attention_mask,
                "special_tokens_mask": found.special_tokens_mask,
                "offset_mapping": found.offsets,
            }
            for name, column in columns.items():
                if list(map(tuple, expected[name]) if name == "offset_mapping" else expected[name]) != column:
                    yield f"{name} of {text!r:.80} and {pair!r:.80}: {column}, not {expected[name]}"
        yield from _decoded(ours, theirs, found.ids)
        encoding, expected = ours(text, pair), theirs(text, pair)
        if dict(encoding) != dict(expected):
            yield f"call with {text!r:.80} and {pair!r:.80}: {dict(encoding)}, not {dict(expected)}"


def _decoded(ours: Tokenizer, theirs: Any, ids: list[int]) -> Iterator[str]:
    for skip in (False, True):
        found = ours.raw.decode(ids, skip_special_tokens=skip)
        expected = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        if found != expected:
            yield f"text of {ids}: {found!r}, not {expected!r}"
        found, expected = (tokenizer.decode(ids, skip_special_tokens=skip) for tokenizer in (ours, theirs))
        if found != expected:
            yield f"decode({ids}): {found!r}, not {expected!r}"


def _random_ids(ours: Tokenizer, theirs: Any) -> Iterator[str]:
    rng = random.Random(2)
    for _ in range(10):
        yield from _decoded(ours, theirs, [rng.randrange(len(theirs)) for _ in range(12)])
