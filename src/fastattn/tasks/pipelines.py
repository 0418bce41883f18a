"""`pipeline(task)`: transformers' pipelines with the same output shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from fastattn.api.auto import AUTO_CLASSES, MODEL_CLASSES
from fastattn.api.auto_tokenizer import AutoTokenizer
from fastattn.api.causal_lm import CausalLM
from fastattn.api.encoders import Encoder, SequenceClassifier
from fastattn.api.heads import MaskedLM, QuestionAnswerer, TokenClassifier
from fastattn.api.load_args import LoadArgs
from fastattn.api.load_keywords import check_unused
from fastattn.api.model import Model
from fastattn.api.seq2seq_lm import Seq2SeqLM
from fastattn.checks import Neutral, check_choice, check_flag, check_keywords, check_neutral, check_path, quote
from fastattn.errors import DTypeError, InputError
from fastattn.models.tasks import Task
from fastattn.tasks.demo import demo_model
from fastattn.tasks.feature_extraction import FeatureExtractionArgs, FeatureExtractionPipeline
from fastattn.tasks.fill_mask import Filling, FillMaskArgs, FillMaskPipeline
from fastattn.tasks.pipeline_base import Pipeline, check_model
from fastattn.tasks.question_answering import QuestionAnsweringArgs, QuestionAnsweringPipeline
from fastattn.tasks.text2text import (
    SummarizationPipeline,
    Text2TextArgs,
    Text2TextGenerationPipeline,
    TranslationPipeline,
)
from fastattn.tasks.text_classification import Prediction, TextClassificationArgs, TextClassificationPipeline
from fastattn.tasks.text_generation import TextGenerationArgs, TextGenerationPipeline
from fastattn.tasks.token_classification import TokenClassificationArgs, TokenClassificationPipeline
from fastattn.tasks.zero_shot import ZeroShotArgs, ZeroShotClassificationPipeline
from fastattn.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "TASKS",
    "FeatureExtractionPipeline",
    "FillMaskPipeline",
    "Filling",
    "Pipeline",
    "Prediction",
    "QuestionAnsweringPipeline",
    "SummarizationPipeline",
    "Text2TextGenerationPipeline",
    "TextClassificationPipeline",
    "TextGenerationPipeline",
    "TokenClassificationPipeline",
    "TranslationPipeline",
    "ZeroShotClassificationPipeline",
    "pipeline",
]


class PipelineLoadArgs(LoadArgs, total=False):
    """Options for loading: those of `from_pretrained`, and of the tokenizer.

    tokenizer: None uses the model's; otherwise a folder, a hub id, a loaded tokenizer, or one from transformers or
    tokenizers. revision and subfolder apply to the model, not to the tokenizer. model_kwargs: more options for the
    model.
    """

    tokenizer: Any
    use_fast: bool | None
    model_kwargs: Mapping[str, Any] | None
    framework: Literal["pt"] | None


class GenerationPipelineArgs(PipelineLoadArgs, TextGenerationArgs, total=False):
    """Keyword arguments of pipeline("text-generation")."""


class ClassificationPipelineArgs(PipelineLoadArgs, TextClassificationArgs, total=False):
    """Keyword arguments of pipeline("text-classification")."""


class FeaturePipelineArgs(PipelineLoadArgs, FeatureExtractionArgs, total=False):
    """Keyword arguments of pipeline("feature-extraction")."""


class FillMaskPipelineArgs(PipelineLoadArgs, FillMaskArgs, total=False):
    """Keyword arguments of pipeline("fill-mask")."""


class TokenClassificationPipelineArgs(PipelineLoadArgs, TokenClassificationArgs, total=False):
    """Keyword arguments of pipeline("token-classification")."""


class QuestionAnsweringPipelineArgs(PipelineLoadArgs, QuestionAnsweringArgs, total=False):
    """Keyword arguments of pipeline("question-answering")."""


class Text2TextPipelineArgs(PipelineLoadArgs, Text2TextArgs, total=False):
    """Keyword arguments of pipeline("text2text-generation"), pipeline("summarization") and pipeline("translation")."""


class ZeroShotPipelineArgs(PipelineLoadArgs, ZeroShotArgs, total=False):
    """Keyword arguments of pipeline("zero-shot-classification")."""


@overload
def pipeline(
    task: Literal["text-generation"],
    model: str | Path | CausalLM | None = None,
    **options: Unpack[GenerationPipelineArgs],
) -> TextGenerationPipeline: ...
@overload
def pipeline(
    task: Literal["text-classification", "sentiment-analysis"],
    model: str | Path | SequenceClassifier | None = None,
    **options: Unpack[ClassificationPipelineArgs],
) -> TextClassificationPipeline: ...
@overload
def pipeline(
    task: Literal["feature-extraction"],
    model: str | Path | Encoder | None = None,
    **options: Unpack[FeaturePipelineArgs],
) -> FeatureExtractionPipeline: ...
@overload
def pipeline(
    task: Literal["fill-mask"],
    model: str | Path | MaskedLM,
    **options: Unpack[FillMaskPipelineArgs],
) -> FillMaskPipeline: ...
@overload
def pipeline(
    task: Literal["token-classification", "ner"],
    model: str | Path | TokenClassifier,
    **options: Unpack[TokenClassificationPipelineArgs],
) -> TokenClassificationPipeline: ...
@overload
def pipeline(
    task: Literal["question-answering"],
    model: str | Path | QuestionAnswerer,
    **options: Unpack[QuestionAnsweringPipelineArgs],
) -> QuestionAnsweringPipeline: ...
@overload
def pipeline(
    task: Literal["zero-shot-classification"],
    model: str | Path | SequenceClassifier,
    **options: Unpack[ZeroShotPipelineArgs],
) -> ZeroShotClassificationPipeline: ...
@overload
def pipeline(
    task: Literal["text2text-generation"], model: str | Path | Seq2SeqLM, **options: Unpack[Text2TextPipelineArgs]
) -> Text2TextGenerationPipeline: ...
@overload
def pipeline(
    task: Literal["summarization"], model: str | Path | Seq2SeqLM, **options: Unpack[Text2TextPipelineArgs]
) -> SummarizationPipeline: ...
@overload
def pipeline(
    task: Literal["translation"], model: str | Path | Seq2SeqLM, **options: Unpack[Text2TextPipelineArgs]
) -> TranslationPipeline: ...
def pipeline(task: Any = None, model: Any = None, **options: Any) -> Any:
    """Create a callable for a task.

    task: "text-generation", "text-classification" (or "sentiment-analysis"), "feature-extraction", "fill-mask",
    "token-classification" (or "ner"), "question-answering", "zero-shot-classification", "text2text-generation",
    "summarization", or "translation" (also "translation_XX_to_YY", for the languages of the model).
    model: a folder, a hub id, a loaded model, or None for the small demo model that ships with fastattn,
    which exists for the first three tasks. options: those for loading (see `PipelineLoadArgs`), and default arguments
    for the calls. Other keywords of transformers are accepted if their values change nothing. `close` or a `with` block
    frees the memory.
    Raises InputError, DTypeError, and what `from_pretrained` raises.
    """
    if task is None:
        raise InputError(f"task: expected one of {', '.join(map(repr, TASKS))}, got None")
    entry = PIPELINES[check_task("task", task)]
    loading, defaults = _split(options, entry)
    if task not in TASKS:
        defaults["task_name"] = task
    if model is None:
        if entry.demo is None:
            raise InputError(f"model: expected a folder, a hub id or a loaded model for {task}, got None")
        model = demo_model(entry.demo)
    if isinstance(model, (str, Path)):
        check_path("model", model)  # keep the type: a Path is never a hub id
    tokenizer = loading.pop("tokenizer", None)
    if tokenizer is not None and not isinstance(tokenizer, (str, Path)):
        tokenizer = Tokenizer.from_object(tokenizer)
    elif tokenizer is not None:
        check_path("tokenizer", tokenizer)
        given: dict[str, Any] = {name: loading[name] for name in ("cache_dir", "local_files_only") if name in loading}
        token = loading.get("token", loading.get("use_auth_token"))
        tokenizer = AutoTokenizer.from_pretrained(tokenizer, token=token, **given)
    if not isinstance(model, (str, Path)):
        loaded = check_model(model, MODEL_CLASSES[entry.loads])
        _check_as_loaded(loaded, loading)
        return entry.pipeline(loaded, tokenizer, **defaults)
    loaded = AUTO_CLASSES[entry.loads].from_pretrained(model, **loading)
    try:
        return entry.pipeline(loaded, tokenizer, **defaults)
    except BaseException:
        loaded.close()
        raise


def check_task(name: str, task: Any) -> str:
    """Return the task, and "translation" for "translation_XX_to_YY". Raises DTypeError, InputError."""
    if isinstance(task, str) and re.fullmatch(r"translation_[^_]+_to_[^_]+", task):
        return "translation"
    return check_choice(name, task, TASKS)


@dataclass(frozen=True, slots=True)
class _Entry:
    """One pipeline: its class, the task that its model is loaded for, the demo model, the arguments of its calls."""

    pipeline: type[Pipeline[Any]]
    loads: Task
    demo: Literal["text-generation", "text-classification"] | None
    call_args: type


_CLASSIFICATION = _Entry(
    TextClassificationPipeline, "sequence-classification", "text-classification", TextClassificationArgs
)
_TOKENS = _Entry(TokenClassificationPipeline, "token-classification", None, TokenClassificationArgs)
PIPELINES: Mapping[str, _Entry] = {
    "text-generation": _Entry(TextGenerationPipeline, "causal-lm", "text-generation", TextGenerationArgs),
    "text-classification": _CLASSIFICATION,
    "sentiment-analysis": _CLASSIFICATION,
    "feature-extraction": _Entry(FeatureExtractionPipeline, "encoder", "text-classification", FeatureExtractionArgs),
    "token-classification": _TOKENS,
    "ner": _TOKENS,
    "zero-shot-classification": _Entry(ZeroShotClassificationPipeline, "sequence-classification", None, ZeroShotArgs),
    "question-answering": _Entry(QuestionAnsweringPipeline, "question-answering", None, QuestionAnsweringArgs),
    "fill-mask": _Entry(FillMaskPipeline, "masked-lm", None, FillMaskArgs),
    "text2text-generation": _Entry(Text2TextGenerationPipeline, "seq2seq-lm", None, Text2TextArgs),
    "summarization": _Entry(SummarizationPipeline, "seq2seq-lm", None, Text2TextArgs),
    "translation": _Entry(TranslationPipeline, "seq2seq-lm", None, Text2TextArgs),
}
TASKS = tuple(PIPELINES)
_LOAD_NAMES = tuple(PipelineLoadArgs.__annotations__)
# Arguments of transformers' pipelines that have no counterpart here, and what to do instead.
_REFUSED: Mapping[str, Neutral] = {
    "config": Neutral((False,), "config.json of the folder is used"),
    "feature_extractor": Neutral((False,), "these tasks take only texts"),
    "image_processor": Neutral((False,), "these tasks take only texts"),
    "processor": Neutral((False,), "these tasks take only texts; pass a tokenizer"),
    "pipeline_class": Neutral((False,), "leave it out"),
    "binary_output": Neutral((False,), "results are Python objects and NumPy arrays"),
    "assistant_model": Neutral((False,), "pass it to a call of the text-generation pipeline"),
}


def _split(options: Mapping[str, Any], entry: _Entry) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split the options into those for loading and those for calls. Raises InputError, DTypeError."""
    given = dict(options)
    framework = given.pop("framework", None)
    if framework is not None:
        check_choice("framework", framework, ("pt",))
    others = {name: given.pop(name) for name in _REFUSED if name in given}
    check_neutral(others, _REFUSED, f"pipeline({entry.pipeline.task!r})", ())
    more = given.pop("model_kwargs", None)
    if more is not None and not isinstance(more, Mapping):
        raise DTypeError(f"model_kwargs: expected a mapping, got {type(more).__name__}")
    use_fast = given.pop("use_fast", None)
    if use_fast is not None:
        check_flag("use_fast", use_fast)  # every tokenizer is fast
    loading = {name: given.pop(name) for name in _LOAD_NAMES if name in given}
    loading = {name: value for name, value in loading.items() if value is not None}
    for name, value in (more or {}).items():
        if name in loading:
            raise InputError(f"{quote(name)}: expected one value, got one as a keyword and one in model_kwargs")
        loading[name] = value
    if not issubclass(entry.pipeline, (TextGenerationPipeline, Text2TextGenerationPipeline)):  # they check them all
        check_keywords(given, (*entry.call_args.__annotations__, *_LOAD_NAMES), f"pipeline({entry.pipeline.task!r})")
    return loading, given


def _check_as_loaded(model: Model, loading: Mapping[str, Any]) -> None:
    """Check that the options for loading agree with an already loaded model. Raises InputError."""
    for name, value in loading.items():
        if name in ("dtype", "torch_dtype"):
            model.to(dtype=None if value == "auto" else value)
        elif name in ("device", "device_map"):
            model.to(device=value)
        elif name not in _LOAD_NAMES:
            check_unused({name: value})
        elif (name, value) in (("check_finite", False), ("subfolder", "")):
            continue
        elif name not in ("cache_dir", "local_files_only", "token", "trust_remote_code", "use_auth_token"):
            raise InputError(
                f"{quote(name)}: expected None, because the model is already loaded; pass it to from_pretrained"
            )
