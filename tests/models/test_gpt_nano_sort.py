"""A trained model with published intermediate tensors: gpt-nano-sort (bbycroft/llm-viz, MIT, see data/LICENSE).

It checks what shapes cannot: Conv1D's orientation, the order of q, k and v, the heads, gelu's formula, the residuals.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastattn.api.auto import AutoModelForCausalLM
from fastattn.api.model import load_executor
from fastattn.checkpoint import open_checkpoint
from fastattn.graph.kinds.attention import softmax
from fastattn.models.gpt2 import CONV1D
from fastattn.models.inputs import read_batch
from fastattn.models.registry import build
from fastattn.tasks.op_errors import every_value
from tests.reference.bounds import assert_close, program_bound
from tests.reference.checkpoints import write

DATA = Path(__file__).parent / "data" / "gpt-nano-sort"


@cache
def published(name: str) -> Mapping[str, Any]:
    """Return a file of the fixture with its tensors as arrays."""
    raw = json.loads((DATA / name).read_text())
    return {key: _array(value) if "data" in value else value for key, value in raw.items()}


def _array(value: Mapping[str, Any]) -> NDArray[np.float32]:
    return np.frombuffer(base64.b64decode(value["data"]), "<f4").reshape(value["shape"])


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Write the model as a GPT-2 checkpoint: config names translated, linears transposed for Conv1D."""
    raw = published("gpt-nano-sort-model.json")
    config = {key: raw["config"][key] for key in ("n_layer", "n_head", "n_embd", "vocab_size")}
    config |= {"model_type": "gpt2", "n_positions": raw["config"]["block_size"], "bos_token_id": None}
    tensors = {key: value for key, value in raw.items() if key != "config"}
    return write(tmp_path, config, {k: v.T.copy() if k.endswith(CONV1D) else v for k, v in tensors.items()})


# Published name -> value of the traced Program; all but the last six are from the first block.
VALUES = {
    "tok_emb": "embedding.0",
    "x": "add.0",
    "ln1": "layer_norm.0",
    "qkv": "linear.0",
    "y": "attention.0",
    "yProj": "linear.1",
    "attnResid": "add.1",
    "ln2": "layer_norm.1",
    "fc": "linear.2",
    "gelu": "activation.0",
    "mlp": "linear.3",
    "mlpResid": "add.2",
    "block0": "add.2",
    "block1": "add.4",
    "block2": "add.6",
    "ln_f": "layer_norm.6",
    "lm_head": "linear.12",
}


def test_every_published_tensor(directory: Path, device: str) -> None:
    partials = published("gpt-nano-sort-t0-partials.json")
    checkpoint = open_checkpoint(directory)
    built = build(checkpoint.config, checkpoint.tensors, "causal-lm")
    program = every_value(built.traced)
    executor = load_executor(program, built.tensors, dtype="float32", device=device, threads=1)
    ids = partials["idx"].astype(np.int32)
    batch = read_batch(ids, vocab_size=3, max_positions=11)
    found = executor.run(batch.step())
    scale = max(float(np.abs(value).max()) for name, value in partials.items() if name != "config")
    tensors = {name: np.asarray(found[value]).reshape(3, 11, -1) for name, value in VALUES.items()}
    tensors["pos_emb"] = np.asarray(found["embedding.1"]).reshape(3, 11, -1)[:1]
    q, k, v = (np.asarray(found[f"slice.{i}"]).reshape(3, 11, 3, 16).transpose(0, 2, 1, 3) for i in range(3))
    tensors |= {"q": q, "k": k, "v": v}
    scores = q.astype(np.float64) @ k.transpose(0, 1, 3, 2).astype(np.float64) / 4
    seen = np.tril(np.ones((11, 11), bool))
    tensors["attSm"] = softmax(np.where(seen, scores, -np.inf))
    tensors["probs"] = softmax(tensors["lm_head"].astype(np.float64))
    tensors["att"] = np.where(np.isfinite(partials["att"]), scores, -np.inf)
    assert set(tensors) | {"config", "idx"} == set(partials)
    for name, value in tensors.items():
        # The published tensors are float32: ours may be exact, they are not.
        finite = np.isfinite(partials[name])
        assert np.array_equal(np.isfinite(value), finite), name
        ours, theirs = np.where(finite, value, 0.0).astype(np.float32), np.where(finite, partials[name], 0.0)
        assert_close(ours, theirs, program, longest=11, scale=scale)
    executor.close()


def test_attention_maps_are_the_published_ones(directory: Path, device: str) -> None:
    partials = published("gpt-nano-sort-t0-partials.json")
    with AutoModelForCausalLM.from_pretrained(directory, device=device) as model:
        found = model(partials["idx"].astype(int), output_attentions=True)
        assert found.attentions is not None
        ours = np.asarray(found.attentions[0], np.float32)
        assert_close(ours, partials["attSm"], model.traced, longest=11)


def test_it_sorts(directory: Path, device: str) -> None:
    """Greedy continuation of six letters returns them sorted."""
    with AutoModelForCausalLM.from_pretrained(directory, device=device) as model:
        for letters in ([0, 0, 2, 1, 0, 1], [2, 1, 0, 2, 1, 0], [1, 1, 1, 2, 0, 2]):
            ids = list(letters)
            for _ in letters:
                logits = np.asarray(model(ids, logits_to_keep=1).logits)
                assert logits.shape == (1, 3)
                ids.append(int(logits[0].argmax()))
            assert ids[6:] == sorted(letters)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_it_sorts_500_texts_in_every_dtype(directory: Path, dtype: str, rng: np.random.Generator) -> None:
    texts = rng.integers(0, 3, (500, 6))
    with AutoModelForCausalLM.from_pretrained(directory, dtype=dtype) as model:
        found = np.stack(model.generate(list(texts), max_new_tokens=5, eos_token_id=-1))  # to the end of the context
        last = np.asarray(model(found, logits_to_keep=1).logits)[:, 0].argmax(axis=1)
    is_sorted = (np.c_[found[:, 6:], last] == np.sort(texts, axis=1)).all(axis=1)
    assert is_sorted.sum() == 500


def test_lm_head_of_its_own_is_used(directory: Path) -> None:
    """The fixture's lm_head differs from its wte: fault 36."""
    raw = published("gpt-nano-sort-model.json")
    checkpoint = open_checkpoint(directory)
    built = build(checkpoint.config, checkpoint.tensors, "causal-lm")
    assert not np.array_equal(raw["lm_head.weight"], raw["transformer.wte.weight"])
    assert "lm_head.weight" in built.program.weights
    assert program_bound(built.program, "float32", longest=11, scale=1.0) < 1.0
