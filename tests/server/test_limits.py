"""Queues, time limits, clients that leave, keys, hosts and origins. The models' steps wait for the test."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from fastattn.server.encoding import Stop
from fastattn.server.models import Served, load_models
from fastattn.server.options import ModelSpec
from tests.server.live import REVIEWS, WAIT, Live, SlowModel, live
from tests.tasks.structured_models import PAGE_BYTES

BODY = {"model": "slow", "prompt": "hello", "max_tokens": 3, "seed": 1}
JSON = {"content-type": "application/json"}
KEY = b"key-0123456789"


def eventually(condition: Callable[[], Any], what: str) -> None:
    """Wait until a condition is true, which another thread makes true."""
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.005)


def in_thread(function: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    return thread, results


def post(server: Live, **changed: Any) -> httpx.Response:
    with server.client() as client:
        return client.post("/v1/completions", json={**BODY, **changed})


def raw_request(body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(data)}\r\n\r\n".encode() + data


def test_a_full_queue_refuses_and_recovers(slow_model: tuple[SlowModel, Served]) -> None:
    model, served = slow_model
    with live([served], max_running=1, max_waiting=1) as server:
        gate = server.app.generating
        running, first = in_thread(lambda: post(server))
        model.wait_for_step()
        waiting, second = in_thread(lambda: post(server, seed=2))
        eventually(lambda: gate.waiting == 1, "the second request waits")
        refused = post(server)
        assert refused.status_code == 429
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        with server.client() as client:
            text = client.get("/metrics").text
            assert 'fastattn_requests_running{kind="generate"} 1.0' in text
            assert 'fastattn_requests_waiting{kind="generate"} 1.0' in text
        model.go.set()
        running.join(WAIT)
        waiting.join(WAIT)
        assert [found.status_code for found in (*first, *second)] == [200, 200]
        eventually(lambda: (gate.running, gate.waiting) == (0, 0), "all places are free")
        assert post(server).status_code == 200


def test_a_waiting_client_that_leaves_makes_room(slow_model: tuple[SlowModel, Served]) -> None:
    model, served = slow_model
    with live([served], max_running=1, max_waiting=1) as server:
        gate = server.app.generating
        running, first = in_thread(lambda: post(server))
        model.wait_for_step()
        with server.connect() as client:
            client.sendall(raw_request(BODY))
            eventually(lambda: gate.waiting == 1, "it waits")
        eventually(lambda: gate.waiting == 0, "it left")
        model.go.set()
        running.join(WAIT)
        assert first[0].status_code == 200
        eventually(lambda: gate.running == 0, "the place is free")


def test_openais_client_closes_a_stream(slow_model: tuple[SlowModel, Served]) -> None:
    model, served = slow_model
    model.go.set()
    with (
        live([served]) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=WAIT, max_retries=0) as client,
    ):
        stream = client.completions.create(model="slow", prompt="hello", max_tokens=4000, seed=1, stream=True)
        assert next(iter(stream)).choices[0].finish_reason is None
        model.go.clear()
        stream.close()
        eventually(lambda: server.app.generating.running == 0, "the place is free")
        before = model.steps
        model.go.set()
        eventually(lambda: model.executor.open_caches == 0, "its cache is closed")
        assert model.steps <= before + 1


def test_nothing_is_written_to_clients_that_are_gone(
    slow_model: tuple[SlowModel, Served], caplog: pytest.LogCaptureFixture
) -> None:
    model, served = slow_model
    model.go.set()
    with live([served]) as server:
        for _ in range(5):
            with server.connect() as client:
                client.sendall(raw_request({**BODY, "max_tokens": 4000, "n": 4, "stream": True}))
                assert client.recv(2000).startswith(b"HTTP/1.1 200")
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closes with a reset
            eventually(lambda: server.app.generating.running == 0, "the place is free")
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_numbers_that_are_not_finite(slow_model: tuple[SlowModel, Served], number: float) -> None:
    model, served = slow_model
    model.go.set()

    def logits(ids: list[int]) -> Any:
        row = np.zeros(model.executor.program.values[0].width)
        row[7] = number if len(ids) > 6 else 30.0
        return row

    model.executor.logits_of = logits
    with live([served]) as server, server.client() as client:
        found = post(server, max_tokens=10)
        assert (found.status_code, found.json()["error"]["code"]) == (500, "not_finite")
        with client.stream("POST", "/v1/completions", json={**BODY, "max_tokens": 10, "stream": True}) as response:
            lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
        assert json.loads(lines[0])["choices"]
        assert json.loads(lines[-1])["error"]["code"] == "not_finite"
        assert post(server, max_tokens=1).status_code == 200
    eventually(lambda: model.executor.open_caches == 0, "its caches are closed")


@pytest.mark.parametrize("stream", [False, True])
def test_a_text_that_never_fits_the_memory_is_refused(folders: dict[str, Path], stream: bool) -> None:
    models = load_models(
        [ModelSpec(path=str(folders["chat"]), name="slow")], {"threads": 1, "kv_cache_bytes": PAGE_BYTES}
    )
    with live(list(models)) as server:
        found = post(server, max_tokens=200, stream=stream)
        assert (found.status_code, found.json()["error"]["code"]) == (400, "too_large")
        assert post(server).status_code == 200
    models.close()


def test_probabilities_of_zero_are_json(slow_model: tuple[SlowModel, Served]) -> None:
    model, served = slow_model
    model.go.set()

    def logits(ids: list[int]) -> Any:
        row = np.full(model.executor.program.values[0].width, -np.inf)
        row[7] = 0.0
        return row

    model.executor.logits_of = logits
    with live([served]) as server:
        found = post(server, prompt="hello the hello", max_tokens=2, logprobs=3, echo=True)
    listed = found.json()["choices"][0]["logprobs"]
    assert listed["token_logprobs"][-2:] == [0.0, 0.0]
    assert set(listed["token_logprobs"][1:-2]) == {-9999.0}
    assert sorted(listed["top_logprobs"][-1].values()) == [-9999.0, -9999.0, 0.0]


def test_tokens_are_counted(slow_model: tuple[SlowModel, Served]) -> None:
    model, served = slow_model
    model.go.set()
    with live([served]) as server, server.client() as client:
        usage = [post(server, seed=seed).json()["usage"] for seed in (1, 2)]
        n_prompt = sum(one["prompt_tokens"] for one in usage)
        wanted = (
            f'fastattn_prompt_tokens_total{{model="slow"}} {float(n_prompt)}',
            'fastattn_new_tokens_total{model="slow"} 6.0',
            'fastattn_requests_total{route="/v1/completions",status="200"} 2.0',
        )
        # A response arrives before its request is counted.
        eventually(lambda: all(line in client.get("/metrics").text for line in wanted), "all are counted")


class Permits:
    """Lets one step run per permit."""

    def __init__(self) -> None:
        self._permits = threading.Semaphore(0)

    def wait(self, seconds: float) -> bool:
        return self._permits.acquire(timeout=seconds)

    def set(self, n: int = 1000) -> None:
        self._permits.release(n)


def test_new_tokens_are_counted_as_they_come(slow_model: tuple[SlowModel, Served]) -> None:
    model, served = slow_model
    model.go = permits = Permits()  # type: ignore[assignment]
    with live([served], max_running=3) as server, server.client() as client:
        running, found = in_thread(lambda: post(server, max_tokens=5))
        for n_steps in range(1, 5):
            model.wait_for_step()
            permits.set(1)
            line = f'fastattn_new_tokens_total{{model="slow"}} {n_steps}.0'
            eventually(lambda line=line: line in client.get("/metrics").text, line)  # type: ignore[misc]
            assert running.is_alive()
        assert 'fastattn_requests_limit{kind="generate"} 3.0' in client.get("/metrics").text
        permits.set()
        running.join(WAIT)
        assert found[0].json()["usage"]["completion_tokens"] == 5
        assert 'fastattn_new_tokens_total{model="slow"} 5.0' in client.get("/metrics").text


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_stops_its_text_within_a_step(slow_model: tuple[SlowModel, Served], stream: bool) -> None:
    model, served = slow_model
    with live([served]) as server:
        with server.connect() as client:
            client.sendall(raw_request({**BODY, "max_tokens": 4000, "stream": stream}))
            model.wait_for_step()
        eventually(lambda: server.app.generating.running == 0, "the place is free")
        before = model.steps
        model.go.set()
        eventually(lambda: model.executor.open_caches == 0, "its cache is closed")
        assert model.steps <= before + 1
        assert post(server, seed=5).status_code == 200


def test_a_request_that_takes_too_long(slow_model: tuple[SlowModel, Served]) -> None:
    model, served = slow_model
    with live([served], request_timeout_s=0.2) as server:
        found = post(server)
        assert found.status_code == 504
        assert found.json()["error"]["code"] == "timeout"
        with server.client() as client:
            body = {**BODY, "stream": True}
            with client.stream("POST", "/v1/completions", json=body) as response:
                lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
        assert json.loads(lines[-1])["error"]["code"] == "timeout"
        model.go.set()
        eventually(lambda: model.executor.open_caches == 0, "its cache is closed")


def test_a_slow_reader_does_not_hold_the_others(slow_model: tuple[SlowModel, Served]) -> None:
    model, served = slow_model
    model.go.set()
    with live([served], request_timeout_s=3.0) as server:
        with server.connect() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.sendall(raw_request({**BODY, "max_tokens": 4000, "n": 8, "logprobs": 20, "stream": True}))
            assert client.recv(12).startswith(b"HTTP/1.1 ")  # its time limit is set; the others have more time
            server.app.options = replace(server.app.options, request_timeout_s=WAIT)
            assert post(server).status_code == 200
            eventually(lambda: server.app.generating.running == 0, "the request ended")
        eventually(lambda: model.executor.open_caches == 0, "its caches are closed")


def test_draining_finishes_what_runs(slow_model: tuple[SlowModel, Served]) -> None:
    model, served = slow_model
    with live([served], max_running=1) as server:
        running, first = in_thread(lambda: post(server))
        model.wait_for_step()
        waiting, second = in_thread(lambda: post(server, seed=2))
        eventually(lambda: server.app.generating.waiting == 1, "the second request waits")
        drained = server.call(lambda: server.loop.create_task(server.app.drain(WAIT)))  # type: ignore[union-attr]
        eventually(lambda: server.app.draining, "draining")
        refused = post(server)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "5"
        assert refused.headers["connection"] == "close"
        with server.client() as client:
            assert client.get("/health").status_code == 503
            assert client.get("/live").status_code == 200
        assert not drained.done()
        model.go.set()
        running.join(WAIT)
        waiting.join(WAIT)
        assert [found.status_code for found in (*first, *second)] == [200, 200]
        eventually(drained.done, "drained")


def test_draining_cancels_what_takes_too_long(slow_model: tuple[SlowModel, Served]) -> None:
    model, served = slow_model
    with live([served]) as server:
        running, found = in_thread(lambda: post(server))
        model.wait_for_step()
        drained = server.call(lambda: server.loop.create_task(server.app.drain(0.1)))  # type: ignore[union-attr]
        running.join(WAIT)
        assert found[0].status_code == 503
        eventually(drained.done, "drained")
        model.go.set()


def test_encoding_stops_between_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    models = load_models([ModelSpec(path=REVIEWS)], {"threads": 1})
    model = next(iter(models)).parts["embed"]
    began, go, sizes, encode = threading.Event(), threading.Event(), list[int](), model.encode

    def wait(texts: list[str], **options: Any) -> Any:
        sizes.append(len(texts))
        began.set()
        assert go.wait(WAIT)
        return encode(texts, **options)

    def stop(self: Stop) -> None:
        plain_stop(self)
        stopped.set()

    stopped, plain_stop = threading.Event(), Stop.set
    monkeypatch.setattr(Stop, "set", stop)
    monkeypatch.setattr(model, "encode", wait)
    with live(list(models), max_encoding=1, max_waiting=0) as server:
        with server.connect() as client:
            data = json.dumps({"inputs": [f"text {i}" for i in range(200)]}).encode()
            head = "POST /embed HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            client.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
            assert began.wait(WAIT)
        with server.client() as other:  # its thread still runs, so its place is taken
            assert stopped.wait(WAIT)
            assert other.post("/embed", json={"inputs": "a"}).status_code == 429
            go.set()
            eventually(lambda: server.app.encoding.running == 0, "the place is free")
            assert sizes == [32]
            assert other.post("/embed", json={"inputs": "a"}).status_code == 200
    models.close()


# -- who may call -----------------------------------------------------------------------------------------------------


def test_keys(slow_model: tuple[SlowModel, Served]) -> None:
    model, served = slow_model
    model.go.set()
    with live([served], keys=[b"another-key-1", KEY]) as server, server.client() as client:
        for given in (
            None,
            "Bearer wrong",
            f"Basic {KEY.decode()}",
            "Bearer",
            f"Bearer {KEY.decode()}x",
            "Bearer ключ",
        ):
            headers = {} if given is None else {"authorization": given.encode("utf-8")}
            found = client.post("/v1/completions", json=BODY, headers=headers)
            assert found.status_code == 401
            assert found.headers["www-authenticate"] == "Bearer"
            assert found.json()["error"]["code"] == "invalid_api_key"
            assert client.get("/metrics", headers=headers).status_code == 401
        right = {"authorization": f"bearer {KEY.decode()}"}
        assert client.post("/v1/completions", json=BODY, headers=right).status_code == 200
        assert client.get("/health").status_code == 200
        assert client.get("/v1/nothing").status_code == 401  # it says nothing about routes either


def test_host_names_of_other_machines_are_refused_without_keys(slow_model: tuple[SlowModel, Served]) -> None:
    with live([slow_model[1]], allowed_hosts=("gateway",)) as server, server.client() as client:
        for host in ("localhost:1", "127.0.0.1", "[::1]:80", "gateway:80"):
            assert client.get("/v1/models", headers={"host": host}).status_code == 200
        for host in ("evil.example", "localhost.evil.example", "10.0.0.1"):
            found = client.get("/v1/models", headers={"host": host})
            assert (found.status_code, found.json()["error"]["code"]) == (403, "host_not_allowed")
    with live([slow_model[1]], keys=[KEY]) as server, server.client() as client:
        headers = {"host": "evil.example", "authorization": f"Bearer {KEY.decode()}"}
        assert client.get("/v1/models", headers=headers).status_code == 200


def test_origins(slow_model: tuple[SlowModel, Served]) -> None:
    asks = {"origin": "https://app.example", "access-control-request-method": "POST"}
    with live([slow_model[1]]) as server, server.client() as client:
        assert client.options("/v1/completions", headers=asks).status_code == 405
        assert "access-control-allow-origin" not in client.get("/v1/models", headers=asks).headers
    with live([slow_model[1]], cors_origins=("https://app.example",), keys=[KEY]) as server, server.client() as client:
        found = client.options("/v1/completions", headers=asks)
        assert (found.status_code, found.headers["access-control-allow-origin"]) == (200, "https://app.example")
        other = client.options("/v1/completions", headers={**asks, "origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
        error = client.get("/v1/models", headers=asks)
        assert (error.status_code, error.headers["access-control-allow-origin"]) == (401, "https://app.example")


def test_a_unix_socket(slow_model: tuple[SlowModel, Served], tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with live([slow_model[1]], uds=path), httpx.Client(transport=httpx.HTTPTransport(uds=path)) as client:
        assert Path(path).stat().st_mode & 0o777 == 0o600
        assert client.get("http://anything/v1/models").status_code == 200
