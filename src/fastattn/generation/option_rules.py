"""Checks of options of generation that depend on each other. All raise InputError."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastattn.checks import quote
from fastattn.errors import InputError

if TYPE_CHECKING:
    from fastattn.generation.options import GenerationOptions

CONSTRAINTS = ("regex", "json_schema", "choices", "grammar")  # a text has at most one of them
_PROPOSALS = ("prompt_lookup_num_tokens", "assistant_model")  # the same


def check_overflow(options: GenerationOptions) -> None:
    """Check that no other option conflicts with overflow="slide"."""
    if options.overflow == "slide" and options.truncate is not None:
        raise InputError(f"overflow: expected 'error' with truncate={options.truncate!r}, got 'slide'; pass one")
    if options.overflow == "slide" and options.num_beams > 1:
        raise InputError("overflow: expected 'error' with num_beams, got 'slide'; beam search has no sliding context")


def check_texts(options: GenerationOptions) -> None:
    """Check the numbers of texts per prompt."""
    n_texts, best_of = options.num_return_sequences, options.best_of
    if options.num_beams > 1 or options.num_beam_groups > 1 or options.diversity_penalty:
        _check_beams(options)
    elif n_texts > 1 and options.greedy:
        raise InputError(
            f"num_return_sequences: expected 1 without do_sample=True, got {n_texts}; greedy search gives the same "
            "text each time, num_beams gives different ones"
        )
    if best_of is None or best_of == 1:
        return
    if options.greedy or options.num_beams > 1:
        found = "num_beams" if options.num_beams > 1 else "greedy search"
        raise InputError(
            f"best_of: expected do_sample=True and no beams, got {best_of} with {found}; pass do_sample=True alone"
        )
    if best_of < n_texts:
        raise InputError(f"best_of: expected at least num_return_sequences {n_texts}, got {best_of}; raise best_of")


def _check_beams(options: GenerationOptions) -> None:
    """Check the numbers of a beam search."""
    n_beams, n_groups, n_texts = options.num_beams, options.num_beam_groups, options.num_return_sequences
    if n_beams % n_groups:
        raise InputError(
            f"num_beam_groups: expected a divisor of num_beams {n_beams}, got {n_groups}; groups are equal"
        )
    if n_texts > n_beams:
        raise InputError(f"num_return_sequences: expected at most num_beams {n_beams}, got {n_texts}; raise num_beams")
    if n_groups > 1 and not options.greedy:
        raise InputError("num_beam_groups: expected 1 with do_sample=True, got more; groups do not sample")
    if n_groups == 1 and options.diversity_penalty:
        raise InputError("diversity_penalty: expected 0 with one group of beams, got more; set num_beam_groups")


def check_constraint(options: GenerationOptions) -> None:
    """Check that a text has at most one constraint, and no beams with one."""
    given = [name for name in CONSTRAINTS if getattr(options, name) is not None]
    if len(given) > 1:
        raise InputError(f"{given[1]}: expected None, because {given[0]} is set, got both; pass one of them")
    if given and options.num_beams > 1:
        raise InputError(
            f"num_beams: expected 1 with {given[0]}, got {options.num_beams}; best_of draws several texts and returns "
            "the likeliest"
        )


def check_speculation(options: GenerationOptions) -> None:
    """Check that a text has at most one source of proposals, and no beams with one."""
    given = [name for name in _PROPOSALS if getattr(options, name) is not None]
    if len(given) > 1:
        raise InputError("assistant_model: expected None with prompt_lookup_num_tokens, got both; pass one of them")
    if given and options.num_beams > 1:
        raise InputError(
            f"{given[0]}: expected None with num_beams, got both; leave it out, beam search uses no proposed tokens"
        )


def check_unseen(given: Mapping[str, Any], names: Sequence[str], where: str, instead: str) -> None:
    """Check that a call does not set options that record what it would not return."""
    for name in names:
        if given.get(name):
            nothing = 0 if name == "top_logprobs" else False
            raise InputError(f"{name}: expected {nothing} {where}, got {quote(given[name])}; {instead}")
