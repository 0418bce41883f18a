"""Errors, warnings and arguments of texts that follow a regular expression, a JSON schema, choices or a grammar."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from fastattn import AutoModelForCausalLM
from fastattn.errors import ConfigError, DTypeError, InputError
from fastattn.generation import generate as generation
from fastattn.generation.options import GenerationOptions
from fastattn.tasks.text_generation import TextGenerationPipeline
from tests.tasks.structured_models import EOS, PROMPT, new_text, run, text_of, toy, write_model
from tests.tasks.toy import ToyModel

pytest.importorskip("llguidance", reason="llguidance is in the extra structured")


@pytest.fixture
def model(tmp_path: Path) -> ToyModel:
    return toy(tmp_path)


_HOW_SCHEMA = "expected a JSON schema as a dict or JSON text, or a pydantic model, got"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"regex": "(a"}, InputError, r"regex: expected a regular expression that can be used, got '\(a': .*unclosed"),
        ({"regex": "(?=a)b"}, InputError, "regex: .*look-around"),
        ({"regex": r"(a)\1"}, InputError, "regex: .*backreferences"),
        ({"regex": r"[^\s\S]"}, InputError, "regex: expected a regular expression that tokens .* after 0 new"),
        ({"regex": ""}, InputError, "regex: expected 1 to 1000000 characters, got 0"),
        ({"regex": 3}, DTypeError, "regex: expected str, got"),
        ({"regex": "a\ud800"}, InputError, "regex: .*surrogates"),
        ({"choices": []}, InputError, "choices: expected 1 to 10000 texts, got 0"),
        ({"choices": "yes"}, DTypeError, "choices: expected a list of str, got str"),
        ({"choices": ["a", 3]}, DTypeError, r"choices\[1\]: expected str"),
        ({"choices": ["\ud800"]}, InputError, "choices: expected a list of choices that can be used"),
        ({"grammar": "start: foo"}, InputError, 'grammar: .*unknown name: "foo"'),
        ({"grammar": "root ::= ["}, InputError, "grammar: .*Unexpected end of input"),
        ({"grammar": 'root ::= "a" b'}, InputError, "grammar: .*Rule 'b' not found"),
        ({"grammar": b"start: /a/"}, DTypeError, "grammar: expected str"),
        ({"json_schema": "{"}, InputError, f"json_schema: {_HOW_SCHEMA} '{{': invalid JSON"),
        ({"json_schema": '{"type": "a", "type": "b"}'}, InputError, "json_schema: .*type"),
        ({"json_schema": "[]"}, DTypeError, r"json_schema: expected a JSON object, got"),
        ({"json_schema": True}, DTypeError, f"json_schema: {_HOW_SCHEMA} True"),
        ({"json_schema": dict}, DTypeError, f"json_schema: {_HOW_SCHEMA}"),
        ({"json_schema": {"const": float("nan")}}, InputError, "json_schema: expected values that JSON has"),
        ({"json_schema": {"const": {1, 2}}}, InputError, "json_schema: expected values that JSON has"),
        ({"json_schema": "[" * 200}, InputError, "json_schema: "),
        ({"json_schema": {"type": "frob"}}, InputError, "json_schema: .*Invalid type: frob"),
        ({"json_schema": {"uniqueItems": True}}, InputError, 'json_schema: .*that are not supported: "uniqueItems"'),
        ({"json_schema": {"type": "string", "format": "color"}}, InputError, "json_schema: .*Unknown format: color"),
        ({"json_schema": {"not": {}}}, InputError, 'json_schema: .*keywords that are not supported: "not"'),
        ({"json_schema": {"$ref": "http://x/y"}}, InputError, "json_schema: .*http://x/y"),
        ({"json_schema": {"enum": []}}, InputError, "json_schema: .*Unsatisfiable"),
        ({"regex": "a", "grammar": "start: /a/"}, InputError, "grammar: expected None, because regex is set, got both"),
        ({"regex": "a", "num_beams": 2}, InputError, "num_beams: expected 1 with regex, got 2"),
        ({"regex": "a", "eos_token_id": -1}, InputError, "eos_token_id: expected at least one id with regex"),
    ],
)  # fmt: skip
def test_errors_come_before_any_step(model: ToyModel, options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        run(model, **options)
    if "num_beams" not in options and "eos_token_id" not in options:
        with pytest.raises(error, match=message):
            generation.stream(model, "the", **options)  # type: ignore[arg-type]
    assert model.executor.sizes == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"regex": "ab(c"}, "unclosed group, at character 3"),
        ({"regex": "é[z-a]"}, "invalid character class range, the start must be <= the end, at character 3"),
        ({"json_schema": {"type": "string", "pattern": "a("}}, "unclosed group, at character 2"),
        ({"json_schema": {"not": {}, "if": {}}}, 'keywords that are not supported: "if", "not"'),
        (
            {"json_schema": {"oneOf": [{"type": "string"}, {"type": "string"}]}},
            'oneOf is not supported; "x-guidance": {"coerce_one_of": true} in the schema treats it as anyOf',
        ),
        ({"grammar": "start: a\na: b"}, 'line 2, column 4: unknown name: "b"'),
        ({"grammar": 'start: "a'}, "line 1, column 10: lexer error"),
        ({"grammar": "start: <nope>"}, 'line 1, column 8: unknown special token: "<nope>"'),
        (
            {"grammar": "start: /x(/"},
            'line 1, column 8: the regular expression "x(": unclosed group, at character 2',
        ),
        (  # line and column would be those of the grammar that GBNF was translated to
            {"grammar": "root ::= [z-a]"},
            'the regular expression "[z-a]": invalid character class range, the start must be <= the end, '
            "at character 2",
        ),
        (
            {"grammar": 'a: "b"'},
            "expected ::= in line 1 between 'a' and ': \"b\"', as in GBNF; a grammar in Lark's syntax needs a rule "
            '"start:"',
        ),
    ],
)
def test_messages_of_the_library_in_one_line(model: ToyModel, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError) as caught:
        run(model, **options)
    assert str(caught.value).endswith(f": {reason}")
    assert str(caught.value).startswith(f"{next(iter(options))}: expected ")


def test_a_grammar_that_nothing_fits(model: ToyModel) -> None:
    with pytest.raises(InputError, match=r"can continue after 0 new tokens, found none: nothing can follow$"):
        run(model, grammar="start: start")


def test_a_pydantic_class_without_a_schema(model: ToyModel) -> None:
    class Wrong:
        @classmethod
        def model_json_schema(cls) -> dict[str, Any]:
            raise RuntimeError("no schema for a function")

    with pytest.raises(InputError, match="json_schema: expected a JSON schema of Wrong, got an error: no schema for"):
        run(model, json_schema=Wrong)


def test_options_that_forbid_what_the_text_needs(model: ToyModel) -> None:
    with pytest.raises(InputError, match="at least one id to draw, got ones that forbid all after"):
        run(model, regex="ab", suppress_tokens=[ord("b")])
    with pytest.raises(InputError, match="at least one id to draw"):
        run(model, regex="ab", min_new_tokens=9)
    assert len(run(model, regex="ab").sequences[0]) > len(PROMPT)  # the model is usable


def test_a_model_without_tokenizer() -> None:
    model = ToyModel(vocab_size=266)
    model.eos_token_ids = (EOS,)
    with pytest.raises(ConfigError, match="choices: expected a tokenizer in the model's folder, found none"):
        run(model, choices=["a"])


def test_the_tokenizer_of_the_call(tmp_path: Path) -> None:
    with_tokenizer = toy(tmp_path)
    model = ToyModel(vocab_size=266)
    model.eos_token_ids = (EOS,)
    found = run(model, choices=["hello"], tokenizer=with_tokenizer.tokenizer)
    assert new_text(found) == "hello"


def test_the_library_is_not_installed(model: ToyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(
        ConfigError, match=r'regex: expected llguidance, found none; pip install "fastattn\[structured\]"'
    ):
        run(model, regex="a")


def test_keywords_that_restrict_nothing_are_named(model: ToyModel, caplog: pytest.LogCaptureFixture) -> None:
    schema = {
        "type": "object", "title": "T", "x-note": 1, "requires": ["a"],
        "properties": {"a": {"type": "null", "nullable": True, "description": "d"}, "nullable": {"const": {"odd": 1}}},
        "required": ["a"], "additionalProperties": False,
    }  # fmt: skip
    with caplog.at_level(logging.WARNING, "fastattn"):
        run(model, json_schema=schema)
    (record,) = caplog.records
    assert record.getMessage() == (
        "json_schema: not applied, because JSON Schema has no such keywords: requires, properties.a.nullable"
    )
    caplog.clear()
    lenient = {
        "x-guidance": {"lenient": True},
        "type": "array",
        "maxItems": 1,
        "items": {"const": 1},
        "uniqueItems": True,
    }
    with caplog.at_level(logging.WARNING, "fastattn"):
        run(model, json_schema=lenient)
    assert [record.getMessage() for record in caplog.records] == ['json_schema: Unimplemented keys: ["uniqueItems"]']


def test_a_temperature_in_a_grammar_is_named(model: ToyModel, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fastattn"):
        run(model, grammar='start: word "[temperature=1]"\nword: /a/')
        assert not caplog.records
        assert new_text(run(model, grammar="start: word\nword[temperature=0.5]: /a/")) == "a"
    assert [record.getMessage() for record in caplog.records] == [
        "grammar: not applied: the temperature of a rule; pass temperature for the whole text"
    ]


def test_the_pipeline(tmp_path: Path) -> None:
    with AutoModelForCausalLM.from_pretrained(write_model(tmp_path)) as lm:
        pipe = TextGenerationPipeline(lm)
        found = pipe(["hi", "the"], regex="[a-c]{3}", seed=1, return_full_text=False, num_return_sequences=2)
        assert all(re.fullmatch("[a-c]{3}", one["generated_text"]) for many in found for one in many)
        (ids,) = pipe("hi", regex="[a-c]{3}", seed=1, return_tensors=True)
        assert re.fullmatch("hi[a-c]{3}", text_of(ids["generated_token_ids"]))


def test_options_are_checked_once(model: ToyModel) -> None:
    """Checked options are valid options again, as `Llm` passes them on."""
    options = GenerationOptions(json_schema={"type": "object"}, do_sample=True)
    again = GenerationOptions(json_schema=options.json_schema, do_sample=True)
    assert again == options
    assert GenerationOptions(choices=["a", "b", "a"]).choices == ("a", "b")
