"""Keywords of transformers' models that fastattn does not use: accepted if their values change nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastattn.checks import Neutral, check_flag, check_neutral

_KEYWORDS: Mapping[str, Neutral] = {
    "use_cache": Neutral(check=check_flag),  # the logits do not depend on it, and a call returns no cache
    "cache": Neutral((), "`generate` and `stream` have a cache of their own"),
    "cache_position": Neutral((), "`generate` and `stream` have a cache of their own"),
    "encoder_attention_mask": Neutral((), "these models have no cross attention"),
    "encoder_hidden_states": Neutral((), "these models have no cross attention"),
    "head_mask": Neutral((), "no head can be masked"),
    "inputs_embeds": Neutral((), "give input_ids"),
    "labels": Neutral((), "no loss is computed: compute it from the logits"),
    "next_sentence_label": Neutral((), "no loss is computed: compute it from the logits"),
    "past_key_values": Neutral((), "`generate` and `stream` have a cache of their own"),
}
_NAMES = (
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "position_ids",
    "logits_to_keep",
    "output_hidden_states",
    "output_attentions",
    "return_dict",
)


def check_call_keywords(others: Mapping[str, Any], where: str) -> None:
    """Reject unknown keywords and keywords that would change the result. Raises InputError, DTypeError."""
    check_neutral(others, _KEYWORDS, where, _NAMES)
