"""Measures speculation: the time of the same texts with and without proposed tokens.

    python benchmarks/speculation.py MODEL PART... [--dtype int4] [--batch 1 4 8] [--rounds 7] [--new-tokens 128]

MODEL is a folder with a causal model; "demo" is the demo model. The parts are

    lookup    prompt lookup of up to 8 tokens, greedy
    copy      a copy of the model in int4 proposes tokens, greedy
    itself    the model is its own draft model: all proposals are right, and none is cheaper than a step
    wrong     prompt lookup whose proposals are all wrong: the worst case
    nothing   prompt lookup that never finds anything

The two candidates take turns; a ratio is the median over the rounds, of pairs that ran one after the other. Every pair
must have the same tokens. Prompts: for "demo", a passage of its training text followed by its beginning, so that the
model can copy; for other models, random tokens.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import fastattn
from fastattn.generation.proposals import PromptLookup

DEMO = Path(fastattn.__file__).parent / "demo"
NUMBERS = random.Random(1)


def prompts_of(lm: Any, n: int, *, demo: bool) -> list[list[int]]:
    if not demo:
        return [[NUMBERS.randrange(lm.config.vocab_size) for _ in range(64)] for _ in range(n)]
    text = (DEMO / "silas_marner.txt").read_text(encoding="utf-8")
    found = []
    for _ in range(n):
        at = NUMBERS.randrange(len(text) - 1000)
        passage = lm.tokenizer.encode(text[at : at + 400])[:90]
        found.append([*passage, *passage[:30]])
    return found


def wrong(known: list[list[int]], vocab: int) -> Any:
    """Return a look-up that proposes tokens of which the first is wrong, in every step."""

    def look_up(lookup: PromptLookup, ids: list[int], most: int) -> tuple[list[int], int]:
        text = next(text for text in known if text[: len(ids)] == ids)
        return [(token + 1) % vocab for token in text[len(ids) : len(ids) + most]], 2

    return look_up


def timed(lm: Any, prompts: list[list[int]], *, clock: Callable[[], float], **options: Any) -> tuple[float, Any]:
    """Generate without keys and values of earlier calls; return the seconds and the output."""
    lm.engine.run(lambda pages: pages.tree.clear())
    begin = clock()
    output = lm.generate(prompts, **options)
    return clock() - begin, output


def measure(lm: Any, part: str, batch: int, args: argparse.Namespace) -> str:
    clock = time.process_time if args.cpu_time else time.perf_counter
    options: dict[str, Any] = {
        "clock": clock,
        "max_new_tokens": args.new_tokens,
        "eos_token_id": -1,
        "return_dict_in_generate": True,
    }
    draft = {"copy": {"assistant_model": "int4"}, "itself": {"assistant_model": lm}}
    given = draft.get(part, {"prompt_lookup_num_tokens": 8})
    ratios, stats, plain_seconds = [], [], []
    for i in range(args.rounds + 1):
        prompts = prompts_of(lm, batch, demo=args.model == "demo")
        known = [ids.tolist() for ids in timed(lm, prompts, **options)[1].sequences]
        patch = {"wrong": wrong(known, lm.config.vocab_size), "nothing": lambda *_: ([], 0)}.get(part)
        with mock.patch.object(PromptLookup, "_look_up", patch or PromptLookup._look_up):
            runs = [timed(lm, prompts, **options, **more) for more in ({}, given)[:: 1 if i % 2 else -1]]
        (plain, _), (seconds, found) = runs if i % 2 else runs[::-1]
        if [ids.tolist() for ids in found.sequences] != known:
            raise SystemExit(f"{part}: expected the same tokens, got others")
        if i > 0:  # the first pair loads the copy and touches all memory
            ratios.append(plain / seconds)
            plain_seconds.append(plain / args.new_tokens)
            stats.append(found.stats)
    n_proposed, n_accepted, n_steps, n_new = (
        sum(one[name] for one in stats)
        for name in ("n_proposed_tokens", "n_accepted_tokens", "n_steps", "n_new_tokens")
    )
    share = f"{n_accepted / n_proposed:.0%}" if n_proposed else "-"
    return (
        f"| {part} | {batch} | {statistics.median(plain_seconds) * 1e3:.2f} | {n_proposed / n_new:.2f} | {share} | "
        f"{n_new / n_steps:.2f} | {statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("parts", nargs="+", choices=("lookup", "copy", "itself", "wrong", "nothing"))
    parser.add_argument("--dtype")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--cpu-time", action="store_true", help="measure CPU seconds, for a busy machine; needs --threads 1"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--new-tokens", type=int, default=128)
    args = parser.parse_args()
    folder = DEMO / "gpt2-litbank" if args.model == "demo" else Path(args.model)
    print("| part | sequences | ms per step | proposed per token | accepted | tokens per step | speed | from, to |")
    print("|---|---|---|---|---|---|---|---|")
    with fastattn.AutoModelForCausalLM.from_pretrained(folder, dtype=args.dtype, threads=args.threads) as lm:
        for part in args.parts:
            for batch in args.batch:
                print(measure(lm, part, batch, args), flush=True)


if __name__ == "__main__":
    main()
