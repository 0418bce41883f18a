"""Builds a traced model from config.json and tensors. A new architecture is one file here and one entry in FAMILIES."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fastattn.checkpoint.source import WeightSource
from fastattn.checks import closest, quote, shown_names
from fastattn.errors import ConfigError
from fastattn.graph.ir import Program
from fastattn.graph.quantize import embedding_tables
from fastattn.graph.rewrites import optimize
from fastattn.graph.tensor import Tracer, Weights
from fastattn.models import (
    albert,
    bert,
    bloom,
    camembert,
    deberta_v2,
    distilbert,
    electra,
    gemma,
    gemma2,
    gemma3,
    gpt2,
    gpt_neo,
    gpt_neox,
    gptj,
    gte,
    jina_bert,
    llama,
    mistral,
    modernbert,
    mpnet,
    nomic_bert,
    olmo2,
    opt,
    phi3,
    qwen2,
    qwen3,
    roberta,
    smollm3,
    stablelm,
)
from fastattn.models.causal import CLASSIFIERS, DECODER_TASKS, LABEL_TASKS, SCORE_TASKS, SCORES, UNTAGGED_TASKS
from fastattn.models.config import CommonConfig
from fastattn.models.names import Layout, ModelNames, check_tensors, resolve_names
from fastattn.models.tasks import TASKS, Task

_MAX_NAMED = 8
_log = logging.getLogger("fastattn")


@dataclass(frozen=True, slots=True)
class Family:
    """A model family, in one file of this folder.

    build_with_types: `build` for calls with token types, if the family uses them only in such calls.
    computed: returns the weights that are computed from the config and the checkpoint, by their names in the model.
    n_hidden_weights: returns the number of weights of the checkpoint that only `computed` reads.
    hidden_tensors: returns the names of these tensors, if they depend on the config. Others are reported as unused.
    heads: by task, the prefixes of the tensor names of its head, if they are not those in `TASKS`.
    missing: what messages say about heads that transformers has and this family lacks. needs_code: returns whether
    transformers reads a config.json only with the code that comes with the checkpoint.
    """

    architectures: tuple[str, ...]
    layout: Layout
    tasks: tuple[Task, ...]
    read_config: Callable[[Mapping[str, object]], CommonConfig]
    build: Callable[[Any, Weights, Task], Program]
    build_with_types: Callable[[Any, Weights, Task], Program] | None = None
    computed: Callable[[Any, ModelNames], Mapping[str, WeightSource]] | None = None
    n_hidden_weights: Callable[[Any], int] | None = None
    hidden_tensors: Callable[[Any], Collection[str]] = lambda config: ()
    heads: Mapping[Task, tuple[str, ...]] = field(default_factory=dict)
    missing: Mapping[Task, str] = field(default_factory=dict)
    needs_code: Callable[[Mapping[str, object]], bool] = lambda config: False

    def head_names(self, task: Task) -> tuple[str, ...]:
        """Return the prefixes of the tensor names of a task's head; () if it has none."""
        return self.heads.get(task, TASKS[task].heads)


_ENCODER_TASKS: tuple[Task, ...] = ("encoder", "sequence-classification")
_ROBERTA_TASKS: tuple[Task, ...] = (
    *_ENCODER_TASKS,
    "masked-lm",
    "token-classification",
    "question-answering",
    "multiple-choice",
)
_NOMIC_TASKS: tuple[Task, ...] = (*_ENCODER_TASKS, "masked-lm", "token-classification")
_BERT_TASKS: tuple[Task, ...] = (*_ROBERTA_TASKS, "next-sentence-prediction", "pre-training")


def _size_of(tensors: Callable[[Any], Mapping[str, tuple[int, ...]]]) -> Callable[[Any], int]:
    """Return a function from a config to the number of weights of these tensors."""
    return lambda config: sum(map(math.prod, tensors(config).values()))


