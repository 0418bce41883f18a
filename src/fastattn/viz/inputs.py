"""The arguments of the pictures: models or folders, texts, and choices of layers and heads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from fastattn.api.auto import AutoModel, AutoModelForCausalLM
from fastattn.api.causal_lm import CausalLM
from fastattn.api.load_args import HubArgs, ModelArgs
from fastattn.api.load_options import read_hub_options
from fastattn.api.loading import find_folder
from fastattn.api.model import Model
from fastattn.checks import check_count, check_path, quote
from fastattn.errors import ContextLengthError, DTypeError, InputError
from fastattn.generation.prompts import need_tokenizer
from fastattn.models.adapters import open_with_adapter
from fastattn.models.registry import find_family
from fastattn.tasks.pipeline_base import Pipeline
from fastattn.tasks.sentence_transformer import SentenceTransformer
from fastattn.tokenizer import Tokenizer, check_text
from fastattn.tokenizer.inputs import read_inputs

if TYPE_CHECKING:
    from typing_extensions import Unpack

ModelLike: TypeAlias = "Model | SentenceTransformer | Pipeline[Any] | str | os.PathLike[str]"
# Endings of architectures that are not language models, in a family that has them.
_OTHER_HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")


@contextmanager
def opened(model: ModelLike) -> Iterator[Model]:
    """Yield a model; one loaded here from a folder or hub id is closed afterwards."""
    found = _unwrap(model)
    if isinstance(found, Model):
        yield found
        return
    with AutoModel.from_pretrained(_folder("model", found)) as loaded:
        yield loaded


@contextmanager
def opened_lm(lm: ModelLike) -> Iterator[CausalLM]:
    """Yield a language model, like `opened`. Raises DTypeError for another kind of model."""
    found = _unwrap(lm)
    if isinstance(found, CausalLM):
        yield found
    elif isinstance(found, Model):
        raise DTypeError(
            f"lm: expected a language model, got {type(found).__name__}; load it with AutoModelForCausalLM"
        )
    else:
        with AutoModelForCausalLM.from_pretrained(_folder("lm", found)) as loaded:
            yield loaded


def _unwrap(model: object) -> object:
    return model.model if isinstance(model, (SentenceTransformer, Pipeline)) else model


def _folder(name: str, value: object) -> str | Path:
    if not isinstance(value, (str, os.PathLike)):
        raise DTypeError(f"{name}: expected a model, a folder or a hub id, got {type(value).__name__}")
    return value if isinstance(value, str) else check_path(name, value)


def name_of(model: Model) -> str:
    """Return a short name of a model for a title."""
    return Path(model.name_or_path).name or model.name_or_path


def tokenizer_of(model: Model, what: str) -> Tokenizer:
    """Return the tokenizer of a model. Raises ConfigError if it has none."""
    return need_tokenizer(model, what)


Encoded: TypeAlias = "tuple[NDArray[np.int32], NDArray[np.int32] | None]"


def encode_texts(model: Model, text: Any, text_pair: Any, what: str) -> tuple[list[Encoded], bool]:
    """Return the ids and types of each text or pair, and whether `text` is a sequence. Raises InputError if empty."""
    tokenizer = tokenizer_of(model, what)
    read = read_inputs("text", text, text_pair)
    pairs = cast("list[tuple[str, str | None]]", read.pairs)
    if not pairs:
        raise InputError("text: expected at least one text, got none")
    found: list[Encoded] = []
    for i, (ids, types) in enumerate(tokenizer.encode_pairs(pairs)):
        name = f"text[{i}]" if read.batched else "text"
        if not len(ids):
            raise InputError(f"{name}: expected a text of at least one token, got {quote(pairs[i][0])}")
        _check_context(model, name, len(ids), index=i if read.batched else None)
        found.append((ids, model.types_of(tokenizer, types)))
    return found, read.batched


def encode_prompt(model: Model, text: object, name: str, *, low: int) -> tuple[str, NDArray[np.int32]]:
    """Return a text and its ids for a language model. Raises InputError if there are fewer than `low`."""
    checked = check_text(text, name)
    ids = np.array(tokenizer_of(model, name).encode(checked), np.int32)
    if len(ids) < low:
        raise InputError(f"{name}: expected a text of at least {low} token{'s' * (low > 1)}, got {quote(checked)}")
    _check_context(model, name, len(ids))
    return checked, ids


def _check_context(model: Model, name: str, n_tokens: int, *, index: int | None = None) -> None:
    context = model.config.max_positions
    if n_tokens > context:
        raise ContextLengthError(
            f"{name}: expected at most {context} tokens, the model's context, got {n_tokens}; shorten it",
            index=index,
            n_tokens=n_tokens,
            context=context,
        )


def chosen(name: str, value: object, n: int) -> list[int]:
    """Return a choice of 0 to n - 1: an integer or a sequence of different ones. Raises DTypeError, InputError."""
    if isinstance(value, (str, bytes)) or not isinstance(value, (Sequence, np.ndarray, range)):
        return [check_count(name, value, high=n - 1)]
    found = [check_count(f"{name}[{i}]", item, high=n - 1) for i, item in enumerate(value)]
    if not found or len(set(found)) < len(found):
        raise InputError(f"{name}: expected at least one number, and each only once, got {quote(found)}")
    return found


@contextmanager
def opened_any(model: ModelLike) -> Iterator[Model]:
    """Yield a model, like `opened`, but load a folder or hub id as a language model if it is one."""
    found = _unwrap(model)
    if isinstance(found, Model):
        yield found
        return
    with load_any(_folder("model", found)) as loaded:
        yield loaded


def load_any(path_or_id: str | Path, **options: Unpack[ModelArgs]) -> Model:
    """Load a checkpoint as a language model if its family has language models and config.json names no other head."""
    given: dict[str, Any] = dict(options)
    hub = read_hub_options({name: given[name] for name in HubArgs.__annotations__ if name in given})
    directory = find_folder(path_or_id, hub)
    with open_with_adapter(directory) as checkpoint:
        config = checkpoint.config
    named = config.get("architectures") or []
    other = isinstance(named, list) and any(str(name).endswith(_OTHER_HEADS) for name in named)
    is_lm = "causal-lm" in find_family(config).tasks and not other
    return (AutoModelForCausalLM if is_lm else AutoModel).from_pretrained(path_or_id, **options)
