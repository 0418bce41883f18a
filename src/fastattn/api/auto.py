"""The Auto classes: load checkpoints as callable models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fastattn.api.causal_lm import CausalLM
from fastattn.api.encoders import Encoder, SequenceClassifier
from fastattn.api.heads import (
    MaskedLM,
    MultipleChoice,
    NextSentencePredictor,
    PreTraining,
    QuestionAnswerer,
    TokenClassifier,
)
from fastattn.api.load_args import HubArgs, LoadArgs, ModelArgs, RunArgs, describes
from fastattn.api.load_options import read_options
from fastattn.api.loading import check_device, find_adapter, find_folder, load_model
from fastattn.api.model import Model
from fastattn.api.seq2seq_lm import Seq2SeqLM
from fastattn.models.tasks import Task

if TYPE_CHECKING:
    from typing_extensions import Unpack

_Loaded = TypeVar("_Loaded", bound=Model)
_OTHER_NAME = "pretrained_model_name_or_path"  # transformers' name for path_or_id


class _Auto(Generic[_Loaded]):
    """Shared base of the Auto classes: loads a checkpoint as a model."""

    _model: type[_Loaded]
    _task: Task

    def __init__(self) -> None:
        name = type(self).__name__
        raise TypeError(f"{name} cannot be instantiated; call {name}.from_pretrained(path)")

    @classmethod
    @describes(RunArgs, HubArgs, LoadArgs, ModelArgs)
    def from_pretrained(cls, path_or_id: str | Path | None = None, **options: Unpack[ModelArgs]) -> _Loaded:
        """Load a model from a folder with config.json and model.safetensors, a GGUF file, or a hub id (extra `hub`).

        For a folder with only a LoRA adapter, the model that it was trained for is loaded and the adapter added.

        {options}
        Raises ModelNotFoundError, HubError, ConfigError (also if the GPU is missing), ModelFormatError, OSError,
        InputError, DTypeError, OutOfMemory.
        """
        given: dict[str, Any] = dict(options)
        name = _OTHER_NAME if path_or_id is None and _OTHER_NAME in given else "path_or_id"
        source = given.pop(name, None) if path_or_id is None else path_or_id
        checked, hub = read_options(given)
        check_device(checked)  # before looking for a folder or downloading one
        folder, checked = find_adapter(find_folder(source, hub, name=name), checked, hub)
        built, executor, origin = load_model(folder, cls._task, checked, str(source))
        return cls._model(origin.directory, built, executor, origin=origin)


class AutoModelForCausalLM(_Auto[CausalLM]):
    """Loads checkpoints of decoders as language models: GPT-2, Llama, Qwen, Gemma and others."""

    _model, _task = CausalLM, "causal-lm"


class AutoModelForSeq2SeqLM(_Auto[Seq2SeqLM]):
    """Loads checkpoints of an encoder and a decoder, which translate or summarize: Marian, BART and others."""

    _model, _task = Seq2SeqLM, "seq2seq-lm"


class AutoModel(_Auto[Encoder]):
    """Loads checkpoints of encoders and decoders without a head, as models that return hidden states."""

    _model, _task = Encoder, "encoder"


class AutoModelForSequenceClassification(_Auto[SequenceClassifier]):
    """Loads checkpoints with a classification head."""

    _model, _task = SequenceClassifier, "sequence-classification"


class AutoModelForMaskedLM(_Auto[MaskedLM]):
    """Loads checkpoints with a masked-language-model head."""

    _model, _task = MaskedLM, "masked-lm"


class AutoModelForTokenClassification(_Auto[TokenClassifier]):
    """Loads checkpoints with a head that classifies tokens."""

    _model, _task = TokenClassifier, "token-classification"


class AutoModelForQuestionAnswering(_Auto[QuestionAnswerer]):
    """Loads checkpoints with a question-answering head."""

    _model, _task = QuestionAnswerer, "question-answering"


class AutoModelForNextSentencePrediction(_Auto[NextSentencePredictor]):
    """Loads BERT and JinaBERT checkpoints with a next-sentence head."""

    _model, _task = NextSentencePredictor, "next-sentence-prediction"


class AutoModelForMultipleChoice(_Auto[MultipleChoice]):
    """Loads checkpoints with a multiple-choice head."""

    _model, _task = MultipleChoice, "multiple-choice"


class AutoModelForPreTraining(_Auto[PreTraining]):
    """Loads checkpoints with pre-training heads: BERT, JinaBERT, ALBERT, and ELECTRA discriminators."""

    _model, _task = PreTraining, "pre-training"


_CLASSES: tuple[type[_Auto[Any]], ...] = (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
    AutoModelForQuestionAnswering,
    AutoModelForNextSentencePrediction,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForSeq2SeqLM,
    AutoModel,
)
AUTO_CLASSES: Mapping[Task, type[_Auto[Any]]] = {found._task: found for found in _CLASSES}
MODEL_CLASSES: Mapping[Task, type[Model]] = {task: found._model for task, found in AUTO_CLASSES.items()}
