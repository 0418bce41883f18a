"""`generate` and `stream`: prompts in, longer texts out."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

from fastattn.errors import ConfigError, ContextLengthError, DTypeError, InputError
from fastattn.generation.options import DEFAULT_NEW_TOKENS, GenerationOptions, NanPolicy, read_options
from fastattn.generation.scheduler import FinishReason, Request, Scheduler
from fastattn.generation.stopping import TextState
from fastattn.graph.executor import Executor
from fastattn.models.inputs import read_batch
from fastattn.tokenizer import Tokenizer, check_text

if TYPE_CHECKING:
    from typing_extensions import Unpack


class LanguageModel(Protocol):
    """What generation needs of a model."""

    @property
    def executor(self) -> Executor: ...
    @property
    def tokenizer(self) -> Tokenizer | None: ...
    @property
    def bos_token_id(self) -> int | None: ...
    @property
    def eos_token_ids(self) -> Sequence[int]: ...


class GenerationArgs(TypedDict, total=False):
    """The keyword arguments that become `GenerationOptions`."""

    max_new_tokens: int | None
    min_new_tokens: int
    do_sample: bool
    temperature: float
    top_k: int | None
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | Sequence[int] | None
    stop_strings: str | Sequence[str] | None
    eos_token_id: int | Sequence[int] | None
    truncate: Literal["left", "right"] | None
    max_batch_size: int
    nan: NanPolicy


@dataclass(frozen=True, slots=True)
class GenerateOutput:
    """What `generate(..., return_dict_in_generate=True)` returns, one item a request.

    sequences: prompt and new tokens, int32; finish_reasons: "eos", "stop_string" or "length"; logprobs: of the new
    tokens under the unprocessed logits, float32; seeds: what repeats each request alone; texts: the new text, exactly
    up to the stop string (None where no stop strings were given).
    """

    sequences: list[NDArray[np.int32]]
    finish_reasons: list[FinishReason]
    logprobs: list[NDArray[np.float32]]
    seeds: list[int]
    texts: list[str] | None = None


def generate(
    model: LanguageModel,
    ids: Any,
    *,
    attention_mask: Any = None,
    return_dict_in_generate: bool = False,
    **options: Unpack[GenerationArgs],
) -> NDArray[np.int32] | list[NDArray[np.int32]] | GenerateOutput:
    """Continue token ids; `GenerationOptions` describes the options.

    ids: one sequence [n_tokens] -> int32 [n_tokens + n_new], the prompt included; ragged lists, or an array
    [n_sequences, seq_len] with an optional attention_mask (0: padding, which is dropped on either side) -> a list of
    such arrays, never padded. An end-of-text id is part of the result; a stop string is not: the result ends with the
    last token that lies wholly before it. An empty sequence starts from the checkpoint's bos (else eos) id.
    """
    checked = read_options(options)
    if isinstance(ids, (str, bytes)):
        raise DTypeError(f"ids: expected token ids, got {type(ids).__name__}; encode the text, or use stream()")
    prompts, single = _prompts(model, ids, attention_mask, checked)
    requests = complete(
        model,
        prompts,
        checked,
        tokenizer=model.tokenizer if checked.stops() else None,
        logprobs=bool(return_dict_in_generate),
    )
    sequences = [np.array(request.ids, np.int32) for request in requests]
    if return_dict_in_generate:
        return GenerateOutput(
            sequences,
            [request.finish_reason or "length" for request in requests],
            [np.array(request.logprobs, np.float32) for request in requests],
            [request.seed for request in requests],
            [r.text.text for r in requests if r.text is not None] if checked.stops() else None,
        )
    return sequences[0] if single else sequences


def complete(
    model: LanguageModel,
    prompts: Sequence[NDArray[np.int32]],
    options: GenerationOptions,
    *,
    tokenizer: Tokenizer | None,
    default_new_tokens: int = DEFAULT_NEW_TOKENS,
    logprobs: bool = False,
) -> list[Request]:
    """Run every prompt to its end. With a tokenizer each request collects its text, which stop strings need."""
    requests = make_requests(model, prompts, options, tokenizer=tokenizer, default_new_tokens=default_new_tokens)
    eos_ids = _eos_ids(model, options)
    with Scheduler(model.executor, requests, options, eos_ids=eos_ids, logprobs=logprobs) as scheduler:
        while not scheduler.done:
            scheduler.step()
    return requests


class TextStream(Iterator[str]):
    """Pieces of text as they come. `close`, leaving a `with` block or dropping the stream ends the work.

    `token_ids` is the prompt and what was drawn so far; `finish_reason` is None until the end. One thread at a time
    may ask for a piece: InputError says so to the other, and the stream goes on. Closed by another thread, it ends with
    the piece that is on its way.
    """

    def __init__(self, scheduler: Scheduler, request: Request) -> None:
        self._scheduler = scheduler
        self._request = request
        self._lock = threading.Lock()  # never waited for
        self._closing = False

    @property
    def token_ids(self) -> NDArray[np.int32]:
        """Prompt and new tokens, int32 [n_tokens]."""
        return np.array(self._request.ids, np.int32)

    @property
    def n_new_tokens(self) -> int:
        """How many tokens were drawn."""
        return self._request.new_len

    @property
    def seed(self) -> int:
        """The seed that repeats this text."""
        return self._request.seed

    @property
    def finish_reason(self) -> FinishReason | None:
        """ "eos", "stop_string" or "length" at the end, None before."""
        return self._request.finish_reason

    def __iter__(self) -> TextStream:
        return self

    def __next__(self) -> str:
        if not self._lock.acquire(blocking=False):
            raise InputError("stream: expected one thread at a time, got a call while it is in use by another thread")
        try:
            return self._next_piece()
        except BaseException:
            self._closing = True
            raise
        finally:
            self._lock.release()
            if self._closing:
                self.close()

    def _next_piece(self) -> str:
        while not self._scheduler.done:
            for draw in self._scheduler.step():
                if draw.piece:
                    return draw.piece
        raise StopIteration

    def __enter__(self) -> TextStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """End the work and give its memory back; may be called twice, and from any thread."""
        self._closing = True
        if self._lock.acquire(blocking=False):  # else whoever holds it closes on its way out
            try:
                self._scheduler.close()
            finally:
                self._lock.release()


def stream(model: LanguageModel, text_or_ids: Any, **options: Unpack[GenerationArgs]) -> TextStream:
    """Continue a text, or ids [n_tokens], piece by piece; the pieces together are the decoded new tokens.

    Arguments are checked here, before the first piece. A piece never ends inside a character, and what may become a
    stop string is held back until it is known. Special tokens give no text.
    """
    checked = read_options(options)
    tokenizer = need_tokenizer(model, "stream")
    if isinstance(text_or_ids, str):
        text_or_ids = np.array(tokenizer.encode(check_text(text_or_ids, "text")), np.int32)
    elif isinstance(text_or_ids, (bytes, bytearray)):
        raise DTypeError(f"text: expected str or token ids, got {type(text_or_ids).__name__}")
    prompts, single = _prompts(model, text_or_ids, None, checked)
    if not single:
        raise InputError("ids: stream takes one sequence [n_tokens]; use generate() for several")
    request = make_requests(model, prompts, checked, tokenizer=tokenizer)[0]
    return TextStream(Scheduler(model.executor, [request], checked, eos_ids=_eos_ids(model, checked)), request)


def need_tokenizer(model: LanguageModel, what: str) -> Tokenizer:
    """The model's tokenizer; ConfigError where its directory has none."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ConfigError(
            f"{what}: needs a tokenizer, and the model's directory has none; add one, or call the model with token ids"
        )
    return tokenizer


