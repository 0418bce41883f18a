"""`fastattn bench -m DIR`: measures a model with fastattn alone, or in turns with other libraries."""

from __future__ import annotations

import contextlib
import hashlib
import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastattn.bench import process
from fastattn.bench.budget import Budget, OutOfTime
from fastattn.bench.libraries import LIBRARIES, Job, missing
from fastattn.bench.report import rows_as_dicts
from fastattn.bench.turns import OURS, Row, measure
from fastattn.bench.works import Work, choose, works_of
from fastattn.checkpoint.locate import find_model
from fastattn.checkpoint.quantized import QuantizedCheckpoint
from fastattn.checks import closest, quote
from fastattn.errors import BenchError, ConfigError, InputError
from fastattn.formats import DTYPES, default_kv_dtype
from fastattn.models.adapters import open_with_adapter
from fastattn.models.registry import BuiltModel, build, find_family
from fastattn.models.tasks import Task

_LIMIT_SECONDS = 0.15  # of one measurement of the limits, approximately
_PROFILE_SECONDS = 0.5  # of one profile, approximately


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to measure and for how long.

    threads: of every library; dtype, kv_dtype, head_dtype: as in `from_pretrained`; against: libraries, each by name or
    as "name:dtype"; works: names of workloads, None for all; rounds: steady turns of each library; seconds: minimum
    time of a turn; keep: folder for converted models, None for a temporary folder; timeout: seconds that a library may
    take for one answer or conversion.
    """

    threads: int
    dtype: str | None = None
    kv_dtype: str | None = None
    head_dtype: str | None = None
    against: tuple[str, ...] = ()
    works: tuple[str, ...] | None = None
    rounds: int = 5
    seconds: float = 0.3
    keep: Path | None = None
    timeout: float = 900.0


@dataclass(frozen=True, slots=True)
class ModelBench:
    """The measurements of one model. left_out: one line per library or workload without complete measurements."""

    name: str
    path: Path
    task: Task
    dtype: str
    kv_dtype: str
    threads: int
    parameters: int
    rows: list[Row] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    head_dtype: str | None = None

    @property
    def unit(self) -> str:
        return self.rows[0].unit if self.rows else "tokens"

    def as_dict(self) -> dict[str, Any]:
        """Return the measurements for JSON."""
        return {
            "model": self.name,
            "path": str(self.path),
            "task": self.task,
            "dtype": self.dtype,
            "kv_dtype": self.kv_dtype,
            "head_dtype": self.head_dtype,
            "threads": self.threads,
            "parameters": self.parameters,
            "left_out": self.left_out,
            "rows": rows_as_dicts(self.rows),
        }


def check_libraries(names: Sequence[str]) -> None:
    """Reject an unknown library or an unsupported dtype of one. Raises InputError."""
    for text in names:
        name, _, dtype = text.partition(":")
        if name not in LIBRARIES:
            others = [other for other in LIBRARIES if other != OURS]
            raise InputError(f"expected some of {', '.join(others)}, got {quote(name)}{closest(name, others)}")
        if dtype and dtype not in LIBRARIES[name].dtypes:
            raise InputError(f"{name}: expected a dtype of {', '.join(LIBRARIES[name].dtypes)}, got {quote(dtype)}")


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A model before its weights are read; quantized: its packed weights, if it is quantized."""

    path: Path
    built: BuiltModel
    quantized: QuantizedCheckpoint | None


def open_model(path_or_id: str | Path) -> OpenModel:
    """Find a model, and build its Program: a language model, else a sequence classifier, else the encoder.

    Raises ConfigError, ModelFormatError, ModelNotFoundError, HubError.
    """
    path = find_model(path_or_id)
    with open_with_adapter(path) as checkpoint:
        task: Task = "causal-lm" if "causal-lm" in find_family(checkpoint.config).tasks else "encoder"
        if task == "encoder":
            with contextlib.suppress(ConfigError):  # also for a checkpoint without a head
                built = build(checkpoint.config, checkpoint.tensors, "sequence-classification")
                return OpenModel(path, built, checkpoint.quantized)
        return OpenModel(path, build(checkpoint.config, checkpoint.tensors, task), checkpoint.quantized)


def works_in(path_or_id: str | Path) -> list[Work]:
    """Return all workloads of a model. Raises what `open_model` raises."""
    return _works_of(open_model(path_or_id).built)


def _works_of(built: BuiltModel) -> list[Work]:
    return works_of(built.task, built.config.max_positions)


class _TimedWorker:
    """A worker and the time limit for its answers."""

    def __init__(self, worker: process.Process, timeout: float, budget: Budget) -> None:
        self._worker, self._timeout, self._budget = worker, timeout, budget

    def ask(self, **command: Any) -> dict[str, Any]:
        """See `process.Process`. Raises OutOfTime if the budget ends first."""
        self._budget.check()
        answer = self._worker.ask(min(self._timeout, self._budget.left()), **command)
        if "error" in answer:
            self._budget.check()
        return answer


@dataclass(frozen=True, slots=True)
class _Run:
    """State shared by the steps of `bench_model`."""

    options: Options
    budget: Budget
    stack: ExitStack
    say: Callable[[str], None]

    def start(self, library: str, job: Job) -> _TimedWorker:
        worker = process.start(library, job)
        self.stack.callback(worker.close)
        return _TimedWorker(worker, self.options.timeout, self.budget)


