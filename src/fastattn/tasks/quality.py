"""Measures the quality loss of bfloat16, int8 and int4: compares each dtype with float32 on the same texts."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastattn.api.auto import AUTO_CLASSES
from fastattn.api.causal_lm import CausalLM
from fastattn.api.encoders import Encoder, SequenceClassifier
from fastattn.checkpoint.locate import find_model
from fastattn.checks import check_choice, check_count, quote
from fastattn.errors import ConfigError, DTypeError, InputError
from fastattn.formats import PACKED_DTYPES
from fastattn.generation.prompts import need_tokenizer
from fastattn.models.adapters import open_with_adapter
from fastattn.models.registry import build
from fastattn.models.tasks import Task
from fastattn.tasks.finite import check_finite
from fastattn.tokenizer import check_texts

AnyModel: TypeAlias = CausalLM | Encoder | SequenceClassifier
Float64 = NDArray[np.float64]

BASELINE = "float32"
WINDOW = 256  # maximum number of tokens that a language model reads at once


@dataclass(frozen=True, slots=True)
class DtypeQuality:
    """The quality of one dtype. Fields that do not apply to the kind of model are None.

    weight_bytes: size of the packed weights. hidden_state_errors: for the embeddings and every layer, the root mean
    square of the differences from float32 divided by that of the float32 values.
    Language models: perplexity of the next token; bits_per_byte of the text; kl: mean divergence of the next-token
    distributions from float32's, in nats; top1_agreement: share of positions with the same most likely token.
    Encoders: mean and minimum cosine between a text's vectors (means over tokens) in float32 and in this dtype.
    Classifiers also have label_agreement: the share of texts with the same label.
    """

    dtype: str
    weight_bytes: int
    hidden_state_errors: tuple[float, ...]
    perplexity: float | None = None
    bits_per_byte: float | None = None
    kl: float | None = None
    top1_agreement: float | None = None
    cosine: float | None = None
    lowest_cosine: float | None = None
    label_agreement: float | None = None


@dataclass(frozen=True, slots=True, repr=False)
class QualityReport:
    """The dtypes of a model, float32 first. n_texts, n_tokens: amount of text read; task: how the model was loaded."""

    model: str
    task: str
    n_texts: int
    n_tokens: int
    dtypes: tuple[DtypeQuality, ...]

    def __repr__(self) -> str:
        names = ", ".join(row.dtype for row in self.dtypes)
        return f"<QualityReport of {quote(self.model)} as {self.task}: {names} on {self.n_tokens} tokens>"


def compare_dtypes(
    path_or_id: str | os.PathLike[str],
    texts: Sequence[str] | None = None,
    *,
    dtypes: Sequence[str] = PACKED_DTYPES,
    max_tokens: int = 8192,
    threads: int | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> QualityReport:
    """Run a model in float32 and in each of `dtypes` on the same texts.

    texts: None uses a chapter of a novel that ships with fastattn. A language model reads them as the lines of one
    text, in windows of up to 256 tokens. Other models read each text separately, cut to their context. max_tokens: stop
    reading after this many tokens (a language model's last text is cut there). The models of all dtypes are in memory
    at the same time. threads: as in `from_pretrained`. revision, cache_dir, local_files_only and token: for hub ids.
    Raises ConfigError (also for a quantized directory, because it has no float32 weights to compare with),
    ModelFormatError, InputError, DTypeError, OSError, and NonFiniteError if the float32 model returns NaN or infinity.
    """
    if isinstance(dtypes, str) or not isinstance(dtypes, Sequence):
        raise DTypeError(f"dtypes: expected a list of {', '.join(PACKED_DTYPES)}, got {quote(dtypes)}")
    for i, dtype in enumerate(dtypes):
        check_choice(f"dtypes[{i}]", dtype, PACKED_DTYPES)
    check_count("max_tokens", max_tokens, low=2)
    lines = default_texts() if texts is None else check_texts(texts, "texts")
    directory = find_model(
        path_or_id, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only, token=token
    )
    task = find_task(directory)
    names = (BASELINE, *dict.fromkeys(dtypes))
    models: dict[str, AnyModel] = {}
    try:
        for name in names:
            models[name] = AUTO_CLASSES[task].from_pretrained(directory, dtype=name, threads=threads)
        inputs = _read(models[BASELINE], task, lines, max_tokens)
        sums = {name: _Sums() for name in names}
        for ids in inputs.ids:
            exact = _run(models[BASELINE], ids)
            check_finite(exact.states[-1] if exact.logits is None else exact.logits, "texts", f"{BASELINE} values")
            for name in names:
                sums[name].add(exact, exact if name == BASELINE else _run(models[name], ids), ids)
        n_tokens = sum(len(ids) for ids in inputs.ids)
        rows = tuple(
            sums[name].result(name, models[name].executor.weight_bytes, inputs.n_bytes, n_tokens) for name in names
        )
    finally:
        for model in models.values():
            model.close()
    return QualityReport(os.fspath(path_or_id), task, inputs.n_texts, n_tokens, rows)


def default_texts() -> list[str]:
    """Return paragraphs of George Eliot's "Silas Marner" (1861), which is not in the demo models' training data."""
    path = Path(str(resources.files("fastattn"))) / "demo" / "silas_marner.txt"
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise ConfigError(f"texts: expected a list of str, because there is no {path}; got None") from None


def find_task(directory: Path) -> Task:
    """Return how to load a checkpoint: as a classifier if possible, else as a language model, else as an encoder."""
    with open_with_adapter(directory) as checkpoint:
        if checkpoint.quantized is not None:
            quantized = checkpoint.quantized.dtype
            raise ConfigError(
                f"{directory}: expected a float checkpoint to compare with, got one quantized to {quantized}"
            )
        tasks: tuple[Task, ...] = ("sequence-classification", "causal-lm")
        for task in tasks:
            try:
                build(checkpoint.config, checkpoint.tensors, task)
            except ConfigError:
                continue
            return task
    return "encoder"


@dataclass(frozen=True, slots=True)
class _Inputs:
    """The inputs: ids [n] of each call, the number of texts (the last may be partial), and the number of bytes."""

    ids: list[NDArray[np.int32]]
    n_texts: int
    n_bytes: int


def _read(model: AnyModel, task: str, lines: list[str], max_tokens: int) -> _Inputs:
    """Read texts up to max_tokens. A language model's last text is cut; other models skip it."""
    tokenizer = need_tokenizer(model, "quality")
    context = model.executor.program.max_positions
    inputs: list[NDArray[np.int32]] = []
    room, n_bytes = max_tokens, 0
    for line in lines:
        text = line + "\n"
        if task == "causal-lm":
            ids = np.array(tokenizer.encode(text), np.int32)
            if len(ids) > room > 0:
                text, ids = text[: tokenizer.offsets(text)[room - 1, 1]], ids[:room]
        else:
            ids = tokenizer.encode_batch([line], max_length=context)[0][0]
            if not inputs and len(ids) > room:
                raise InputError(
                    f"max_tokens: expected at least {len(ids)}, the length of the first text, got {max_tokens}"
                )
        if len(ids) > room:
            break
        inputs.append(ids)
        room, n_bytes = room - len(ids), n_bytes + len(text.encode())
    n_texts = len(inputs)
    if sum(len(ids) for ids in inputs) < 2:
        raise InputError("texts: expected at least two tokens, got fewer")
    if task == "causal-lm":
        whole, width = np.concatenate(inputs), min(WINDOW, context)
        inputs = [whole[at : at + width] for at in range(0, len(whole), width) if len(whole) - at > 1]
    return _Inputs([ids for ids in inputs if len(ids)], n_texts, n_bytes)


@dataclass(frozen=True, slots=True)
class _Run:
    states: list[Float64]
    logits: Float64 | None


def _run(model: AnyModel, ids: NDArray[np.int32]) -> _Run:
    out: Any = model(ids, output_hidden_states=True)
    logits = getattr(out, "logits", None)
    states = [np.asarray(state, np.float64) for state in out.hidden_states]
    return _Run(states, None if logits is None else np.asarray(logits, np.float64))


@dataclass(slots=True)
class _Sums:
    """Collects the values whose means describe a dtype."""

    differences: list[float] = field(default_factory=list)
    squares: list[float] = field(default_factory=list)
    nats: list[float] = field(default_factory=list)
    divergences: list[float] = field(default_factory=list)
    same_token: list[float] = field(default_factory=list)
    same_label: list[float] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)

    def add(self, exact: _Run, found: _Run, ids: NDArray[np.int32]) -> None:
        n_states = len(exact.states)
        self.differences = self.differences or [0.0] * n_states
        self.squares = self.squares or [0.0] * n_states
        for i, (ours, theirs) in enumerate(zip(found.states, exact.states, strict=True)):
            self.differences[i] += float(((ours - theirs) ** 2).sum())
            self.squares[i] += float((theirs**2).sum())
        if exact.logits is None or exact.logits.ndim == 1:
            a, b = exact.states[-1].mean(axis=0), found.states[-1].mean(axis=0)
            self.cosines.append(float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-300)))
        if exact.logits is None or found.logits is None:
            return
        if exact.logits.ndim == 1:
            self.same_label.append(float(exact.logits.argmax() == found.logits.argmax()))
            return
        reference, logs = log_softmax(exact.logits), log_softmax(found.logits)
        self.nats += (-logs[np.arange(len(ids) - 1), ids[1:]]).tolist()
        self.divergences += (np.exp(reference) * (reference - logs)).sum(axis=1).tolist()
        self.same_token += (reference.argmax(axis=1) == logs.argmax(axis=1)).astype(float).tolist()

    def result(self, dtype: str, weight_bytes: int, n_bytes: int, n_tokens: int) -> DtypeQuality:
        nats = _mean(self.nats)
        bytes_per_token = n_bytes / n_tokens
        return DtypeQuality(
            dtype=dtype,
            weight_bytes=weight_bytes,
            hidden_state_errors=tuple(
                math.sqrt(d / s) if s else 0.0 for d, s in zip(self.differences, self.squares, strict=True)
            ),
            perplexity=None if nats is None else math.exp(min(nats, 700.0)),
            bits_per_byte=None if nats is None else nats / math.log(2) / bytes_per_token,
            kl=_mean(self.divergences),
            top1_agreement=_mean(self.same_token),
            cosine=_mean(self.cosines),
            lowest_cosine=min(self.cosines, default=None),
            label_agreement=_mean(self.same_label),
        )


