"""Standard streams that are closed, full or disconnected: at most one line, the right exit code, no traceback."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest

from fastattn.cli import main, streams
from fastattn.cli.streams import OutputError
from tests.reference.command import ENVIRONMENT, command, run

needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
CLOSED_OUT, CLOSED_IN = "fastattn: standard output is closed\n", "fastattn: standard input is closed\n"
FULL = f"fastattn: standard output: {os.strerror(errno.ENOSPC)}\n"
COMMANDS = ["info", "--help", "--version", "embed --help", "classify -p good", "embed -p good", "generate -p good -n 3",
            "generate -p good -n 3 --no-stream", "generate -p good -n 3 --json", "completion bash"]  # fmt: skip


def shell(arguments: str, redirections: str) -> subprocess.CompletedProcess[str]:
    """Run the command with shell redirections."""
    words = f'exec "$0" -m fastattn {arguments} {redirections}'
    return subprocess.run(
        ["bash", "-c", words, sys.executable], capture_output=True, text=True, timeout=600, env=ENVIRONMENT, check=False
    )


@pytest.mark.parametrize("arguments", COMMANDS)
def test_standard_output_is_closed(arguments: str) -> None:
    done = shell(arguments, ">&-")
    assert (done.returncode, done.stderr) == (1, CLOSED_OUT)


@needs_full
@pytest.mark.parametrize("arguments", COMMANDS)
def test_standard_output_is_full(arguments: str) -> None:
    done = shell(arguments, ">/dev/full")
    assert (done.returncode, done.stderr) == (1, FULL)


@needs_full
@pytest.mark.parametrize("redirections", ["2>&-", "2>/dev/full", "2>&- <&-"])
def test_messages_that_cannot_be_written_change_nothing(redirections: str) -> None:
    expected = shell("generate -p good -n 3 --seed 1", "").stdout
    done = shell("generate -p good -n 3 --seed 1", redirections)
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")
    done = shell("nothing", redirections)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")
    done = shell("classify -m /no/such/folder -p a", redirections)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


@pytest.mark.parametrize("arguments", ["classify -f -", "classify -p -", "embed -f -", "generate -p -"])
def test_standard_input_is_closed(arguments: str) -> None:
    done = shell(arguments, "<&-")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", CLOSED_IN)


def test_standard_input_that_is_not_read_may_be_closed() -> None:
    done = shell("classify -p good", "<&-")
    assert (done.returncode, done.stdout) == (0, run("classify", "-p", "good").stdout)


def test_standard_input_cannot_be_read() -> None:
    done = shell("classify -f -", "0>/dev/null")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert done.stderr.startswith("fastattn: standard input: ")


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    """With all three closed, a library's output would otherwise go into the file that is written."""
    done = shell(f"embed -p good -o {tmp_path / 'v.npy'}", "<&- >&- 2>&-")
    assert done.returncode == 0
    assert np.load(tmp_path / "v.npy").shape[0] == 1


