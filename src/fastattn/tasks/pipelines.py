"""`pipeline(task)`: transformers' pipelines with transformers' output shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, overload

import numpy as np
from numpy.typing import NDArray

from fastattn.checks import check_count
from fastattn.errors import ContextLengthError, DTypeError, InputError
from fastattn.generation.generate import GenerationArgs, complete, need_tokenizer
from fastattn.generation.options import read_options
from fastattn.models.auto import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    CausalLM,
    Encoder,
    SequenceClassifier,
)
from fastattn.models.auto_tokenizer import AutoTokenizer
from fastattn.models.base import Model
from fastattn.tasks.demo import demo_model
from fastattn.tasks.finite import check_finite
from fastattn.tokenizer import Tokenizer, check_one_dimension, check_text, is_list_like

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

Prediction: TypeAlias = dict[str, Any]
Activation: TypeAlias = Literal["sigmoid", "softmax", "none"]
TASKS = ("text-generation", "text-classification", "sentiment-analysis", "feature-extraction")
_PIPELINE_NEW_TOKENS = 256


@overload
def pipeline(
    task: Literal["text-generation"],
    model: str | Path | CausalLM | None = None,
    *,
    tokenizer: str | Path | Tokenizer | None = None,
    dtype: str | None = None,
    kv_dtype: str | None = None,
    head_dtype: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | None = None,
) -> TextGenerationPipeline: ...
@overload
def pipeline(
    task: Literal["text-classification", "sentiment-analysis"],
    model: str | Path | SequenceClassifier | None = None,
    *,
    tokenizer: str | Path | Tokenizer | None = None,
    dtype: str | None = None,
    kv_dtype: str | None = None,
    head_dtype: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | None = None,
) -> TextClassificationPipeline: ...
@overload
def pipeline(
    task: Literal["feature-extraction"],
    model: str | Path | Encoder | None = None,
    *,
    tokenizer: str | Path | Tokenizer | None = None,
    dtype: str | None = None,
    kv_dtype: str | None = None,
    head_dtype: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | None = None,
) -> FeatureExtractionPipeline: ...
def pipeline(
    task: str,
    model: Any = None,
    *,
    tokenizer: str | Path | Tokenizer | None = None,
    dtype: str | None = None,
    kv_dtype: str | None = None,
    head_dtype: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | None = None,
) -> Any:
    """A callable for a task: "text-generation", "text-classification" ("sentiment-analysis") or "feature-extraction".

    model: a directory, a hub id, a loaded model, or None for the small demo model that comes with fastattn.
    tokenizer: None is the model's own, else a directory, a hub id or a loaded one. The other options are for loading,
    as in `from_pretrained`; revision is the model's, not the tokenizer's.
    `close` or a `with` block gives the memory back.
    """
    if task not in TASKS:
        raise InputError(f"task: expected one of {', '.join(TASKS)}, got {task!r}")
    if model is None:
        model = demo_model("text-generation" if task == "text-generation" else "text-classification")
    if isinstance(tokenizer, (str, Path)):
        tokenizer = AutoTokenizer.from_pretrained(
            tokenizer, cache_dir=cache_dir, local_files_only=local_files_only, token=token
        )
    load = isinstance(model, (str, Path))
    options: Any = {
        "dtype": dtype, "kv_dtype": kv_dtype, "head_dtype": head_dtype, "device": device, "threads": threads,
        "revision": revision, "cache_dir": cache_dir, "local_files_only": local_files_only, "token": token,
    }  # fmt: skip
    if task == "text-generation":
        if load:
            model = AutoModelForCausalLM.from_pretrained(model, **options)
        return TextGenerationPipeline(_checked(model, CausalLM), tokenizer)
    if task == "feature-extraction":
        if load:
            model = AutoModel.from_pretrained(model, **options)
        return FeatureExtractionPipeline(_checked(model, Encoder), tokenizer)
    if load:
        model = AutoModelForSequenceClassification.from_pretrained(model, **options)
    return TextClassificationPipeline(_checked(model, SequenceClassifier), tokenizer)


def _checked(model: Any, expected: type[Any]) -> Any:
    if not isinstance(model, expected):
        raise DTypeError(
            f"model: expected a path, a hub id or a loaded {expected.__name__}, got {type(model).__name__}"
        )
    return model


class _Pipeline:
    """What all pipelines share."""

    model: Model
    tokenizer: Tokenizer

    def close(self) -> None:
        """Give the model's memory back, also that of a model that was handed over loaded."""
        self.model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.model!r}>"


