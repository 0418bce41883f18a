"""`fastattn bench` announces its work and time, and ends in time; tested with a fake clock."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import tqdm.auto

from fastattn.bench import machine, process, run
from fastattn.bench.budget import Budget, OutOfTime
from fastattn.bench.run import Options, bench_model, plan
from fastattn.bench.works import choose, works_of
from fastattn.cli import bench as command
from fastattn.cli import main, progress
from tests.reference.checkpoints import write_bert

QUICK = ("--rounds", "1", "--seconds", "0.001", "--threads", "1")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(autouse=True)
def _small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "DRAM_BYTES", 1 << 20)


class Steps:
    """A clock that advances by one with each command to a worker."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    clock = Steps()
    ask = process.Process.ask

    def counted(self: process.Process, timeout: float = 900, **asked: Any) -> dict[str, Any]:
        clock.now += 1
        return ask(self, 600, **asked)

    monkeypatch.setattr(process.Process, "ask", counted)
    return clock


def options(**more: Any) -> Options:
    return Options(**{"threads": 1, "rounds": 1, "seconds": 0.001, **more})


def test_a_budget() -> None:
    clock = Steps()
    budget = Budget(3.0, clock)
    assert budget.left() == 3.0
    clock.now = 2.5
    budget.check()
    assert budget.left() == 0.5
    clock.now = 3.0
    assert budget.left() == 0.0
    with pytest.raises(OutOfTime, match=r"^stopped after 3 s$"):
        budget.check()
    assert Budget().left() == math.inf


def test_the_rows_measured_before_the_time_is_up(bert: Path, steps: Steps) -> None:
    """A workload asks for limit, run, limit, profile if the machine is steady at once; else for more turns."""
    whole = bench_model(bert, options(), budget=Budget(10_000, steps))
    names = [row.name for row in whole.rows]
    assert len(names) > 2
    assert whole.left_out == []
    asked, steps.now = steps.now, 0.0
    bench = bench_model(bert, options(), budget=Budget(4, steps))
    assert steps.now <= 4 < asked
    assert [row.name for row in bench.rows] == names[:1]
    assert bench.left_out == [f"{name}: stopped after 4 s" for name in names[1:]]
    assert bench.rows[0].turns["fastattn"]


def test_nothing_is_asked_after_the_end(bert: Path, steps: Steps) -> None:
    bench = bench_model(bert, options(), budget=Budget(0, steps))
    assert steps.now == 0
    assert bench.rows == []
    assert len(bench.left_out) == len(choose(works_of("encoder", 16), None))


def test_turns_of_a_row_that_was_cut(bert: Path, steps: Steps) -> None:
    bench = bench_model(bert, options(rounds=100, works=("1x16",)), budget=Budget(21, steps))
    (row,) = bench.rows
    turns = len(row.turns["fastattn"])
    assert turns == 10  # a limit, and then a run and a limit for each turn
    assert row.profile is None
    assert bench.left_out == [f"1x16: stopped after 21 s, with {turns} of 100 turns"]


def test_an_answer_may_take_what_is_left(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that hangs is therefore killed at the end of the run."""
    clock, given = Steps(), []

    def hanging(self: process.Process, timeout: float = 900, **asked: Any) -> dict[str, Any]:
        given.append(timeout)
        clock.now += timeout
        return {"error": f"no answer within {timeout:g} s"}

    monkeypatch.setattr(process.Process, "ask", hanging)
    bench = bench_model(bert, options(works=("1x16",)), budget=Budget(30, clock))
    assert given == [30]
    assert bench.left_out == ["1x16: stopped after 30 s"]


def test_a_conversion_may_take_what_is_left(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, given = Steps(), []

    def slow(library: str, job: object, timeout: float) -> str:
        given.append(timeout)
        clock.now += timeout
        return "no answer"

    monkeypatch.setattr(process, "convert_apart", slow)
    monkeypatch.setattr(run, "missing", lambda name: [])
    bench = bench_model(bert, options(against=("torch", "openvino"), works=("1x16",)), budget=Budget(30, clock))
    assert given == [30]
    assert bench.left_out == ["1x16: stopped after 30 s"]


def test_the_plan() -> None:
    works = works_of("causal-lm", 1024)
    text = plan(works, options(rounds=5, seconds=0.3), Budget(600, Steps()))
    assert text == f"{len(works)} workloads, about 15 s after loading the model, at most 600 s"
    text = plan(works[:1], options(rounds=10, seconds=0.85, against=("torch",)), Budget())
    assert text == "1 workload by 2 libraries, about 23 s after loading and converting the model"


def test_plain_lines_where_there_is_no_terminal(bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "-m", str(bert), "--max-seconds", "3000", *QUICK]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("bert: 3 workloads, about ")
    assert lines[0].endswith(" s after loading the model, at most 3000 s")
    assert lines[1:] == ["bert: 1x16 (1 of 3)", "bert: 8x16 (2 of 3)", "bert: ragged-32 (3 of 3)"]


def test_a_bar_on_a_terminal(bert: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[object] = []

    class Bar:
        n = 0

        def __init__(self, total: int, **options: object) -> None:
            said.append(total)

        def set_description_str(self, line: str) -> None:
            said.append(line)

        def update(self, count: int) -> None:
            self.n += count
            said.append(self.n)

        def close(self) -> None:
            said.append("closed")

    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)
    monkeypatch.setattr(progress, "on_terminal", lambda: True)
    assert main(["bench", "-m", str(bert), "--works", "1x16,8x16", *QUICK]) == 0
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert said == [2, 0, "bert: 1x16 (1 of 2)", 1, "bert: 8x16 (2 of 2)", 2, "closed"]


def test_too_short_a_time(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "Budget", lambda seconds: Budget(0, Steps()))
    assert main(["bench", "-m", str(bert), "--max-seconds", "1", "--works", "1x16", *QUICK]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "fastattn: --max-seconds 1: too short to measure anything; allow more"


def test_files_of_a_run_that_was_cut(
    bert: Path, tmp_path: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The picture and the results measured so far, also without a profile."""
    monkeypatch.setattr(command, "Budget", lambda seconds: Budget(3, steps))
    files = ("--json", str(tmp_path / "out.json"), "--picture", str(tmp_path / "out.svg"))
    assert main(["bench", "-m", str(bert), *files, *QUICK]) == 0
    (model,) = json.loads((tmp_path / "out.json").read_text())["models"]
    assert [row["work"] for row in model["rows"]] == ["1x16"]
    assert model["rows"][0]["profile"] is None
    assert (tmp_path / "out.svg").read_text().startswith("<svg")
    assert "left out: 8x16: stopped after 3 s" in capsys.readouterr().err
