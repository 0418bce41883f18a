"""From finished requests to the results of `generate`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastattn.generation.request import Request
from fastattn.models.outputs import GenerateOutput


def groups_of(requests: Sequence[Request]) -> list[list[Request]]:
    """Return the requests of each prompt."""
    groups: dict[int, list[Request]] = {}
    for request in requests:
        groups.setdefault(id(request.siblings), []).append(request)
    return list(groups.values())


def best_requests(requests: Sequence[Request]) -> list[Request]:
    """Return the requests whose texts are returned: with best_of those of the highest mean log-probability."""
    best: list[Request] = []
    for group in groups_of(requests):
        options = group[0].options
        if options.best_of is not None:  # sorting is stable, so ties go to the first
            group = sorted(group, key=mean_logprob, reverse=True)
        best += group[: options.num_return_sequences]
    return best


def mean_logprob(request: Request) -> float:
    """Return the mean log-probability of the new tokens; 0 without any."""
    return sum(request.logprobs) / len(request.logprobs) if request.logprobs else 0.0


def output_of(results: Sequence[Request], requests: Sequence[Request], seconds: float) -> GenerateOutput:
    """Return the output of `generate`. requests: all that were drawn; results: those that are returned."""

    def recorded(name: str, wanted: bool) -> list[list[np.ndarray]] | None:
        return [[getattr(record, name) for record in r.records] for r in results] if wanted else None

    asked = [request.options for request in requests]
    n_top = any(one.top_logprobs for one in asked)
    beams = any(one.num_beams > 1 for one in asked)
    n_new = sum(request.new_len for request in requests)
    scores = recorded("scores", any(one.output_scores for one in asked))
    logits = recorded("logits", any(one.output_logits for one in asked))
    return GenerateOutput(
        sequences=[np.array(request.ids, np.int32) for request in results],
        finish_reasons=[request.finish_reason or "length" for request in results],
        logprobs=[np.array(request.logprobs, np.float32) for request in results],
        seeds=[request.seed for request in results],
        texts=[r.text.text for r in results if r.text is not None] if any(one.stops() for one in asked) else None,
        scores=scores,
        logits=logits,
        top_logprobs=None
        if not n_top
        else [[(record.top_ids, record.top_logprobs) for record in request.records] for request in results],
        sequences_scores=None if not beams else [request.score for request in results],
        beam_indices=None if not beams else [np.array(r.beam_indices or [], np.int32) for r in results],
        stats={
            "n_prompt_tokens": sum(group[0].prompt_len for group in groups_of(requests)),
            "n_new_tokens": n_new,
            "seconds": seconds,
            "tokens_per_second": n_new / seconds if seconds > 0 else 0.0,
            **speculation_stats(requests),
        },
    )


def speculation_stats(requests: Sequence[Request]) -> dict[str, int]:
    """Return the numbers of proposed tokens, of those that were drawn, and of steps; none without speculation."""
    found = [request.speculation for request in requests if request.speculation is not None]
    if not found:
        return {}
    return {
        "n_proposed_tokens": sum(one.n_proposed for one in found),
        "n_accepted_tokens": sum(one.n_accepted for one in found),
        "n_steps": sum(one.n_steps for one in found),
    }
