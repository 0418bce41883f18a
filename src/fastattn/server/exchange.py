"""One request and its response."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

from starlette.datastructures import Headers

from fastattn.server.fields import Fields, parse_body
from fastattn.server.logs import request_id
from fastattn.server.problems import ClientGone, Problem, Shape

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
_JSON = "application/json"
_LINGER_BYTES, _LINGER_S = 16 << 20, 5.0  # limits for the rest of a body after an error
NOT_FINITE = -9999.0  # OpenAI's log-probability of a token that cannot occur


def to_json(value: Any) -> bytes:
    """Return compact JSON. Raises ValueError for NaN and infinity."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")


def rows_to_json(rows: Iterable[Any]) -> bytes:
    """Return a JSON list. It is made row by row, so that a thread that makes a long one lets the event loop run."""
    return b"[" + b",".join(map(to_json, rows)) + b"]"


class Exchange:
    """A request, and how a handler answers it: with `reply`, or with `start_events`, `event` and `end_events`.

    shape: that of errors. route: the path in the table of routes, for metrics. notes: more fields of the log line.
    """

    def __init__(self, scope: Mapping[str, Any], receive: Receive, send: Send, shape: Shape) -> None:
        self.scope, self._receive, self._send, self.shape = scope, receive, send, shape
        self.headers = Headers(scope=dict(scope))
        self.id = request_id(self.headers.get("x-request-id"))
        self.begin = time.monotonic()
        self.route = "unknown"
        self.status = 0
        self.streams = False
        self.ended = False
        self.closes = False  # whether the connection ends with the response
        self.notes: dict[str, Any] = {}
        self.has_body = asyncio.Event()  # the body was read, so the next message is a disconnect
        self._lingers = False  # whether `linger` ends the response

    async def read(self, max_bytes: int, timeout_s: float) -> Fields:
        """Return the fields of a JSON body. Raises Problem, ClientGone."""
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != _JSON:
            raise Problem(415, f"content-type: expected {_JSON}", None, "unsupported_media_type")
        length = self.headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > max_bytes:
            raise _too_large(max_bytes)
        try:
            data = await asyncio.wait_for(self._read_bytes(max_bytes), timeout_s)
        except asyncio.TimeoutError:
            raise Problem(408, "the body did not arrive in time", None, "body_timeout") from None
        return parse_body(data)

    async def _read_bytes(self, max_bytes: int) -> bytes:
        data = bytearray()
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            data += message.get("body", b"")
            if not message.get("more_body", False):
                self.has_body.set()
            if len(data) > max_bytes:
                raise _too_large(max_bytes)
            if self.has_body.is_set():
                return bytes(data)

    async def disconnected(self) -> None:
        """Wait until the client closes its connection, after its body was read."""
        await self.has_body.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    # -- answers ------------------------------------------------------------------------------------------------------

    async def reply(
        self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None, kind: str = _JSON
    ) -> None:
        """Send a whole response. value: for JSON, or bytes."""
        body = value if isinstance(value, bytes) else to_json(value)
        await self._start(status, {"content-type": kind, "content-length": str(len(body)), **(headers or {})})
        self.ended = True
        await self._send({"type": "http.response.body", "body": body, "more_body": self._lingers})

    async def fail(self, problem: Problem, *, lingers: bool = False) -> None:
        """Send an error; in a stream of events, as the last event. lingers: the caller calls `linger` afterwards."""
        if self.ended:
            return
        if self.streams:
            await self.event(problem.body(self.shape))
            await self._end()
            return
        if not self.has_body.is_set() and self.scope["method"] not in ("GET", "HEAD"):
            self.closes = True
            self._lingers = lingers and problem.status != 408 and self.headers.get("expect") is None
        await self.reply(problem.body(self.shape), problem.status, problem.headers)

    async def linger(self, timeout_s: float) -> None:
        """After an error that left a part of the body unread: read it, within limits, and close the connection.

        A connection that is closed while the client still sends is reset, and the client may lose the response.
        """
        if self._lingers:
            with contextlib.suppress(asyncio.TimeoutError, ClientGone):
                await asyncio.wait_for(self._discard(_LINGER_BYTES), min(timeout_s, _LINGER_S))
            await self._send({"type": "http.response.body", "body": b""})

    async def _discard(self, n_bytes: int) -> None:
        while n_bytes > 0:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            if not message.get("more_body", False):
                return
            n_bytes -= len(message["body"])

    async def start_events(self) -> None:
        """Begin a stream of server-sent events."""
        await self._start(200, {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"})
        self.streams = True

    async def event(self, value: Any) -> None:
        """Send one event. It waits while the client reads slower than events come."""
        data = value if isinstance(value, bytes) else to_json(value)
        await self._send({"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True})
        await asyncio.sleep(0)  # several pieces may be ready: let the event loop see that the client is gone

    async def end_events(self) -> None:
        """Send OpenAI's last event, and end the response."""
        await self.event(b"[DONE]")
        await self._end()

    async def _end(self) -> None:
        self.ended = True
        await self._send({"type": "http.response.body", "body": b""})

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self.status = status
        own = {"x-request-id": self.id, "x-content-type-options": "nosniff", **headers}
        if self.closes:
            own["connection"] = "close"
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in own.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})


def finite(value: float) -> float:
    """Return a log-probability that JSON can represent."""
    return value if math.isfinite(value) else NOT_FINITE


def _too_large(max_bytes: int) -> Problem:
    return Problem(413, f"body: expected at most {max_bytes} bytes, got more", None, "body_too_large")