def test_a_standard_input_that_does_not_block() -> None:
    """Some programs leave a pipe or a terminal in this state: a read would end early."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    with subprocess.Popen(
        command("classify", "-f", "-"), stdin=read, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        while not os.get_blocking(read) and process.poll() is None:  # a flag of the pipe's end, which both share
            time.sleep(0.01)
        os.close(read)
        os.write(write, b"good\nbad\n")
        os.close(write)
        out, errors = process.communicate(timeout=600)
    assert (process.returncode, errors, len(out.splitlines())) == (0, b"", 2)


@pytest.mark.parametrize("arguments", [("info",), ("generate", "-p", "the", "-n", 100), ("classify", "-f", "-")])
def test_a_reader_that_has_seen_enough(arguments: tuple[object, ...]) -> None:
    """As with `| head`: no message, and no failure."""
    with subprocess.Popen(
        command(*arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.write(b"good\n" * 5000 if arguments[0] == "classify" else b"")
        process.stdin.close()
        errors = process.stderr.read()
        process.wait(timeout=600)
    assert (process.returncode, errors) == (0, b"")


def waits_for_input(pid: int, pipe: int) -> bool:
    """Return whether a process has read all that was written to a pipe, and sleeps."""
    left = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return (left, state) == (0, "S")


def test_ctrl_c_before_the_command_runs() -> None:
    """Ctrl-C while it waits for standard input."""
    with subprocess.Popen(
        command("classify", "-f", "-"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        # So large that writing all of it needs a reader: by then the command is inside `main`. It is one line without
        # an end, so nothing is printed. Python sees a signal between two reads only after the second one, which does
        # not end here. So the signal must arrive during a read.
        process.stdin.write(b"good " * 2**16)
        process.stdin.flush()
        while process.poll() is None and not waits_for_input(process.pid, process.stdin.fileno()):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        errors = process.stderr.read()
        process.wait(timeout=600)
    assert (process.returncode, errors) == (130, b"\n")


class Broken(io.StringIO):
    """An output that fails from the n-th write on."""

    def __init__(self, error: Exception, after: int) -> None:
        super().__init__()
        self.error, self.left = error, after

    def write(self, text: str) -> int:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().write(text)


@pytest.mark.parametrize("after", range(4))
@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 0, ""),
        (OSError(errno.ENOSPC, "No space left on device"), 1, FULL),
        (OSError(errno.EIO, "Input/output error"), 1, "fastattn: standard output: Input/output error\n"),
        (ValueError("I/O operation on closed file"), 1, CLOSED_OUT),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_write_may_fail(
    error: Exception,
    code: int,
    line: str,
    after: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = Broken(error, after)
    monkeypatch.setattr(sys, "stdout", broken)
    assert main(["classify", "-p", "a", "-p", "b", "-p", "c", "-p", "d", "-p", "e"]) == code
    assert capsys.readouterr().err == line
    assert len(broken.getvalue().splitlines()) == after


def test_a_missing_stream_of_this_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """sys.stdout is None under pythonw, and in some services."""
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["info"]) == 1
    assert capsys.readouterr().err == CLOSED_OUT
    with pytest.raises(OutputError):
        streams.emit("a")
    monkeypatch.setattr(sys, "stderr", None)
    streams.say("nothing happens")
    assert main(["info"]) == 1


def test_fastattn_alone_prints_its_help() -> None:
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == run("--help").stdout
    assert done.stdout.startswith("usage: fastattn")
    commands = "info generate classify embed rerank look quality quantize bench completion"
    for name in commands.split():
        assert f"\n    {name}" in done.stdout


def test_a_usage_error_has_two_lines() -> None:
    done = run("embed", "--batchsize", 3, "-p", "a")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "fastattn embed: unknown option '--batchsize'; did you mean '--batch-size'?\ntry `fastattn embed --help`\n"
    )


@pytest.mark.parametrize("shell_name", ["bash", "zsh", "fish"])
def test_completion(shell_name: str) -> None:
    pytest.importorskip("shtab")
    done = run("completion", shell_name)
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("generate", "batch-size", "bfloat16", "max-seconds"):
        assert word in done.stdout


def test_bash_completes(tmp_path: Path) -> None:
    pytest.importorskip("shtab")
    script = tmp_path / "fastattn.bash"
    script.write_text(run("completion", "bash").stdout)
    code = """
source "$1"; shift
COMP_WORDS=(fastattn "$@"); COMP_CWORD=$#
_shtab_fastattn fastattn "${@: -1}" "${COMP_WORDS[$#-1]}"
echo "${COMPREPLY[@]}"
"""

    def complete(*words: str) -> str:
        done = subprocess.run(["bash", "-c", code, "-", script, *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert complete("gen") == "generate"
    assert complete("embed", "--norm") == "--normalize"
    assert complete("generate", "--dtype", "bf") == "bfloat16"


def test_completion_without_shtab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 1
    printed = capsys.readouterr()
    assert printed.err == 'fastattn: completion: shtab is not installed; pip install "fastattn[completion]"\n'
