"""`encode`, `encode_query` and `encode_document`, and the checks of their arguments."""

from __future__ import annotations

import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeVar, cast, overload

import numpy as np
from numpy.typing import NDArray

from fastattn.checks import check_choice, check_count, check_flag, check_keywords, check_str, one_of, quote
from fastattn.errors import InputError
from fastattn.options import Choice, Count, check_fields, option
from fastattn.tasks.search.quantization import PRECISIONS, Precision
from fastattn.tasks.sentence.loading import is_on
from fastattn.tasks.sentence.text_model import TextTask
from fastattn.tokenizer import check_text

OutputValue = Literal["sentence_embedding", "token_embeddings"]
TASK_PROMPTS = {"query": ("query",), "document": ("document", "passage", "corpus")}
_Method = TypeVar("_Method", bound=Callable[..., Any])


def _output_value(name: str, value: object) -> str | None:
    return None if value is None else check_choice(name, value, ("sentence_embedding", "token_embeddings"))


def read_tensor(name: str, value: object) -> bool:
    """Return whether results are torch tensors, for which torch must be imported. Raises DTypeError, InputError."""
    wanted = check_flag(name, value)
    if wanted and "torch" not in sys.modules:
        raise InputError(
            f"{name}: expected False, because torch is not imported; import torch first, or use "
            "torch.from_numpy on the result"
        )
    return wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeOptions:
    """The checked arguments of one call; `EncodeMethods.encode` describes them. Raises DTypeError, InputError.

    cut: receives the index of each text that was cut and its remaining number of tokens. name, first: text i of the
    call is `name[first + i]` in messages, or with `places`, `name[places[i]]`.
    """

    prompt_name: str | None = option(None, check_str)
    prompt: str | None = option(None, lambda name, value: check_text(value, name))
    batch_size: int = option(32, Count(low=1))
    show_progress_bar: bool | None = option(None, check_flag)
    output_value: str | None = option("sentence_embedding", _output_value)
    precision: str | None = option(None, Choice(*PRECISIONS))
    convert_to_numpy: bool = option(True, check_flag)
    convert_to_tensor: bool = option(False, read_tensor)
    normalize_embeddings: bool = option(False, check_flag)
    truncate_dim: int | None = option(None, Count(low=1))
    task: Literal["query", "document"] | None = option(None, Choice("query", "document"))
    processing_kwargs: object = None
    cut: dict[int, int] | None = None
    name: str = "sentences"
    first: int = 0
    places: Sequence[int] | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def where(self, i: int) -> str:
        """Return the name of text i of the call in messages."""
        return f"{self.name}[{self.first + i if self.places is None else self.places[i]}]"


def _signature_of(encode: _Method) -> Callable[[Callable[..., Any]], _Method]:
    """Give another method the signature of `encode`. `help` does not show `task`; type checkers still accept it."""
    signature = inspect.signature(encode)
    parameters = [parameter for name, parameter in signature.parameters.items() if name != "task"]

    def decorate(method: Any) -> _Method:
        method.__signature__ = signature.replace(parameters=parameters)
        return cast(_Method, method)

    return decorate


