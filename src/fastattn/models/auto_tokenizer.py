"""AutoTokenizer: the tokenizer of a folder or hub id."""

from __future__ import annotations

from pathlib import Path

from fastattn.checkpoint.hub import TOKENIZER_PATTERNS, resolve
from fastattn.tokenizer import Tokenizer, load_tokenizer


class AutoTokenizer:
    """Loads the tokenizer of a checkpoint directory."""

    def __init__(self) -> None:
        raise TypeError("AutoTokenizer is not made directly: call AutoTokenizer.from_pretrained(path)")

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | None = None,
    ) -> Tokenizer:
        """The tokenizer of a directory or hub id: tokenizer.json, vocab.json + merges.txt, or vocab.txt.

        Of a hub id the weights are not fetched.
        ConfigError where there is none, ModelFormatError where a file is malformed.
        """
        directory = resolve(
            path,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
            patterns=TOKENIZER_PATTERNS,
        )
        return load_tokenizer(directory)
