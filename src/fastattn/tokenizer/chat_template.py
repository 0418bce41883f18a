"""Chat templates: Jinja programs of a checkpoint that turn messages into a prompt, run in Jinja's sandbox.

A template sees only plain data: copies of the messages made of dict, list, str, int, float, bool and None. It can read
no file and no attribute that starts with an underscore. jinja2 is an extra: `pip install "fastattn[chat]"`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from fastattn.checks import quote
from fastattn.errors import ConfigError, DTypeError, FastattnError, InputError

if TYPE_CHECKING:
    from jinja2 import Template

    from fastattn.tokenizer.folder import Folder

FILE_NAME = "chat_template.jinja"
MAX_TEMPLATE_CHARS = 1_000_000
_OLDEST = (3, 1, 6)  # older versions have known ways out of the sandbox
_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
_MAX_DEPTH = 32


def read_template(folder: Folder) -> str | None:
    """Return the chat template of a folder: chat_template.jinja, or else that of tokenizer_config.json.

    Of several named templates it is the one named "default". Raises ModelFormatError, ConfigError.
    """
    found: Any = folder.text(FILE_NAME)
    if found is None:
        found = folder.json("tokenizer_config.json").get("chat_template")
    if isinstance(found, list):
        named = {item.get("name"): item.get("template") for item in found if isinstance(item, Mapping)}
        found = named.get("default")
    elif isinstance(found, Mapping):
        found = found.get("default")
    if found is not None and (not isinstance(found, str) or len(found) > MAX_TEMPLATE_CHARS):
        raise ConfigError(
            f"{folder.directory}: chat_template: expected at most {MAX_TEMPLATE_CHARS} characters of text"
        )
    return found


def render(
    template: str,
    messages: object,
    *,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
    tools: object = None,
    documents: object = None,
    others: Mapping[str, Any] | None = None,
) -> str:
    """Return the prompt of a conversation.

    messages: mappings with "role" and "content". Content is text, or a list of parts such as {"type": "text", "text":
    "Hi"}. A template that writes such parts gets them; for any other template their texts are joined with line breaks.
    continue_final_message: the prompt ends inside the last message.
    others: further variables, such as special tokens. Raises ConfigError for a template that is invalid or does
    something that the sandbox forbids; InputError, DTypeError for messages that it rejects.
    """
    compiled, chat = _compile(template), read_messages(messages)
    variables = {
        **_plain(dict(others or {}), "chat_template"),
        "tools": _plain(tools, "tools"),
        "documents": _plain(documents, "documents"),
        "add_generation_prompt": add_generation_prompt,
    }
    if any(map(_has_parts, chat)):
        chat = _without_parts(compiled, chat, variables)
    if continue_final_message:
        _mark_end(chat)
    from jinja2.exceptions import SecurityError, TemplateError

    try:
        text = compiled.render(**variables, messages=chat)
    except SecurityError as error:
        raise ConfigError(f"chat_template: {error}") from None
    except TemplateError as error:
        raise InputError(f"messages: the chat template rejects them: {error}") from None
    except FastattnError:
        raise
    except Exception as error:  # of any type: the template is a program
        raise InputError(f"messages: the chat template fails on them: {type(error).__name__}: {error}") from None
    return _cut(text) if continue_final_message else text


def read_messages(messages: object, name: str = "messages") -> list[dict[str, Any]]:
    """Return copies of the messages without the values that are None. Raises DTypeError, InputError."""
    if not isinstance(messages, (list, tuple)):
        raise DTypeError(f"{name}: expected a list of messages, got {type(messages).__name__}")
    chat = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise DTypeError(f"{name}[{i}]: expected a mapping with role and content, got {type(message).__name__}")
        plain = {key: value for key, value in _plain(message, f"{name}[{i}]").items() if value is not None}
        if not isinstance(plain.get("role"), str):
            raise InputError(f"{name}[{i}]: expected a role, such as 'user', got {quote(plain.get('role'))}")
        _check_parts(plain, f"{name}[{i}]")
        chat.append(plain)
    if not chat:
        raise InputError(f"{name}: expected at least one message, got none")
    return chat


def _has_parts(message: Mapping[str, Any]) -> bool:
    """Return whether the content of a message is a list of parts, which have a type."""
    content = message.get("content")
    return isinstance(content, (list, tuple)) and any(isinstance(part, Mapping) and "type" in part for part in content)


def _check_parts(message: Mapping[str, Any], name: str) -> None:
    """Check that all parts of a message are text. Raises InputError."""
    if not _has_parts(message):
        return
    for i, part in enumerate(message["content"]):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text":
            found = quote(part) if kind is None else f"one of type {quote(kind)}"
            raise InputError(
                f"{name}: content[{i}]: expected a part of type 'text', got {found}; models here read text"
            )
        if not isinstance(part.get("text"), str):
            raise InputError(f'{name}: content[{i}]: expected "text" with a str, got {quote(part.get("text"))}')


def _without_parts(
    template: Template, chat: list[dict[str, Any]], variables: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return the messages with one text each where the template would not write the texts of the parts.

    To find out, the template is rendered with placeholder texts in the parts. The template writes them if they are in
    the prompt outside a list or mapping that Python or JSON formatted. Line breaks join the texts of a message, as in
    llama.cpp and vLLM.
    """
    probes: list[dict[str, Any]] = []
    for i, message in enumerate(chat):
        parts = [{"type": "text", "text": f"MESSAGE{i}PART{j}END"} for j in range(len(message.get("content") or ()))]
        probes.append({**message, "content": parts} if _has_parts(message) else message)
    try:
        prompt = template.render(**variables, messages=probes)
    except Exception:  # of any type: the template is a program
        prompt = ""
    return [
        {**message, "content": "\n".join(part["text"] for part in message["content"])}
        if _has_parts(message) and not all(_writes(prompt, part["text"]) for part in probe["content"])
        else message
        for message, probe in zip(chat, probes, strict=True)
    ]


