"""Opens a GGUF file as a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastattn.checkpoint.gguf.architectures import read_architecture
from fastattn.checkpoint.gguf.reader import read_gguf
from fastattn.checkpoint.gguf.tensors import same_bytes, source_of
from fastattn.checkpoint.source import WeightSource
from fastattn.files import FileSet

SUFFIX = ".gguf"


def is_gguf(path: Path) -> bool:
    """Return whether a path is a file whose name ends with .gguf."""
    return path.name.lower().endswith(SUFFIX) and path.is_file()


@dataclass(frozen=True, slots=True)
class GgufModel:
    """A file as a Hugging Face checkpoint. stored: the number of bytes of all tensors of a type."""

    config: dict[str, Any]
    tensors: Mapping[str, WeightSource]
    stored: Mapping[str, int]


def open_gguf(path: Path, files: FileSet) -> GgufModel:
    """Read the header of a file. files: the set that the file joins. Raises ModelFormatError, ConfigError,
    OSError.
    """
    gguf = read_gguf(files.open(path))
    config, places = read_architecture(gguf)
    tensors = dict(gguf.tensors)
    head, table = tensors.get("output.weight"), tensors.get("token_embd.weight")
    if head is not None and table is not None and same_bytes(gguf, head, table):
        del tensors["output.weight"]  # a copy, which older converters wrote
        config["tie_word_embeddings"] = True
    sources = (source_of(gguf, tensor, places[name]) for name, tensor in tensors.items() if name in places)
    stored: dict[str, int] = {}
    for tensor in gguf.tensors.values():
        stored[tensor.kind.name] = stored.get(tensor.kind.name, 0) + tensor.nbytes
    return GgufModel(config, {source.name: source for source in sources}, stored)
