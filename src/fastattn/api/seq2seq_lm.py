"""Models of an encoder and a decoder: logits, and `generate` for translations and summaries."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastattn.api.calls import check_call_keywords
from fastattn.api.generating import GeneratingModel
from fastattn.api.reload import Origin, Shared
from fastattn.api.results import Results
from fastattn.checks import quote
from fastattn.errors import InputError
from fastattn.generation import seq2seq
from fastattn.generation.generate_args import GenerateArgs
from fastattn.generation.source import encode
from fastattn.graph.executor import Executor
from fastattn.models.inputs import Batch, read_model_batch
from fastattn.models.outputs import Seq2SeqLMOutput, finish_output
from fastattn.models.registry import BuiltModel

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Seq2SeqLM(GeneratingModel):
    """A model that reads a text and writes another one. Created by `AutoModelForSeq2SeqLM.from_pretrained`."""

    def __init__(
        self,
        directory: Path,
        built: BuiltModel,
        executor: Executor,
        *,
        origin: Origin | None = None,
        shared: Shared | None = None,
    ) -> None:
        super().__init__(directory, built, executor, origin=origin, shared=shared)
        if built.encoder is None:
            raise InputError("model: expected a model of an encoder and a decoder, got one without an encoder")
        self._encoder = executor.with_program(built.encoder)

    @property
    def encoder(self) -> Executor:
        """The executor of the encoder's Program, which stores the memories that the decoder reads."""
        if self._executor is None:
            raise InputError("model: expected an open model, got one after close()")
        return self._encoder

    @property
    def decoder_start_token_id(self) -> int | None:
        """The token that the decoder starts with; None if the checkpoint has none."""
        found: int | None = getattr(self.config, "decoder_start_token_id", None)
        return found

    def close(self) -> None:
        """Free the memory; any later use raises InputError. Copies stay open."""
        super().close()
        self._encoder.close()

    def __call__(
        self,
        input_ids: object = None,
        attention_mask: object = None,
        decoder_input_ids: object = None,
        decoder_attention_mask: object = None,
        *,
        return_dict: bool | None = None,
        **others: Any,
    ) -> Any:
        """Return the logits of every token of the decoder, and the last hidden states of the encoder.

        input_ids, decoder_input_ids: as many sequences of any lengths. The logits have the layout of the latter:
        [seq_len, vocab_size], [batch, seq_len, vocab_size] with zeros at masked positions, or a list. Raises
        DTypeError, InputError, ContextLengthError.
        """
        check_call_keywords(others, type(self).__name__)
        sources = self._read_source(input_ids, attention_mask)
        if decoder_input_ids is None:
            raise InputError("decoder_input_ids: expected token ids, got None; generate() starts the decoder itself")
        batch = read_model_batch(self.config, decoder_input_ids, decoder_attention_mask, explain=self.explain_id)
        if len(batch.counts) != len(sources.counts):
            raise InputError(
                f"decoder_input_ids: expected {len(sources.counts)} sequences as in input_ids, got {len(batch.counts)}"
            )
        memories, encoded = encode(self.encoder, sources.ids, hidden_states=True)
        caches: list[Any] = []
        try:
            for memory in memories:
                caches.append(self.executor.new_cache())
                caches[-1].set_memory(memory)
            found = self.executor.run(replace(batch.step(), caches=tuple(caches)), ["logits"])
        finally:
            for cache in (*memories, *caches):
                cache.close()
        logits = Results(batch, self.executor.program, {"logits": found["logits"]}, 0).wanted("logits")
        states = Results(sources, self.encoder.program, {"encoder_last_hidden_state": encoded}, 0)
        return finish_output(Seq2SeqLMOutput(logits, states.per_token("encoder_last_hidden_state")), return_dict)

    def generate(
        self,
        texts_or_ids: object = None,
        *,
        input_ids: object = None,
        decoder_start_token_id: int | None = None,
        return_dict_in_generate: bool | None = None,
        num_return_sequences: int | None = None,
        **options: Unpack[GenerateArgs],
    ) -> Any:
        """Write the text that follows from another one; `fastattn.GenerationOptions` describes the options.

        texts_or_ids: a text or a list of texts -> texts without special tokens; or token ids, as a language model takes
        them -> the ids of the decoder, from decoder_start_token_id on (None for that of the checkpoint). The encoder
        runs once for each, and all beams share what it computed. input_ids: the same as texts_or_ids. Raises what
        `generate` of a language model raises, and ConfigError for texts without a tokenizer.
        """
        own = {"return_dict_in_generate": return_dict_in_generate, "num_return_sequences": num_return_sequences}
        asked = [value for value in (texts_or_ids, input_ids, options.pop("inputs", None)) if value is not None]
        if len(asked) != 1:
            raise InputError(f"texts_or_ids: expected texts or token ids once, got {len(asked)} inputs")
        return seq2seq.generate(self, asked[0], start=decoder_start_token_id, **{**options, **own})

    def start_of(self, given: object) -> int:
        """Return the token that the decoder starts with. given: what a call asks for. Raises InputError."""
        found = self.decoder_start_token_id if given is None else given
        found = self.bos_token_id if found is None else found
        limit = self.config.vocab_size
        if type(found) is not int or not 0 <= found < limit:
            raise InputError(
                f"decoder_start_token_id: expected 0 to {limit - 1}, got {quote(found)}; the checkpoint may need one "
                "for the language"
            )
        return found

    def read_source(self, input_ids: object, attention_mask: object) -> list[NDArray[np.int32]]:
        """Check the ids that the encoder reads, without padding. Raises DTypeError, InputError, ContextLengthError."""
        return self._read_source(input_ids, attention_mask).ids

    def _read_source(self, input_ids: object, attention_mask: object) -> Batch:
        batch = read_model_batch(self.config, input_ids, attention_mask, explain=self.explain_id)
        for i, count in enumerate(batch.counts):
            if not count:
                raise InputError(f"input_ids: expected at least one token for the encoder, got none in sequence {i}")
        return batch
