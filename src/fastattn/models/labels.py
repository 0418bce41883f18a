"""Reads the classes of a classifier from num_labels, id2label and label2id of config.json, as transformers does."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from fastattn.checks import is_text, quote
from fastattn.errors import InputError
from fastattn.settings import Settings

MAX_LABELS = 1_000_000
_log = logging.getLogger("fastattn")
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Labels:
    """names: the class names in order. ids: class numbers by name, as in the file, else the inverse of names."""

    names: tuple[str, ...]
    ids: Mapping[str, int]


def read_labels(settings: Settings) -> Labels:
    """Read the classes as transformers does: from id2label, else from num_labels (2 if both are missing).

    If the two differ, num_labels takes precedence and the names are LABEL_<i>. This is logged, as are classes without a
    name. Raises ConfigError.
    """
    count = settings.count("num_labels", None, high=MAX_LABELS)
    listed = settings.raw("id2label")
    ids = _read_ids(settings)
    if listed is None:
        return _numbered(2 if count is None else count)
    names = _read_names(settings)
    if count is not None and count != len(names):
        _log.warning(
            "%s: num_labels is %d, but id2label has %d names; the names are LABEL_0 to LABEL_%d",
            settings.where,
            count,
            len(names),
            count - 1,
        )
        return _numbered(count)
    unnamed = [i for i in range(len(names)) if names.get(i) is None]
    if unnamed:
        _log.warning(
            "%s: id2label: expected names for the keys 0 to %d, got the keys %s; class %d is named LABEL_%d",
            settings.where,
            len(names) - 1,
            quote(sorted(names)),
            unnamed[0],
            unnamed[0],
        )
    ordered = tuple(name if (name := names.get(i)) is not None else f"LABEL_{i}" for i in range(len(names)))
    return Labels(ordered, ids if ids is not None else {name: i for i, name in enumerate(ordered)})


def _numbered(count: int) -> Labels:
    names = tuple(f"LABEL_{i}" for i in range(count))
    return Labels(names, {name: i for i, name in enumerate(names)})


def _read_names(settings: Settings) -> dict[int, str | None]:
    """Read id2label with integer keys. Null names count as classes."""
    listed = settings.raw("id2label")
    if not isinstance(listed, dict) or len(listed) > MAX_LABELS:
        raise settings.error("id2label", f"an object of at most {MAX_LABELS} names by class number")
    names: dict[int, str | None] = {}
    for key, name in listed.items():
        if not (key.isascii() and key.strip().isdigit() and len(key) < 12):
            raise settings.error("id2label", "class numbers as keys")
        if not (name is None or isinstance(name, (int, float)) or (isinstance(name, str) and is_text(name))):
            raise settings.error("id2label", "names as values")
        names[int(key)] = None if name is None else str(name)
    return names


def _read_ids(settings: Settings) -> dict[str, int] | None:
    """Read label2id; None if it is missing. Numbers may be strings."""
    listed = settings.table("label2id")
    ids: dict[str, int] = {}
    for name, value in listed.items():
        is_decimal = isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 12
        if type(value) is not int and not is_decimal:
            raise settings.error("label2id", "class numbers as values")
        ids[name] = int(value)
    return ids or None


class LabelTable(dict[_Key, _Value]):
    """The class names or numbers of a loaded model: a read-only dict. Changing it raises InputError."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise InputError(
            "config: expected no change after loading; pass id2label and label2id to from_pretrained, as in "
            'from_pretrained(folder, id2label={0: "NEGATIVE", 1: "POSITIVE"})'
        )

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[object, ...]:
        return (LabelTable, (dict(self),))

    def __copy__(self) -> LabelTable[_Key, _Value]:
        return self

    def __deepcopy__(self, memo: object) -> LabelTable[_Key, _Value]:
        return self
