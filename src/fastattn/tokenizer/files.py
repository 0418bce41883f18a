"""Loads the tokenizer of a folder: tokenizer.json, or the older files of a known tokenizer class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastattn.checkpoint.file_names import VOCABULARY_FILES
from fastattn.checkpoint.gguf.checkpoint import is_gguf
from fastattn.checks import quote
from fastattn.errors import InputError
from fastattn.settings import Settings
from fastattn.tokenizer.chat_template import read_template
from fastattn.tokenizer.folder import Folder
from fastattn.tokenizer.tokenizer import Tokenizer


def has_tokenizer(directory: Path) -> bool:
    """Return whether a folder or GGUF file has a tokenizer, even if `load_tokenizer` cannot read it.

    Raises ModelFormatError for a malformed GGUF file.
    """
    if is_gguf(directory):
        from fastattn.tokenizer.gguf import has_gguf_tokenizer

        return has_gguf_tokenizer(directory)
    folder = Folder(directory)
    alone = [name for name in VOCABULARY_FILES if name not in ("vocab.json", "merges.txt")]
    return any(folder.has(name) for name in alone) or folder.has("vocab.json", "merges.txt")


def _open(directory: Path) -> Folder:
    if not is_gguf(directory):
        return Folder(directory)
    from fastattn.tokenizer.gguf import GgufFolder

    return GgufFolder(directory)


def load_tokenizer(directory: Path, overrides: Mapping[str, Any] | None = None) -> Tokenizer:
    """Load the tokenizer of a local directory or GGUF file. Raises ConfigError, ModelFormatError.

    overrides: type-checked values that replace those of the files. Raises InputError for one that the tokenizer does
    not use.
    """
    from fastattn.tokenizer.health import check_health  # these import the tokenizers library
    from fastattn.tokenizer.load import load_raw

    given = dict(overrides or {})
    with _open(directory) as folder:
        values = {**folder.json("tokenizer_config.json"), **given}
        settings = Settings(folder.path("tokenizer_config.json"), values, overrides=given)
        raw, options, path = load_raw(folder, settings)
        for name in given:
            if name not in settings.read:
                kind = f" ({options.class_name})" if options.class_name else ""
                raise InputError(f"{name}: the tokenizer of {quote(str(directory))}{kind} does not use this setting")
        check_health(raw, folder, path)
        template = read_template(folder)
        folder.check_unchanged()
    return Tokenizer(raw, options if template is None else replace(options, chat_template=template))
