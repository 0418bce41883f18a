"""The ASGI application: finds the handler of a request, and runs it until it ends, times out or the client is gone."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from starlette.middleware.cors import CORSMiddleware

from fastattn.server import logs
from fastattn.server.exchange import Exchange, Receive, Send
from fastattn.server.gate import Gate
from fastattn.server.generation import Generation
from fastattn.server.metrics import Metrics
from fastattn.server.models import Models
from fastattn.server.options import ServeOptions, is_loopback
from fastattn.server.problems import ClientGone, Problem, Shape, problem_of, unprocessable

_Result = TypeVar("_Result")
MAX_HEADER_BYTES = 32 << 10
_LAST_EVENT_S = 1.0  # to send the reason why a stream ends
_RETRY = {"retry-after": "5"}
_OPEN = ("/health", "/live", "/")  # routes that need no key


class App:
    """A server's models, queues and metrics, and its ASGI application `asgi`.

    Everything but functions for `in_thread` runs in the event loop. draining: no new requests are accepted.
    """

    def __init__(
        self, options: ServeOptions, models: Models, keys: Sequence[bytes] = (), *, version: str = "unknown"
    ) -> None:
        self.options, self.models, self._keys, self.version = options, models, tuple(keys), version
        self.metrics = Metrics(version)
        self.generating = Gate(options.max_running, options.max_waiting)
        self.encoding = Gate(options.max_encoding, options.max_waiting)
        self.threads = ThreadPoolExecutor(options.max_encoding + 2, thread_name_prefix="fastattn-serve")
        self.draining = False
        self._running: dict[asyncio.Task[None], Exchange] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        for kind, gate in (("generate", self.generating), ("encode", self.encoding)):
            running, waiting = lambda gate=gate: gate.running, lambda gate=gate: gate.waiting
            self.metrics.watch(kind, running, waiting, gate.most_running)
        self.metrics.watch_pages({name: model.kv_stats for name, model in models.generators().items()})
        self.asgi: Any = self
        if options.cors_origins:
            self.asgi = CORSMiddleware(
                self,
                allow_origins=list(options.cors_origins),
                allow_methods=["GET", "POST"],
                allow_headers=["authorization", "content-type", "x-request-id"],
                expose_headers=["x-request-id", "retry-after"],
            )

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise ValueError(f"expected an HTTP request, got {scope['type']}")
        exchange = Exchange(scope, receive, send, _shape_of(scope["path"]))
        exchange.closes = self.draining
        reason = ""
        try:
            handler = self._find(exchange)
            await self._run(exchange, handler)
        except ClientGone:
            reason = "client_gone"
            exchange.status = exchange.status or 499
        except (Exception, asyncio.CancelledError) as error:
            reason = await self._fail(exchange, error)
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            self._record(exchange, reason)
        await exchange.linger(self.options.body_timeout_s)

    async def refuse(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request on a connection that is one too many, and close the connection."""
        exchange = Exchange(scope, receive, send, _shape_of(scope["path"]))
        exchange.closes = True
        problem = Problem(503, "too many connections; try again later", None, "too_many_connections", _RETRY)
        reason = await self._fail(exchange, problem)
        self._record(exchange, reason)
        await exchange.linger(self.options.body_timeout_s)

    def _find(self, exchange: Exchange) -> Callable[[App, Exchange], Awaitable[None]]:
        """Return the handler of a request that is allowed. Raises Problem."""
        from fastattn.server.routes import ROUTES

        path, method = exchange.scope["path"], exchange.scope["method"]
        key = path if path in ROUTES else "/v1/models/{model}" if path.startswith("/v1/models/") else None
        if key is not None:
            exchange.route = key
        n_bytes = len(exchange.scope["raw_path"]) + sum(len(name) + len(value) for name, value in exchange.headers.raw)
        if n_bytes > MAX_HEADER_BYTES:  # uvicorn limits only those that come in several parts
            raise Problem(
                431, f"headers: expected at most {MAX_HEADER_BYTES} bytes, got more", None, "headers_too_large"
            )
        self._check_host(exchange)
        if key not in _OPEN:
            self._check_key(exchange)
        if key is None:
            raise Problem(404, "path: there is no such route", None, "not_found")
        methods = ROUTES[key]
        handler = methods.get("GET" if method == "HEAD" else method)
        if handler is None:
            allow = {"allow": ", ".join(methods)}
            raise Problem(405, f"method: expected {' or '.join(methods)}", None, "method_not_allowed", allow)
        if self.draining and method == "POST":
            raise _shutting_down()
        return handler

    def _check_host(self, exchange: Exchange) -> None:
        """Refuse other host names on a loopback address without keys, because of DNS rebinding by web pages."""
        if self._keys or not self.options.is_local or self.options.uds is not None:
            return
        name = exchange.headers.get("host", "localhost").rpartition("@")[2]
        name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        known = (self.options.host, *self.options.allowed_hosts)
        if name and not is_loopback(name) and name not in known:
            raise Problem(
                403, "host: expected this machine's name; --allowed-host adds others", None, "host_not_allowed"
            )

    def _check_key(self, exchange: Exchange) -> None:
        if not self._keys:
            return
        kind, _, token = exchange.headers.get("authorization", "").partition(" ")
        given, fits = token.strip().encode("utf-8", "replace"), False
        for key in self._keys:
            fits = hmac.compare_digest(given, key) or fits  # compare all keys, so that the time reveals nothing
        if kind.lower() != "bearer" or not fits:
            raise Problem(
                401, "authorization: expected a valid API key", None, "invalid_api_key", {"www-authenticate": "Bearer"}
            )

    async def _run(self, exchange: Exchange, handler: Callable[[App, Exchange], Awaitable[None]]) -> None:
        """Run a handler until it ends. Raises Problem after the time limit, ClientGone if the client is gone."""
        work = asyncio.ensure_future(_call(handler, self, exchange))
        gone = asyncio.ensure_future(exchange.disconnected())
        if exchange.scope["method"] == "POST":
            self._running[work] = exchange
            self._idle.clear()
        try:
            await asyncio.wait(
                {work, gone}, timeout=self.options.request_timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not work.done():
                if gone.done():
                    raise ClientGone
                raise Problem(504, "the request took too long", None, "timeout")
            if work.cancelled():
                raise _shutting_down()
            work.result()
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
            self._running.pop(work, None)
            if not self._running:
                self._idle.set()

    async def _fail(self, exchange: Exchange, error: BaseException) -> str:
        """Answer with an error, and return its code."""
        problem = _shutting_down() if isinstance(error, asyncio.CancelledError) else problem_of(error)
        if exchange.shape == "tei":
            problem = unprocessable(problem)
        if problem.code == "internal_error":
            logs.event(
                "error",
                level=logging.ERROR,
                request_id=exchange.id,
                error=type(error).__name__,
                places=logs.places_of(error),
            )
        try:
            failing = exchange.fail(problem, lingers=not isinstance(error, asyncio.CancelledError))
            await asyncio.wait_for(failing, _LAST_EVENT_S)
        except (asyncio.TimeoutError, OSError):
            exchange.notes["unsent"] = True
        return problem.code or "error"

    def _record(self, exchange: Exchange, reason: str) -> None:
        seconds = time.monotonic() - exchange.begin
        self.metrics.requests.labels(exchange.route, str(exchange.status)).inc()
        self.metrics.seconds.labels(exchange.route).observe(seconds)
        if reason:
            self.metrics.errors.labels(exchange.route, reason).inc()
            exchange.notes["reason"] = reason
        quiet = exchange.route in ("/health", "/live", "/metrics") and not reason
        logs.event(
            "request",
            level=logging.DEBUG if quiet else logging.INFO,
            request_id=exchange.id,
            method=exchange.scope["method"][:16],
            route=exchange.route,
            status=exchange.status,
            seconds=round(seconds, 4),
            **exchange.notes,
        )

    # -- for handlers -------------------------------------------------------------------------------------------------

    async def in_thread(self, function: Callable[[], _Result]) -> _Result:
        """Run a function outside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, function)

    def count_tokens(self, exchange: Exchange, model: str, n_prompt: int, n_new: int = 0) -> None:
        """Record the tokens of a request that ended; `metrics.new_tokens` counts the new ones earlier."""
        self.metrics.prompt_tokens.labels(model).inc(n_prompt)
        exchange.notes |= {"model": model, "prompt_tokens": n_prompt, "new_tokens": n_new}

    @contextmanager
    def counting(self, exchange: Exchange, model: str, run: Generation) -> Iterator[None]:
        """Count the tokens of a request while it runs; stop and record it at the end of the block."""
        try:
            with self.metrics.new_tokens.growing(model, lambda: int(run.usage["completion_tokens"])):
                yield
        finally:
            run.cancel()
            numbers = run.usage
            self.count_tokens(exchange, model, numbers["prompt_tokens"], numbers["completion_tokens"])

    # -- the end ------------------------------------------------------------------------------------------------------

    @property
    def n_running(self) -> int:
        """The number of requests that were not answered yet."""
        return len(self._running)

    async def drain(self, timeout_s: float) -> None:
        """Accept no more requests, and wait until the others have ended; cancel those that need longer."""
        self.draining = True
        for exchange in self._running.values():
            exchange.closes = True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except asyncio.TimeoutError:
            self.cancel_all()
            await self._idle.wait()

    def cancel_all(self) -> None:
        """Cancel all requests; their clients get an error."""
        for task in list(self._running):
            task.cancel()

    def close(self) -> None:
        """Free threads and models, after the last request."""
        self.threads.shutdown(wait=True)
        self.models.close()


def _shape_of(path: str) -> Shape:
    return "openai" if path.startswith("/v1/") else "tei"


def _shutting_down() -> Problem:
    return Problem(503, "the server is shutting down", None, "shutting_down", _RETRY)


async def _call(handler: Callable[[App, Exchange], Awaitable[None]], app: App, exchange: Exchange) -> None:
    await handler(app, exchange)
