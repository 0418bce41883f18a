"""`generate` and `stream`: continue prompts."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastattn.checks import check_flag, quote
from fastattn.errors import ContextLengthError, DTypeError, InputError
from fastattn.generation.beam_search import BeamSearch
from fastattn.generation.call import Call
from fastattn.generation.generate_args import GenerateArgs, GenerationArgs, Streamer
from fastattn.generation.generation_config import with_defaults
from fastattn.generation.keywords import with_generation_config
from fastattn.generation.option_rules import check_unseen
from fastattn.generation.options import DEFAULT_NEW_TOKENS, OPTIONS, GenerationOptions, read_options
from fastattn.generation.processors import processors_of
from fastattn.generation.prompts import (
    HOW_TO_CUT,
    LanguageModel,
    Prompts,
    encode_prompt,
    eos_ids,
    need_tokenizer,
    read_prompts,
    start_id,
    vocab_size,
)
from fastattn.generation.request import Request
from fastattn.generation.results import best_requests, groups_of, output_of
from fastattn.generation.source import Source
from fastattn.generation.speculation import speculation_of
from fastattn.generation.stopping import TextState
from fastattn.generation.structured import Masks
from fastattn.generation.text_stream import TextStream
from fastattn.models.outputs import GenerateOutput
from fastattn.models.sequences import MAX_SEQUENCES
from fastattn.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "GenerateOutput",
    "GenerationArgs",
    "LanguageModel",
    "TextStream",
    "complete",
    "completed",
    "generate",
    "make_requests",
    "need_tokenizer",
    "seeds_of",
    "stream",
]


def generate(
    model: LanguageModel,
    ids: Any = None,
    *,
    return_dict_in_generate: bool | None = None,
    num_return_sequences: int | None = None,
    sources: Sequence[Source] | None = None,
    **options: Unpack[GenerateArgs],
) -> NDArray[np.int32] | list[NDArray[np.int32]] | GenerateOutput:
    """Continue token ids; `GenerationOptions` describes the options.

    ids: one sequence [n_tokens] -> int32 [n_tokens + n_new], including the prompt; ragged lists, or an array
    [n_sequences, seq_len] -> a list of such arrays, without padding. With num_return_sequences > 1 one sequence returns
    a list too. attention_mask has the same shape as the ids and is 0 at padding. Without it, pad_token_id is padding
    wherever it occurs, unless it is also an eos id. The result includes an end-of-text id but not a stop string: it
    ends with the last token that lies completely before the stop string. An empty sequence starts from the checkpoint's
    bos (else eos) id. Keywords of transformers are accepted if they change nothing here. sources: of models with an
    encoder, one per sequence (see `fastattn.generation.seq2seq`).
    Raises DTypeError, InputError, ContextLengthError, NonFiniteError.
    """
    own = {"return_dict_in_generate": return_dict_in_generate, "num_return_sequences": num_return_sequences}
    job = _read_call(model, ids, {**options, **own})
    for group, source in zip(groups_of(job.requests), sources or (), strict=sources is not None):
        source.n_readers = sum(request.runs for request in group)
        for request in group:
            request.source = source
    complete(model, job.requests, job.options, logprobs=job.wants_output, feed=job.feed)
    return job.result()


async def generate_async(
    model: LanguageModel, ids: Any = None, **options: Any
) -> NDArray[np.int32] | list[NDArray[np.int32]] | GenerateOutput:
    """Do what `generate` does without blocking the event loop. Canceling the task stops the work."""
    job = _read_call(model, ids, options)
    call = _call_of(job.requests, job.options, logprobs=job.wants_output, feed=job.feed)
    model.engine.submit(call)
    try:
        while (draw := await model.engine.take_async(call)) is not None:
            if job.feed is not None and draw.token_id is not None:
                job.feed.push(draw.token_id)
    finally:
        model.engine.cancel(call)
    if job.feed is not None:
        job.feed.end()
    return job.result()


@dataclass(frozen=True, slots=True)
class _Job:
    """The checked arguments of a call of `generate`. single: the result is one sequence. begin: time of the call."""

    requests: list[Request]
    options: GenerationOptions
    wants_output: bool
    feed: StreamerFeed | None
    single: bool
    begin: float

    def result(self) -> NDArray[np.int32] | list[NDArray[np.int32]] | GenerateOutput:
        """Return what `generate` returns, when all requests have ended."""
        results = best_requests(self.requests)
        if self.wants_output:
            return output_of(results, self.requests, time.perf_counter() - self.begin)
        sequences = [np.array(request.ids, np.int32) for request in results]
        return sequences[0] if self.single else sequences


def _read_call(model: LanguageModel, ids: Any, options: Mapping[str, Any]) -> _Job:
    begin, defaults = time.perf_counter(), model.generation_config
    configs, given = options.get("generation_config"), dict(options)
    if isinstance(configs, (list, tuple)):
        given["generation_config"] = None
    else:
        configs, given = None, with_generation_config(given, ours=_ARGUMENTS)
    mask, chosen = given.pop("attention_mask", None), given.pop("tokenizer", None)
    streamer: Any = given.pop("streamer", None)
    inputs = given.pop("inputs", None)
    if inputs is not None and ids is not None:
        raise InputError(
            "inputs: expected None, because input_ids is set and means the same, got both; pass one of them"
        )
    own = None
    if configs is not None:
        own = [with_generation_config({**given, "generation_config": one}, ours=_ARGUMENTS) for one in configs]
        for name in ("return_dict_in_generate", "pad_token_id"):
            given[name] = _shared(own, name)
    wanted = given.pop("return_dict_in_generate", None)
    wants_output = False if wanted is None else check_flag("return_dict_in_generate", wanted)
    if own is None:
        reading = checked = read_options(with_defaults(given, defaults), "generate", also=_ARGUMENTS)
    else:  # the rest is checked with the options of each prompt, and so is its length
        of_call = {name: value for name, value in given.items() if name in _OF_CALL or name not in OPTIONS}
        checked = read_options(of_call, "generate", also=_ARGUMENTS)
        reading = replace(checked, truncate="left")
    prompts = read_prompts(model, inputs if ids is None else ids, mask, reading)
    each = _options_of_each(given, checked, own, prompts.names, defaults)
    requests = _make_each(model, prompts, each, chosen)
    n_texts = sum(one.num_return_sequences for one, _ in each)
    if not wants_output:
        for one in (given,) if own is None else own:
            _check_recorded(one)
    feed = None if streamer is None else StreamerFeed(streamer, prompts.ids, n_texts)
    return _Job(requests, checked, wants_output, feed, prompts.single and n_texts == 1, begin)


def _check_recorded(given: Mapping[str, Any]) -> None:
    """Refuse, or log, options of a call that returns only ids, if they record something else. Raises InputError."""
    check_unseen(given, ("top_logprobs",), "without return_dict_in_generate=True", "pass both")
    for name in ("output_scores", "output_logits"):
        if given.get(name):
            _log.warning("%s: ignored without return_dict_in_generate=True, as in transformers; pass both", name)


def _make_each(
    model: LanguageModel, prompts: Prompts, each: Sequence[tuple[GenerationOptions, list[int]]], chosen: Any
) -> list[Request]:
    """Return the requests of all prompts. chosen: the tokenizer of stop strings and masks; None is the model's."""
    tokenizer, requests = None, []
    needs = ["stop_strings" if one.stops() else one.constraint for one, _ in each if one.stops() or one.constraint]
    if needs:
        tokenizer = need_tokenizer(model, str(needs[0])) if chosen is None else Tokenizer.from_object(chosen)
    for i, (one, seeds) in enumerate(each):
        requests += make_requests(
            model,
            prompts.ids[i : i + 1],
            one,
            names=prompts.names[i : i + 1],
            tokenizer=tokenizer,
            lengths=prompts.lengths[i : i + 1],
            seeds=seeds,
            first_index=i,
        )
    for index, request in enumerate(requests):
        request.index = index
    return requests


