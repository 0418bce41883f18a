"""`encode`, `encode_query` and `encode_document`, and the checks of their arguments."""

from __future__ import annotations

import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, cast, overload

import numpy as np
from numpy.typing import NDArray

from fastattn.checks import check_choice, check_count, check_flag, check_keywords, check_str, quote
from fastattn.errors import DTypeError, InputError
from fastattn.tasks.sentence.encoders import TextTask
from fastattn.tasks.sentence.loading import is_on
from fastattn.tasks.sentence.similarity import PRECISIONS
from fastattn.tokenizer import check_text, check_texts

OutputValue = Literal["sentence_embedding", "token_embeddings"]
Precision = Literal["float32", "int8", "uint8", "binary", "ubinary"]
_KEYWORDS = (
    "sentences", "inputs", "prompt_name", "prompt", "batch_size", "show_progress_bar", "output_value", "precision",
    "convert_to_numpy", "convert_to_tensor", "device", "normalize_embeddings", "truncate_dim", "pool", "chunk_size",
    "task", "processing_kwargs",
)  # fmt: skip
_log = logging.getLogger("fastattn")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeOptions:
    """The checked arguments of one call.

    tensor: return torch tensors instead of arrays. cut: receives the index of each text that was cut and its remaining
    number of tokens.
    """

    prompt_name: str | None = None
    prompt: str | None = None
    batch_size: int = 32
    progress: bool = False
    output_value: OutputValue | None = "sentence_embedding"
    precision: str = "float32"
    as_array: bool = True
    tensor: bool = False
    normalize: bool = False
    truncate_dim: int | None = None
    task: TextTask | None = None
    processing_kwargs: object = None
    cut: dict[int, int] | None = None


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

        The arguments are those of sentence-transformers. inputs: another name for sentences. prompt, or the entry
        prompt_name of `prompts`: put before each text. output_value: "token_embeddings" returns float32 [n_tokens,
        width] per text, None a dict of all features per text. precision: see `quantize_vectors`; with int8 and uint8
        each row depends on all rows. convert_to_numpy=False: a list of vectors. convert_to_tensor: torch tensors, if
        torch is imported. show_progress_bar: a bar on standard error; None shows it if the logger "fastattn" is at
        level INFO. task: "query" or "document", as in `encode_query` and `encode_document`. processing_kwargs: {"text":
        {"max_length": n, "truncation": True}} for this call. Devices, pools and chunks do not apply: one process uses
        all threads.
        Raises DTypeError, InputError, and NonFiniteError if a number is NaN or infinite.
        """
        check_keywords(unknown, _KEYWORDS, "encode")
        options = _options(
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
        _check_place(self.device, device, pool, chunk_size)
        return self._encode(_the_texts(sentences, inputs), options)

    @overload
    def encode_query(
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
        processing_kwargs: Mapping[str, Any] | None = ...,
    ) -> NDArray[Any]: ...

    @overload
    def encode_query(
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
        processing_kwargs: Mapping[str, Any] | None = ...,
    ) -> Any: ...

    def encode_query(
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
        processing_kwargs: Mapping[str, Any] | None = None,
        **unknown: NoReturn,
    ) -> Any:
        """Call `encode` with task="query"; the default prompt is the one named "query"."""
        check_keywords(unknown, _KEYWORDS, "encode_query")
        if prompt_name is None and prompt is None:
            prompt_name = "query" if "query" in self.prompts else None
        return self.encode(
            sentences,
            prompt_name,
            prompt,
            batch_size,
            show_progress_bar,
            output_value,
            precision,
            convert_to_numpy,
            convert_to_tensor,
            device,
            normalize_embeddings,
            truncate_dim,
            pool,
            chunk_size,
            inputs=inputs,
            task="query",
            processing_kwargs=processing_kwargs,
        )

    @overload
    def encode_document(
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
        processing_kwargs: Mapping[str, Any] | None = ...,
    ) -> NDArray[Any]: ...

    @overload
    def encode_document(
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
        processing_kwargs: Mapping[str, Any] | None = ...,
    ) -> Any: ...

    def encode_document(
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
        processing_kwargs: Mapping[str, Any] | None = None,
        **unknown: NoReturn,
    ) -> Any:
        """Call `encode` with task="document"; the default prompt is named "document", "passage" or "corpus".

        The first of these names in `prompts` is used; "document" exists unless it was deleted.
        """
        check_keywords(unknown, _KEYWORDS, "encode_document")
        if prompt_name is None and prompt is None:
            prompt_name = next((name for name in ("document", "passage", "corpus") if name in self.prompts), None)
        return self.encode(
            sentences,
            prompt_name,
            prompt,
            batch_size,
            show_progress_bar,
            output_value,
            precision,
            convert_to_numpy,
            convert_to_tensor,
            device,
            normalize_embeddings,
            truncate_dim,
            pool,
            chunk_size,
            inputs=inputs,
            task="document",
            processing_kwargs=processing_kwargs,
        )


def _options(
    *,
    prompt_name: object,
    prompt: object,
    batch_size: object,
    show_progress_bar: object,
    output_value: object,
    precision: object,
    convert_to_numpy: object,
    convert_to_tensor: object,
    normalize_embeddings: object,
    truncate_dim: object,
    task: object,
    processing_kwargs: object,
) -> EncodeOptions:
    if output_value is not None:
        check_choice("output_value", output_value, ("sentence_embedding", "token_embeddings"))
    if task is not None:
        check_choice("task", task, ("query", "document"))
    if show_progress_bar is None:
        progress = _log.getEffectiveLevel() in (logging.INFO, logging.DEBUG)
    else:
        progress = check_flag("show_progress_bar", show_progress_bar)
    tensor = check_flag("convert_to_tensor", convert_to_tensor)
    if tensor and "torch" not in sys.modules:
        raise InputError(
            "convert_to_tensor: expected False, because torch is not imported; import torch first, or use "
            "torch.from_numpy(model.encode(...))"
        )
    return EncodeOptions(
        prompt_name=None if prompt_name is None else check_str("prompt_name", prompt_name),
        prompt=None if prompt is None else check_text(prompt, "prompt"),
        batch_size=check_count("batch_size", batch_size, low=1),
        progress=progress,
        output_value=cast("OutputValue | None", output_value),
        precision="float32" if precision is None else check_choice("precision", precision, PRECISIONS),
        as_array=check_flag("convert_to_numpy", convert_to_numpy),
        tensor=tensor,
        normalize=check_flag("normalize_embeddings", normalize_embeddings),
        truncate_dim=None if truncate_dim is None else check_count("truncate_dim", truncate_dim, low=1),
        task=cast("TextTask | None", task),
        processing_kwargs=processing_kwargs,
    )


def _the_texts(sentences: object, inputs: object) -> object:
    if sentences is not None and inputs is not None:
        raise InputError("inputs: expected no value beside sentences, which is another name of it")
    return sentences if inputs is None else inputs


def read_sentences(sentences: object, name: str) -> list[str]:
    """Return a list of texts. Raises DTypeError, which says what to do with pairs of texts."""
    try:
        return check_texts(sentences, name)
    except DTypeError as error:
        items = sentences if isinstance(sentences, (list, tuple)) else ()
        if not any(isinstance(item, (list, tuple)) and len(item) == 2 for item in items):
            raise
        raise DTypeError(
            f"{error}; a vector is that of one text: encode the texts of a pair one by one, or join them. A "
            'cross-encoder takes pairs: pipeline("text-classification")({"text": a, "text_pair": b})'
        ) from None


def _check_place(own: str, device: object, pool: object, chunk_size: object) -> None:
    """Accept only the device that the model already runs on: one process uses all threads."""
    for place in device if isinstance(device, (list, tuple)) else [device]:
        if place is not None and not is_on(place, own):
            raise InputError(
                f"device: this model is on {own!r}, got {quote(str(place))}; name the device when you load it"
            )
    if pool is not None:
        raise InputError("pool: expected None; one process uses all threads, so call encode without a pool")
    if chunk_size is not None:
        check_count("chunk_size", chunk_size, low=1)


def to_tensors(value: Any) -> Any:
    """Convert arrays, also those in lists and dicts, to torch tensors that share their memory."""
    if isinstance(value, np.ndarray):
        return sys.modules["torch"].from_numpy(value)
    if isinstance(value, list):
        return [to_tensors(item) for item in value]
    if isinstance(value, dict):
        return {name: to_tensors(item) for name, item in value.items()}
    return value
