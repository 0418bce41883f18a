"""`response_format` and `grammar` of `Llm`, and the flags of the command that constrain texts."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fastattn
from fastattn.cli import main
from fastattn.errors import DTypeError, InputError
from fastattn.tasks.llm import Llm
from fastattn.tasks.response_format import read_constraint

pytest.importorskip("llguidance", reason="llguidance is in the extra structured")

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "who": {"enum": ["I", "you"]}},
    "required": ["n", "who"],
    "additionalProperties": False,
}
TEMPLATE = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
CHAT = [{"role": "user", "content": "The sea"}]


@pytest.fixture(scope="module")
def llm() -> Iterator[Llm]:
    pytest.importorskip("jinja2", reason="jinja2 is in the extra chat")
    with Llm(fastattn.pipeline("text-generation", threads=1).model, chat_template=TEMPLATE) as found:
        yield found


@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "json_object", "schema": SCHEMA},
        {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}},
    ],
)
def test_an_answer_follows_a_schema(llm: Llm, response_format: dict[str, Any]) -> None:
    for answer in (
        llm.create_completion("The sea", max_tokens=60, response_format=response_format, seed=1)["choices"][0],
        llm.create_chat_completion(CHAT, max_tokens=60, response_format=response_format, seed=1)["choices"][0],
    ):
        text = answer["text"] if "text" in answer else answer["message"]["content"]
        value = json.loads(text)
        assert list(value) == ["n", "who"]
        assert 0 <= value["n"] <= 99
        assert value["who"] in ("I", "you")
        assert answer["finish_reason"] == "stop"


def test_chunks_of_an_answer_follow_a_schema(llm: Llm) -> None:
    options: dict[str, Any] = {"response_format": {"type": "json_object", "schema": SCHEMA}, "seed": 4}
    whole = llm.create_chat_completion(CHAT, max_tokens=60, **options)["choices"][0]["message"]["content"]
    chunks = llm.create_chat_completion(CHAT, max_tokens=60, stream=True, **options)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == whole
    assert set(json.loads(whole)) == {"n", "who"}


def test_an_answer_follows_a_grammar(llm: Llm) -> None:
    grammar = 'root ::= "yes" | "no" " "? "way"'
    for seed in range(5):
        found = llm.create_completion("The sea", grammar=grammar, seed=seed)["choices"][0]
        assert found["text"] in ("yes", "no way", "noway")
        assert found["finish_reason"] == "stop"


def test_an_answer_that_is_too_long(llm: Llm) -> None:
    found = llm.create_completion("The sea", response_format={"type": "json_object", "schema": SCHEMA}, max_tokens=3)
    assert found["choices"][0]["finish_reason"] == "length"


def test_what_the_arguments_mean() -> None:
    assert read_constraint(None, None) == read_constraint({"type": "text"}, None) == {}
    assert read_constraint({"type": "json_object"}, None) == {"json_schema": {"type": "object"}}
    assert read_constraint({"type": "text"}, "x") == {"grammar": "x"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"response_format": "json"}, DTypeError, "response_format: expected a mapping such as"),
        ({"response_format": {}}, DTypeError, "response_format: type: expected one of 'text', 'json_object'"),
        ({"response_format": {"type": "xml"}}, InputError, "response_format: type: expected one of"),
        ({"response_format": {"type": "json_object", "form": {}}}, InputError, "unknown keyword 'form'"),
        ({"response_format": {"type": "json_schema"}}, DTypeError, "json_schema: expected a mapping with"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, InputError, 'expected "schema", got none'),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "strict": 1}}},
            DTypeError,
            "response_format: json_schema: strict: expected True or False",
        ),
        (
            {"response_format": {"type": "json_object", "schema": 3}},
            DTypeError,
            "response_format: expected a JSON schema",
        ),
        ({"response_format": {"type": "json_object"}, "grammar": "x"}, InputError, "grammar: expected None, because"),
        ({"grammar": 3}, DTypeError, "grammar: expected str"),
        ({"grammar": "root ::= x"}, InputError, "grammar: expected a grammar that can be used"),
    ],
)
def test_errors(llm: Llm, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        llm.create_completion("The sea", **options)
    with pytest.raises(error, match=message):
        llm.create_chat_completion(CHAT, **options)


# -- the command ------------------------------------------------------------------------------------------------------


def texts_of(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    assert main(["generate", "--json", "--seed", "3", "-p", "The sea", "-p", "A ship", *words]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.gbnf"
    schema.write_text(json.dumps(SCHEMA), encoding="utf-8-sig")
    grammar.write_text('root ::= " yes" | " no"\n', encoding="utf-8")
    rows = texts_of(capsys, "--json-schema", str(schema))
    assert [set(json.loads(row["text"])) for row in rows] == [{"n", "who"}] * 2
    assert texts_of(capsys, "--json-schema", json.dumps(SCHEMA)) == rows
    assert {row["text"] for row in texts_of(capsys, "--grammar", str(grammar))} <= {" yes", " no"}
    assert {row["text"] for row in texts_of(capsys, "--choice", "a", "--choice", "é")} <= {"a", "é"}
    for row in texts_of(capsys, "--regex", r" [a-z]{3}\."):
        assert re.fullmatch(r" [a-z]{3}\.", row["text"])
        assert row["finish_reason"] == "eos"
    assert main(["generate", "-p", "The sea", "--choice", " is big"]) == 0
    assert capsys.readouterr().out == "The sea is big\n"


def test_a_chat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("jinja2", reason="jinja2 is in the extra chat")
    folder = tmp_path / "model"
    shutil.copytree(Path(fastattn.__file__).parent / "demo" / "gpt2-litbank", folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    words = ("--json", "--seed", "1", "-p", "Yes?", "-p", "No?", "--choice", "aye", "--choice", "nay")
    assert main(["chat", "-m", str(folder), *words]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["content"] in ("aye", "nay") for answer in answers] == [True, True]
    assert [answer["finish_reason"] for answer in answers] == ["eos", "eos"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--regex", "(a"), "regex: expected a regular expression that can be used"),
        (("--regex", "a", "--choice", "b"), "choices: expected None, because regex is set"),
        (("--json-schema", "{"), "json_schema: expected a JSON schema"),
        (("--json-schema", "no such file"), "no such file"),
        (("--grammar", "no such file"), "no such file"),
    ],
)
def test_errors_of_flags(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(["generate", "-p", "The sea", *words])
    except SystemExit as error:
        status = int(str(error.code))
    assert status != 0
    assert message in capsys.readouterr().err


def test_a_file_that_is_not_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "grammar"
    file.write_bytes(b"root ::= \xff")
    assert main(["generate", "-p", "The sea", "--grammar", str(file)]) != 0
    assert f"{file}: expected UTF-8, got invalid start byte at byte 9" in capsys.readouterr().err


def test_info_names_the_extra(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    assert "structured" in json.loads(capsys.readouterr().out)["extras"]
