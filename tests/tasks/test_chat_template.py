"""Chat templates: transformers' prompts, and templates that must not do what they try."""

from __future__ import annotations

import copy
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

import fastattn
from fastattn.errors import ConfigError, DTypeError, InputError, ModelFormatError
from fastattn.tokenizer import load_tokenizer
from fastattn.tokenizer.chat_template import render
from tests.tasks.tiny import write_gpt2_model
from tests.tasks.tokenizers import write_gpt2

pytest.importorskip("jinja2")
CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": 'Hi <b>"é" & \n'},
    {"role": "assistant", "content": "Hello  "},
]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
TEMPLATES = {
    "chatml": "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "trim": "{{ bos_token }}{% for m in messages %}\n    {% if m.role == 'user' %}\n    [INST] {{ m.content | trim }}\n"
    "    {% elif m.role == 'assistant' %}\n    {{ m.content | trim }}{{ eos_token }}\n    {% endif %}\n{% endfor %}",
    "json": "{{ messages | tojson }}{{ tools | tojson(indent=2) if tools else '' }}{{ documents | tojson }}",
    "loop": "{% set ns = namespace(n=0) %}{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
    "{% set ns.n = ns.n + 1 %}{{ ns.n }}:{{ m['content'] }};{% if ns.n == 5 %}{% break %}{% endif %}{% endfor %}",
    "generation": "{% for m in messages %}{{ m.role }}:{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "variable": "{{ messages[0].content }}{{ more }}{{ more_of.a[1] }}",
}


@pytest.mark.torch
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(
    "how", [{}, {"add_generation_prompt": True}, {"tools": TOOLS}, {"continue_final_message": True}]
)
def test_prompts_are_those_of_transformers(name: str, how: dict[str, Any], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = write_gpt2(tmp_path)
    if name == "loop":
        (folder / "chat_template.jinja").write_text(TEMPLATES[name], encoding="utf-8")
    else:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": TEMPLATES[name]}))
    ours, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert ours.chat_template == theirs.chat_template == TEMPLATES[name]
    options: dict[str, Any] = {"more": "x", "more_of": {"a": [1, 2]}, **how}
    if name == "variable" and "continue_final_message" in how:
        with pytest.raises(InputError, match="continue_final_message: expected a chat template that writes the last"):
            ours.apply_chat_template(CHAT, tokenize=False, **options)
        return
    chat = copy.deepcopy(CHAT)
    if name == "json" and "continue_final_message" in how:  # transformers asks for "content" in the template's text
        assert ours.apply_chat_template(chat, tokenize=False, **options).endswith('"content": "Hello  ')
        return
    wanted = theirs.apply_chat_template(copy.deepcopy(CHAT), tokenize=False, **options)
    assert ours.apply_chat_template(chat, tokenize=False, **options) == wanted
    assert chat == CHAT
    assert ours.apply_chat_template([chat, chat], tokenize=False, **options) == [wanted, wanted]
    encoded = ours.apply_chat_template(chat, **options)
    assert list(encoded["input_ids"]) == list(theirs.apply_chat_template(copy.deepcopy(CHAT), **options)["input_ids"])
    assert ours.apply_chat_template(chat, return_dict=False, **options) == encoded["input_ids"]
    assert pickle.loads(pickle.dumps(ours)).chat_template == TEMPLATES[name]


def test_named_templates(tmp_path: Path) -> None:
    folder = write_gpt2(tmp_path)
    path = folder / "tokenizer_config.json"
    named = [{"name": "default", "template": "a{{ messages[0].content }}"}, {"name": "tool_use", "template": "b"}]
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": named}))
    assert load_tokenizer(folder).apply_chat_template(CHAT, tokenize=False) == "aBe brief."
    (folder / "chat_template.jinja").write_text("c")
    assert load_tokenizer(folder).apply_chat_template(CHAT, tokenize=False) == "c"
    assert load_tokenizer(folder).apply_chat_template(CHAT, chat_template="d", tokenize=False) == "d"


@pytest.mark.parametrize(
    ("template", "error", "message"),
    [
        ("{{ ''.__class__.__mro__ }}", ConfigError, "chat_template: access to attribute '__class__'"),
        ("{{ messages.append(1) }}", ConfigError, "chat_template: access to attribute 'append'"),
        ("{{ cycler.__init__.__globals__ }}", ConfigError, "chat_template: access to attribute '__init__'"),
        ("{% set n = namespace() %}{% set n._x = 1 %}", ConfigError, "chat_template: a template may not set '_x'"),
        ("{{ range(10**8) | length }}", InputError, "messages: the chat template fails on them: OverflowError"),
        ("{% include '/etc/passwd' %}", InputError, "messages: the chat template fails on them: TypeError"),
        (
            "{{ undefined_name.a }}",
            InputError,
            "messages: the chat template rejects them: 'undefined_name' is undefined",
        ),
        ("{{ raise_exception('No system role') }}", InputError, "messages: .* rejects them: No system role"),
        ("{% for %}", ConfigError, "chat_template: "),
        ("{{ 1 / 0 }}", InputError, "messages: .* fails on them: ZeroDivisionError"),
    ],
)
def test_templates_that_fail(template: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        render(template, CHAT)


@pytest.mark.parametrize(
    ("messages", "error", "message"),
    [
        ("Hi", DTypeError, "messages: expected a list of messages, got str"),
        ([], InputError, "messages: expected at least one message"),
        (["Hi"], DTypeError, r"messages\[0\]: expected a mapping"),
        ([{"content": "Hi"}], InputError, r"messages\[0\]: expected a role"),
        ([{"role": "user", "content": object()}], DTypeError, r"messages\[0\]: expected text, numbers, lists"),
        ([{"role": "user", 3: "a"}], DTypeError, r"messages\[0\]: expected text as keys"),
    ],
)
def test_messages_that_are_refused(messages: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        render("{{ messages }}", messages)
    deep: Any = "a"
    for _ in range(100):
        deep = [deep]
    with pytest.raises(InputError, match=r"messages\[0\]: expected at most 32 levels"):
        render("a", [{"role": "user", "content": deep}])


LISTS = """{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}
{%- for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}
{{- '\\n' }}{% endfor %}"""
USER_LISTS = LISTS.replace(
    "{% if m.content is string %}", "{% if m.role == 'system' %}{{ m.content | trim }}{% elif m.content is string %}"
)
PARTS = [
    {"role": "system", "content": [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}]},
    {"role": "user", "content": "Hi"},
    {"role": "user", "content": [{"type": "text", "text": "A"}, {"type": "text", "text": " b"}]},
]


def rendered(template: str, messages: Any, **options: Any) -> str:
    """Return the prompt, and check that transformers gives it for the same messages."""
    from transformers.utils.chat_template_utils import render_jinja_template

    wanted = render_jinja_template(conversations=[messages], chat_template=template, **options)[0][0]
    assert render(template, messages, **options) == wanted
    return wanted


def test_templates_that_write_parts_get_them() -> None:
    pytest.importorskip("transformers")
    assert rendered(LISTS, PARTS) == "<system>Be brief.Be kind.\n<user>Hi\n<user>A b\n"
    only = "{% for m in messages %}{% for part in m.content %}{{ part['text'] }}|{% endfor %}{% endfor %}"
    assert rendered(only, [PARTS[0], PARTS[2]]) == "Be brief.|Be kind.|A| b|"
    goes_on = rendered(LISTS, PARTS, continue_final_message=True)
    assert goes_on.endswith("<user>A b")


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}",
        "{% for m in messages %}{{ '<' + m.role + '>' + m.content + '\n' }}{% endfor %}",  # fails for a list
        "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}\n{% endfor %}",
        "{% for m in messages %}<{{ m.role }}>{{ m.content if m.content is string }}\n{% endfor %}",
        "{% for m in messages %}<{{ m.role }}>{% set c = m.content %}{{ c if c is string else c|list }}\n{% endfor %}",
    ],
)
def test_other_templates_get_the_texts_of_parts_in_lines(template: str) -> None:
    pytest.importorskip("transformers")
    copy_of = copy.deepcopy(PARTS)
    assert render(template, PARTS) == "<system>Be brief.\nBe kind.\n<user>Hi\n<user>A\n b\n"
    assert copy_of == PARTS
    goes_on = render(template, PARTS, continue_final_message=True)
    assert goes_on == "<system>Be brief.\nBe kind.\n<user>Hi\n<user>A\n b"
    as_text = [{**message, "content": "\n".join(part["text"] for part in message["content"])} for message in PARTS[::2]]
    assert render(template, PARTS[::2]) == rendered(template, as_text)


