"""Hub ids, against a server on 127.0.0.1 that answers the hub's routes. Nothing outside the machine is asked."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn
from fastattn.checkpoint.hub import HubError, resolve
from fastattn.errors import ConfigError, FastattnError, ModelNotFoundError
from fastattn.models.auto import AutoModelForCausalLM
from fastattn.models.auto_tokenizer import AutoTokenizer
from tests.reference.checkpoints import write_gpt2
from tests.tasks.tokenizers import write_gpt2 as write_tokenizer

pytest.importorskip("huggingface_hub")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SOURCE = Path(__file__).parents[2] / "src"


@dataclass
class Hub:
    """One repository, tiny/gpt2, and what was asked of it."""

    url: str
    files: dict[str, bytes]
    token: str | None = None
    asked: list[str] = field(default_factory=list)


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
    with pytest.raises((HubError, ModelNotFoundError)):  # by the version of huggingface_hub
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


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS.keys())
def test_whatever_takes_a_hub_id_takes_its_options(hub: Hub, tmp_path: Path, load: Callable[..., Any]) -> None:
    """Each one is refused for what is wrong with it, so it arrived; from a full cache nothing is fetched."""
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
    with contextlib.suppress(ConfigError):  # some then miss a tokenizer
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
    with pytest.raises(HubError, match="local_files_only=True; give a local folder"):
        resolve("tiny/gpt2", cache_dir=tmp_path, local_files_only=True)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="give a local folder"):
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
        "x" * 200,
        "a\0b",
    ],
)
def test_neither_folder_nor_id(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=r"^no folder .* here, and it is no hub id"):
        resolve(name)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    file = write_gpt2(tmp_path) / "model.safetensors"
    with pytest.raises(ModelNotFoundError, match="expected the folder of a model"):
        resolve(file)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r'pip install "fastattn\[hub\]"'):
        resolve("tiny/gpt2")


def test_importing_models_does_not_import_the_hub() -> None:
    code = "import sys, fastattn.models.auto; print(sorted({'huggingface_hub', 'torch', 'pickle5'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"PYTHONPATH": str(SOURCE)},
    )
    assert done.stdout.strip() == "[]"
