"""The pipeline "text-generation"."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, TypedDict, overload

import numpy as np
from numpy.typing import NDArray

from fastattn.api.causal_lm import CausalLM
from fastattn.checks import Neutral, check_choice, check_flag, check_neutral, check_str, one_of
from fastattn.errors import InputError
from fastattn.generation.generate import StreamerFeed, completed, make_requests, seeds_of
from fastattn.generation.generate_args import GenerationArgs, Streamer
from fastattn.generation.generation_config import with_defaults
from fastattn.generation.keywords import with_generation_config
from fastattn.generation.option_rules import check_unseen
from fastattn.generation.options import GenerationOptions, read_options
from fastattn.generation.prompts import encode_prompt
from fastattn.generation.request import Request
from fastattn.generation.results import best_requests
from fastattn.options import INT32_MAX
from fastattn.tasks.pipeline_base import Pipeline
from fastattn.tasks.pipeline_inputs import (
    Chat,
    Encoding,
    Many,
    check_fits,
    merge_kwargs,
    read_encoding,
    read_limits,
    read_texts_or_chats,
)
from fastattn.tasks.pipeline_steps import Job, Part, StepLimits, run_job
from fastattn.tokenizer import Tokenizer
from fastattn.tokenizer.call import PaddingArg, TruncationArg

if TYPE_CHECKING:
    from typing_extensions import Unpack

NEW_TOKENS = 256  # default, as in transformers
TEMPERATURE = 0.7  # default, as in transformers
_ROUNDS = 4  # how many prompts of an iterator are read at once, in multiples of max_batch_size
Prompt: TypeAlias = NDArray[np.int32]


class GeneratedText(TypedDict):
    """A text with its continuation, or only the continuation."""

    generated_text: str


class GeneratedChat(TypedDict):
    """A chat with the answer as its last message."""

    generated_text: list[dict[str, Any]]


class GeneratedIds(TypedDict):
    """The token ids of a prompt and its continuation."""

    generated_token_ids: list[int]


class PromptArgs(GenerationArgs, total=False):
    """Arguments of a call other than return_tensors.

    max_length: also cuts the prompt, as in transformers. stop_sequence: another name for stop_strings.
    tokenizer_encode_kwargs: a mapping of truncation, max_length, padding and add_special_tokens.
    handle_long_generation: "hole" cuts the beginning of a prompt that leaves no room for the new tokens.
    batch_size: another name for max_batch_size. show_progress_bar: as in `BatchArgs`. continue_final_message: whether
    the new text belongs to the last message of a chat; None: if its role is "assistant". tools, documents: for the chat
    template.
    """

    num_return_sequences: int | None
    return_full_text: bool | None
    return_text: bool | None
    clean_up_tokenization_spaces: bool | None
    skip_special_tokens: bool | None
    prefix: str | None
    handle_long_generation: Literal["hole"] | None
    stop_sequence: str | list[str] | None
    truncation: TruncationArg
    padding: PaddingArg | None
    add_special_tokens: bool | None
    tokenizer_encode_kwargs: Mapping[str, Any] | None
    batch_size: int | None
    num_workers: int | None
    show_progress_bar: bool | None
    streamer: Streamer | None
    continue_final_message: bool | None
    tools: Any
    documents: Any


class TextGenerationArgs(PromptArgs, total=False):
    """Arguments of a call of `TextGenerationPipeline`."""

    return_tensors: bool | None


_REFUSED: Mapping[str, Neutral] = {
    "return_type": Neutral((False,), "use return_full_text or return_tensors"),
    "return_dict_in_generate": Neutral((False,), "use model.generate"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """The checked arguments of a call. limits: all prompts in one step, because the scheduler forms its own batches.

    of_chats: the arguments for chats only, without those that are None.
    """

    options: GenerationOptions
    limits: StepLimits
    encoding: Encoding
    returns: Literal["full_text", "new_text", "ids"]
    skip_special_tokens: bool
    clean_up_tokenization_spaces: bool | None
    prefix: str
    hole: bool
    streamer: Streamer | None
    of_chats: Mapping[str, Any]


class TextGenerationPipeline(Pipeline[CausalLM]):
    """Continues texts. As in transformers, the defaults are sampling at temperature 0.7 and up to 256 new tokens."""

    task: ClassVar[str] = "text-generation"

    def __init__(self, model: CausalLM, tokenizer: object = None, **defaults: Unpack[TextGenerationArgs]) -> None:
        super().__init__(model, tokenizer, **defaults)
        self._read({})

    @overload
    def __call__(
        self, text_inputs: str, *, return_tensors: Literal[False] | None = ..., **options: Unpack[PromptArgs]
    ) -> list[GeneratedText]: ...
    @overload
    def __call__(
        self, text_inputs: str, *, return_tensors: Literal[True], **options: Unpack[PromptArgs]
    ) -> list[GeneratedIds]: ...
    @overload
    def __call__(
        self,
        text_inputs: Sequence[Mapping[str, Any]],
        *,
        return_tensors: Literal[False] | None = ...,
        **options: Unpack[PromptArgs],
    ) -> list[GeneratedChat]: ...
    @overload
    def __call__(
        self,
        text_inputs: Sequence[Sequence[Mapping[str, Any]]],
        *,
        return_tensors: Literal[False] | None = ...,
        **options: Unpack[PromptArgs],
    ) -> list[list[GeneratedChat]]: ...
    @overload
    def __call__(
        self, text_inputs: Many, *, return_tensors: Literal[False] | None = ..., **options: Unpack[PromptArgs]
    ) -> list[list[GeneratedText]]: ...
    @overload
    def __call__(
        self, text_inputs: Many, *, return_tensors: Literal[True], **options: Unpack[PromptArgs]
    ) -> list[list[GeneratedIds]]: ...
    @overload
    def __call__(
        self, text_inputs: Iterator[Any], *, return_tensors: Literal[False] | None = ..., **options: Unpack[PromptArgs]
    ) -> Iterator[list[GeneratedText]]: ...
    @overload
    def __call__(
        self, text_inputs: Iterator[Any], *, return_tensors: Literal[True], **options: Unpack[PromptArgs]
    ) -> Iterator[list[GeneratedIds]]: ...
    @overload
    def __call__(
        self, text_inputs: object, *, return_tensors: bool | None = ..., **options: Unpack[PromptArgs]
    ) -> (
        list[GeneratedText]
        | list[GeneratedChat]
        | list[GeneratedIds]
        | list[list[GeneratedText]]
        | list[list[GeneratedChat]]
        | list[list[GeneratedIds]]
        | Iterator[list[GeneratedText]]
        | Iterator[list[GeneratedIds]]
    ): ...
    def __call__(self, text_inputs: Any, *, return_tensors: Any = None, **options: Unpack[PromptArgs]) -> Any:
        """Return [{"generated_text": ...}] for a str, or a list of those for a sequence of str.

        An iterator over str returns an iterator. The text is the prompt followed by
        `decode(prompt + new)[len(decode(prompt)):]`. return_full_text=False omits the prompt. return_tensors=True
        returns {"generated_token_ids": ...} instead. num_return_sequences=n returns n results per text.

        A chat, which is a list of messages such as {"role": "user", "content": "Hi"}, becomes a prompt with the chat
        template. Its generated_text is the chat with the answer as its last message, and with return_full_text=False
        the answer. If the last message is the assistant's, it is continued.

        `GenerationOptions` describes the options, `PromptArgs` the others. A text ends before a stop string. Raises
        ConfigError (no chat template, no jinja2), DTypeError, InputError, ContextLengthError, NonFiniteError.
        """
        call = self._read({**options, "return_tensors": return_tensors})
        source = read_texts_or_chats(text_inputs, "text_inputs")
        if call.streamer is not None and source.lazy:
            raise InputError("streamer: expected one sequence, got an iterator; use stream() for each text")
        limits, together = call.limits, call.options.max_batch_size
        if source.lazy:
            limits = replace(limits, batch_size=1 if together == 1 else _ROUNDS * together, window_steps=1)
        results: Any = run_job(_Job(self.model, self.tokenizer, call, source.total, lazy=source.lazy), source, limits)
        return results[0] if source.single else results

    def _read(self, options: Mapping[str, Any]) -> _Call:
        """Check the arguments of a call."""
        merged = self._merged(options)
        encoding = _read_encoding(merged)
        others = {name: merged.pop(name) for name in _REFUSED if name in merged}
        check_neutral(others, _REFUSED, self.task, ())
        returns = _read_returns(merged)
        clean = merged.pop("clean_up_tokenization_spaces", None)
        skip = merged.pop("skip_special_tokens", None)
        of_chats = {name: merged.pop(name, None) for name in ("continue_final_message", "tools", "documents")}
        if of_chats["continue_final_message"] is not None:
            check_flag("continue_final_message", of_chats["continue_final_message"])
        prefix, hole = merged.pop("prefix", None), merged.pop("handle_long_generation", None)
        if hole is not None:
            check_choice("handle_long_generation", hole, ("hole",))
        return _Call(
            encoding=encoding,
            returns=returns,
            skip_special_tokens=True if skip is None else check_flag("skip_special_tokens", skip),
            clean_up_tokenization_spaces=None if clean is None else check_flag("clean_up_tokenization_spaces", clean),
            prefix="" if prefix is None else check_str("prefix", prefix),
            hole=hole is not None,
            streamer=merged.pop("streamer", None),
            of_chats={name: value for name, value in of_chats.items() if value is not None},
            limits=_read_limits(merged),
            options=_read_generation(merged, self.model.generation_config),
        )


_Record: TypeAlias = "GeneratedText | GeneratedChat | GeneratedIds"


class _Job(Job["str | Chat", "list[_Record]", "list[_Record]"]):
    """The continuations of each text or chat."""

    ahead: ClassVar[bool] = False  # generation takes much longer than tokenizing

    def __init__(self, model: CausalLM, tokenizer: Tokenizer, call: _Call, total: int | None, *, lazy: bool) -> None:
        self._model, self._tokenizer, self._call = model, tokenizer, call
        options = call.options
        self._hidden = len(tokenizer.encode(call.prefix, add_special_tokens=False)) if call.prefix else 0
        if lazy and not isinstance(options.seed, int | None):
            raise InputError("seed: expected one int for an iterator, got several; pass a list of texts")
        self._seeds = None if lazy else seeds_of(options, total or 0)

    def encode(self, index: int, item: str | Chat, name: str) -> list[Part]:
        """Return the ids of a prompt, with its requests. Raises ContextLengthError, InputError."""
        call, n_texts = self._call, self._call.options.n_requests
        ids = self._encode_prompt(item, name)
        places = range(index * n_texts, (index + 1) * n_texts)
        if self._seeds is not None:
            seeds = [self._seeds[place] for place in places]
        else:
            seeds = call.options.seeds(n_texts, first=index * n_texts)
        requests = make_requests(
            self._model,
            [ids],
            call.options,
            names=[name],
            tokenizer=self._tokenizer if call.returns != "ids" or call.options.stops() else None,
            mask_tokenizer=self._tokenizer,
            # Without the prefix, as in transformers. A chat has none.
            lengths=[len(ids) - (0 if isinstance(item, Chat) else self._hidden)],
            default_new_tokens=NEW_TOKENS,
            skip_special_tokens=call.skip_special_tokens,
            clean_up_tokenization_spaces=call.clean_up_tokenization_spaces,
            seeds=seeds,
        )
        return [Part(name, ids, ids, (item, requests))]

    def forward(self, parts: Sequence[Part]) -> Iterable[tuple[int, Any]]:
        """Run the requests of all prompts; yield the index of a prompt when the last of its requests ends."""
        call = self._call
        feed = (
            None
            if call.streamer is None
            else StreamerFeed(call.streamer, [p.ids for p in parts], len(parts) * call.options.num_return_sequences)
        )
        places = {id(request): i for i, part in enumerate(parts) for request in part.detail[1]}
        waiting = [len(part.detail[1]) for part in parts]
        requests = [request for part in parts for request in part.detail[1]]
        for request in completed(self._model, requests, call.options, feed=feed):
            place = places[id(request)]
            waiting[place] -= 1
            if not waiting[place]:
                yield place, parts[place].detail

    def reduce(self, part: Part, output: Any) -> list[_Record]:
        item, requests = output
        return [self._record(item, request) for request in best_requests(requests)]

    def finish(self, item: str | Chat, reduced: list[list[_Record]]) -> list[_Record]:
        return reduced[0]

    def _encode_prompt(self, item: str | Chat, name: str) -> Prompt:
        """Return the ids of a prompt, cut as the call specifies."""
        call, tokenizer = self._call, self._tokenizer
        context = self._model.executor.program.max_positions
        cut: dict[str, Any] = {}
        limit = call.encoding.limit(tokenizer, context)
        if limit is not None:
            cut = {"truncation": call.encoding.strategy, "max_length": limit}
        special = call.encoding.add_special_tokens
        if isinstance(item, Chat):
            text, special = self._written(item, name), False  # the template has the special tokens
        else:
            for argument in call.of_chats:
                raise InputError(f"{argument}: expected None with a text, got a value; pass a chat, or leave it out")
            text = call.prefix + item
        ids = encode_prompt(tokenizer, text, name, add_special_tokens=special, **cut)
        check_fits(self._model, tokenizer, ids, name)
        if not call.hole:
            return ids
        longest, options = min(tokenizer.model_max_length, context), call.options
        n_new = NEW_TOKENS if options.max_new_tokens is None else options.max_new_tokens
        if options.max_new_tokens is None and options.max_length is not None:
            n_new = options.max_length - len(ids)
        if len(ids) + n_new <= longest:
            return ids
        if n_new >= longest:
            raise InputError(
                f'handle_long_generation: with "hole", expected fewer than {longest} new tokens, the limit of '
                f"the model and tokenizer, got {n_new}; pass a smaller max_new_tokens"
            )
        return ids[n_new - longest :]

    def _written(self, chat: Chat, name: str) -> str:
        """Return the prompt of a chat. Raises ConfigError, InputError."""
        call, goes_on = self._call, self._continues(chat)
        if call.prefix:
            raise InputError(f"prefix: expected None with a chat, got {call.prefix!r}; add it to a message")
        if goes_on and not isinstance(chat.messages[-1]["content"], str):
            raise InputError(
                f"{name}: expected text in the last message, which the model continues, got parts; pass its "
                "content as a str"
            )
        others = {key: value for key, value in call.of_chats.items() if key != "continue_final_message"}
        written = self._tokenizer.apply_chat_template(
            chat.messages, add_generation_prompt=not goes_on, continue_final_message=goes_on, tokenize=False, **others
        )
        return str(written)

    def _continues(self, chat: Chat) -> bool:
        """Return whether the new text belongs to the last message, as in transformers."""
        return bool(self._call.of_chats.get("continue_final_message", chat.messages[-1]["role"] == "assistant"))

    def _record(self, item: str | Chat, request: Request) -> _Record:
        call = self._call
        if call.returns == "ids":
            return {"generated_token_ids": list(request.ids)}
        new = "" if request.text is None else request.text.text
        if isinstance(item, Chat):
            return self._record_of_chat(item, new)
        if not item and not call.skip_special_tokens:  # as in transformers, the start of an empty prompt counts as new
            start = request.ids[: request.prompt_len]
            new = self._tokenizer.decode(start) + new
        return {"generated_text": item + new if call.returns == "full_text" else new}

    def _record_of_chat(self, chat: Chat, new: str) -> GeneratedText | GeneratedChat:
        if self._call.returns == "new_text":
            return {"generated_text": new}
        if not self._continues(chat):
            return {"generated_text": [*chat.messages, {"role": "assistant", "content": new}]}
        last = {**chat.messages[-1], "content": chat.messages[-1]["content"] + new}
        return {"generated_text": [*chat.messages[:-1], last]}


def _read_limits(merged: dict[str, Any]) -> StepLimits:
    """Read the options of a progress bar. batch_size remains in `merged`, because generation reads it."""
    show = merged.pop("show_progress_bar", None)
    return StepLimits(
        batch_size=INT32_MAX,
        window_tokens=INT32_MAX,
        show_progress_bar=None if show is None else check_flag("show_progress_bar", show),
    )


def _read_encoding(merged: dict[str, Any]) -> Encoding:
    """Read how to tokenize prompts. max_length remains in `merged`, because generation uses it too."""
    length = merged.get("max_length")
    inner = merged.get("tokenizer_encode_kwargs")
    if isinstance(inner, Mapping) and "max_length" in inner:
        merged.pop("max_length", None)  # the tokenizer's max_length takes precedence
    merge_kwargs(merged, "tokenizer_encode_kwargs")
    encoding = read_encoding(merged)
    if length is not None:
        merged["max_length"] = length
    return encoding


def _read_returns(merged: dict[str, Any]) -> Literal["full_text", "new_text", "ids"]:
    """Return what a record contains."""
    given = {name: merged.pop(name, None) for name in ("return_full_text", "return_tensors", "return_text")}
    full, ids, text = (None if value is None else check_flag(name, value) for name, value in given.items())
    if full is not None and text is not None:
        raise InputError("return_text: expected None, because return_full_text is set, got both; pass one")
    if ids and (full is not None or text):
        raise InputError(
            "return_tensors: expected None, because return_full_text or return_text is set, got both; pass one"
        )
    if ids:
        return "ids"
    return "new_text" if full is False else "full_text"


def _read_generation(merged: dict[str, Any], defaults: Mapping[str, Any]) -> GenerationOptions:
    """Read the options of generation, with the defaults of the checkpoint, or else of the pipeline.

    Raises InputError for leftover options.
    """
    stop = merged.pop("stop_sequence", None)
    if stop is not None:
        if merged.get("stop_strings") is not None:
            raise InputError(
                "stop_sequence: expected None, because stop_strings is set and means the same, got both; pass one"
            )
        merged["stop_strings"] = stop
    if merged.pop("max_batch_tokens", None) is not None:
        raise InputError("max_batch_tokens: expected None, got a number; text-generation has max_batch_size instead")
    batch_size = read_limits(merged).batch_size
    if batch_size is not None:
        merged["max_batch_size"] = one_of("max_batch_size", merged.get("max_batch_size"), "batch_size", batch_size)
    own = with_generation_config(merged)
    instead = "use model.generate with return_dict_in_generate=True"
    check_unseen(own, ("top_logprobs", "output_scores", "output_logits"), "in a pipeline", instead)
    chosen = with_defaults(own, defaults)
    if chosen.get("do_sample") is None:
        chosen["do_sample"] = True
    if check_flag("do_sample", chosen["do_sample"]) and chosen.get("temperature") is None:
        chosen["temperature"] = TEMPERATURE
    return read_options(chosen, "text-generation", also=TextGenerationArgs.__annotations__)