def _llama(names: tuple[str, ...], read_config: Callable[[Mapping[str, object]], CommonConfig]) -> Family:
    """Return a family that uses the code of Llama."""
    return Family(names, llama.LAYOUT, DECODER_TASKS, read_config, llama.build, computed=llama.computed, heads=SCORES)


def _gemma(
    names: tuple[str, ...], read_config: Callable[[Mapping[str, object]], CommonConfig], tasks: tuple[Task, ...]
) -> Family:
    """Return a family that uses the code of Gemma."""
    return Family(
        names,
        gemma.LAYOUT,
        tasks,
        read_config,
        gemma.build,
        computed=gemma.computed,
        n_hidden_weights=_size_of(gemma.hidden_tensors),
        hidden_tensors=gemma.hidden_tensors,
        heads=SCORES,
    )


FAMILIES: Mapping[str, Family] = {
    "gpt2": Family(
        gpt2.ARCHITECTURES,
        gpt2.LAYOUT,
        DECODER_TASKS,
        gpt2.read_config,
        gpt2.build,
        partial(gpt2.build, types=True),
        missing={"multiple-choice": "the multiple_choice_head of GPT2DoubleHeadsModel is not supported"},
    ),
    "llama": _llama(llama.ARCHITECTURES, llama.read_config),
    "mistral": _llama(mistral.ARCHITECTURES, mistral.read_config),
    "qwen2": _llama(qwen2.ARCHITECTURES, qwen2.read_config),
    "qwen3": _llama(qwen3.ARCHITECTURES, qwen3.read_config),
    "smollm3": _llama(smollm3.ARCHITECTURES, smollm3.read_config),
    "gemma": _gemma(gemma.ARCHITECTURES, gemma.read_config, LABEL_TASKS),
    "gemma2": _gemma(gemma2.ARCHITECTURES, gemma2.read_config, LABEL_TASKS),
    "gemma3_text": _gemma(gemma3.ARCHITECTURES, gemma3.read_config, SCORE_TASKS),
    "phi3": Family(
        phi3.ARCHITECTURES,
        phi3.LAYOUT,
        LABEL_TASKS,
        phi3.read_config,
        phi3.build,
        computed=phi3.computed,
        heads=SCORES,
    ),
    "olmo2": Family(
        olmo2.ARCHITECTURES,
        llama.LAYOUT,
        SCORE_TASKS,
        olmo2.read_config,
        olmo2.build,
        computed=llama.computed,
        heads=SCORES,
    ),
    "stablelm": Family(
        stablelm.ARCHITECTURES,
        stablelm.LAYOUT,
        LABEL_TASKS,
        stablelm.read_config,
        stablelm.build,
        computed=stablelm.computed,
        heads=SCORES,
    ),
    "gpt_neox": Family(
        gpt_neox.ARCHITECTURES,
        gpt_neox.LAYOUT,
        DECODER_TASKS,
        gpt_neox.read_config,
        gpt_neox.build,
        computed=gpt_neox.computed,
        n_hidden_weights=_size_of(gpt_neox.hidden_tensors),
        hidden_tensors=gpt_neox.hidden_tensors,
        heads=CLASSIFIERS,
    ),
    "gptj": Family(
        gptj.ARCHITECTURES,
        gptj.LAYOUT,
        UNTAGGED_TASKS,
        gptj.read_config,
        gptj.build,
        partial(gptj.build, types=True),
        computed=gptj.computed,
        heads=CLASSIFIERS,
    ),
    "gpt_neo": Family(
        gpt_neo.ARCHITECTURES,
        gpt_neo.LAYOUT,
        DECODER_TASKS,
        gpt_neo.read_config,
        gpt_neo.build,
        partial(gpt_neo.build, types=True),
        heads=CLASSIFIERS,
    ),
    "opt": Family(
        opt.ARCHITECTURES,
        opt.LAYOUT,
        UNTAGGED_TASKS,
        opt.read_config,
        opt.build,
        computed=opt.computed,
        heads=CLASSIFIERS,
    ),
    "bloom": Family(
        bloom.ARCHITECTURES,
        bloom.LAYOUT,
        DECODER_TASKS,
        bloom.read_config,
        bloom.build,
        computed=bloom.computed,
        n_hidden_weights=_size_of(bloom.hidden_tensors),
        hidden_tensors=bloom.hidden_tensors,
        heads=CLASSIFIERS,
    ),
    "bert": Family(bert.ARCHITECTURES, bert.LAYOUT, _BERT_TASKS, bert.read_config, bert.build),
    "distilbert": Family(
        distilbert.ARCHITECTURES, distilbert.LAYOUT, _ROBERTA_TASKS, distilbert.read_config, distilbert.build
    ),
    "roberta": Family(roberta.ARCHITECTURES, roberta.LAYOUT, _ROBERTA_TASKS, roberta.read_config, roberta.build),
    "xlm-roberta": Family(roberta.ARCHITECTURES, roberta.LAYOUT, _ROBERTA_TASKS, roberta.read_config, roberta.build),
    "camembert": Family(camembert.ARCHITECTURES, roberta.LAYOUT, _ROBERTA_TASKS, camembert.read_config, roberta.build),
    "electra": Family(
        electra.ARCHITECTURES,
        electra.LAYOUT,
        (*_ROBERTA_TASKS, "pre-training"),
        electra.read_config,
        electra.build,
        heads={"masked-lm": ("generator_predictions.dense.",), "pre-training": ("discriminator_predictions.dense.",)},
    ),
    "albert": Family(
        albert.ARCHITECTURES,
        albert.LAYOUT,
        (*_ROBERTA_TASKS, "pre-training"),
        albert.read_config,
        albert.build,
        heads={"masked-lm": ("predictions.dense.",), "pre-training": ("predictions.dense.",)},
    ),
    "mpnet": Family(
        mpnet.ARCHITECTURES,
        mpnet.LAYOUT,
        _ROBERTA_TASKS,
        mpnet.read_config,
        mpnet.build,
        computed=mpnet.computed,
        n_hidden_weights=mpnet.n_hidden_weights,
    ),
    "modernbert": Family(
        modernbert.ARCHITECTURES,
        modernbert.LAYOUT,
        _ROBERTA_TASKS,
        modernbert.read_config,
        modernbert.build,
        computed=modernbert.computed,
        heads={"masked-lm": ("head.dense.",), "question-answering": ("classifier.",)},
    ),
    "nomic_bert": Family(
        nomic_bert.ARCHITECTURES,
        nomic_bert.LAYOUT,
        _NOMIC_TASKS,
        nomic_bert.read_config,
        nomic_bert.build,
        computed=nomic_bert.computed,
        needs_code=nomic_bert.is_older,
    ),
    "gte": Family(gte.ARCHITECTURES, gte.LAYOUT, _NOMIC_TASKS, gte.read_config, gte.build, computed=gte.computed),
    "new": Family(
        gte.NEW_ARCHITECTURES,
        gte.LAYOUT,
        _ROBERTA_TASKS,
        gte.read_new_config,
        gte.build,
        computed=gte.computed,
        needs_code=lambda config: True,
    ),
    # Its config.json has the model type "bert".
    "jina_bert": Family(
        jina_bert.ARCHITECTURES,
        jina_bert.LAYOUT,
        _BERT_TASKS,
        jina_bert.read_config,
        jina_bert.build,
        computed=jina_bert.computed,
        needs_code=lambda config: True,
    ),
    "deberta-v2": Family(
        deberta_v2.ARCHITECTURES,
        deberta_v2.LAYOUT,
        _ROBERTA_TASKS,
        deberta_v2.read_config,
        deberta_v2.build,
        computed=deberta_v2.computed,
        n_hidden_weights=deberta_v2.n_hidden_weights,
        hidden_tensors=deberta_v2.hidden_tensors,
        heads={"masked-lm": ("cls.predictions.", "lm_predictions.")},
    ),
}


