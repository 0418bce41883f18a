"""AutoModelForCausalLM, AutoModel and AutoModelForSequenceClassification: checkpoints in, callable models out."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeAlias, TypeVar, cast, overload

import numpy as np
from numpy.typing import NDArray

from fastattn.checks import check_count
from fastattn.graph.executor import Cache, Executor
from fastattn.models.base import Model
from fastattn.models.generate_args import GenerateArgs, GenerationArgs
from fastattn.models.load_options import read_options
from fastattn.models.loading import check_device, find_folder, load_model
from fastattn.models.names import Task
from fastattn.models.outputs import (
    Array,
    CausalLMOutput,
    EncoderOutput,
    GenerateOutput,
    SequenceClassifierOutput,
    finish_output,
)
from fastattn.models.registry import BuiltModel
from fastattn.models.reload import Origin, Shared
from fastattn.models.text_stream import TextStream

if TYPE_CHECKING:
    from typing_extensions import Unpack

OneAxis: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.integer[Any]]]"
TwoAxes: TypeAlias = "np.ndarray[tuple[int, int], np.dtype[np.integer[Any]]]"


class CausalLM(Model):
    """A model that gives logits of the next token. Made by `AutoModelForCausalLM.from_pretrained`."""

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
        _generation()  # imported now: a fork while a thread imports it later would leave the child waiting

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
        position_ids: object = ...,
        return_dict: Literal[True] | None = ...,
        **others: Any,
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
        position_ids: object = ...,
        return_dict: Literal[False],
        **others: Any,
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
        """Logits of every token, or with logits_to_keep=n of the last n real tokens of each sequence alone.

        A 1-D input gives [seq_len, vocab_size], a 2-D one [batch, seq_len, vocab_size] (zeros at masked positions;
        with logits_to_keep the rows stand at the right), a list of sequences a list of [seq_len, vocab_size].
        token_type_ids add the embeddings of the tokens with these ids, as in transformers. position_ids: None counts
        the real tokens of each sequence. return_dict=False gives the output's tuple. Others of transformers' keywords
        are accepted where they change nothing (`use_cache`, None), and refused otherwise.
        Raises DTypeError, InputError, ContextLengthError.
        """
        keep = check_count("logits_to_keep", logits_to_keep)
        batch = self._read(input_ids, attention_mask, token_type_ids, position_ids, others)
        results = self._run(
            batch, logits_to_keep=keep, hidden_states=output_hidden_states, attentions=output_attentions
        )
        output = CausalLMOutput(results.wanted("logits"), results.hidden_states(), results.attentions())
        return finish_output(output, return_dict)

    def new_cache(self) -> Cache:
        """An empty KV cache for one sequence, for `executor.run`."""
        return self.executor.new_cache()

    @property
    def pad_token_id(self) -> int | None:
        """The token that `generate` takes for padding."""
        return self.config.generation_pad_token_id

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

        [n_tokens] -> int32 [n_tokens + n_new]; several sequences, or num_return_sequences > 1 -> a list of such arrays.
        return_dict_in_generate=True gives a GenerateOutput. Without attention_mask the padding id of the checkpoint is
        padding, as in transformers. Raises DTypeError, InputError (also for an unknown option), ContextLengthError.
        """
        return _generation().generate(
            self,
            input_ids,
            return_dict_in_generate=return_dict_in_generate,
            num_return_sequences=num_return_sequences,
            **options,
        )

    def stream(self, text_or_ids: object, **options: Unpack[GenerationArgs]) -> TextStream:
        """Continue a text, or ids [n_tokens], piece by piece; `for` and `async for` give the pieces.

        Together they are `decode(prompt + new)[len(decode(prompt)):]`, without special tokens.
        `fastattn.GenerationOptions` describes the options. Raises DTypeError, InputError, ContextLengthError.
        """
        return _generation().stream(self, text_or_ids, **options)


