"""AutoModelForCausalLM, AutoModel and AutoModelForSequenceClassification: load checkpoints as callable models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from fastattn.api.causal_lm import CausalLM
from fastattn.api.encoders import Encoder, SequenceClassifier
from fastattn.api.load_options import read_options
from fastattn.api.loading import check_device, find_folder, load_model
from fastattn.api.model import Model
from fastattn.models.tasks import Task

_Loaded = TypeVar("_Loaded", bound=Model)
_OTHER_NAME = "pretrained_model_name_or_path"  # transformers' name for path_or_id


class _Auto(Generic[_Loaded]):
    """Shared base of the Auto classes: loads a checkpoint as a model."""

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
        """Load a model from a folder with config.json and model.safetensors, or from a hub id (extra `hub`).

        dtype: storage type of the weights: "float32", "bfloat16", "int8" or "int4" (activations are rounded with them).
            A numpy or torch dtype works too. None and "auto" use the dtype of a quantized checkpoint, else "float32".
            "float16" is computed in float32 on the CPU, which loses nothing.
        kv_dtype: storage type of keys and values: "float32", "bfloat16" or "int8". None and "auto" follow dtype (int8
            with int4).
        head_dtype: a different dtype for the matrix that computes the logits. It changes nothing if there is no such
            matrix (AutoModel) or if the matrix is too small to be rounded (fewer than 64 rows).
        device: "cpu" (also None, -1 and "auto"), "numpy" for the float64 specification, or "cuda", a preview. "cuda"
            requires dtype "float32", "tf32", "bfloat16" or "float16", a kv_dtype from the same list except "tf32", and
            threads=None.
        threads: number of CPU threads. None uses the CPUs of the process's affinity mask, limited by the CPU quota of
            its cgroup.
        revision, cache_dir, local_files_only and token: for hub ids, as in huggingface_hub.
        verify: "sha256" compares the weight files with the SHA256SUMS file next to them or with the names of the hub's
            blobs. A mapping gives the digests by file name.
        check_finite: reject NaN and infinity in the weights of a float checkpoint.

        others: transformers' subfolder, torch_dtype and device_map (for dtype and device); num_labels, id2label,
            label2id, problem_type, pad_token_id, output_hidden_states and output_attentions, which override
            config.json; and its other keywords, if their values change nothing here.
        Raises ConfigError (also if the GPU is missing), ModelFormatError, OSError, InputError, DTypeError, OutOfMemory.
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
        check_device(options)  # before looking for a folder or downloading one
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


AUTO_CLASSES: Mapping[Task, type[_Auto[Any]]] = {
    found._task: found for found in (AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModel)
}
MODEL_CLASSES: Mapping[Task, type[Model]] = {task: found._model for task, found in AUTO_CLASSES.items()}
