"""Keywords of transformers' models that fastattn does not use: accepted if their values change nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from fastattn.checks import Neutral, check_flag, check_neutral

# The input of calls that return arrays, and of calls that return lists.
OneInput: TypeAlias = "Sequence[int] | NDArray[np.integer[Any]]"
Inputs: TypeAlias = "Sequence[Sequence[int]] | Sequence[NDArray[np.integer[Any]]]"


class OtherArgs(TypedDict, total=False):
    """Keyword-only arguments of a call, and arguments of transformers that change nothing here."""

    position_ids: object
    use_cache: bool | None
    cache: None
    cache_position: None
    encoder_attention_mask: None
    encoder_hidden_states: None
    head_mask: None
    inputs_embeds: None
    labels: None
    next_sentence_label: None
    past_key_values: None


class CallArgs(OtherArgs, total=False):
    """Keyword arguments of a call."""

    output_hidden_states: bool | None
    output_attentions: bool | None


class CausalLMCallArgs(CallArgs, total=False):
    """Keyword arguments of a call of a language model."""

    logits_to_keep: int


_KEYWORDS: Mapping[str, Neutral] = {
    "use_cache": Neutral(check=check_flag),  # the logits do not depend on it, and a call returns no cache
    "cache": Neutral((), "`generate` and `stream` have a cache of their own"),
    "cache_position": Neutral((), "`generate` and `stream` have a cache of their own"),
    "encoder_attention_mask": Neutral((), "these models have no cross attention"),
    "encoder_hidden_states": Neutral((), "these models have no cross attention"),
    "head_mask": Neutral((), "no head can be masked"),
    "inputs_embeds": Neutral((), "pass input_ids"),
    "labels": Neutral((), "no loss is computed: compute it from the logits"),
    "next_sentence_label": Neutral((), "no loss is computed: compute it from the logits"),
    "past_key_values": Neutral((), "`generate` and `stream` have a cache of their own"),
}


class NoArgs(TypedDict):
    """No further keyword arguments."""


_NAMES = ("input_ids", "attention_mask", "token_type_ids", "return_dict", *CausalLMCallArgs.__annotations__)


def check_call_keywords(others: Mapping[str, Any], where: str) -> None:
    """Reject unknown keywords and keywords that would change the result. Raises InputError, DTypeError."""
    check_neutral(others, _KEYWORDS, where, _NAMES)


def refuse_keywords(others: Mapping[str, Any], where: str, known: Sequence[str]) -> None:
    """Reject all keywords. known: the arguments that the method has. Raises InputError."""
    check_neutral(others, {}, where, known, hint=f"; it takes {' and '.join(known)}")
