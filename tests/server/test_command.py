"""`fastattn serve` as a process: signals, exit codes, sockets, keys, curl, and a base install without the extra."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from fastattn.cli import main
from fastattn.server import logs
from tests.reference.package import PYTHON_ENVIRONMENT
from tests.server.live import WAIT
from tests.server.test_limits import eventually


class Command:
    """A server process. lines: its log."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        base = {name: value for name, value in PYTHON_ENVIRONMENT.items() if not name.startswith("FASTATTN_SERVE_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fastattn", "serve", *arguments],
            env={**base, **environment},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        self.lines: list[dict[str, Any]] = []
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(json.loads(line))
            self._listening.set()
        self._listening.set()

    @property
    def url(self) -> str:
        assert self._listening.wait(WAIT)
        return str(next(line["url"] for line in self.lines if line["event"] == "listening"))

    def end(self, number: int | None = None) -> int:
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait(WAIT)
        self._reader.join(WAIT)
        return code


@contextmanager
def command(*arguments: str, **environment: str) -> Iterator[Command]:
    """Run a server process for a block; kill it if it still runs."""
    found = Command(*arguments, **environment)
    try:
        yield found
    finally:
        found.process.kill()
        found.process.wait()
        found._reader.join(WAIT)
        assert found.process.stderr is not None
        found.process.stderr.close()


def test_sigterm_finishes_the_running_request(folders: dict[str, Path], tmp_path: Path) -> None:
    """A stream that its client does not read yet is running, for as long as the test wants."""
    path = str(tmp_path / "socket")  # whose buffers are small
    body = {"model": "chat", "prompt": "hello", "max_tokens": 80, "n": 4, "seed": 1, "logprobs": 20, "stream": True}
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
    transport = httpx.HTTPTransport(uds=path)
    with (
        command("-m", f"chat={folders['chat']}", "--uds", path, "--threads", "1") as server,
        socket.socket(socket.AF_UNIX) as client,
        httpx.Client(base_url="http://a", transport=transport, timeout=WAIT) as other,
    ):
        assert server.url == f"unix:{path}"
        client.settimeout(WAIT)
        client.connect(path)
        client.sendall(head.encode() + b"\r\n\r\n" + data)
        received = client.recv(100)
        assert received.startswith(b"HTTP/1.1 200")
        assert other.get("/health").status_code == 200
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: other.get("/health").status_code == 503, "it drains")
        refused = other.post("/v1/completions", json={**body, "stream": False})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert server.process.poll() is None
        while part := client.recv(1 << 20):
            received += part
        assert received.count(b'"finish_reason":"') == 4
        assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert server.end() == 0
    names = [line["event"] for line in server.lines]
    assert (names[0], names[-1]) == ("listening", "stopped")
    assert [line["running"] for line in server.lines if line["event"] == "draining"] == [1]
    assert not os.path.exists(path)


def test_curl_keys_environment_and_ctrl_c(folders: dict[str, Path]) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    key = "secret-key-123"
    variables = {
        "FASTATTN_SERVE_API_KEY": key,
        "FASTATTN_SERVE_MODELS": f"one={folders['chat']}",
        "FASTATTN_SERVE_PORT": "0",
    }
    with command("--threads", "1", **variables) as server:
        body = '{"model":"one","prompt":"hello","max_tokens":3,"seed":1}'
        base = [curl, "--silent", "--show-error", f"{server.url}/v1/completions", "-d", body]
        base += ["-H", "content-type: application/json"]
        refused = subprocess.run(base, capture_output=True, text=True, check=True)
        assert json.loads(refused.stdout)["error"]["code"] == "invalid_api_key"
        fine = subprocess.run([*base, "-H", f"authorization: Bearer {key}"], capture_output=True, text=True, check=True)
        assert json.loads(fine.stdout)["usage"]["completion_tokens"] == 3
        assert server.end(signal.SIGINT) == 130
    assert key not in str(server.lines)


@pytest.fixture
def failed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that returns the only line of a command that must fail with exit code 1."""
    monkeypatch.setattr(logs, "configure", lambda level: None)  # it is for a process of its own

    def run(*arguments: str) -> str:
        assert main(["serve", *arguments]) == 1
        output = capsys.readouterr()
        assert output.out == ""
        [line] = output.err.splitlines()
        return line

    return run


def test_what_it_refuses_to_start_with(
    failed: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    message = failed("--host", "0.0.0.0")
    assert message.startswith("fastattn: host: expected a loopback address without API keys, got '0.0.0.0'")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert failed("--port", str(port)) == f"fastattn: cannot listen on 127.0.0.1:{port}: Address already in use"
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen()
        assert (
            failed("--uds", path) == f"fastattn: uds: expected a free path, got {path!r}, where another server listens"
        )
    assert "here, and it is not a hub id" in failed("-m", str(tmp_path / "nothing"), "--uds", path)
    assert not os.path.exists(path)
    (tmp_path / "file").write_text("text")
    assert "cannot listen on" in failed("--uds", str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "text"
    monkeypatch.setenv("FASTATTN_SERVE_PROT", "1")
    assert failed().startswith("fastattn: FASTATTN_SERVE_PROT: unknown variable; did you mean 'FASTATTN_SERVE_PORT'")


def test_without_the_extra_the_command_names_it(failed: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    assert failed() == 'fastattn: serve: uvicorn is not installed; pip install "fastattn[server]"'


def test_nothing_else_imports_the_extra() -> None:
    code = (
        "import sys, fastattn, fastattn.cli.arguments as a; a.build_parser()\n"
        "print([m for m in ('starlette', 'uvicorn', 'prometheus_client', 'asyncio') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env=PYTHON_ENVIRONMENT, capture_output=True, text=True, timeout=WAIT, check=True
    )
    assert run.stdout == "[]\n"
