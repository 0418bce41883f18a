"""The options of generation, fully checked before any work."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastattn.checks import check_flag, check_neutral
from fastattn.errors import InputError
from fastattn.generation.generation_keywords import KEYWORDS
from fastattn.generation.keywords import with_generation_config
from fastattn.generation.option_checks import (
    SEED,
    STOP,
    check_assistant,
    check_decay,
    check_early_stopping,
    check_eos,
    check_function,
    check_functions,
    check_id_or_ids,
    check_ids,
    check_logit_bias,
    check_seeds,
    check_sequence_bias,
    check_stops,
    check_words,
)
from fastattn.generation.option_rules import (
    CONSTRAINTS,
    check_constraint,
    check_overflow,
    check_speculation,
    check_texts,
)
from fastattn.generation.structured_checks import CHOICE, GRAMMAR, check_choices, check_json_schema
from fastattn.options import Choice, Count, Each, Flag, Named, Number, Pair, Text, option, options_of

DEFAULT_NEW_TOKENS = 20
RANDOM_SEED_BITS = 53
GREEDY_BELOW = 1e-6  # lower temperatures are greedy: the scaled logits would overflow float32
NanPolicy: TypeAlias = Literal["raise", "finite", "propagate"]
NAN_POLICIES = ("raise", "finite", "propagate")
MAX_TOP_LOGPROBS = 1000
_A_FUNCTION = "a command line has no functions"
MAX_AHEAD = 64  # proposed tokens per step
_TINY = 1e-6  # instead of 0, where 0 would leave nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """Options of `generate` and `stream`. Every field is checked; an InputError or DTypeError names the wrong one.

    max_new_tokens: None is 20, or the remaining context if that is less; 0 returns the prompt.
    min_new_tokens: end-of-text ids are not drawn before this many tokens.
    max_length, min_length: the same, but including the prompt (for an array, including its padding); max_new_tokens and
        min_new_tokens take precedence.
    do_sample: draw at random; otherwise take the highest logit. temperature: below 1e-6 is greedy.
    top_k: 0 is off, more than the vocabulary is off. top_p: 1 is off, 0 leaves one candidate. min_p: 0 is off.
    repetition_penalty: 1 is off; applies to the ids of the prompt and the new text.
    typical_p: keep the tokens whose surprise is closest to the expected one, up to this probability; 1 is off.
    epsilon_cutoff, eta_cutoff: remove tokens below this probability; eta_cutoff adapts to the entropy; 0 is off.
    top_h: keep the likeliest of 100 tokens, up to this part of their entropy; None is off.
    presence_penalty, frequency_penalty: subtracted from the logits of ids in the new text, once or for each occurrence.
    no_repeat_ngram_size: no sequence of this many ids occurs twice, including the prompt; 0 is off.
    sequence_bias: {(id, ...): bias} or [[[id, ...], bias], ...]: added to the logit of the last id of a sequence if the
        text ends with the ids before it. logit_bias: {id: bias}, the same for single ids. -inf forbids.
    bad_words_ids: sequences of ids that are never completed.
    suppress_tokens: ids that are never drawn. begin_suppress_tokens: ids that are not drawn first.
    forced_bos_token_id: the id drawn first after a prompt of one id. forced_eos_token_id: the id (or ids) that may be
        drawn last, when the maximum length is reached.
    exponential_decay_length_penalty: (start, factor): n tokens after the first `start` new ones, the logit of the eos
        ids rises by abs(logit) * (factor**n - 1).
    logits_processor: functions (input_ids int64 [1, n_tokens], scores float32 [1, vocab_size]) -> scores, called for
        each request separately after all other processors and before temperature. prefix_allowed_tokens_fn: a function
        (index of the prompt, ids int64 [n_tokens]) -> list of ids that may be drawn.
    stopping_criteria: functions (input_ids int64 [1, n_tokens], None) -> bool; True ends the request.
    num_beams: number of beams; 1 is no beam search. length_penalty: exponent of the length by which the score of a beam
        is divided. early_stopping: True stops at num_beams finished beams, False when no better one is likely, "never"
        when no better one is possible. num_beam_groups, diversity_penalty: groups of beams; a group's log-probability
        of an id falls by the penalty for each beam of an earlier group that just drew it (Vijayakumar et al. 2016).
    best_of: draw this many texts per prompt and return the num_return_sequences with the highest mean log-probability.
    top_logprobs: number of most likely ids whose log-probabilities a GenerateOutput has for each new token.
    output_scores, output_logits: whether a GenerateOutput has the processed scores, or the logits, of each new token.
    seed: None chooses random seeds; an int s gives request i `request_seed(s, i)`; a list gives each request its own.
        A request is one text: with num_return_sequences=n, prompt p has requests p * n to p * n + n - 1.
    stop_strings: the text ends before the first of them.
    regex, json_schema, choices, grammar: what the new text must match; at most one of them. They need the extra
        `structured`. The text ends with an eos id as soon as it is complete and nothing can follow, and may end when it
        is complete; with finish reason "length" it may be incomplete. No beam search. regex: in the syntax of Rust's
        regex crate, which has no look-around and no back references. json_schema: a dict, JSON text or a pydantic
        model; {"type": "object"} is any JSON object. choices: a list of texts. grammar: in the Lark-like syntax of
        llguidance, or GBNF.
    eos_token_id: None uses the checkpoint's, -1 uses none; an int or several ints replace the checkpoint's.
    bos_token_id: the start of an empty prompt; None uses the checkpoint's bos, else its eos.
    pad_token_id: the padding id in prompts without attention_mask; None uses the checkpoint's. An id that is also an
        eos id is never padding.
    overflow: what happens when prompt and new tokens exceed the context. "error" rejects the prompt. "slide" continues:
        when the context is full, its first half is dropped, and the rest is read again as a new text.
    max_time: seconds after which a text ends with the tokens that it has; finish reason "time". None: no limit.
    prompt_lookup_num_tokens: propose up to this many tokens that followed the last ones where they occurred before in
        the text. A step verifies several of them at once, so that a text that repeats is faster. The output does not
        change; see docs/how-to/generate.md. None is off. max_matching_ngram_size: how many of the last tokens
        are compared at most; None is 2.
    assistant_model: a smaller model with the same vocabulary that proposes tokens, or "int4", "int8" or "bfloat16": a
        copy of the model itself in this dtype, loaded at the first use. num_assistant_tokens: the maximum number of
        proposed tokens per step; None is 8.
    adapter_name: an adapter that `load_adapter` loaded; None is the model itself.
    priority: calls with a higher one go first, also before those that already run if memory is short.
    num_return_sequences: number of texts per prompt, returned consecutively; more than 1 requires do_sample=True or as
        many beams.
    truncate: "left" or "right" cuts a prompt on that side if it and the new tokens exceed the context; None rejects it.
    max_batch_size: number of sequences that run at a time; results do not depend on it.
    nan: how to treat a row of logits that contains NaN or +inf or is all -inf. "raise" raises NonFiniteError. "finite"
        draws from the finite logits and raises NonFiniteError only if there are none. "propagate" never raises: NaN
        counts as -inf, +inf as the largest number, an all -inf row gives the lowest id that may be drawn, and the
        log-probability of the token is NaN.
    """

    max_new_tokens: int | None = option(
        None,
        Count(),
        flag=Flag(names=("-n", "--max-new-tokens", "--max-tokens"), default=64, metavar="N", help="(default: 64)"),
    )
    min_new_tokens: int = option(
        0, Count(), flag=Flag(default=0, metavar="N", help="at least N new tokens before an end (default: 0)")
    )
    do_sample: bool = option(False, check_flag, no_flag="--temperature 0 is greedy, others sample")
    temperature: float = option(
        1.0,
        Number(0.0),
        flag=Flag(names=("--temperature", "--temp"), default=0.8, metavar="T", help="0 is greedy (default: 0.8)"),
    )
    top_p: float = option(1.0, Number(0.0, 1.0), flag=Flag(default=0.95, metavar="P", help="1 is off (default: 0.95)"))
    top_k: int | None = option(50, Count(), flag=Flag(default=50, metavar="K", help="0 is off (default: 50)"))
    min_p: float = option(0.0, Number(0.0, 1.0), flag=Flag(default=0.0, metavar="P", help="0 is off (default: 0)"))
    repetition_penalty: float = option(
        1.0, Number(1e-6, 1e6), flag=Flag(default=1.0, metavar="R", help="1 is off (default: 1)")
    )
    seed: int | Sequence[int] | None = option(
        None,
        check_seeds,
        flag=Flag(
            values=SEED,
            metavar="S",
            help="repeat a text: the first prompt gets S, the others get seeds derived from it; --json prints the "
            "seeds, those of 2^53 or more as strings (default: random)",
        ),
    )
    stop_strings: str | Sequence[str] | None = option(
        None,
        check_stops,
        flag=Flag(
            names=("--stop",), values=STOP, metavar="TEXT", repeatable=True, help="end before this text; repeatable"
        ),
    )
    regex: str | None = option(
        None, GRAMMAR, flag=Flag(metavar="REGEX", help="the new text matches this regular expression")
    )
    json_schema: Mapping[str, Any] | str | type | None = option(
        None,
        check_json_schema,
        flag=Flag(values=GRAMMAR, metavar="FILE", help="the new text is JSON of this schema: a file, or {...}"),
    )
    choices: Sequence[str] | None = option(
        None,
        check_choices,
        flag=Flag(
            names=("--choice",),
            values=CHOICE,
            metavar="TEXT",
            repeatable=True,
            help="the new text is one of the texts given with this flag; repeatable",
        ),
    )
    grammar: str | None = option(
        None, GRAMMAR, flag=Flag(metavar="FILE", help="the new text follows the Lark or GBNF grammar in this file")
    )
    eos_token_id: int | Sequence[int] | None = option(
        None,
        check_eos,
        flag=Flag(values=Each(Count()), metavar="ID,ID", help="end at these ids (default: those of the checkpoint)"),
    )
    truncate: Literal["left", "right"] | None = option(
        None,
        Choice("left", "right"),
        flag=Flag(help="cut this side of prompts that leave no room for -n new tokens"),
    )
    max_batch_size: int = option(
        32,
        Count(low=1),
        flag=Flag(default=32, metavar="N", help="with --no-stream or --json: texts at a time (default: 32)"),
    )
    nan: Literal["raise", "finite", "propagate"] = option(
        "raise",
        Choice(*NAN_POLICIES),
        flag=Flag(default="raise", help="what to do with logits that are not finite (default: raise)"),
    )
    max_length: int | None = option(None, Count(), no_flag="-n counts the new tokens only")
    min_length: int = option(0, Count(), no_flag="--min-new-tokens counts the new tokens only")
    bos_token_id: int | None = option(
        None, Count(), flag=Flag(metavar="ID", help="begin an empty prompt with this id (default: the checkpoint's)")
    )
    pad_token_id: int | None = option(None, Count(), no_flag="texts have no padding")
    num_return_sequences: int = option(
        1, Count(low=1), flag=Flag(default=1, metavar="N", help="texts per prompt (default: 1)")
    )
    typical_p: float = option(
        1.0, Number(_TINY, 1.0), flag=Flag(default=1.0, metavar="P", help="typical sampling; 1 is off (default: 1)")
    )
    epsilon_cutoff: float = option(
        0.0, Number(0.0, 1.0), flag=Flag(default=0.0, metavar="P", help="0 is off (default: 0)")
    )
    eta_cutoff: float = option(0.0, Number(0.0, 1.0), flag=Flag(default=0.0, metavar="P", help="0 is off (default: 0)"))
    top_h: float | None = option(None, Number(_TINY, 1.0), flag=Flag(metavar="P", help="top-H sampling (default: off)"))
    presence_penalty: float = option(
        0.0, Number(-1e6, 1e6), flag=Flag(default=0.0, metavar="X", help="0 is off (default: 0)")
    )
    frequency_penalty: float = option(
        0.0, Number(-1e6, 1e6), flag=Flag(default=0.0, metavar="X", help="0 is off (default: 0)")
    )
    no_repeat_ngram_size: int = option(
        0, Count(), flag=Flag(default=0, metavar="N", help="no N tokens occur twice; 0 is off (default: 0)")
    )
    sequence_bias: Mapping[Any, float] | Sequence[Any] | None = option(
        None,
        check_sequence_bias,
        flag=Flag(
            values=Pair(Each(Count()), Number()),
            metavar="ID,ID=X",
            repeatable=True,
            help="add X to the logit of the last of these ids after the others; repeatable",
        ),
    )
    logit_bias: Mapping[Any, float] | None = option(
        None,
        check_logit_bias,
        flag=Flag(
            values=Pair(Count(), Number()), metavar="ID=X", repeatable=True, help="add X to the logit; repeatable"
        ),
    )
    bad_words_ids: Sequence[Sequence[int]] | None = option(
        None,
        check_words,
        flag=Flag(
            values=Each(Count()), metavar="ID,ID", repeatable=True, help="never write these ids in a row; repeatable"
        ),
    )
    suppress_tokens: Sequence[int] | None = option(
        None, check_ids, flag=Flag(values=Each(Count()), metavar="ID,ID", help="never draw these ids")
    )
    begin_suppress_tokens: Sequence[int] | None = option(
        None, check_ids, flag=Flag(values=Each(Count()), metavar="ID,ID", help="do not draw these ids first")
    )
    forced_bos_token_id: int | None = option(
        None, Count(), flag=Flag(metavar="ID", help="draw this id first after a prompt of one id")
    )
    forced_eos_token_id: Sequence[int] | int | None = option(
        None, check_id_or_ids, flag=Flag(values=Each(Count()), metavar="ID,ID", help="draw one of these ids last")
    )
    exponential_decay_length_penalty: tuple[int, float] | None = option(
        None,
        check_decay,
        flag=Flag(
            values=Pair(Count(), Number(0.0), separator=","),
            metavar="N,X",
            help="raise the logit of the end after N new tokens, by a factor X per token",
        ),
    )
    adapter_name: str | None = option(None, Text(1, 4096), no_flag="--adapter adds one adapter to the weights")
    logits_processor: Sequence[Callable[..., Any]] | None = option(None, check_functions, no_flag=_A_FUNCTION)
    prefix_allowed_tokens_fn: Callable[..., Any] | None = option(None, check_function, no_flag=_A_FUNCTION)
    stopping_criteria: Sequence[Callable[..., Any]] | None = option(None, check_functions, no_flag=_A_FUNCTION)
    num_beams: int = option(
        1, Count(1, 1024), flag=Flag(default=1, metavar="N", help="beam search; 1 is off (default: 1)")
    )
    num_beam_groups: int = option(
        1,
        Count(1, 1024),
        flag=Flag(default=1, metavar="N", help="groups of beams that avoid each other, if greedy (default: 1)"),
    )
    diversity_penalty: float = option(
        0.0, Number(0.0, 1e6), flag=Flag(default=0.0, metavar="X", help="for tokens of earlier groups (default: 0)")
    )
    length_penalty: float = option(
        1.0, Number(-1e3, 1e3), flag=Flag(default=1.0, metavar="X", help="exponent in beam search (default: 1)")
    )
    early_stopping: bool | Literal["never"] = option(
        False,
        check_early_stopping,
        flag=Flag(
            values=Named({"true": True, "false": False, "never": "never"}),
            default=False,
            help="when beam search ends: at --num-beams finished beams, when no better one is likely, or when none is "
            "possible (default: false)",
        ),
    )
    best_of: int | None = option(
        None, Count(low=1), flag=Flag(metavar="N", help="draw N texts per prompt and print the likeliest")
    )
    top_logprobs: int = option(
        0,
        Count(high=MAX_TOP_LOGPROBS),
        flag=Flag(
            default=0,
            metavar="N",
            help="with --json: print the log-probability of each new token, and of the N likeliest (default: 0, none)",
        ),
    )
    output_scores: bool = option(False, check_flag, no_flag="whole rows of numbers are for arrays; see --top-logprobs")
    output_logits: bool = option(False, check_flag, no_flag="whole rows of numbers are for arrays; see --top-logprobs")
    max_time: float | None = option(
        None, Number(0.0), flag=Flag(metavar="S", help="end each text S seconds after its start (default: never)")
    )
    overflow: Literal["error", "slide"] = option(
        "error",
        Choice("error", "slide"),
        flag=Flag(default="error", help="slide: go on when the context is full, with its last part (default: error)"),
    )
    priority: int = option(0, Count(low=-1000, high=1000), no_flag="a command makes one call at a time")
    prompt_lookup_num_tokens: int | None = option(
        None,
        Count(1, MAX_AHEAD),
        flag=Flag(
            names=("--prompt-lookup",),
            metavar="N",
            help="verify up to N tokens at a time that occurred before in the text; the output is the same",
        ),
    )
    max_matching_ngram_size: int | None = option(
        None,
        Count(1, 64),
        flag=Flag(metavar="N", help="--prompt-lookup looks for up to N equal tokens (default: 2)"),
    )
    assistant_model: Any = option(
        None,
        check_assistant,
        flag=Flag(
            values=Text(1, 4096),
            metavar="DIR",
            help="folder of a smaller model that proposes tokens, or int4, int8 or bfloat16: a copy of the model in "
            "this dtype; the output is the same",
        ),
    )
    num_assistant_tokens: int | None = option(
        None,
        Count(1, MAX_AHEAD),
        flag=Flag(metavar="N", help="--assistant-model proposes up to N tokens at a time (default: 8)"),
    )

    def __post_init__(self) -> None:
        for name, entry in OPTIONS.items():
            value = getattr(self, name)
            if name == "top_k" and value is None:  # as in transformers
                object.__setattr__(self, name, 0)
            elif entry.check is not None and not (value is None and entry.default is None):
                object.__setattr__(self, name, entry.check(name, value))
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise InputError(
                f"min_new_tokens: expected at most max_new_tokens {self.max_new_tokens}, got {self.min_new_tokens}; "
                "raise max_new_tokens"
            )
        check_overflow(self)
        check_constraint(self)
        check_speculation(self)
        check_texts(self)

    @property
    def n_requests(self) -> int:
        """The number of texts that are drawn per prompt."""
        return max(self.num_return_sequences, self.best_of or 1)

    @property
    def constraint(self) -> str | None:
        """The name of the option that the new text must match."""
        return next((name for name in CONSTRAINTS if getattr(self, name) is not None), None)

    @property
    def records_tokens(self) -> bool:
        """Whether more than ids and log-probabilities are recorded."""
        return bool(self.top_logprobs) or self.output_scores or self.output_logits

    @property
    def filters_in_core(self) -> bool:
        """Whether the sampler in C++ has all filters that these options use."""
        others = (0 < self.epsilon_cutoff < 1, 0 < self.eta_cutoff < 1, self.typical_p < 1, self.top_h is not None)
        return self.greedy or not any(others)

    def cut(self, prompt: NDArray[np.int32], room: int) -> NDArray[np.int32]:
        """Return the prompt, cut to `room` positions if `truncate` allows it."""
        if self.truncate is None or len(prompt) <= room or room < 1:
            return prompt
        return prompt[-room:] if self.truncate == "left" else prompt[:room]

    def new_tokens(self, n_ids: int, length: int, context: int, default: int) -> tuple[int, int]:
        """Return the minimum and maximum number of new tokens after a prompt of `n_ids` ids. Raises InputError.

        length: of the prompt, as max_length counts it, with padding.
        """
        lowest = self.min_new_tokens or max(0, self.min_length - length)
        if self.max_new_tokens is not None:
            return min(lowest, self.max_new_tokens), self.max_new_tokens
        if self.max_length is not None:
            if self.max_length <= length:
                raise InputError(
                    f"max_length: expected more than the {length} tokens of the prompt, which count too, got "
                    f"{self.max_length}; pass max_new_tokens, which counts only new tokens"
                )
            return min(lowest, self.max_length - length), self.max_length - length
        left = context - n_ids if self.overflow == "error" else default
        if left < 1 and self.truncate is not None:
            left = context - 1
        highest = max(1, min(default, left))
        if lowest > highest:  # transformers stops before the minimum
            name, limit = ("min_new_tokens", 0) if self.min_new_tokens else ("min_length", length)
            raise InputError(
                f"{name}: expected at most {limit + highest} without max_new_tokens, got {limit + lowest}; pass "
                "max_new_tokens too"
            )
        return lowest, highest

    @property
    def greedy(self) -> bool:
        """Whether no random number is drawn."""
        return not self.do_sample or self.temperature < GREEDY_BELOW

    def seeds(self, n_requests: int, *, first: int = 0) -> list[int]:
        """Return one seed per request. first: the number of the first one, for an int.

        Random seeds are exact as doubles, which JSON readers such as JavaScript use.
        """
        seed = self.seed
        if seed is None:
            # secrets.randbits would import modules in a call, and a forked child could wait for an import forever.
            return [int.from_bytes(os.urandom(8), "little") >> (64 - RANDOM_SEED_BITS) for _ in range(n_requests)]
        if isinstance(seed, int):
            return [request_seed(seed, first + i) for i in range(n_requests)]
        if len(seed) != n_requests:
            raise InputError(
                f"seed: expected {n_requests} seeds, one for each request, got {len(seed)}; one int serves all"
            )
        return list(seed)

    def deadline(self) -> float | None:
        """Return the time.monotonic() at which texts that begin now end; None: never."""
        return None if self.max_time is None else time.monotonic() + self.max_time

    def stops(self) -> tuple[str, ...]:
        return self.stop_strings if isinstance(self.stop_strings, tuple) else ()

    def eos_ids(self, of_checkpoint: Sequence[int]) -> frozenset[int]:
        """Return the ids that end a text; an empty set if none does."""
        if self.eos_token_id is None:
            return frozenset(of_checkpoint)
        if isinstance(self.eos_token_id, int):
            return frozenset() if self.eos_token_id == -1 else frozenset((self.eos_token_id,))
        return frozenset(self.eos_token_id)


OPTIONS = options_of(GenerationOptions)


def read_options(options: Mapping[str, Any], where: str, *, also: Collection[str] = ()) -> GenerationOptions:
    """Check the options of a call. None means the default. A `generation_config` may contain options too.

    also: names that the caller handles itself, for the hints in messages. Raises InputError, DTypeError.
    """
    given = with_generation_config(options)
    others = {name: value for name, value in given.items() if name not in OPTIONS}
    check_neutral(others, KEYWORDS, where, (*OPTIONS, *also), hint="; see GenerationOptions", empty=True)
    return GenerationOptions(
        **{name: given[name] for name in OPTIONS if name in given and (given[name] is not None or name == "top_k")}
    )


def request_seed(seed: int, index: int) -> int:
    """Return the seed of request `index` in a batch with one seed: `seed` for the first, then SplitMix64's stream.

    To repeat request i of `generate(prompts, seed=s)` alone, use `seed=request_seed(s, i)`.
    """
    if index == 0:
        return seed
    mask = 2**64 - 1
    z = (seed + index * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)
