"""Builds a traced model from config.json and tensors. A new architecture is one file here and one entry in FAMILIES."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from fastattn.checkpoint.source import WeightSource
from fastattn.checks import closest, quote, shown_names
from fastattn.errors import ConfigError
from fastattn.graph.ir import Program
from fastattn.graph.quantize import embedding_tables
from fastattn.graph.rewrites import optimize
from fastattn.graph.tensor import Tracer, Weights
from fastattn.models.config import CommonConfig
from fastattn.models.families import FAMILIES, Family
from fastattn.models.names import ModelNames, check_tensors, resolve_names
from fastattn.models.seq2seq import joined
from fastattn.models.tasks import TASKS, Task

_MAX_NAMED = 8
_log = logging.getLogger("fastattn")


@dataclass(frozen=True, slots=True)
class BuiltModel:
    """A model before its weights are read.

    config: the family's dataclass. traced: the Program as in the model code, for `with_outputs` and `with_pooling`.
    program: the optimized Program. tensors: the source of every weight part. trace_with_types: returns `traced` for
    calls with token types, None if they have no Program of their own. unexpected: the unused tensors of the checkpoint.
    outer_prefix: the prefix of its names before the family's prefix. n_parameters: the number of weights of the
    checkpoint that the Program uses, and of those in its embedding tables. encoder: the optimized Program that stores
    the memory for `program`, which then has the weights of both; None if there is none.
    """

    config: CommonConfig
    traced: Program
    program: Program
    tensors: Mapping[str, WeightSource]
    task: Task
    unexpected: tuple[str, ...] = ()
    outer_prefix: str = ""
    trace_with_types: Callable[[], Program] | None = None
    n_parameters: tuple[int, int] = (0, 0)
    encoder: Program | None = None


def find_family(config: Mapping[str, object]) -> Family:
    """Find the family of a config.json, as in transformers: by `model_type`, or by `architectures` if it is missing.

    Logs nothing. Raises ConfigError.
    """
    return FAMILIES[_model_type(config)]


def _model_type(config: Mapping[str, object]) -> str:
    model_type, architectures = config.get("model_type"), config.get("architectures")
    known = ", ".join(FAMILIES)
    if architectures is not None and (
        not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures)
    ):
        raise ConfigError(f"config.json: architectures: expected a list of names, got {quote(architectures)}")
    if model_type == "bert" and _is_jina_bert(config, architectures):
        return "jina_bert"
    if isinstance(model_type, str) and model_type in FAMILIES:
        return model_type
    if model_type is not None:
        named = f"architectures {quote(architectures)} of model_type {quote(model_type)} are not supported"
        hint = closest(model_type, FAMILIES) if isinstance(model_type, str) else ""
        raise ConfigError(f"config.json: {named}; supported model types: {known}{hint}")
    if not architectures:
        raise ConfigError(f"config.json: expected model_type ({known}) or architectures, found neither")
    for name, family in FAMILIES.items():
        if set(architectures) <= set(family.architectures):
            return name
    raise ConfigError(
        f"config.json: expected model_type ({known}), found none, and architectures {quote(architectures)} are not "
        "known"
    )


def _is_jina_bert(config: Mapping[str, object], architectures: list[str] | None) -> bool:
    """Return whether a config.json with the model type "bert" is one of JinaBERT."""
    named = any(name.startswith("JinaBert") for name in architectures or [])
    return named or config.get("position_embedding_type") == "alibi"


def build(config: Mapping[str, object], tensors: Mapping[str, WeightSource], task: Task) -> BuiltModel:
    """Trace a model for a task and find its tensors; allocates nothing. Raises ConfigError, ModelFormatError."""
    family = find_family(config)
    if task not in family.tasks:
        raise ConfigError(_wrong_task(str(_model_type(config)), task, family))
    parsed = family.read_config(config)
    names = resolve_names(tensors, family.layout, tied=config.get("tie_word_embeddings") is not False)
    computed = {} if family.computed is None else family.computed(parsed, names)
    if computed:
        names = names.with_computed(computed)
    _check_head(family, names, parsed, task)
    traced = family.build(parsed, Weights(Tracer(), names), task)
    program, encoder = optimize(traced), None
    if family.build_encoder is not None:
        traced_encoder = family.build_encoder(parsed, Weights(Tracer(), names))
        encoder, program = joined(optimize(traced_encoder), program)
        traced = joined(traced_encoder, traced)[1]
    try:
        found = check_tensors(traced, names, task)
    except ConfigError as error:
        raise ConfigError(f"{error}{_other_head(parsed, task)}") from None
    read = {name: names.get(name) for name in family.hidden_tensors(parsed) if names.has(name)}
    with_types = family.build_with_types
    return BuiltModel(
        config=parsed,
        traced=traced,
        program=program,
        tensors=found,
        task=task,
        unexpected=tuple(names.unexpected({**found, **read, **computed})),
        outer_prefix=names.outer,
        n_parameters=_count_parameters(traced, family, parsed, computed),
        encoder=encoder,
        trace_with_types=None if with_types is None else lambda: with_types(parsed, Weights(Tracer(), names), task),
    )


def _count_parameters(
    program: Program, family: Family, config: CommonConfig, computed: Collection[str]
) -> tuple[int, int]:
    """Count the weights that a checkpoint has, and those in embedding tables. Exact tables are always computed."""
    sizes = {
        name: math.prod(weight.shape)
        for name, weight in program.weights.items()
        if not weight.exact and name not in computed
    }
    hidden = 0 if family.n_hidden_weights is None else family.n_hidden_weights(config)
    return sum(sizes.values()) + hidden, sum(sizes.get(name, 0) for name in embedding_tables(program))


def _wrong_task(model_type: str, task: Task, family: Family) -> str:
    others = " or ".join(TASKS[other].auto_class for other in family.tasks)
    why = family.missing.get(task, "this family has no such head, or fastattn does not support it")
    return (
        f"config.json: model_type {model_type!r} cannot be used for {task} ({TASKS[task].auto_class}): {why}; use "
        f"{others}"
    )


def _other_head(config: CommonConfig, task: Task) -> str:
    """Return the architectures of the checkpoint, for a message, if it has another kind of head."""
    ending = TASKS[task].architecture
    if not ending or any(name.endswith(ending) for name in config.architectures):
        return ""
    return f"; architectures of config.json is {quote(list(config.architectures))}" if config.architectures else ""


def _check_head(family: Family, names: ModelNames, config: CommonConfig, task: Task) -> None:
    """Raise ConfigError if the checkpoint lacks the task's head, or has a single-label classifier of one class."""
    heads = family.head_names(task)
    if heads and not any(name.startswith(heads) for name in names.found):
        missing = " or ".join(f"{head}weight" if head.count(".") == 1 else f"{head}*" for head in heads)
        raise ConfigError(
            f"this checkpoint has no {TASKS[task].head} head ({missing} is missing); load it with AutoModel or "
            f"`fastattn embed`{_other_head(config, task)}"
        )
    if (
        task == "sequence-classification"
        and config.problem_type == "single_label_classification"
        and (config.num_labels == 1)
    ):
        raise ConfigError(
            'config.json: problem_type: expected "regression" or "multi_label_classification" for one class, got '
            '"single_label_classification"; load it with problem_type="regression", for example'
        )


