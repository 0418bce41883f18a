"""Copies and pickles of models. A copy shares the weights; a pickle names the folder to load again.

A pickle stores the path, the options and the SHA-256 of the loaded files, but no weights. Unpickling compares the files
with these digests, once per process, and loads the model. Models with the same folder and options share one set of
weights while any of them is open.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from fastattn.api.load_options import LoadOptions
from fastattn.checkpoint.digests import file_digest
from fastattn.checkpoint.file_names import CONFIG_NAME, GENERATION_NAME, INDEX_NAME
from fastattn.errors import InputError, ModelNotFoundError
from fastattn.files import FileIdentity, FileSet, changed, identity_of
from fastattn.models.tasks import Task

if TYPE_CHECKING:
    from fastattn.graph.executor import Executor
    from fastattn.models.registry import BuiltModel

CONFIG_FILES = (CONFIG_NAME, GENERATION_NAME, INDEX_NAME)
_ABSENT = "absent"  # the digest of a file that did not exist
_ADVICE = "load the model with from_pretrained"


@dataclass(slots=True)
class Origin:
    """Where a model was loaded from.

    directory: absolute path of the folder, or of the GGUF file. stamps: state of the files when they were loaded; None
    for a file that did not exist. digests: filled in when the model is first pickled. generation: the default options
    of generation.
    """

    directory: Path
    name: str
    options: LoadOptions
    stamps: Mapping[str, FileIdentity | None]
    digests: Mapping[str, str] | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recipe:
    """The content of a pickle: everything needed to load the model again."""

    task: Task
    directory: str
    name: str
    options: LoadOptions
    digests: tuple[tuple[str, str], ...]

    @property
    def key(self) -> str:
        """A text that is equal for recipes of the same model."""
        options = {name: getattr(self.options, name) for name in LoadOptions.__slots__}
        return json.dumps([self.task, self.directory, options, self.digests], default=dict, sort_keys=True)


@dataclass(eq=False)
class Shared:
    """Weights that several models use. No model owns `root`, so closing a model does not close it."""

    directory: Path
    built: BuiltModel
    root: Executor
    origin: Origin | None


# No lock: if the process forked while another thread held it, the child would wait forever. Two threads that load the
# same model at the same time both load it, and one of the two is remembered.
_shared: WeakValueDictionary[str, Shared] = WeakValueDictionary()
_verified: dict[tuple[str, str], FileIdentity] = {}


def stamp_files(directory: Path, weights: Iterable[Path]) -> dict[str, FileIdentity | None]:
    """Return the state of the files that a model is loaded from, by name. A GGUF file itself has the name ""."""
    if directory.is_file():
        return {"": identity_of(directory)}
    names = [*CONFIG_FILES, *sorted({path.name for path in weights})]
    return {name: identity_of(directory / name) for name in names}


def recipe_of(task: Task, origin: Origin | None) -> Recipe:
    """Return the recipe of an open model.

    Raises InputError for a model without a folder, ModelFormatError if a file is not the one that was loaded.
    """
    if origin is None:
        raise InputError("pickle: expected a model from from_pretrained, got one without a folder")
    if origin.digests is None:
        origin.digests = {name: _digest_of(origin, name) for name in origin.stamps}
    return Recipe(task, str(origin.directory), origin.name, origin.options, tuple(sorted(origin.digests.items())))


def remember(recipe: Recipe, shared: Shared) -> None:
    """Register `shared` as the weights of the recipe in this process."""
    _shared.setdefault(recipe.key, shared)


def find_shared(recipe: Recipe) -> Shared | None:
    """Return the weights of the recipe if a model in this process has them open."""
    return _shared.get(recipe.key)


def verify_files(recipe: Recipe) -> None:
    """Compare the files with the digests of a recipe; each file is read once per process.

    Raises ModelNotFoundError, ModelFormatError.
    """
    for name, digest in recipe.digests:
        path = Path(recipe.directory) / name
        found = identity_of(path)
        if found is None and digest != _ABSENT:
            raise ModelNotFoundError(
                f"{path}: expected the file that the pickled model was loaded from, found none; "
                "unpickle where the folder is, or load the model with from_pretrained"
            )
        if found is not None and _verified.get((str(path), digest)) == found:
            continue
        if (_ABSENT if found is None else _sha256(path)) != digest:
            raise changed(path, "the pickled model was loaded", advice=_ADVICE)
        if found is not None:
            _verified[str(path), digest] = found


def check_unchanged(recipe: Recipe, origin: Origin) -> None:
    """Check that the loaded files are the ones that were compared. Raises ModelFormatError."""
    for name, digest in recipe.digests:
        path = Path(recipe.directory) / name
        if origin.stamps.get(name) != _verified.get((str(path), digest)):
            raise changed(path, "it was compared with the pickle's digest", advice=_ADVICE)
    origin.digests = dict(recipe.digests)


def check_same_files(origin: Origin, other: Origin) -> None:
    """Check that two models were loaded from the same files. Raises ModelFormatError."""
    for name, stamp in origin.stamps.items():
        if not _is_same(stamp, other.stamps.get(name)):
            raise changed(origin.directory / name, "the model was loaded", advice=_ADVICE)


def _digest_of(origin: Origin, name: str) -> str:
    """Return the digest of a file that has not changed since it was loaded. Raises ModelFormatError if it has.

    A new ctime alone is accepted, because chmod and hard links set it. Only the owner of a file can reset its mtime, so
    only the owner can write to it unnoticed before the first pickle. This gives the owner no new power: they could have
    changed the file before the model was loaded. After the first pickle the digest decides, and no timestamp overrides
    it.
    """
    path, loaded = origin.directory / name, origin.stamps[name]
    before = identity_of(path)
    digest = _ABSENT if before is None else _sha256(path)
    if identity_of(path) != before or not _is_same(loaded, before):
        raise changed(path, "the model was loaded", advice=_ADVICE)
    if before is not None:
        _verified[str(path), digest] = before
    return digest


def _is_same(loaded: FileIdentity | None, found: FileIdentity | None) -> bool:
    if loaded is None or found is None:
        return loaded is found
    return loaded.same_content(found)


def _sha256(path: Path) -> str:
    with FileSet() as files:
        return file_digest(files.open(path))
