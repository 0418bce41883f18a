"""Compares JinaBERT v2 with a float64 model of our own, and tests what its config.json may say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn
from fastattn.api.auto import AUTO_CLASSES
from fastattn.errors import ConfigError
from fastattn.models.registry import FAMILIES, find_family
from fastattn.models.tasks import Task
from tests.reference.bounds import assert_close
from tests.reference.checkpoints import write
from tests.reference.families import VARIANTS, Variant, tensors, write_variant
from tests.reference.jina_bert import JinaBert, slopes

NAMES = ("jina_bert", "jina_bert-code")
JINA = FAMILIES["jina_bert"]


def reference(name: str, task: Task, **options: Any) -> JinaBert:
    variant = VARIANTS[name]
    variant = Variant({**variant.config, "layer_norm_eps": 1e-12, **options}, variant.without)
    return JinaBert(variant.config, tensors(variant, task))


def inputs(rng: np.random.Generator) -> tuple[list[Any], list[Any]]:
    """Return a ragged batch of ids and types."""
    lengths = (1, 9, 64, 70)
    return [rng.integers(2, 131, n) for n in lengths], [rng.integers(0, 2, n) for n in lengths]


@pytest.mark.parametrize("gate", ["geglu", "reglu"])
@pytest.mark.parametrize("n_head", [3, 4, 6])
@pytest.mark.parametrize("name", NAMES)
def test_hidden_states_and_attentions(
    name: str, n_head: int, gate: str, tmp_path: Path, device: str, rng: np.random.Generator
) -> None:
    options = {"num_attention_heads": n_head, "feed_forward_type": gate}
    theirs = reference(name, "encoder", **options)
    model: Any = fastattn.AutoModel.from_pretrained(write_variant(tmp_path, name, "encoder", **options), device=device)
    ids, types = inputs(rng)
    found = model(ids, token_type_ids=types, output_hidden_states=True, output_attentions=True)
    for i, (text, kinds) in enumerate(zip(ids, types, strict=True)):
        states, maps = theirs(text, kinds)
        scale = max(float(np.abs(state).max()) for state in states)
        for ours, expected in zip((*found.hidden_states, *found.attentions), (*states, *maps), strict=True):
            assert_close(ours[i], expected, model.traced, longest=70, scale=scale)
        assert_close(found.pooler_output[i], theirs.pooled(states[-1]), model.traced, longest=70, scale=scale)
        assert_close(found.last_hidden_state[i], states[-1], model.traced, longest=70, scale=scale)


def head_of(theirs: JinaBert, task: Task, h: Any) -> Any:
    """Return the logits that a head computes from the last hidden state."""
    heads = {
        "sequence-classification": lambda: theirs.linear(theirs.pooled(h)[None], "classifier")[0],
        "token-classification": lambda: theirs.linear(h, "classifier"),
        "masked-lm": lambda: theirs.predictions(h),
        "question-answering": lambda: theirs.linear(h, "qa_outputs"),
    }
    return heads[task]()


@pytest.mark.parametrize("task", ["sequence-classification", "token-classification", "masked-lm", "question-answering"])
@pytest.mark.parametrize("name", NAMES)
def test_heads(name: str, task: Task, tmp_path: Path, rng: np.random.Generator) -> None:
    theirs = reference(name, task)
    model: Any = AUTO_CLASSES[task].from_pretrained(write_variant(tmp_path, name, task), device="numpy")
    ids, types = inputs(rng)
    found = model(ids, token_type_ids=types)
    for i, (text, kinds) in enumerate(zip(ids, types, strict=True)):
        states, _ = theirs(text, kinds)
        scale = max(float(np.abs(state).max()) for state in states)
        expected = head_of(theirs, task, states[-1])
        ours = np.stack([found.start_logits[i], found.end_logits[i]], -1) if len(found) == 2 else found.logits[i]
        assert_close(ours, expected, model.traced, longest=70, scale=scale)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_full_width(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """Two layers of the published width and 12 heads, whose slopes are not powers of two."""
    wide = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 8192}
    theirs = reference(name, "encoder", **wide)
    with fastattn.AutoModel.from_pretrained(write(tmp_path, theirs.config, theirs.tensors)) as model:
        ids = rng.integers(2, 131, 40)
        states, _ = theirs(ids, np.zeros_like(ids))
        scale = max(float(np.abs(state).max()) for state in states)
        assert_close(model(ids).last_hidden_state, states[-1], model.traced, longest=40, scale=scale)


def test_slopes() -> None:
    assert slopes(4) == [0.25, 0.0625, 0.015625, 0.00390625]
    assert slopes(12)[8:] == [2.0**-0.5, 2.0**-1.5, 2.0**-2.5, 2.0**-3.5]


def test_config_files() -> None:
    base = dict(VARIANTS["jina_bert"].config)
    assert find_family(base) is JINA
    assert find_family({**base, "model_type": None, "architectures": ["JinaBertForMaskedLM"]}) is JINA
    assert find_family({**base, "position_embedding_type": "absolute"}) is FAMILIES["bert"]
    published = {
        "auto_map": {"AutoModel": "x"},
        "emb_pooler": "mean",
        "attn_implementation": None,
        "hidden_act": "gelu",
    }
    assert JINA.read_config({**base, **published}) == JINA.read_config(base)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("position_embedding_type", "absolute"),
        ("position_embedding_type", None),
        ("feed_forward_type", "original"),
        ("feed_forward_type", None),
        ("is_decoder", True),
        ("hidden_act", "mish"),
        ("max_position_embeddings", 2**20 + 1),
        ("max_position_embeddings", 2**31 - 1),
    ],
)
def test_unsupported_options_are_named(key: str, value: Any) -> None:
    config = {**VARIANTS["jina_bert"].config, "architectures": ["JinaBertModel"], key: value}
    assert find_family(config) is JINA
    with pytest.raises(ConfigError, match=key):
        JINA.read_config(config)


def test_half_a_variant_is_an_error(tmp_path: Path) -> None:
    """A checkpoint with tensors of both variants does not have all of either."""
    variant = VARIANTS["jina_bert-code"]
    found = tensors(variant, "encoder")
    del found["encoder.layer.0.attention.self.layer_norm_q.weight"]
    with pytest.raises(ConfigError, match=r"mlp\.gated_layers\.weight: expected this tensor"):
        fastattn.AutoModel.from_pretrained(write(tmp_path, variant.config, found))
