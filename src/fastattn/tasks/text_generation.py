"""The pipeline "text-generation"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, TypedDict, overload

import numpy as np
from numpy.typing import NDArray

from fastattn.api.causal_lm import CausalLM
from fastattn.checks import Neutral, check_choice, check_flag, check_neutral, check_str
from fastattn.errors import InputError
from fastattn.generation.generate import StreamerFeed, complete, make_requests
from fastattn.generation.generate_args import GenerationArgs, Streamer
from fastattn.generation.keywords import with_generation_config
from fastattn.generation.options import GenerationOptions, read_options
from fastattn.generation.prompts import encode_prompt
from fastattn.generation.request import Request
from fastattn.tasks.pipeline_base import Pipeline
from fastattn.tasks.pipeline_inputs import (
    Encoding,
    Many,
    check_fits,
    merge_kwargs,
    names_of,
    read_batch_size,
    read_encoding,
    read_texts,
)
from fastattn.tokenizer.call import PaddingArg, TruncationArg

if TYPE_CHECKING:
    from typing_extensions import Unpack

NEW_TOKENS = 256  # default, as in transformers
TEMPERATURE = 0.7  # default, as in transformers
Prompt: TypeAlias = NDArray[np.int32]


class GeneratedText(TypedDict):
    """A text with its continuation, or only the continuation."""

    generated_text: str


class GeneratedIds(TypedDict):
    """The token ids of a prompt and its continuation."""

    generated_token_ids: list[int]


class PromptArgs(GenerationArgs, total=False):
    """Arguments of a call other than return_tensors.

    max_length: also cuts the prompt, as in transformers. stop_sequence: another name for stop_strings.
    tokenizer_encode_kwargs: a mapping of truncation, max_length, padding and add_special_tokens.
    handle_long_generation: "hole" cuts the beginning of a prompt that leaves no room for the new tokens.
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
    streamer: Streamer | None


class TextGenerationArgs(PromptArgs, total=False):
    """Arguments of a call of `TextGenerationPipeline`."""

    return_tensors: bool | None


