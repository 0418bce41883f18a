"""The measured work fits the model, and a decode costs the mean of its steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastattn.bench.run import open_model
from fastattn.bench.works import MOST_NEW_TOKENS, Work, choose, works_of
from fastattn.errors import ConfigError, InputError
from fastattn.graph.cost import Cost, StepShape
from fastattn.graph.step_cost import step_cost
from fastattn.models.tasks import Task
from tests.reference.checkpoints import write_bert, write_gpt2


def test_a_language_model() -> None:
    works = {work.name: work for work in works_of("causal-lm", 1024)}
    assert list(works) == ["prefill-512", "decode-1", "decode-8", "decode-32", "decode-after-900"]
    assert works["decode-8"].lengths == (32,) * 8
    assert works["decode-after-900"].n_new == MOST_NEW_TOKENS
    assert works["prefill-512"].count == 512
    assert works["decode-32"].count == 32


def test_an_encoder() -> None:
    works = {work.name: work for work in works_of("sequence-classification", 512)}
    assert list(works) == ["1x16", "1x128", "8x128", "ragged-32", "1x512", "rerank-100"]
    assert [work.name for work in works.values() if work.optional] == ["1x512", "rerank-100"]
    lengths = works["ragged-32"].lengths
    assert len(lengths) == 32
    assert len(set(lengths)) > 10
    assert 5 <= min(lengths) < max(lengths) <= 128
    assert works["8x128"].count == 8
    assert works == {work.name: work for work in works_of("encoder", 512)}


@pytest.mark.parametrize("context", [1, 2, 3, 4, 16, 17, 64, 100, 512, 933, 1024, 8192])
@pytest.mark.parametrize("task", ["causal-lm", "encoder"])
def test_every_workload_fits_its_context(task: Task, context: int) -> None:
    works = works_of(task, context)
    assert works
    assert len({work.name for work in works}) == len(works)
    for work in works:
        assert min(work.lengths) >= 1
        assert max(work.lengths) + work.n_new <= context
        assert work.kind == "forward" or work.n_new >= 2
        for vocab_size in (2, 31, 50257):
            ids = work.ids(vocab_size)
            assert tuple(map(len, ids)) == work.lengths
            assert all(0 <= i < vocab_size for row in ids for i in row)
            assert ids == work.ids(vocab_size)


def test_a_decode_costs_the_mean_of_its_steps(tmp_path: Path) -> None:
    built = open_model(write_gpt2(tmp_path / "m")).built
    work = Work("decode", "decode", (3, 5), n_new=9)
    steps = [StepShape((1, 1), (3 + t, 5 + t), wanted=1) for t in range(work.n_new - 1)]
    total = sum((step_cost(built.program, step) for step in steps), Cost())
    mean = step_cost(built.program, work.shape())
    assert (mean.multiply_adds * len(steps), mean.bytes * len(steps)) == (total.multiply_adds, total.bytes)


def test_choosing() -> None:
    works = works_of("encoder", 512)
    assert choose(works, None) == works[:4]
    assert [work.name for work in choose(works, ["1x512", "1x16"])] == ["1x16", "1x512"]
    assert [work.name for work in choose(works, ["8x128", "1x16"])] == ["1x16", "8x128"]
    with pytest.raises(InputError, match=r"works: expected some of 1x16, .*, got '2x16'"):
        choose(works, ["2x16"])


def test_the_head_that_a_checkpoint_has(tmp_path: Path) -> None:
    assert open_model(write_gpt2(tmp_path / "gpt2")).built.task == "causal-lm"
    assert open_model(write_bert(tmp_path / "bert")).built.task == "sequence-classification"
    with pytest.raises(ConfigError, match="hidden_size"):
        open_model(_broken(tmp_path / "bad"))


def _broken(folder: Path) -> Path:
    write_bert(folder)
    config = (folder / "config.json").read_text().replace('"hidden_size": 12', '"hidden_size": -1')
    (folder / "config.json").write_text(config)
    return folder