def log_softmax(logits: Float64) -> Float64:
    """Compute log-softmax over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: Float64 = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


_COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("weight_bytes", "weights", lambda value: f"{value / 1e6:.1f} MB"),
    ("perplexity", "perplexity", lambda value: f"{value:.3f}"),
    ("bits_per_byte", "bits/byte", lambda value: f"{value:.4f}"),
    ("kl", "KL, nats", lambda value: f"{value:.2e}"),
    ("top1_agreement", "top-1 same", lambda value: f"{value:.2%}"),
    ("cosine", "cosine", lambda value: f"{value:.6f}"),
    ("lowest_cosine", "lowest", lambda value: f"{value:.6f}"),
    ("label_agreement", "label same", lambda value: f"{value:.2%}"),
)


def table(report: QualityReport) -> Iterator[str]:
    """Yield the report as lines of text: one row per dtype, then the error of every hidden state (float32 omitted)."""
    shown = [column for column in _COLUMNS if getattr(report.dtypes[0], column[0]) is not None]
    yield "".join([f"{'dtype':<10}", *(f"{title:>12}" for _, title, _ in shown)])
    for row in report.dtypes:
        yield "".join([f"{row.dtype:<10}", *(f"{show(getattr(row, name)):>12}" for name, _, show in shown)])
    yield ""
    others = report.dtypes[1:]
    yield "".join([f"{'error of':<14}", *(f"{row.dtype:>10}" for row in others)])
    for i in range(len(report.dtypes[0].hidden_state_errors)):
        name = "embeddings" if i == 0 else f"layer {i}"
        yield "".join([f"{name:<14}", *(f"{row.hidden_state_errors[i]:>10.4%}" for row in others)])