def _shared(own: Sequence[dict[str, Any]], name: str) -> Any:
    """Remove a setting that all prompts share from their options, and return it.

    Raises InputError if it differs.
    """
    values = [one.pop(name, None) for one in own]
    for i, value in enumerate(values):
        if value != values[0] and (value or values[0]):
            raise InputError(
                f"generation_config[{i}]: expected {name} {quote(values[0])} as in generation_config[0], because all "
                f"prompts share it, got {quote(value)}; pass it as a keyword"
            )
    return values[0] if values else None


def _options_of_each(
    given: Mapping[str, Any],
    checked: GenerationOptions,
    own: Sequence[Mapping[str, Any]] | None,
    names: Sequence[str],
    defaults: Mapping[str, Any],
) -> list[tuple[GenerationOptions, list[int]]]:
    """Return the options and the seeds of each prompt.

    own: the keywords of each prompt, with its generation_config; None: all the same. A prompt with a seed of its own
    gets the text that it would get alone. defaults: of the checkpoint. Raises DTypeError, InputError.
    """
    if own is None:
        seeds, n_texts = seeds_of(checked, len(names)), checked.n_requests
        return [(checked, seeds[i * n_texts : (i + 1) * n_texts]) for i in range(len(names))]
    if len(own) != len(names):
        raise InputError(
            f"generation_config: expected one for each of {len(names)} prompts, got {len(own)}; a config outside "
            "a list applies to all"
        )
    found = list[GenerationOptions]()
    for i, keywords in enumerate(own):
        one = read_options(with_defaults(keywords, defaults), f"generation_config[{i}]", also=_ARGUMENTS)
        for name in ("max_batch_size", "priority"):
            if getattr(one, name) != getattr(checked, name):
                raise InputError(
                    f"generation_config[{i}]: expected no {name}, because all prompts share it, got one; pass it as a "
                    "keyword"
                )
        found.append(one)
    n_texts = sum(one.n_requests for one in found)
    if n_texts > MAX_SEQUENCES:
        raise InputError(_TOO_MANY)
    listed = checked.seeds(n_texts) if isinstance(checked.seed, tuple) else None
    each, n_before = [], 0
    for one in found:
        if listed is not None:
            seeds = listed[n_before : n_before + one.n_requests]
        else:
            own_seed = one.seed is not None and given.get("seed") is None
            seeds = one.seeds(one.n_requests, first=0 if own_seed else n_before)
        each.append((one, seeds))
        n_before += one.n_requests
    return each


