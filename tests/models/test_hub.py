"""Hub ids, with a server on 127.0.0.1 that answers the hub's routes. No request leaves the machine."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn
from fastattn.api.auto import AutoModelForCausalLM
from fastattn.api.auto_tokenizer import AutoTokenizer
from fastattn.checkpoint.hub import HubError, resolve
from fastattn.errors import ConfigError, DTypeError, FastattnError, InputError, ModelNotFoundError
from tests.reference.checkpoints import write_gpt2
from tests.reference.gguf_files import gguf_bytes, gpt2_metadata, gpt2_stored
from tests.reference.hang import HANG_SECONDS
from tests.reference.package import SOURCES
from tests.tasks.tokenizers import write_gpt2 as write_tokenizer

pytest.importorskip("huggingface_hub")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """One repository, tiny/gpt2, and the requests that it received."""

    url: str
    files: dict[str, bytes]
    token: str | None = None
    asked: list[str] = field(default_factory=list)
    fault: Callable[[Any], None] | None = None  # answers instead of the hub, given the request's handler


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(code)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            if hub.fault is not None:
                return hub.fault(self)
            hub.asked.append(f"{self.command} {path}")
            if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self.answer(401, X_Error_Code="RepoNotFound")
            if path in (f"/api/models/tiny/gpt2/revision/{name}" for name in ("main", "v1", COMMIT)):
                siblings = [{"rfilename": name} for name in hub.files]
                info = {"id": "tiny/gpt2", "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
                return self.answer(200, json.dumps(info).encode(), Content_Type="application/json")
            if path.startswith("/api/models/tiny/gpt2/tree/"):
                tree = [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in hub.files.items()
                ]
                return self.answer(200, json.dumps(tree).encode(), Content_Type="application/json")
            if path.startswith("/api/models/tiny/gpt2/"):
                return self.answer(404, X_Error_Code="RevisionNotFound")
            name = path.removeprefix(f"/tiny/gpt2/resolve/{COMMIT}/")
            if name in hub.files:
                data = hub.files[name]
                etag = f'"{hashlib.sha256(data).hexdigest()}"'
                return self.answer(200, data, ETag=etag, X_Repo_Commit=COMMIT, Accept_Ranges="bytes")
            return self.answer(404, X_Error_Code="RepoNotFound")

    return Handler


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    source = write_gpt2(tmp_path / "source")
    files = {file.name: file.read_bytes() for file in source.iterdir()}
    files |= {
        "pytorch_model.bin": b"\x80\x04",
        "README.md": b"#",
        "onnx/model.safetensors": b"x",
        "model.fp16.safetensors": b"x",
        "vocab.json": b"{}",
    }
    hub = Hub("", files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield hub
    server.shutdown()
    thread.join(5)
    server.server_close()


def test_of_a_hub_id_only_the_gguf_file_is_fetched(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"b/m.gguf": gguf_bytes(gpt2_metadata(), gpt2_stored()), "n.gguf": b"x"}
    AutoModelForCausalLM.from_pretrained("tiny/gpt2", gguf_file="b/m.gguf", cache_dir=tmp_path / "cache").close()
    assert {asked.rpartition("/")[2] for asked in hub.asked if "/resolve/" in asked} == {"m.gguf"}
    with pytest.raises(ModelNotFoundError, match=r"o\.gguf: expected a GGUF file, found none"):
        AutoModelForCausalLM.from_pretrained("tiny/gpt2", gguf_file="o.gguf", cache_dir=tmp_path / "cache")
    with pytest.raises(ModelNotFoundError, match=r"model\.safetensors; pass gguf_file for a GGUF file"):
        AutoModelForCausalLM.from_pretrained("tiny/gpt2", cache_dir=tmp_path / "other")


def test_a_hub_id_is_fetched_once_and_runs(hub: Hub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with (
        AutoModelForCausalLM.from_pretrained("tiny/gpt2", cache_dir=cache, device="numpy") as fetched,
        AutoModelForCausalLM.from_pretrained(tmp_path / "source", device="numpy") as local,
    ):
        assert np.array_equal(np.asarray(fetched([1, 2]).logits), np.asarray(local([1, 2]).logits))
    got = {asked.rpartition("/")[2] for asked in hub.asked if "/resolve/" in asked}
    assert got == {"config.json", "model.safetensors", "vocab.json"}
    assert not any("onnx" in asked or ".bin" in asked for asked in hub.asked if "/resolve/" in asked)
    hub.asked.clear()
    found = resolve("tiny/gpt2", cache_dir=cache, local_files_only=True)
    assert (found / "config.json").is_file()
    assert not hub.asked


def test_a_tokenizer_fetches_no_weights(hub: Hub, tmp_path: Path) -> None:
    files = write_tokenizer(tmp_path / "tokenizer")
    hub.files |= {file.name: file.read_bytes() for file in files.iterdir()} | {"added_tokens.json": b"{}"}
    cache = tmp_path / "cache"
    tokenizer = AutoTokenizer.from_pretrained("tiny/gpt2", cache_dir=cache)
    assert np.array_equal(tokenizer.encode("the hello"), AutoTokenizer.from_pretrained(files).encode("the hello"))
    got = {asked.rpartition("/")[2] for asked in hub.asked if "/resolve/" in asked}
    assert got == {"added_tokens.json", "config.json", "merges.txt", "tokenizer_config.json", "vocab.json"}
    assert len(AutoTokenizer.from_pretrained("tiny/gpt2", cache_dir=cache, local_files_only=True)) == len(tokenizer)
    with pytest.raises((HubError, ModelNotFoundError)):  # depends on the version of huggingface_hub
        AutoModelForCausalLM.from_pretrained("tiny/gpt2", cache_dir=cache, local_files_only=True)
    with AutoModelForCausalLM.from_pretrained("tiny/gpt2", cache_dir=cache, device="numpy") as model:
        assert np.isfinite(np.asarray(model([1, 2]).logits)).all()
    assert len(AutoTokenizer.from_pretrained("tiny/gpt2", cache_dir=cache, local_files_only=True)) == len(tokenizer)


def test_a_revision(hub: Hub, tmp_path: Path) -> None:
    assert resolve("tiny/gpt2", cache_dir=tmp_path / "cache", revision="v1").name == COMMIT
    with pytest.raises(HubError, match="no revision 'v9'"):
        resolve("tiny/gpt2", cache_dir=tmp_path / "cache", revision="v9")


def test_a_token(hub: Hub, tmp_path: Path) -> None:
    hub.token = "secret"
    with pytest.raises(HubError, match="token="):
        resolve("tiny/gpt2", cache_dir=tmp_path / "cache", token="wrong")
    assert resolve("tiny/gpt2", cache_dir=tmp_path / "cache", token="secret").is_dir()


LOADERS: dict[str, Callable[..., Any]] = {
    "from_pretrained": AutoModelForCausalLM.from_pretrained,
    "pipeline": lambda name, **options: fastattn.pipeline("text-generation", name, **options),
    "quantize": lambda name, **options: fastattn.quantize(name, options["cache_dir"] / "out", dtype="int8", **options),
    "compare_dtypes": fastattn.compare_dtypes,
    "SentenceTransformer": fastattn.SentenceTransformer,
}


@pytest.mark.parametrize("name", ["token", "use_auth_token"])
def test_the_tokenizer_of_a_pipeline_may_be_a_hub_id(hub: Hub, tmp_path: Path, name: str) -> None:
    files = write_tokenizer(tmp_path / "tokenizer")
    hub.files |= {file.name: file.read_bytes() for file in files.iterdir()}
    hub.token = "secret"
    options: Any = {"tokenizer": "tiny/gpt2", "cache_dir": tmp_path / "cache", name: "secret"}
    with fastattn.pipeline("text-generation", **options) as pipe:
        assert pipe.tokenizer.encode("the hello") == AutoTokenizer.from_pretrained(files).encode("the hello")


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS.keys())
def test_whatever_takes_a_hub_id_takes_its_options(hub: Hub, tmp_path: Path, load: Callable[..., Any]) -> None:
    """Each one rejects its wrong option, so the option arrived; with a full cache nothing is downloaded."""
    with pytest.raises(HubError, match=r"no revision 'v9'"):
        load("tiny/gpt2", cache_dir=tmp_path, revision="v9")
    hub.token = "secret"
    with pytest.raises(HubError, match=r"token="):
        load("tiny/gpt2", cache_dir=tmp_path, token="wrong")
    hub.asked.clear()
    with pytest.raises(HubError):
        load("tiny/gpt2", cache_dir=tmp_path, local_files_only=True)
    hub.token = None
    resolve("tiny/gpt2", cache_dir=tmp_path)
    hub.asked.clear()
    with contextlib.suppress(ConfigError):  # some then lack a tokenizer
        load("tiny/gpt2", cache_dir=tmp_path, local_files_only=True)
    assert not hub.asked


def test_no_such_repository(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"^no folder 'tiny/other' here, and no such public repository") as caught:
        resolve("tiny/other", cache_dir=tmp_path / "cache")
    assert isinstance(caught.value, (FastattnError, OSError))


def test_a_local_folder_wins(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_gpt2(tmp_path / "tiny" / "gpt2")
    assert resolve("tiny/gpt2") == Path("tiny/gpt2")
    assert not hub.asked


def test_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HubError, match="local_files_only=True; pass a local folder"):
        resolve("tiny/gpt2", cache_dir=tmp_path, local_files_only=True)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="pass a local folder"):
        resolve("tiny/gpt2", cache_dir=tmp_path)


def test_offline_with_a_cache(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_waits: None) -> None:
    from huggingface_hub import constants

    expected = resolve("tiny/gpt2", cache_dir=tmp_path)
    hub.asked.clear()
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert resolve("tiny/gpt2", cache_dir=tmp_path) == expected
    assert not hub.asked
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # no server listens there
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert resolve("tiny/gpt2", cache_dir=tmp_path) == expected
    with pytest.raises(HubError, match="pass a local folder"):
        resolve("tiny/other", cache_dir=tmp_path)


def html(handler: Any) -> None:
    """Send a proxy's login page."""
    handler.answer(200, b"<html><body>Please log in</body></html>", Content_Type="text/html")