@dataclass(frozen=True, slots=True)
class BuiltModel:
    """A model before its weights are read.

    config: the family's dataclass. traced: the Program as in the model code, for `with_outputs` and `with_pooling`.
    program: the optimized Program. tensors: the source of every weight part. trace_with_types: returns `traced` for
    calls with token types, None if they have no Program of their own. unexpected: the unused tensors of the checkpoint.
    outer_prefix: the prefix of its names before the family's prefix. n_parameters: the number of weights of the
    checkpoint that the Program uses, and of those in its embedding tables.
    """

    config: CommonConfig
    traced: Program
    program: Program
    tensors: Mapping[str, WeightSource]
    task: Task
    unexpected: tuple[str, ...] = ()
    outer_prefix: str = ""
    trace_with_types: Callable[[], Program] | None = None
    n_parameters: tuple[int, int] = (0, 0)


def find_family(config: Mapping[str, object]) -> Family:
    """Find the family of a config.json, as in transformers: by `model_type`, or by `architectures` if it is missing.

    Logs nothing. Raises ConfigError.
    """
    return FAMILIES[_model_type(config)]


def _model_type(config: Mapping[str, object]) -> str:
    model_type, architectures = config.get("model_type"), config.get("architectures")
    known = ", ".join(FAMILIES)
    if architectures is not None and (
        not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures)
    ):
        raise ConfigError(f"config.json: architectures: expected a list of names, got {quote(architectures)}")
    if model_type == "bert" and _is_jina_bert(config, architectures):
        return "jina_bert"
    if isinstance(model_type, str) and model_type in FAMILIES:
        return model_type
    if model_type is not None:
        named = f"architectures {quote(architectures)} of model_type {quote(model_type)} are not supported"
        hint = closest(model_type, FAMILIES) if isinstance(model_type, str) else ""
        raise ConfigError(f"config.json: {named}; supported model types: {known}{hint}")
    if not architectures:
        raise ConfigError(f"config.json: expected model_type ({known}) or architectures, found neither")
    for name, family in FAMILIES.items():
        if set(architectures) <= set(family.architectures):
            return name
    raise ConfigError(
        f"config.json: expected model_type ({known}), found none, and architectures {quote(architectures)} are not "
        "known"
    )


