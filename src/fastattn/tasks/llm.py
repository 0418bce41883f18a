"""`Llm`: a language model with the interface of llama-cpp-python's `Llama`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from fastattn.api.auto import AutoModelForCausalLM
from fastattn.api.causal_lm import CausalLM
from fastattn.checks import Neutral, check_count, check_flag, check_keywords, check_neutral, check_str
from fastattn.errors import DTypeError, InputError
from fastattn.generation.generate import complete, make_requests, stream
from fastattn.generation.options import CONSTRAINTS, GREEDY_BELOW, GenerationOptions
from fastattn.generation.prompts import encode_prompt, need_tokenizer, read_prompts
from fastattn.generation.request import Request
from fastattn.generation.results import best_requests
from fastattn.generation.scoring import prompt_records
from fastattn.tasks.completion import (
    Json,
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

    model: a folder, a hub id, or a loaded model. Keywords are those of `AutoModelForCausalLM.from_pretrained`;
    n_threads is another name for threads. chat_template: a Jinja template that replaces the checkpoint's. Several
    threads may call one `Llm`.
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
        chunks of the same shape. Returns {"id", "object": "text_completion", "created", "model", "choices": [{"text",
        "index", "logprobs", "finish_reason"}], "usage"}. Raises DTypeError, InputError, ContextLengthError,
        NonFiniteError.
        """
        checked_echo, streams = check_flag("echo", echo), check_flag("stream", stream)
        if logprobs is not None:
            check_count("logprobs", logprobs, high=1000)
        tokenizer = need_tokenizer(self.model, "create_completion")
        ids = self._ids(tokenizer, prompt)
        given = self._options(options, _COMPLETION, ids, max_tokens, n_top=logprobs)
        if streams:
            if logprobs is not None:
                raise InputError("logprobs: expected None with stream=True, got a number")
            return self._stream_completion(tokenizer, ids, given, echo=checked_echo)
        requests, results = self._run(tokenizer, ids, given, logprobs=logprobs is not None)
        before = (
            str(tokenizer.decode(ids.tolist(), skip_special_tokens=True)) if not isinstance(prompt, str) else prompt
        )
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
            if wanted:
                raise InputError("logprobs: expected None with stream=True, got True")
            return self._stream_chat(tokenizer, ids, given)
        requests, results = self._run(tokenizer, ids, given, logprobs=wanted)
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": text_of(request)},
                "logprobs": chat_logprobs(tokenizer, request, n_top) if wanted else None,
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
        if not isinstance(prompt, (list, tuple, np.ndarray)):
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
        values: list[float | None] = list(request.logprobs)
        records: list[Any] = list(request.records) or [None] * len(values)
        tops = [None if record is None else (record.top_ids, record.top_logprobs) for record in records]
        shown, offset = request.ids[request.prompt_len :], len(before)
        if echo:
            of_prompt = prompt_records(self.model, ids, n_top)
            values = [*[pair[0] for pair in of_prompt], *values]
            tops = [*[pair[1] if n_top else None for pair in of_prompt], *tops]
            shown = [*ids.tolist(), *shown]
            offset = 0
        return completion_logprobs(tokenizer, shown, values, tops, offset)

    def _pieces(self, ids: NDArray[np.int32], options: GenerationOptions) -> Any:
        if options.n_requests > 1:
            raise InputError(f"n: expected 1 with stream=True, got {options.n_requests}")
        names = [*_SAME[:-1], *_NAMES.values(), *CONSTRAINTS]
        names += ["logits_processor", "stopping_criteria", "do_sample", "max_new_tokens"]
        chosen: dict[str, Any] = {name: getattr(options, name) for name in names}
        return stream(self.model, ids, use_model_defaults=False, **chosen)

    def _stream_completion(
        self, tokenizer: Tokenizer, ids: NDArray[np.int32], options: GenerationOptions, *, echo: bool
    ) -> Iterator[Json]:
        pieces, first = self._pieces(ids, options), self._head("text_completion")

        def chunk(text: str, reason: str | None) -> Json:
            choice = {"text": text, "index": 0, "logprobs": None, "finish_reason": finish_of(reason)}
            return {**first, "choices": [choice]}

        def chunks() -> Iterator[Json]:
            with pieces:
                if echo:
                    yield chunk(str(tokenizer.decode(ids.tolist(), skip_special_tokens=True)), None)
                for piece in pieces:
                    yield chunk(piece, None)
                yield chunk("", pieces.finish_reason)

        return chunks()

    def _stream_chat(self, tokenizer: Tokenizer, ids: NDArray[np.int32], options: GenerationOptions) -> Iterator[Json]:
        pieces, first = self._pieces(ids, options), self._head("chat.completion.chunk")

        def chunk(delta: Json, reason: str | None) -> Json:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_of(reason)}
            return {**first, "choices": [choice]}

        def chunks() -> Iterator[Json]:
            with pieces:
                yield chunk({"role": "assistant"}, None)
                for piece in pieces:
                    yield chunk({"content": piece}, None)
                yield chunk({}, pieces.finish_reason)

        return chunks()


def _of_row(function: Any, name: str) -> Processor:
    """Return a function of transformers' shapes from one of llama-cpp-python's, without a batch axis."""
    if not callable(function):
        raise DTypeError(f"{name}: expected functions, got {type(function).__name__}")

    def call(input_ids: NDArray[np.int64], scores: Any) -> Any:
        if scores is None:
            return function(input_ids[0], None)
        return np.asarray(function(input_ids[0], scores[0]))[None]

    return call