def make_requests(
    model: LanguageModel,
    prompts: Sequence[NDArray[np.int32]],
    options: GenerationOptions,
    *,
    tokenizer: Tokenizer | None,
    default_new_tokens: int = DEFAULT_NEW_TOKENS,
) -> list[Request]:
    """A request for each prompt, checked against the model's context."""
    context = model.executor.program.max_positions
    if options.stops() and tokenizer is None:
        tokenizer = need_tokenizer(model, "stop_strings")
    requests = []
    for i, (prompt, seed) in enumerate(zip(prompts, options.seeds(len(prompts)), strict=True)):
        start = prompt.tolist() or [_start_id(model, f"ids[{i}]")]
        wanted = options.max_new_tokens
        if wanted is None:
            left = context - len(start)
            if left < 1 and options.truncate is not None:
                left = context - 1
            wanted = max(1, options.min_new_tokens, min(default_new_tokens, left))
        start = options.cut(start, context - wanted)
        if len(start) + wanted > context:
            raise ContextLengthError(
                f"ids[{i}]: expected prompt and max_new_tokens to fit the context of {context} positions, "
                f"got {len(start)} + {wanted}"
            )
        text = None if tokenizer is None else TextState(tokenizer, options.stops(), prompt=start)
        request = Request(start, len(start), wanted, seed, text)
        if wanted == 0:
            request.finish_reason = "length"
        requests.append(request)
    return requests


def _start_id(model: LanguageModel, name: str) -> int:
    """What an empty prompt starts from."""
    for token_id in (model.bos_token_id, *model.eos_token_ids):
        if token_id is not None:
            return token_id
    raise InputError(f"{name}: expected at least one id, as the checkpoint has no bos or eos id to start from")


def _eos_ids(model: LanguageModel, options: GenerationOptions) -> frozenset[int]:
    ids = options.eos_ids(model.eos_token_ids)
    vocab_size = _vocab_size(model)
    for i in ids if options.eos_token_id is not None else ():
        if i >= vocab_size:
            raise InputError(f"eos_token_id: expected -1 to {vocab_size - 1}, got {i}")
    return frozenset(i for i in ids if i < vocab_size)


def _vocab_size(model: LanguageModel) -> int:
    program = model.executor.program
    return program.values[program.outputs["logits"]].width


def _prompts(
    model: LanguageModel, ids: Any, attention_mask: Any, options: GenerationOptions
) -> tuple[list[NDArray[np.int32]], bool]:
    """The prompts as int32 arrays, and whether the caller gave one sequence alone."""
    context = model.executor.program.max_positions if options.truncate is None else sys.maxsize
    batch = read_batch(ids, attention_mask, vocab_size=_vocab_size(model), max_positions=context)
    return batch.ids, batch.layout == "single"
