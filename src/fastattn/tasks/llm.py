"""`Llm`: a language model with the interface of llama-cpp-python's `Llama`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from fastattn.api.auto import AutoModelForCausalLM
from fastattn.api.causal_lm import CausalLM
from fastattn.checks import Neutral, check_count, check_flag, check_keywords, check_neutral, check_str
from fastattn.errors import DTypeError, InputError
from fastattn.generation.generate import complete, make_requests, stream
from fastattn.generation.option_rules import CONSTRAINTS
from fastattn.generation.options import GREEDY_BELOW, GenerationOptions
from fastattn.generation.prompts import encode_prompt, need_tokenizer, read_prompts
from fastattn.generation.request import Request
from fastattn.generation.results import best_requests
from fastattn.generation.scoring import prompt_records
from fastattn.generation.text_stream import TextStream
from fastattn.tasks.completion import (
    Json,
    Tokens,
    chat_logprobs,
    completion_logprobs,
    finish_of,
    head,
    text_of,
    usage,
)
from fastattn.tasks.response_format import read_constraint
from fastattn.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

Processor: TypeAlias = Callable[..., Any]
_COMPLETION = {"temperature": 0.8}
_CHAT = {"temperature": 0.2}
_SHARED: Mapping[str, Any] = {"top_p": 0.95, "min_p": 0.05, "typical_p": 1.0, "top_k": 40, "repeat_penalty": 1.0}
# Names of llama-cpp-python -> names of GenerationOptions.
_NAMES = {"stop": "stop_strings", "repeat_penalty": "repetition_penalty"}
_SAME = (
    "temperature", "top_p", "min_p", "typical_p", "top_k", "presence_penalty", "frequency_penalty", "logit_bias",
    "seed", "best_of",
)  # fmt: skip
_REFUSED: Mapping[str, Neutral] = {
    "suffix": Neutral((), "models here continue texts; write the whole prompt"),
    "model": Neutral(check=check_str),
    "user": Neutral(check=check_str),
    "functions": Neutral((), "use tools, if the chat template knows them"),
    "function_call": Neutral((), "use tools, if the chat template knows them"),
    "tool_choice": Neutral(("none", "auto"), "leave it out"),
    "mirostat_mode": Neutral((0,), "use temperature, top_p or typical_p"),
    "mirostat_tau": Neutral(check=lambda *_: None),
    "mirostat_eta": Neutral(check=lambda *_: None),
    "tfs_z": Neutral((1,), "use top_p or min_p"),
}


class SamplingArgs(TypedDict, total=False):
    """The arguments of llama-cpp-python that completions and chats share; `GenerationOptions` describes them.

    temperature: 0 is greedy. stop: texts before which the answer ends. repeat_penalty: applies to the whole text.
    logits_processor: functions (input_ids int64 [n_tokens], scores float32 [vocab_size]) -> scores. stopping_criteria:
    functions (input_ids int64 [n_tokens], None) -> bool. n: number of choices; best_of: how many they are chosen from.
    response_format: {"type": "json_object"}, with "schema" if the answer must match one, or OpenAI's {"type":
    "json_schema", "json_schema": {"schema": ...}}. grammar: text of a GBNF or Lark grammar.
    """

    temperature: float | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    top_k: int | None
    repeat_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    stop: str | Sequence[str] | None
    seed: int | None
    logit_bias: Mapping[int, float] | Mapping[str, float] | None
    logits_processor: Processor | Sequence[Processor] | None
    stopping_criteria: Processor | Sequence[Processor] | None
    n: int | None
    best_of: int | None
    response_format: Mapping[str, Any] | None
    grammar: str | None
    model: str | None
    user: str | None


class Llm:
    """A language model that completes texts and answers chats, with the arguments and results of llama-cpp-python.

    model: a folder, a GGUF file, a hub id, or a loaded model. Keywords are those of
    `AutoModelForCausalLM.from_pretrained`; n_threads is another name for threads. chat_template: a Jinja template that
    replaces the checkpoint's. Several threads may call one `Llm`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | CausalLM,
        *,
        n_threads: int | None = None,
        chat_template: str | None = None,
        **options: Any,
    ) -> None:
        self._template = None if chat_template is None else check_str("chat_template", chat_template)
        if isinstance(model, CausalLM):
            if options or n_threads is not None:
                raise InputError("model: expected a folder or hub id with loading options, got a loaded model")
            self.model = model
        else:
            if n_threads is not None:
                if options.get("threads") is not None:
                    raise InputError("n_threads: expected None, because threads is set and means the same, got both")
                options["threads"] = n_threads
            self.model = AutoModelForCausalLM.from_pretrained(os.fspath(model), **options)

    def __call__(self, prompt: str | Sequence[int], **options: Any) -> Any:
        """Call `create_completion`."""
        return self.create_completion(prompt, **options)

    def create_completion(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = 16,
        logprobs: int | None = None,
        echo: bool = False,
        stream: bool = False,
        **options: Unpack[SamplingArgs],
    ) -> Any:
        """Continue a text, or token ids.

        max_tokens: None or 0 fills the context. logprobs: number of likeliest tokens that are listed with each token.
        echo: whether the text, and its log-probabilities, begin with the prompt. stream=True returns an iterator over
        chunks of the same shape; each lists the tokens of its text. Returns {"id", "object": "text_completion",
        "created", "model", "choices": [{"text", "index", "logprobs", "finish_reason"}], "usage"}. Raises DTypeError,
        InputError, ContextLengthError, NonFiniteError.
        """
        checked_echo, streams = check_flag("echo", echo), check_flag("stream", stream)
        if logprobs is not None:
            check_count("logprobs", logprobs, high=1000)
        tokenizer = need_tokenizer(self.model, "create_completion")
        ids = self._ids(tokenizer, prompt)
        given = self._options(options, _COMPLETION, ids, max_tokens, n_top=logprobs)
        before = (
            str(tokenizer.decode(ids.tolist(), skip_special_tokens=True)) if not isinstance(prompt, str) else prompt
        )
        if streams:
            return self._stream_completion(tokenizer, ids, given, before, echo=checked_echo, n_top=logprobs)
        requests, results = self._run(tokenizer, ids, given, logprobs=logprobs is not None)
        choices = []
        for i, request in enumerate(results):
            listed = None
            if logprobs is not None:
                listed = self._listed(tokenizer, ids, request, before, logprobs, echo=checked_echo)
            text = (before if checked_echo else "") + text_of(request)
            choices.append(
                {"text": text, "index": i, "logprobs": listed, "finish_reason": finish_of(request.finish_reason)}
            )
        return {**self._head("text_completion"), "choices": choices, "usage": usage(requests)}

    def create_chat_completion(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int | None = None,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
        tools: Any = None,
        stream: bool = False,
        **options: Unpack[SamplingArgs],
    ) -> Any:
        """Answer a conversation, with the checkpoint's chat template.

        messages: such as {"role": "user", "content": "Hi"}. max_tokens: None or 0 fills the context. logprobs: whether
        the answer lists the log-probability of each token, with the top_logprobs likeliest ones. stream=True returns an
        iterator over chunks. Returns {"id", "object": "chat.completion", "created", "model", "choices": [{"index",
        "message": {"role", "content"}, "logprobs", "finish_reason"}], "usage"}. Raises ConfigError (no template, no
        jinja2), DTypeError, InputError, ContextLengthError, NonFiniteError.
        """
        wanted, streams = bool(logprobs) and check_flag("logprobs", logprobs), check_flag("stream", stream)
        n_top = 0 if top_logprobs is None else check_count("top_logprobs", top_logprobs, high=1000)
        if n_top and not wanted:
            raise InputError(f"top_logprobs: expected None without logprobs=True, got {n_top}")
        tokenizer = need_tokenizer(self.model, "create_chat_completion")
        text = tokenizer.apply_chat_template(
            messages, tools, chat_template=self._template, add_generation_prompt=True, tokenize=False
        )
        ids = encode_prompt(tokenizer, text, "messages", add_special_tokens=False)
        given = self._options(options, _CHAT, ids, max_tokens, n_top=n_top)
        if streams:
            return self._stream_chat(tokenizer, ids, given, logprobs=wanted, n_top=n_top)
        requests, results = self._run(tokenizer, ids, given, logprobs=wanted)
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": text_of(request)},
                "logprobs": chat_logprobs(tokenizer, Tokens.of(request), n_top) if wanted else None,
                "finish_reason": finish_of(request.finish_reason),
            }
            for i, request in enumerate(results)
        ]
        return {**self._head("chat.completion"), "choices": choices, "usage": usage(requests)}

    def close(self) -> None:
        """Free the memory of the model."""
        self.model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- parts --------------------------------------------------------------------------------------------------------

    def _head(self, kind: Literal["text_completion", "chat.completion", "chat.completion.chunk"]) -> Json:
        return head(kind, self.model.name_or_path, chat=kind != "text_completion")

    def _ids(self, tokenizer: Tokenizer, prompt: Any) -> NDArray[np.int32]:
        if isinstance(prompt, str):
            return encode_prompt(tokenizer, prompt, "prompt")
        if not isinstance(prompt, (list, tuple, np.ndarray)) or (isinstance(prompt, np.ndarray) and prompt.ndim == 0):
            raise DTypeError(f"prompt: expected str or token ids, got {type(prompt).__name__}")
        mask = np.ones(len(prompt), np.int64) if len(prompt) else None
        prompts = read_prompts(self.model, prompt if len(prompt) else [[]], mask, GenerationOptions(), name="prompt")
        if len(prompt) and not prompts.single:
            raise InputError("prompt: expected one text or list of token ids, got several")
        return prompts.ids[0]

    def _options(
        self,
        options: Mapping[str, Any],
        defaults: Mapping[str, Any],
        ids: NDArray[np.int32],
        max_tokens: int | None,
        *,
        n_top: int | None,
    ) -> GenerationOptions:
        """Return the options of a call. Raises DTypeError, InputError."""
        known = (*_SAME, *_NAMES, "n", "logits_processor", "stopping_criteria", "response_format", "grammar")
        others = {name: value for name, value in options.items() if name not in known}
        check_keywords(others, (*known, *_REFUSED), "Llm")
        check_neutral(others, _REFUSED, "Llm", known)
        given = {**_SHARED, **defaults}
        given |= {name: value for name, value in options.items() if value is not None and name in known}
        room = self.model.executor.program.max_positions - max(1, len(ids))
        count = 0 if max_tokens is None else check_count("max_tokens", max_tokens, low=-1)
        read = {_NAMES.get(name, name): value for name, value in given.items() if name in (*_SAME, *_NAMES)}
        read |= read_constraint(given.get("response_format"), given.get("grammar"))
        for name in ("logits_processor", "stopping_criteria"):
            if given.get(name) is not None:
                functions = given[name] if isinstance(given[name], (list, tuple)) else [given[name]]
                read[name] = [_of_row(function, name) for function in functions]
        temperature = read["temperature"]
        greedy = (
            isinstance(temperature, (int, float)) and not isinstance(temperature, bool) and temperature < GREEDY_BELOW
        )
        return GenerationOptions(
            **read,
            do_sample=not greedy or temperature < 0,
            max_new_tokens=count if count > 0 else max(room, 1),
            num_return_sequences=given.get("n", 1),
            top_logprobs=n_top or 0,
        )

    def _run(
        self, tokenizer: Tokenizer, ids: NDArray[np.int32], options: GenerationOptions, *, logprobs: bool
    ) -> tuple[list[Request], list[Request]]:
        """Return all requests of a prompt, and those whose texts are returned."""
        requests = make_requests(self.model, [ids], options, tokenizer=tokenizer, names=["prompt"])
        complete(self.model, requests, options, logprobs=logprobs)
        return requests, best_requests(requests)

    def _listed(
        self, tokenizer: Tokenizer, ids: NDArray[np.int32], request: Request, before: str, n_top: int, *, echo: bool
    ) -> Json:
        tokens = Tokens.of(request)
        if not echo:
            return completion_logprobs(tokenizer, tokens.ids, tokens.logprobs, tokens.tops, len(before))
        values, tops = self._of_prompt(ids, n_top)
        return completion_logprobs(
            tokenizer, [*ids.tolist(), *tokens.ids], [*values, *tokens.logprobs], [*tops, *tokens.tops], 0
        )

    def _of_prompt(self, ids: NDArray[np.int32], n_top: int) -> tuple[list[float | None], list[Any]]:
        """Return the log-probabilities of the tokens of a prompt, and of the likeliest ones."""
        found = prompt_records(self.model, ids, n_top)
        return [logprob for logprob, _ in found], [top if n_top else None for _, top in found]

    def _pieces(self, ids: NDArray[np.int32], options: GenerationOptions, *, logprobs: bool) -> TextStream:
        if options.n_requests > 1:
            raise InputError(f"n: expected 1 with stream=True, got {options.n_requests}")
        names = [*_SAME[:-1], *_NAMES.values(), *CONSTRAINTS]
        names += ["logits_processor", "stopping_criteria", "do_sample", "max_new_tokens", "top_logprobs"]
        chosen: dict[str, Any] = {name: getattr(options, name) for name in names}
        return stream(self.model, ids, logprobs=logprobs, use_model_defaults=False, **chosen)

    def _stream_completion(
        self,
        tokenizer: Tokenizer,
        ids: NDArray[np.int32],
        options: GenerationOptions,
        before: str,
        *,
        echo: bool,
        n_top: int | None,
    ) -> Iterator[Json]:
        """Yield the chunks of a completion. n_top: None lists no log-probabilities.

        A chunk lists the tokens that belong to its text; those of which a stop string may begin come later.
        """
        pieces, first = self._pieces(ids, options, logprobs=n_top is not None), self._head("text_completion")

        def chunk(text: str, reason: str | None, logprobs: Json | None) -> Json:
            choice = {"text": text, "index": 0, "logprobs": logprobs, "finish_reason": finish_of(reason)}
            return {**first, "choices": [choice]}

        def chunks() -> Iterator[Json]:
            offset = len(before)

            def listed(tokens: Tokens) -> Json | None:
                nonlocal offset
                if not tokens.ids:
                    return None
                found = completion_logprobs(tokenizer, tokens.ids, tokens.logprobs, tokens.tops, offset)
                offset += sum(map(len, found["tokens"]))
                return found

            with pieces:
                if echo:
                    offset = 0
                    of_prompt: Json | None = None
                    if n_top is not None:
                        values, tops = self._of_prompt(ids, n_top)
                        of_prompt = completion_logprobs(tokenizer, ids.tolist(), values, tops, 0)
                        offset = sum(map(len, of_prompt["tokens"]))
                    yield chunk(before, None, of_prompt)
                for piece, tokens in _with_tokens(pieces, len(ids), wanted=n_top is not None):
                    yield chunk(piece, None if piece else pieces.finish_reason, listed(tokens))

        return chunks()

    def _stream_chat(
        self, tokenizer: Tokenizer, ids: NDArray[np.int32], options: GenerationOptions, *, logprobs: bool, n_top: int
    ) -> Iterator[Json]:
        pieces, first = self._pieces(ids, options, logprobs=logprobs), self._head("chat.completion.chunk")

        def chunk(delta: Json, reason: str | None, tokens: Tokens) -> Json:
            listed = chat_logprobs(tokenizer, tokens, n_top) if tokens.ids else None
            choice = {"index": 0, "delta": delta, "logprobs": listed, "finish_reason": finish_of(reason)}
            return {**first, "choices": [choice]}

        def chunks() -> Iterator[Json]:
            with pieces:
                yield chunk({"role": "assistant"}, None, Tokens([], [], []))
                for piece, tokens in _with_tokens(pieces, len(ids), wanted=logprobs):
                    yield chunk({"content": piece}, None, tokens) if piece else chunk({}, pieces.finish_reason, tokens)

        return chunks()


def _with_tokens(pieces: TextStream, n_prompt: int, *, wanted: bool) -> Iterator[tuple[str, Tokens]]:
    """Yield each piece, and "" at the end, with the tokens since the last one if they are wanted."""
    n_listed = 0
    for piece in chain(pieces, ("",)):
        end = pieces.n_final_tokens if wanted else 0
        yield piece, Tokens.between(pieces, n_prompt, n_listed, end)
        n_listed = end


def _of_row(function: Any, name: str) -> Processor:
    """Return a function of transformers' shapes from one of llama-cpp-python's, without a batch axis."""
    if not callable(function):
        raise DTypeError(f"{name}: expected functions, got {type(function).__name__}")

    def call(input_ids: NDArray[np.int64], scores: Any) -> Any:
        if scores is None:
            return function(input_ids[0], None)
        return np.asarray(function(input_ids[0], scores[0]))[None]

    return call
