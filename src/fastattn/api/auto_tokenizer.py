"""AutoTokenizer: loads the tokenizer of a folder or hub id."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastattn.api.load_args import HubArgs
from fastattn.api.load_options import read_hub_options
from fastattn.api.loading import find_folder
from fastattn.checkpoint.hub import TOKENIZER_PATTERNS
from fastattn.checks import check_flag, one_of, quote
from fastattn.errors import InputError
from fastattn.tokenizer import Tokenizer, load_tokenizer
from fastattn.tokenizer.overrides import TokenizerSettings, read_overrides

if TYPE_CHECKING:
    from typing_extensions import Unpack

_KEYWORDS = (
    "pretrained_model_name_or_path", *HubArgs.__annotations__, "use_auth_token", "subfolder", "gguf_file", "use_fast",
    "trust_remote_code", "force_download", "proxies", "resume_download",
)  # fmt: skip


class TokenizerArgs(TokenizerSettings, HubArgs, total=False):
    """The settings of a tokenizer, and where to look up a hub id."""


class AutoTokenizer:
    """Loads the tokenizer of a folder or a hub id."""

    def __init__(self) -> None:
        raise TypeError("AutoTokenizer cannot be instantiated; call AutoTokenizer.from_pretrained(path)")

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        pretrained_model_name_or_path: str | Path | None = None,
        use_auth_token: str | bool | None = None,
        subfolder: str | None = "",
        gguf_file: str | None = None,
        use_fast: bool | None = True,
        trust_remote_code: bool | None = None,
        force_download: bool | None = False,
        proxies: None = None,
        resume_download: object = None,
        **settings: Unpack[TokenizerArgs],
    ) -> Tokenizer:
        """Load a tokenizer from tokenizer.json, from the older files of a known tokenizer class, or from a GGUF file.

        path: a folder, a GGUF file or a hub id; the weights of a hub id are not downloaded.
        gguf_file: the GGUF file inside the folder or the hub repository.
        settings: override those of tokenizer_config.json, such as pad_token="<pad>", padding_side="left",
        model_max_length=512, do_lower_case=False. use_fast and trust_remote_code change nothing: every tokenizer is
        fast, and code in a folder never runs. revision, cache_dir, local_files_only, token: for hub ids.
        pretrained_model_name_or_path, use_auth_token: transformers' names for path and token.
        Raises ConfigError if there is no tokenizer, ModelFormatError if a file is malformed, InputError for a setting
        that is unknown or that the tokenizer does not use, DTypeError, ModelNotFoundError, HubError.
        """
        for name, value in (("use_fast", use_fast), ("trust_remote_code", trust_remote_code)):
            if value is not None:
                check_flag(name, value)
        given: dict[str, Any] = dict(settings)
        hub = {name: given.pop(name) for name in HubArgs.__annotations__ if name in given}
        overrides = read_overrides(given, _KEYWORDS)
        if not (force_download is None or force_download is False):
            check_flag("force_download", force_download)
            raise InputError(
                "force_download: expected False, got True; delete the model from the cache to download it again"
            )
        if proxies:
            raise InputError(f"proxies: expected None, got {quote(proxies)}; set HTTPS_PROXY in the environment")
        source = one_of("path", path, "pretrained_model_name_or_path", pretrained_model_name_or_path)
        hub |= {"token": one_of("token", hub.get("token"), "use_auth_token", use_auth_token), "subfolder": subfolder}
        hub["gguf_file"] = gguf_file
        name = "path" if pretrained_model_name_or_path is None else "pretrained_model_name_or_path"
        directory = find_folder(source, read_hub_options(hub), TOKENIZER_PATTERNS, name=name)
        tokenizer = load_tokenizer(directory, overrides)
        tokenizer.name_or_path = str(source)
        return tokenizer
