"""The outputs of a model.

The layout follows the input. A 1-D input gives arrays without a batch axis. A 2-D input gives stacked arrays with zeros
at masked positions. A list of sequences gives lists with one array per sequence. Arrays are float32 (device "numpy":
float64).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Generic, Literal, SupportsIndex, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from fastattn.checks import check_flag, closest, quote

Array = NDArray[Any]
PerToken = Array | list[Array]
if TYPE_CHECKING:
    from typing_extensions import TypeVar

    _PerToken = TypeVar("_PerToken", bound=PerToken, default=PerToken, covariant=True)
else:  # defaults of type variables need Python 3.13
    from typing import TypeVar

    _PerToken = TypeVar("_PerToken", covariant=True)
FinishReason: TypeAlias = Literal["eos", "stop_string", "stopping_criteria", "length", "time"]

# Fields of transformers' outputs that ours do not have, and what to use instead.
_ABSENT = {
    "loss": "no loss is computed: compute it from the logits",
    "past_key_values": "no cache is returned: `generate` and `stream` use one",
    "cache": "no cache is returned: `generate` and `stream` use one",
    "cross_attentions": "these models have no cross attention",
}


class ModelOutput(Mapping[str, Any]):
    """Access as in transformers: `out.logits`, `out["logits"]`, `out[0]`, `out[:2]`, `out.to_tuple()`.

    Fields that are None are omitted. As in a dict, iteration gives the names.
    """

    __slots__ = ()

    @overload
    def __getitem__(self, key: str | SupportsIndex) -> Any: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[Any, ...]: ...
    def __getitem__(self, key: str | SupportsIndex | slice) -> Any:
        if isinstance(key, str):
            if key in self._names():
                return getattr(self, key)
            raise KeyError(key)
        return self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    if not TYPE_CHECKING:  # a type checker that sees __getattr__ accepts every name

        def __getattr__(self, name: str) -> Any:
            known = [field.name for field in fields(type(self))]
            why = f"; {_ABSENT[name]}" if name in _ABSENT else closest(name, known)
            raise AttributeError(f"{type(self).__name__} has no {quote(name)}{why}")

    __eq__ = object.__eq__  # comparing arrays gives no single truth value
    __hash__ = object.__hash__

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the fields that are not None, in order."""
        return tuple(getattr(self, name) for name in self._names())

    def _names(self) -> list[str]:
        names = [field.name for field in fields(type(self))]  # type: ignore[arg-type]
        return [name for name in names if getattr(self, name) is not None]


