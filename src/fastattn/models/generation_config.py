"""What generation_config.json asks of generation, beside the ids of bos and eos: read, and said not to be applied."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from fastattn.checkpoint.checkpoint import read_generation_config

# Options that change what transformers generates, each with the values that change nothing; null and [] never do.
_CHANGING: Mapping[str, tuple[object, ...]] = {
    "bad_words_ids": (),
    "begin_suppress_tokens": (),
    "constraints": (),
    "do_sample": (False,),
    "dola_layers": (),
    "exponential_decay_length_penalty": (),
    "force_words_ids": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1,),
    "max_length": (20,),
    "max_new_tokens": (20,),
    "max_time": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "penalty_alpha": (0,),
    "repetition_penalty": (1,),
    "sequence_bias": (),
    "stop_strings": (),
    "suppress_tokens": (),
    "token_healing": (False,),
    "watermarking_config": (),
}
# The same of options that only matter where tokens are drawn.
_OF_SAMPLING: Mapping[str, tuple[object, ...]] = {
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "min_p": (0,),
    "temperature": (1,),
    "top_h": (),
    "top_k": (50,),
    "top_p": (1,),
    "typical_p": (1,),
}
_log = logging.getLogger("fastattn")


def warn_of_options(directory: Path) -> None:
    """Log a warning that names the options of generation_config.json that transformers would apply and we do not.

    Raises ConfigError for a broken file.
    """
    found = read_generation_config(directory)
    tables = (_CHANGING, _OF_SAMPLING) if found.get("do_sample") is True else (_CHANGING,)
    neutral = {name: values for table in tables for name, values in table.items()}
    said = [
        f"{name}={json.dumps(value):.60}"
        for name, value in found.items()
        if name in neutral and value not in (None, [], {}, *neutral[name])
    ]
    if said:
        _log.warning(
            "%s: generation_config.json: not applied: %s; give generate and stream those that you want",
            directory,
            ", ".join(said),
        )