_TOO_MANY = f"num_return_sequences: expected at most {MAX_SEQUENCES} texts in one call, got more; make several calls"
_log = logging.getLogger("fastattn")
_OF_CALL = ("eos_token_id", "max_batch_size", "pad_token_id", "priority", "seed")  # options that all prompts share
_ARGUMENTS = ("input_ids", "return_dict_in_generate", *GenerateArgs.__annotations__)


class StreamerFeed:
    """Feeds a streamer of transformers: the prompt before the first new token, each new token, and the end."""

    def __init__(self, streamer: Streamer, prompts: Sequence[NDArray[np.int32]], n_texts: int) -> None:
        """Check that there is one sequence, as a streamer requires. Raises DTypeError, InputError."""
        for name in ("put", "end"):
            if not callable(getattr(streamer, name, None)):
                raise DTypeError(
                    f"streamer: expected an object with put and end, got {type(streamer).__name__}; stream() needs none"
                )
        if n_texts != 1:
            raise InputError("streamer: expected one sequence, got several; use stream() for each")
        self._streamer = streamer
        self._prompt: NDArray[np.int64] | None = prompts[0][None].astype(np.int64)

    def push(self, token_id: int) -> None:
        self._start()
        self._streamer.put(np.array([token_id], np.int64))

    def end(self) -> None:
        """Send the end, after the last token."""
        self._start()
        self._streamer.end()

    def _start(self) -> None:
        prompt, self._prompt = self._prompt, None
        if prompt is not None:
            self._streamer.put(prompt)


def complete(
    model: LanguageModel,
    requests: Sequence[Request],
    options: GenerationOptions,
    *,
    logprobs: bool = False,
    feed: StreamerFeed | None = None,
) -> None:
    """Run all requests to their end. logprobs: whether they collect log-probabilities. feed: gets each new token."""
    for _ in completed(model, requests, options, logprobs=logprobs, feed=feed):
        pass


