"""Fault 47: options of generation, each refused by name before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastattn.errors import DTypeError, InputError
from fastattn.generation.options import GenerationOptions
from fastattn.models.auto import AutoModelForCausalLM
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
    ("eos_token_id", -2),
    ("eos_token_id", [1, -1]),
    ("max_batch_size", 0),
    ("nan", "ignore"),
    ("nan", None),
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
    with pytest.raises(TypeError, match="num_beams"):
        GenerationOptions(num_beams=0)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["max_length", "num_beams", "num_return_sequences"])
def test_fault_47_unknown_option_of_a_model(tmp_path: Path, device: str, name: str) -> None:
    hint = ".*; max_new_tokens counts the new tokens alone$" if name == "max_length" else ""
    with AutoModelForCausalLM.from_pretrained(write_gpt2(tmp_path), device=device) as model:
        for call in (model.generate, model.stream):
            with pytest.raises(InputError, match=f"^unknown option {name}; known: max_new_tokens, {hint}"):
                call([1, 2], **{name: 0})


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