def _is_jina_bert(config: Mapping[str, object], architectures: list[str] | None) -> bool:
    """Return whether a config.json with the model type "bert" is one of JinaBERT."""
    named = any(name.startswith("JinaBert") for name in architectures or [])
    return named or config.get("position_embedding_type") == "alibi"


def build(config: Mapping[str, object], tensors: Mapping[str, WeightSource], task: Task) -> BuiltModel:
    """Trace a model for a task and find its tensors; allocates nothing. Raises ConfigError, ModelFormatError."""
    family = find_family(config)
    if task not in family.tasks:
        raise ConfigError(_wrong_task(str(_model_type(config)), task, family))
    parsed = family.read_config(config)
    names = resolve_names(tensors, family.layout, tied=config.get("tie_word_embeddings") is not False)
    computed = {} if family.computed is None else family.computed(parsed, names)
    if computed:
        names = names.with_computed(computed)
    _check_head(family, names, parsed, task)
    traced = family.build(parsed, Weights(Tracer(), names), task)
    try:
        found = check_tensors(traced, names, task)
    except ConfigError as error:
        raise ConfigError(f"{error}{_other_head(parsed, task)}") from None
    read = {name: names.get(name) for name in family.hidden_tensors(parsed) if names.has(name)}
    with_types = family.build_with_types
    return BuiltModel(
        config=parsed,
        traced=traced,
        program=optimize(traced),
        tensors=found,
        task=task,
        unexpected=tuple(names.unexpected({**found, **read, **computed})),
        outer_prefix=names.outer,
        n_parameters=_count_parameters(traced, family, parsed, computed),
        trace_with_types=None if with_types is None else lambda: with_types(parsed, Weights(Tracer(), names), task),
    )


