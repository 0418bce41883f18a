"""Checks of a loaded tokenizer, for files that load but cannot be correct."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from fastattn.settings import Settings
from fastattn.tokenizer.folder import Folder
from fastattn.tokenizer.library import file_errors, is_library_error, is_panic

if TYPE_CHECKING:
    from tokenizers import Tokenizer as RawTokenizer

_log = logging.getLogger("fastattn")
_PROBES = (
    "The quick brown fox jumps over 13 lazy dogs.",
    "\u4e1c\u4eac \u5927\u5b66",
    "\u043f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440",
    "\u0645\u0631\u062d\u0628\u0627",
)
_MAX_RATIO = 10  # a vocabulary with less than a tenth of the model's ids belongs to another model


def check_health(raw: RawTokenizer, folder: Folder, path: Path) -> None:
    """Encode a few texts. A panic raises ModelFormatError.

    If no text gives any token, or the vocabulary is far too small, a warning is logged.
    """
    found = [_encode(raw, text, path) for text in _PROBES]
    _encode(raw, "", path)
    if all(n_tokens == 0 for n_tokens in found):
        _log.warning(
            "%s: the tokenizer finds no tokens in any test text: its vocabulary does not match its other files", path
        )
    config = Settings(folder.path("config.json"), folder.json("config.json"))
    n_ids = config.raw("vocab_size")
    n_tokens = raw.get_vocab_size(with_added_tokens=True)
    if type(n_ids) is int and n_tokens * _MAX_RATIO < n_ids:
        _log.warning(
            "%s: the tokenizer has %d tokens, and the model has %d ids (vocab_size of config.json): these files do "
            "not seem to belong together",
            path,
            n_tokens,
            n_ids,
        )


def _encode(raw: RawTokenizer, text: str, path: Path) -> int:
    """Return the number of tokens without special ones; -1 if the tokenizer refuses the text for lack of a token."""
    with file_errors(path):
        try:
            raw.encode(text, None, add_special_tokens=True)
            raw.encode(text, text, add_special_tokens=True)
            return len(raw.encode(text, None, add_special_tokens=False).ids)
        except Exception as error:
            if is_panic(error) or not is_library_error(error):
                raise
            return -1