def warn_of_unused(config: Mapping[str, object], built: BuiltModel, where: object) -> None:
    """Log what the model ignores: unknown architectures, a prefix of tensor names, unused tensors."""
    listed = config.get("architectures")
    known = FAMILIES[_model_type(config)].architectures
    others = [name for name in listed if name not in known] if isinstance(listed, list) else []
    if others:
        family = quote(config.get("model_type"))
        _log.warning("%s: architectures %s are not known; loaded as model_type %s", where, quote(others), family)
    other = trained_for(built)
    if other is not None:
        _log.warning(
            "%s: architectures of config.json is %s: the head was trained for %s, but is loaded with %s",
            where,
            quote(list(built.config.architectures)),
            TASKS[other].auto_class,
            TASKS[built.task].auto_class,
        )
    if built.outer_prefix:
        _log.warning("%s: the tensor names begin with %s; this prefix is ignored", where, quote(built.outer_prefix))
    if built.unexpected:
        shown = shown_names((quote(name, 60) for name in built.unexpected), len(built.unexpected), _MAX_NAMED)
        _log.warning("%s: the model of config.json does not use the tensors %s", where, shown)


def trained_for(built: BuiltModel) -> Task | None:
    """Return the task that the head was trained for, if it is another one with tensors of the same names and shapes.

    Text classifiers are often saved under the names of other classes, so for them the result is None.
    """
    entry, listed, family = TASKS[built.task], built.config.architectures, FAMILIES[built.config.model_type]
    heads = family.head_names(built.task)
    if (
        not heads
        or built.task == "sequence-classification"
        or any(name.endswith(entry.architecture) for name in listed)
    ):
        return None
    for task, other in TASKS.items():
        if (task, built.task) == ("pre-training", "masked-lm"):
            continue  # this head contains the one of a masked language model
        if set(family.head_names(task)) & set(heads) and any(name.endswith(other.architecture) for name in listed):
            return task
    return None
