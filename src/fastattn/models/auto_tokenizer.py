"""AutoTokenizer: the tokenizer of a folder or hub id."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from fastattn.checkpoint.hub import TOKENIZER_PATTERNS, resolve
from fastattn.checks import check_flag, check_str, quote
from fastattn.errors import InputError, ModelNotFoundError
from fastattn.tokenizer import Tokenizer, load_tokenizer
from fastattn.tokenizer.overrides import TokenizerSettings, read_overrides

if TYPE_CHECKING:
    from typing_extensions import Unpack

_KEYWORDS = (
    "revision", "cache_dir", "local_files_only", "token", "subfolder", "use_fast", "trust_remote_code",
)  # fmt: skip


class AutoTokenizer:
    """Loads the tokenizer of a checkpoint directory."""

    def __init__(self) -> None:
        raise TypeError("AutoTokenizer is not made directly: call AutoTokenizer.from_pretrained(path)")

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        subfolder: str = "",
        use_fast: bool = True,
        trust_remote_code: bool = False,
        **settings: Unpack[TokenizerSettings],
    ) -> Tokenizer:
        """The tokenizer of a directory or hub id: tokenizer.json, or the older files of a known tokenizer class.

        settings: in place of those of tokenizer_config.json, such as pad_token="<pad>", padding_side="left",
        model_max_length=512, do_lower_case=False. use_fast and trust_remote_code change nothing: every tokenizer is
        fast, and code in a folder is never run. Of a hub id the weights are not fetched.
        Raises ConfigError where there is no tokenizer, ModelFormatError where a file is malformed, InputError for an
        unknown setting or one that the tokenizer does not use.
        """
        check_flag("use_fast", use_fast)
        check_flag("trust_remote_code", trust_remote_code)
        given: Any = settings
        overrides = read_overrides(given, _KEYWORDS)
        folder = _read_subfolder(subfolder)
        directory = resolve(
            path,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
            patterns=[f"{folder}/{pattern}" if folder else pattern for pattern in TOKENIZER_PATTERNS],
        )
        if folder:
            directory = directory / folder
            if not directory.is_dir():
                raise ModelNotFoundError(
                    f"subfolder: expected a folder inside the model's, found no {quote(str(directory), 200)}"
                )
        tokenizer = load_tokenizer(directory, overrides)
        tokenizer.name_or_path = os.fspath(path)
        return tokenizer


def _read_subfolder(subfolder: str | None) -> str:
    """A relative path that stays inside its folder, "" for none."""
    if subfolder is None:
        return ""
    parts = PurePosixPath(check_str("subfolder", subfolder)).parts
    if ".." in parts or "\0" in subfolder or subfolder.startswith("/"):
        raise InputError(f"subfolder: expected the name of a folder inside the model's, got {quote(subfolder)}")
    return "/".join(parts)
