"""The models that do not generate text: encoders and sequence classifiers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast, overload

from fastattn.api.model import Model
from fastattn.models.outputs import Array, EncoderOutput, SequenceClassifierOutput, finish_output


class Encoder(Model):
    """A model that computes hidden states. Created by `AutoModel.from_pretrained`."""

    @overload
    def __call__(
        self,
        input_ids: object = ...,
        attention_mask: object = ...,
        token_type_ids: object = ...,
        output_hidden_states: bool | None = ...,
        output_attentions: bool | None = ...,
        *,
        position_ids: object = ...,
        return_dict: Literal[True] | None = ...,
        **others: Any,
    ) -> EncoderOutput: ...
    @overload
    def __call__(
        self,
        input_ids: object = ...,
        attention_mask: object = ...,
        token_type_ids: object = ...,
        output_hidden_states: bool | None = ...,
        output_attentions: bool | None = ...,
        *,
        position_ids: object = ...,
        return_dict: Literal[False],
        **others: Any,
    ) -> tuple[Any, ...]: ...
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
        """Return the last hidden state of every token and, if there is a pooler, its output for every sequence.

        position_ids, return_dict and others: as in CausalLM. If the checkpoint has a pooler, empty sequences are
        rejected. Raises DTypeError, InputError, ContextLengthError.
        """
        batch = self._read(input_ids, attention_mask, token_type_ids, position_ids, others)
        if "pooler_output" in self.traced.outputs:
            batch.need_tokens("pooler_output is that of the first token")
        results = self._run(batch, hidden_states=output_hidden_states, attentions=output_attentions)
        output = EncoderOutput(
            results.per_token("last_hidden_state"),
            results.per_sequence("pooler_output"),
            results.hidden_states(),
            results.attentions(),
        )
        return finish_output(output, return_dict)


class SequenceClassifier(Model):
    """A model that computes one row of logits per sequence.

    Created by `AutoModelForSequenceClassification.from_pretrained`.
    """

    @property
    def id2label(self) -> Mapping[int, str]:
        """The names of the classes."""
        return dict(enumerate(self.config.labels))

    @overload
    def __call__(
        self,
        input_ids: object = ...,
        attention_mask: object = ...,
        token_type_ids: object = ...,
        output_hidden_states: bool | None = ...,
        output_attentions: bool | None = ...,
        *,
        position_ids: object = ...,
        return_dict: Literal[True] | None = ...,
        **others: Any,
    ) -> SequenceClassifierOutput: ...
    @overload
    def __call__(
        self,
        input_ids: object = ...,
        attention_mask: object = ...,
        token_type_ids: object = ...,
        output_hidden_states: bool | None = ...,
        output_attentions: bool | None = ...,
        *,
        position_ids: object = ...,
        return_dict: Literal[False],
        **others: Any,
    ) -> tuple[Any, ...]: ...
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
        """Return logits [batch, num_labels]; [num_labels] for a 1-D input.

        GPT-2 uses the last token that is neither masked nor padding (`config.pad_token_id`). position_ids, return_dict
        and others: as in CausalLM. Empty sequences are rejected. Raises DTypeError, InputError, ContextLengthError.
        """
        batch = self._read(input_ids, attention_mask, token_type_ids, position_ids, others)
        batch.need_tokens("the classes are those of one of its tokens")
        results = self._run(
            batch,
            hidden_states=output_hidden_states,
            attentions=output_attentions,
            wanted=batch.last_rows(self.config.pad_token_id),
        )
        logits = cast(Array, results.per_sequence("logits"))
        output = SequenceClassifierOutput(logits, results.hidden_states(), results.attentions())
        return finish_output(output, return_dict)