def drop(handler: Any) -> None:
    """Close the connection in the middle of a line."""
    handler.wfile.write(b"HTTP/1.1 20")
    handler.wfile.flush()
    handler.connection.shutdown(2)
    handler.close_connection = True


def odd(body: bytes) -> Callable[[Any], None]:
    return lambda handler: handler.answer(200, body, Content_Type="application/json")


def status(code: int) -> Callable[[Any], None]:
    return lambda handler: handler.answer(code, b"no")


def redirects(handler: Any) -> None:
    handler.answer(302, Location=handler.path)


FAULTS: dict[str, Callable[[Any], None]] = {
    "html": html,
    "dropped": drop,
    "list": odd(b"[]"),
    "object": odd(b"{}"),
    "string": odd(b'"x"'),
    "null": odd(b"null"),
    "cut": odd(b'{"id": "tiny/gpt2", "sha":'),
    "not unicode": odd(b"\xff\xfe{"),
    "no sha": odd(b'{"id": "tiny/gpt2", "siblings": []}'),
    "siblings of numbers": odd(b'{"id": "tiny/gpt2", "sha": "0123", "siblings": [1]}'),
    "500": status(500),
    "403": status(403),
    "418": status(418),
    "redirects": redirects,
}


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the library's waits between its attempts."""
    monkeypatch.setattr(time, "sleep", lambda _: None)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("cached", [False, True])
