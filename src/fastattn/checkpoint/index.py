"""Reads the index of a sharded checkpoint and the headers of its shards."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from fastattn.checkpoint.file_names import INDEX_NAME
from fastattn.checkpoint.safetensors import TensorInfo, read_source
from fastattn.checks import is_text, quote, shown_names
from fastattn.files import FileSet, malformed
from fastattn.jsonfile import JsonError, JsonLimits, parse_lenient, read_bounded
from fastattn.settings import Settings

MAX_INDEX_ENTRIES = 100_000
MAX_SHARDS = 500  # all are open while the checkpoint loads; processes are often limited to 1,024 open files
# Published indexes take at most 160 bytes per entry for tensor and file names.
INDEX_LIMITS = JsonLimits(n_bytes=32 << 20, n_values=MAX_INDEX_ENTRIES + 1000, depth=16)
_MAX_LOGGED = 20
_log = logging.getLogger("fastattn")


def read_shards(directory: Path, files: FileSet) -> dict[str, TensorInfo]:
    """Read the headers of all shards that a folder's index lists. Raises ModelFormatError, OSError."""
    weight_map = _read_index(directory / INDEX_NAME, files)
    tensors: dict[str, TensorInfo] = {}
    unlisted: list[str] = []
    for shard in sorted(set(weight_map.values())):
        for name, info in _read_shard(directory / shard, files).items():
            listed = weight_map.get(name)
            if name in tensors or (listed is not None and listed != shard):
                other = tensors[name].path.name if name in tensors else listed
                message = f"expected in only one shard, also found in {other}"
                raise malformed(directory / shard, "shard_twice", message, tensor=name)
            if listed is None:
                unlisted.append(name)
            tensors[name] = info
    for name, shard in weight_map.items():
        if name not in tensors:
            message = f"expected in this shard, as {INDEX_NAME} says, found none"
            raise malformed(directory / shard, "shard_missing_tensor", message, tensor=name)
    if unlisted:
        shown = shown_names(map(quote, unlisted), len(unlisted), _MAX_LOGGED)
        _log.warning("%s: tensors of the shards that are not listed in %s: %s", directory, INDEX_NAME, shown)
    return tensors


def _read_shard(path: Path, files: FileSet) -> dict[str, TensorInfo]:
    try:
        return read_source(files.open(path))[0]
    except FileNotFoundError:
        raise malformed(path, "shard", f"expected this shard, which {INDEX_NAME} lists, found none") from None


def _read_index(path: Path, files: FileSet) -> dict[str, str]:
    """Read weight_map (tensor name -> file name), and check that every file name is a plain basename."""
    try:
        value = parse_lenient(read_bounded(files.open(path), INDEX_LIMITS.n_bytes), str(path), INDEX_LIMITS)
    except JsonError as error:
        code = "index_too_large" if error.code == "too_large" else "index_json"
        raise malformed(path, code, str(error)) from None
    settings = Settings(path, value if isinstance(value, dict) else {})
    weight_map = settings.raw("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise malformed(path, "index_json", "expected a weight_map of names to files")
    settings.ignore("metadata")
    settings.finish()
    if len(weight_map) > MAX_INDEX_ENTRIES:
        raise malformed(path, "index_too_large", f"expected at most {MAX_INDEX_ENTRIES} entries, got {len(weight_map)}")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_shard_name(shard) or not is_text(name):
            message = f"expected the name of a .safetensors file next to the index, got {quote(shard)}"
            raise malformed(path, "shard_name", message, tensor=name)
    n_shards = len(set(weight_map.values()))
    if n_shards > MAX_SHARDS:
        raise malformed(path, "index_too_large", f"expected at most {MAX_SHARDS} shards, got {n_shards}")
    return weight_map


def _is_shard_name(name: str) -> bool:
    """Return whether a name is a plain basename. In a Hugging Face cache the file itself is a symlink to elsewhere."""
    return re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,200}\.safetensors", name) is not None
