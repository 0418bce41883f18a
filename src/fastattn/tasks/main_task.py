"""Finds the tasks that a checkpoint can be loaded for, and its main one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastattn.checkpoint import Checkpoint
from fastattn.errors import FastattnError
from fastattn.models.registry import BuiltModel, build, find_family, trained_for
from fastattn.models.tasks import TASKS, Task


@dataclass(frozen=True, slots=True)
class TracedTasks:
    """The traced models of all tasks that a checkpoint has the weights for; the main task comes first.

    problem: why the task that config.json names cannot be loaded, or why no task can; "" if there is no problem.
    """

    models: Mapping[Task, BuiltModel]
    problem: str = ""


def trace_tasks(checkpoint: Checkpoint) -> TracedTasks:
    """Trace a checkpoint for every task of its family. Reads no weights. Raises ConfigError for an unknown family.

    The main task is the one that `architectures` of config.json names, or else the first one of `TASKS`. A head that
    was trained for another task does not count.
    """
    family = find_family(checkpoint.config)
    found: dict[Task, BuiltModel] = {}
    reasons: dict[Task, FastattnError] = {}
    for task in family.tasks:
        try:
            built = build(checkpoint.config, checkpoint.tensors, task)
        except FastattnError as error:
            reasons[task] = error
            continue
        if trained_for(built) is None:
            found[task] = built
    named = _named_task(checkpoint.config.get("architectures"), family.tasks)
    main = named if named in found else next((task for task in TASKS if task in found), None)
    problem = ""
    if named is not None and named in reasons:
        problem = f"{checkpoint.path}: {TASKS[named].auto_class}: {reasons[named]}"
    elif main is None:
        problem = f"{checkpoint.path}: {next(iter(reasons.values()))}"
    return TracedTasks({task: found[task] for task in sorted(found, key=lambda task: task != main)}, problem)


def _named_task(architectures: object, tasks: Sequence[Task]) -> Task | None:
    """Return the task of the first known name in `architectures`; None if no name is known."""
    for name in architectures if isinstance(architectures, list) else ():
        for task in tasks:
            ending = {"causal-lm": "LMHeadModel", "encoder": "Model"}.get(task) or TASKS[task].architecture
            if isinstance(name, str) and name.endswith(ending):
                return task
    return None