class EncodeMethods(ABC):
    """The three ways to encode texts."""

    @property
    @abstractmethod
    def device(self) -> str:
        """The device that the model runs on."""

    prompts: dict[str, str]

    @abstractmethod
    def _encode(self, sentences: object, options: EncodeOptions) -> Any: ...

    @overload
    def encode(
        self,
        sentences: object = ...,
        prompt_name: str | None = ...,
        prompt: str | None = ...,
        batch_size: int = ...,
        show_progress_bar: bool | None = ...,
        output_value: Literal["sentence_embedding"] = ...,
        precision: Precision | None = ...,
        convert_to_numpy: Literal[True] = ...,
        convert_to_tensor: Literal[False] = ...,
        device: object = ...,
        normalize_embeddings: bool = ...,
        truncate_dim: int | None = ...,
        pool: None = ...,
        chunk_size: int | None = ...,
        *,
        inputs: object = ...,
        task: TextTask | None = ...,
        processing_kwargs: Mapping[str, Any] | None = ...,
    ) -> NDArray[Any]: ...

    @overload
    def encode(
        self,
        sentences: object = ...,
        prompt_name: str | None = ...,
        prompt: str | None = ...,
        batch_size: int = ...,
        show_progress_bar: bool | None = ...,
        output_value: OutputValue | None = ...,
        precision: Precision | None = ...,
        convert_to_numpy: bool = ...,
        convert_to_tensor: bool = ...,
        device: object = ...,
        normalize_embeddings: bool = ...,
        truncate_dim: int | None = ...,
        pool: None = ...,
        chunk_size: int | None = ...,
        *,
        inputs: object = ...,
        task: TextTask | None = ...,
        processing_kwargs: Mapping[str, Any] | None = ...,
    ) -> Any: ...

    def encode(
        self,
        sentences: object = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: OutputValue | None = "sentence_embedding",
        precision: Precision | None = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: object = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: None = None,
        chunk_size: int | None = None,
        *,
        inputs: object = None,
        task: TextTask | None = None,
        processing_kwargs: Mapping[str, Any] | None = None,
        **unknown: NoReturn,
    ) -> Any:
        """Return vectors in input order: float32 [n, d] for a list, array, Series or iterator of str; [d] for a str.

        In a sequence, a tuple or list of two str is a pair, tokenized together. The arguments are those of
        sentence-transformers. inputs: another name for sentences. prompt, or the entry prompt_name of `prompts`: put
        before each text, in a pair before the first one. output_value: "token_embeddings" returns float32 [n_tokens,
        width] per text, None returns a dict of all features per text. batch_size: the maximum number of texts in one
        step; it changes no vector. normalize_embeddings: scale vectors to length 1. truncate_dim: the number of
        dimensions to keep; None is the model's. precision: see `util.quantize_embeddings`; with int8 and uint8 each row
        depends on all rows. convert_to_numpy=False: return a list of vectors.
        convert_to_tensor: return torch tensors; torch must be imported. show_progress_bar: a bar on standard error;
        None shows it if the level of the logger "fastattn" is INFO or DEBUG. task: "query" or "document", as in
        `encode_query` and `encode_document`.
        processing_kwargs: {"text": {"max_length": n, "truncation": True}} for this call. device must be the model's
        own, and pool must be None. chunk_size changes nothing: one process uses all threads.
        Raises DTypeError, InputError, and NonFiniteError if a number is NaN or infinite.
        """
        check_keywords(unknown, _KEYWORDS, "encode")
        options = EncodeOptions(
            prompt_name=prompt_name,
            prompt=prompt,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            output_value=output_value,
            precision=precision,
            convert_to_numpy=convert_to_numpy,
            convert_to_tensor=convert_to_tensor,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
            task=task,
            processing_kwargs=processing_kwargs,
        )
        check_place(self.device, device, pool, chunk_size)
        return self._encode(one_of("sentences", sentences, "inputs", inputs), options)

    @_signature_of(encode)
    def encode_query(self, *args: Any, **options: Any) -> Any:
        """Call `encode` with task="query"; the default prompt is the one named "query"."""
        return self._encode_for("query", *args, **options)

    @_signature_of(encode)
    def encode_document(self, *args: Any, **options: Any) -> Any:
        """Call `encode` with task="document"; the default prompt is named "document", "passage" or "corpus".

        The first of these names in `prompts` is used; "document" exists unless it was deleted.
        """
        return self._encode_for("document", *args, **options)

    def _prompt_of(self, task: TextTask | None) -> str | None:
        """Return the name of the default prompt of a task, if there is one."""
        return next((name for name in TASK_PROMPTS.get(task or "", ()) if name in self.prompts), None)

    def _encode_for(
        self,
        task: TextTask,
        /,
        sentences: object = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        *args: Any,
        **options: Any,
    ) -> Any:
        check_keywords(options, [name for name in _KEYWORDS if name != "task"], f"encode_{task}")
        if prompt_name is None and prompt is None:
            prompt_name = self._prompt_of(task)
        return self.encode(sentences, prompt_name, prompt, *args, task=task, **options)


_KEYWORDS = tuple(inspect.signature(EncodeMethods.encode).parameters)[1:-1]  # without self and unknown


def check_place(own: str, device: object, pool: object, chunk_size: object) -> None:
    """Accept only the device that the model already runs on: one process uses all threads."""
    for place in device if isinstance(device, (list, tuple)) else [device]:
        if place is not None and not is_on(place, own):
            raise InputError(
                f"device: expected {own!r}, where this model is, got {quote(str(place))}; set it in the constructor"
            )
    if pool is not None:
        raise InputError("pool: expected None; one process uses all threads, so call encode without a pool")
    if chunk_size is not None:
        check_count("chunk_size", chunk_size, low=1)


def to_tensors(value: Any) -> Any:
    """Convert arrays, also those in lists and dicts, to torch tensors that share their memory (through DLPack)."""
    if isinstance(value, np.ndarray):
        return sys.modules["torch"].from_dlpack(value)
    if isinstance(value, list):
        return [to_tensors(item) for item in value]
    if isinstance(value, dict):
        return {name: to_tensors(item) for name, item in value.items()}
    return value