def completed(
    model: LanguageModel,
    requests: Sequence[Request],
    options: GenerationOptions,
    *,
    logprobs: bool = False,
    feed: StreamerFeed | None = None,
) -> Iterator[Request]:
    """Yield each request when it ends. The arguments are those of `complete`. Closing the iterator stops the work."""
    call = _call_of(requests, options, logprobs=logprobs, feed=feed)
    yield from (request for request in requests if request.finish_reason is not None)
    with contextlib.closing(model.engine.draws(call)) as draws:
        for draw in draws:
            if feed is not None and draw.token_id is not None:
                feed.push(draw.token_id)
            if draw.ends:
                yield draw.request
    if feed is not None:
        feed.end()


def _call_of(
    requests: Sequence[Request], options: GenerationOptions, *, logprobs: bool, feed: StreamerFeed | None
) -> Call:
    if feed is not None and any(request.search is not None for request in requests):
        raise InputError(
            "streamer: expected num_beams=1, got more; leave it out, the text of a beam can change until the end"
        )
    for request in requests:
        request.wants_logprobs = request.wants_logprobs or logprobs
    return Call(requests, max_running=options.max_batch_size, priority=options.priority, every_token=feed is not None)


def stream(
    model: LanguageModel, text_or_ids: Any, *, logprobs: bool = False, **options: Unpack[GenerationArgs]
) -> TextStream:
    """Continue a text, or ids [n_tokens], and yield the new text in pieces.

    The pieces join to `decode(prompt + new)[len(decode(prompt)):]`, decoded without special tokens. Arguments are
    checked here, before the first piece. A piece never ends inside a character. Text that may become a stop string is
    delayed until that is decided. logprobs: whether the stream collects the log-probabilities of the new tokens. Raises
    DTypeError, InputError, ContextLengthError, ConfigError (no tokenizer).
    """
    wants_logprobs = check_flag("logprobs", logprobs)
    own = with_generation_config(options)
    checked = read_options(
        with_defaults(own, model.generation_config), "stream", also=("generation_config", "logprobs")
    )
    if not wants_logprobs:
        check_unseen(own, ("top_logprobs",), "without logprobs=True", "pass both")
    instead = "use generate with return_dict_in_generate=True"
    check_unseen(own, ("output_scores", "output_logits"), "in a stream", instead)
    for name in ("num_return_sequences", "num_beams", "best_of"):
        if (getattr(checked, name) or 1) != 1:
            why = "call stream once for each text" if name == "num_return_sequences" else "use generate"
            raise InputError(f"{name}: expected 1, got {getattr(checked, name)}; {why}")
    tokenizer = need_tokenizer(model, "stream")
    prompts = _read_one(model, text_or_ids, checked, "stream")
    request = make_requests(model, prompts.ids, checked, names=prompts.names, tokenizer=tokenizer)[0]
    request.wants_logprobs = wants_logprobs
    return TextStream(model.engine, request)


def read_prompt(model: LanguageModel, text_or_ids: Any) -> list[int]:
    """Return the ids of a text, or checked ids [n_tokens]. Raises what `stream` raises for them."""
    found: list[int] = _read_one(model, text_or_ids, GenerationOptions(), "cache_prefix").ids[0].tolist()
    return found


def _read_one(model: LanguageModel, text_or_ids: Any, options: GenerationOptions, caller: str) -> Prompts:
    mask = None
    if isinstance(text_or_ids, str):
        text_or_ids = encode_prompt(need_tokenizer(model, caller), text_or_ids, "text_or_ids")
        mask = np.ones(len(text_or_ids), np.int64)  # a text has no padding, whatever its ids
    elif isinstance(text_or_ids, (bytes, bytearray)):
        raise DTypeError(f"text_or_ids: expected str or token ids, got {type(text_or_ids).__name__}; decode it first")
    prompts = read_prompts(model, text_or_ids, mask, options, name="text_or_ids")
    if not prompts.single:
        raise InputError("text_or_ids: expected one sequence [n_tokens], got several; use generate() for several")
    return prompts


