"""Starts and controls the worker processes."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fastattn.bench.libraries import Job
from fastattn.errors import BenchError

# The variables that set a library's own threads. numpy only does glue work; its thread pool would occupy cores.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_ONE_THREAD = ("OPENBLAS_NUM_THREADS",)
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {module} import main; main(sys.argv[2])"


def command_of(module: str, arguments: str) -> list[str]:
    """Return the command of a Python process that calls `main(arguments)` of a module with this process's search path.

    -I removes the current directory from the path. Otherwise a file such as json.py in a downloaded model would be
    imported. For the same reason only the absolute folders of this process's path are passed on.
    """
    if not sys.executable:
        raise BenchError("this process does not know its Python executable, so it cannot start others")
    path = [entry for entry in sys.path if os.path.isabs(entry)]
    return [sys.executable, "-I", "-c", _START.format(module=module), json.dumps(path), arguments]


class Process:
    """A worker that is stopped except while it answers, so idle thread pools do not spin and disturb the others."""

    def __init__(self, command: Sequence[str], threads: int, *, environment: Mapping[str, str] | None = None) -> None:
        """Start the worker. It ends with `close`. If this process dies, the kernel kills the worker."""
        variables = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        variables |= {name: str(threads) for name in _THREADS} | dict.fromkeys(_ONE_THREAD, "1")
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `close`)
        self._process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            env={**variables, **(environment or {})},
        )  # fmt: skip
        self._read = b""

    def ask(self, timeout: float = 900, **command: Any) -> dict[str, Any]:
        """Return the answer to a command; {"error": reason} also if the process ended or `timeout` seconds passed."""
        if self._process.poll() is not None:
            return {"error": self._death()}
        self._process.send_signal(signal.SIGCONT)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return {"error": self._death()}
        line = self._line(time.monotonic() + timeout)
        if line is None:
            self._process.kill()
            self._process.wait()
            return {"error": f"no answer within {timeout:g} s"}
        if not line:
            return {"error": self._death()}
        self._process.send_signal(signal.SIGSTOP)
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            return {"error": f"expected an answer in JSON, got {line.decode(errors='replace')[:80]!r}"}
        return answer

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()  # also ends a stopped process
        self._process.wait()
        self._errors.close()
        for file in (self._process.stdin, self._process.stdout):
            if file is not None:
                with contextlib.suppress(BrokenPipeError):
                    file.close()

    def _line(self, deadline: float) -> bytes | None:
        """Return the next line of its output; empty at the end of the output, None after the deadline."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._read:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return None
            piece = os.read(descriptor, 1 << 16)
            if not piece:
                return b""
            self._read += piece
        line, _, self._read = self._read.partition(b"\n")
        return line

    def _death(self) -> str:
        """Describe how the process ended, with its last line on stderr."""
        code = self._process.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"the process ended with {how}" + (f": {lines[-1].strip()[:200]}" if lines else "")


def start(library: str, job: Job) -> Process:
    """Start a library's worker for a converted model."""
    return _process(library, job, "serve")


def convert_apart(library: str, job: Job, timeout: float) -> str | None:
    """Convert a model in a separate process, because it may load more than running needs. Return why it failed."""
    process = _process(library, job, "convert")
    try:
        return process.ask(timeout).get("error")
    finally:
        process.close()


def _process(library: str, job: Job, what: str) -> Process:
    arguments = json.dumps({"do": what, "library": library, "job": asdict(job)}, default=str)
    return Process(command_of("fastattn.bench.worker", arguments), job.threads)
