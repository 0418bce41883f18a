"""Merges the options of a `generation_config` with the keywords of a call."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fastattn.checks import check_flag, quote
from fastattn.errors import DTypeError


def with_generation_config(options: Mapping[str, Any], *, ours: Collection[str] = ()) -> dict[str, Any]:
    """Return the options merged with those of their `generation_config`; keywords take precedence.

    None means "not given", except for top_k, where it means "off". ours: see `_from_generation_config`. Raises
    DTypeError, InputError.
    """
    found = _from_generation_config(options.get("generation_config"), ours)
    for name, value in options.items():
        if name != "generation_config" and (value is not None or name not in found or name == "top_k"):
            found[name] = value
    return found


def _from_generation_config(config: Any, ours: Collection[str]) -> dict[str, Any]:
    """Return the options that a GenerationConfig of transformers, or a mapping, sets.

    return_dict_in_generate is omitted if it is not one of `ours`: it only affects the form of `generate`'s result.
    Raises DTypeError, InputError.
    """
    if config is None:
        return {}
    as_dict = getattr(config, "to_diff_dict", None)
    found = as_dict() if callable(as_dict) else config
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise DTypeError(f"generation_config: expected a GenerationConfig or a mapping, got {quote(config)}")
    if "return_dict_in_generate" not in ours and found.get("return_dict_in_generate") is not None:
        check_flag("return_dict_in_generate", found["return_dict_in_generate"])
        found = {name: value for name, value in found.items() if name != "return_dict_in_generate"}
    return {
        name: value
        for name, value in found.items()
        if value is not None and name not in ("transformers_version", "_from_model_config", "_commit_hash")
    }
