"""Small JSON files that come with a model (tokenizers, modules): bounded, and typed errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastattn.errors import ModelFormatError

_MAX_BYTES = 64 * 2**20


def read_json(path: Path) -> Any:
    """The value in a JSON file of at most 64 MiB."""
    if path.stat().st_size > _MAX_BYTES:
        raise ModelFormatError(f"{path}: expected at most {_MAX_BYTES} bytes", path=str(path), code="too_large")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{path}: invalid JSON: {error}", path=str(path), code="json") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} where there is no file."""
    if not path.is_file():
        return {}
    found = read_json(path)
    if not isinstance(found, dict):
        raise ModelFormatError(f"{path}: expected a JSON object, got {type(found).__name__}", path=str(path))
    return found
