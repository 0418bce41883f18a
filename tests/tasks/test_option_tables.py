"""Options are written once: the tables of options, the keyword arguments and the flags of the command agree."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from typing import Any

import pytest

import fastattn
from fastattn.api import calls, load_keywords
from fastattn.api.load_args import HubArgs, LoadArgs, ModelArgs, RunArgs
from fastattn.api.load_options import HubOptions, LoadOptions
from fastattn.cli.arguments import _OF_TEXTS, build_parser
from fastattn.cli.flags import add_flags, flags_of, given_options
from fastattn.cli.parsing import CommandParser
from fastattn.errors import DTypeError, InputError
from fastattn.generation.generate_args import GenerationArgs
from fastattn.generation.generation_keywords import KEYWORDS
from fastattn.generation.options import OPTIONS, GenerationOptions
from fastattn.options import Choice, Count, Each, Flag, Named, Number, Pair, Text, option, options_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A table with one option of each kind."""

    n_items: int = option(1, Count(0, 9), flag=Flag(metavar="N", help="items (2)", default=2))
    share: float | None = option(None, Number(0.0, 1.0), flag=Flag(names=("-s", "--the-share"), help="share"))
    kind: str = option("a", Choice("a", "b"), flag=Flag(help="kind"))
    words: str | None = option(None, flag=Flag(values=Text(1, 3), help="words", repeatable=True))
    mode: bool | str = option(False, flag=Flag(values=Named({"on": True, "auto": "auto"}), help="mode"))
    ids: tuple[int, ...] | None = option(None, flag=Flag(values=Each(Count(0, 9)), help="ids"))
    rows: tuple[Any, ...] | None = option(None, flag=Flag(values=Each(Count()), help="rows", repeatable=True))
    bias: tuple[Any, ...] | None = option(None, flag=Flag(values=Pair(Count(), Number()), help="bias", repeatable=True))
    biases: tuple[Any, ...] | None = option(
        None, flag=Flag(values=Pair(Each(Count()), Number()), help="biases", repeatable=True)
    )
    decay: tuple[Any, ...] | None = option(
        None, flag=Flag(values=Pair(Count(), Number(0.0), separator=","), help="decay")
    )
    hidden: int = option(0, Count())


def parse(*words: str) -> argparse.Namespace:
    parser = CommandParser(prog="example")
    add_flags(parser, Example)
    return parser.parse_args(words)


def test_a_new_option_gets_its_flag_from_its_table() -> None:
    none = ("share", "kind", "words", "mode", "ids", "rows", "bias", "biases", "decay")
    assert given_options(Example, parse()) == {"n_items": 2, **dict.fromkeys(none)}
    found = given_options(Example, parse("--n-items", "3", "-s", "0.5", "--kind", "b", "--words", "x", "--words", "y"))
    wanted = {"n_items": 3, "share": 0.5, "kind": "b", "words": ["x", "y"]}
    assert {name: found[name] for name in wanted} == wanted


def test_flags_of_lists_and_pairs() -> None:
    words = ("--mode", "auto", "--ids", "1, 2", "--rows", "3", "--rows", "4,5", "--bias", "7=-1.5", "--bias", "8=2")
    found = given_options(Example, parse(*words, "--biases", "1,2=3", "--decay", "4,1.5"))
    assert (found["mode"], found["ids"], found["rows"]) == ("auto", [1, 2], [[3], [4, 5]])
    assert (found["bias"], found["biases"], found["decay"]) == ({7: -1.5, 8: 2.0}, [([1, 2], 3.0)], (4, 1.5))
    assert given_options(Example, parse("--mode", "on"))["mode"] is True
    with pytest.raises(InputError, match=r"^--bias: expected one value for 7, got several"):
        given_options(Example, parse("--bias", "7=1", "--bias", "7=2"))


