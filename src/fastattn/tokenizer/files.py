"""Loads the tokenizer of a folder: tokenizer.json, or the older files of a known tokenizer class."""

from __future__ import annotations

from pathlib import Path

from fastattn.settings import Settings
from fastattn.tokenizer.folder import Folder
from fastattn.tokenizer.tokenizer import Tokenizer

SENTENCEPIECE_FILES = (
    "sentencepiece.bpe.model",
    "spiece.model",
    "spm.model",
    "sentencepiece.model",
    "tokenizer.model",
    "source.spm",
)
_VOCABULARY_FILES = ("tokenizer.json", "vocab.txt", *SENTENCEPIECE_FILES, "bpe.codes", "tekken.json", "tiktoken.model")


def has_tokenizer(directory: Path) -> bool:
    """True where a folder has files of a tokenizer, whether `load_tokenizer` can read them or not."""
    if any((directory / name).is_file() for name in _VOCABULARY_FILES):
        return True
    return all((directory / name).is_file() for name in ("vocab.json", "merges.txt"))


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a local directory. Raises ConfigError, ModelFormatError."""
    from fastattn.tokenizer.health import check_health  # these import the tokenizers library
    from fastattn.tokenizer.load import load_raw

    folder = Folder(directory)
    settings = Settings(folder.path("tokenizer_config.json"), folder.json("tokenizer_config.json"))
    raw, options, path = load_raw(folder, settings)
    check_health(raw, folder, path)
    return Tokenizer(raw, options)
