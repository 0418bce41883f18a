"""Writes a tokenizer to a folder that fastattn and transformers can load."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastattn.checks import check_path
from fastattn.errors import InputError
from fastattn.tokenizer.options import TokenizerOptions

if TYPE_CHECKING:
    from tokenizers import Tokenizer as RawTokenizer


def save(
    raw: RawTokenizer, options: TokenizerOptions, special_tokens: Mapping[str, str], directory: str | Path
) -> tuple[str, ...]:
    """Write tokenizer_config.json and tokenizer.json to a folder, created if missing. Returns their paths.

    The class is PreTrainedTokenizerFast, which uses tokenizer.json unchanged. With `options.steps`, the files are those
    of its own class. Raises DTypeError, InputError, OSError.
    """
    folder = check_path("save_directory", directory)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"save_directory: expected a folder, got the file {folder}")
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": list(options.model_input_names),
        "padding_side": options.padding_side,
        "truncation_side": options.truncation_side,
        "split_special_tokens": options.split_special_tokens,
        "clean_up_tokenization_spaces": options.clean_up_tokenization_spaces,
        **special_tokens,
    }
    if options.model_max_length is not None:
        config["model_max_length"] = options.model_max_length
    if options.extra_special_tokens:
        config["extra_special_tokens"] = list(options.extra_special_tokens)
    if options.clean_up_spaces_of_bpe:
        config["clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"] = True
    if options.steps is not None:
        folder.mkdir(parents=True, exist_ok=True)
        return options.steps.save(raw, config, folder)
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n",
        "tokenizer.json": raw.to_str(pretty=True),
    }
    for name, text in contents.items():
        (folder / name).write_text(text, encoding="utf-8")
    return tuple(str(folder / name) for name in contents)
