"""Fault 47: options of generation are rejected by name before any work; those that change nothing are accepted."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastattn.api.auto import AutoModelForCausalLM
from fastattn.errors import DTypeError, InputError
from fastattn.generation.options import GenerationOptions
from tests.reference.checkpoints import write_gpt2

NAN, INF = float("nan"), float("inf")
BAD_VALUES: list[tuple[str, Any]] = [
    ("max_new_tokens", -1),
    ("max_new_tokens", 2**31),
    ("min_new_tokens", -1),
    ("temperature", -0.1),
    ("temperature", NAN),
    ("temperature", INF),
    ("top_p", -0.1),
    ("top_p", 1.5),
    ("top_p", NAN),
    ("top_k", -1),
    ("top_k", 2**31),
    ("min_p", 1.1),
    ("min_p", -1e-9),
    ("repetition_penalty", 0),
    ("repetition_penalty", -1),
    ("repetition_penalty", NAN),
    ("seed", -1),
    ("seed", 2**64),
    ("seed", [1, -1]),
    ("stop_strings", ""),
    ("stop_strings", ["a", ""]),
    ("stop_strings", ["a"] * 10**4),
    ("stop_strings", ["a" * 1001]),
    ("regex", ""),
    ("choices", []),
    ("choices", ["a"] * 10**5),
    ("grammar", "a" * (10**6 + 1)),
    ("json_schema", "{"),
    ("json_schema", '{"a": 1, "a": 2}'),
    ("json_schema", {"const": NAN}),
    ("eos_token_id", -2),
    ("eos_token_id", [1, -1]),
    ("max_batch_size", 0),
    ("nan", "ignore"),
    ("truncate", "middle"),
    ("max_length", -1),
    ("min_length", -1),
    ("bos_token_id", -1),
    ("pad_token_id", -1),
    ("num_return_sequences", 0),
    ("num_return_sequences", 2),  # without do_sample
    ("typical_p", 0.0),
    ("typical_p", 1.1),
    ("epsilon_cutoff", -0.1),
    ("eta_cutoff", NAN),
    ("top_h", 0.0),
    ("presence_penalty", INF),
    ("frequency_penalty", NAN),
    ("no_repeat_ngram_size", -1),
    ("sequence_bias", {(): 1.0}),
    ("sequence_bias", {(1, -2): 1.0}),
    ("sequence_bias", {(1,): NAN}),
    ("sequence_bias", {(1,): INF}),
    ("logit_bias", {-1: 1.0}),
    ("logit_bias", {"a": 1.0}),
    ("logit_bias", {1: INF}),
    ("logit_bias", {"9" * 5000: 1.0}),
    ("bad_words_ids", [[]]),
    ("bad_words_ids", [[1, -1]]),
    ("suppress_tokens", [-1]),
    ("suppress_tokens", [0] * 10**5),
    ("begin_suppress_tokens", [-1]),
    ("forced_bos_token_id", -1),
    ("forced_eos_token_id", -1),
    ("forced_eos_token_id", [-1]),
    ("exponential_decay_length_penalty", (-1, 1.0)),
    ("exponential_decay_length_penalty", (1, -1.0)),
    ("num_beams", 0),
    ("num_beams", 10**6),
    ("num_beam_groups", 2),  # without num_beams
    ("length_penalty", INF),
    ("diversity_penalty", -1.0),
    ("diversity_penalty", 1.0),  # without groups
    ("early_stopping", "always"),
    ("best_of", 0),
    ("best_of", 2),  # without do_sample
    ("top_logprobs", -1),
    ("top_logprobs", 10**9),
    ("temperature", 10**400),
    ("top_p", 10**400),
    ("repetition_penalty", 10**400),
    ("max_new_tokens", 10**400),
    ("seed", 10**400),
    ("eos_token_id", 10**400),
    ("seed", np.broadcast_to(np.int64(1), (2**40,))),
    ("seed", range(10**9)),
    ("eos_token_id", np.broadcast_to(np.int64(1), (2**40,))),
    ("eos_token_id", [1] * 10**5),
    ("stop_strings", np.broadcast_to(np.array("a"), (2**40,))),
]
BAD_TYPES: list[tuple[str, Any]] = [
    ("max_new_tokens", 1.0),
    ("max_new_tokens", True),
    ("max_new_tokens", "3"),
    ("do_sample", 1),
    ("do_sample", None),
    ("temperature", "1"),
    ("temperature", None),
    ("temperature", True),
    ("top_k", 1.5),
    ("top_p", [0.5]),
    ("seed", 1.5),
    ("seed", [1.5]),
    ("stop_strings", b"a"),
    ("stop_strings", 3),
    ("stop_strings", ["a", None]),
    ("eos_token_id", 1.5),
    ("eos_token_id", ["a"]),
    ("nan", None),
    ("truncate", True),
    ("temperature", Decimal("0.5")),
    ("temperature", np.array([0.5])),
    ("top_p", 1j),
    ("do_sample", "false"),
    ("do_sample", np.array(True)),
    ("seed", np.ones((2, 2), np.int64)),
    ("seed", "1"),
    ("pad_token_id", "0"),
    ("num_return_sequences", 1.0),
    ("typical_p", "1"),
    ("no_repeat_ngram_size", 1.5),
    ("sequence_bias", 3),
    ("sequence_bias", [[1, 2, 3]]),
    ("sequence_bias", [[[1], "a"]]),
    ("sequence_bias", {1: 1.0}),
    ("logit_bias", [1]),
    ("logit_bias", ((1, 2, 3),)),
    ("logit_bias", (([1], 2.0),)),
    ("logit_bias", {1.5: 1.0}),
    ("bad_words_ids", [1]),
    ("bad_words_ids", [{5, 3}]),
    ("bad_words_ids", 1),
    ("suppress_tokens", 1),
    ("suppress_tokens", [1.5]),
    ("forced_bos_token_id", "a"),
    ("forced_eos_token_id", 1.5),
    ("exponential_decay_length_penalty", 3),
    ("logits_processor", [3]),
    ("logits_processor", 3),
    ("prefix_allowed_tokens_fn", 3),
    ("stopping_criteria", "x"),
    ("num_beams", True),
    ("early_stopping", 1),
    ("best_of", True),
    ("top_logprobs", True),
    ("output_scores", 1),
    ("max_length", True),
]


@pytest.mark.parametrize(("name", "value"), BAD_VALUES)
def test_fault_47_bad_value(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^{name}"):
        GenerationOptions(**{name: value})


@pytest.mark.parametrize(("name", "value"), BAD_TYPES)
def test_fault_47_bad_type(name: str, value: Any) -> None:
    with pytest.raises(DTypeError, match=rf"^{name}"):
        GenerationOptions(**{name: value})


def test_fault_47_unknown_option() -> None:
    with pytest.raises(TypeError, match="n_beams"):
        GenerationOptions(**{"n_beams": 0})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("guidance_scale", 2, "guidance_scale: expected None or 1, got 2; use logits_processor"),
        ("num_beam", 1, "(generate|stream): unknown keyword 'num_beam'; did you mean 'num_beams'?"),
        ("max_tokens", 1, "(generate|stream): unknown keyword 'max_tokens'; did you mean 'max_new_tokens'?"),
        ("num_return_sequences", 2, "num_return_sequences: expected 1"),
        ("token_type_ids", [0, 0], "token_type_ids: expected None, got .*; generate takes no token types"),
        ("use_cache", "no", "use_cache: expected True or False, got str 'no'"),
        ("q" * 200_000, 1, "(generate|stream): unknown keyword 'qqqq"),
    ],
)
def test_fault_47_unknown_option_of_a_model(tmp_path: Path, device: str, name: str, value: Any, message: str) -> None:
    with AutoModelForCausalLM.from_pretrained(write_gpt2(tmp_path), device=device) as model:
        calls: tuple[Any, ...] = (model.generate, model.stream)
        for call in calls:
            with pytest.raises((InputError, DTypeError), match=f"^{message.replace('?', '[?]')}") as caught:
                call([1, 2], **{name: value})
            assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", np.int64(3)),
        ("temperature", 0),
        ("temperature", 1e-30),
        ("temperature", np.float32(0.5)),
        ("top_p", 0),
        ("top_p", 1),
        ("top_k", 0),
        ("top_k", None),
        ("top_k", 10**6),
        ("seed", None),
        ("seed", 2**64 - 1),
        ("seed", np.array([1, 2])),
        ("stop_strings", "a"),
        ("stop_strings", ()),
        ("eos_token_id", -1),
        ("eos_token_id", np.int32(4)),
        ("nan", "finite"),
        ("nan", "propagate"),
        ("seed", range(3)),
        ("eos_token_id", {4, 5}),
        ("eos_token_id", np.array([4, 5])),
        ("stop_strings", np.array(["a", "b"])),
        ("max_length", 5),
        ("temperature", np.array(0.5)),
    ],
)
def test_fault_47_defined_edges(name: str, value: Any) -> None:
    GenerationOptions(**{name: value})


def test_fault_47_tiny_temperatures_are_greedy() -> None:
    assert GenerationOptions(do_sample=True, temperature=0).greedy
    assert GenerationOptions(do_sample=True, temperature=1e-30).greedy
    assert not GenerationOptions(do_sample=True, temperature=1e-3).greedy


def test_fault_47_min_above_max() -> None:
    with pytest.raises(InputError, match="min_new_tokens: expected at most max_new_tokens 3, got 4"):
        GenerationOptions(max_new_tokens=3, min_new_tokens=4)
