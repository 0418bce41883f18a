"""Copies and pickles of models. A copy shares the weights; a pickle names the folder, and loads it again elsewhere.

A pickle holds the path, the options and the SHA-256 of the files that were loaded, no weights. Unpickled in another
process, the files are compared with the digests, once per process, and the model is loaded; models of one folder and
one set of options share one set of weights for as long as one of them is open.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
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
_ABSENT = "absent"  # the digest of a file that was not there
_ADVICE = "load the model with from_pretrained"


@dataclass(slots=True)
class Origin:
    """Where a model came from.

    directory: absolute; stamps: of the files when they were loaded, None for one that was not there; digests: filled
    in when the model is first pickled.
    """

    directory: Path
    name: str
    options: LoadOptions
    stamps: Mapping[str, FileIdentity | None]
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
# once both load it, and one of the two is remembered.
_shared: WeakValueDictionary[str, Shared] = WeakValueDictionary()
_verified: dict[tuple[str, str], FileIdentity] = {}


def stamp_files(directory: Path, weights: Iterable[Path]) -> dict[str, FileIdentity | None]:
    """The state of the files that a model is loaded from, by name."""
    names = [*CONFIG_FILES, *sorted({path.name for path in weights})]
    return {name: identity_of(directory / name) for name in names}


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
    """Whether the files that were loaded are the ones that were compared. Raises ModelFormatError."""
    for name, digest in recipe.digests:
        path = Path(recipe.directory) / name
        if origin.stamps.get(name) != _verified.get((str(path), digest)):
            raise changed(path, "it was compared with the pickle's digest", advice=_ADVICE)
    origin.digests = dict(recipe.digests)


def _digest_of(origin: Origin, name: str) -> str:
    """The digest of a file that was not written to since it was loaded. Raises ModelFormatError for another one.

    A new ctime alone is accepted: chmod and hard links set it. So the owner of a file, who alone can set its mtime
    back, can write to it unnoticed before the first pickle. That gives the owner nothing new: they could have done so
    before the model was loaded. From then on the digest counts, and no time of change replaces it.
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
