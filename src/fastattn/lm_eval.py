"""A model for the lm-evaluation-harness. Needs the extra `lm-eval`.

After `import fastattn.lm_eval`, the harness also knows the model by its name: `simple_evaluate(model="fastattn",
model_args="pretrained=FOLDER")`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ModuleNotFoundError as error:
    raise ImportError(
        'fastattn.lm_eval: expected the package lm-eval, found none; run pip install "fastattn[lm-eval]"'
    ) from error

from tqdm import tqdm

from fastattn.api.auto import AutoModelForCausalLM
from fastattn.api.causal_lm import CausalLM
from fastattn.checks import check_count, check_flag
from fastattn.errors import ConfigError, ContextLengthError, DTypeError, InputError
from fastattn.generation.prompts import need_tokenizer

__all__ = ["FastattnLM"]
Answer: TypeAlias = tuple[float, bool]
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first that is set is used
_BATCH_SIZE = 64


@register_model("fastattn")
class FastattnLM(TemplateLM):  # type: ignore[misc]  # an optional library
    """Scores and continues texts for tasks of the lm-evaluation-harness.

    pretrained: a folder, a hub id, or a loaded `CausalLM`. batch_size: how many continuations of one context, or how
    many texts, run together; results do not depend on it. max_batch_size: an upper limit for batch_size. With None or
    "auto", batch_size is max_batch_size, or 64 if that is None. max_length: the maximum number of tokens that the model
    reads of a context and its continuation; None is the model's context. Longer contexts are cut on the left.
    max_gen_toks: the number of new tokens in tasks that set none. prefix_token_id: the token that an empty context
    begins with; None is the tokenizer's bos, or else its eos. add_bos_token: whether texts get special tokens; None is
    the tokenizer's default. Other keywords are those of `AutoModelForCausalLM.from_pretrained`. Raises what
    `from_pretrained` raises.

    A context with several continuations is computed once. As in the harness's own model of transformers, the answers of
    `generate_until` end before a string of `until`, or at the eos token.
    """

    def __init__(
        self,
        pretrained: str | os.PathLike[str] | CausalLM,
        *,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        prefix_token_id: int | None = None,
        add_bos_token: bool | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        sizes = [int(str(size)) for size in (batch_size, max_batch_size) if str(size).isdigit()]
        if batch_size is not None and not str(batch_size).isdigit() and not str(batch_size).startswith("auto"):
            raise InputError(f"batch_size: expected an integer, 'auto' or None, got {batch_size!r}")
        self.batch_size = check_count("batch_size", min(sizes, default=_BATCH_SIZE), low=1)
        if isinstance(pretrained, CausalLM):
            given = {name: value for name, value in options.items() if value is not None and name != "device"}
            if given:
                raise InputError(f"{next(iter(given))}: expected None with a loaded model; pass it when you load it")
            self.model = pretrained
        else:
            self.model = AutoModelForCausalLM.from_pretrained(os.fspath(pretrained), **options)
        self.tokenizer = need_tokenizer(self.model, "FastattnLM")
        context = self.model.executor.program.max_positions
        self.max_length = context if max_length is None else check_count("max_length", max_length, low=1, high=context)
        self.max_gen_toks = check_count("max_gen_toks", max_gen_toks, low=1)
        self.add_bos_token = None if add_bos_token is None else check_flag("add_bos_token", add_bos_token)
        self._prefix_token_id = prefix_token_id
        self._device = self.model.device

    # -- methods that the harness calls -------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """The eos id. Raises ConfigError if the tokenizer has none."""
        return self._special("eos_token_id", self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The id before a text without a context. Raises ConfigError if there is none."""
        if self._prefix_token_id is not None:
            return check_count("prefix_token_id", self._prefix_token_id, high=self.model.config.vocab_size - 1)
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """The name of the model, under which the harness stores requests."""
        return self.model.name_or_path.replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return the prompt of a conversation. Raises ConfigError, InputError."""
        text = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return str(text)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the ids of a text. A text that begins with the prefix token gets no special tokens."""
        special = self.add_bos_token if add_special_tokens is None else add_special_tokens
        prefix = self.tokenizer.decode([self.prefix_token_id])
        if add_special_tokens is None and prefix and string.startswith(prefix):
            special = False
        options: dict[str, Any] = {} if special is None else {"add_special_tokens": special}
        return list(self.tokenizer.encode(string, **options))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of each text, read in windows of `max_length` tokens."""
        windows, owners = list[tuple[None, list[int], list[int]]](), list[int]()
        for i, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(i)
        sums = [0.0] * len(requests)
        for i, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            sums[i] += logprob
        for request, value in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the continuation of each text."""
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(i)
        found = [""] * len(requests)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Generating texts") as bar:
            for places in groups.values():
                options = self._generation(requests[places[0]].args[1])
                for part in _parts(places, self.batch_size):
                    for i, text in zip(part, self._continue([requests[i].args[0] for i in part], options), strict=True):
                        found[i] = text
                        self.cache_hook.add_partial("generate_until", requests[i].args, text)
                    bar.update(len(part))
        return found

    # -- parts --------------------------------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[Answer]:
        """Return the log-probability of each continuation, and whether greedy decoding would generate it.

        requests: (context and continuation as texts, or None; ids of the context; ids of the continuation).
        """
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, (_, context, continuation) in enumerate(requests):
            groups.setdefault(self._fitting(context, continuation), []).append(i)
        answers: list[Answer] = [(0.0, False)] * len(requests)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Scoring continuations") as bar:
            for start, places in groups.items():
                for part in _parts(places, self.batch_size):
                    found = self.model.score(list(start), [requests[i][2] for i in part])
                    for i, total, greedy in zip(part, found.sums.tolist(), found.is_greedy, strict=True):
                        answers[i] = total, greedy
                        if requests[i][0] is not None:
                            self.cache_hook.add_partial("loglikelihood", requests[i][0], answers[i])
                    bar.update(len(part))
        return answers

    def _fitting(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[int, ...]:
        """Return the end of a context that fits before a continuation. Raises ContextLengthError, InputError."""
        if not context or not continuation:
            raise InputError(
                "requests: expected a context and a continuation of at least one token, got none; a context of "
                "only spaces has none, because the harness moves spaces to the continuation"
            )
        room = self.max_length + 1 - len(continuation)  # the last token is only scored
        if room < 1:
            raise ContextLengthError(
                f"requests: expected a continuation of at most {self.max_length} tokens, got {len(continuation)}; "
                "score the text with loglikelihood_rolling, which reads it in windows"
            )
        return tuple(context[-room:])

    def _generation(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of `generate` for those of a task. Raises DTypeError, InputError."""
        options = dict(given)
        lengths = [options.pop(name, None) for name in _LENGTHS]
        until = options.pop("until", None) or []
        stops = [until] if isinstance(until, str) else list(until)
        if not all(isinstance(stop, str) for stop in stops):
            raise DTypeError(f"until: expected a text or a list of them, got {until!r}")
        temperature = options.get("temperature")
        if options.get("do_sample") is None:
            options["do_sample"] = bool(temperature)
        if not options["do_sample"]:
            options.pop("temperature", None)  # tasks that are greedy often set it to 0
        n_new = next((length for length in lengths if length is not None), self.max_gen_toks)
        n_new = check_count("max_gen_toks", n_new, low=1)
        if n_new >= self.max_length:
            raise InputError(
                f"max_gen_toks: expected fewer than max_length {self.max_length}, got {n_new}; lower it in the "
                "generation_kwargs of the task, or as an argument of FastattnLM"
            )
        return {**options, "max_new_tokens": n_new, "stop_strings": [stop for stop in stops if stop] or None}

    def _continue(self, contexts: Sequence[str], options: Mapping[str, Any]) -> list[str]:
        """Return the new texts after these contexts, which are cut on the left if they are too long."""
        room = self.max_length - int(options["max_new_tokens"])
        prompts = [self.tok_encode(text)[-room:] for text in contexts]
        found = self.model.generate(
            prompts,
            attention_mask=[[1] * len(prompt) for prompt in prompts],
            return_dict_in_generate=True,
            max_batch_size=self.batch_size,
            **options,
        )
        if found.texts is not None:
            return list(found.texts)
        return [
            self._decode(row.tolist())[len(self._decode(prompt)) :]
            for prompt, row in zip(prompts, found.sequences, strict=True)
        ]

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _special(self, name: str, token_id: int | None) -> int:
        if token_id is None:
            raise ConfigError(f"{name}: expected a tokenizer with this token, found none; pass prefix_token_id")
        return token_id


def _parts(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]
