"""Drawing tokens inside the step equals drawing from its logits, for any batch and number of threads."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastattn.api.auto import AutoModelForCausalLM
from fastattn.api.causal_lm import CausalLM
from fastattn.errors import InputError, NonFiniteError
from fastattn.executors.cpu import CpuExecutor
from fastattn.generation.engine import Engine
from fastattn.generation.feed import draw_from_logits
from fastattn.generation.generate import GenerateOutput, generate
from fastattn.graph.executor import Drawn
from fastattn.graph.ir import Step
from fastattn.graph.sampling import SAMPLE_PARAMS, Sampling
from tests.reference.checkpoints import GPT2, gpt2_tensors, write

SMALL = {"vocab_size": 1003, "n_positions": 160, "n_embd": 96, "n_layer": 2, "n_head": 3}
THREADS = (1, 2, 3)
ROWS = 33
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": 0},
    "greedy by temperature": {"temperature": 0},
    "greedy, penalty": {"do_sample": 0, "repetition_penalty": 1.4},
    "top-k": {"top_k": 50, "temperature": 4},
    "top-1": {"top_k": 1},
    "top-k, every id": {"top_k": 1003, "temperature": 9},
    "top-k, nearly every id": {"top_k": 1000, "temperature": 9},
    "top-k, penalty": {"top_k": 20, "temperature": 3, "repetition_penalty": 0.7},
    "top-k, top-p, min-p": {"top_k": 200, "top_p": 0.8, "min_p": 0.02, "temperature": 5},
    "top-k, levels": {"top_k": 5, "temperature": 1e38},
    "plain": {"temperature": 6},
    "top-p": {"top_p": 0.9, "temperature": 7},
    "top-p 0": {"top_p": 0, "temperature": 7},
    "min-p, penalty": {"min_p": 0.1, "temperature": 5, "repetition_penalty": 1.2},
}


def gpt2(folder: Path, threads: int = 2, *, like: Sequence[tuple[int, int]] = (), **options: Any) -> CausalLM:
    """Return a small GPT-2; like: pairs of ids with the same embedding, and so the same logits."""
    config = {**GPT2, **SMALL, **options}
    tensors = gpt2_tensors(config)
    for first, second in like:
        tensors["wte.weight"][second] = tensors["wte.weight"][first]
    return AutoModelForCausalLM.from_pretrained(write(folder, config, tensors), threads=threads)


def sampling(n: int, logprobs: bool = False, **options: Any) -> Sampling:
    """Return the same options for all rows, with a different seed and history for each."""
    params = np.zeros(n, SAMPLE_PARAMS)
    defaults = {"temperature": 1, "top_p": 1, "repetition_penalty": 1, "do_sample": 1}
    for name, value in {**defaults, **options}.items():
        params[name] = value
    params["seed"], params["counter"] = np.arange(n) * 7919, np.arange(n)
    rng = np.random.default_rng(3)
    offsets = np.cumsum([0, *rng.integers(0, 30, n)], dtype=np.int64)
    return Sampling(params, rng.integers(0, 1003, offsets[-1]).astype(np.int32), offsets, logprobs=logprobs)


def mixed(n: int, logprobs: bool) -> Sampling:
    """Return rows that all draw in different ways."""
    found = sampling(n, logprobs)
    for i, options in enumerate(list(OPTIONS.values()) * n):
        if i < n:
            for name, value in {"temperature": 1, "top_p": 1, "repetition_penalty": 1, **options}.items():
                found.params[name][i] = value
    return found


def a_batch(rows: int) -> NDArray[np.int64]:
    """Return lengths of sequences."""
    return np.random.default_rng(0).integers(1, 41, rows)


def a_step(model: CausalLM, seed: int = 0, rows: int = ROWS) -> Step:
    """Return a step with sequences of 1 to 40 tokens in new caches; the last row of each is wanted."""
    rng = np.random.default_rng(seed)
    lengths = a_batch(rows)
    ends = np.cumsum([0, *lengths]).astype(np.int32)
    return Step(
        token_ids=rng.integers(0, 1003, ends[-1]).astype(np.int32),
        cu_seqlens=ends,
        positions=np.concatenate([np.arange(n) for n in lengths]).astype(np.int32),
        wanted=(ends[1:] - 1).astype(np.int32),
        caches=tuple(model.new_cache() for _ in range(rows)),
    )


def again(model: CausalLM, step: Step) -> Step:
    """Return the same step with other new caches."""
    return dataclasses.replace(step, caches=tuple(model.new_cache() for _ in step.caches or ()))


def cpu(model: CausalLM) -> CpuExecutor:
    executor = model.executor
    assert isinstance(executor, CpuExecutor)
    return executor


def assert_drawn(found: Drawn, expected: Drawn) -> None:
    assert found[0] == expected[0]
    assert (found[1] is None) == (expected[1] is None)
    if found[1] is not None:
        assert found[1] == expected[1]  # float32 values, none of them NaN


@pytest.mark.parametrize("logprobs", [False, True])
@pytest.mark.parametrize("options", [*OPTIONS, "mixed"])
def test_draw_is_run_and_sample(tmp_path: Path, options: str, logprobs: bool) -> None:
    """With one, two and three threads, for a batch of 33 and for each row alone."""
    how = mixed(ROWS, logprobs) if options == "mixed" else sampling(ROWS, logprobs, **OPTIONS[options])
    with gpt2(tmp_path, 1) as model:
        expected = draw_from_logits(model.executor, a_step(model), how)
    for threads in THREADS:
        with gpt2(tmp_path, threads) as model:
            step = a_step(model)
            assert_drawn(cpu(model).draw(step, how), expected)
            assert all(c.length == n for c, n in zip(step.caches or (), np.diff(step.cu_seqlens), strict=True))  # type: ignore[attr-defined]
    assert len(set(expected[0])) > 1
    with gpt2(tmp_path) as model:
        step = a_step(model)
        alone = [row_alone(cpu(model), step, how, i) for i in range(ROWS)]
    assert_drawn(joined(alone), expected)


def row_alone(executor: CpuExecutor, step: Step, how: Sampling, i: int) -> Drawn:
    begin, end = step.cu_seqlens[i : i + 2]
    assert step.caches is not None
    alone = Step(
        token_ids=step.token_ids[begin:end],
        cu_seqlens=np.array([0, end - begin], np.int32),
        positions=step.positions[begin:end],
        wanted=np.array([end - begin - 1], np.int32),
        caches=(step.caches[i],),
    )
    first, last = how.history_offsets[i : i + 2]
    mine = dataclasses.replace(
        how,
        params=how.params[i : i + 1],
        history=how.history[first:last],
        history_offsets=np.array([0, last - first], np.int64),
    )
    return executor.draw(alone, mine)


def joined(draws: Sequence[Drawn]) -> Drawn:
    with_logprobs = draws[0][1] is not None
    return [i for ids, _ in draws for i in ids], [p for _, ps in draws for p in ps or ()] if with_logprobs else None


@pytest.mark.parametrize("options", ["greedy", "greedy, penalty", "top-k", "top-p"])
@pytest.mark.parametrize("logprobs", [False, True])
def test_suppressed_ids(tmp_path: Path, options: str, logprobs: bool) -> None:
    """They count as -inf in rows that say so: the id that would be drawn is suppressed."""
    with gpt2(tmp_path) as model:
        step = a_step(model)
        how = sampling(ROWS, logprobs, **OPTIONS[options])
        free = draw_from_logits(model.executor, step, how)
        ids = np.unique(np.array([*free[0], 0, 1002], np.int32))
        how = dataclasses.replace(how, suppressed=ids, suppress=np.arange(ROWS, dtype=np.int64) % 3)
        expected = draw_from_logits(model.executor, again(model, step), how)
        found = cpu(model).draw(again(model, step), how)
    assert_drawn(found, expected)
    for i, (id_, free_id) in enumerate(zip(found[0], free[0], strict=True)):
        assert id_ == free_id if i % 3 == 0 else id_ not in ids


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("top_k", [0, 1, 2, 7])
def test_equal_logits(tmp_path: Path, threads: int, top_k: int) -> None:
    """The lowest of ids with equal logits is drawn, across panels of several threads; top-k includes all equal ones."""
    like = [(i, j) for i in range(300) for j in (i + 300, i + 600)]
    with gpt2(tmp_path, threads, like=like) as model:
        step = a_step(model)
        greedy = cpu(model).draw(step, sampling(ROWS, do_sample=0))[0]
        assert max(i for i in greedy if i < 900) < 300
        how = sampling(ROWS, True, top_k=top_k, temperature=3)
        assert_drawn(
            cpu(model).draw(again(model, step), how), draw_from_logits(model.executor, again(model, step), how)
        )
    zeros = dict.fromkeys(["wte.weight"], np.zeros((1003, 96), np.float32))
    config = {**GPT2, **SMALL}
    with AutoModelForCausalLM.from_pretrained(
        write(tmp_path, config, gpt2_tensors(config) | zeros), threads=threads
    ) as model:
        assert cpu(model).draw(a_step(model), sampling(ROWS, do_sample=0))[0] == [0] * ROWS
        how = sampling(ROWS, True, top_k=top_k)
        step = a_step(model)
        expected = draw_from_logits(model.executor, again(model, step), how)
        assert len(set(expected[0])) > ROWS // 2
        assert_drawn(cpu(model).draw(step, how), expected)


def test_logits_that_are_asked_for_twice(tmp_path: Path) -> None:
    """If the sampler is not the only user of the linear's output, drawing happens afterward."""
    with gpt2(tmp_path) as model:
        program = model.executor.program
        twice = dataclasses.replace(program, outputs={**program.outputs, "again": program.outputs["logits"]})
        other = cpu(model).with_program(twice)
        step = a_step(model)
        for name in ("greedy", "top-k, penalty", "top-p"):
            how = sampling(ROWS, True, **OPTIONS[name])
            expected = cpu(model).draw(again(model, step), how)
            assert_drawn(other.draw(again(model, step), how), expected)
        other.close()