class TextGenerationPipeline(_Pipeline):
    """Continues texts. As in transformers it samples at temperature 0.7 for up to 256 tokens unless told otherwise."""

    model: CausalLM

    def __init__(self, model: CausalLM, tokenizer: Tokenizer | None = None) -> None:
        self.model = model
        self.tokenizer = tokenizer or need_tokenizer(model, "text-generation")

    def __call__(
        self, text_inputs: Any, *, return_full_text: bool = True, **options: Unpack[GenerationArgs]
    ) -> list[dict[str, str]] | list[list[dict[str, str]]]:
        """[{"generated_text": ...}] for a str, a list of those for a list, array or Series of str.

        return_full_text=False leaves the prompt away. `GenerationOptions` describes the options.
        """
        options.setdefault("do_sample", True)
        if options["do_sample"]:
            options.setdefault("temperature", 0.7)
        checked = read_options(options)
        single = isinstance(text_inputs, str)
        texts = [text_inputs] if single else _texts(text_inputs, "text_inputs")
        encoded = [self.tokenizer.encode(check_text(text, f"text_inputs[{i}]")) for i, text in enumerate(texts)]
        prompts = [np.array(ids, np.int32) for ids in encoded]
        requests = complete(
            self.model, prompts, checked, tokenizer=self.tokenizer, default_new_tokens=_PIPELINE_NEW_TOKENS
        )
        out = []
        for text, request in zip(texts, requests, strict=True):
            new = "" if request.text is None else request.text.text
            out.append([{"generated_text": text + new if return_full_text else new}])
        return out[0] if single else out


class TextClassificationPipeline(_Pipeline):
    """Labels texts or pairs of texts."""

    model: SequenceClassifier

    def __init__(self, model: SequenceClassifier, tokenizer: Tokenizer | None = None) -> None:
        self.model = model
        self.tokenizer = tokenizer or need_tokenizer(model, "text-classification")

    def __call__(
        self,
        inputs: Any,
        *,
        top_k: int | Literal["default"] | None = "default",
        function_to_apply: Activation | None = None,
        truncation: bool = False,
        batch_size: int = 32,
    ) -> Any:
        """[{"label", "score"}, ...], one a text, for a str too.

        A pair is {"text": ..., "text_pair": ...}. With top_k, even 1, each text gives a list of its top_k labels,
        highest score first; None is all of them. Scores: sigmoid of one label or of a multi-label model, none of a
        regression, else softmax; function_to_apply overrides that. Texts longer than the model's context are
        refused unless truncation=True. NonFiniteError: a score is NaN or infinite.
        """
        check_count("batch_size", batch_size, low=1)
        if top_k is not None and top_k != "default":
            check_count("top_k", top_k, low=1)
        single = isinstance(inputs, (str, Mapping))
        items = [_pair(item, i) for i, item in enumerate([inputs] if single else _texts(inputs))]
        activation = function_to_apply or self._activation()
        if activation not in ("sigmoid", "softmax", "none"):
            raise InputError(f'function_to_apply: expected "sigmoid", "softmax" or "none", got {activation!r}')
        context = self.model.executor.program.max_positions
        results: list[Any] = []
        for ids, type_ids in _batches(self.tokenizer, items, batch_size, context, truncation=truncation):
            types = self.model.types_of(self.tokenizer, type_ids)
            for row in self.model(ids, token_type_ids=types).logits:
                scores = _activate(row, activation)
                check_finite(scores, f"inputs[{len(results)}]", "scores")
                results.append(self._predictions(scores, top_k))
        if not single:
            return results
        return results if top_k == "default" and isinstance(inputs, str) else results[0]

    def _activation(self) -> Activation:
        problem = self.model.config.problem_type
        if problem == "regression":
            return "none"
        return "sigmoid" if problem == "multi_label_classification" or len(self.model.id2label) == 1 else "softmax"

    def _predictions(self, scores: NDArray[np.floating[Any]], top_k: Any) -> Prediction | list[Prediction]:
        order = np.argsort(-scores, kind="stable")
        ranked = [{"label": self.model.id2label[int(i)], "score": float(scores[i])} for i in order]
        return ranked[0] if top_k == "default" else ranked[:top_k]


