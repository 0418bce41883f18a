"""The base of the models that do not generate text; encoders and sequence classifiers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast, overload

from fastattn.api.calls import CallArgs, Inputs, OneInput, OtherArgs
from fastattn.api.model import Model
from fastattn.models.inputs import Batch
from fastattn.models.outputs import Array, EncoderOutput, ModelOutput, SequenceClassifierOutput, finish_output

if TYPE_CHECKING:
    from typing_extensions import Unpack

# The type of the output for one array, for a list of sequences, and for an input that may be either.
_OfArray = TypeVar("_OfArray", bound=ModelOutput)
_OfList = TypeVar("_OfList", bound=ModelOutput)
_OfEither = TypeVar("_OfEither", bound=ModelOutput)


class OneStepModel(Model, Generic[_OfArray, _OfList, _OfEither]):
    """A model whose calls run one step and return one output."""

    @overload
    def __call__(
        self,
        input_ids: OneInput,
        attention_mask: object = ...,
        token_type_ids: object = ...,
        *,
        return_dict: Literal[True] | None = ...,
        **options: Unpack[CallArgs],
    ) -> _OfArray: ...
    @overload
    def __call__(
        self,
        input_ids: Inputs,
        attention_mask: object = ...,
        token_type_ids: object = ...,
        *,
        return_dict: Literal[True] | None = ...,
        **options: Unpack[CallArgs],
    ) -> _OfList: ...
    @overload
    def __call__(
        self,
        input_ids: object = ...,
        attention_mask: object = ...,
        token_type_ids: object = ...,
        output_hidden_states: bool | None = ...,
        output_attentions: bool | None = ...,
        *,
        return_dict: Literal[True] | None = ...,
        **options: Unpack[OtherArgs],
    ) -> _OfEither: ...
    @overload
    def __call__(
        self,
        input_ids: object = ...,
        attention_mask: object = ...,
        token_type_ids: object = ...,
        output_hidden_states: bool | None = ...,
        output_attentions: bool | None = ...,
        *,
        return_dict: Literal[False],
        **options: Unpack[OtherArgs],
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
        """Return the output that the class describes, in the layout of the input (see `fastattn.models.outputs`).

        position_ids, return_dict and others: as in CausalLM. Raises DTypeError, InputError, ContextLengthError.
        """
        batch = self._read(input_ids, attention_mask, token_type_ids, position_ids, others)
        return finish_output(self._compute(batch, output_hidden_states, output_attentions), return_dict)

    @abstractmethod
    def _compute(self, batch: Batch, hidden_states: bool | None, attentions: bool | None) -> _OfEither:
        """Run one step. Raises InputError for an empty sequence for which the output is undefined."""


class Encoder(OneStepModel[EncoderOutput[Array], EncoderOutput[list[Array]], EncoderOutput]):
    """A model that computes hidden states. Created by `AutoModel.from_pretrained`.

    A call returns last_hidden_state [batch, seq_len, hidden_size] and, if the checkpoint has a pooler, pooler_output
    [batch, hidden_size]. If there is a pooler, empty sequences are rejected.
    """

    def _compute(self, batch: Batch, hidden_states: bool | None, attentions: bool | None) -> EncoderOutput:
        if "pooler_output" in self.traced.outputs:
            batch.need_tokens("pooler_output is computed from the first token")
        results = self._run(batch, hidden_states=hidden_states, attentions=attentions)
        return EncoderOutput(
            results.per_token("last_hidden_state"),
            results.per_sequence("pooler_output"),
            results.hidden_states(),
            results.attentions(),
        )

    def states(self, batch: Batch, key_counts: Sequence[int]) -> Any:
        """Return last_hidden_state if only the first key_counts[i] tokens of sequence i are attended to.

        See `Step` in `fastattn.graph.ir`. Raises InputError if the device or the attention of this model cannot do
        that.
        """
        results = self._run(batch, hidden_states=False, attentions=False, key_counts=key_counts)
        return results.per_token("last_hidden_state")


class SequenceClassifier(OneStepModel[SequenceClassifierOutput, SequenceClassifierOutput, SequenceClassifierOutput]):
    """A model that computes one row of logits per sequence.

    Created by `AutoModelForSequenceClassification.from_pretrained`. A call returns logits [batch, num_labels];
    [num_labels] for a 1-D input. Decoders use the last token that is neither masked nor padding
    (`config.pad_token_id`). Empty sequences are rejected.
    """

    @property
    def id2label(self) -> Mapping[int, str]:
        """The names of the classes."""
        return dict(enumerate(self.config.labels))

    def _compute(self, batch: Batch, hidden_states: bool | None, attentions: bool | None) -> SequenceClassifierOutput:
        batch.need_tokens("the logits are computed from one of its tokens")
        wanted = batch.last_rows(self.config.pad_token_id)
        results = self._run(batch, hidden_states=hidden_states, attentions=attentions, wanted=wanted)
        logits = cast(Array, results.per_sequence("logits"))
        return SequenceClassifierOutput(logits, results.hidden_states(), results.attentions())
