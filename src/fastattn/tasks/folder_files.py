"""The files of a model folder: which of them are read, and why the others are not."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from fastattn.checkpoint.file_names import CONFIG_NAME, TOKENIZER_FILES

MAX_FILES = 2000
_MAX_DEPTH = 3
# Patterns of names, and why these files are not read. The first match counts.
_REASONS = (
    ("*.py", "code; never runs"),
    ("training_args.bin optimizer.pt scheduler.pt scaler.pt rng_state*.pth trainer_state.json *tfevents*", "training"),
    ("*.bin *.pt *.pth *.ckpt *.pkl *.pickle *.joblib", "pickle, which can run code when loaded; never opened"),
    ("*.gguf", "read only with gguf_file="),
    ("*.h5 *.msgpack *.onnx *.onnx_data *.tflite *.mlmodel", "weights in another format"),
    ("chat_template.json", "the chat template is read from chat_template.jinja or tokenizer_config.json"),
    ("*.safetensors *.safetensors.index.json", "weights that no file in use refers to"),
    ("*.md *.txt *.rst *.pdf *.png *.jpg *.jpeg *.gif *.svg LICENSE* NOTICE* CITATION*", "documentation"),
)
_PICKLES = "never opened"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of the folder.

    name: relative to the folder. size_bytes: None for something that is not a file, such as a broken link. used:
    whether fastattn reads it. note: why it is not read, or what is special about it.
    """

    name: str
    size_bytes: int | None
    used: bool
    note: str = ""

    @property
    def pickled(self) -> bool:
        """Whether other libraries may run code that this file contains."""
        return self.note.endswith(_PICKLES)


def list_files(root: Path, used: Collection[Path]) -> tuple[FileEntry, ...]:
    """List the files of a folder and its subfolders, without hidden ones. used: the paths of the files that are read.

    root: the folder, or a GGUF file. At most MAX_FILES files, three levels deep; entries say what is omitted.
    """
    if root.is_file():
        return (FileEntry(root.name, root.stat().st_size, True),)
    read = {os.path.abspath(path) for path in used}
    entries: list[FileEntry] = []
    names = _names(root, "", _MAX_DEPTH)
    listed = sorted(islice(names, MAX_FILES))
    for name in listed:
        if name.endswith("/"):
            entries.append(FileEntry(name, None, False, "a folder below the third level; its files are not listed"))
            continue
        path = root / name
        size = path.stat().st_size if path.is_file() else None
        is_read = os.path.abspath(path) in read
        note = "" if is_read else "not a regular file" if size is None else _reason(name)
        entries.append(FileEntry(name, size, is_read, note))
    if next(names, None) is not None:
        entries.append(FileEntry("...", None, False, f"only {MAX_FILES} files are listed"))
    return tuple(entries)


def _names(root: Path, inside: str, depth: int) -> Iterator[str]:
    with os.scandir(root / inside) as found:
        for entry in found:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                if depth > 1:
                    yield from _names(root, f"{inside}{entry.name}/", depth - 1)
                else:
                    yield f"{inside}{entry.name}/"
            else:
                yield f"{inside}{entry.name}"


def _reason(name: str) -> str:
    base = name.rpartition("/")[2]
    if base in TOKENIZER_FILES and not base.startswith("chat_template"):
        return "the tokenizer is read from other files"
    for patterns, reason in _REASONS:
        if any(fnmatch.fnmatchcase(base, pattern) for pattern in patterns.split()):
            return reason
    return "a config of a folder that no file in use refers to" if base == CONFIG_NAME else "not a known name"
