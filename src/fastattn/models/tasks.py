"""The table of tasks for which a checkpoint can be loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Task: TypeAlias = Literal["causal-lm", "sequence-classification", "encoder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEntry:
    """A task.

    auto_class: the class that loads it, in fastattn and in transformers. pipeline: its main pipeline. output: the
    Program's output that is the result. heads: prefixes of the tensor names of the head. architecture: the suffix of
    names in `architectures` of config.json.
    """

    auto_class: str
    pipeline: str
    output: str
    heads: tuple[str, ...] = ()
    architecture: str = ""


# Models with a head come before the same model without one.
TASKS: Mapping[Task, TaskEntry] = {
    "causal-lm": TaskEntry(auto_class="AutoModelForCausalLM", pipeline="text-generation", output="logits"),
    "sequence-classification": TaskEntry(
        auto_class="AutoModelForSequenceClassification",
        pipeline="text-classification",
        output="logits",
        heads=("classifier.", "score."),
        architecture="ForSequenceClassification",
    ),
    "encoder": TaskEntry(auto_class="AutoModel", pipeline="feature-extraction", output="last_hidden_state"),
}