_OF_CHATS = "chat templates are not supported: write the prompt as one text"
_REFUSED: Mapping[str, Neutral] = {
    "return_type": Neutral((False,), "use return_full_text or return_tensors"),
    "continue_final_message": Neutral((False,), _OF_CHATS),
    "tools": Neutral((False,), _OF_CHATS),
    "documents": Neutral((False,), _OF_CHATS),
    "return_dict_in_generate": Neutral((False,), "use model.generate"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """The checked arguments of a call."""

    options: GenerationOptions
    encoding: Encoding
    returns: Literal["full_text", "new_text", "ids"]
    skip_special_tokens: bool
    clean_up_tokenization_spaces: bool | None
    prefix: str
    hole: bool
    streamer: Streamer | None


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
        self, text_inputs: Many, *, return_tensors: Literal[False] | None = ..., **options: Unpack[PromptArgs]
    ) -> list[list[GeneratedText]]: ...
    @overload
    def __call__(
        self, text_inputs: Many, *, return_tensors: Literal[True], **options: Unpack[PromptArgs]
    ) -> list[list[GeneratedIds]]: ...
    @overload
    def __call__(
        self, text_inputs: object, *, return_tensors: bool | None = ..., **options: Unpack[PromptArgs]
    ) -> list[GeneratedText] | list[GeneratedIds] | list[list[GeneratedText]] | list[list[GeneratedIds]]: ...
    def __call__(self, text_inputs: Any, *, return_tensors: Any = None, **options: Unpack[PromptArgs]) -> Any:
        """Return [{"generated_text": ...}] for a str, or a list of those for a sequence of str (also an iterator).

        The text is the prompt followed by `decode(prompt + new)[len(decode(prompt)):]`. return_full_text=False omits
        the prompt. return_tensors=True returns {"generated_token_ids": ...} instead. num_return_sequences=n returns n
        results per text. `GenerationOptions` describes the options, `PromptArgs` the others. A text ends before a stop
        string. Raises DTypeError, InputError, ContextLengthError, NonFiniteError.
        """
        call = self._read({**options, "return_tensors": return_tensors})
        texts, single = read_texts(text_inputs, "text_inputs")
        names = names_of("text_inputs", len(texts), single=single)
        prompts = [self._encode(text, name, call) for text, name in zip(texts, names, strict=True)]
        hidden = len(self._encode_prefix(call)) if call.prefix else 0
        feed = None if call.streamer is None else StreamerFeed(call.streamer, prompts, call.options)
        requests = make_requests(
            self.model,
            prompts,
            call.options,
            names=names,
            tokenizer=self.tokenizer if call.returns != "ids" or call.options.stops() else None,
            lengths=[len(prompt) - hidden for prompt in prompts],  # without the prefix, as in transformers
            default_new_tokens=NEW_TOKENS,
            skip_special_tokens=call.skip_special_tokens,
            clean_up_tokenization_spaces=call.clean_up_tokenization_spaces,
        )
        complete(self.model, requests, call.options, feed=feed)
        n_texts = call.options.num_return_sequences
        out = [
            [self._record(text, request, call) for request in requests[i * n_texts : (i + 1) * n_texts]]
            for i, text in enumerate(texts)
        ]
        return out[0] if single else out

    def _encode_prefix(self, call: _Call) -> list[int]:
        return self.tokenizer.encode(call.prefix, add_special_tokens=False)

    def _encode(self, text: str, name: str, call: _Call) -> Prompt:
        """Return the ids of a prompt, cut as the call specifies."""
        context = self.model.executor.program.max_positions
        cut: dict[str, Any] = {}
        limit = call.encoding.limit(self.tokenizer, context)
        if limit is not None:
            cut = {"truncation": call.encoding.strategy, "max_length": limit}
        special = call.encoding.add_special_tokens
        ids = encode_prompt(self.tokenizer, call.prefix + text, name, add_special_tokens=special, **cut)
        check_fits(self.model, self.tokenizer, ids, name)
        if not call.hole:
            return ids
        longest, options = min(self.tokenizer.model_max_length, context), call.options
        n_new = NEW_TOKENS if options.max_new_tokens is None else options.max_new_tokens
        if options.max_new_tokens is None and options.max_length is not None:
            n_new = options.max_length - len(ids)
        if len(ids) + n_new <= longest:
            return ids
        if n_new >= longest:
            raise InputError(
                f'handle_long_generation: with "hole", expected fewer than {longest} new tokens, the limit of '
                f"the model and tokenizer, got {n_new}"
            )
        return ids[n_new - longest :]

    def _record(self, text: str, request: Request, call: _Call) -> GeneratedText | GeneratedIds:
        if call.returns == "ids":
            return {"generated_token_ids": list(request.ids)}
        new = "" if request.text is None else request.text.text
        if not text and not call.skip_special_tokens:  # as in transformers, the start of an empty prompt counts as new
            start = request.ids[: request.prompt_len]
            new = self.tokenizer.decode(start) + new
        return {"generated_text": text + new if call.returns == "full_text" else new}

    def _read(self, options: Mapping[str, Any]) -> _Call:
        """Check the arguments of a call."""
        merged = self._merged(options)
        encoding = _read_encoding(merged)
        others = {name: merged.pop(name) for name in _REFUSED if name in merged}
        check_neutral(others, _REFUSED, self.task, ())
        returns = _read_returns(merged)
        clean = merged.pop("clean_up_tokenization_spaces", None)
        skip = merged.pop("skip_special_tokens", None)
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
            options=_read_generation(merged),
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
        raise InputError("return_text: expected None, because return_full_text is set, got both")
    if ids and (full is not None or text):
        raise InputError("return_tensors: expected None, because return_full_text or return_text is set, got both")
    if ids:
        return "ids"
    return "new_text" if full is False else "full_text"


def _read_generation(merged: dict[str, Any]) -> GenerationOptions:
    """Read the options of generation, with the defaults of the pipeline. Raises InputError for leftover options."""
    stop = merged.pop("stop_sequence", None)
    if stop is not None:
        if merged.get("stop_strings") is not None:
            raise InputError("stop_sequence: expected None, because stop_strings is set and means the same, got both")
        merged["stop_strings"] = stop
    batch_size = read_batch_size(merged)
    if batch_size is not None and merged.get("max_batch_size") is None:
        merged["max_batch_size"] = batch_size
    chosen = with_generation_config(merged)
    if chosen.get("do_sample") is None:
        chosen["do_sample"] = True
    if check_flag("do_sample", chosen["do_sample"]) and chosen.get("temperature") is None:
        chosen["temperature"] = TEMPERATURE
    return read_options(chosen, "text-generation", also=TextGenerationArgs.__annotations__)
