"""The models of a server: what they are used for, and how they are loaded."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from fastattn.api.auto import AutoModelForCausalLM, AutoModelForSequenceClassification
from fastattn.api.causal_lm import CausalLM
from fastattn.api.encoders import SequenceClassifier
from fastattn.api.load_options import HubOptions
from fastattn.api.loading import find_folder
from fastattn.checkpoint import open_checkpoint
from fastattn.checks import closest, quote
from fastattn.errors import ConfigError, InputError
from fastattn.jsonfile import read_json
from fastattn.models.registry import find_family
from fastattn.server.options import Kind, ModelSpec
from fastattn.server.problems import Problem
from fastattn.tasks.cross_encoder import CrossEncoder
from fastattn.tasks.demo import demo_model
from fastattn.tasks.main_task import trace_tasks
from fastattn.tasks.sentence_transformer import SentenceTransformer
from fastattn.tasks.sparse_encoder import SparseEncoder
from fastattn.tasks.text_classification import TextClassificationPipeline
from fastattn.tokenizer import Tokenizer

_KIND_OF_TASK: Mapping[str, Kind] = {
    "causal-lm": "generate",
    "sequence-classification": "classify",
    "encoder": "embed",
    "masked-lm": "embed",
}
_KIND_OF_TYPE: Mapping[str, Kind] = {
    "CrossEncoder": "rerank",
    "SparseEncoder": "sparse",
    "SentenceTransformer": "embed",
}
_WORDS: Mapping[Kind, str] = {
    "generate": "generates text",
    "embed": "computes embeddings",
    "sparse": "computes sparse embeddings",
    "classify": "classifies texts",
    "rerank": "reranks texts",
}
_OF_GENERATION = ("kv_dtype", "head_dtype", "kv_cache_bytes")
_MAX_TEMPLATE_BYTES = 1 << 20


class Closable(Protocol):
    """A loaded model."""

    def close(self) -> None: ...


@dataclass
class Served:
    """A model under one name. parts: what is loaded for each kind of use. template: its chat template, if given.

    adapter: the adapter of the language model that requests to this name use.
    """

    name: str
    path: str
    parts: dict[Kind, Any] = field(default_factory=dict)
    template: str | None = None
    adapter: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of the model."""
        return cast("Tokenizer | None", next(iter(self.parts.values())).tokenizer)


class Models:
    """The models by name. The first of a kind is used for requests that name none."""

    def __init__(self, models: Sequence[Served]) -> None:
        self._models: dict[str, Served] = {}
        for model in models:
            other = self._models.setdefault(model.name, model)
            if other is not model:
                twice = [kind for kind in model.parts if kind in other.parts]
                if twice or other.path != model.path:
                    raise ConfigError(f"models: {quote(model.name)}: expected different names, got two of this name")
                other.parts |= model.parts

    def __iter__(self) -> Iterator[Served]:
        return iter(self._models.values())

    def find(self, name: str) -> Served:
        """Return a model by name. Raises Problem with status 404."""
        found = self._models.get(name)
        if found is None:
            near = closest(name, self._models)
            raise Problem(404, f"model: the model {quote(name)} does not exist{near}", "model", "model_not_found")
        return found

    def of_kind(self, kind: Kind, name: str | None) -> tuple[Served, Any]:
        """Return a model and its part for a kind of use. Raises Problem."""
        if name is None:
            found = next((model for model in self if kind in model.parts), None)
            if found is None:
                raise Problem(404, f"model: no model of this server {_WORDS[kind]}", "model", "model_not_found")
        else:
            found = self.find(name)
        if kind not in found.parts:
            have = [model.name for model in self if kind in model.parts]
            instead = f"; use {quote(have[0])}" if have else ""
            message = f"model: expected a model that {_WORDS[kind]}, got {quote(found.name)}{instead}"
            raise Problem(400, message, "model", "unsupported_by_model")
        return found, found.parts[kind]

    def generators(self) -> dict[str, CausalLM]:
        """Return the language models by name, once each."""
        own = [model for model in self if model.adapter is None]
        return {model.name: model.parts["generate"] for model in own if "generate" in model.parts}

    def close(self) -> None:
        """Free the memory of all models."""
        for model in self:
            for part in model.parts.values():
                part.close()