@dataclass(frozen=True, slots=True, eq=False)
class CausalLMOutput(ModelOutput, Generic[_PerToken]):
    """The outputs of a language model.

    logits [batch, seq_len, vocab_size]. hidden_states: n_layer + 1 of [batch, seq_len, n_embd]; the first are the
    embeddings, the last is after the last norm. attentions: n_layer of [batch, n_head, seq_len, seq_len]. For type
    checkers: CausalLMOutput[Array] for an array, CausalLMOutput[list[Array]] for a list of sequences.
    """

    logits: _PerToken
    hidden_states: tuple[_PerToken, ...] | None = None
    attentions: tuple[_PerToken, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Seq2SeqLMOutput(ModelOutput):
    """The outputs of a model of an encoder and a decoder.

    logits [batch, seq_len, vocab_size] of the decoder. encoder_last_hidden_state [batch, seq_len, hidden_size].
    """

    logits: PerToken
    encoder_last_hidden_state: PerToken


@dataclass(frozen=True, slots=True, eq=False)
class EncoderOutput(ModelOutput, Generic[_PerToken]):
    """The outputs of an encoder.

    last_hidden_state [batch, seq_len, hidden_size]. pooler_output [batch, hidden_size] if the checkpoint has a pooler.
    hidden_states, attentions: as in CausalLMOutput.
    """

    last_hidden_state: _PerToken
    pooler_output: Array | None = None
    hidden_states: tuple[_PerToken, ...] | None = None
    attentions: tuple[_PerToken, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class SequenceClassifierOutput(ModelOutput):
    """The outputs of a classifier.

    logits [batch, num_labels], or [num_labels] for a 1-D input. hidden_states, attentions: as in CausalLMOutput.
    """

    logits: Array
    hidden_states: tuple[PerToken, ...] | None = None
    attentions: tuple[PerToken, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class MaskedLMOutput(ModelOutput, Generic[_PerToken]):
    """The outputs of a masked language model.

    logits [batch, seq_len, vocab_size]. hidden_states, attentions: as in CausalLMOutput.
    """

    logits: _PerToken
    hidden_states: tuple[_PerToken, ...] | None = None
    attentions: tuple[_PerToken, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class TokenClassifierOutput(ModelOutput, Generic[_PerToken]):
    """The outputs of a token classifier.

    logits [batch, seq_len, num_labels]. hidden_states, attentions: as in CausalLMOutput.
    """

    logits: _PerToken
    hidden_states: tuple[_PerToken, ...] | None = None
    attentions: tuple[_PerToken, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class QuestionAnsweringOutput(ModelOutput, Generic[_PerToken]):
    """The outputs of a model that finds answers in a text.

    start_logits, end_logits [batch, seq_len]: of the first and of the last token of the answer. hidden_states,
    attentions: as in CausalLMOutput.
    """

    start_logits: _PerToken
    end_logits: _PerToken
    hidden_states: tuple[_PerToken, ...] | None = None
    attentions: tuple[_PerToken, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class NextSentencePredictorOutput(ModelOutput):
    """The outputs of a next-sentence predictor.

    logits [batch, 2], or [2] for a 1-D input; index 0 means that the second text follows the first one. hidden_states,
    attentions: as in CausalLMOutput.
    """

    logits: Array
    hidden_states: tuple[PerToken, ...] | None = None
    attentions: tuple[PerToken, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class MultipleChoiceOutput(ModelOutput):
    """The outputs of a model that chooses between texts.

    logits [batch, num_choices]. hidden_states, attentions: as in CausalLMOutput, of batch * num_choices sequences.
    """

    logits: Array
    hidden_states: tuple[PerToken, ...] | None = None
    attentions: tuple[PerToken, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class PreTrainingOutput(ModelOutput, Generic[_PerToken]):
    """The outputs of BERT's two heads for pre-training.

    prediction_logits [batch, seq_len, vocab_size]: of the masked language model. seq_relationship_logits: as the logits
    of NextSentencePredictorOutput. hidden_states, attentions: as in CausalLMOutput.
    """

    prediction_logits: _PerToken
    seq_relationship_logits: Array
    hidden_states: tuple[_PerToken, ...] | None = None
    attentions: tuple[_PerToken, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class SentenceOrderOutput(ModelOutput, Generic[_PerToken]):
    """The outputs of ALBERT's two heads for pre-training.

    prediction_logits [batch, seq_len, vocab_size]: of the masked language model. sop_logits [batch, num_labels], or
    [num_labels] for a 1-D input: of the order of the two texts; index 0 means that they are in order. hidden_states,
    attentions: as in CausalLMOutput.
    """

    prediction_logits: _PerToken
    sop_logits: Array
    hidden_states: tuple[_PerToken, ...] | None = None
    attentions: tuple[_PerToken, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class DiscriminatorOutput(ModelOutput, Generic[_PerToken]):
    """The outputs of ELECTRA's discriminator.

    logits [batch, seq_len]: a positive one means that the generator replaced the token. hidden_states, attentions: as
    in CausalLMOutput.
    """

    logits: _PerToken
    hidden_states: tuple[_PerToken, ...] | None = None
    attentions: tuple[_PerToken, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class GenerateOutput(ModelOutput):
    """The result of `generate(..., return_dict_in_generate=True)`, with one item per text.

    sequences: prompt and new tokens, int32. finish_reasons: "eos", "stop_string", "stopping_criteria", "length" or
    "time". logprobs: of the new tokens under the unprocessed logits, float32. seeds: a request that
    runs alone with its seed gives the same text. texts: the new text, exactly up to the stop string. scores, logits:
    one [vocab_size] per new token, after all processors and filters, and before them. top_logprobs: (ids int32 [n],
    log-probabilities float32 [n]) per new token, the most likely first. sequences_scores: of beams, the sum of their
    log-probabilities divided by the length penalty; None for a text without beams. beam_indices: of beams, int32
    [n_new]: the number, within the prompt, of the beam that each token continued. stats: n_prompt_tokens and
    n_new_tokens of all texts, seconds, tokens_per_second; with speculation also n_proposed_tokens, n_accepted_tokens
    and n_steps, the steps that drew tokens, counted for each text. Fields that were not requested are None. If prompts
    have their own options, a field that only some of them request has empty items for the others.
    """

    sequences: list[NDArray[np.int32]]
    finish_reasons: list[FinishReason]
    logprobs: list[NDArray[np.float32]]
    seeds: list[int]
    texts: list[str] | None = None
    scores: list[list[Array]] | None = None
    logits: list[list[Array]] | None = None
    top_logprobs: list[list[tuple[NDArray[np.int32], NDArray[np.float32]]]] | None = None
    sequences_scores: list[float | None] | None = None
    beam_indices: list[NDArray[np.int32]] | None = None
    stats: dict[str, float] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ScoreOutput(ModelOutput):
    """The log-probabilities of continuations of one text.

    token_ids: int32 [n_tokens] of each continuation. logprobs: float32 [n_tokens], of each token after the ones before
    it. is_greedy: whether each token of a continuation is the likeliest.
    """

    token_ids: list[NDArray[np.int32]]
    logprobs: list[NDArray[np.float32]]
    is_greedy: list[bool]

    @property
    def sums(self) -> NDArray[np.float64]:
        """The log-probability of each continuation, float64 [n]."""
        return np.array([row.sum(dtype=np.float64) for row in self.logprobs], np.float64)

    @property
    def means(self) -> NDArray[np.float64]:
        """The mean log-probability of the tokens of each continuation, float64 [n]; 0 for one without tokens."""
        counts = np.array([max(len(row), 1) for row in self.logprobs], np.float64)
        return np.asarray(self.sums / counts)

    @property
    def best(self) -> int:
        """The index of the likeliest continuation."""
        return int(self.sums.argmax())


@dataclass(frozen=True, slots=True, eq=False)
class SurprisalOutput(ModelOutput):
    """How unexpected each token of a text is.

    token_ids: int32 [n_tokens]. logprobs: float32 [n_tokens], after the tokens before it; NaN for the first token.
    """

    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]

    @property
    def bits(self) -> NDArray[np.float32]:
        """The surprisal of each token in bits, float32 [n_tokens]; NaN for the first token."""
        return np.asarray(-self.logprobs / np.float32(np.log(2)))

    @property
    def perplexity(self) -> float:
        """exp of the mean surprisal in nats, over all tokens after the first."""
        return float(np.exp(-self.logprobs[1:].mean(dtype=np.float64)))


def finish_output(output: ModelOutput, return_dict: bool | None) -> Any:
    """Return the output, or its tuple if return_dict is False. Raises DTypeError."""
    if return_dict is None or check_flag("return_dict", return_dict):
        return output
    return output.to_tuple()
