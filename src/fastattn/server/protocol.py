"""uvicorn's HTTP protocol with what uvicorn lacks: a time limit for headers, and errors in the server's shape."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from fastattn.server.exchange import to_json
from fastattn.server.problems import Problem

_NOT_HTTP = Problem(400, "expected an HTTP request, got other bytes", None, "invalid_http")


class BoundedProtocol(H11Protocol):
    """Closes a connection whose request line and headers are not complete in time.

    The time begins with the connection, or with the first byte after a response. While a connection is idle after a
    response, uvicorn's keep-alive timeout applies. overload: the application that answers on connections beyond
    `max_connections`; it must close them.
    """

    header_timeout_s: ClassVar[float] = 10.0
    max_connections: ClassVar[int] = 1024
    overload: ClassVar[Any] = None
    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        self.access_log = False  # its lines have the whole path; the application logs requests
        if len(self.connections) > self.max_connections:
            self.app = self.overload
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._has_request():
            self._stop_timer()
        elif self._header_timer is None and not self.transport.is_closing():
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:  # instead of uvicorn's plain text
        body = to_json(_NOT_HTTP.body("openai"))
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        response = h11.Response(status_code=_NOT_HTTP.status, headers=headers, reason=b"Bad Request")
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _has_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _start_timer(self) -> None:
        self._header_timer = self.loop.call_later(self.header_timeout_s, self._too_slow)

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _too_slow(self) -> None:
        self._header_timer = None
        if not self._has_request():
            self.transport.close()
