"""AutoModelForCausalLM, AutoModel and AutoModelForSequenceClassification: checkpoints in, callable models out."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, NoReturn, TypeVar, cast

from fastattn.checks import check_count
from fastattn.graph.executor import Cache, Executor
from fastattn.models.base import Model, load_model
from fastattn.models.names import Task
from fastattn.models.outputs import Array, CausalLMOutput, EncoderOutput, SequenceClassifierOutput
from fastattn.models.registry import BuiltModel


class CausalLM(Model):
    """A model that gives logits of the next token. Made by `AutoModelForCausalLM.from_pretrained`."""

    def __init__(self, directory: Path, built: BuiltModel, executor: Executor) -> None:
        super().__init__(directory, built, executor)
        _generation()  # imported now: a fork while a thread imports it later would leave the child waiting

    def __call__(
        self,
        input_ids: object,
        attention_mask: object = None,
        token_type_ids: object = None,
        logits_to_keep: int = 0,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> CausalLMOutput:
        """Logits of every token, or with logits_to_keep=n of the last n real tokens of each sequence alone.

        A 1-D input gives [seq_len, vocab_size], a 2-D one [batch, seq_len, vocab_size] (zeros at masked positions;
        with logits_to_keep the rows stand at the right), a list of sequences a list of [seq_len, vocab_size].
        Raises DTypeError, InputError, ContextLengthError.
        """
        keep = check_count("logits_to_keep", logits_to_keep)
        batch = self._read(input_ids, attention_mask, token_type_ids)
        results = self._run(
            batch, logits_to_keep=keep, hidden_states=output_hidden_states, attentions=output_attentions
        )
        return CausalLMOutput(results.wanted("logits"), results.hidden_states(), results.attentions())

    def new_cache(self) -> Cache:
        """An empty KV cache for one sequence, for `executor.run`."""
        return self.executor.new_cache()

    def generate(
        self,
        input_ids: object,
        *,
        attention_mask: object = None,
        max_new_tokens: int | None = None,
        min_new_tokens: int = 0,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int | None = 50,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | Sequence[int] | None = None,
        stop_strings: str | Sequence[str] | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        truncate: Literal["left", "right"] | None = None,
        nan: Literal["raise", "finite", "propagate"] = "raise",
        max_batch_size: int = 32,
        return_dict_in_generate: bool = False,
        **unknown: NoReturn,
    ) -> Any:
        """Continue token ids; see `fastattn.generation.generate`.

        [n_tokens] -> int32 [n_tokens + n_new]; several sequences -> a list of such arrays. eos_token_id: None is the
        checkpoint's, -1 is never. InputError: an unknown option, such as max_length or num_beams.
        """
        return _generation().generate(
            self,
            input_ids,
            attention_mask=attention_mask,
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            do_sample=do_sample,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop_strings=stop_strings,
            eos_token_id=eos_token_id,
            truncate=truncate,
            nan=nan,
            max_batch_size=max_batch_size,
            return_dict_in_generate=return_dict_in_generate,
            **unknown,
        )

    def stream(
        self,
        text_or_ids: object,
        *,
        max_new_tokens: int | None = None,
        min_new_tokens: int = 0,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int | None = 50,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        stop_strings: str | Sequence[str] | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        truncate: Literal["left", "right"] | None = None,
        nan: Literal["raise", "finite", "propagate"] = "raise",
        **unknown: NoReturn,
    ) -> Any:
        """Continue a text, or ids [n_tokens], piece by piece; see `fastattn.generation.stream`.

        InputError: an unknown option.
        """
        return _generation().stream(
            self,
            text_or_ids,
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            do_sample=do_sample,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop_strings=stop_strings,
            eos_token_id=eos_token_id,
            truncate=truncate,
            nan=nan,
            **unknown,
        )


class Encoder(Model):
    """A model that gives hidden states. Made by `AutoModel.from_pretrained`."""

    def __call__(
        self,
        input_ids: object,
        attention_mask: object = None,
        token_type_ids: object = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """The last hidden state of every token and, where the checkpoint has a pooler, its output a sequence.

        Raises DTypeError, InputError, ContextLengthError.
        """
        batch = self._read(input_ids, attention_mask, token_type_ids)
        results = self._run(batch, logits_to_keep=0, hidden_states=output_hidden_states, attentions=output_attentions)
        return EncoderOutput(
            results.per_token("last_hidden_state"),
            results.per_sequence("pooler_output"),
            results.hidden_states(),
            results.attentions(),
        )


class SequenceClassifier(Model):
    """A model that gives one row of logits a sequence. Made by `AutoModelForSequenceClassification.from_pretrained`."""

    @property
    def id2label(self) -> Mapping[int, str]:
        """The names of the classes."""
        return dict(enumerate(self.config.labels))

    def __call__(
        self,
        input_ids: object,
        attention_mask: object = None,
        token_type_ids: object = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> SequenceClassifierOutput:
        """Logits [batch, num_labels], [num_labels] for a 1-D input; zeros for a sequence without tokens.

        Raises DTypeError, InputError, ContextLengthError.
        """
        batch = self._read(input_ids, attention_mask, token_type_ids)
        results = self._run(batch, logits_to_keep=0, hidden_states=output_hidden_states, attentions=output_attentions)
        logits = cast(Array, results.per_sequence("logits"))
        return SequenceClassifierOutput(logits, results.hidden_states(), results.attentions())


_Loaded = TypeVar("_Loaded", bound=Model)


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
        path_or_id: str | Path,
        *,
        dtype: str | None = None,
        kv_dtype: str | None = None,
        head_dtype: str | None = None,
        device: str = "cpu",
        threads: int | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | None = None,
        verify: Literal["sha256"] | Mapping[str, str] | None = None,
        check_finite: bool = False,
    ) -> _Loaded:
        """A folder with config.json and model.safetensors, or a hub id (extra `hub`).

        dtype: how weights are held, "float32", "bfloat16", "int8" or "int4" (activations are rounded with them); None
        is that of a quantised checkpoint, else "float32". kv_dtype: how keys and values are kept: "float32", "bfloat16"
        or "int8"; None is like dtype (int8 beside int4). head_dtype: another one for the matrix that gives the logits;
        nothing changes where there is none (AutoModel) or it is too small to be rounded (fewer than 64 rows).
        device: "cpu", "numpy" for the float64 specification, or "cuda", a preview: dtype "float32", "tf32", "bfloat16"
        or "float16", kv_dtype one of these but tf32, threads None. threads: None is what the process may use: the CPUs
        of its affinity mask, at most the CPU quota of its cgroup. revision, cache_dir, local_files_only and token are
        for hub ids, as in huggingface_hub. verify: "sha256" compares the weight files with SHA256SUMS beside them or
        with the names of the hub's blobs, a mapping gives the digests by file name. check_finite: refuse NaN and
        infinity in the weights (of a float checkpoint). Raises ConfigError (also for a GPU that is not there),
        ModelFormatError, OSError, InputError, OutOfMemory.
        """
        loaded = load_model(
            path_or_id,
            cls._task,
            dtype=dtype,
            kv_dtype=kv_dtype,
            head_dtype=head_dtype,
            device=device,
            threads=threads,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
            verify=verify,
            check_finite=check_finite,
        )
        return cls._model(*loaded)


class AutoModelForCausalLM(_Auto[CausalLM]):
    """Loads GPT-2 checkpoints as language models."""

    _model, _task = CausalLM, "causal-lm"


class AutoModel(_Auto[Encoder]):
    """Loads BERT, DistilBERT, RoBERTa and GPT-2 checkpoints without a head."""

    _model, _task = Encoder, "encoder"


class AutoModelForSequenceClassification(_Auto[SequenceClassifier]):
    """Loads checkpoints with a classification head."""

    _model, _task = SequenceClassifier, "sequence-classification"


def _generation() -> Any:
    """The layer above this one, looked up by name."""
    return importlib.import_module("fastattn.generation.generate")
