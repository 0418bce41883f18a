"""Prefixes of prompts whose keys and values stay in memory, and files of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastattn.checkpoint.safetensors import TensorInfo, read_source
from fastattn.checkpoint.safetensors_writer import Entry, header
from fastattn.checks import check_path
from fastattn.errors import ContextLengthError, InputError, ModelFormatError
from fastattn.files import SourceFile, read_at, replaced_file
from fastattn.generation.call import Call
from fastattn.generation.engine import Engine
from fastattn.generation.page_plan import PagePlan
from fastattn.generation.prefix_tree import Node
from fastattn.generation.prompts import LanguageModel
from fastattn.generation.request import Request
from fastattn.graph.executor import PagedExecutor
from fastattn.graph.ir import Step

if TYPE_CHECKING:
    from typing_extensions import Self

_FORMAT = "fastattn-prefix-1"
_NO_PAGES = "expected a model with pages of keys and values, got one on device numpy; load it with device='cpu'"


class CachedPrefix:
    """A prefix whose keys and values stay in memory until `close`, the end of a `with` block, or the last reference.

    Prompts that begin with it skip its computation; their results do not change.
    """

    def __init__(self, engine: Engine, token_ids: Sequence[int], nodes: Sequence[Node]) -> None:
        self._engine, self._ids, self._nodes = engine, list(token_ids), list(nodes)  # none for less than 16 tokens
        self._closed = False
        self._pages = [node.page for node in nodes if node.depth * engine.stats().page_len <= len(self._ids)]

    @property
    def token_ids(self) -> NDArray[np.int32]:
        """The ids of the prefix, int32 [n_tokens]."""
        return np.array(self._ids, np.int32)

    @property
    def n_bytes(self) -> int:
        """The memory of its keys and values; prefixes that begin with the same pages share them."""
        return len(self._nodes) * self._engine.stats().page_bytes

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the prefix to a file, for `load_prefix` of the same model with the same dtypes.

        The file has the whole pages; `load_prefix` computes the at most 63 tokens after them. Raises InputError after
        `close` and for keys and values on a GPU, OSError, for example if the folder of the file does not exist.
        """
        if self._closed:
            raise InputError("prefix: expected an open prefix, got one after close(); call cache_prefix again")
        target, ids = check_path("path", path), self.token_ids
        pages = [page.read() for page in self._pages]
        digest = _digest(ids, pages)
        size = self._engine.stats().page_bytes
        entries = [
            Entry("token_ids", "I32", ids.shape, ids.nbytes),
            Entry("pages", "U8", (len(pages), size), len(pages) * size),
        ]
        with replaced_file(target) as file:
            file.write(header(entries, {"format": _FORMAT, "sha256": digest}))
            file.write(ids.data)
            for page in pages:
                file.write(page.data)

    def close(self) -> None:
        """Let the memory be used for other texts. May be called twice."""
        nodes, self._nodes, self._pages, self._closed = self._nodes, [], [], True
        if nodes:
            self._engine.do_soon(partial(_unpin, nodes))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_pages"):  # else __init__ failed earlier
            self.close()


def _unpin(nodes: Sequence[Node], pages: PagePlan) -> None:
    if pages.tree is not None:
        pages.tree.unpin(nodes)


def cache_prefix(model: LanguageModel, ids: Sequence[int], name: str = "input_ids") -> CachedPrefix:
    """Compute the keys and values of these ids and pin them. Raises InputError, ContextLengthError."""
    executor, context = model.executor, model.executor.program.max_positions
    if not isinstance(executor, PagedExecutor):
        raise InputError(f"cache_prefix: {_NO_PAGES}")
    if not len(ids):
        raise InputError(f"{name}: expected at least one token, got none; without a prefix, there is nothing to cache")
    if len(ids) >= context:
        raise ContextLengthError(
            f"{name}: expected fewer tokens than the context of {context} positions, got {len(ids)}; shorten it",
            n_tokens=len(ids),
            context=context,
        )
    request = Request(list(ids), len(ids), 1, 0, pins=True)
    for _ in model.engine.draws(Call([request])):
        pass
    return CachedPrefix(model.engine, ids, request.pinned)


