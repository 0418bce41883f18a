"""The language model: computes logits and generates text."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from fastattn.api.calls import CausalLMCallArgs, Inputs, NoArgs, OneInput, OtherArgs, refuse_keywords
from fastattn.api.generating import GeneratingModel
from fastattn.api.loading import load_model
from fastattn.api.reload import Origin, Shared, check_same_files
from fastattn.checks import check_count, check_path, check_str, quote
from fastattn.errors import InputError
from fastattn.generation import generate as generation
from fastattn.generation import prefix, scoring
from fastattn.generation.generate_args import GenerateArgs, GenerationArgs
from fastattn.generation.page_plan import KvStats, PagePlan
from fastattn.generation.prefix import CachedPrefix
from fastattn.generation.text_stream import TextStream
from fastattn.graph.executor import Cache, Executor
from fastattn.graph.kinds import LoraAdapter
from fastattn.graph.rewrites import optimize, with_lora
from fastattn.models.outputs import Array, CausalLMOutput, GenerateOutput, ScoreOutput, SurprisalOutput, finish_output
from fastattn.models.registry import BuiltModel
from fastattn.models.request_adapters import read_request_adapter

if TYPE_CHECKING:
    from typing_extensions import Unpack

OneAxis: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.integer[Any]]]"
TwoAxes: TypeAlias = "np.ndarray[tuple[int, int], np.dtype[np.integer[Any]]]"


class CausalLM(GeneratingModel):
    """A model that computes next-token logits. Created by `AutoModelForCausalLM.from_pretrained`."""

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
        self._copies: dict[str, CausalLM] = {}  # in other dtypes, which propose tokens
        self._adapters: dict[str, LoraAdapter] = {}
        self._targets: set[int] = set()  # linears that an adapter changes; running requests may use deleted ones

    @overload
    def __call__(
        self,
        input_ids: OneInput,
        attention_mask: object = ...,
        token_type_ids: object = ...,
        *,
        return_dict: Literal[True] | None = ...,
        **options: Unpack[CausalLMCallArgs],
    ) -> CausalLMOutput[Array]: ...
    @overload
    def __call__(
        self,
        input_ids: Inputs,
        attention_mask: object = ...,
        token_type_ids: object = ...,
        *,
        return_dict: Literal[True] | None = ...,
        **options: Unpack[CausalLMCallArgs],
    ) -> CausalLMOutput[list[Array]]: ...
    @overload
    def __call__(
        self,
        input_ids: object = ...,
        attention_mask: object = ...,
        token_type_ids: object = ...,
        logits_to_keep: int = ...,
        output_hidden_states: bool | None = ...,
        output_attentions: bool | None = ...,
        *,
        return_dict: Literal[True] | None = ...,
        **options: Unpack[OtherArgs],
    ) -> CausalLMOutput: ...
    @overload
    def __call__(
        self,
        input_ids: object = ...,
        attention_mask: object = ...,
        token_type_ids: object = ...,
        logits_to_keep: int = ...,
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
        logits_to_keep: int = 0,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        *,
        position_ids: object = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> Any:
        """Return the logits of every token, or with logits_to_keep=n those of the last n real tokens of each sequence.

        A 1-D input gives [seq_len, vocab_size]. A 2-D input gives [batch, seq_len, vocab_size] with zeros at masked
        positions; with logits_to_keep the rows are aligned to the right. A list of sequences gives a list of [seq_len,
        vocab_size].
        token_type_ids: GPT-2, GPT-J and GPT-Neo add the embeddings of the tokens with these ids, as in transformers;
        other families ignore them. position_ids: None numbers the real tokens of each sequence from 0.
        return_dict=False returns the output as a tuple. Other keywords of
        transformers are accepted if they change nothing (`use_cache`, or a value of None) and rejected otherwise.
        Raises DTypeError, InputError, ContextLengthError.
        """
        keep = check_count("logits_to_keep", logits_to_keep)
        batch = self._read(input_ids, attention_mask, token_type_ids, position_ids, others)
        results = self._run(
            batch, logits_to_keep=keep, hidden_states=output_hidden_states, attentions=output_attentions
        )
        output = CausalLMOutput(results.wanted("logits"), results.hidden_states(), results.attentions())
        return finish_output(output, return_dict)

    def new_cache(self, adapter: LoraAdapter | None = None) -> Cache:
        """Return an empty KV cache for one sequence, for `executor.run`; adapter: from `find_adapter`."""
        return self.executor.new_cache(adapter)

    def close(self) -> None:
        """Free the memory; any later use raises InputError.

        Models from `copy_in` are closed too. Copies made with the `copy` module stay open.
        """
        super().close()
        for copy in list(self._copies.values()):
            copy.close()

    # -- adapters of requests -----------------------------------------------------------------------------------------

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names that `load_adapter` loaded, for the option `adapter_name`."""
        return tuple(self._adapters)

    def load_adapter(self, path: str | os.PathLike[str], adapter_name: str = "default") -> None:
        """Load a LoRA adapter that peft wrote, a folder, for requests with `adapter_name`.

        The weights do not change: each request of a batch may use another adapter, or none. Its result has the bits of
        a call alone. Running requests continue. Copies and pickles of the model do not have its adapters. Raises
        DTypeError, InputError for a name that is loaded already or a model that is not on the CPU, ConfigError for an
        adapter that does not fit the model or changes more than products of linears (DoRA, biases, embeddings, whole
        tensors; `from_pretrained(..., adapter=)` merges those), ModelFormatError, ModelNotFoundError, OSError.
        """
        folder, name = check_path("path", path), check_str("adapter_name", adapter_name)
        if name in self._adapters:
            raise InputError(f"adapter_name: expected a new name, got {quote(name)}; call delete_adapter before")
        if self.device != "cpu":
            raise InputError(f"load_adapter: expected a model on the CPU, got one on {self.device}")
        adapter = read_request_adapter(folder, self.traced, name)

        def add(executor: Executor) -> Executor:
            if name in self._adapters:  # another thread loaded it meanwhile
                raise InputError(f"adapter_name: expected a new name, got {quote(name)}")
            self._targets |= {part.target for part in adapter.parts}
            adapted = executor.with_program(optimize(with_lora(self.traced, self._targets)))
            self._adapters[name] = adapter
            return adapted  # calls that still use the one before, such as `score`, keep it open

        self.engine.use(add)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter. Requests that use it continue; its memory is free after them.

        Raises DTypeError, InputError for an unknown name.
        """
        adapter = self.find_adapter(adapter_name)
        del self._adapters[adapter.name]
        for engine in self._engines.values():
            engine.do_soon(partial(_forget, adapter))

    def find_adapter(self, name: str) -> LoraAdapter:
        """Return a loaded adapter. Raises DTypeError, InputError for an unknown name."""
        found = self._adapters.get(check_str("adapter_name", name))
        if found is None:
            known = ", ".join(map(quote, self._adapters)) or "none"
            raise InputError(f"adapter_name: expected a loaded adapter ({known}), got {quote(name)}; call load_adapter")
        return found

    def copy_in(self, dtype: str) -> CausalLM:
        """Return a copy of the model with weights in another dtype, from the same files, for `assistant_model`.

        It is loaded at the first use and closed with the model. Raises InputError, ConfigError for a quantized
        checkpoint, ModelFormatError if the files have changed since the model was loaded.
        """
        copy = self._copies.get(dtype)
        if copy is None:  # no lock, as in Model: of two threads, the first one's copy is used
            loaded = self._load_in(dtype)
            copy = self._copies.setdefault(dtype, loaded)
            if copy is not loaded:
                loaded.close()
        return copy

    def _load_in(self, dtype: str) -> CausalLM:
        origin = self._origin
        if origin is None:
            raise InputError(
                f"assistant_model: expected a model from from_pretrained for {dtype!r}, got one without a folder; "
                "pass a draft model"
            )
        if dtype == self.dtype:
            raise InputError(
                f"assistant_model: expected a dtype other than the model's own, got {dtype!r}; a copy like the "
                "model would save no time"
            )
        options = replace(origin.options, dtype=dtype, kv_dtype=None, head_dtype=None, kv_cache_bytes=None)
        built, executor, found = load_model(origin.directory, self._built.task, options, origin.name)
        try:
            check_same_files(origin, found)
        except BaseException:
            executor.close()
            raise
        copy = CausalLM(self._directory, built, executor, origin=found)
        self.engine.assistants.add(executor)
        return copy

    @overload
    def generate(
        self,
        input_ids: Sequence[int] | OneAxis,
        *,
        return_dict_in_generate: Literal[False] | None = ...,
        num_return_sequences: Literal[1] | None = ...,
        **options: Unpack[GenerateArgs],
    ) -> NDArray[np.int32]: ...
    @overload
    def generate(
        self,
        input_ids: Sequence[Sequence[int]] | Sequence[NDArray[np.integer[Any]]] | TwoAxes,
        *,
        return_dict_in_generate: Literal[False] | None = ...,
        num_return_sequences: int | None = ...,
        **options: Unpack[GenerateArgs],
    ) -> list[NDArray[np.int32]]: ...
    @overload
    def generate(
        self,
        input_ids: object = ...,
        *,
        return_dict_in_generate: Literal[True],
        num_return_sequences: int | None = ...,
        **options: Unpack[GenerateArgs],
    ) -> GenerateOutput: ...
    @overload
    def generate(
        self,
        input_ids: object = ...,
        *,
        return_dict_in_generate: bool | None = ...,
        num_return_sequences: int | None = ...,
        **options: Unpack[GenerateArgs],
    ) -> NDArray[np.int32] | list[NDArray[np.int32]] | GenerateOutput: ...
    def generate(
        self,
        input_ids: object = None,
        *,
        return_dict_in_generate: bool | None = None,
        num_return_sequences: int | None = None,
        **options: Unpack[GenerateArgs],
    ) -> Any:
        """Continue token ids; `fastattn.GenerationOptions` describes the options.

        [n_tokens] -> int32 [n_tokens + n_new]. Several sequences, or num_return_sequences > 1, return a list of such
        arrays. return_dict_in_generate=True returns a GenerateOutput. Without attention_mask, the checkpoint's padding
        id marks padding, as in transformers. Raises DTypeError, InputError (also for an unknown option),
        ContextLengthError, NonFiniteError, OutOfMemory (keys and values that `kv_cache_bytes` can never hold).
        """
        return generation.generate(
            self,
            input_ids,
            return_dict_in_generate=return_dict_in_generate,
            num_return_sequences=num_return_sequences,
            **options,
        )

    def score(
        self,
        prefix: object,
        continuations: Iterable[object],
        *,
        adapter_name: str | None = None,
        **others: Unpack[NoArgs],
    ) -> ScoreOutput:
        """Return the log-probability of each token of each continuation of a prefix.

        prefix, continuations: all texts, or all token ids [n_tokens]. The prefix is computed once. The text of a
        continuation is tokenized together with the prefix. An empty prefix means the checkpoint's bos (else eos) id. To
        choose between answers: `score(question, answers).best`. adapter_name: an adapter from `load_adapter`. Raises
        DTypeError, InputError, ContextLengthError, NonFiniteError.
        """
        refuse_keywords(others, "score", ("prefix", "continuations", "adapter_name"))
        return scoring.score(self, prefix, continuations, adapter_name)

    def surprisal(self, text_or_ids: object, *, stride: int | None = None, **others: Unpack[NoArgs]) -> SurprisalOutput:
        """Return how unexpected each token of a text, or of ids [n_tokens], is.

        A text longer than the context is read in windows of the context's length, `stride` tokens apart (None: half of
        it). A token is scored in the first window that has it. Raises DTypeError, InputError, NonFiniteError.
        """
        refuse_keywords(others, "surprisal", ("text_or_ids", "stride"))
        return scoring.surprisal(self, text_or_ids, stride=stride)

    def perplexity(self, text_or_ids: object, *, stride: int | None = None, **others: Unpack[NoArgs]) -> float:
        """Return the perplexity of a text, or of ids [n_tokens], of at least two tokens.

        Raises what `surprisal` raises.
        """
        refuse_keywords(others, "perplexity", ("text_or_ids", "stride"))
        found = self.surprisal(text_or_ids, stride=stride)
        if len(found.token_ids) < 2:
            raise InputError(
                f"text_or_ids: expected at least 2 tokens, got {len(found.token_ids)}; the first one has no "
                "probability, so pass a longer text"
            )
        return found.perplexity

    def stream(self, text_or_ids: object, *, logprobs: bool = False, **options: Unpack[GenerationArgs]) -> TextStream:
        """Continue a text, or ids [n_tokens]; `for` and `async for` over the result give the new text in pieces.

        The pieces join to `decode(prompt + new)[len(decode(prompt)):]`, without special tokens. logprobs=True: the
        stream has the log-probabilities of the new tokens. `fastattn.GenerationOptions` describes the options. Raises
        DTypeError, InputError, ContextLengthError, and as in `generate` OutOfMemory; taking a piece can raise
        NonFiniteError.
        """
        return generation.stream(self, text_or_ids, logprobs=logprobs, **options)

    async def agenerate(
        self,
        input_ids: object = None,
        *,
        return_dict_in_generate: bool | None = None,
        num_return_sequences: int | None = None,
        **options: Unpack[GenerateArgs],
    ) -> Any:
        """Do what `generate` does, in an asyncio task: `ids = await model.agenerate(...)`.

        The calls of all tasks and threads share steps, and each result is the same as alone. Cancelling the task stops
        the work. Raises what `generate` raises.
        """
        return await generation.generate_async(
            self,
            input_ids,
            return_dict_in_generate=return_dict_in_generate,
            num_return_sequences=num_return_sequences,
            **options,
        )

    def astream(self, text_or_ids: object, *, logprobs: bool = False, **options: Unpack[GenerationArgs]) -> TextStream:
        """Do what `stream` does, for `async for piece in model.astream(...)`. Raises what `stream` raises."""
        return generation.stream(self, text_or_ids, logprobs=logprobs, **options)

    def cache_prefix(self, text_or_ids: object, **others: Unpack[NoArgs]) -> CachedPrefix:
        """Compute the keys and values of a text, or ids [n_tokens], and keep them in memory until `close`.

        Prompts that begin with it reuse them; results do not change. If the last page (of 64 positions) has fewer
        than 16 tokens, these are computed again. Raises DTypeError, InputError, ContextLengthError, OutOfMemory.
        """
        refuse_keywords(others, "cache_prefix", ("text_or_ids",))
        return prefix.cache_prefix(self, generation.read_prompt(self, text_or_ids), "text_or_ids")

    def load_prefix(self, path: str | os.PathLike[str], **others: Unpack[NoArgs]) -> CachedPrefix:
        """Read a prefix that `CachedPrefix.save` wrote for the same checkpoint, dtype and kv_dtype.

        Raises InputError for one of another model, ModelFormatError for a damaged file, OSError.
        """
        refuse_keywords(others, "load_prefix", ("path",))
        return prefix.load_prefix(self, path)

    def kv_stats(self) -> KvStats:
        """Return how many pages of keys and values are in use, and how many may be."""
        return self.engine.stats()


def _forget(adapter: LoraAdapter, pages: PagePlan) -> None:
    if pages.tree is not None:
        pages.tree.forget(adapter)
