"""`TextEmbedding` and `TextCrossEncoder`: lazy iterators over vectors and scores, with the calls of fastembed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastattn.checks import Neutral, check_count, check_flag, check_keywords, check_neutral, quote
from fastattn.errors import DTypeError, InputError
from fastattn.tasks.cross_encoder import CrossEncoder
from fastattn.tasks.rerank.inputs import read_pair
from fastattn.tasks.sentence.encoding import EncodeOptions
from fastattn.tasks.sentence.text_model import TextTask
from fastattn.tasks.sentence_transformer import SentenceTransformer
from fastattn.tokenizer import check_text, is_list_like
from fastattn.tokenizer.texts import iterate_items

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

_Model = TypeVar("_Model", SentenceTransformer, CrossEncoder)
_Item = TypeVar("_Item")
_STEP = 32  # texts per step of the model
_CPU_PROVIDER = "CPUExecutionProvider"
_UNUSED = {"enable_cpu_mem_arena": Neutral(check=check_flag), "mmap": Neutral(check=check_flag)}


class GeneratorLoadArgs(TypedDict, total=False):
    """More options for loading.

    dtype, kv_dtype, revision, token, local_files_only: as in `SentenceTransformer`. specific_model_path: the folder of
    the model, instead of model_name. enable_cpu_mem_arena and mmap change nothing.
    """

    dtype: Any
    kv_dtype: Any
    revision: str | None
    token: str | bool | None
    local_files_only: bool
    specific_model_path: str | Path | None
    enable_cpu_mem_arena: bool | None
    mmap: bool | None


class _Generator(ABC, Generic[_Model]):
    """A model that is loaded at once or on first use."""

    def __init__(
        self,
        model_name: str | Path,
        cache_dir: str | Path | None = None,
        threads: int | None = None,
        providers: Sequence[Any] | None = None,
        cuda: object = False,
        device_ids: Sequence[int] | None = None,
        lazy_load: bool = False,
        **options: Unpack[GeneratorLoadArgs],
    ) -> None:
        """Load a folder or a hub id. model_name, cache_dir, threads: as in `SentenceTransformer`.

        lazy_load: load on first use. cuda: True for device "cuda"; "auto" is the CPU. providers, device_ids: accepted
        if they name the CPU and the first GPU. Raises what `SentenceTransformer` raises.
        """
        given: dict[str, Any] = {**options}
        check_keywords(given, GeneratorLoadArgs.__annotations__, type(self).__name__)
        check_neutral({name: given.pop(name, None) for name in _UNUSED}, _UNUSED, type(self).__name__, ())
        path = given.pop("specific_model_path", None)
        self.model_name, self.cache_dir, self.threads = model_name, cache_dir, threads
        device = _device(cuda, providers, device_ids)
        self._arguments = {"cache_dir": cache_dir, "threads": threads, "device": device, **given}
        self._source = model_name if path is None else path
        self._model: _Model | None = None
        self._closed = False
        if not check_flag("lazy_load", lazy_load):
            self._model = self._load()

    @abstractmethod
    def _load(self) -> _Model: ...

    @property
    def model(self) -> _Model:
        """The loaded model. Raises what loading raises, and InputError after `close`."""
        if self._closed:
            raise InputError("model: expected an open model, got one after close()")
        if self._model is None:
            self._model = self._load()
        return self._model

    def close(self) -> None:
        """Free the model's memory; any later use raises InputError."""
        self._closed = True
        if self._model is not None:
            self._model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TextEmbedding(_Generator[SentenceTransformer]):
    """Turns texts into vectors one by one, from any iterable, in bounded memory.

    The vectors are those of `SentenceTransformer.encode`: normalized if the folder has a module Normalize.
    """

    def __init__(
        self,
        model_name: str | Path = "BAAI/bge-small-en-v1.5",
        cache_dir: str | Path | None = None,
        threads: int | None = None,
        providers: Sequence[Any] | None = None,
        cuda: object = False,
        device_ids: Sequence[int] | None = None,
        lazy_load: bool = False,
        **options: Unpack[GeneratorLoadArgs],
    ) -> None:
        """Load a folder or a hub id. The arguments are those of `TextCrossEncoder`.

        Raises what `SentenceTransformer` raises.
        """
        super().__init__(model_name, cache_dir, threads, providers, cuda, device_ids, lazy_load, **options)

    def _load(self) -> SentenceTransformer:
        return SentenceTransformer(self._source, **self._arguments)

    @property
    def embedding_size(self) -> int:
        """The length of a vector."""
        return self.model.get_embedding_dimension()

    def embed(
        self, documents: str | Iterable[str], batch_size: int = 256, parallel: int | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """Yield the vector [d] of each text, in order.

        batch_size: the number of texts that are read ahead. parallel changes nothing: one process uses all threads.
        Raises DTypeError, InputError, and while it yields NonFiniteError.
        """
        return self._vectors("documents", documents, batch_size, parallel, None)

    def query_embed(
        self, query: str | Iterable[str], batch_size: int = 256, parallel: int | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """Yield the vectors of questions, with the prompt of `SentenceTransformer.encode_query`. See `embed`."""
        return self._vectors("query", query, batch_size, parallel, "query")

    def passage_embed(
        self, texts: str | Iterable[str], batch_size: int = 256, parallel: int | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """Yield the vectors of documents, with the prompt of `SentenceTransformer.encode_document`. See `embed`."""
        return self._vectors("texts", texts, batch_size, parallel, "document")

    def token_count(self, texts: str | Iterable[str], batch_size: int = 1024) -> int:
        """Return the number of tokens of all texts, without those that are cut. Raises DTypeError, InputError."""
        size = check_count("batch_size", batch_size, low=1)
        return _count(self.model, _read_texts("texts", texts), size)

    def _vectors(
        self, name: str, texts: object, batch_size: int, parallel: int | None, task: TextTask | None
    ) -> Iterator[NDArray[np.float32]]:
        size, items = _check_call(batch_size, parallel), _read_texts(name, texts)
        model, pairs = self.model, ((text, None) for text in items)
        options = EncodeOptions(
            prompt_name=model._prompt_of(task),
            batch_size=min(size, _STEP),
            show_progress_bar=False,
            task=task,
            name=name,
        )

        def run() -> Iterator[NDArray[np.float32]]:
            for _, vectors in model._stream(_parts(pairs, size), options, ahead=size > 1):
                yield from vectors

        return run()


class TextCrossEncoder(_Generator[CrossEncoder]):
    """Scores texts for a query one by one, from any iterable, in bounded memory.

    The scores are logits: those of `CrossEncoder.predict` with the activation function "Identity". For a model with
    several labels, they are those of the first label.
    """

    def _load(self) -> CrossEncoder:
        return CrossEncoder(self._source, **self._arguments)

    def rerank(self, query: str, documents: Iterable[str], batch_size: int = 64) -> Iterator[float]:
        """Yield the score of each document, in order. batch_size: the number of documents that are read ahead.

        Raises DTypeError, InputError, and while it yields NonFiniteError.
        """
        first = check_text(query, "query")
        pairs = ((first, text) for text in _read_texts("documents", documents))
        return self._run("documents", pairs, _check_call(batch_size, None))

    def rerank_pairs(
        self, pairs: Iterable[tuple[str, str]], batch_size: int = 64, parallel: int | None = None
    ) -> Iterator[float]:
        """Yield the score of each pair of a query and a document, in order. See `rerank`. parallel changes nothing."""
        items = iterate_items(pairs, "pairs")
        read = (read_pair(f"pairs[{i}]", item) for i, item in enumerate(items))
        return self._run("pairs", read, _check_call(batch_size, parallel))

    def token_count(self, pairs: Iterable[tuple[str, str]], batch_size: int = 1024) -> int:
        """Return the number of tokens of all pairs, without those that are cut. Raises DTypeError, InputError."""
        size = check_count("batch_size", batch_size, low=1)
        items = iterate_items(pairs, "pairs")
        read = (read_pair(f"pairs[{i}]", item) for i, item in enumerate(items))
        return _count(self.model, read, size)

    def _run(self, name: str, pairs: Iterator[tuple[str, str]], size: int) -> Iterator[float]:
        model = self.model

        def run() -> Iterator[float]:
            parts, step = _parts(pairs, size), min(size, _STEP)
            for _, logits in model._stream(parts, batch_size=step, where=lambda i: f"{name}[{i}]", ahead=size > 1):
                yield from logits[:, 0].tolist()

        return run()


def _count(model: SentenceTransformer | CrossEncoder, items: Iterator[Any], size: int) -> int:
    """Return the number of tokens that a model reads of all texts or pairs."""
    counts = (model.count_tokens(part) for _, part in _windows(items, size))
    return int(sum(min(count, model.max_seq_length) for part in counts for count in part))


def _windows(items: Iterator[_Item], size: int) -> Iterator[tuple[int, list[_Item]]]:
    """Yield the items in lists of at most `size`, each with the place of its first item.

    An error of the iterator is raised after the items before it.
    """
    start = 0
    while True:
        part: list[_Item] = []
        error: Exception | None = None
        try:
            part.extend(islice(items, size))
        except Exception as found:  # of any type: it may come from the caller's generator
            error = found
        if part:
            yield start, part
            start += len(part)
        if error is not None:
            raise error
        if not part:
            return


def _parts(items: Iterator[_Item], size: int) -> Iterator[tuple[int, list[_Item]]]:
    """Yield windows so small that two of them have at most `size` items; windows of one item if `size` is 1."""
    return _windows(items, max(1, size // 2))


def _read_texts(name: str, texts: object) -> Iterator[str]:
    """Return an iterator over checked texts: those of an iterable, or one text. Raises DTypeError, InputError."""
    if not is_list_like(texts):
        return iter([check_text(texts, name)])
    items = iterate_items(texts, name)
    return (check_text(text, f"{name}[{i}]") for i, text in enumerate(items))


def _check_call(batch_size: object, parallel: object) -> int:
    if parallel is not None:
        check_count("parallel", parallel)
    return check_count("batch_size", batch_size, low=1)


def _device(cuda: object, providers: object, device_ids: object) -> str:
    """Return the device that fastembed's arguments name. Raises DTypeError, InputError."""
    wanted = getattr(cuda, "value", cuda)
    if isinstance(wanted, (bool, np.bool_)) or wanted is None:
        device = "cuda" if wanted else "cpu"
    elif isinstance(wanted, str) and wanted in ("auto", "cpu", "cuda"):
        device = "cuda" if wanted == "cuda" else "cpu"
    else:
        raise InputError(f"cuda: expected True, False, 'auto', 'cpu' or 'cuda', got {quote(wanted)}")
    if providers is not None:
        names = [item[0] if isinstance(item, tuple) else item for item in _items("providers", providers)]
        if any(name != _CPU_PROVIDER for name in names):
            raise InputError(f"providers: expected None or [{_CPU_PROVIDER!r}], got {quote(names)}; use cuda=True")
    if device_ids is not None and _items("device_ids", device_ids) not in ([], [0]):
        raise InputError(f"device_ids: expected None or [0], got {quote(device_ids)}; set CUDA_VISIBLE_DEVICES")
    return device


def _items(name: str, value: object) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise DTypeError(f"{name}: expected a list or None, got {type(value).__name__}")
    return list(value)
