"""Texts that follow a regular expression, a JSON schema, choices or a grammar.

The reference for languages of a few texts is a list of them: an id is allowed if the text can still become one. Texts
of other languages are checked by `re`, `json` and `jsonschema`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastattn import AutoModelForCausalLM
from fastattn.errors import InputError
from fastattn.tokenizer import Tokenizer
from fastattn.tokenizer.options import TokenizerOptions
from tests.tasks.structured_models import EOS, PIECES, PROMPT, new_text, only, run, text_of, toy, write_model
from tests.tasks.test_decoders import LLAMA
from tests.tasks.tokenizers import write_metaspace
from tests.tasks.toy import ToyModel

pytest.importorskip("llguidance", reason="llguidance is in the extra structured")

WORDS = ["hello", "hell", "help", "yes", "é", "你好", 'a"b\\c\n', "the the", ""]
SEQUENCES = ["".join(letters) for n in (2, 3) for letters in itertools.product("ab", repeat=n)]
LANGUAGES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "choices": ({"choices": WORDS}, WORDS),
    "regex": ({"regex": "[ab]{2,3}c?"}, [text + end for text in SEQUENCES for end in ("", "c")]),
    "anchors": ({"regex": "^(hello|the)$"}, ["hello", "the"]),
    "unicode regex": (
        {"regex": "[é-ë]{1,2}|你?好"},
        ["é", "ê", "ë", "你好", "好", *(a + b for a in "éêë" for b in "éêë")],
    ),
    "Lark": (
        {"grammar": 'start: A " " ("x" | "y")?\nA: /a|bb/'},
        [a + " " + x for a in ("a", "bb") for x in ("", "x", "y")],
    ),
    "GBNF": (
        {"grammar": 'root ::= ("hello" | b b?) "!"? # end\nb ::= [bc]'},
        [text + end for text in ["hello", "b", "c", "bb", "bc", "cb", "cc"] for end in ("", "!")],
    ),
    "schema": ({"json_schema": {"enum": [1, "a", None, True]}}, ["1", '"a"', "null", "true"]),
}  # fmt: skip
HOW: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 0, "seed": 5},
    "filters": {"do_sample": True, "top_k": 3, "top_p": 0.8, "temperature": 1.7, "min_p": 0.05, "seed": 6},
    "more filters": {"do_sample": True, "typical_p": 0.9, "epsilon_cutoff": 1e-4, "seed": 7},
    "penalties": {"repetition_penalty": 1.5, "presence_penalty": 0.5, "logit_bias": {ord("b"): 4.0, EOS: -3.0}},
    "only repetition": {"repetition_penalty": 2.0},
    "ids": {"suppress_tokens": [ord("a")], "bad_words_ids": [[ord("b"), ord("b")]], "do_sample": True, "seed": 1},
}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> ToyModel:
    return toy(tmp_path)


# -- which ids are allowed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("language", LANGUAGES)
def test_the_same_as_a_mask_without_a_library(model: ToyModel, language: str, how: str) -> None:
    option, texts = LANGUAGES[language]
    for prompt in (PROMPT, [EOS], PROMPT * 3):
        options = {**HOW[how], "top_logprobs": 3, "output_scores": True}
        try:
            wanted = run(model, prompt, logits_processor=only(texts, len(prompt)), **options)
        except InputError:  # the other options forbid what the text needs
            assert how == "ids"
            with pytest.raises(InputError, match="at least one id to draw"):
                run(model, prompt, **option, **options)
            continue
        found = run(model, prompt, **option, **options)
        assert found.sequences[0].tolist() == wanted.sequences[0].tolist()
        assert new_text(found, 0, prompt) in texts
        assert found.finish_reasons == ["eos"]
        np.testing.assert_array_equal(found.logprobs[0], wanted.logprobs[0])
        for mine, other in zip(found.top_logprobs[0], wanted.top_logprobs[0], strict=True):
            np.testing.assert_array_equal(mine[0], other[0])
            np.testing.assert_array_equal(mine[1], other[1])
        for mine, other in zip(found.scores[0], wanted.scores[0], strict=True):
            np.testing.assert_array_equal(mine, other)


def test_the_greedy_choice_follows_the_highest_logit_at_each_token(model: ToyModel) -> None:
    for first in range(20):
        ids, text = [first, 32], b""
        while True:
            row = model.executor.random_logits(ids)
            rest = [word.encode()[len(text) :] for word in WORDS if word.encode().startswith(text)]
            allowed = [i for i, piece in enumerate(PIECES) if any(end.startswith(piece) for end in rest)]
            ids.append(max([*allowed, *([EOS] if b"" in rest else [])], key=lambda i: row[i]))
            if ids[-1] == EOS:
                break
            text += PIECES[ids[-1]]
        assert run(model, [first, 32], choices=WORDS).sequences[0].tolist() == ids


def test_real_logits_in_float32(tmp_path: Path) -> None:
    with AutoModelForCausalLM.from_pretrained(write_model(tmp_path), threads=2) as lm:
        for option, texts in LANGUAGES.values():
            for how in ("greedy", "sampling", "only repetition"):
                found = lm.generate(PROMPT, max_new_tokens=40, **option, **HOW[how])
                processor = only(texts, len(PROMPT))
                wanted = lm.generate(PROMPT, max_new_tokens=40, logits_processor=processor, **HOW[how])
                assert found.tolist() == wanted.tolist()
                assert text_of(found[len(PROMPT) :].tolist()) in texts


# -- other languages --------------------------------------------------------------------------------------------------

REGEXES = [
    r"[a-z]{3,8}@[a-z]{2,5}\.(com|org)",
    r"(19|20)[0-9]{2}-(0[1-9]|1[0-2])-[0-3][0-9]",
    r"[+-]?[0-9]{1,6}(\.[0-9]{1,4})?",
    r"(?i:yes|no)(, (?i:yes|no)){0,3}\.",
    r"[^\x00-\x7f]{1,6}",
    r"([a-z]+ ){1,2}[a-z]+\n?",
    r"(?s).{1,5}",
]


@pytest.mark.parametrize("regex", REGEXES)
@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_a_whole_text_matches(model: ToyModel, regex: str, seed: int | None) -> None:
    how = {} if seed is None else {"do_sample": True, "seed": seed, "top_k": 0}
    found = run(model, regex=regex, max_new_tokens=200, logit_bias={EOS: 2.0}, **how)
    if found.finish_reasons == ["eos"]:
        assert found.sequences[0][-1] == EOS
        assert re.fullmatch(regex, new_text(found))
    else:  # the expression has no longest text
        assert "+" in regex
        assert found.finish_reasons == ["length"]


POINT = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 8, "pattern": "^[a-z]+$"},
        "x": {"type": "integer", "minimum": -5, "maximum": 12},
        "kind": {"enum": ["one", "two", 3]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
        "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/inner"}]},
    },
    "required": ["name", "x", "kind", "tags", "next"],
    "additionalProperties": False,
    "$defs": {"inner": {"type": "object", "properties": {"y": {"const": 1}}, "additionalProperties": False}},
}


@pytest.mark.parametrize("seed", range(6))
def test_json_of_a_schema(model: ToyModel, seed: int) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is in the extra test")
    for schema in (POINT, json.dumps(POINT)):
        found = run(model, json_schema=schema, max_new_tokens=250, do_sample=True, seed=seed)
        assert found.finish_reasons == ["eos"]
        value = json.loads(new_text(found))
        jsonschema.validate(value, POINT)
        assert list(value) == list(POINT["properties"])  # type: ignore[call-overload]


def test_json_of_a_pydantic_model(model: ToyModel) -> None:
    pydantic = pytest.importorskip("pydantic", reason="pydantic is in the extra test")

    class Item(pydantic.BaseModel, extra="forbid"):  # type: ignore[misc, name-defined]
        n: int = pydantic.Field(ge=0, le=99)
        flag: bool

    class Order(pydantic.BaseModel, extra="forbid"):  # type: ignore[misc, name-defined]
        items: list[Item] = pydantic.Field(min_length=1, max_length=2)
        note: None = None

    for seed in range(4):
        found = run(model, json_schema=Order, max_new_tokens=250, do_sample=True, seed=seed)
        assert found.finish_reasons == ["eos"]
        assert 1 <= len(Order.model_validate_json(new_text(found)).items) <= 2


def test_any_json_object_has_no_endless_white_space(model: ToyModel) -> None:
    """At most one space stands between two parts."""
    ends = {ord(c): 6.0 for c in '"}],:'}
    n_whole = 0
    for seed in range(8):
        found = run(
            model, json_schema={"type": "object"}, max_new_tokens=250, do_sample=True, seed=seed,
            logit_bias={**ends, ord(" "): 8.0, ord("\n"): 8.0},
        )  # fmt: skip
        text = new_text(found)
        assert text.startswith("{")
        outside = re.sub(r'"(\\.|[^"\\])*("|$)', "x", text)
        assert "  " not in outside
        assert "\n" not in outside
        if found.finish_reasons == ["eos"]:
            n_whole += 1
            assert isinstance(json.loads(text), dict)
    assert n_whole > 0


def test_own_white_space_of_a_schema(model: ToyModel) -> None:
    schema = {"type": "array", "items": {"const": 1}, "minItems": 3, "maxItems": 3}
    compact = {**schema, "x-guidance": {"whitespace_flexible": False}}
    assert new_text(run(model, json_schema=compact, logit_bias={32: 50.0})) == "[1,1,1]"
    assert new_text(run(model, json_schema=schema, logit_bias={32: 50.0})) == "[ 1 , 1 , 1 ]"


# -- the end of a text ------------------------------------------------------------------------------------------------


def test_the_limit_of_tokens_ends_a_text_before_it_is_complete(model: ToyModel) -> None:
    found = run(model, regex="[ab]{9}", max_new_tokens=4)
    assert found.finish_reasons == ["length"]
    assert re.fullmatch("[ab]{4,8}", new_text(found))


def test_stop_strings_end_a_constrained_text(model: ToyModel) -> None:
    found = run(model, regex="[ab]{6}X[ab]{3}", stop_strings=["X"])
    assert found.finish_reasons == ["stop_string"]
    assert re.fullmatch("[ab]{6}", found.texts[0])


def test_ids_that_end_a_text_are_never_part_of_it(model: ToyModel) -> None:
    """Without this, the letter would end the text before it is complete."""
    found = run(model, regex="(a|hello){2}", eos_token_id=[ord("a"), EOS], logit_bias={ord("a"): 50.0})
    assert found.sequences[0].tolist()[-1] == ord("a")
    assert text_of(found.sequences[0].tolist()[len(PROMPT) : -1]) == "hellohello"
    assert found.finish_reasons == ["eos"]


def test_special_tokens_match_no_text(model: ToyModel) -> None:
    name = model.tokenizer.raw.id_to_token(EOS)  # type: ignore[union-attr]
    found = run(model, choices=[f"a{name}b"], logit_bias={EOS: 50.0})
    assert found.finish_reasons == ["eos"]
    assert new_text(found) == f"a{name}b"
    assert found.sequences[0].tolist().count(EOS) == 1


# -- how texts are drawn ----------------------------------------------------------------------------------------------

MIXED: list[dict[str, Any]] = [
    {"regex": r"[a-z]{4,9}\."},
    {},
    {"choices": WORDS, "do_sample": True, "seed": 4},
    {"json_schema": POINT, "do_sample": True, "seed": 9},
    {"regex": r"[0-9]{3}", "repetition_penalty": 1.4},
    {"do_sample": True, "seed": 2, "top_k": 5},
    {"grammar": 'root ::= "a" [b-f]{3,9}', "best_of": 3, "do_sample": True, "seed": 8},
]


@pytest.mark.parametrize("max_batch_size", [1, 3, 32])
def test_prompts_with_constraints_of_their_own_are_the_same_as_alone(tmp_path: Path, max_batch_size: int) -> None:
    prompts = [PROMPT * (1 + i) for i in range(len(MIXED))]
    with AutoModelForCausalLM.from_pretrained(write_model(tmp_path), threads=2) as lm:
        alone = [run(lm, prompt, **options) for prompt, options in zip(prompts, MIXED, strict=True)]
        found = run(lm, prompts, generation_config=MIXED, max_batch_size=max_batch_size)  # type: ignore[arg-type]
        for i, one in enumerate(alone):
            assert found.sequences[i].tolist() == one.sequences[0].tolist()
            assert found.logprobs[i].tolist() == one.logprobs[0].tolist()
            assert found.finish_reasons[i] == one.finish_reasons[0]
        assert re.fullmatch(r"[a-z]{4,9}\.", text_of(found.sequences[0].tolist()[len(prompts[0]) :]))


def test_several_texts_of_a_prompt(model: ToyModel) -> None:
    found = run(model, regex="[a-d]{5}", num_return_sequences=6, do_sample=True, seed=1)
    texts = [new_text(found, i) for i in range(6)]
    assert all(re.fullmatch("[a-d]{5}", text) for text in texts)
    assert len(set(texts)) > 1
    for text, seed in zip(texts, found.seeds, strict=True):
        assert new_text(run(model, regex="[a-d]{5}", do_sample=True, seed=seed)) == text


def test_streams_and_tasks_give_the_same_text(tmp_path: Path) -> None:
    options: dict[str, Any] = {"json_schema": POINT, "do_sample": True, "seed": 3, "max_new_tokens": 250}
    with AutoModelForCausalLM.from_pretrained(write_model(tmp_path)) as lm:
        ids = lm.generate(PROMPT, **options)
        text = text_of(ids[len(PROMPT) :].tolist())
        json.loads(text)
        with lm.stream(PROMPT, **options) as stream:
            assert "".join(stream) == text
        assert stream.finish_reason == "eos"

        async def main() -> tuple[str, Any]:
            pieces = [piece async for piece in lm.astream(PROMPT, **options)]
            return "".join(pieces), await lm.agenerate(PROMPT, **options)

        streamed, generated = asyncio.run(main())
        assert streamed == text
        assert generated.tolist() == ids.tolist()
        with lm.stream(PROMPT, **options) as stopped:
            next(stopped)
        assert lm.generate(PROMPT, **options).tolist() == ids.tolist()


def test_without_a_best_logit_the_lowest_allowed_id_is_drawn(model: ToyModel) -> None:
    """nan="propagate" promises a token for any logits."""
    model.executor.logits_of = lambda ids: np.full(model.executor.program.values[0].width, np.nan)
    assert new_text(run(model, regex="[c-f]{2}", nan="propagate")) == "cc"
    with contextlib.closing(model.engine), pytest.raises(Exception, match="expected finite numbers"):
        run(model, regex="[c-f]{2}")


# -- tokenizers -------------------------------------------------------------------------------------------------------


def llama_tokenizer() -> Tokenizer:
    from tokenizers import AddedToken, decoders, models
    from tokenizers import Tokenizer as RawTokenizer

    words = [
        "▁",
        "▁yes",
        "yes",
        "▁no",
        "no",
        "▁the",
        "é",
        *"abcdefghijklmnopqrstuvwxyz",
        *(f"<0x{i:02X}>" for i in range(256)),
    ]
    raw = RawTokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="a"))
    raw.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    raw.decoder = decoders.Sequence(LLAMA)
    return Tokenizer(raw, TokenizerOptions())


@pytest.mark.parametrize("kind", ["Llama", "Metaspace"])
def test_tokens_that_lose_a_space_at_the_beginning(kind: str, tmp_path: Path) -> None:
    """The text that the tokenizer decodes matches, after a text and after special tokens only."""
    from fastattn.tokenizer import load_tokenizer

    tokenizer = llama_tokenizer() if kind == "Llama" else load_tokenizer(write_metaspace(tmp_path))
    assert tokenizer is not None
    end, word = tokenizer.raw.token_to_id("</s>"), tokenizer.raw.token_to_id("▁the")
    model = ToyModel(tokenizer)
    model.eos_token_ids = (end,)
    for prompt in ([word], [end], [word, end]):
        before = tokenizer.decode(prompt, skip_special_tokens=True)
        for regex in ("[a-z]{2,4}", "[a-z]{1,3}( the){1,2}", "é[a-z ]{2}é") + ((" ?the",) if before else ()):
            for seed in range(12):
                found = run(model, prompt, regex=regex, do_sample=True, seed=seed)
                text = tokenizer.decode(found.sequences[0].tolist(), skip_special_tokens=True)[len(before) :]
                assert found.finish_reasons == ["eos"]
                assert re.fullmatch(regex, text), (prompt, regex, text)
    with pytest.raises(InputError, match="regex: expected a regular expression for a text that begins without a space"):
        run(model, [end], regex=" the")


def test_a_tokenizer_that_cannot_spell_the_text(tmp_path: Path) -> None:
    from fastattn.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(write_metaspace(tmp_path))
    assert tokenizer is not None
    model = ToyModel(tokenizer)
    model.eos_token_ids = (tokenizer.raw.token_to_id("</s>"),)
    with pytest.raises(
        InputError, match=r"json_schema: expected a JSON schema that tokens of the tokenizer can .* 0 new"
    ):
        run(model, [5], json_schema={"type": "object"})
    with pytest.raises(InputError, match=r"regex: expected a regular expression that tokens .* after 1 new tokens"):
        run(model, [5], regex="a{1}7")
    assert len(run(model, [5], regex="a").sequences[0]) == 3


def test_texts_are_not_cleaned_up(tmp_path: Path) -> None:
    """A space before a full stop would be removed, and the text would not match."""
    from fastattn.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(write_metaspace(tmp_path))
    assert tokenizer is not None
    cleaning = Tokenizer(tokenizer.raw, TokenizerOptions(clean_up_tokenization_spaces=True))
    model = ToyModel(cleaning)
    model.eos_token_ids = (tokenizer.raw.token_to_id("</s>"),)
    word = tokenizer.raw.token_to_id("▁the")
    assert cleaning.cleans_up()
    found = run(model, [word], regex=r" good \.", stop_strings=["#"])
    assert found.texts == [" good ."]
    assert run(model, [word], regex=r" good \.", stop_strings=["#"], tokenizer=tokenizer).texts == [" good ."]
