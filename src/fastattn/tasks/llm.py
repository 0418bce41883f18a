"""`Llm`: a language model with the interface of llama-cpp-python's `Llama`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from fastattn.api.auto import AutoModelForCausalLM
from fastattn.api.causal_lm import CausalLM
from fastattn.checks import check_count, check_flag, check_str, one_of
from fastattn.errors import DTypeError, InputError
from fastattn.generation.generate import complete, make_requests
from fastattn.generation.options import GenerationOptions
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
from fastattn.tasks.llm_options import Processor, in_our_names, read_sampling
from fastattn.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

# The argument with the prompt, and what to do if it is too long.
_PROMPT = ("prompt", "; shorten the prompt, or lower max_tokens")
_MESSAGES = ("messages", "; remove the oldest messages, or lower max_tokens")


class SamplingArgs(TypedDict, total=False):
    """The arguments of llama-cpp-python that completions and chats share; `GenerationOptions` describes them.

    temperature: 0 is greedy. stop: texts before which the answer ends. repeat_penalty: applies to the whole text.
    logits_processor: functions (input_ids int64 [n_tokens], scores float32 [vocab_size]) -> scores. stopping_criteria:
    functions (input_ids int64 [n_tokens], None) -> bool. n: number of choices; best_of: number of texts from which
    the choices are selected. response_format: {"type": "json_object"}, with "schema" if the answer must match one, or
    OpenAI's {"type": "json_schema", "json_schema": {"schema": ...}}. grammar: text of a GBNF or Lark grammar.
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

    model (or model_path): a folder, a GGUF file, a hub id, or a loaded model. Keywords are those of
    `AutoModelForCausalLM.from_pretrained`; n_threads is another name for threads. chat_template: a Jinja template that
    replaces the checkpoint's. Several threads may call one `Llm`. Raises what `from_pretrained` raises.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | CausalLM | None = None,
        *,
        model_path: str | os.PathLike[str] | None = None,
        n_threads: int | None = None,
        chat_template: str | None = None,
        **options: Any,
    ) -> None:
        model = one_of("model", model, "model_path", model_path)
        if model is None:
            raise InputError("model: expected a folder, a GGUF file, a hub id or a loaded model, got None")
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

        max_tokens: None or 0 fills the context. logprobs: how many of the likeliest tokens to list with each token.
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
        given = self._options(options, ids, max_tokens, chat=False, n_top=logprobs)
        before = (
            str(tokenizer.decode(ids.tolist(), skip_special_tokens=True)) if not isinstance(prompt, str) else prompt
        )
        if streams:
            return self._stream_completion(tokenizer, ids, given, before, echo=checked_echo, n_top=logprobs)
        requests, results = self._run(tokenizer, _PROMPT, ids, given, logprobs=logprobs is not None)
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
            raise InputError(f"top_logprobs: expected None without logprobs=True, got {n_top}; pass both")
        tokenizer = need_tokenizer(self.model, "create_chat_completion")
        text = tokenizer.apply_chat_template(
            messages, tools, chat_template=self._template, add_generation_prompt=True, tokenize=False
        )
        ids = encode_prompt(tokenizer, text, "messages", add_special_tokens=False)
        given = self._options(options, ids, max_tokens, chat=True, n_top=n_top)
        if streams:
            return self._stream_chat(tokenizer, ids, given, logprobs=wanted, n_top=n_top)
        requests, results = self._run(tokenizer, _MESSAGES, ids, given, logprobs=wanted)
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
        given = prompt if len(prompt) else [[]]
        prompts = read_prompts(self.model, given, mask, GenerationOptions(), name="prompt", if_too_long=_PROMPT[1])
        if len(prompt) and not prompts.single:
            raise InputError("prompt: expected one text or list of token ids, got several; call it once for each")
        return prompts.ids[0]

    def _options(
        self, options: Mapping[str, Any], ids: NDArray[np.int32], max_tokens: Any, *, chat: bool, n_top: int | None
    ) -> GenerationOptions:
        """Return the options of a call. Raises DTypeError, InputError."""
        room = self.model.executor.program.max_positions - max(1, len(ids))
        return read_sampling(options, chat=chat, max_tokens=max_tokens, room=room, n_top=n_top)

    def _run(
        self,
        tokenizer: Tokenizer,
        about: tuple[str, str],
        ids: NDArray[np.int32],
        options: GenerationOptions,
        *,
        logprobs: bool,
    ) -> tuple[list[Request], list[Request]]:
        """Return all requests of a prompt, and those whose texts are returned.

        about: the argument with the prompt, and what to do if it is too long.
        """
        with _errors_of(options):
            requests = make_requests(
                self.model, [ids], options, tokenizer=tokenizer, names=[about[0]], if_too_long=about[1]
            )
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

    def _pieces(
        self,
        tokenizer: Tokenizer,
        about: tuple[str, str],
        ids: NDArray[np.int32],
        options: GenerationOptions,
        *,
        logprobs: bool,
    ) -> TextStream:
        """Return the stream of a prompt. about: see `_run`."""
        if options.n_requests > 1:
            name = "n" if options.num_return_sequences > 1 else "best_of"
            raise InputError(
                f"{name}: expected 1 with stream=True, got {options.n_requests}; call it once for each text"
            )
        with _errors_of(options):
            request = make_requests(
                self.model, [ids], options, tokenizer=tokenizer, names=[about[0]], if_too_long=about[1]
            )[0]
        request.wants_logprobs = logprobs
        return TextStream(self.model.engine, request)

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

        A chunk lists the tokens that belong to its text; tokens that may begin a stop string come later.
        """
        pieces = self._pieces(tokenizer, _PROMPT, ids, options, logprobs=n_top is not None)
        first = self._head("text_completion")

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

            with _errors_of(options), pieces:
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
        pieces = self._pieces(tokenizer, _MESSAGES, ids, options, logprobs=logprobs)
        first = self._head("chat.completion.chunk")

        def chunk(delta: Json, reason: str | None, tokens: Tokens) -> Json:
            listed = chat_logprobs(tokenizer, tokens, n_top) if tokens.ids else None
            choice = {"index": 0, "delta": delta, "logprobs": listed, "finish_reason": finish_of(reason)}
            return {**first, "choices": [choice]}

        def chunks() -> Iterator[Json]:
            with _errors_of(options), pieces:
                yield chunk({"role": "assistant"}, None, Tokens([], [], []))
                for piece, tokens in _with_tokens(pieces, len(ids), wanted=logprobs):
                    yield chunk({"content": piece}, None, tokens) if piece else chunk({}, pieces.finish_reason, tokens)

        return chunks()


def _errors_of(options: GenerationOptions) -> AbstractContextManager[None]:
    """Name the arguments of `Llm` in errors."""
    return in_our_names(schema=options.json_schema is not None)


def _with_tokens(pieces: TextStream, n_prompt: int, *, wanted: bool) -> Iterator[tuple[str, Tokens]]:
    """Yield each piece, and "" at the end, with the tokens since the previous piece if the caller needs them."""
    n_listed = 0
    for piece in chain(pieces, ("",)):
        end = pieces.n_final_tokens if wanted else 0
        yield piece, Tokens.between(pieces, n_prompt, n_listed, end)
        n_listed = end