class FeatureExtractionPipeline(_Pipeline):
    """The last hidden states of texts."""

    model: Encoder

    def __init__(self, model: Encoder, tokenizer: Tokenizer | None = None) -> None:
        self.model = model
        self.tokenizer = tokenizer or need_tokenizer(model, "feature-extraction")

    def __call__(
        self, inputs: Any, *, return_tensors: bool = False, truncation: bool = False, batch_size: int = 32
    ) -> Any:
        """Nested lists [1, seq_len, hidden_size], or with return_tensors=True such an array; a list in, a list out.

        NonFiniteError: a number is NaN or infinite.
        """
        check_count("batch_size", batch_size, low=1)
        single = isinstance(inputs, str)
        texts = [check_text(text, f"inputs[{i}]") for i, text in enumerate([inputs] if single else _texts(inputs))]
        context = self.model.executor.program.max_positions
        results: list[Any] = []
        pairs = [(text, None) for text in texts]
        for ids, type_ids in _batches(self.tokenizer, pairs, batch_size, context, truncation=truncation):
            types = self.model.types_of(self.tokenizer, type_ids)
            for rows in self.model(ids, token_type_ids=types).last_hidden_state:
                check_finite(rows, f"inputs[{len(results)}]", "hidden states")
                results.append(rows[None] if return_tensors else [rows.tolist()])
        return results[0] if single else results


def _texts(inputs: object, name: str = "inputs") -> list[Any]:
    if not is_list_like(inputs):
        raise DTypeError(f"{name}: expected str or a sequence of str, got {type(inputs).__name__}")
    check_one_dimension(inputs, name)
    return list(cast("Iterable[Any]", inputs))


def _pair(item: object, index: int) -> tuple[str, str | None]:
    name = f"inputs[{index}]"
    if isinstance(item, Mapping):
        if not {"text"} <= set(item) <= {"text", "text_pair"}:
            raise InputError(f'{name}: expected the keys "text" and "text_pair", got {sorted(map(str, item))}')
        pair = item.get("text_pair")
        return check_text(item["text"], name), None if pair is None else check_text(pair, name)
    return check_text(item, name), None


def _batches(
    tokenizer: Tokenizer, items: Sequence[tuple[str, str | None]], batch_size: int, context: int, *, truncation: bool
) -> Iterable[tuple[list[NDArray[np.int32]], list[NDArray[np.int32]]]]:
    """Token ids and token type ids of `batch_size` texts at a time."""
    for start in range(0, len(items), batch_size):
        encoded = tokenizer.encode_batch(items[start : start + batch_size], max_length=context if truncation else None)
        for i, (ids, _) in enumerate(encoded, start):
            if len(ids) > context:
                raise ContextLengthError(
                    f"inputs[{i}]: {len(ids)} tokens, the model's context is {context}; truncation=True cuts it",
                    index=i,
                    n_tokens=len(ids),
                    context=context,
                )
        yield [ids for ids, _ in encoded], [type_ids for _, type_ids in encoded]


def _activate(row: NDArray[np.floating[Any]], activation: Activation) -> NDArray[np.floating[Any]]:
    if activation == "none":
        return row
    wide = row.astype(np.float64)
    if activation == "sigmoid":
        return np.exp(-np.logaddexp(0.0, -wide))
    top = wide.max()
    if not np.isfinite(top):
        return np.full_like(wide, np.nan)  # without numpy's warning
    weights = np.exp(wide - top)
    return cast("NDArray[np.floating[Any]]", weights / weights.sum())
