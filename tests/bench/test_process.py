"""Worker processes: answers, crashes, timeouts, and cleanup."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fastattn.bench import process
from fastattn.bench.libraries import Job
from fastattn.bench.process import Process, command_of, convert_apart, start
from tests.reference.checkpoints import write_gpt2
from tests.reference.hang import HANG_SECONDS

ECHO = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"
SOON = float(HANG_SECONDS)


@contextmanager
def python(code: str, **options: Any) -> Iterator[Process]:
    worker = Process([sys.executable, "-c", code], 1, **options)
    try:
        yield worker
    finally:
        worker.close()


def state(worker: Process) -> str:
    """Return the kernel's state: R, S, T (stopped), ..."""
    return Path(f"/proc/{worker._process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def has_ended(pid: int) -> bool:
    """Return whether a process ended, even if nobody waited for it yet."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # the second one if it ends while its file is open
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_answers_and_is_stopped_between() -> None:
    with python(ECHO) as worker:
        assert worker.ask(SOON, do="run", name="a") == {"do": "run", "name": "a"}
        wait_for(lambda: state(worker) == "T")
        assert worker.ask(SOON, do="limit") == {"do": "limit"}
    assert worker._process.poll() is not None


def test_its_environment() -> None:
    code = "import json, os, sys; sys.stdin.readline(); print(json.dumps(dict(os.environ)))"
    with python(code, environment={"MORE": "1"}) as worker:
        found = worker.ask(SOON)
    assert (found["OMP_NUM_THREADS"], found["OPENBLAS_NUM_THREADS"], found["HF_HUB_OFFLINE"]) == ("1", "1", "1")
    assert found["MORE"] == "1"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import sys; sys.stdin.readline(); sys.exit(3)", "the process ended with exit code 3"),
        ("import sys; sys.stdin.readline(); raise ValueError('bad\\n')", "exit code 1: ValueError: bad"),
        ("import os, sys; sys.stdin.readline(); os.kill(os.getpid(), 9)", "the process ended with signal SIGKILL"),
        ("import os, sys; sys.stdin.readline(); os.abort()", "signal SIGABRT"),
        ("raise SystemExit('no such library')", "exit code 1: no such library"),
    ],
)
def test_a_death_is_reported(code: str, reason: str) -> None:
    with python(code) as worker:
        assert reason in worker.ask(SOON, do="run")["error"]
        assert reason in worker.ask(SOON, do="run")["error"]  # and again, without waiting


def test_a_death_while_it_is_stopped() -> None:
    with python(ECHO) as worker:
        worker.ask(SOON, do="run")
        os.kill(worker._process.pid, signal.SIGKILL)
        assert "SIGKILL" in worker.ask(SOON, do="run")["error"]


def test_a_worker_that_does_not_answer_is_killed() -> None:
    with python("import time; time.sleep(600)") as worker:
        assert worker.ask(0.2, do="run") == {"error": "no answer within 0.2 s"}
        assert "SIGKILL" in worker.ask(0.2, do="run")["error"]


def test_output_that_is_not_an_answer() -> None:
    with python("import sys; sys.stdin.readline(); print('hello', flush=True); sys.stdin.readline()") as worker:
        assert worker.ask(SOON, do="run") == {"error": "expected an answer in JSON, got 'hello'"}


def test_an_answer_longer_than_a_pipe() -> None:
    with python("import json, sys; sys.stdin.readline(); print(json.dumps({'x': 'y' * 300000}))") as worker:
        assert len(worker.ask(SOON)["x"]) == 300000


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    """This holds for a stopped worker too, which could not notice the end of its standard input."""
    code = (
        "import sys, time\n"
        "from fastattn.bench.process import Process, command_of\n"
        "worker = Process(command_of('tests.bench.test_process', ''), 1)\n"
        "worker.ask(60, do='run')\n"
        "print(worker._process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    wait_for(lambda: has_ended(child))


def main(arguments: str) -> None:
    """Run the process of the test above."""
    from fastattn.bench.worker import serve

    serve(lambda command: command)


def job(path: Path, folder: Path, **options: Any) -> Job:
    return Job(**{"path": path, "task": "causal-lm", "dtype": "float32", "threads": 1, "folder": folder, **options})


COMMAND = {"name": "a", "ids": [[1, 2, 3]], "n_new": 3, "shape": {"q_lens": [1], "past_lens": [3.5], "wanted": 1}}


def test_our_own_worker(tmp_path: Path) -> None:
    worker = start("fastattn", job(write_gpt2(tmp_path / "m"), tmp_path))
    try:
        decode = worker.ask(SOON, do="run", kind="decode", seconds=0.0, **COMMAND)
        assert (len(decode["tokens"][0]), len(decode["seconds"])) == (3, 1)
        assert decode["waited"] >= 0
        forward = worker.ask(SOON, do="run", kind="forward", seconds=0.0, **COMMAND)
        assert (len(forward["values"]), len(forward["top"])) == (31, 1)
        assert forward["top"][0] == decode["tokens"][0][0]
        limit = worker.ask(SOON, do="limit", kind="decode", **COMMAND)
        assert limit["operations"] > 0
        assert limit["memory_seconds"] > 0
        profile = worker.ask(SOON, do="profile", kind="decode", **COMMAND)
        assert profile["what"] == "1 sequence, 1 token each after 3 tokens"
        assert "error" in worker.ask(SOON, do="run", kind="forward", seconds=0.0, **{**COMMAND, "ids": [[99]]})
        assert "seconds" in worker.ask(SOON, do="run", kind="forward", seconds=0.0, **COMMAND)
    finally:
        worker.close()


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    worker = start("fastattn", job(tmp_path / "none", tmp_path))
    try:
        found = worker.ask(SOON, do="run", kind="forward", seconds=0.0, **COMMAND)["error"]
    finally:
        worker.close()
    assert "ModelNotFoundError" in found
    assert "\n" not in found


def broken_torch(folder: Path, code: str) -> str:
    """Write a torch that cannot be imported."""
    folder.mkdir()
    (folder / "torch.py").write_text(code)
    (folder / "transformers.py").write_text("")
    return str(folder)


def test_a_library_that_breaks_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(broken_torch(tmp_path / "site", "raise RuntimeError('built for\\nanother machine')"))
    worker = start("torch", job(write_gpt2(tmp_path / "m"), tmp_path))
    try:
        answer = worker.ask(SOON, do="run", kind="forward", seconds=0.0, **COMMAND)
    finally:
        worker.close()
    assert answer == {"error": "RuntimeError: built for another machine"}


def test_a_dtype_that_a_library_is_not_run_in(tmp_path: Path) -> None:
    reason = convert_apart("torch", job(tmp_path, tmp_path, dtype="int4"), SOON)
    assert reason == "Unsupported: torch: expected one of float32, bfloat16, got int4"


def test_the_search_path_is_the_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_here.py").write_text("import json\ndef main(text): input(); print(json.dumps({'got': text}))\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    worker = Process(command_of("only_here", json.dumps({"a": "b c"})), 1)
    try:
        assert worker.ask(SOON) == {"got": '{"a": "b c"}'}
    finally:
        worker.close()
    assert process.command_of("x", "")[0] == sys.executable
