"""The table of model families: what each file of this folder declares."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fastattn.checkpoint.source import WeightSource
from fastattn.graph.ir import Program
from fastattn.graph.tensor import Weights
from fastattn.models import (
    albert,
    bart,
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
    m2m_100,
    marian,
    mbart,
    mistral,
    modernbert,
    mpnet,
    nomic_bert,
    olmo2,
    opt,
    pegasus,
    phi3,
    qwen2,
    qwen3,
    roberta,
    seq2seq,
    smollm3,
    stablelm,
    t5,
)
from fastattn.models.causal import CLASSIFIERS, DECODER_TASKS, LABEL_TASKS, SCORE_TASKS, SCORES, UNTAGGED_TASKS
from fastattn.models.config import CommonConfig
from fastattn.models.names import Layout, ModelNames
from fastattn.models.tasks import TASKS, Task


@dataclass(frozen=True, slots=True)
class Family:
    """A model family, in one file of this folder.

    build_encoder: for models of an encoder and a decoder; `build` is then the decoder.
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
    build_encoder: Callable[[Any, Weights], Program] | None = None

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


def _t5(names: tuple[str, ...], read_config: Callable[[Mapping[str, object]], CommonConfig]) -> Family:
    """Return a family that uses the code of T5."""
    return Family(
        names,
        t5.LAYOUT,
        seq2seq.TASKS,
        read_config,
        t5.build,
        computed=t5.computed,
        n_hidden_weights=t5.n_hidden_weights,
        hidden_tensors=t5.hidden_tensors,
        build_encoder=t5.build_encoder,
    )


def _seq2seq(names: tuple[str, ...], read_config: Callable[[Mapping[str, object]], CommonConfig]) -> Family:
    """Return a family that uses the code of BART."""
    return Family(
        names,
        seq2seq.LAYOUT,
        seq2seq.TASKS,
        read_config,
        seq2seq.build,
        computed=seq2seq.computed,
        hidden_tensors=seq2seq.hidden_tensors,
        build_encoder=seq2seq.build_encoder,
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
    "bart": _seq2seq(bart.ARCHITECTURES, bart.read_config),
    "marian": _seq2seq(marian.ARCHITECTURES, marian.read_config),
    "m2m_100": _seq2seq(m2m_100.ARCHITECTURES, m2m_100.read_config),
    "mbart": _seq2seq(mbart.ARCHITECTURES, mbart.read_config),
    "t5": _t5(t5.ARCHITECTURES, t5.read_config),
    "mt5": _t5(t5.MT5_ARCHITECTURES, t5.read_mt5_config),
    "pegasus": _seq2seq(pegasus.ARCHITECTURES, pegasus.read_config),
}