def test_a_template_that_writes_only_the_parts_of_the_user() -> None:
    assert render(USER_LISTS, PARTS) == "<system>Be brief.\nBe kind.\n<user>Hi\n<user>A b\n"


@pytest.mark.parametrize(
    ("part", "found"),
    [
        ({"type": "image_url", "image_url": {"url": "a"}}, "a part of type 'text', got one of type 'image_url'"),
        ({"type": "image"}, "a part of type 'text', got one of type 'image'"),
        ("Hi", "a part of type 'text', got 'Hi'"),
        ({"type": "text"}, '"text" with a str, got None'),
        ({"type": "text", "text": 3}, '"text" with a str, got 3'),
    ],
)
def test_parts_that_are_no_text(part: Any, found: str) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "a"}, part]}]
    with pytest.raises(InputError, match=re.escape(f"messages[1]: content[1]: expected {found}")):
        render(LISTS, messages)


def test_files_that_are_refused(tmp_path: Path) -> None:
    folder = write_gpt2(tmp_path)
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ModelFormatError, match="UTF-8"):
        load_tokenizer(folder)
    (folder / "chat_template.jinja").write_text("a" * 1_000_001)
    with pytest.raises(ConfigError, match="chat_template: expected at most 1000000 characters"):
        load_tokenizer(folder)


def test_the_report_of_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    folder = write_gpt2_model(tmp_path)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    report = fastattn.check_folder(folder)
    assert report.ok
    assert {entry.name: entry.used for entry in report.files}["chat_template.jinja"]