def test_a_hub_that_does_not_work(
    hub: Hub, tmp_path: Path, fault: str, cached: bool, caplog: pytest.LogCaptureFixture, no_waits: None
) -> None:
    """An error that says what to do, or the cached copy with a warning."""
    cache = tmp_path / "cache"
    if cached:
        expected = resolve("tiny/gpt2", cache_dir=cache)
    hub.fault = FAULTS[fault]
    if cached:
        assert resolve("tiny/gpt2", cache_dir=cache) == expected
        return
    with pytest.raises(HubError) as caught:
        resolve("tiny/gpt2", cache_dir=cache)
    assert "pass a local folder" in str(caught.value) or "token=" in str(caught.value)
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()


def test_using_the_copy_in_the_cache_is_logged(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture, no_waits: None
) -> None:
    expected = resolve("tiny/gpt2", cache_dir=tmp_path)
    hub.fault = html
    with caplog.at_level(logging.WARNING, "fastattn"):
        assert resolve("tiny/gpt2", cache_dir=tmp_path) == expected
    (record,) = [record for record in caplog.records if record.name == "fastattn"]
    assert record.getMessage().startswith("tiny/gpt2: fetching from the hub failed (JSONDecodeError")
    assert record.getMessage().endswith("using the copy in the local cache")


def test_a_download_that_breaks_off(hub: Hub, tmp_path: Path, no_waits: None) -> None:
    """The list of files arrives, but no file."""
    hub.files = {name: data for name, data in hub.files.items() if name == "config.json"}
    served = hub.files["config.json"]
    hub.files["config.json"] = served

    class Broken(bytes):
        def __len__(self) -> int:
            return 10_000  # more than arrives

    hub.files["config.json"] = Broken(served)
    with pytest.raises(HubError, match="pass a local folder"):
        resolve("tiny/gpt2", cache_dir=tmp_path)


