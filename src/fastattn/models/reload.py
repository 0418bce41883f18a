"""Copies and pickles of models. A copy shares the weights; a pickle names the folder, and loads it again elsewhere.

A pickle holds the path, the options and the SHA-256 of the files that were loaded, no weights. Unpickled in another
process, the files are compared with the digests, once per process, and the model is loaded; models of one folder and
one set of options share one set of weights for as long as one of them is open.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from fastattn.checkpoint.files import open_regular, read_at
from fastattn.errors import InputError, ModelFormatError, ModelNotFoundError
from fastattn.models.load_options import LoadOptions
from fastattn.models.names import Task

if TYPE_CHECKING:
    from fastattn.graph.executor import Executor
    from fastattn.models.registry import BuiltModel

CONFIG_FILES = ("config.json", "generation_config.json", "model.safetensors.index.json")
_ABSENT = "absent"  # the digest of a file that was not there
_READ_BYTES = 16 << 20
Stamp = tuple[int, int, int, int]  # device, inode, bytes, time of the last change


@dataclass(slots=True)
class Origin:
    """Where a model came from.

    directory: absolute; stamps: of the files when they were loaded, None for one that was not there; digests: filled
    in when the model is first pickled.
    """

    directory: Path
    name: str
    options: LoadOptions
    stamps: Mapping[str, Stamp | None]
    digests: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a pickle holds: all that is needed to load the model again."""

    task: Task
    directory: str
    name: str
    options: LoadOptions
    digests: tuple[tuple[str, str], ...]

    @property
    def key(self) -> str:
        """The same text for recipes of the same model."""
        options = {name: getattr(self.options, name) for name in LoadOptions.__slots__}
        return json.dumps([self.task, self.directory, options, self.digests], default=dict, sort_keys=True)


@dataclass(eq=False)
class Shared:
    """Weights that several models use. `root` is no model's own, so closing a model does not close it."""

    directory: Path
    built: BuiltModel
    root: Executor
    origin: Origin | None


# No lock: a fork while another thread holds it would leave the child waiting. Two threads that load the same model at
# once both load it, and one of them is kept.
_shared: WeakValueDictionary[str, Shared] = WeakValueDictionary()
_verified: dict[tuple[str, str], Stamp] = {}


def stamp_files(directory: Path, weights: Iterable[Path]) -> dict[str, Stamp | None]:
    """The state of the files that a model is loaded from, by name."""
    names = [*CONFIG_FILES, *sorted({path.name for path in weights})]
    return {name: _stamp(directory / name) for name in names}


def recipe_of(task: Task, origin: Origin | None) -> Recipe:
    """The recipe of an open model. Raises InputError for a model without a folder, ModelFormatError where a file is not
    the one that was loaded."""
    if origin is None:
        raise InputError("pickle: expected a model from from_pretrained, got one made by hand")
    if origin.digests is None:
        origin.digests = {name: _digest_of(origin, name) for name in origin.stamps}
    return Recipe(task, str(origin.directory), origin.name, origin.options, tuple(sorted(origin.digests.items())))


def remember(recipe: Recipe, shared: Shared) -> None:
    """Let `shared` be what the recipe gives in this process."""
    _shared.setdefault(recipe.key, shared)


def find_shared(recipe: Recipe) -> Shared | None:
    """The weights of the recipe, where a model in this process has them open."""
    return _shared.get(recipe.key)


def verify_files(recipe: Recipe) -> None:
    """Compare the files with the digests of a recipe; a file is read once per process.

    Raises ModelNotFoundError, ModelFormatError.
    """
    for name, digest in recipe.digests:
        path = Path(recipe.directory) / name
        found = _stamp(path)
        if found is None and digest != _ABSENT:
            raise ModelNotFoundError(
                f"{path}: expected the file that the pickled model was loaded from, found none; "
                "unpickle where the folder is, or load the model with from_pretrained"
            )
        if found is not None and _verified.get((str(path), digest)) == found:
            continue
        if (_ABSENT if found is None else _sha256(path)) != digest:
            raise _changed(path, "the pickled model was loaded")
        if found is not None:
            _verified[str(path), digest] = found


def check_unchanged(recipe: Recipe, origin: Origin) -> None:
    """Whether the files that were loaded are the ones that were compared. Raises ModelFormatError."""
    for name, digest in recipe.digests:
        path = Path(recipe.directory) / name
        if origin.stamps.get(name) != _verified.get((str(path), digest)):
            raise _changed(path, "it was compared with the pickle's digest")
    origin.digests = dict(recipe.digests)


def _digest_of(origin: Origin, name: str) -> str:
    path, before = origin.directory / name, origin.stamps[name]
    digest = _ABSENT if _stamp(path) is None else _sha256(path)
    if _stamp(path) != before:
        raise _changed(path, "the model was loaded")
    if before is not None:
        _verified[str(path), digest] = before
    return digest


def _changed(path: Path, since: str) -> ModelFormatError:
    return ModelFormatError(
        f"{path}: expected the file as it was when {since}, got another; load the model with from_pretrained",
        path=str(path),
        code="changed",
    )


def _stamp(path: Path) -> Stamp | None:
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(path) as (descriptor, size):
        for offset in range(0, size, _READ_BYTES):
            digest.update(read_at(descriptor, _READ_BYTES, offset))
    return digest.hexdigest()
