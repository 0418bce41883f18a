"""Chats in pipeline("text-generation"): the prompts, texts and shapes of transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fastattn
from fastattn.errors import ConfigError, DTypeError, InputError
from fastattn.tasks.text_generation import TextGenerationPipeline
from tests.tasks.tiny import write_gpt2_model

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("jinja2")
TEMPLATE = (
    "{% if tools %}[{{ tools | length }} tools]{% endif %}{% if documents %}[{{ documents[0].text }}]{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
USER = {"role": "user", "content": "the cat"}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [USER],
    "system": [{"role": "system", "content": "be brief"}, USER],
    "turns": [USER, {"role": "assistant", "content": "sat"}, {"role": "user", "content": "on?"}],
    "prefill": [USER, {"role": "assistant", "content": "It sat"}],
}
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 7}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_gpt2_model(tmp_path_factory.mktemp("gpt2"))
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def ours(folder: Path) -> Iterator[TextGenerationPipeline]:
    with fastattn.pipeline("text-generation", folder, threads=1) as found:
        yield found


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return transformers.pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"return_full_text": False},
        {"continue_final_message": True},
        {"continue_final_message": False},
        {"num_beams": 3, "num_return_sequences": 2},
        {"skip_special_tokens": False},
        {"documents": [{"title": "t", "text": "d"}]},
        {"repetition_penalty": 1.5},
    ],
)
@pytest.mark.parametrize("name", CHATS)
def test_a_chat_gives_what_transformers_gives(
    ours: TextGenerationPipeline, theirs: Any, name: str, options: dict[str, Any]
) -> None:
    given = {**GREEDY, **options}
    assert ours(CHATS[name], **given) == theirs(CHATS[name], **given)


@pytest.mark.filterwarnings("ignore")
def test_lists_and_iterators_of_chats(ours: TextGenerationPipeline, theirs: Any) -> None:
    chats = list(CHATS.values())
    wanted = theirs(chats, **GREEDY)
    assert ours(chats, **GREEDY) == wanted
    assert list(ours(iter(chats), **GREEDY)) == wanted
    assert ours([tuple(chat) for chat in chats], **GREEDY) == wanted
    ids = theirs(chats[1], return_tensors=True, **GREEDY)[0]["generated_token_ids"]
    assert ours(chats[1], return_tensors=True, **GREEDY) == [{"generated_token_ids": list(ids)}]
    json.dumps(wanted)
    mixed: Any = ours([chats[0], "the cat"], **GREEDY)
    assert mixed == [ours(chats[0], **GREEDY), ours("the cat", **GREEDY)]


def test_the_chat_of_the_caller_is_unchanged(ours: TextGenerationPipeline) -> None:
    chat = [dict(message) for message in CHATS["prefill"]]
    found: Any = ours(chat, **GREEDY)
    found[0]["generated_text"][0]["content"] = "changed"
    assert chat == CHATS["prefill"]


def test_tools_reach_the_template(ours: TextGenerationPipeline, folder: Path) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    found: Any = ours(CHATS["one"], return_tensors=True, tools=[tool, tool], **GREEDY)
    text = ours.tokenizer.decode(found[0]["generated_token_ids"])
    assert text.startswith("[2 tools]user: the cat")


@pytest.mark.parametrize(
    ("inputs", "options", "error", "message"),
    [
        ([USER], {"prefix": "a"}, InputError, "prefix: expected None with a chat, got 'a'"),
        ("text", {"tools": [{}]}, InputError, "tools: expected None with a text"),
        ("text", {"continue_final_message": False}, InputError, "continue_final_message: expected None with a text"),
        ([USER], {"continue_final_message": 1}, DTypeError, "continue_final_message: expected True or False"),
        ([{"role": "user"}], {}, InputError, r"text_inputs\[0\]: expected a message with a role and content"),
        ([[USER], [{"content": "a"}]], {}, InputError, r"text_inputs\[1\]\[0\]: expected a role"),
        ([USER, "a"], {}, DTypeError, r"text_inputs\[1\]: expected a mapping with role and content, got str"),
        (USER, {}, DTypeError, "text_inputs: expected str, got a chat message"),
        (
            [{"role": "assistant", "content": [{"type": "text", "text": "a"}]}],
            {},
            InputError,
            "text_inputs: expected text",
        ),
    ],
)
def test_chats_that_are_refused(
    ours: TextGenerationPipeline, inputs: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{message}"):
        ours(inputs, **GREEDY, **options)


def test_a_model_without_a_template(tmp_path: Path) -> None:
    with (
        fastattn.pipeline("text-generation", write_gpt2_model(tmp_path), threads=1) as found,
        pytest.raises(ConfigError, match="expected a tokenizer with a chat_template, got one without"),
    ):
        found([USER], **GREEDY)
