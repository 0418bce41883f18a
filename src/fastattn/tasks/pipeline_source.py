"""The inputs of a pipeline call: one item, a sequence of items, or an iterator over items."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fastattn.errors import about_item
from fastattn.tokenizer import is_list_like
from fastattn.tokenizer.texts import iterate_items, known_length, names_of_items, read_items

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Source(Generic[Item]):
    """The checked items of a call.

    total: the number of items, None if unknown. lazy: whether items are read, and results computed, only on demand.
    single: whether the call had one item instead of a sequence.
    """

    name: str
    items: Iterable[Item]
    total: int | None
    lazy: bool = False
    single: bool = False

    def name_of(self, index: int) -> str:
        """Return the name of an item, for messages."""
        return self.name if self.single else f"{self.name}[{index}]"


def read_source(
    inputs: Any, name: str, read_item: Callable[[Any, str], Item], *, is_one: Callable[[Any], bool] | None = None
) -> Source[Item]:
    """Return the items of `inputs`.

    read_item: checks an item; its second argument is the item's name for messages. is_one: whether a value is one item;
    None: if it is not a sequence. The items of a sequence are checked here, those of an iterator when they are read.
    As in transformers, a PyTorch data set is read like an iterator. Raises DTypeError, InputError.
    """
    if not is_list_like(inputs) if is_one is None else is_one(inputs):
        return Source(name, [read_item(inputs, name)], 1, single=True)
    length = known_length(inputs)
    if length is None or is_torch_dataset(inputs):
        return Source(name, _checked(inputs, name, read_item), length, lazy=True)
    items = read_items(inputs, name)
    names = names_of_items(items, name, inputs)
    return Source(name, [read_item(item, where) for item, where in zip(items, names, strict=True)], len(items))


def _checked(inputs: Any, name: str, read_item: Callable[[Any, str], Item]) -> Iterator[Item]:
    for i, item in enumerate(iterate_items(inputs, name)):
        where = f"{name}[{i}]"
        with about_item(i, where):
            checked = read_item(item, where)
        yield checked


def is_torch_dataset(inputs: object) -> bool:
    """Return whether a value is a `torch.utils.data.Dataset`, such as the KeyDataset of transformers."""
    return any(kind.__module__.startswith("torch.utils.data.") for kind in type(inputs).__mro__)
