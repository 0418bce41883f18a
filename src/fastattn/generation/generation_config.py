"""Warns about the options in generation_config.json, other than the bos and eos ids, that are not applied."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from fastattn.checkpoint.checkpoint import read_generation_config
from fastattn.checks import is_neutral, quote
from fastattn.generation.generation_keywords import KEYWORDS
from fastattn.generation.options import DEFAULT_NEW_TOKENS, OPTIONS

# Options that change what transformers generates.
_CHANGING = """
    bad_words_ids begin_suppress_tokens constraints do_sample dola_layers exponential_decay_length_penalty
    force_words_ids forced_bos_token_id forced_eos_token_id guidance_scale max_length max_new_tokens max_time
    min_length min_new_tokens no_repeat_ngram_size num_beams num_return_sequences penalty_alpha
    repetition_penalty sequence_bias stop_strings suppress_tokens token_healing watermarking_config
"""
# Options that only matter when sampling.
_OF_SAMPLING = """
    epsilon_cutoff eta_cutoff min_p temperature top_h top_k top_p typical_p
"""
# transformers' defaults. Ours are None, which also ends a text after DEFAULT_NEW_TOKENS tokens.
_DEFAULTS = {"max_length": DEFAULT_NEW_TOKENS, "max_new_tokens": DEFAULT_NEW_TOKENS}
_log = logging.getLogger("fastattn")


def warn_of_options(directory: Path, config: Mapping[str, object]) -> None:
    """Log the options that transformers takes from generation_config.json, or else config.json, and that we ignore.

    config: config.json, including the ids of generation_config.json. Raises ConfigError for a broken file.
    """
    found: Mapping[str, object] = read_generation_config(directory)
    name = "generation_config.json"
    if found and found.get("eos_token_id") is None and config.get("eos_token_id") is not None:
        _log.warning(
            "%s: %s has no eos_token_id; texts end at the one of config.json, which transformers ignores",
            directory,
            name,
        )
    if not found and not (directory / name).exists():
        found, name = config, "config.json"
    said = [f"{option}={quote(found[option])}" for option in unapplied(found)]
    if said:
        _log.warning(
            "%s: %s: not applied: %s; to apply an option, pass it to generate, stream or the pipeline",
            directory,
            name,
            ", ".join(said),
        )
    if config.get("prefix"):
        _log.warning(
            "%s: config.json: prefix %s is not added to prompts; pass prefix= to the text-generation pipeline",
            directory,
            quote(config["prefix"]),
        )


def unapplied(options: Mapping[str, object]) -> list[str]:
    """Return the names of the options that change what transformers generates, and that are not applied here."""
    names = f"{_CHANGING} {_OF_SAMPLING}" if options.get("do_sample") is True else _CHANGING
    neutral = {name: _neutral_values(name) for name in names.split()}
    return [
        name for name, value in options.items() if name in neutral and not is_neutral(value, neutral[name], empty=True)
    ]


def _neutral_values(name: str) -> tuple[object, ...]:
    """Return the values of an option with which transformers generates the same as without it."""
    entry = OPTIONS.get(name)
    return KEYWORDS[name].values if entry is None else (_DEFAULTS.get(name, entry.default),)
