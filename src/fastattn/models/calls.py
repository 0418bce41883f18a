"""Keywords of transformers' models that fastattn has no use for: accepted with the values that change nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastattn.checks import check_flag, closest, quote
from fastattn.errors import InputError

# What to do instead of giving them; None is accepted.
_REFUSED: Mapping[str, str] = {
    "cache": "`generate` and `stream` have a cache of their own",
    "cache_position": "`generate` and `stream` have a cache of their own",
    "encoder_attention_mask": "these models have no cross attention",
    "encoder_hidden_states": "these models have no cross attention",
    "head_mask": "no head can be masked",
    "inputs_embeds": "give input_ids",
    "labels": "no loss is computed: compute it from the logits",
    "next_sentence_label": "no loss is computed: compute it from the logits",
    "past_key_values": "`generate` and `stream` have a cache of their own",
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
    "use_cache",
)


def check_call_keywords(others: Mapping[str, Any], where: str) -> None:
    """Refuse keywords that would change something, and names that nobody knows. Raises InputError, DTypeError.

    use_cache is accepted: a call gives the same logits with it, and returns no cache.
    """
    for name, value in others.items():
        if name == "use_cache":
            if value is not None:
                check_flag("use_cache", value)
        elif name in _REFUSED:
            if value is not None:
                raise InputError(f"{name}: expected None, got {quote(value)}; {_REFUSED[name]}")
        else:
            hint = closest(name, (*_NAMES, *_REFUSED))
            raise InputError(f"{where}: unknown keyword {quote(name)}{hint}")