class Encoder(Model):
    """A model that gives hidden states. Made by `AutoModel.from_pretrained`."""

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
        """The last hidden state of every token and, where the checkpoint has a pooler, its output for every sequence.

        position_ids, return_dict and others: as of CausalLM. A sequence without tokens is refused where the checkpoint
        has a pooler. Raises DTypeError, InputError, ContextLengthError.
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
    """A model that gives one row of logits for each sequence.

    Made by `AutoModelForSequenceClassification.from_pretrained`.
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
        """Logits [batch, num_labels], [num_labels] for a 1-D input.

        GPT-2's are those of the last token that is neither masked nor padding (`config.pad_token_id`).
        position_ids, return_dict and others: as of CausalLM. A sequence without tokens is refused.
        Raises DTypeError, InputError, ContextLengthError.
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


_Loaded = TypeVar("_Loaded", bound=Model)
_OTHER_NAME = "pretrained_model_name_or_path"  # transformers' name of path_or_id


class _Auto(Generic[_Loaded]):
    """What the classes below share: one way from a checkpoint to a model."""

    _model: type[_Loaded]
    _task: Task

    def __init__(self) -> None:
        name = type(self).__name__
        raise TypeError(f"{name} is not made directly: call {name}.from_pretrained(path)")

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path | None = None,
        *,
        dtype: Any = None,
        kv_dtype: Any = None,
        head_dtype: Any = None,
        device: Any = None,
        threads: int | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        verify: Literal["sha256"] | Mapping[str, str] | None = None,
        check_finite: bool = False,
        **others: Any,
    ) -> _Loaded:
        """A folder with config.json and model.safetensors, or a hub id (extra `hub`).

        dtype: how weights are stored, "float32", "bfloat16", "int8" or "int4" (activations are rounded with them), also
        as numpy's or torch's dtype; None and "auto" are that of a quantized checkpoint, else "float32". "float16" is
        computed in float32 on the CPU, which loses nothing. kv_dtype: how keys and values are stored: "float32",
        "bfloat16" or "int8"; None and "auto" are like dtype (int8 beside int4). head_dtype: another one for the matrix
        that gives the logits; nothing changes where there is none (AutoModel) or it is too small to be rounded (fewer
        than 64 rows). device: "cpu" (also None, -1 and "auto"), "numpy" for the float64 specification, or "cuda", a
        preview: dtype "float32", "tf32", "bfloat16" or "float16", kv_dtype one of these but tf32, threads None.
        threads: on the CPU; None is what the process may use: the CPUs of its affinity mask, at most the CPU quota of
        its cgroup. revision, cache_dir, local_files_only and token are for hub ids, as in huggingface_hub. verify:
        "sha256" compares the weight files with SHA256SUMS beside them or with the names of the hub's blobs, a mapping
        gives the digests by file name. check_finite: refuse NaN and infinity in the weights (of a float checkpoint).

        others: transformers' subfolder, torch_dtype and device_map (for dtype and device); num_labels, id2label,
        label2id, problem_type, pad_token_id, output_hidden_states and output_attentions, which replace those of
        config.json; and its other keywords with the values that change nothing here. Raises ConfigError (also for a
        GPU that is not there), ModelFormatError, OSError, InputError, DTypeError, OutOfMemory.
        """
        given = {
            "dtype": dtype,
            "kv_dtype": kv_dtype,
            "head_dtype": head_dtype,
            "device": device,
            "threads": threads,
            "revision": revision,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
            "token": token,
            "verify": verify,
            "check_finite": check_finite,
        }
        name = _OTHER_NAME if path_or_id is None and _OTHER_NAME in others else "path_or_id"
        source = others.pop(name, None) if path_or_id is None else path_or_id
        options, hub = read_options(given, others)
        check_device(options)  # before a folder is looked for, or fetched
        built, executor, origin = load_model(find_folder(source, hub, name=name), cls._task, options, str(source))
        return cls._model(origin.directory, built, executor, origin=origin)


class AutoModelForCausalLM(_Auto[CausalLM]):
    """Loads GPT-2 checkpoints as language models."""

    _model, _task = CausalLM, "causal-lm"


class AutoModel(_Auto[Encoder]):
    """Loads BERT, DistilBERT, RoBERTa and GPT-2 checkpoints without a head."""

    _model, _task = Encoder, "encoder"


class AutoModelForSequenceClassification(_Auto[SequenceClassifier]):
    """Loads checkpoints with a classification head."""

    _model, _task = SequenceClassifier, "sequence-classification"


class _Generation(Protocol):
    """What is used of the layer above this one."""

    def generate(
        self,
        model: CausalLM,
        ids: object,
        *,
        return_dict_in_generate: bool | None,
        num_return_sequences: int | None,
        **options: Unpack[GenerateArgs],
    ) -> NDArray[np.int32] | list[NDArray[np.int32]] | GenerateOutput: ...
    def stream(self, model: CausalLM, text_or_ids: object, **options: Unpack[GenerationArgs]) -> TextStream: ...


def _generation() -> _Generation:
    """The layer above this one, looked up by name."""
    return cast(_Generation, importlib.import_module("fastattn.generation.generate"))