@pytest.mark.parametrize("token", ["hf_abcdefghijklmnop", "a secret of another kind"])
def test_a_token_is_in_no_message(
    hub: Hub, tmp_path: Path, token: str, monkeypatch: pytest.MonkeyPatch, no_waits: None
) -> None:
    """Whatever the hub echoes; the same for a token from the environment."""

    def echo(handler: Any) -> None:
        sent = str(handler.headers.get("Authorization"))
        handler.answer(418, sent.encode(), X_Error_Message=f"no {sent} {token}", X_Error_Code=token)

    hub.fault = echo
    for options in ({"token": token}, {}):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(HubError) as caught:
            resolve("tiny/gpt2", cache_dir=tmp_path, **options)  # type: ignore[arg-type]
        shown = "".join(traceback.format_exception(caught.value))
        assert token not in shown


def test_interrupts_and_memory_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception from a signal handler is not an error of the hub, whatever its type."""
    import huggingface_hub

    class Alarm(Exception):
        pass

    def handle(*_: object) -> None:
        raise raised[0]

    raised: list[BaseException] = []
    previous = signal.signal(signal.SIGUSR1, handle)
    try:
        for error in (TimeoutError("late"), ValueError("late"), KeyError("late"), Alarm(), KeyboardInterrupt()):
            raised[:] = [error]

            def fetch(*_: Any, **__: Any) -> None:
                signal.raise_signal(signal.SIGUSR1)

            monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
            with pytest.raises(type(error)) as caught:
                resolve("tiny/gpt2", cache_dir=tmp_path)
            assert caught.value is error
    finally:
        signal.signal(signal.SIGUSR1, previous)

    def fails(*_: Any, **__: Any) -> None:
        raise raised[0]

    passed = (MemoryError(), RecursionError(), ZeroDivisionError())
    mistakes = (KeyError("x"), TypeError("x"), AttributeError("x"), AssertionError("x"), IndexError("x"))
    disk = (OSError(errno.ENOSPC, "no space"), PermissionError(errno.EACCES, "no"))
    for error in (*passed, *mistakes, *disk):
        raised[:] = [error]
        monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
        with pytest.raises(type(error)):
            resolve("tiny/gpt2", cache_dir=tmp_path)
    for error in (
        TimeoutError("timed out"),
        ConnectionResetError(),
        OSError(errno.EIO, "read error"),
        ValueError("odd"),
    ):
        raised[:] = [error]
        with pytest.raises(HubError, match="pass a local folder"):
            resolve("tiny/gpt2", cache_dir=tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "./nowhere",
        "/nowhere/at/all",
        "a/b/c",
        "../x",
        "~nobody/x",
        "~no such user/x",
        "a b",
        "",
        "a//b",
        "a..b/c",
        "foo.git",
        "owner/foo.git",
        "owner/foo.",
        "-a/b",
        "a--b",
        "a/b\n",
        "\u00e9/b",
        "\ud800/b",
        "x" * 5000,
        "a/" * 5000,
        "n\n" * 100_000,
        "~" + "x" * 100_000,
        "x" * 200,
        "a\0b",
    ],
)
def test_neither_folder_nor_id(name: str) -> None:
    for given in (name, Path(name)) if name else (name,):
        with pytest.raises(ModelNotFoundError, match=r"^no folder .* here, and it is not a hub id") as caught:
            resolve(given)
        assert len(str(caught.value)) < 300
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"revision": 7}, "revision: expected str"),
        ({"cache_dir": 7}, "cache_dir: expected a path"),
        ({"cache_dir": ""}, "cache_dir: expected a path"),
        ({"local_files_only": "false"}, "local_files_only: expected True or False"),
        ({"token": 7}, "token: expected str, True, False or None"),
        ({"token": ["secret"]}, "token: expected str, True, False or None, got list$"),
    ],
)
def test_options_of_the_wrong_type(tmp_path: Path, options: dict[str, Any], match: str) -> None:
    with pytest.raises((DTypeError, InputError), match=match):
        resolve("tiny/gpt2", **{"cache_dir": tmp_path, **options})


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    file = write_gpt2(tmp_path) / "model.safetensors"
    with pytest.raises(ModelNotFoundError, match="expected the folder of a model"):
        resolve(file)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r'pip install "fastattn\[hub\]"'):
        resolve("tiny/gpt2")


def test_importing_models_does_not_import_the_hub() -> None:
    code = "import sys, fastattn.api.auto; print(sorted({'huggingface_hub', 'torch', 'pickle5'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=True,
        env={"PYTHONPATH": str(SOURCES)},
    )
    assert done.stdout.strip() == "[]"
