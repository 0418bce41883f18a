"""Log-probabilities of given tokens: of continuations that share a prefix, and of long texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fastattn.checks import check_count
from fastattn.errors import ContextLengthError, DTypeError, InputError, NonFiniteError
from fastattn.generation.feed import highest_ids, log_softmax
from fastattn.generation.options import GenerationOptions
from fastattn.generation.prompts import LanguageModel, encode_prompt, need_tokenizer, read_prompts, start_id, vocab_size
from fastattn.generation.scheduler import STEP_TOKENS
from fastattn.graph.executor import Cache, Executor, PagedCache, PagedExecutor
from fastattn.graph.ir import Step
from fastattn.graph.kinds import LoraAdapter
from fastattn.models.outputs import ScoreOutput, SurprisalOutput
from fastattn.models.sequences import MAX_SEQUENCES

_ROW_BYTES = 64 * 2**20  # of the logits of a step
Ids = NDArray[np.int32]


def score(
    model: LanguageModel, prefix: object, continuations: Iterable[object], adapter_name: str | None = None
) -> ScoreOutput:
    """Return the log-probabilities of continuations; see `CausalLM.score`."""
    start, wholes = _read(model, prefix, continuations)
    chosen = _executor(model, adapter_name)
    context = model.executor.program.max_positions
    begins = [_shared([start, whole]) for whole in wholes]  # a token may span the end of the prefix
    for i, begin in enumerate(begins):
        if begin == 0:  # it spans the whole prefix, so no token is before it, as with an empty prefix
            wholes[i], begins[i] = np.array([start_id(model, GenerationOptions(), "prefix"), *wholes[i]], np.int32), 1
    for i, whole in enumerate(wholes):
        if len(whole) - 1 > context:
            raise ContextLengthError(
                f"continuations[{i}]: expected at most {context + 1} tokens with the prefix, got {len(whole)}; "
                "shorten the prefix, or use surprisal, which reads long texts",
                index=i,
                n_tokens=len(whole),
                context=context,
            )
    logprobs: list[NDArray[np.float32]] = [np.zeros(0, np.float32)] * len(wholes)
    greedy = [True] * len(wholes)
    for first in dict.fromkeys(int(whole[0]) for whole in wholes):
        places = [i for i, whole in enumerate(wholes) if whole[0] == first]
        found = _score_tree(model, [wholes[i] for i in places], [begins[i] for i in places], *chosen)
        for i, values, likeliest in zip(places, *found, strict=True):
            logprobs[i], greedy[i] = values, likeliest
    tails = [whole[begin:] for whole, begin in zip(wholes, begins, strict=True)]
    return ScoreOutput(tails, logprobs, greedy)


def _executor(model: LanguageModel, adapter_name: str | None) -> tuple[Executor, LoraAdapter | None]:
    """Return the executor for an adapter, and the adapter of its caches. Raises InputError for an unknown one."""
    if adapter_name is None:
        return model.executor, None
    adapter = model.find_adapter(adapter_name)
    return model.engine.executor, adapter


def _read(model: LanguageModel, prefix: object, continuations: Iterable[object]) -> tuple[Ids, list[Ids]]:
    """Return the ids of the prefix, and of the prefix with each continuation."""
    if isinstance(continuations, (str, bytes)) or not isinstance(continuations, Iterable):
        raise DTypeError(
            f"continuations: expected a list of texts or ids, got {type(continuations).__name__}; for one "
            "continuation, pass a list of one"
        )
    items = list(continuations)
    if len(items) > MAX_SEQUENCES:
        raise InputError(
            f"continuations: expected at most {MAX_SEQUENCES}, got {len(items)}; split them into several calls"
        )
    texts = isinstance(prefix, str)
    if any(isinstance(item, str) != texts for item in items):
        raise DTypeError(
            "continuations: expected texts after a text, and ids after ids, got both kinds; encode the texts, or "
            "decode the ids"
        )
    if isinstance(prefix, str):
        tokenizer = need_tokenizer(model, "score")
        start = encode_prompt(tokenizer, prefix, "prefix")
        wholes = [encode_prompt(tokenizer, prefix + str(item), f"continuations[{i}]") for i, item in enumerate(items)]
    else:
        start = _ids(model, prefix, "prefix")
        tails = [_ids(model, item, f"continuations[{i}]") for i, item in enumerate(items)]
        wholes = [np.concatenate([start, tail]) for tail in tails]
    if not len(start):
        first = np.array([start_id(model, GenerationOptions(), "prefix")], np.int32)
        start, wholes = first, [np.concatenate([first, whole]) for whole in wholes]
    return start, wholes


def _ids(model: LanguageModel, ids: object, name: str) -> Ids:
    """Return the ids of one sequence; a padding id in it is an id like any other. Raises InputError."""
    mask = None
    if isinstance(ids, np.ndarray) or (isinstance(ids, (list, tuple)) and not any(map(np.ndim, ids))):
        if np.ndim(ids) == 1 and len(ids) == 0:
            return np.zeros(0, np.int32)
        mask = np.ones(np.shape(ids), np.int64)
    prompts = read_prompts(model, ids, mask, GenerationOptions(truncate="left"), name=name)
    if not prompts.single:
        raise InputError(f"{name}: expected one sequence [n_tokens], got several; call it once for each")
    return prompts.ids[0]


def _shared(rows: Sequence[Ids]) -> int:
    """Return the number of ids with which all rows begin."""
    width = min(map(len, rows))
    same = np.all([row[:width] == rows[0][:width] for row in rows], axis=0)
    return int(width if same.all() else same.argmin())


def _score_tree(
    model: LanguageModel, wholes: Sequence[Ids], begins: Sequence[int], executor: Executor, adapter: LoraAdapter | None
) -> tuple[list[NDArray[np.float32]], list[bool]]:
    """Return the log-probabilities of the tokens from `begins` on, and whether all of them are the likeliest.

    The sequences begin with the same id. The ids that all of them share are fed once; the rest are branches of a tree.
    """
    if not wholes:
        return [], []
    shared = max(1, min(_shared(wholes), *begins))
    run, root = _Run(executor, vocab_size(model)), executor.new_cache(adapter)
    found: list[list[tuple[float, bool]]] = [[] for _ in wholes]
    jobs: dict[int, _Job] = {}
    try:
        run.feed(root, wholes[0][:shared], 0)
        for i, whole in enumerate(wholes):
            if begins[i] == shared and len(whole) > shared:
                found[i].append(run.last(whole[shared]))
        for i, whole in enumerate(wholes):
            if len(whole) - 1 > shared:
                jobs[i] = _Job(root.fork(), whole[shared:], shared, max(0, begins[i] - shared - 1))
        run.score(list(jobs.values()))
    finally:
        root.close()
        for job in jobs.values():
            job.cache.close()
    for i, job in jobs.items():
        found[i] += job.found
    rows = [np.array([logprob for logprob, _ in pairs], np.float32) for pairs in found]
    return rows, [all(best for _, best in pairs) for pairs in found]


@dataclass(slots=True)
class _Job:
    """Ids to feed at a position, all but the last, and the scores of those after number `first`.

    n_top: number of likeliest ids that are recorded for each.
    """

    cache: Cache
    ids: Ids
    position: int
    first: int
    n_top: int = 0
    fed: int = 0
    found: list[tuple[float, bool]] = field(default_factory=list)
    tops: list[tuple[Any, Any]] = field(default_factory=list)

    @property
    def n_left(self) -> int:
        return len(self.ids) - 1 - self.fed


class _Run:
    """Feeds ids to caches and reads the log-probabilities of the ids that follow."""

    def __init__(self, executor: Executor, vocab: int) -> None:
        self._executor = executor
        self._room = max(1, min(STEP_TOKENS, _ROW_BYTES // (4 * vocab)))
        self._last: Any = None
        self._window = executor.program.kv_window if isinstance(executor, PagedExecutor) else 0

    def feed(self, cache: Cache, ids: Ids, position: int) -> None:
        """Feed ids, and remember the log-probabilities after the last of them."""
        for begin in range(0, len(ids), STEP_TOKENS):
            part = ids[begin : begin + STEP_TOKENS]
            wanted = [len(part) - 1] if begin + len(part) == len(ids) else []
            rows = self._step([(cache, part, position + begin)], wanted)
            if wanted:
                self._last = rows[0]

    def last(self, token_id: int) -> tuple[float, bool]:
        """Return the log-probability of an id after the last one that was fed, and whether it is the likeliest."""
        return float(self._last[token_id]), bool(self._last.argmax() == token_id)

    def score(self, jobs: Sequence[_Job]) -> None:
        """Feed all jobs, as many as fit in each step, and collect their scores."""
        while any(job.n_left for job in jobs):
            parts, wanted, owners, n_tokens = [], list[int](), list[tuple[_Job, int]](), 0
            for job in jobs:
                count = min(job.n_left, self._room - n_tokens)
                if count < 1:
                    continue
                parts.append((job.cache, job.ids[job.fed : job.fed + count], job.position + job.fed))
                for place in range(max(job.first, job.fed), job.fed + count):
                    wanted.append(n_tokens + place - job.fed)
                    owners.append((job, int(job.ids[place + 1])))
                n_tokens += count
                job.fed += count
            for row, (job, token_id) in zip(self._step(parts, wanted), owners, strict=True):
                job.found.append((float(row[token_id]), bool(row.argmax() == token_id)))
                if job.n_top:
                    ids = highest_ids(row, min(job.n_top, len(row)))
                    job.tops.append((ids, row[ids]))

    def _step(self, parts: Sequence[tuple[Cache, Ids, int]], wanted: Sequence[int]) -> list[Any]:
        """Feed ids at a position of each cache, and return the log-probabilities [vocab] after each wanted one."""
        step = Step(
            token_ids=np.concatenate([ids for _, ids, _ in parts]),
            cu_seqlens=np.cumsum([0, *(len(ids) for _, ids, _ in parts)]).astype(np.int32),
            positions=np.concatenate([np.arange(at, at + len(ids), dtype=np.int32) for _, ids, at in parts]),
            wanted=np.array(wanted, np.int32),
            caches=tuple(cache for cache, _, _ in parts),
        )
        logits: Any = self._executor.run(step, ["logits"])["logits"]
        if self._window:
            for cache, _, _ in parts:
                cast("PagedCache", cache).slide(self._window)
        if np.isnan(logits).any() or np.isposinf(logits).any():
            raise NonFiniteError(
                "logits: expected finite numbers or -inf, got NaN or +inf; `fastattn check` looks for such weights"
            )
        return [log_softmax(row) for row in logits]


def prompt_records(
    model: LanguageModel, ids: Ids, n_top: int, adapter_name: str | None = None
) -> list[tuple[float | None, tuple[Any, Any] | None]]:
    """Return the log-probability of each id of a prompt, and (ids, log-probabilities) of the likeliest; None first."""
    if not len(ids):
        return []
    executor, adapter = _executor(model, adapter_name)
    cache = executor.new_cache(adapter)
    try:
        job = _Job(cache, ids, 0, 0, n_top)
        _Run(executor, vocab_size(model)).score([job])
    finally:
        cache.close()
    tops = job.tops if n_top else [None] * len(job.found)
    return [(None, None), *zip([logprob for logprob, _ in job.found], tops, strict=True)]


def surprisal(model: LanguageModel, text_or_ids: object, *, stride: int | None = None) -> SurprisalOutput:
    """Return the log-probabilities of the tokens of a text; see `CausalLM.surprisal`."""
    context = model.executor.program.max_positions
    step = max(1, context // 2) if stride is None else check_count("stride", stride, low=1, high=context)
    if isinstance(text_or_ids, str):
        ids = encode_prompt(need_tokenizer(model, "surprisal"), text_or_ids, "text_or_ids")
    else:
        ids = _ids(model, text_or_ids, "text_or_ids")
    logprobs = np.full(len(ids), np.nan, np.float32)
    run, scored, begin = _Run(model.executor, vocab_size(model)), 1, 0
    while scored < len(ids):
        end = min(begin + context, len(ids) - 1)  # the ids from begin to end are fed; the last only is scored
        cache = model.executor.new_cache()
        try:
            job = _Job(cache, ids[begin : end + 1], 0, scored - begin - 1)
            run.score([job])
        finally:
            cache.close()
        logprobs[scored : end + 1] = [logprob for logprob, _ in job.found]
        scored, begin = end + 1, begin + step
    return SurprisalOutput(ids, logprobs)
