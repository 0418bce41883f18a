"""The defaults of a checkpoint: the options in generation_config.json, or else in config.json, as in transformers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastattn.checkpoint.checkpoint import read_generation_config
from fastattn.checks import is_neutral, quote
from fastattn.errors import DTypeError, InputError
from fastattn.generation.generation_keywords import KEYWORDS
from fastattn.generation.options import DEFAULT_NEW_TOKENS, OPTIONS

# Options of transformers' GenerationConfig that are ours too. The bos, eos and padding ids are in the model's config.
_APPLIED = """
    bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping epsilon_cutoff eta_cutoff
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length max_new_tokens
    max_time min_length min_new_tokens min_p no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
    output_logits output_scores repetition_penalty sequence_bias stop_strings suppress_tokens temperature top_h top_k
    top_p typical_p
"""
# Options that change what transformers generates, and that have no counterpart here.
_CHANGING = """
    constraints dola_layers force_words_ids guidance_scale penalty_alpha token_healing watermarking_config
"""
APPLIED = frozenset(name for name in _APPLIED.split() if name in OPTIONS)
_log = logging.getLogger("fastattn")


def read_defaults(directory: Path, config: Mapping[str, object]) -> dict[str, Any]:
    """Return the options that `generate` uses unless a call has others; log those that cannot be applied.

    They are those of generation_config.json, or without that file those of config.json. config: the options of
    config.json, with the token ids of generation_config.json. Raises ConfigError for a broken file.
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
        _log.warning("%s: %s: not applied: %s", directory, name, ", ".join(said))
    if config.get("prefix"):
        _log.warning(
            "%s: config.json: prefix %s is not added to prompts; pass prefix= to the text-generation pipeline",
            directory,
            quote(config["prefix"]),
        )
    return {option: value for option, value in found.items() if option in APPLIED and _problem(option, value) == ""}


def _problem(name: str, value: object) -> str:
    """Return why a value cannot be applied; "" if it can, "unset" if it is none."""
    if value is None or (name == "max_length" and value == DEFAULT_NEW_TOKENS):  # transformers' old default
        return "unset"
    check = OPTIONS[name].check
    try:
        if check is not None:
            check(name, value)
    except (DTypeError, InputError) as error:
        return str(error)
    return ""


def with_defaults(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a call, with a checkpoint's defaults for those that it does not have.

    use_model_defaults=False ignores them. None means "not given", except for top_k. A maximum of the call replaces
    both maximums of the checkpoint, and limits its minimum.
    """
    options = {name: value for name, value in given.items() if value is not None or name == "top_k"}
    if given.get("use_model_defaults") is False:
        return options
    found = dict(defaults)
    if "max_length" in options or "max_new_tokens" in options:
        found.pop("max_length", None)
        found.pop("max_new_tokens", None)
    limit = options.get("max_new_tokens")
    if "min_new_tokens" in found and isinstance(limit, int) and "min_new_tokens" not in options:
        found["min_new_tokens"] = min(found["min_new_tokens"], limit)
    return {**found, **options}


def unapplied(options: Mapping[str, object]) -> list[str]:
    """Return the names of the options that change what transformers generates, and that cannot be applied here."""
    names = []
    for name, value in options.items():
        if name in APPLIED:
            if _problem(name, value) not in ("", "unset"):
                names.append(name)
        elif name in _CHANGING.split() and not is_neutral(value, KEYWORDS[name].values, empty=True):
            names.append(name)
    return names