@pytest.mark.parametrize(
    "words",
    [
        ("--n-items", "10"), ("--the-share", "2"), ("--kind", "c"), ("--words", "four"), ("--hidden", "1"),
        ("--mode", "off"), ("--ids", "10"), ("--ids", "1,,2"), ("--ids", ""), ("--bias", "7"), ("--bias", "x=1"),
        ("--bias", "1=nan"), ("--decay", "1"), ("--decay", "1,-1"),
    ],
)  # fmt: skip
def test_the_values_of_a_flag_are_those_of_its_option(words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit):
        parse(*words)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [("n_items", 10, InputError), ("share", "a", DTypeError), ("kind", "c", InputError), ("hidden", -1, InputError)],
)
def test_checks_of_a_table(name: str, value: Any, error: type[Exception]) -> None:
    check = options_of(Example)[name].check
    assert check is not None
    with pytest.raises(error, match=f"^{name}: expected"):
        check(name, value)


def test_every_option_of_generation_has_a_type() -> None:
    """The other arguments are keywords of transformers."""
    own = set(GenerationArgs.__annotations__) | {"num_return_sequences"}  # it decides the type of the result
    assert set(OPTIONS) == {field.name for field in fields(GenerationOptions)}
    assert set(OPTIONS) <= own
    assert own - set(OPTIONS) - set(KEYWORDS) == {"generation_config"}


def test_every_option_of_generation_is_described() -> None:
    for name in OPTIONS:
        assert f"{name}:" in str(GenerationOptions.__doc__) or f"{name}," in str(GenerationOptions.__doc__), name


def test_every_option_of_generation_has_a_flag_or_a_reason() -> None:
    """Give a new option a `flag`, or say with `no_flag` why `fastattn generate` has none."""
    for name, entry in OPTIONS.items():
        assert (entry.flag is None) == (entry.no_flag is not None), name
        assert entry.flag is not None or entry.no_flag, name


def test_the_options_of_a_chat() -> None:
    """`fastattn chat` has all flags except those that a conversation cannot have."""
    names = {action.dest for action in build_parser()[1]["chat"]._actions}
    assert set(flags_of(GenerationOptions)) - names == set(_OF_TEXTS)
    assert not set(_OF_TEXTS) & names


def test_every_option_of_loading_has_a_type_and_a_text() -> None:
    assert set(options_of(LoadOptions)) <= set(LoadArgs.__annotations__)
    assert {field.name for field in fields(HubOptions)} == {*HubArgs.__annotations__, "subfolder", "gguf_file"}
    text = str(fastattn.AutoModel.from_pretrained.__doc__)
    ignored = {name for name in ModelArgs.__annotations__ if name in load_keywords._KEYWORDS}
    for name in set(ModelArgs.__annotations__) - ignored - {"pretrained_model_name_or_path"}:
        assert name in text, name
    assert "{options}" not in text


def test_every_keyword_that_may_be_given_has_a_type() -> None:
    """Keywords with values that change nothing; the others may only be None."""
    given = {name for name, entry in load_keywords._KEYWORDS.items() if entry.check is not None or entry.values}
    assert given <= set(ModelArgs.__annotations__)


def test_every_keyword_of_a_call_has_a_type() -> None:
    typed = set(calls.CausalLMCallArgs.__annotations__)
    assert set(calls._KEYWORDS) <= set(calls.OtherArgs.__annotations__) <= typed
    assert typed <= {*calls._KEYWORDS, *calls._NAMES}


@pytest.mark.parametrize("command", ["generate", "classify", "embed", "rerank"])
def test_a_command_has_the_flags_of_its_tables(command: str) -> None:
    parser = build_parser()[1][command]
    names = {action.dest for action in parser._actions}
    missing = {"generate": set(), "classify": {"head_dtype"}}.get(command, {"head_dtype", "adapter"})
    assert set(flags_of(LoadOptions)) - names == missing
    assert set(RunArgs.__annotations__) <= names
    assert (set(flags_of(GenerationOptions)) <= names) == (command == "generate")


def test_flags_accept_what_options_accept() -> None:
    """The default of each flag is a valid value of its option."""
    for name, flag in flags_of(GenerationOptions).items():
        GenerationOptions(do_sample=True, **{name: flag.default})
