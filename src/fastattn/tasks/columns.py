"""A column of texts as columns of results and errors: the work that engines such as Ray spread over processes.

A text that fails has None as its results, and a message in the column of errors; the other texts are computed. Results
do not depend on how an engine divides the column.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastattn.checks import check_count, check_flag, check_str
from fastattn.errors import FastattnError, InputError
from fastattn.tasks.demo import demo_model
from fastattn.tasks.pipelines import pipeline
from fastattn.tasks.sentence_transformer import SentenceTransformer
from fastattn.tokenizer import check_text

__all__ = ["ClassifyTexts", "Columns", "EmbedTexts", "GenerateTexts", "TextWork"]

Kind: TypeAlias = Literal["vector", "text", "number"]
Row: TypeAlias = "tuple[Any, ...] | str"  # the results of a text, or the message of its error
Run: TypeAlias = Callable[[list[str]], Sequence[Row]]
MAX_MODELS = 4  # models that a process keeps loaded
_SEED_BYTES = 6  # size of a seed that is derived from a text
_loading = threading.Lock()


@dataclass(frozen=True, slots=True)
class Columns:
    """The results of n texts: columns by name, and errors, each with n entries. A failed text has None in each column.

    A vector is float32 [d].
    """

    values: Mapping[str, list[Any]]
    errors: list[str | None]


@dataclass(frozen=True, kw_only=True)
class TextWork(ABC):
    """What to compute for each text of a column. The object is small and hashable, and its pickle has no weights.

    model: a folder or a hub id; None is a demo model that ships with fastattn. dtype, threads: as in
    `from_pretrained`; an engine's adapter replaces threads=None with the number of CPUs that the engine gives to a
    worker.
    """

    model: str | None = None
    dtype: str | None = None
    threads: int | None = None

    outputs: ClassVar[Mapping[str, Kind]]

    def __post_init__(self) -> None:
        for name in ("model", "dtype"):
            if getattr(self, name) is not None:
                check_str(name, getattr(self, name))
        if self.threads is not None:
            check_count("threads", self.threads, low=1)

    @abstractmethod
    def load(self) -> Run:
        """Load the model; return the function that computes texts. Raises what loading raises."""

    def __call__(self, texts: Iterable[object]) -> Columns:
        """Compute a column. The model is loaded at the first call of a process and then shared.

        Raises what loading raises, and errors that are not about a single text, such as OutOfMemory.
        """
        items = list(texts)
        rows = _rows(open_work(self), items)
        failed = [row if isinstance(row, str) else None for row in rows]
        values = {
            name: [None if isinstance(row, str) else row[i] for row in rows] for i, name in enumerate(self.outputs)
        }
        return Columns(values, failed)

    def describe(self) -> str:
        """Return the kind of work, and the options that can change a result."""
        given = ((f.name, getattr(self, f.name)) for f in fields(self) if f.metadata.get("changes", True))
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in given if name != 'threads')})"


@dataclass(frozen=True, kw_only=True)
class EmbedTexts(TextWork):
    """The column `embedding`: float32 [d] per text, with the bits of `SentenceTransformer.encode`.

    truncation: cut texts that are longer than `max_seq_length`, as `encode` does; False makes them errors. prompt_name,
    normalize_embeddings, batch_size: passed to `encode`; batch_size changes no result.
    """

    prompt_name: str | None = None
    normalize_embeddings: bool = False
    truncation: bool = True
    batch_size: int = field(default=32, metadata={"changes": False})

    outputs: ClassVar[Mapping[str, Kind]] = {"embedding": "vector"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("normalize_embeddings", self.normalize_embeddings)
        check_flag("truncation", self.truncation)
        check_count("batch_size", self.batch_size, low=1)

    def load(self) -> Run:
        """Load a SentenceTransformer. Raises what loading raises, InputError for an unknown prompt."""
        folder = str(demo_model("text-classification")) if self.model is None else self.model
        model = SentenceTransformer(folder, dtype=self.dtype, threads=self.threads)

        def run(texts: list[str]) -> list[Row]:
            vectors, cut = model.encode_with_cuts(
                texts,
                prompt_name=self.prompt_name,
                batch_size=self.batch_size,
                normalize_embeddings=self.normalize_embeddings,
            )
            rows: list[Row] = [(vector,) for vector in vectors]
            for i in () if self.truncation else cut:
                rows[i] = (
                    f"text: expected at most {model.max_seq_length} tokens, got more; truncation=True cuts the text"
                )
            return rows

        run([])  # checks the options
        return run


@dataclass(frozen=True, kw_only=True)
class ClassifyTexts(TextWork):
    """The columns `label` and `score` of the best label, as from `pipeline("text-classification")`.

    truncation: False makes texts that are longer than the context errors. max_batch_tokens: tokens of a step; it
    changes no result.
    """

    truncation: bool = False
    max_batch_tokens: int | None = field(default=None, metadata={"changes": False})

    outputs: ClassVar[Mapping[str, Kind]] = {"label": "text", "score": "number"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("truncation", self.truncation)
        if self.max_batch_tokens is not None:
            check_count("max_batch_tokens", self.max_batch_tokens, low=1)

    def load(self) -> Run:
        """Load a classifier. Raises what loading raises."""
        classify = pipeline(
            "text-classification",
            self.model,
            dtype=self.dtype,
            threads=self.threads,
            truncation=self.truncation,
            max_batch_tokens=self.max_batch_tokens,
            show_progress_bar=False,
        )
        return lambda texts: [(found["label"], found["score"]) for found in classify(texts)]


@dataclass(frozen=True, kw_only=True)
class GenerateTexts(TextWork):
    """The column `generated_text`: the new text after each prompt, as from `pipeline("text-generation")`.

    Greedy without do_sample. With it, the random numbers of a prompt depend on `seed` and on the prompt only, so
    equal prompts get equal texts, whichever worker computes them. temperature, top_k, top_p and
    repetition_penalty: None is the default of the checkpoint or of the pipeline. max_batch_size: prompts that run
    together; it changes no result.
    """

    max_new_tokens: int = 64
    do_sample: bool = False
    seed: int = 0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    stop_strings: tuple[str, ...] | None = None
    max_batch_size: int = field(default=32, metadata={"changes": False})

    outputs: ClassVar[Mapping[str, Kind]] = {"generated_text": "text"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("max_new_tokens", self.max_new_tokens, low=1)
        check_flag("do_sample", self.do_sample)
        check_count("seed", self.seed)
        check_count("max_batch_size", self.max_batch_size, low=1)
        if self.stop_strings is not None:
            if isinstance(self.stop_strings, str):
                raise InputError(f"stop_strings: expected a tuple of str, got {self.stop_strings!r:.80}")
            object.__setattr__(self, "stop_strings", tuple(self.stop_strings))

    def load(self) -> Run:
        """Load a language model. Raises what loading raises, InputError for a value that generation refuses."""
        names = ("max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "stop_strings")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        options: dict[str, Any] = {**given, "return_full_text": False, "show_progress_bar": False}
        generate: Any = pipeline(
            "text-generation",
            self.model,
            dtype=self.dtype,
            threads=self.threads,
            max_batch_size=self.max_batch_size,
            **options,
        )

        def sampled(text: str) -> Row:
            digest = hashlib.sha256(f"{self.seed}:{text}".encode()).digest()
            try:
                return (generate(text, seed=int.from_bytes(digest[:_SEED_BYTES], "little"))[0]["generated_text"],)
            except FastattnError as error:
                if error.item is None:
                    raise
                return _message(error)

        def run(texts: list[str]) -> list[Row]:
            if self.do_sample:  # calls from several threads share steps
                with ThreadPoolExecutor(self.max_batch_size) as pool:
                    return list(pool.map(sampled, texts))
            return [(found[0]["generated_text"],) for found in generate(texts)]

        return run


def open_work(work: TextWork) -> Run:
    """Return the function that computes a TextWork, with a model that is loaded once per process."""
    with _loading:
        return _load(work)


@functools.lru_cache(maxsize=MAX_MODELS)
def _load(work: TextWork) -> Run:
    return work.load()


def _rows(run: Run, items: Sequence[object]) -> list[Row]:
    """Compute each text; failed ones get the message of their error. Raises errors that are not about a single text."""
    rows: list[Row] = [""] * len(items)
    texts: dict[int, str] = {}
    for i, item in enumerate(items):
        checked = _checked(item)
        if isinstance(checked, FastattnError):
            rows[i] = str(checked)
        else:
            texts[i] = checked
    waiting = [list(texts)]
    while waiting:
        part = waiting.pop()
        try:
            found = run([texts[i] for i in part]) if part else ()
        except FastattnError as error:
            if error.index is None or error.item is None:
                raise
            rows[part[error.index]] = _message(error)
            # The texts before it usually have no errors, so the next try computes their part.
            waiting += [part[error.index + 1 :], part[: error.index]]
            continue
        for i, row in zip(part, found, strict=True):
            rows[i] = row
    return rows


def _checked(item: object) -> str | FastattnError:
    """Return a text, or the error for a value that is not a text."""
    try:
        return check_text(item, "text")
    except FastattnError as error:
        return error


def _message(error: FastattnError) -> str:
    """Return the message of an error about one text, without its position in a batch."""
    return f"text{str(error)[len(error.item or '') :]}"


def stacked(vectors: Sequence[NDArray[np.float32] | None]) -> NDArray[np.float32]:
    """Return vectors as float32 [n, d], with NaN in the rows of failed texts; [n, 0] if all texts failed."""
    width = next((len(vector) for vector in vectors if vector is not None), 0)
    rows = np.full((len(vectors), width), np.nan, np.float32)
    for i, vector in enumerate(vectors):
        if vector is not None:
            rows[i] = vector
    return rows