def load_prefix(model: LanguageModel, path: str | os.PathLike[str]) -> CachedPrefix:
    """Read a file that `CachedPrefix.save` wrote, and pin its prefix.

    The first page is computed again and compared, so that pages of another model or dtype are refused. Raises
    InputError, ModelFormatError, OSError.
    """
    found, executor = check_path("path", path), model.executor
    if not isinstance(executor, PagedExecutor):
        raise InputError(f"load_prefix: {_NO_PAGES}")
    ids, pages = _read(found, executor.kv_page_bytes)
    limit = executor.program.outputs["logits"]
    vocab, context = executor.program.values[limit].width, executor.program.max_positions
    if len(ids) < 1 or len(ids) >= context or len(pages) != len(ids) // executor.kv_page_len:
        raise _broken(found, "expected the token ids and whole pages of one text")
    if (ids < 0).any() or (ids >= vocab).any():
        raise _other(found)
    length = executor.kv_page_len
    if len(pages) and not np.array_equal(_first_page(executor, ids[:length]), pages[0]):
        raise _other(found)
    shared = [executor.new_page(page) for page in pages]
    model.engine.run(partial(_insert, ids.tolist(), shared, length))
    return cache_prefix(model, ids.tolist())


def _insert(ids: list[int], pages: Sequence[Any], page_len: int, plan: PagePlan) -> None:
    if plan.tree is None:
        return
    node = plan.tree.root()
    for i, page in enumerate(pages):
        node = plan.tree.add(node, ids[i * page_len : (i + 1) * page_len], page)


def _first_page(executor: Any, ids: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Compute the keys and values of the first page."""
    cache = executor.new_cache()
    try:
        n, none = len(ids), np.zeros(0, np.int32)
        ends = np.array([0, n], np.int32)
        executor.run(Step(ids, ends, np.arange(n, dtype=np.int32), none, caches=(cache,)), ["logits"])
        page: NDArray[np.uint8] = cache.share_page(0).read()
        return page
    finally:
        cache.close()


def _read(path: Path, page_bytes: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Return the ids and pages [n_pages, page_bytes] of a file. Raises ModelFormatError, InputError, OSError."""
    source = SourceFile(path)
    try:
        tensors, metadata = read_source(source)
        ids, pages = tensors.get("token_ids"), tensors.get("pages")
        if metadata.get("format") != _FORMAT or ids is None or pages is None or len(pages.shape) != 2:
            raise _broken(path, f"expected a file of the format {_FORMAT}, as CachedPrefix.save writes it")
        if ids.dtype != "I32" or len(ids.shape) != 1 or pages.dtype != "U8":
            raise _broken(path, "expected token ids of int32 and pages of bytes")
        if pages.shape[1] != page_bytes:
            raise _other(path)
        found = _bytes_of(ids).view(np.int32), _bytes_of(pages).reshape(pages.shape)
    finally:
        source.close()
    if _digest(found[0], found[1]) != metadata.get("sha256"):
        raise _broken(path, "expected the bytes that its SHA-256 describes, got others")
    return found


def _bytes_of(tensor: TensorInfo) -> NDArray[np.uint8]:
    with tensor.opened() as descriptor:
        data = read_at(descriptor, tensor.nbytes, tensor.offset)
    if len(data) != tensor.nbytes:
        raise _broken(tensor.path, f"expected {tensor.nbytes} bytes of {tensor.name}, got {len(data)}")
    return np.frombuffer(data, np.uint8)


def _digest(ids: NDArray[np.int32], pages: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(ids).data)
    for page in pages:
        digest.update(page.data)
    return digest.hexdigest()


def _broken(path: Path, message: str) -> ModelFormatError:
    return ModelFormatError(f"{path}: {message}", path=str(path), code="prefix")


def _other(path: Path) -> InputError:
    return InputError(
        f"{path}: expected keys and values of this model with its dtype and kv_dtype, got those of another one; "
        "compute it again with cache_prefix"
    )