@pytest.mark.parametrize("options", ["greedy", "greedy, penalty", "top-k", "top-p"])
def test_decoding_is_step_after_step(tmp_path: Path, options: str) -> None:
    """Each step feeds the last drawn token, advances the counter, extends the history and suppresses the given ids."""
    n_steps = 70  # crosses the border of a KV block
    with gpt2(tmp_path) as model:
        begin = a_step(model, rows=9)
        draw = cpu(model).draw(begin, sampling(9, do_sample=0))[0]
        copies = tuple(cache.fork() for cache in begin.caches or ())  # type: ignore[attr-defined]
        base = sampling(9, True, **OPTIONS[options])
        how = dataclasses.replace(
            base, suppressed=np.arange(500, dtype=np.int32), suppress=np.arange(9, dtype=np.int64) - 2
        )
        step = decode_step(draw, begin.caches or ())
        decoding = cpu(model).decoding(step, how)
        histories = np.split(base.history, base.history_offsets[1:-1])
        for i in range(n_steps):
            one = decode_step(draw, copies)
            params = base.params.copy()
            params["counter"] += np.uint64(i)
            assert how.suppress is not None
            now = dataclasses.replace(
                how,
                params=params,
                history=np.concatenate(histories),
                history_offsets=np.cumsum([0, *map(len, histories)], dtype=np.int64),
                suppress=how.suppress - i,
            )
            expected = draw_from_logits(model.executor, one, now)
            assert_drawn(decoding.draw(), expected)
            draw = expected[0]
            histories = [np.append(h, np.int32(d)) for h, d in zip(histories, draw, strict=True)]


