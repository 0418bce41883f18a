"""Settings: their precedence, and errors that name the flag, variable, key or file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastattn.cli.arguments import build_parser
from fastattn.errors import ConfigError, DTypeError, InputError
from fastattn.options import options_of
from fastattn.server.models import Models, Served, kind_of, load_models
from fastattn.server.options import ModelSpec, ServeOptions
from fastattn.server.settings import check_exposure, parse_model, read_keys, read_settings
from tests.server.live import REVIEWS, STORIES


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_flags_before_variables_before_the_file(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.toml", 'port = 1\nmax_running = 2\nmax_waiting = 3\ncors_origins = ["https://a.example"]\n'
    )
    variables = {"FASTATTN_SERVE_PORT": "4", "FASTATTN_SERVE_MAX_RUNNING": "5", "HOME": "/"}
    found = read_settings({"port": 6, "max_running": None}, variables, config=path)
    assert (found.port, found.max_running, found.max_waiting, found.max_choices) == (6, 5, 3, 128)
    assert found.cors_origins == ("https://a.example",)
    assert read_settings({}, {**variables, "FASTATTN_SERVE_CONFIG": path}).max_waiting == 3


def test_models_of_the_file(tmp_path: Path) -> None:
    text = '[[models]]\npath = "a"\n[[models]]\nname = "b"\npath = "c"\nkind = "embed"\ndtype = "int8"\nthreads = 2\n'
    found = read_settings({}, {}, config=write(tmp_path / "a.toml", text))
    assert found.models == (
        ModelSpec(path="a"),
        ModelSpec(path="c", name="b", kind="embed", load=(("dtype", "int8"), ("threads", 2))),
    )
    flags = {"models": (parse_model("x=y"),)}
    assert read_settings(flags, {}, config=str(tmp_path / "a.toml")).models == (ModelSpec(path="y", name="x"),)


@pytest.mark.parametrize(
    ("variable", "value", "name", "wanted"),
    [
        ("ALLOW_NO_KEY", "true", "allow_no_key", True),
        ("ALLOW_NO_KEY", "0", "allow_no_key", False),
        ("REQUEST_TIMEOUT_S", "1.5", "request_timeout_s", 1.5),
        ("ALLOWED_HOSTS", "a, b", "allowed_hosts", ("a", "b")),
        ("MODELS", "a=b,c", "models", (ModelSpec(path="b", name="a"), ModelSpec(path="c"))),
        ("LOG_LEVEL", "error", "log_level", "error"),
    ],
)
def test_variables(variable: str, value: str, name: str, wanted: Any) -> None:
    assert getattr(read_settings({}, {f"FASTATTN_SERVE_{variable}": value}), name) == wanted


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("PRT", "1", "FASTATTN_SERVE_PRT: unknown variable; did you mean 'FASTATTN_SERVE_PORT'"),
        ("PORT", "tcp://10.0.0.1:80", "FASTATTN_SERVE_PORT: expected an integer, got 'tcp"),
        ("REQUEST_TIMEOUT_S", "soon", "FASTATTN_SERVE_REQUEST_TIMEOUT_S: expected a number, got 'soon'"),
        ("ALLOW_NO_KEY", "maybe", "FASTATTN_SERVE_ALLOW_NO_KEY: expected true or false, got 'maybe'"),
        ("PORT", "65536", "port: expected 0 to 65535, got 65536"),
        ("LOG_LEVEL", "loud", "log_level: expected one of"),
        ("CORS_ORIGINS", "a.example", "cors_origins: expected an origin such as https://example.com"),
    ],
)
def test_wrong_variables(variable: str, value: str, message: str) -> None:
    with pytest.raises((ConfigError, InputError, DTypeError)) as caught:
        read_settings({}, {f"FASTATTN_SERVE_{variable}": value})
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 1", "unknown key 'prot'; did you mean 'port'"),
        ('port = "80"', "port: expected int, got str '80'"),
        ("port = true", "port: expected int, got bool"),
        ('api_key = "abc"', "api_key: expected no key in this file; use api_key_file or FASTATTN_SERVE_API_KEY"),
        ("[models]\na = 1", "models: expected tables [[models]]"),
        ('[[models]]\nname = "a"', "models[0]: path: expected a folder or hub id, got none"),
        ('[[models]]\npath = "a"\nknd = "embed"', "models[0]: unknown key 'knd'; did you mean 'kind'"),
        ('[[models]]\npath = "a"\nkind = "chat"', "models[0]: kind: expected one of generate, embed"),
        ("[[models]]\npath = 1", "models[0]: models: path: expected str, got int 1"),
        ("port = ", "expected TOML: "),
        ("port = 1\nport = 2", "expected TOML: "),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "a.toml", text)
    with pytest.raises(ConfigError) as caught:
        read_settings({}, {}, config=path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_a_file_that_is_missing_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.toml: No such file"):
        read_settings({}, {}, config=str(tmp_path / "nothing.toml"))
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="expected TOML"):
        read_settings({}, {}, config=str(tmp_path / "b.toml"))


def test_keys(tmp_path: Path) -> None:
    path = write(tmp_path / "keys", "first-key-1\n\n  second-key \n")
    options = ServeOptions(api_key_file=path)
    assert read_keys(options, {}) == (b"first-key-1", b"second-key")
    assert read_keys(ServeOptions(), {}) == ()
    assert read_keys(ServeOptions(), {"FASTATTN_SERVE_API_KEY": "a-long-key"}) == (b"a-long-key",)
    with pytest.raises(ConfigError, match="api_key_file: expected none, because FASTATTN_SERVE_API_KEY is set too"):
        read_keys(options, {"FASTATTN_SERVE_API_KEY": "a-long-key"})
    for bad in ("short", "with space", "ключключ", "x" * 513):
        with pytest.raises(ConfigError, match="key 1: expected 8 to 512 ASCII characters") as caught:
            read_keys(ServeOptions(), {"FASTATTN_SERVE_API_KEY": bad})
        assert bad not in str(caught.value)
    with pytest.raises(ConfigError, match="expected at least one key, got none"):
        read_keys(ServeOptions(api_key_file=write(tmp_path / "empty", "\n")), {})


@pytest.mark.parametrize(
    ("options", "keys", "fine"),
    [
        ({"host": "127.0.0.1"}, (), True),
        ({"host": "127.9.9.9"}, (), True),
        ({"host": "::1"}, (), True),
        ({"host": "localhost"}, (), True),
        ({"host": "0.0.0.0"}, (), False),
        ({"host": "::"}, (), False),
        ({"host": "example.com"}, (), False),
        ({"host": "0.0.0.0"}, (b"key",), True),
        ({"host": "0.0.0.0", "allow_no_key": True}, (), True),
        ({"host": "0.0.0.0", "uds": "/tmp/x"}, (), True),
    ],
)
def test_exposure(options: dict[str, Any], keys: tuple[bytes, ...], fine: bool) -> None:
    if fine:
        check_exposure(ServeOptions(**options), keys)
    else:
        with pytest.raises(ConfigError, match="host: expected a loopback address without API keys"):
            check_exposure(ServeOptions(**options), keys)


def test_every_setting_has_a_flag() -> None:
    _, commands = build_parser()
    names = {action.dest for action in commands["serve"]._actions}
    assert set(options_of(ServeOptions)) <= names


def test_kinds_of_folders(folders: dict[str, Path], tmp_path: Path) -> None:
    found = {name: kind_of(str(folder)) for name, folder in folders.items()}
    assert found == {"chat": "generate", "reranker": "rerank", "sparse": "sparse"}
    assert (kind_of(STORIES), kind_of(REVIEWS)) == ("generate", "embed")


def test_models_that_do_not_fit(folders: dict[str, Path], tmp_path: Path) -> None:
    two = [Served("a", "x", {"embed": None}), Served("a", "y", {"classify": None})]
    with pytest.raises(ConfigError, match="models: 'a': expected different names"):
        Models(two)
    with pytest.raises(InputError, match="expected a reranker with one label, got 2"):
        load_models([ModelSpec(path=REVIEWS, kind="rerank")], {})
    with pytest.raises(InputError, match="kv_dtype: expected none, because it computes embeddings"):
        load_models([ModelSpec(path=REVIEWS, load=(("kv_dtype", "int8"),))], {})
    with pytest.raises(InputError, match="chat_template: expected none for a model that computes embeddings"):
        load_models([ModelSpec(path=REVIEWS, chat_template="x")], {})
    with pytest.raises(ConfigError, match="nothing: No such file"):
        load_models([ModelSpec(path=STORIES, chat_template=str(tmp_path / "nothing"))], {})
    models = load_models([ModelSpec(path=REVIEWS)], {"kv_dtype": "int8", "threads": 1})
    assert [model.name for model in models] == ["bert-sst2"]
    models.close()


def test_the_demo_models_are_the_default() -> None:
    models = load_models((), {"threads": 1})
    assert {model.name: sorted(model.parts) for model in models} == {
        "gpt2-litbank": ["generate"],
        "bert-sst2": ["classify", "embed"],
    }
    models.close()
