"""Formats the reports of `check_folder` and `verify_model` as lines of text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from itertools import groupby

from fastattn.tasks.check_folder import FolderReport
from fastattn.tasks.verify_model import DtypeCheck, VerifyReport

_NAME_WIDTH = 13
_WIDTH = 100


def folder_lines(report: FolderReport) -> Iterator[str]:
    """Yield what would load, what is used and ignored, and the problems."""
    for i, task in enumerate(report.tasks):
        pipeline = f', pipeline("{task.pipeline}")' if task.pipeline else ""
        yield _row("loads as" if i == 0 else "also", f"{task.auto_class}{pipeline}")
    if report.sentence_transformer:
        yield _row("also" if report.tasks else "loads as", "SentenceTransformer")
    if report.cross_encoder:
        yield _row("also" if report.tasks else "loads as", "CrossEncoder")
    if report.sparse_encoder:
        yield _row("also" if report.tasks else "loads as", "SparseEncoder")
    if report.multi_vector_encoder:
        yield _row("also" if report.tasks else "loads as", "MultiVectorEncoder")
    model = report.model
    if model is not None:
        stored = ", ".join(f"{nbytes / 1e6:.1f} MB of {dtype}" for dtype, nbytes in model.stored_dtypes.items())
        yield _row(
            "model",
            f"{model.model_type}, {model.n_parameters / 1e6:.1f} M parameters, {model.num_hidden_layers} layers of "
            f"width {model.hidden_size}, {model.vocab_size} token ids, up to {model.context} tokens",
        )
        yield _row("weights", stored)
    yield _row("tokenizer", report.tokenizer or "none that loads")
    compared = ", ".join(report.digests)
    yield _row("SHA-256", f"compared: {compared}" if compared else "not compared: no SHA256SUMS, not from a hub cache")
    used = [entry.name for entry in report.files if entry.used]
    yield _row("files", f"used: {', '.join(used)}")
    for entry in report.files:
        if not entry.used:
            yield _row("", f"not used: {entry.name} ({entry.note})")
    for file, entries in groupby(report.settings, key=lambda entry: entry.file):
        uses, name = list(entries), file
        for use in ("used", "no effect", "ignored"):
            keys = [entry.key for entry in uses if entry.use == use]
            if keys:
                yield _row(name, f"{use}: {', '.join(keys)}")
                name = ""
    for warning in report.warnings:
        yield _row("warning", warning)
    for problem in report.problems:
        yield _row("problem", problem)
    yield _row("result", "ok" if report.ok else f"{len(report.problems)} problems")


def verify_lines(report: VerifyReport) -> Iterator[str]:
    """Yield one row per layer and dtype, and the comparisons of the whole model."""
    for check in report.dtypes:
        yield from _dtype_lines(check)
        yield ""
    other = report.transformers
    if other is not None:
        yield (
            f"transformers {other.version}: float64 results differ by at most {other.difference:.2g} (bound "
            f"{other.bound:.2g}); float32 error {other.error:.2e}, theirs {other.their_error:.2e}: {_verdict(other.ok)}"
        )
    yield f"{'ok' if report.ok else 'FAILED'}: {report.task}, target {report.target}"


def _dtype_lines(check: DtypeCheck) -> Iterator[str]:
    exact = check.layers[0].error is not None
    states = f"{'state error':>14}{'plain float32':>15}" if exact else ""
    yield f"{check.dtype:<12}{'ops':>4}{'of the bound':>14}  {'worst op':<16}{states}"
    for layer in check.layers:
        row = f"{layer.name:<12}{layer.n_ops:>4}{layer.used:>13.2%}   {layer.worst_op:<16}"
        if layer.error is not None and layer.plain_error is not None:
            row += f"{layer.error:>14.2e}{layer.plain_error:>15.2e}"
        yield row.rstrip() if layer.ok else f"{row}  FAILED"
    yield f"same bits alone, in a batch and on one thread: {'yes' if check.same_bits else 'NO'}"


def _verdict(ok: bool) -> str:
    return "ok" if ok else "FAILED"


def _row(name: str, text: str) -> str:
    lines = textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False) or [""]
    if len(name) >= _NAME_WIDTH:
        lines = ["", *lines]
    rows = [f"{name:<{_NAME_WIDTH}}{lines[0]}", *(f"{'':<{_NAME_WIDTH}}{line}" for line in lines[1:])]
    return "\n".join(row.rstrip() for row in rows)