def decode_step(ids: Sequence[int], caches: Sequence[Any]) -> Step:
    rows = np.arange(len(ids) + 1, dtype=np.int32)
    return Step(
        token_ids=np.array(ids, np.int32),
        cu_seqlens=rows,
        positions=np.array([cache.length for cache in caches], np.int32),
        wanted=rows[:-1],
        caches=tuple(caches),
    )


def test_steps_that_draw_nothing_or_a_part(tmp_path: Path) -> None:
    with gpt2(tmp_path) as model:
        step = a_step(model, rows=4)
        nothing = dataclasses.replace(step, wanted=step.wanted[:0])
        assert cpu(model).draw(nothing, sampling(0)) == ([], None)
        part = dataclasses.replace(again(model, step), wanted=step.wanted[[1, 3]])
        found = cpu(model).draw(part, sampling(2, top_k=9))
        assert found == draw_from_logits(model.executor, again(model, part), sampling(2, top_k=9))


def test_fault_56_non_finite(tmp_path: Path) -> None:
    """The error names a row with NaN, or with nothing to draw; the caches are unchanged, and the model still works."""
    config = {**GPT2, **SMALL}
    tensors = gpt2_tensors(config)
    lengths = a_batch(ROWS)
    limit = int(lengths[:3].max())
    tensors["wpe.weight"][limit] = np.nan  # so longer sequences have NaN
    with AutoModelForCausalLM.from_pretrained(write(tmp_path, config, tensors), threads=2) as model:
        step = a_step(model)
        first = int(np.flatnonzero(lengths > limit)[0])
        for options in OPTIONS.values():
            with pytest.raises(NonFiniteError, match=rf"NaN in row {first}$"):
                cpu(model).draw(step, sampling(ROWS, **options))
        assert all(cache.length == 0 for cache in step.caches or ())  # type: ignore[attr-defined]
        short = a_step(model, rows=first)
        everything = np.arange(1003, dtype=np.int32)
        for options in OPTIONS.values():
            how = sampling(first, **options)
            assert_drawn(
                cpu(model).draw(again(model, short), how), draw_from_logits(model.executor, again(model, short), how)
            )
            suppress = np.array([0] * (first - 1) + [1], np.int64)
            with pytest.raises(NonFiniteError, match=rf"-inf only in row {first - 1}$"):
                cpu(model).draw(again(model, short), dataclasses.replace(how, suppressed=everything, suppress=suppress))
        decoding = cpu(model).decoding(decode_step([1, 2], [model.new_cache() for _ in range(2)]), sampling(2))
        for _ in range(limit):
            decoding.draw()
        for _ in range(2):  # an error does not advance it
            with pytest.raises(NonFiniteError, match="row 0"):
                decoding.draw()


