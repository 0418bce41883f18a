"""config.json and tensors -> a traced model. A new architecture is one file of this folder and one line of FAMILIES."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from fastattn.checkpoint.safetensors import TensorInfo
from fastattn.errors import ConfigError
from fastattn.graph.ir import Program
from fastattn.graph.rewrites import optimise
from fastattn.graph.tensor import Tracer, Weights
from fastattn.models import bert, distilbert, gpt2, roberta
from fastattn.models.names import TASKS, Layout, Task, check_tensors, resolve_names


class ModelConfig(Protocol):
    """What the configs of all families have in common."""

    @property
    def model_type(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def max_positions(self) -> int: ...
    @property
    def type_vocab_size(self) -> int | None: ...
    @property
    def bos_token_id(self) -> int | None: ...
    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...
    @property
    def pad_token_id(self) -> int | None: ...
    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def problem_type(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Family:
    """One file of this folder."""

    architectures: tuple[str, ...]
    layout: Layout
    tasks: tuple[Task, ...]
    read_config: Callable[[Mapping[str, object]], ModelConfig]
    build: Callable[[Any, Weights, Task], Program]


_HEADS = ("classifier.", "score.")  # the names of a classification head's tensors begin with one of these
_ENCODER_TASKS: tuple[Task, ...] = ("encoder", "sequence-classification")
FAMILIES: Mapping[str, Family] = {
    "gpt2": Family(gpt2.ARCHITECTURES, gpt2.LAYOUT, TASKS, gpt2.read_config, gpt2.build),
    "bert": Family(bert.ARCHITECTURES, bert.LAYOUT, _ENCODER_TASKS, bert.read_config, bert.build),
    "distilbert": Family(
        distilbert.ARCHITECTURES, distilbert.LAYOUT, _ENCODER_TASKS, distilbert.read_config, distilbert.build
    ),
    "roberta": Family(roberta.ARCHITECTURES, roberta.LAYOUT, _ENCODER_TASKS, roberta.read_config, roberta.build),
    "xlm-roberta": Family(roberta.ARCHITECTURES, roberta.LAYOUT, _ENCODER_TASKS, roberta.read_config, roberta.build),
}


@dataclass(frozen=True, slots=True)
class BuiltModel:
    """A model before its weights are read.

    traced: the Program as the model text says it, for `with_outputs` and `with_pooling`; program: the same optimised;
    tensors: the tensor of every weight part; config: the family's dataclass.
    """

    config: ModelConfig
    traced: Program
    program: Program
    tensors: Mapping[str, TensorInfo]
    task: Task


def find_family(config: Mapping[str, object]) -> Family:
    """The family of a config.json by `architectures`, else by `model_type`. Raises ConfigError."""
    model_type, architectures = config.get("model_type"), config.get("architectures")
    known = ", ".join(FAMILIES)
    if architectures is None and model_type is None:
        raise ConfigError(f"config.json: expected model_type ({known}) or architectures, found neither")
    if architectures is None or architectures == []:
        family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
        if family is None:
            raise ConfigError(f"config.json: model_type: expected one of {known}, got {model_type!r:.80}")
        return family
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise ConfigError(f"config.json: architectures: expected a list of names, got {architectures!r:.80}")
    for name, family in FAMILIES.items():
        if set(architectures) <= set(family.architectures) and model_type in (None, name):
            return family
    raise ConfigError(
        f"config.json: architectures {architectures!r:.200} of model_type {model_type!r:.80} are not supported; "
        f"supported model types: {known}"
    )


def build(config: Mapping[str, object], tensors: Mapping[str, TensorInfo], task: Task) -> BuiltModel:
    """Trace a model for a task and find its tensors; allocates nothing. Raises ConfigError, ModelFormatError."""
    family = find_family(config)
    if task not in family.tasks:
        raise ConfigError(
            f"config.json: model_type {config.get('model_type')!r} cannot be used for {task}; "
            f"expected one of {', '.join(family.tasks)}"
        )
    parsed = family.read_config(config)
    names = resolve_names(tensors, family.layout)
    if task == "sequence-classification" and not any(name.startswith(_HEADS) for name in names.found):
        raise ConfigError(
            f"this checkpoint has no classification head ({' or '.join(f'{head}weight' for head in _HEADS)} is "
            "missing); AutoModel or `fastattn embed` use it without"
        )
    traced = family.build(parsed, Weights(Tracer(), names), task)
    found = check_tensors(traced, names)
    return BuiltModel(config=parsed, traced=traced, program=optimise(traced), tensors=found, task=task)
