"""The models of the BERT families with other heads: one output per token, or per pair of texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fastattn.api.encoders import OneStepModel
from fastattn.checks import check_count
from fastattn.models.inputs import Batch
from fastattn.models.outputs import (
    Array,
    MaskedLMOutput,
    NextSentencePredictorOutput,
    PerToken,
    PreTrainingOutput,
    QuestionAnsweringOutput,
    TokenClassifierOutput,
)

_FIRST = "the logits are computed from the first token"


class MaskedLM(OneStepModel[MaskedLMOutput[Array], MaskedLMOutput[list[Array]], MaskedLMOutput]):
    """A model that predicts masked tokens. Created by `AutoModelForMaskedLM.from_pretrained`.

    A call returns the logits of every token, as in transformers. `logits_at` computes fewer of them.
    """

    def logits_at(
        self,
        input_ids: object,
        token_id: int,
        attention_mask: object = None,
        token_type_ids: object = None,
    ) -> list[NDArray[Any]]:
        """Return the logits only where `token_id` is in the input: [n_found, vocab_size] for each sequence.

        With the mask token's id, this is all that predictions need, and much less work than all logits. The numbers
        are those of a call, bit for bit. Raises DTypeError, InputError, ContextLengthError.
        """
        wanted_id = check_count("token_id", token_id, high=self.config.vocab_size - 1)
        batch = self._read(input_ids, attention_mask, token_type_ids)
        found = [ids == wanted_id for ids in batch.ids]
        rows = np.flatnonzero(np.concatenate(found)) if found else np.zeros(0, np.intp)
        logits = np.zeros((0, self.config.vocab_size), np.float32)
        if len(rows):
            results = self._run(batch, hidden_states=False, attentions=False, wanted=rows.astype(np.int32))
            logits = results.matrix("logits")
        ends = np.cumsum([np.count_nonzero(part) for part in found], dtype=np.intp)
        return np.split(logits, ends[:-1]) if found else []

    def _compute(self, batch: Batch, hidden_states: bool | None, attentions: bool | None) -> MaskedLMOutput:
        results = self._run(batch, hidden_states=hidden_states, attentions=attentions)
        return MaskedLMOutput(results.per_token("logits"), results.hidden_states(), results.attentions())


class TokenClassifier(
    OneStepModel[TokenClassifierOutput[Array], TokenClassifierOutput[list[Array]], TokenClassifierOutput]
):
    """A model that computes one row of logits per token.

    Created by `AutoModelForTokenClassification.from_pretrained`. A call returns logits [batch, seq_len, num_labels].
    """

    @property
    def id2label(self) -> Mapping[int, str]:
        """The names of the classes."""
        return dict(enumerate(self.config.labels))

    def _compute(self, batch: Batch, hidden_states: bool | None, attentions: bool | None) -> TokenClassifierOutput:
        results = self._run(batch, hidden_states=hidden_states, attentions=attentions)
        return TokenClassifierOutput(results.per_token("logits"), results.hidden_states(), results.attentions())


class QuestionAnswerer(
    OneStepModel[QuestionAnsweringOutput[Array], QuestionAnsweringOutput[list[Array]], QuestionAnsweringOutput]
):
    """A model that finds the answer to a question in a text.

    Created by `AutoModelForQuestionAnswering.from_pretrained`. A call returns start_logits and end_logits of every
    token.
    """

    def _compute(self, batch: Batch, hidden_states: bool | None, attentions: bool | None) -> QuestionAnsweringOutput:
        results = self._run(batch, hidden_states=hidden_states, attentions=attentions)
        logits = results.per_token("logits")
        start, end = _column(logits, 0), _column(logits, 1)
        return QuestionAnsweringOutput(start, end, results.hidden_states(), results.attentions())


def _column(rows: PerToken, index: int) -> PerToken:
    if isinstance(rows, list):
        return [np.ascontiguousarray(row[..., index]) for row in rows]
    return np.ascontiguousarray(rows[..., index])


class NextSentencePredictor(
    OneStepModel[NextSentencePredictorOutput, NextSentencePredictorOutput, NextSentencePredictorOutput]
):
    """A model that computes whether a text follows another one.

    Created by `AutoModelForNextSentencePrediction.from_pretrained`. A call returns logits [batch, 2]; [2] for a 1-D
    input. Empty sequences are rejected.
    """

    def _compute(
        self, batch: Batch, hidden_states: bool | None, attentions: bool | None
    ) -> NextSentencePredictorOutput:
        batch.need_tokens(_FIRST)
        results = self._run(batch, hidden_states=hidden_states, attentions=attentions)
        logits = cast(Array, results.per_sequence("logits"))
        return NextSentencePredictorOutput(logits, results.hidden_states(), results.attentions())


class PreTraining(OneStepModel[PreTrainingOutput[Array], PreTrainingOutput[list[Array]], PreTrainingOutput]):
    """A BERT with both of its heads for pre-training.

    Created by `AutoModelForPreTraining.from_pretrained`. A call returns prediction_logits of every token and
    seq_relationship_logits [batch, 2]. Empty sequences are rejected.
    """

    def _compute(self, batch: Batch, hidden_states: bool | None, attentions: bool | None) -> PreTrainingOutput:
        batch.need_tokens(_FIRST)
        results = self._run(batch, hidden_states=hidden_states, attentions=attentions)
        return PreTrainingOutput(
            results.per_token("logits"),
            cast(Array, results.per_sequence("seq_relationship_logits")),
            results.hidden_states(),
            results.attentions(),
        )
