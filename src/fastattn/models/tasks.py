"""The table of tasks: what a checkpoint can be loaded for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Task: TypeAlias = Literal["causal-lm", "sequence-classification", "encoder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEntry:
    """One task.

    auto_class: the class that loads it, in fastattn and in transformers. pipeline: the main pipeline over it.
    output: the Program's output that is the result. heads: the names of the head's tensors begin with one of these.
    architecture: names in `architectures` of config.json end so.
    """

    auto_class: str
    pipeline: str
    output: str
    heads: tuple[str, ...] = ()
    architecture: str = ""


# A model with a head comes before the same model without one.
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
