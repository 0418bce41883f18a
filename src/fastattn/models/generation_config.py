"""What generation_config.json asks of generation, beside the ids of bos and eos: read, and said not to be applied."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from fastattn.checkpoint.checkpoint import read_generation_config
from fastattn.checks import is_neutral
from fastattn.models.generation_keywords import KEYWORDS, OPTIONS

# Options that change what transformers generates.
_CHANGING = """
    bad_words_ids begin_suppress_tokens constraints do_sample dola_layers exponential_decay_length_penalty
    force_words_ids forced_bos_token_id forced_eos_token_id guidance_scale max_length max_new_tokens max_time
    min_length min_new_tokens no_repeat_ngram_size num_beams num_return_sequences penalty_alpha
    repetition_penalty sequence_bias stop_strings suppress_tokens token_healing watermarking_config
"""
# Options that only matter where tokens are drawn.
_OF_SAMPLING = """
    epsilon_cutoff eta_cutoff min_p temperature top_h top_k top_p typical_p
"""
_log = logging.getLogger("fastattn")


def warn_of_options(directory: Path) -> None:
    """Log a warning that names the options of generation_config.json that transformers would apply and we do not.

    Raises ConfigError for a broken file.
    """
    found = read_generation_config(directory)
    names = f"{_CHANGING} {_OF_SAMPLING}" if found.get("do_sample") is True else _CHANGING
    neutral = {name: (OPTIONS.get(name) or KEYWORDS[name]).values for name in names.split()}
    said = [
        f"{name}={json.dumps(value):.60}"
        for name, value in found.items()
        if name in neutral and not is_neutral(value, neutral[name], empty=True)
    ]
    if said:
        _log.warning(
            "%s: generation_config.json: not applied: %s; give generate and stream those that you want",
            directory,
            ", ".join(said),
        )
