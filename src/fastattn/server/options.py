"""The settings of the server: their defaults, checks and flags."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from fastattn.checks import check_choice, check_flag, check_path, check_str, quote
from fastattn.errors import DTypeError, InputError
from fastattn.options import Choice, Count, Flag, Number, Text, check_fields, option

Kind: TypeAlias = Literal["generate", "embed", "sparse", "classify", "rerank"]
KINDS: tuple[Kind, ...] = ("generate", "embed", "sparse", "classify", "rerank")
LOAD_NAMES = ("dtype", "threads", "device", "kv_dtype", "head_dtype", "kv_cache_bytes", "share_weights")
_DAY = 86400.0


def _path(name: str, value: Any) -> str:
    return str(check_path(name, value))


def _texts(name: str, value: Any) -> tuple[str, ...]:
    items = (value,) if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)):
        raise DTypeError(f"{name}: expected a list of strings, got {quote(value)}")
    return tuple(check_str(f"{name}[{i}]", item) for i, item in enumerate(items))


def _adapters(name: str, value: Any) -> tuple[str, ...]:
    items = _texts(name, value)
    for item in items:
        adapter, found, path = item.partition("=")
        if not (found and adapter and path):
            raise InputError(f"{name}: expected NAME=DIR, got {quote(item)}")
    return items


def _origins(name: str, value: Any) -> tuple[str, ...]:
    origins = _texts(name, value)
    for origin in origins:
        if origin != "*" and ("://" not in origin or origin.endswith("/")):
            raise InputError(f"{name}: expected an origin such as https://example.com, or *, got {quote(origin)}")
    return origins


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model to serve.

    name: what requests call it; None is the last part of its path. path: a folder or hub id. kind: what it is used
    for; None is what its folder says. load: keywords of `from_pretrained`. chat_template: a file with a Jinja template.
    """

    path: str
    name: str | None = None
    kind: Kind | None = None
    load: tuple[tuple[str, Any], ...] = ()
    chat_template: str | None = None

    def __post_init__(self) -> None:
        for name in ("path", "name", "chat_template"):
            value = getattr(self, name)
            if value is not None and (not check_str(f"models: {name}", value) or len(value) > 4096):
                raise InputError(f"models: {name}: expected 1 to 4096 characters, got {len(value)}")
        if self.kind is not None:
            check_choice("models: kind", self.kind, KINDS)


def _models(name: str, value: Any) -> tuple[ModelSpec, ...]:
    if not isinstance(value, tuple) or not all(isinstance(item, ModelSpec) for item in value):
        raise DTypeError(f"{name}: expected models, got {quote(value)}")
    return value


_IN_TOML = "a flag for each kind of model names them"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """The settings of a server. Each has a flag, a variable FASTATTN_SERVE_NAME, and a key in the settings file."""

    models: tuple[ModelSpec, ...] = option((), _models, no_flag=_IN_TOML)
    adapters: tuple[str, ...] = option(
        (),
        _adapters,
        flag=Flag(
            names=("--lora-adapter",),
            values=Text(3, 4096),
            metavar="NAME=DIR",
            repeatable=True,
            help="serve a LoRA adapter of the first language model as the model NAME; repeatable",
        ),
    )
    host: str = option(
        "127.0.0.1", Text(1, 255), flag=Flag(metavar="HOST", help="address to listen on (default: 127.0.0.1)")
    )
    port: int = option(
        8000, Count(0, 65535), flag=Flag(metavar="PORT", help="port to listen on; 0 chooses one (default: 8000)")
    )
    uds: str | None = option(
        None,
        _path,
        flag=Flag(
            values=Text(1, 100),
            metavar="FILE",
            help="listen on a Unix socket that only this user may use, instead of host and port",
        ),
    )
    api_key_file: str | None = option(
        None,
        _path,
        flag=Flag(
            values=Text(1, 4096),
            metavar="FILE",
            help="a file of keys, one per line; clients must send one of them (or set FASTATTN_SERVE_API_KEY)",
        ),
    )
    allow_no_key: bool = option(False, check_flag, no_flag="a flag without a value")
    cors_origins: tuple[str, ...] = option(
        (),
        _origins,
        flag=Flag(
            names=("--cors-origin",),
            values=Text(1, 255),
            metavar="ORIGIN",
            repeatable=True,
            help="let pages of this origin call the server from browsers; repeatable (default: none)",
        ),
    )
    allowed_hosts: tuple[str, ...] = option(
        (),
        _texts,
        flag=Flag(
            names=("--allowed-host",),
            values=Text(1, 255),
            metavar="NAME",
            repeatable=True,
            help="accept this Host header too, on a loopback address without keys; repeatable",
        ),
    )
    max_running: int = option(
        32, Count(1, 65536), flag=Flag(metavar="N", help="generation requests that run at a time (default: 32)")
    )
    max_encoding: int = option(
        2, Count(1, 256), flag=Flag(metavar="N", help="embedding and scoring requests at a time (default: 2)")
    )
    max_waiting: int = option(
        128, Count(0, 65536), flag=Flag(metavar="N", help="requests of each kind that may wait (default: 128)")
    )
    max_connections: int = option(
        1024, Count(1, 65536), flag=Flag(metavar="N", help="open connections (default: 1024)")
    )
    max_body_bytes: int = option(
        2 << 20, Count(1, 1 << 30), flag=Flag(metavar="N", help="bytes of a request's body (default: 2097152)")
    )
    max_inputs: int = option(
        2048, Count(1, 65536), flag=Flag(metavar="N", help="texts of an embedding or scoring request (default: 2048)")
    )
    max_choices: int = option(
        128, Count(1, 4096), flag=Flag(metavar="N", help="texts that a generation request draws (default: 128)")
    )
    request_timeout_s: float = option(
        600.0, Number(0.01, _DAY), flag=Flag(metavar="S", help="seconds until a request ends (default: 600)")
    )
    body_timeout_s: float = option(
        20.0, Number(0.01, _DAY), flag=Flag(metavar="S", help="seconds to receive a body (default: 20)")
    )
    header_timeout_s: float = option(
        10.0, Number(0.01, _DAY), flag=Flag(metavar="S", help="seconds to receive headers (default: 10)")
    )
    keep_alive_s: float = option(
        30.0, Number(0.01, _DAY), flag=Flag(metavar="S", help="seconds until an idle connection closes (default: 30)")
    )
    drain_timeout_s: float = option(
        30.0, Number(0.0, _DAY), flag=Flag(metavar="S", help="seconds that requests have after SIGTERM (default: 30)")
    )
    log_level: str = option(
        "info", Choice("debug", "info", "warning", "error"), flag=Flag(help="level of the JSON log (default: info)")
    )

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        return self.uds is not None or is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is of this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
