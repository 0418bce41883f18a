"""Clients that send slowly, too much, or nothing, on raw sockets."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fastattn.server import exchange
from fastattn.server.models import Served
from tests.server.live import WAIT, Live, live, slow
from tests.server.test_limits import BODY, eventually, post, raw_request

HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    model, found = slow(tmp_path_factory.mktemp("slow"))
    model.go.set()
    return found


@pytest.fixture(scope="module")
def server(served: Served) -> Iterator[Live]:
    with live([served], max_body_bytes=2000) as found:
        yield found


@contextmanager
def limited(served: Served, **options: Any) -> Iterator[Live]:
    """Run a server with further limits for a block; check that nothing is left."""
    with live([served], max_body_bytes=2000, **options) as found:
        yield found
        nothing_is_left(found)


def nothing_is_left(server: Live) -> None:
    eventually(lambda: server.app.n_running == 0, "requests have ended")
    eventually(lambda: len(server.server.server_state.connections) == 0, "connections are closed")


@pytest.fixture(autouse=True)
def serves_others(server: Live) -> Iterator[None]:
    """Check that other clients are served after each test, and that nothing is left."""
    yield
    assert post(server).status_code == 200
    nothing_is_left(server)


def received(client: socket.socket) -> bytes:
    """Return all that comes until the server closes the connection."""
    client.settimeout(WAIT)
    data = b""
    try:
        while part := client.recv(65536):
            data += part
    except ConnectionResetError:  # it closed while something was on its way
        pass
    return data


def status_of(data: bytes) -> int:
    return int(data.split(b" ", 2)[1])


@pytest.mark.parametrize("start", [b"", b"POST", b"POST / HTTP/1.1\r\nhost: loc", HEAD])
def test_headers_that_do_not_come(served: Served, start: bytes) -> None:
    with limited(served, header_timeout_s=0.5) as server, server.connect() as client:
        client.sendall(start)
        assert received(client) == b""


def test_headers_byte_by_byte_do_not_extend_the_time(served: Served) -> None:
    head = HEAD + b"x-a: " + b"a" * 1000
    with limited(served, header_timeout_s=0.5) as server, server.connect() as client:
        client.settimeout(0.05)
        sent = 0
        for byte in head:
            try:
                client.sendall(bytes([byte]))
                sent += 1
                if client.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except (BrokenPipeError, ConnectionResetError):
                break
        assert sent < len(head)  # which would take a hundred times as long


def test_a_body_that_does_not_come(served: Served) -> None:
    with limited(served, body_timeout_s=0.5) as server, server.connect() as client:
        client.sendall(HEAD + b'content-length: 100\r\n\r\n{"model"')
        data = received(client)
    assert status_of(data) == 408
    assert b'"code":"body_timeout"' in data
    assert b"connection: close" in data


def test_a_second_request_that_does_not_come(served: Served) -> None:
    request = raw_request(BODY)
    with limited(served, keep_alive_s=0.5) as server, server.connect() as client:
        client.sendall(request + request[:40])
        assert status_of(received(client)) == 200


def test_an_idle_connection_closes(served: Served) -> None:
    with limited(served, keep_alive_s=0.5) as server, server.connect() as client:
        client.sendall(raw_request(BODY))
        data = received(client)
    assert status_of(data) == 200
    assert data.endswith(b"}")


@pytest.mark.parametrize("length", [b"2001", b"99999999999999999999", b"2000000000"])
def test_a_body_that_is_announced_too_large(served: Served, length: bytes) -> None:
    with limited(served, body_timeout_s=0.5) as server, server.connect() as client:
        client.sendall(HEAD + b"content-length: " + length + b"\r\n\r\n")
        data = received(client)
    assert status_of(data) == 413
    assert b'"code":"body_too_large"' in data


@pytest.mark.parametrize("path", [b"/v1/completions", b"/v1/nothing", b"/health"])
@pytest.mark.parametrize("kind", [b"application/json", b"text/plain"])
def test_the_answer_to_a_body_that_nobody_reads_is_not_lost(
    server: Live, path: bytes, kind: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client sends all of a body that is too large, and that arrives after the answer was sent."""
    monkeypatch.setattr(exchange, "_LINGER_S", WAIT)  # the client may be slow
    head = b"POST %s HTTP/1.1\r\nhost: localhost\r\ncontent-type: %s\r\ncontent-length: 3000000\r\n\r\n" % (path, kind)
    for pause in (0.0, 0.05):
        with server.connect() as client:
            client.sendall(head)
            time.sleep(pause)
            for _ in range(30):
                client.sendall(b" " * 100_000)
            data = received(client)
        assert status_of(data) == {b"/v1/nothing": 404, b"/health": 405}.get(path, 413 if kind[0] == ord("a") else 415)
        assert data.endswith(b"}")


