"""Reads the settings of the server from flags, the environment and a TOML file, in this order of precedence."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastattn.checks import check_flag, check_path, closest, quote
from fastattn.errors import ConfigError, DTypeError, InputError
from fastattn.options import Choice, Count, Number, Text, options_of
from fastattn.server.options import KINDS, LOAD_NAMES, ModelSpec, ServeOptions

PREFIX = "FASTATTN_SERVE_"
_KEY = f"{PREFIX}API_KEY"
_CONFIG = f"{PREFIX}CONFIG"
_MAX_FILE_BYTES = 1 << 20
_FLAG_WORDS = {"true": True, "1": True, "false": False, "0": False}
_LISTS = ("adapters", "cors_origins", "allowed_hosts")
_MODEL_KEYS = ("name", "path", "kind", "chat_template", *LOAD_NAMES)


def read_settings(flags: Mapping[str, Any], environ: Mapping[str, str], *, config: str | None = None) -> ServeOptions:
    """Return the settings: of the flags, else of the environment, else of the file, else the defaults.

    flags: values by name; None is not given. config: the settings file, else the variable FASTATTN_SERVE_CONFIG names
    it. Raises ConfigError for an unknown variable or key, InputError, DTypeError.
    """
    from_environ = _of_environ(environ)
    path = config or environ.get(_CONFIG) or None
    from_file = {} if path is None else _of_file(Path(path))
    given = {name: value for name, value in flags.items() if value is not None and value != ()}
    return ServeOptions(**{**from_file, **from_environ, **given})


def read_keys(options: ServeOptions, environ: Mapping[str, str]) -> tuple[bytes, ...]:
    """Return the API keys of the environment or of the file. Raises ConfigError, and never shows a key."""
    value = environ.get(_KEY)
    if value is not None:
        if options.api_key_file is not None:
            raise ConfigError(f"api_key_file: expected none, because {_KEY} is set too; use one of them")
        return _checked_keys([value], _KEY)
    if options.api_key_file is None:
        return ()
    data = _read(Path(options.api_key_file), "api_key_file")
    try:
        lines = data.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise ConfigError(f"{options.api_key_file}: expected UTF-8 text") from None
    return _checked_keys([line.strip() for line in lines if line.strip()], options.api_key_file)


def _checked_keys(keys: list[str], where: str) -> tuple[bytes, ...]:
    if not keys:
        raise ConfigError(f"{where}: expected at least one key, got none")
    for i, key in enumerate(keys):
        if not 8 <= len(key) <= 512 or not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(f"{where}: key {i + 1}: expected 8 to 512 ASCII characters without spaces")
    return tuple(key.encode("ascii") for key in keys)


def check_exposure(options: ServeOptions, keys: tuple[bytes, ...]) -> None:
    """Refuse an address that other machines reach, without keys. Raises ConfigError."""
    if not options.is_local and not keys and not options.allow_no_key:
        raise ConfigError(
            f"host: expected a loopback address without API keys, got {quote(options.host)}; set {_KEY} or "
            "--api-key-file, or pass --allow-no-key if something else controls access"
        )


def parse_model(text: str, kind: Any = None) -> ModelSpec:
    """Return the model of "DIR" or "NAME=DIR"."""
    name, found, path = text.partition("=")
    return ModelSpec(path=path, name=name, kind=kind) if found else ModelSpec(path=text, kind=kind)


def _of_environ(environ: Mapping[str, str]) -> dict[str, Any]:
    known = {f"{PREFIX}{name.upper()}": name for name in options_of(ServeOptions)}
    found = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable in (_KEY, _CONFIG):
            continue
        name = known.get(variable)
        if name is None:
            near = closest(variable, (*known, _KEY, _CONFIG))
            raise ConfigError(f"{variable}: unknown variable{near}; settings begin with {PREFIX}")
        try:
            found[name] = _of_text(name, text)
        except ValueError:
            raise ConfigError(f"{variable}: expected {_expected(name)}, got {quote(text)}") from None
    return found


def _of_text(name: str, text: str) -> Any:
    """Return the value of a setting from its text. Raises ValueError."""
    check = options_of(ServeOptions)[name].check
    if name == "models":
        return tuple(parse_model(item.strip()) for item in text.split(",") if item.strip())
    if name in _LISTS:
        return tuple(item.strip() for item in text.split(",") if item.strip())
    if check is check_flag:
        if text.lower() not in _FLAG_WORDS:
            raise ValueError
        return _FLAG_WORDS[text.lower()]
    return int(text) if isinstance(check, Count) else float(text) if isinstance(check, Number) else text


def _expected(name: str) -> str:
    check: Callable[..., Any] | None = options_of(ServeOptions)[name].check
    return {Count: "an integer", Number: "a number", Text: "a text", Choice: "a word"}.get(type(check), "true or false")


def _of_file(path: Path) -> dict[str, Any]:
    values = _parse_toml(path)
    known = options_of(ServeOptions)
    for key in values:
        if key == "api_key":
            raise ConfigError(f"{path}: api_key: expected no key in this file; use api_key_file or {_KEY}")
        if key not in known:
            raise ConfigError(f"{path}: unknown key {quote(key)}{closest(key, known)}")
    found = dict(values)
    if "models" in found:
        found["models"] = _models_of_file(path, found["models"])
    try:  # so that messages name the file
        ServeOptions(**found)
    except (InputError, DTypeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    return found


def _models_of_file(path: Path, tables: Any) -> tuple[ModelSpec, ...]:
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{path}: models: expected tables [[models]], got {quote(tables)}")
    models = []
    for i, table in enumerate(tables):
        for key in table:
            if key not in _MODEL_KEYS:
                raise ConfigError(f"{path}: models[{i}]: unknown key {quote(key)}{closest(key, _MODEL_KEYS)}")
        if "path" not in table:
            raise ConfigError(f"{path}: models[{i}]: path: expected a folder or hub id, got none")
        if table.get("kind") is not None and table["kind"] not in KINDS:
            raise ConfigError(
                f"{path}: models[{i}]: kind: expected one of {', '.join(KINDS)}, got {quote(table['kind'])}"
            )
        load = tuple((name, table[name]) for name in LOAD_NAMES if name in table)
        own = {name: value for name, value in table.items() if name not in LOAD_NAMES}
        try:
            models.append(ModelSpec(load=load, **own))
        except (InputError, DTypeError) as error:
            raise ConfigError(f"{path}: models[{i}]: {error}") from None
    return tuple(models)


def _parse_toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError:
            raise ConfigError(f'{path}: reading it needs tomli; pip install "fastattn[server]"') from None
    data = _read(path, "config")
    try:
        values: dict[str, Any] = tomllib.loads(data.decode("utf-8"))
        return values
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: expected TOML: {error}") from None


def _read(path: Path, name: str) -> bytes:
    try:
        with check_path(name, path).open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigError(f"{path}: expected at most {_MAX_FILE_BYTES} bytes, got more")
    return data