def bench_model(
    path_or_id: str | Path,
    options: Options,
    *,
    say: Callable[[str], None] | None = None,
    step: Callable[[int, int], object] | None = None,
    budget: Budget | None = None,
) -> ModelBench:
    """Measure a model.

    say: called with a line for each step; step: called with the number of completed workloads and the total. When
    `budget` ends, the result contains the measurements so far and names the rest in `left_out`.

    Raises InputError, BenchError and what opening the model raises. Failures of other libraries are in the result.
    """
    say, step, budget = say or (lambda line: None), step or (lambda done, total: None), budget or Budget()
    check_libraries(options.against)
    model = open_model(path_or_id)
    path, built = model.path, model.built
    dtype, head_dtype = _dtypes(model, options)
    works = choose(_works_of(built), None if options.works is None else list(options.works))
    parameters = sum(math.prod(info.shape) for info in {t.name: t for t in built.tensors.values()}.values())
    kv_dtype = options.kv_dtype or default_kv_dtype(dtype)
    bench = ModelBench(path.name, path, built.task, dtype, kv_dtype, options.threads, parameters, head_dtype=head_dtype)
    say(f"{bench.name}: {plan(works, options, budget)}")
    with ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastattn-bench-")))
        own = folder / f"{path.name}-{fingerprint(path)}"
        job = Job(path, built.task, dtype, options.threads, own, kv_dtype, head_dtype)
        run = _Run(options, budget, stack, say)
        try:
            workers = {OURS: run.start(OURS, job)}
            if model.quantized is None:
                workers |= _start_others(bench, job, run)
            else:
                bench.left_out.extend(f"{name}: cannot read this quantized checkpoint" for name in options.against)
            for i, work in enumerate(works):
                step(i, len(works))
                say(f"{bench.name}: {work.name} ({i + 1} of {len(works)})")
                _measure(bench, work, built, options, workers)
        except OutOfTime as error:
            done = [row.name for row in bench.rows]
            bench.left_out.extend(f"{work.name}: {error}" for work in works if work.name not in done)
            if done and (turns := len(bench.rows[-1].turns[OURS])) < options.rounds:
                bench.left_out.append(f"{done[-1]}: {error}, with {turns} of {options.rounds} turns")
        step(len(works), len(works))
    return bench


def plan(works: Sequence[Work], options: Options, budget: Budget) -> str:
    """Describe what will be measured, and the approximate time on an idle machine."""
    libraries = 1 + len(options.against)
    turn_seconds = options.seconds + _LIMIT_SECONDS
    seconds = len(works) * (options.rounds * libraries * turn_seconds + _PROFILE_SECONDS) + libraries
    pieces = f"{len(works)} workload{'s' if len(works) != 1 else ''}"
    if libraries > 1:
        pieces += f" by {libraries} libraries"
    at_most = f", at most {math.ceil(budget.left())} s" if math.isfinite(budget.left()) else ""
    loading = " after loading the model" if libraries == 1 else " after loading and converting the model"
    return f"{pieces}, about {math.ceil(seconds)} s{loading}{at_most}"


def _dtypes(model: OpenModel, options: Options) -> tuple[str, str | None]:
    """Return the checked dtype and head_dtype."""
    for name, asked in (("dtype", options.dtype), ("head_dtype", options.head_dtype)):
        if asked not in (None, *DTYPES["cpu"]):
            raise InputError(f"{name}: expected one of {', '.join(DTYPES['cpu'])}, got {asked!r}")
        if model.quantized is not None and asked not in (None, kept := getattr(model.quantized, name)):
            expected = "None" if kept is None else f"None or {kept!r}"
            raise InputError(f"{name}: expected {expected}, as {model.path} is quantized, got {asked!r}")
    if model.quantized is not None:
        return model.quantized.dtype, model.quantized.head_dtype
    return options.dtype or "float32", options.head_dtype


def fingerprint(path: Path) -> str:
    """Return a key for the files of a checkpoint, so conversions of other files are not reused."""
    files = [path] if path.is_file() else sorted([*path.glob("*.safetensors"), path / "config.json"])
    found = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.exists()]
    return hashlib.sha256(repr(found).encode()).hexdigest()[:12]


def _start_others(bench: ModelBench, job: Job, run: _Run) -> dict[str, _TimedWorker]:
    """Start a process for every library that is installed and could convert the model."""
    workers: dict[str, _TimedWorker] = {}
    for text in run.options.against:
        name, _, dtype = text.partition(":")
        dtype = dtype or job.dtype
        label = name if dtype == job.dtype else f"{name}:{dtype}"
        if label in (OURS, *workers):
            continue
        packages = missing(name)
        if packages:
            bench.left_out.append(f"{name}: not installed (pip install {' '.join(packages)})")
            continue
        run.say(f"{bench.name}: preparing {label}")
        run.budget.check()
        own = Job(job.path, job.task, dtype, job.threads, job.folder)
        failure = process.convert_apart(name, own, min(run.options.timeout, run.budget.left()))
        if failure is not None:
            run.budget.check()
            bench.left_out.append(f"{label}: {failure}")
        else:
            workers[label] = run.start(name, own)
    return workers


def _measure(
    bench: ModelBench, work: Work, built: BuiltModel, options: Options, workers: dict[str, _TimedWorker]
) -> None:
    """Add the row of a workload if fastattn completed at least one turn of it. Raises BenchError, OutOfTime."""
    command = {
        "name": work.name,
        "kind": work.kind,
        "ids": work.ids(built.config.vocab_size),
        "n_new": work.n_new,
        "shape": asdict(work.shape()),
    }
    row = Row(work.name, work.unit, work.count)
    try:
        measure(row, workers, command, rounds=options.rounds, seconds=options.seconds)
    finally:
        if row.turns.get(OURS):
            bench.rows.append(row)
    profile = workers[OURS].ask(do="profile", **command)
    if "error" in profile:
        raise BenchError(f"{work.name}: {profile['error']}")
    row.profile = profile
