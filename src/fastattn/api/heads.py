"""The models with other heads: one output per token, or per pair of texts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from fastattn.api.encoders import OneStepModel
from fastattn.api.model import Model
from fastattn.checks import check_count
from fastattn.errors import DTypeError, InputError
from fastattn.models.inputs import Batch
from fastattn.models.outputs import (
    Array,
    DiscriminatorOutput,
    MaskedLMOutput,
    MultipleChoiceOutput,
    NextSentencePredictorOutput,
    PerToken,
    PreTrainingOutput,
    QuestionAnsweringOutput,
    SentenceOrderOutput,
    TokenClassifierOutput,
    finish_output,
)

# The beginning of an error about one sequence.
_PLACE = re.compile(r"^(input_ids|attention_mask|token_type_ids|position_ids)\[(\d+)(?=([],]))")
_FIRST = "the logits are computed from the first token"


class MaskedLM(OneStepModel[MaskedLMOutput[Array], MaskedLMOutput[list[Array]], MaskedLMOutput]):
    """A model that predicts masked tokens. Created by `AutoModelForMaskedLM.from_pretrained`.

    A call returns logits [batch, seq_len, vocab_size], as in transformers. `logits_at` computes fewer of them.
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

    Created by `AutoModelForQuestionAnswering.from_pretrained`. A call returns start_logits and end_logits
    [batch, seq_len].
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


_OfArray: TypeAlias = PreTrainingOutput[Array] | SentenceOrderOutput[Array] | DiscriminatorOutput[Array]
_OfList: TypeAlias = (
    PreTrainingOutput[list[Array]] | SentenceOrderOutput[list[Array]] | DiscriminatorOutput[list[Array]]
)
_OfEither: TypeAlias = PreTrainingOutput | SentenceOrderOutput | DiscriminatorOutput


class PreTraining(OneStepModel[_OfArray, _OfList, _OfEither]):
    """A model with its heads for pre-training.

    Created by `AutoModelForPreTraining.from_pretrained`. A call returns a PreTrainingOutput (BERT, JinaBERT), a
    SentenceOrderOutput (ALBERT) or a DiscriminatorOutput (ELECTRA). All but ELECTRA reject empty sequences.
    """

    def _compute(self, batch: Batch, hidden_states: bool | None, attentions: bool | None) -> _OfEither:
        outputs = self.traced.outputs
        if len(outputs) > 1:
            batch.need_tokens(_FIRST)
        results = self._run(batch, hidden_states=hidden_states, attentions=attentions)
        logits, others = results.per_token("logits"), (results.hidden_states(), results.attentions())
        if "seq_relationship_logits" in outputs:
            return PreTrainingOutput(logits, cast(Array, results.per_sequence("seq_relationship_logits")), *others)
        if "sop_logits" in outputs:
            return SentenceOrderOutput(logits, cast(Array, results.per_sequence("sop_logits")), *others)
        return DiscriminatorOutput(_column(logits, 0), *others)


class MultipleChoice(Model):
    """A model that computes one logit for each of several texts.

    Created by `AutoModelForMultipleChoice.from_pretrained`. A text is often a question and one of its answers.
    """

    def __call__(
        self,
        input_ids: object = None,
        attention_mask: object = None,
        token_type_ids: object = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        *,
        position_ids: object = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> Any:
        """Return a MultipleChoiceOutput with logits [batch, num_choices].

        input_ids: an array [batch, num_choices, seq_len], or a list with one list of sequences of any lengths per item;
        all items have the same number of choices. The masks, types and positions have the same shape. return_dict and
        others: as in CausalLM. Raises DTypeError, InputError, ContextLengthError.
        """
        ids, n_choices = _flat(input_ids, "input_ids")
        given = (("attention_mask", attention_mask), ("token_type_ids", token_type_ids), ("position_ids", position_ids))
        mask, types, positions = (None if value is None else _beside(value, name, n_choices) for name, value in given)
        with _places_of_choices(n_choices):
            batch = self._read(ids, mask, types, positions, others)
            batch.need_tokens(_FIRST)
        results = self._run(batch, hidden_states=output_hidden_states, attentions=output_attentions)
        logits = cast(Array, results.per_sequence("logits")).reshape(-1, n_choices)
        output = MultipleChoiceOutput(logits, results.hidden_states(), results.attentions())
        return finish_output(output, return_dict)


@contextmanager
def _places_of_choices(n_choices: int) -> Iterator[None]:
    """Name the item and the choice in errors, in place of the number of the sequence: input_ids[1][2], not [5]."""

    def name(match: re.Match[str]) -> str:
        item, choice = divmod(int(match[2]), n_choices)
        return f"{match[1]}[{item}, {choice}" if match[3] == "," else f"{match[1]}[{item}][{choice}"

    try:
        yield
    except (InputError, DTypeError) as error:
        error.args = (_PLACE.sub(name, str(error)), *error.args[1:])
        raise


def _beside(value: object, name: str, n_choices: int) -> Any:
    """Return the sequences of all items of a mask, types or positions. Raises InputError."""
    flat, found = _flat(value, name)
    if found != n_choices:
        raise InputError(f"{name}: expected {n_choices} choices per item, as in input_ids, got {found}")
    return flat


def _flat(value: object, name: str) -> tuple[Any, int]:
    """Return the sequences of all items in one list or 2-D array, and the number of choices. Raises InputError."""
    expected = f"{name}: expected [batch, num_choices, seq_len], or a list of lists of sequences"
    if not isinstance(value, list | tuple):
        shape = tuple(getattr(value, "shape", ()))
        if len(shape) != 3 or 0 in shape:
            raise InputError(f"{expected}, got {type(value).__name__} of shape {list(shape)}")
        return cast(Any, value).reshape(-1, shape[2]), int(shape[1])
    lengths = {len(item) if hasattr(item, "__len__") else -1 for item in value}
    if len(lengths) != 1 or min(lengths) < 1:
        raise InputError(f"{expected}, all with as many choices, got {len(value)} items with {sorted(lengths)}")
    flat = [choice for item in value for choice in item]
    if not all(hasattr(choice, "__len__") for choice in flat):
        raise InputError(f"{expected}, got {type(flat[0]).__name__} in place of a sequence")
    return flat, lengths.pop()