def make_requests(
    model: LanguageModel,
    prompts: Sequence[NDArray[np.int32]],
    options: GenerationOptions,
    *,
    tokenizer: Tokenizer | None,
    mask_tokenizer: Tokenizer | None = None,
    names: Sequence[str] | None = None,
    lengths: Sequence[int] | None = None,
    default_new_tokens: int = DEFAULT_NEW_TOKENS,
    skip_special_tokens: bool = True,
    clean_up_tokenization_spaces: bool | None = None,
    seeds: Sequence[int] | None = None,
    first_index: int = 0,
    if_too_long: str = HOW_TO_CUT,
) -> list[Request]:
    """Create `options.n_requests` requests per prompt, checked against the model's context.

    tokenizer: with one, each request collects its text, which stop strings need. mask_tokenizer: of options such as
    regex; None uses `tokenizer`, or else the model's. clean_up_tokenization_spaces: None is the tokenizer's setting,
    and False for such options, which the cleaned text might not match. names: of the prompts, for messages;
    None uses input_ids[i]. lengths: prompt lengths as max_length counts them; None uses the number of ids. seeds: of
    the requests; None uses those of the options. first_index: of the prompts, for prefix_allowed_tokens_fn.
    if_too_long: what to do about a prompt that leaves too little room, for messages.
    """
    context, n_texts = model.executor.program.max_positions, options.n_requests
    ends, deadline, slides = eos_ids(model, options), options.deadline(), options.overflow == "slide"
    seeds = seeds_of(options, len(prompts)) if seeds is None else seeds
    adapter = None if options.adapter_name is None else model.find_adapter(options.adapter_name)
    names = [f"input_ids[{i}]" for i in range(len(prompts))] if names is None else names
    masks = _masks_of(model, options, mask_tokenizer or tokenizer, ends)
    cleans = False if masks is not None and clean_up_tokenization_spaces is None else clean_up_tokenization_spaces
    decoding: dict[str, Any] = {"skip_special_tokens": skip_special_tokens, "clean_up_tokenization_spaces": cleans}
    requests: list[Request] = []
    for i, prompt in enumerate(prompts):
        whole = prompt if len(prompt) else np.array([start_id(model, options, names[i])], np.int32)
        length = len(whole) if lengths is None or not len(prompt) else lengths[i]
        lowest, highest = options.new_tokens(len(whole), length, context, default_new_tokens)
        start: list[int] = options.cut(whole, context - highest).tolist()
        if len(start) + highest > context and not slides:
            raise _too_long(names[i], first_index + i, (len(start), highest, context), if_too_long)
        processors = processors_of(options, vocab_size(model), index=first_index + i)
        siblings: list[Request] = []
        for seed in seeds[i * n_texts : (i + 1) * n_texts]:
            text = None if tokenizer is None else TextState(tokenizer, options.stops(), prompt=start, **decoding)
            request = Request(list(start), len(start), highest, seed, text, lowest, options=options, eos_ids=ends)
            request.index, request.deadline, request.adapter = first_index + len(requests), deadline, adapter
            mask = None if masks is None else masks.after(start)
            request.join(siblings, processors, mask, speculation_of(model, options))
            if slides:
                request.context = context
                request.slide()
            request.finish_reason = "length" if not highest and options.num_beams == 1 else None
            requests.append(request)
        if options.num_beams > 1:
            siblings[0].search = search = BeamSearch(siblings)
            if not highest:
                search.finish_empty()
    return requests


def _masks_of(
    model: LanguageModel, options: GenerationOptions, tokenizer: Tokenizer | None, ends: frozenset[int]
) -> Masks | None:
    """Return what creates the masks of the requests; None if their texts may be any. Raises ConfigError, InputError."""
    if options.constraint is None:
        return None
    decoder = need_tokenizer(model, options.constraint) if tokenizer is None else tokenizer
    return Masks(model.engine.grammars, options, decoder, vocab_size(model), ends)


def _too_long(name: str, index: int, sizes: tuple[int, int, int], what_to_do: str) -> ContextLengthError:
    """Return the error about a prompt. sizes: of the prompt, its new tokens and the context."""
    length, n_new, context = sizes
    if n_new >= context > length:
        what_to_do = f"; pass max_new_tokens of at most {context - length}"
    return ContextLengthError(
        f"{name}: expected prompt and max_new_tokens to fit the context of {context} positions, "
        f"got {length} + {n_new}{what_to_do}",
        index=index,
        n_tokens=length,
        context=context,
    )


def seeds_of(options: GenerationOptions, n_prompts: int) -> list[int]:
    """Return the seeds of all requests for this many prompts. Raises InputError if there are too many."""
    if n_prompts * options.n_requests > MAX_SEQUENCES:
        raise InputError(_TOO_MANY)
    return options.seeds(n_prompts * options.n_requests)
