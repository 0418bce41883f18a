"""Runs one library in its own process, controlled by JSON lines on standard input.

Each command is answered by one line on standard output, {"error": reason} if it failed:

    {"do": "run", "name", "kind", "ids", "n_new", "seconds"}  {"seconds": [...], "waited", "tokens" or "values", "top"}
    {"do": "limit", the same with "shape"}                    the minimum time at this moment, and its cost
    {"do": "profile", the same}                               where the time goes

The last two are only for fastattn's own process. It measures the read rate over the weights that the workload reads:
the same loop over another buffer may run at nearly twice or half that rate, depending on the placement of its pages.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastattn.bench.libraries import Job, convert, load
from fastattn.graph.cost import StepShape

VALUES = 4096  # number of values of a result that are compared

Answer = dict[str, Any]


class ModelRunner:
    """Runs a model of a library; loads it at the first command."""

    def __init__(self, library: str, job: Job) -> None:
        self.library, self.job = library, job
        self._peer: Any = None

    @property
    def peer(self) -> Any:
        """Return the loaded model."""
        if self._peer is None:
            self._peer = load(self.library, self.job)
        return self._peer

    def sample(self, command: Answer) -> tuple[float, Answer]:
        """Return the seconds of one pass (one step for a decode) and the result."""
        ids, n_new = command["ids"], command["n_new"]
        if command["kind"] == "decode":
            tokens, seconds = self.peer.decode(ids, n_new)
            return seconds / (n_new - 1), {"tokens": tokens}
        begin = time.perf_counter()
        rows = self.peer.forward(ids)
        seconds = time.perf_counter() - begin
        top = [int(i) for i in rows.argmax(-1)]
        return seconds, {"values": [float(x) for x in rows.reshape(-1)[:VALUES]], "top": top}

    def limit(self, command: Answer) -> Answer:
        """Return the current limit of a sample: {"compute_seconds", "memory_seconds", "operations", "bytes"}."""
        from fastattn.graph.step_cost import step_cost
        from fastattn.profiling.limits import measure_over, step_least_time

        given = command["shape"]
        past = given["past_lens"]
        shape = StepShape(tuple(given["q_lens"]), None if past is None else tuple(past), given["wanted"])
        executor = self.peer.executor
        limits = measure_over(executor)
        cost = step_cost(executor.program, shape, executor.formats)
        return {
            **asdict(step_least_time(executor.program, shape, executor.formats, limits)),
            "operations": cost.operations,
            "bytes": cost.bytes,
        }

    def profile(self, command: Answer) -> Answer:
        """Return where the time goes."""
        found = self.peer.model.profile(command["ids"], decode=command["kind"] == "decode")
        return {"text": str(found), "shares": found.shares(), **found.as_dict()}


class Service:
    """Answers commands with a runner."""

    def __init__(self, runner: ModelRunner) -> None:
        self.runner = runner
        self._warm: set[str] = set()

    def answer(self, command: Answer) -> Answer:
        if command["do"] == "limit":
            return self.runner.limit(command)
        if command["do"] == "profile":
            return self.runner.profile(command)
        return self.run(command)

    def run(self, command: Answer) -> Answer:
        """Take samples for at least the given seconds; the first time, discard a warm-up sample."""
        if command["name"] not in self._warm:
            self.runner.sample(command)
            self._warm.add(command["name"])
        taken: list[float] = []
        result: Answer = {}
        waited, begin = waited_seconds(), time.perf_counter()
        while not taken or time.perf_counter() - begin < command["seconds"]:
            seconds, result = self.runner.sample(command)
            taken.append(seconds)
        waited = (waited_seconds() - waited) / (time.perf_counter() - begin)
        return {"seconds": taken, "waited": max(0.0, waited), **result}


def waited_seconds() -> float:
    """Return the seconds that this process's threads were ready but had no core; 0 if the kernel does not say."""
    total = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # a thread may have ended
            total += int(file.read_text().split()[1])
    return total / 1e9


def serve(answer: Callable[[Answer], Answer]) -> None:
    """Answer commands until standard input ends."""
    _end_with_parent()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # send library output to stderr: stdout carries only answers
    for line in sys.stdin:
        try:
            found = answer(json.loads(line))
        except Exception as error:  # the table shows the error; other libraries continue
            found = {"error": reason(error)}
        out.write(json.dumps(found) + "\n")
        out.flush()


def _end_with_parent() -> None:
    """Make the kernel kill this process if the parent dies: while stopped, it could not notice that itself."""
    set_death_signal = 1
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)


def reason(error: BaseException) -> str:
    """Format an error as one line."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}"[:300] if words else type(error).__name__


def main(arguments: str) -> None:
    """Serve, or only convert a model; `arguments` is a JSON object of a library, a job and what to do."""
    options = json.loads(arguments)
    fields = options["job"]
    job = Job(**{**fields, "path": Path(fields["path"]), "folder": Path(fields["folder"])})
    if options["do"] == "convert":

        def converted(command: Answer) -> Answer:
            convert(options["library"], job)
            return {}

        serve(converted)
    else:
        serve(Service(ModelRunner(options["library"], job)).answer)