def test_refused(tmp_path: Path) -> None:
    """Wrong arrays, closed caches and closed executors raise errors that name them."""
    model = gpt2(tmp_path)
    executor = cpu(model)
    step = a_step(model, rows=2)
    how = sampling(2)
    with pytest.raises(InputError, match="params"):
        executor.draw(step, sampling(3))
    with pytest.raises(InputError, match="suppress"):
        executor.draw(step, dataclasses.replace(how, suppressed=how.history, suppress=np.ones(3, np.int64)))
    with pytest.raises(InputError, match="history"):
        executor.draw(step, dataclasses.replace(how, history=how.history + np.int32(1003)))
    caches = [model.new_cache(), model.new_cache()]
    with pytest.raises(InputError, match="caches"):
        executor.decoding(decode_step([1, 2], caches[:1]), how)
    decoding = executor.decoding(decode_step([1, 2], caches), how)
    caches[1].close()
    with pytest.raises(InputError, match="closed"):
        decoding.draw()
    twice = executor.decoding(decode_step([1, 2], [caches[0]] * 2), how)
    with pytest.raises(InputError, match="caches: expected each cache once"):
        twice.draw()
    decoding = executor.decoding(decode_step([1, 2], [model.new_cache(), model.new_cache()]), how)
    decoding.draw()
    model.close()
    with pytest.raises(InputError, match="closed"):
        decoding.draw()


class LogitsOnly:
    """A model whose executor does not draw: generation then uses its logits."""

    def __init__(self, model: CausalLM) -> None:
        self.executor: Any = self
        self.program, self.run, self.new_cache = model.executor.program, model.executor.run, model.new_cache
        self.engine = Engine(self.executor)
        self.tokenizer, self.bos_token_id, self.eos_token_ids, self.pad_token_id = None, None, (5,), None
        self.generation_config: dict[str, Any] = {}

    def explain_id(self, token_id: int) -> str:
        return ""


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.3},
        {"do_sample": True, "temperature": 3.0},
        {"do_sample": True, "temperature": 4.0, "top_k": 0, "top_p": 0.9},
        {"do_sample": True, "temperature": 4.0, "top_k": 30, "min_p": 0.01, "repetition_penalty": 1.1},
        {"min_new_tokens": 9, "eos_token_id": list(range(0, 1003, 2)), "do_sample": True, "temperature": 5.0},
    ],
)
def test_generate_33_texts(tmp_path: Path, options: dict[str, Any]) -> None:
    """Ids and log-probabilities equal those of the plain path, for any number of threads and any batch.

    Also without log-probabilities, which changes what is computed.
    """
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, 1003, n).tolist() for n in rng.integers(1, 40, ROWS)]
    lengths = {"max_new_tokens": 14, "seed": 8, **options}
    with gpt2(tmp_path, 1) as model:
        expected = generate(LogitsOnly(model), prompts, return_dict_in_generate=True, **lengths)
        assert isinstance(expected, GenerateOutput)
    for threads in THREADS:
        with gpt2(tmp_path, threads) as model:
            for batch in (33, 4):
                found = generate(model, prompts, return_dict_in_generate=True, max_batch_size=batch, **lengths)
                assert isinstance(found, GenerateOutput)
                for ours, theirs in zip(found.logprobs, expected.logprobs, strict=True):
                    assert ours.tobytes() == theirs.tobytes()
                plain: Any = generate(model, prompts, max_batch_size=batch, **lengths)
                for sequences in (found.sequences, plain):
                    assert [s.tolist() for s in sequences] == [s.tolist() for s in expected.sequences]


def test_nothing_of_vocabulary_size_is_made(tmp_path: Path) -> None:
    """Greedy and top-k need no row of logits: the workspace does not contain one."""
    with gpt2(tmp_path, vocab_size=100_003) as model:
        executor: Any = cpu(model)._executor
        step = a_step(model)

        def grows(how: Sampling) -> int:
            before = executor.workspace_bytes
            cpu(model).draw(again(model, step), how)
            return int(executor.workspace_bytes - before)

        row = 4 * 100_003
        cpu(model).draw(again(model, step), sampling(ROWS, do_sample=0))
        assert executor.workspace_bytes < ROWS * row
        assert grows(sampling(ROWS, top_k=50)) == 0
        assert grows(sampling(ROWS, top_p=0.9)) >= ROWS * row
