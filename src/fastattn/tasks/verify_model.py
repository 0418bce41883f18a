"""Compares every layer of a model on this machine with the float64 reference, and optionally with transformers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastattn.api.loading import load_executor
from fastattn.checkpoint import Checkpoint
from fastattn.checkpoint.locate import find_model
from fastattn.checks import check_choice, check_count, quote
from fastattn.errors import ConfigError, DTypeError, InputError
from fastattn.executors import cpu
from fastattn.executors.numpy_executor import NumpyExecutor
from fastattn.formats import DTYPES
from fastattn.graph.error_bounds import eps, program_bound
from fastattn.graph.executor import Output
from fastattn.graph.ir import Program, Step
from fastattn.graph.rewrites import optimize, with_outputs
from fastattn.models.adapters import open_with_adapter
from fastattn.models.inputs import Batch, read_model_batch
from fastattn.models.registry import BuiltModel, find_family
from fastattn.models.tasks import TASKS, Task
from fastattn.tasks.main_task import trace_tasks
from fastattn.tasks.op_errors import OpError, largest_difference, op_errors
from fastattn.tasks.quality import default_texts
from fastattn.tokenizer import check_texts, has_tokenizer, load_tokenizer

BASELINE = "float32"
MAX_TOKENS = 128
# The contract: at most twice the error of the plain float32 formula.
MAX_RATIO = 2.0
_N_TEXTS = 4
Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LayerErrors:
    """The ops of one layer ("embeddings", "layer 1", ..., "head") in one dtype.

    worst_op: the kind of op whose error is the largest fraction of its bound; used: this fraction, at most 1 if the
    layer is correct. error: of the hidden state (of the result, for the head), as root mean squares relative to the
    float64 reference. plain_error: that of the plain float32 formula. allowed: the largest error that is correct, twice
    the largest plain_error of this layer and the ones before it. The three are None for dtypes other than float32.
    """

    name: str
    n_ops: int
    worst_op: str
    used: float
    error: float | None = None
    plain_error: float | None = None
    allowed: float | None = None

    @property
    def ok(self) -> bool:
        """Whether every op is within its bound, and the state within the allowed error."""
        return self.used <= 1 and (self.error is None or self.allowed is None or self.error <= self.allowed)


@dataclass(frozen=True, slots=True)
class DtypeCheck:
    """The layers of a model in one dtype. same_bits: whether batches and threads leave all results unchanged."""

    dtype: str
    layers: tuple[LayerErrors, ...]
    same_bits: bool

    @property
    def ok(self) -> bool:
        """Whether all layers are correct and results do not depend on batches and threads."""
        return self.same_bits and all(layer.ok for layer in self.layers)


@dataclass(frozen=True, slots=True)
class TransformersCheck:
    """A comparison with transformers' float64 model, of the results and all hidden states.

    difference: the largest difference between our float64 reference and their float64 model. bound: the largest allowed
    difference: what float64 rounding can cause, plus the largest error of their float32 model, because some of their
    models round parts to float32. error, their_error: the largest error of a hidden state or the result in float32, as
    root mean squares relative to the float64 model, of fastattn and of transformers.
    """

    version: str
    difference: float
    bound: float
    error: float
    their_error: float

    @property
    def ok(self) -> bool:
        """Whether both libraries compute the same function, and ours has at most twice the error of theirs."""
        return self.difference <= self.bound and self.error <= MAX_RATIO * self.their_error + eps(np.float32)


@dataclass(frozen=True, slots=True, repr=False)
class VerifyReport:
    """The result of `verify_model`. n_texts, n_tokens: the amount of text read; target: the SIMD target that ran."""

    model: str
    task: Task
    target: str
    n_texts: int
    n_tokens: int
    dtypes: tuple[DtypeCheck, ...]
    transformers: TransformersCheck | None = None

    @property
    def ok(self) -> bool:
        """Whether every comparison passed."""
        return all(row.ok for row in self.dtypes) and (self.transformers is None or self.transformers.ok)

    def __repr__(self) -> str:
        names = ", ".join(row.dtype for row in self.dtypes)
        return f"<VerifyReport of {quote(self.model)} as {self.task}: {names}, {'ok' if self.ok else 'failed'}>"


def verify_model(
    path_or_id: str | os.PathLike[str],
    texts: Sequence[str] | None = None,
    *,
    dtypes: Sequence[str] = (BASELINE,),
    max_tokens: int = MAX_TOKENS,
    threads: int | None = None,
    against: Literal["transformers"] | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> VerifyReport:
    """Run a model on this machine and compare every op with its float64 formula.

    The main task of the folder is used (the one that `check_folder` names first). The formula of an op gets the inputs
    that the CPU computed, so each op has its own bound: the error that float32 rounding can cause. In float32, every
    hidden state is also compared with a float64 run of the whole model; its error may be twice that of the plain
    float32 formula. Each text also runs alone on one thread, and must give the same bits as in the batch.

    texts: None uses sentences of a novel that ships with fastattn, or fixed token ids if the folder has no tokenizer.
    max_tokens: cut each text, and stop after this many tokens in total. The float64 reference needs memory for all
    weights in float64. against: "transformers" also compares with its float64 model (needs torch). threads: as in
    `from_pretrained`. The other arguments are for hub ids. Raises ConfigError (also for a quantized folder, and for
    missing packages), ModelFormatError, InputError, DTypeError, OSError.
    """
    if isinstance(dtypes, str) or not isinstance(dtypes, Sequence) or not dtypes:
        raise DTypeError(f"dtypes: expected a list of {', '.join(DTYPES['cpu'])}, got {quote(dtypes)}")
    for i, dtype in enumerate(dtypes):
        check_choice(f"dtypes[{i}]", dtype, DTYPES["cpu"])
    check_count("max_tokens", max_tokens, low=2)
    if against is not None:
        check_choice("against", against, ("transformers",))
    lines = None if texts is None else check_texts(texts, "texts")
    directory = find_model(
        path_or_id, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only, token=token
    )
    with open_with_adapter(directory) as checkpoint:
        if checkpoint.quantized is not None:
            raise ConfigError(
                f"{directory}: expected a float checkpoint, got one quantized to {checkpoint.quantized.dtype}"
            )
        if against is not None:
            _check_against(checkpoint)
        traced = trace_tasks(checkpoint)
        if traced.problem:
            raise ConfigError(traced.problem)
        case = Case(next(iter(traced.models.values())), directory, lines, max_tokens)
        checks = tuple(case.check(dtype, threads) for dtype in dict.fromkeys(dtypes))
        other = None if against is None else _against_transformers(case, threads)
    return VerifyReport(
        model=os.fspath(path_or_id),
        task=case.built.task,
        target=str(cpu.info()["target_active"]),
        n_texts=len(case.batch.counts),
        n_tokens=case.batch.n_tokens,
        dtypes=checks,
        transformers=other,
    )


class Case:
    """A model and its inputs.

    program: the optimized Program, with all hidden states as outputs. exact: the outputs of its float64 run.
    """

    def __init__(self, built: BuiltModel, directory: Path, texts: list[str] | None, max_tokens: int) -> None:
        self.built, self.directory = built, directory
        self.program = optimize(with_outputs(built.traced, hidden_states=True))
        self.batch = read_model_batch(built.config, _read(built, directory, texts, max_tokens))
        self.exact = self._numpy(np.float64)

    def step(self, batch: Batch) -> Step:
        """Return the step of a batch. A classifier needs one row of each sequence, other models need all rows."""
        if self.built.task == "sequence-classification":
            return batch.step(wanted=batch.last_rows(self.built.config.pad_token_id))
        return batch.step()

    def run(self, dtype: str, threads: int | None, batch: Batch | None = None) -> dict[str, NDArray[Any]]:
        """Run the model on the CPU; return its outputs by name."""
        executor = load_executor(self.program, self.built.tensors, dtype=dtype, device="cpu", threads=threads)
        try:
            return _matrices(executor.run(self.step(self.batch if batch is None else batch)))
        finally:
            executor.close()

    def check(self, dtype: str, threads: int | None) -> DtypeCheck:
        """Check one dtype."""
        errors = list(op_errors(self.program, self.built.tensors, self.step(self.batch), dtype, threads=threads))
        states: tuple[dict[str, NDArray[Any]], ...] = ()
        if dtype == BASELINE:
            states = (self.run(dtype, threads), self._numpy(np.float32))
        layers, largest = [], 0.0
        for name, output, ops in _layers(self.program, errors):
            worst = max(ops, key=lambda found: found.error / found.bound)
            layer = LayerErrors(name, len(ops), worst.op.kind, worst.error / worst.bound)
            if states:
                ours, plain = (relative_error(found[output], self.exact[output]) for found in states)
                largest = max(largest, plain)
                layer = replace(layer, error=ours, plain_error=plain, allowed=MAX_RATIO * largest + eps(np.float32))
            layers.append(layer)
        return DtypeCheck(dtype, tuple(layers), self._same_bits(dtype, threads))

    def _numpy(self, precision: type[np.floating[Any]]) -> dict[str, NDArray[Any]]:
        executor = NumpyExecutor(self.program, self.built.tensors, precision=precision)
        try:
            return _matrices(executor.run(self.step(self.batch)))
        finally:
            executor.close()

    def _same_bits(self, dtype: str, threads: int | None) -> bool:
        """Return whether each text gives the same bits alone on one thread as in the batch."""
        together = self.run(dtype, threads)
        parts = [self.run(dtype, 1, read_model_batch(self.built.config, ids)) for ids in self.batch.ids]
        return all(
            np.array_equal(found, np.concatenate([part[name] for part in parts])) for name, found in together.items()
        )


def _matrices(outputs: Mapping[str, Output]) -> dict[str, NDArray[Any]]:
    return {name: np.asarray(value) for name, value in outputs.items()}


def relative_error(found: NDArray[Any], exact: NDArray[Any]) -> float:
    """Return the root mean square of the difference, divided by that of the exact values."""
    total = float(np.sqrt(np.mean(np.square(exact, dtype=np.float64))))
    return float(np.sqrt(np.mean(np.square(found - exact, dtype=np.float64)))) / (total or 1.0)


def _layers(program: Program, errors: Sequence[OpError]) -> Iterator[tuple[str, str, list[OpError]]]:
    """Yield the name, the hidden state (or final output) and the ops of each layer."""
    writers = {op.output: position for position, op in enumerate(program.ops)}
    names = [name for name in program.outputs if name.startswith("hidden_states.")]
    ends = sorted((writers[program.outputs[name]], name) for name in names)
    begin = 0
    for i, (end, name) in enumerate(ends):
        if end + 1 > begin:
            yield ("embeddings" if i == 0 else f"layer {i}"), name, list(errors[begin : end + 1])
        begin = end + 1
    if begin < len(errors):
        yield "head", result_name(program), list(errors[begin:])


def result_name(program: Program) -> str:
    """Return the name of the output that is the result of the model."""
    return "logits" if "logits" in program.outputs else "last_hidden_state"


def _read(built: BuiltModel, directory: Path, texts: list[str] | None, max_tokens: int) -> list[NDArray[np.int32]]:
    """Return the token ids of some texts, max_tokens in total."""
    context = built.program.max_positions
    if texts is None and not has_tokenizer(directory):
        lengths = [max_tokens // 2, max_tokens // 3, max_tokens - max_tokens // 2 - max_tokens // 3]
        ids = [
            np.arange(1, 1 + min(length, context), dtype=np.int32) * 7 % built.config.vocab_size for length in lengths
        ]
        return [row.astype(np.int32) for row in ids if len(row)]
    if not has_tokenizer(directory):
        raise InputError(f"texts: expected None, because {directory} has no tokenizer")
    tokenizer = load_tokenizer(directory)
    lines = default_texts()[:_N_TEXTS] if texts is None else texts
    found, room = [], max_tokens
    for n_left, line in zip(range(len(lines), 0, -1), lines, strict=True):
        share = min(context, room // n_left if texts is None else room)
        row = np.asarray(tokenizer.encode(line), np.int32)[:share]
        if len(row):
            found.append(row)
            room -= len(row)
    if not found:
        raise InputError("texts: expected at least one token, got none")
    return found


def _check_against(checkpoint: Checkpoint) -> None:
    """Raise ConfigError if transformers would need code that comes with the checkpoint."""
    if find_family(checkpoint.config).needs_code(checkpoint.config):
        raise ConfigError(
            f"against: expected None, because transformers reads {checkpoint.path} only with the code that comes with "
            "the checkpoint, got 'transformers'"
        )


def _against_transformers(case: Case, threads: int | None) -> TransformersCheck:
    """Compare with the same checkpoint in transformers, one text at a time. Raises ConfigError."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"against: transformers cannot be imported ({error}); pip install torch transformers"
        ) from None
    auto: Any = getattr(transformers, TASKS[case.built.task].auto_class)
    model = auto.from_pretrained(
        case.directory, local_files_only=True, use_safetensors=True, attn_implementation="eager"
    )
    model.eval()
    theirs = []
    for kind in (torch.float64, torch.float32):
        model.to(kind)
        with torch.no_grad():
            parts = [
                _their_outputs(model, case, torch.tensor(np.asarray(ids, np.int64)[None])) for ids in case.batch.ids
            ]
        theirs.append([np.concatenate(rows) for rows in zip(*parts, strict=True)])
    exact, plain = theirs
    names = [
        *sorted((name for name in case.exact if name.startswith("hidden_states.")), key=_number),
        result_name(case.program),
    ]
    ours = [case.exact[name] for name in names]
    if len(ours) != len(exact):
        raise ConfigError(
            f"against: expected {len(ours)} hidden states and results from transformers, got {len(exact)}"
        )
    found = case.run(BASELINE, threads)
    scale = max(float(np.abs(value).max(initial=0.0)) for value in ours)
    bound = program_bound(case.program, np.float64, longest=max(case.batch.counts), scale=scale)
    return TransformersCheck(
        version=transformers.__version__,
        difference=max(largest_difference(a, b) for a, b in zip(ours, exact, strict=True)),
        bound=bound + max(largest_difference(a, b) for a, b in zip(plain, exact, strict=True)),
        error=max(relative_error(found[name], b) for name, b in zip(names, exact, strict=True)),
        their_error=max(relative_error(a, b) for a, b in zip(plain, exact, strict=True)),
    )


def _number(name: str) -> int:
    return int(name.rpartition(".")[2])


def _their_outputs(model: Any, case: Case, ids: Any) -> list[NDArray[Any]]:
    """Return the hidden states and the result of one text, each [rows, width]."""
    out = model(ids[None] if case.built.task == "multiple-choice" else ids, output_hidden_states=True)
    states = [state.numpy().reshape(ids.shape[1], -1) for state in out.hidden_states]
    if case.built.task == "question-answering":
        return [*states, np.stack([out.start_logits[0].numpy(), out.end_logits[0].numpy()], axis=1)]
    name = {"pre-training": "prediction_logits", "encoder": "last_hidden_state"}.get(case.built.task, "logits")
    if name not in out:  # the discriminator of ELECTRA
        return [*states, out.logits[0].numpy()[:, None]]
    result = out[name].numpy()
    return [*states, result.reshape(-1, result.shape[-1])]