def _count_parameters(
    program: Program, family: Family, config: CommonConfig, computed: Collection[str]
) -> tuple[int, int]:
    """Count the weights that a checkpoint has, and those in embedding tables. Exact tables are always computed."""
    sizes = {
        name: math.prod(weight.shape)
        for name, weight in program.weights.items()
        if not weight.exact and name not in computed
    }
    hidden = 0 if family.n_hidden_weights is None else family.n_hidden_weights(config)
    return sum(sizes.values()) + hidden, sum(sizes[name] for name in embedding_tables(program))


def _wrong_task(model_type: str, task: Task, family: Family) -> str:
    others = " or ".join(TASKS[other].auto_class for other in family.tasks)
    why = family.missing.get(task, "this family has no such head, or fastattn does not support it")
    return (
        f"config.json: model_type {model_type!r} cannot be used for {task} ({TASKS[task].auto_class}): {why}; use "
        f"{others}"
    )


def _other_head(config: CommonConfig, task: Task) -> str:
    """Return the architectures of the checkpoint, for a message, if it has another kind of head."""
    ending = TASKS[task].architecture
    if not ending or any(name.endswith(ending) for name in config.architectures):
        return ""
    return f"; architectures of config.json is {quote(list(config.architectures))}" if config.architectures else ""


def _check_head(family: Family, names: ModelNames, config: CommonConfig, task: Task) -> None:
    """Raise ConfigError if the checkpoint lacks the task's head, or has a single-label classifier of one class."""
    heads = family.head_names(task)
    if heads and not any(name.startswith(heads) for name in names.found):
        missing = " or ".join(f"{head}weight" if head.count(".") == 1 else f"{head}*" for head in heads)
        raise ConfigError(
            f"this checkpoint has no {TASKS[task].head} head ({missing} is missing); load it with AutoModel or "
            f"`fastattn embed`{_other_head(config, task)}"
        )
    if (
        task == "sequence-classification"
        and config.problem_type == "single_label_classification"
        and (config.num_labels == 1)
    ):
        raise ConfigError(
            'config.json: problem_type: expected "regression" or "multi_label_classification" for one class, got '
            '"single_label_classification"; load it with problem_type="regression", for example'
        )


def warn_of_unused(config: Mapping[str, object], built: BuiltModel, where: object) -> None:
    """Log what the model ignores: unknown architectures, a prefix of tensor names, unused tensors."""
    listed = config.get("architectures")
    known = FAMILIES[_model_type(config)].architectures
    others = [name for name in listed if name not in known] if isinstance(listed, list) else []
    if others:
        family = quote(config.get("model_type"))
        _log.warning("%s: architectures %s are not known; loaded as model_type %s", where, quote(others), family)
    other = trained_for(built)
    if other is not None:
        _log.warning(
            "%s: architectures of config.json is %s: the head was trained for %s, but is loaded with %s",
            where,
            quote(list(built.config.architectures)),
            TASKS[other].auto_class,
            TASKS[built.task].auto_class,
        )
    if built.outer_prefix:
        _log.warning("%s: the tensor names begin with %s; this prefix is ignored", where, quote(built.outer_prefix))
    if built.unexpected:
        shown = shown_names((quote(name, 60) for name in built.unexpected), len(built.unexpected), _MAX_NAMED)
        _log.warning("%s: the model of config.json does not use the tensors %s", where, shown)


def trained_for(built: BuiltModel) -> Task | None:
    """Return the task that the head was trained for, if it is another one with tensors of the same names and shapes.

    Text classifiers are often saved under the names of other classes, so for them the result is None.
    """
    entry, listed, family = TASKS[built.task], built.config.architectures, FAMILIES[built.config.model_type]
    heads = family.head_names(built.task)
    if (
        not heads
        or built.task == "sequence-classification"
        or any(name.endswith(entry.architecture) for name in listed)
    ):
        return None
    for task, other in TASKS.items():
        if (task, built.task) == ("pre-training", "masked-lm"):
            continue  # this head contains the one of a masked language model
        if set(family.head_names(task)) & set(heads) and any(name.endswith(other.architecture) for name in listed):
            return task
    return None
