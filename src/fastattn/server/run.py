"""Runs the server until SIGTERM or Ctrl-C: listens, drains, and closes the models."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import uvicorn

from fastattn.errors import ConfigError
from fastattn.server import logs
from fastattn.server.app import MAX_HEADER_BYTES, App
from fastattn.server.models import load_models
from fastattn.server.options import ServeOptions
from fastattn.server.protocol import BoundedProtocol
from fastattn.server.settings import check_exposure, read_keys

_BACKLOG = 512
_INTERRUPTED = 130  # the exit code after Ctrl-C


class Server(uvicorn.Server):
    """uvicorn's server, without its signal handlers: they would stop listening at once."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(options: ServeOptions, load: Mapping[str, Any], environ: Mapping[str, str], *, version: str) -> int:
    """Load the models and serve them; return the exit code. load: loading options for models without their own.

    Raises ConfigError, InputError, OSError, and what `from_pretrained` raises.
    """
    logs.configure(options.log_level)
    keys = read_keys(options, environ)
    check_exposure(options, keys)
    listener = bind(options)
    try:
        models = load_models(options.models, load, options.adapters)
        app = App(options, models, keys, version=version)
        try:
            return asyncio.run(run(app, [listener]))
        finally:
            app.close()
    finally:
        listener.close()
        if options.uds is not None:
            with contextlib.suppress(OSError):
                os.unlink(options.uds)


async def run(app: App, listeners: Sequence[socket.socket]) -> int:
    """Serve until a signal; return the exit code: 0 after SIGTERM, 130 after SIGINT."""
    server = Server(config_of(app))
    loop = asyncio.get_running_loop()
    codes: list[int] = []
    tasks: list[asyncio.Task[None]] = []

    def on_signal(code: int) -> None:
        codes.append(code)
        if len(codes) == 1:
            tasks.append(loop.create_task(_drain(app, server)))
        else:
            app.cancel_all()

    loop.add_signal_handler(signal.SIGTERM, on_signal, 0)
    loop.add_signal_handler(signal.SIGINT, on_signal, _INTERRUPTED)
    try:
        logs.event("listening", url=url_of(app.options, listeners[0]), models=[model.name for model in app.models])
        await server.serve(sockets=list(listeners))
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one, while the models close, must not change the code
    logs.event("stopped")
    return codes[0] if codes else 0


async def _drain(app: App, server: uvicorn.Server) -> None:
    logs.event("draining", running=app.n_running)
    await app.drain(app.options.drain_timeout_s)
    server.should_exit = True


def config_of(app: App) -> uvicorn.Config:
    """Return uvicorn's settings."""
    options = app.options
    settings = {
        "header_timeout_s": options.header_timeout_s,
        "max_connections": options.max_connections,
        "overload": staticmethod(app.refuse),
    }
    protocol = type("Protocol", (BoundedProtocol,), settings)
    return uvicorn.Config(
        app.asgi,
        http=protocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=options.keep_alive_s,  # type: ignore[arg-type]
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        backlog=_BACKLOG,
    )


def bind(options: ServeOptions) -> socket.socket:
    """Return the socket that listens. A Unix socket is only for this user. Raises ConfigError."""
    try:
        if options.uds is not None:
            return _bind_unix(options.uds)
        family, kind, _, _, address = socket.getaddrinfo(
            options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)  # uvicorn listens, when the models are loaded
        except BaseException:
            listener.close()
            raise
        return listener
    except OSError as error:
        where = options.uds or f"{options.host}:{options.port}"
        raise ConfigError(f"cannot listen on {where}: {error.strerror or error}") from None


def _bind_unix(path: str) -> socket.socket:
    place = Path(path)
    if place.is_socket():  # that of a server that was killed; one that runs is not replaced
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
            if other.connect_ex(path) == 0:
                raise ConfigError(f"uds: expected a free path, got {path!r}, where another server listens")
        place.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(path)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener


def url_of(options: ServeOptions, listener: socket.socket) -> str:
    """Return where the server listens."""
    if options.uds is not None:
        return f"unix:{options.uds}"
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
