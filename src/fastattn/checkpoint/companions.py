"""Copies the files next to the weights to a quantized directory: regular files of known names and bounded size."""

from __future__ import annotations

import errno
import fnmatch
import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from fastattn.checkpoint.file_names import GENERATION_NAME, MODULE_FILES, SENTENCE_FILES, TOKENIZER_FILES
from fastattn.checkpoint.new_folder import NewFolder
from fastattn.checks import quote, shown_names
from fastattn.files import FileSet, SourceFile, read_at

MAX_COPIED_BYTES = 256 << 20
MAX_COPIED_FILES = 200
# config.json and the weights are written separately.
COPIED = (
    *TOKENIZER_FILES,
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    GENERATION_NAME,
    *SENTENCE_FILES,
    *MODULE_FILES,
    "README.md",
    "LICENSE*",
    "NOTICE*",
)
_WRITTEN = ("config.json",)
_OF_WEIGHTS = (
    *("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.h5"),
    *("*.msgpack", "*.gguf", "*.onnx", "*.onnx_data", "*.tflite", "*.mlmodel", "rust_model*", "SHA256SUMS"),
)
_NOT_REGULAR = (errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.ENOTDIR)
_CHUNK_BYTES = 4 << 20
_MAX_NAMES = 20
_log = logging.getLogger("fastattn")


def copy_companions(source: Path, folder: NewFolder, files: FileSet) -> list[str]:
    """Copy the files of a tokenizer or a sentence-transformers model, and the model card and license.

    Only regular files whose names are in COPIED are copied. A link is followed if it stays in the folder, or leads from
    a snapshot of a Hugging Face cache to its blobs. A warning lists all other files except weights; hidden files and
    other folders are skipped. files: the set that the copied files join. Returns the names of the files that were not
    copied.
    """
    root = Path(os.path.realpath(source))
    left_out: dict[str, str] = {}
    n_copied = 0
    for name in sorted(_names(root)):
        if name in _WRITTEN:
            continue
        if not _is_copied(name):
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in _OF_WEIGHTS):
                left_out[name] = "not a known name"
            continue
        why = _copy(root, name, folder, files) if n_copied < MAX_COPIED_FILES else f"more than {MAX_COPIED_FILES} files"
        if why is None:
            n_copied += 1
        else:
            left_out[name] = why
    if left_out:
        shown = shown_names((f"{quote(name)} ({why})" for name, why in left_out.items()), len(left_out), _MAX_NAMES)
        _log.warning("%s: not copied to the new folder: %s", source, shown)
    return list(left_out)


def _names(root: Path) -> Iterator[str]:
    """Yield the names of a folder's files, and of those in its subfolders that may be copied."""
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not os.path.isdir(entry.path):
                yield entry.name
            elif fnmatch.fnmatchcase(entry.name, "[0-9]*_*") or entry.name == "additional_chat_templates":
                with os.scandir(entry.path) as inner:
                    yield from (
                        f"{entry.name}/{item.name}" for item in inner if _is_copied(f"{entry.name}/{item.name}")
                    )


def _is_copied(name: str) -> bool:
    if name.endswith("_Transformer/model.safetensors"):
        return False
    depth = name.count("/")
    return any(pattern.count("/") == depth and fnmatch.fnmatchcase(name, pattern) for pattern in COPIED)


def _copy(root: Path, name: str, folder: NewFolder, files: FileSet) -> str | None:
    """Copy one file. Returns the reason if it was not copied, else None."""
    real = Path(os.path.realpath(root / name))
    if not _may_read(root, real):
        return "a link that is not followed"
    try:
        file = files.open(real, follow_links=False)
    except OSError as error:
        if error.errno not in _NOT_REGULAR:
            raise
        return "not a regular file"
    if file.size > MAX_COPIED_BYTES:
        return f"more than {MAX_COPIED_BYTES >> 20} MiB"
    with folder.create(name) as copy:
        _copy_bytes(file, copy)
    return None


def _may_read(root: Path, real: Path) -> bool:
    if real.is_relative_to(root):
        return _is_copied(real.relative_to(root).as_posix())
    return root.parent.name == "snapshots" and real.parent == root.parent.parent / "blobs"


def _copy_bytes(file: SourceFile, copy: io.BufferedWriter) -> None:
    with file.opened() as descriptor:
        for offset in range(0, file.size, _CHUNK_BYTES):
            copy.write(read_at(descriptor, min(_CHUNK_BYTES, file.size - offset), offset))
