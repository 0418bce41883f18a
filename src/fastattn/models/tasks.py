"""The table of tasks for which a checkpoint can be loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Task: TypeAlias = Literal[
    "causal-lm",
    "sequence-classification",
    "masked-lm",
    "token-classification",
    "question-answering",
    "next-sentence-prediction",
    "multiple-choice",
    "pre-training",
    "seq2seq-lm",
    "encoder",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEntry:
    """A task.

    auto_class: the class that loads it, in fastattn and in transformers. pipeline: its main pipeline, None if it has
    none. output: the Program's output that is the result. head: what messages call the head. heads: prefixes of the
    tensor names of the head; a checkpoint without any of them has no such head. architecture: the suffix of names in
    `architectures` of config.json.
    """

    auto_class: str
    pipeline: str | None
    output: str
    head: str = ""
    heads: tuple[str, ...] = ()
    architecture: str = ""


# Tasks with a head come before "encoder", the model without a head.
TASKS: Mapping[Task, TaskEntry] = {
    "causal-lm": TaskEntry(auto_class="AutoModelForCausalLM", pipeline="text-generation", output="logits"),
    "sequence-classification": TaskEntry(
        auto_class="AutoModelForSequenceClassification",
        pipeline="text-classification",
        output="logits",
        head="classification",
        heads=("classifier.", "score."),
        architecture="ForSequenceClassification",
    ),
    "masked-lm": TaskEntry(
        auto_class="AutoModelForMaskedLM",
        pipeline="fill-mask",
        output="logits",
        head="masked-language-model",
        heads=("cls.predictions.", "lm_head.", "vocab_transform."),
        architecture="ForMaskedLM",
    ),
    "token-classification": TaskEntry(
        auto_class="AutoModelForTokenClassification",
        pipeline="token-classification",
        output="logits",
        head="classification",
        heads=("classifier.",),
        architecture="ForTokenClassification",
    ),
    "question-answering": TaskEntry(
        auto_class="AutoModelForQuestionAnswering",
        pipeline="question-answering",
        output="logits",
        head="question-answering",
        heads=("qa_outputs.",),
        architecture="ForQuestionAnswering",
    ),
    "next-sentence-prediction": TaskEntry(
        auto_class="AutoModelForNextSentencePrediction",
        pipeline=None,
        output="logits",
        head="next-sentence",
        heads=("cls.seq_relationship.",),
        architecture="ForNextSentencePrediction",
    ),
    "multiple-choice": TaskEntry(
        auto_class="AutoModelForMultipleChoice",
        pipeline=None,
        output="logits",
        head="multiple-choice",
        heads=("classifier.",),
        architecture="ForMultipleChoice",
    ),
    "pre-training": TaskEntry(
        auto_class="AutoModelForPreTraining",
        pipeline=None,
        output="logits",
        head="pre-training",
        heads=("cls.predictions.",),
        architecture="ForPreTraining",
    ),
    "seq2seq-lm": TaskEntry(auto_class="AutoModelForSeq2SeqLM", pipeline="text2text-generation", output="logits"),
    "encoder": TaskEntry(auto_class="AutoModel", pipeline="feature-extraction", output="last_hidden_state"),
}
GENERATING: tuple[Task, ...] = ("causal-lm", "seq2seq-lm")  # tasks whose models generate tokens