def _writes(prompt: str, text: str) -> bool:
    """Return whether a prompt has a text, but not as a value of "text"."""
    return text in prompt and not re.search(rf"""['"]text['"]\s*:\s*['"]{text}""", prompt)


def _plain(value: Any, name: str, depth: int = 0) -> Any:
    """Return a copy that consists of plain data. Raises DTypeError, InputError."""
    if depth > _MAX_DEPTH:
        raise InputError(f"{name}: expected at most {_MAX_DEPTH} levels of lists and mappings, got more")
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {_key(key, name): _plain(item, name, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, name, depth + 1) for item in value]
    raise DTypeError(f"{name}: expected text, numbers, lists and mappings, got {type(value).__name__}")


def _key(key: Any, name: str) -> str:
    if not isinstance(key, str):
        raise DTypeError(f"{name}: expected text as keys, got {quote(key)}")
    return str.__str__(key)


def _mark_end(chat: Sequence[dict[str, Any]]) -> None:
    """Put a tag at the end of the last message, so that its place in the prompt can be found."""
    last, content = chat[-1], chat[-1].get("content")
    if isinstance(content, str):
        last["content"] = content + _TAG
        return
    for part in reversed(content if isinstance(content, list) else []):
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            part["text"] += _TAG
            return
    raise InputError("continue_final_message: expected text in the last message, got none")


def _cut(text: str) -> str:
    """Return the prompt up to the tag, without the white space that the template removed from the message."""
    at = text.rfind(_TAG.strip())
    if at < 0:
        raise InputError("continue_final_message: expected a chat template that writes the last message, got another")
    return text[:at] if text[at : at + len(_TAG)] == _TAG else text[:at].rstrip()


@lru_cache(maxsize=16)
def _compile(template: str) -> Template:
    """Compile a template as transformers does. Raises ConfigError."""
    try:
        import jinja2
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise ConfigError('chat_template: expected jinja2, found none; pip install "fastattn[chat]"') from None
    if tuple(int(part) for part in jinja2.__version__.split(".")[:3]) < _OLDEST:
        raise ConfigError(f"chat_template: expected jinja2 3.1.6 or later, found {jinja2.__version__}")

    class Generation(Extension):
        """The tag that marks what the model writes; it changes nothing in the prompt."""

        tags = {"generation"}  # noqa: RUF012 (declared by jinja2 as a set of the instance)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    class Names(jinja2.utils.Namespace):
        """A namespace without names that start with an underscore."""

        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise jinja2.exceptions.SecurityError(f"a template may not set {quote(name)}")
            super().__setitem__(name, value)

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, **options: Any) -> str:
        known = {name: options[name] for name in ("separators", "sort_keys") if name in options}
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **known)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = _now
    environment.globals["namespace"] = Names
    try:
        return environment.from_string(template)
    except jinja2.exceptions.TemplateError as error:
        raise ConfigError(f"chat_template: {error}") from None


def _now(form: str) -> str:
    from datetime import datetime

    return datetime.now().strftime(form)