def load_models(specs: Sequence[ModelSpec], defaults: Mapping[str, Any], adapters: Sequence[str] = ()) -> Models:
    """Load models, or the demo models if there are none. defaults: loading options for those without their own.

    adapters: "NAME=DIR", of the first language model. Raises what `from_pretrained` and `load_adapter` raise.
    """
    if not specs:
        story, reviews = str(demo_model("text-generation")), str(demo_model("text-classification"))
        specs = (
            ModelSpec(path=story, kind="generate"),
            ModelSpec(path=reviews, kind="embed"),
            ModelSpec(path=reviews, kind="classify"),
        )
    loaded: list[Served] = []
    try:
        for spec in specs:  # one by one, so that those before an error are closed
            loaded += [_load(spec, defaults)]
        return Models([*loaded, *_with_adapters(loaded, adapters)])
    except BaseException:
        for model in loaded:
            for part in model.parts.values():
                part.close()
        raise


def _with_adapters(loaded: Sequence[Served], adapters: Sequence[str]) -> list[Served]:
    """Load adapters of the first language model, and return it under their names."""
    if not adapters:
        return []
    base = next((model for model in loaded if "generate" in model.parts), None)
    if base is None:
        raise InputError("adapters: expected a language model that they belong to, got none")
    model, found = base.parts["generate"], []
    for name, _, path in (adapter.partition("=") for adapter in adapters):
        model.load_adapter(path, name)
        found.append(Served(name, path, {"generate": model}, base.template, adapter=name))
    return found


def _load(spec: ModelSpec, defaults: Mapping[str, Any]) -> Served:
    kind = kind_of(spec.path) if spec.kind is None else spec.kind
    name = spec.name or Path(spec.path.rstrip("/")).name or spec.path
    if spec.chat_template is not None and kind != "generate":
        raise InputError(f"models: chat_template: expected none for a model that {_WORDS[kind]}, got one")
    given: Any = {key: value for key, value in defaults.items() if value is not None}
    if kind != "generate":
        given = {key: value for key, value in given.items() if key not in _OF_GENERATION}
        for option in _OF_GENERATION:
            if option in dict(spec.load):
                raise InputError(f"models: {quote(name)}: {option}: expected none, because it {_WORDS[kind]}, got one")
    given |= dict(spec.load)
    parts: dict[Kind, Any] = {}
    template = None
    if kind == "generate":
        template = None if spec.chat_template is None else _read_template(Path(spec.chat_template))
        parts["generate"] = AutoModelForCausalLM.from_pretrained(spec.path, **given)
    elif kind == "embed":
        parts["embed"] = SentenceTransformer(spec.path, **given)
    elif kind == "sparse":
        parts["sparse"] = SparseEncoder(spec.path, **given)
    elif kind == "classify":
        classifier = AutoModelForSequenceClassification.from_pretrained(spec.path, **given)
        parts["classify"] = TextClassificationPipeline(classifier)
    else:
        parts |= _reranker(CrossEncoder(spec.path, **given), spec)
    return Served(name, spec.path, parts, template)


def _reranker(model: CrossEncoder, spec: ModelSpec) -> dict[Kind, Any]:
    if model.num_labels != 1:
        model.close()
        raise InputError(f"models: {quote(spec.path)}: expected a reranker with one label, got {model.num_labels}")
    found: dict[Kind, Any] = {"rerank": model}
    if isinstance(model.model, SequenceClassifier):  # the same weights
        found["classify"] = TextClassificationPipeline(model.model, model.tokenizer)
    return found


def _read_template(path: Path) -> str:
    try:
        data = path.read_bytes()
        if len(data) > _MAX_TEMPLATE_BYTES:
            raise ConfigError(f"{path}: expected at most {_MAX_TEMPLATE_BYTES} bytes, got {len(data)}")
        return data.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: expected UTF-8 text") from None


def kind_of(path: str) -> Kind:
    """Return what a folder's model is used for. Raises ConfigError if it has none of these uses."""
    folder = find_folder(path, HubOptions())
    if (folder / "modules.json").is_file():
        settings = folder / "config_sentence_transformers.json"
        values = read_json(settings) if settings.is_file() else {}
        name = values.get("model_type", "SentenceTransformer") if isinstance(values, dict) else None
        if not isinstance(name, str) or name not in _KIND_OF_TYPE:
            raise ConfigError(f"{settings}: model_type: expected one of {', '.join(_KIND_OF_TYPE)}, got {quote(name)}")
        return _KIND_OF_TYPE[name]
    with open_checkpoint(folder, check_config=find_family) as checkpoint:
        traced = trace_tasks(checkpoint)
    task = next(iter(traced.models), None)
    if task is None or task not in _KIND_OF_TASK:
        raise ConfigError(
            f"{folder}: expected a language model, an encoder or a classifier, got "
            f"{traced.problem if task is None else 'a model for ' + task}; choose its use with a flag such as "
            "--embed-model"
        )
    if task == "sequence-classification" and len(traced.models[task].config.labels) == 1:
        return "rerank"
    return _KIND_OF_TASK[task]
