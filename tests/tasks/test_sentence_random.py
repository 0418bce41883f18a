"""Compares random stacks of modules with random settings with sentence-transformers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn
from fastattn.tasks.sentence.modules import ACTIVATIONS
from fastattn.tasks.sentence.pooling import MODES
from tests.tasks.bounds import assert_as_good_as
from tests.tasks.sentence_folders import (
    NORMALIZE,
    TEXTS,
    ModuleFiles,
    change_json,
    dense,
    layer_norm,
    write_json,
    write_modules,
)
from tests.tasks.sentence_reference import Reference
from tests.tasks.tiny import write_bert_model, write_distilbert_model, write_roberta_model

pytestmark = pytest.mark.torch
ATTRIBUTES = ("prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim", "max_seq_length")
CALLS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("encode", {}),
    ("encode", {"prompt": "the film "}),
    ("encode", {"prompt": "running " * 30}),
    ("encode_query", {}),
    ("encode_document", {}),
    ("encode_query", {"prompt": "", "normalize_embeddings": True}),
    ("encode", {"prompt_name": "query", "batch_size": 2}),
    ("encode", {"processing_kwargs": {"text": {"max_length": 9}}, "task": "document"}),
)


def random_modules(rng: random.Random, width: int) -> list[ModuleFiles]:
    """Return modules that fit together."""
    modules: list[ModuleFiles] = []
    if rng.random() < 0.3:
        modules.append(random_dense(rng, width, module_input_name="token_embeddings"))
        width = 40
    if rng.random() < 0.2:
        name = rng.choice(["token_embeddings", "sentence_embedding"])
        modules.append(("Normalize", {"module_input_name": name}, None))
    modes = rng.sample([mode for mode in MODES if mode != "max"], rng.choice([1, 1, 1, 2, 3]))
    config = {"embedding_dimension": width, "pooling_mode": modes, "include_prompt": rng.random() < 0.6}
    modules.append(("Pooling", config, None))
    width *= len(modes)
    for kind in rng.choices(["dense", "normalize", "layer_norm"], k=rng.choice([0, 0, 1, 2, 3])):
        if kind == "dense":
            modules.append(random_dense(rng, width, use_residual=rng.random() < 0.3))
            width = 40
        else:
            modules.append(NORMALIZE if kind == "normalize" else layer_norm(width, seed=rng.randrange(24)))
    return modules


def random_dense(rng: random.Random, width: int, **config: Any) -> ModuleFiles:
    kind = "torch.nn.modules.activation." + rng.choice([name for name in ACTIVATIONS if name != "Identity"])
    return dense(width, 40, seed=rng.randrange(24), bias=rng.random() < 0.6, activation_function=kind, **config)


def random_folder(rng: random.Random, folder: Path) -> Path:
    """Write a model of one family with settings, each of which may be missing."""
    family = rng.choice(["bert", "roberta", "distilbert"])
    if family == "bert":
        write_bert_model(folder, head=False)
    else:
        (write_roberta_model if family == "roberta" else write_distilbert_model)(folder)
    if family == "roberta":  # without a limit sentence-transformers fails beyond the positions
        change_json(folder / "tokenizer_config.json", model_max_length=64)
    write_modules(folder, *random_modules(rng, 32))
    prompts = rng.choice([None, {"query": "the film: ", "passage": "a "}, {"document": "cat ", "query": None}])
    names = [None, None, "query", "document"]
    settings = {
        "prompts": prompts or {},
        "default_prompt_name": rng.choice(names),
        "similarity_fn_name": rng.choice([None, "dot", "euclidean", "manhattan"]),
        "truncate_dim": rng.choice([None, None, 30, 500]),
    }
    write_json(folder / "config_sentence_transformers.json", settings)
    options = {
        "max_seq_length": [None, 5, 16, 60],
        "do_lower_case": [None, True, False],
        "query_length": [None, None, 4, 9],
        "document_length": [None, None, 4, 9],
        "processing_kwargs": [None, None, {"text": {"max_length": 11}}],
    }
    change_json(folder / "sentence_bert_config.json", **{name: rng.choice(values) for name, values in options.items()})
    return folder


def random_options(rng: random.Random) -> dict[str, Any]:
    """Return options of the constructor."""
    options = {
        "truncate_dim": rng.choice([None, None, 35]),
        "prompts": rng.choice([None, {"query": rng.choice(["", "dog "]), "x": "running "}]),
        "similarity_fn_name": rng.choice([None, None, "dot"]),
        "processor_kwargs": rng.choice([None, None, {"model_max_length": 7}, {"truncation_side": "left"}]),
    }
    return {name: value for name, value in options.items() if value is not None}


@pytest.mark.parametrize("seed", range(24))
def test_random_models(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    folder, options = random_folder(rng, tmp_path / "m"), random_options(rng)
    expected, found = Reference(folder, **options), fastattn.SentenceTransformer(folder, threads=1, **options)
    for name in ATTRIBUTES:
        assert getattr(found, name) == getattr(expected.exact, name), name
    assert found.get_embedding_dimension() == expected.exact.get_embedding_dimension()
    models = (found, expected.exact, expected.rough)
    results = [[getattr(model, method)(TEXTS, **arguments) for method, arguments in CALLS] for model in models]
    assert_as_good_as(*(np.concatenate(arrays) for arrays in results))
    vectors = found.encode(TEXTS)
    assert all(np.array_equal(found.encode(text), row) for text, row in zip(TEXTS, vectors, strict=True))