def test_a_client_that_waits_for_leave_to_send_its_body(server: Live) -> None:
    with server.connect() as client:
        client.sendall(HEAD + b"content-length: 3000000\r\nexpect: 100-continue\r\n\r\n")
        data = received(client)
    assert data.startswith(b"HTTP/1.1 413 ")
    assert b"100 Continue" not in data


def test_a_chunked_body_that_is_too_large(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "_LINGER_S", WAIT)  # the client may be slow
    with server.connect() as client:
        client.sendall(HEAD + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(10):
            client.sendall(b"400\r\n" + b" " * 1024 + b"\r\n")
        client.sendall(b"0\r\n\r\n")
        data = received(client)
    assert status_of(data) == 413


def test_a_chunked_body(server: Live) -> None:
    body = json.dumps(BODY).encode()
    with server.connect() as client:
        client.sendall(HEAD + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n")
        for begin in range(0, len(body), 7):
            part = body[begin : begin + 7]
            client.sendall(b"%x\r\n%s\r\n" % (len(part), part))
        client.sendall(b"0\r\n\r\n")
        assert status_of(received(client)) == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: localhost\r\n" + b"".join(b"x-%d: a\r\n" % i for i in range(20_000)) + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100,  # TLS
        b"GET /health HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"GET /health\r\n\r\n\x00\x00",
    ],
)
def test_a_request_that_is_no_http_or_has_huge_headers(served: Served, request_bytes: bytes) -> None:
    with limited(served, header_timeout_s=1.0, keep_alive_s=1.0) as server, server.connect() as client:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(request_bytes)
        data = received(client)
    assert data == b"" or status_of(data) in (400, 431)
    if data:
        error = json.loads(data.partition(b"\r\n\r\n")[2])["error"]
        assert error if isinstance(error, str) else error["code"] == "invalid_http"


def test_the_error_for_bytes_that_are_no_http(server: Live) -> None:
    with server.connect() as client:
        client.sendall(b"GET /health\r\n\r\n")
        data = received(client)
    assert status_of(data) == 400
    assert json.loads(data.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_http"


def test_a_client_that_closes_its_half(server: Live) -> None:
    """It is treated as gone."""
    with server.connect() as client:
        client.sendall(raw_request({**BODY, "max_tokens": 4000, "stream": True}))
        client.shutdown(socket.SHUT_WR)
        received(client)
    eventually(lambda: server.app.generating.running == 0, "the request ended")


def test_too_many_connections(served: Served) -> None:
    with limited(served, max_connections=40) as server:
        held = [server.connect() for _ in range(45)]
        try:
            with server.connect() as client:
                client.sendall(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
                data = received(client)
            assert status_of(data) == 503
            head, _, body = data.partition(b"\r\n\r\n")
            assert json.loads(body)["error"]["code"] == "too_many_connections"
            assert b"\r\nretry-after: 5\r\n" in head
            assert b"\r\nconnection: close" in head.lower()
        finally:
            for one in held:
                one.close()


def test_header_injection_is_no_header(server: Live) -> None:
    with server.connect() as client:
        client.sendall(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nx-request-id: a\rb\r\nconnection: close\r\n\r\n")
        data = received(client)
    assert status_of(data) in (200, 400)
    assert b"a\rb" not in data
