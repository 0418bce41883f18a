"""The prompts of a model: texts that are put before each input, by name."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from fastattn.checks import check_str, quote
from fastattn.errors import DTypeError, InputError
from fastattn.tasks.sentence.text_model import Pairs
from fastattn.tokenizer import check_text

_log = logging.getLogger("fastattn")


def check_prompts(prompts: object) -> dict[str, str | None]:
    """Check a caller's prompts: names to texts; None is no text. Raises DTypeError, InputError."""
    if not isinstance(prompts, Mapping):
        raise DTypeError(f"prompts: expected a dictionary of names to texts, got {type(prompts).__name__}")
    for name, text in prompts.items():
        check_str("prompts: a name", name)
        if text is not None:
            check_text(text, f"prompts[{quote(name)}]")
    return dict(prompts)


def merged_prompts(given: Mapping[str, str | None], saved: Mapping[str, str | None]) -> dict[str, str]:
    """Return the caller's prompts and those of the folder; the caller's take precedence, unless they are None."""
    prompts = dict(given)
    for key, text in saved.items():
        if prompts.get(key) is None:
            prompts[key] = text
    return {key: text or "" for key, text in prompts.items()}


def check_prompt_name(where: str, name: object, prompts: Mapping[str, str]) -> str | None:
    """Return the name of a prompt, or None. Raises DTypeError, InputError."""
    if name is None:
        return None
    if check_str(where, name) not in prompts:
        raise InputError(f"{where}: expected one of the prompts {quote(sorted(prompts))}, got {quote(name)}")
    return str(name)


def resolve_prompt(
    method: str, prompts: Mapping[str, str], default_name: str | None, prompt: str | None, prompt_name: str | None
) -> str:
    """Return the text to put before each text: the prompt, the prompt with that name, or the default prompt.

    method: the name of the method, for a warning. Raises DTypeError, InputError.
    """
    if prompt is not None:
        if prompt_name is not None:
            _log.warning("%s: prompt is given, so prompt_name %s is ignored", method, quote(prompt_name))
        return prompt
    which, name = ("default_prompt_name", default_name) if prompt_name is None else ("prompt_name", prompt_name)
    if check_prompt_name(which, name, prompts) is None or name is None:
        return ""
    return check_text(prompts[name], f"prompts[{quote(name)}]")


def with_prompt(prompt: str, texts: Pairs) -> Pairs:
    """Return the texts with a prompt before each; in a pair, before the first text."""
    return [(prompt + first, second) for first, second in texts]
