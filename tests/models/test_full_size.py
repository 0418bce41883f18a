"""The default configs at full size with random weights: at most twice PyTorch's float32 error.

The float64 model of transformers is the reference; its float32 model is the naive float32 formula that sets the bound.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fastattn
from fastattn.api.auto import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from fastattn.checkpoint import open_checkpoint
from fastattn.graph.ir import Step
from fastattn.models.registry import build

pytest.importorskip("torch")
pytest.importorskip("transformers")
import torch

from tests.reference import hf
from tests.reference.op_by_op import check_every_op

pytestmark = [pytest.mark.torch, pytest.mark.slow]

N_GREEDY = 64
# One head of every other family, in the default config but for two layers and a small vocabulary, which keep time and
# memory small. The widths are those of the base models.
MODERN_IDS = {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2}
# SmolLM2-360M and Qwen3-0.6B.
LLAMA = {"hidden_size": 960, "num_attention_heads": 15, "num_key_value_heads": 5, "intermediate_size": 2560}
QWEN3 = {"hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8, "intermediate_size": 3072}
HEADS = [
    ("CamembertForTokenClassification", {}),
    ("ElectraForPreTraining", {}),
    ("AlbertForMaskedLM", {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}),
    ("MPNetForMaskedLM", {}),
    ("ModernBertForMaskedLM", {"layer_types": ["full_attention", "sliding_attention"], **MODERN_IDS}),
    ("NomicBertForMaskedLM", {}),
    ("GteForTokenClassification", {}),
    ("GPT2ForTokenClassification", {}),
    ("LlamaForTokenClassification", LLAMA),
    ("Qwen3ForTokenClassification", QWEN3),
]
ENCODERS = [
    ("BertForSequenceClassification", AutoModelForSequenceClassification),
    ("BertModel", AutoModel),
    ("DistilBertForSequenceClassification", AutoModelForSequenceClassification),
    ("RobertaForSequenceClassification", AutoModelForSequenceClassification),
    ("DebertaV2Model", AutoModel),
]
OPTIONS: dict[str, dict[str, Any]] = {
    "DebertaV2Model": {  # microsoft/deberta-v3-base
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "relative_attention": True,
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": "p2c|c2p",
        "position_biased_input": False,
    }
}


def errors(
    reference: Any, ids: NDArray[np.int64], ours: NDArray[np.float32], output: str = "logits"
) -> tuple[float, float]:
    """Return (our error, PyTorch's float32 error) as root mean squares over all outputs, both against float64."""
    with torch.no_grad():
        with hf.exact(reference):
            exact = reference(torch.tensor(ids))[output].numpy()
        reference.float()
        naive = reference(torch.tensor(ids))[output].numpy().astype(np.float64)
        reference.double()
    return float(np.sqrt(np.mean((ours - exact) ** 2))), float(np.sqrt(np.mean((naive - exact) ** 2)))


@pytest.mark.parametrize(("model_class", "auto"), ENCODERS, ids=lambda value: getattr(value, "__name__", value))
def test_encoders(model_class: str, auto: Any, tmp_path: Path, rng: np.random.Generator) -> None:
    reference = hf.make(model_class, **OPTIONS.get(model_class, {}))
    with auto.from_pretrained(hf.save(reference, tmp_path)) as model:
        ids = rng.integers(5, reference.config.vocab_size, (2, 70))
        out = model(ids)
    output = "logits" if hasattr(out, "logits") else "last_hidden_state"
    ours, naive = errors(reference, ids, np.asarray(getattr(out, output), np.float64), output)
    assert ours <= 2 * naive, f"expected at most twice {naive:.3g}, got {ours:.3g}"


@pytest.mark.parametrize(("model_class", "options"), HEADS, ids=lambda value: value if isinstance(value, str) else "")
def test_heads(model_class: str, options: dict[str, Any], tmp_path: Path, rng: np.random.Generator) -> None:
    layers = {"n_layer" if model_class.startswith("GPT2") else "num_hidden_layers": 2}
    reference = hf.make(model_class, vocab_size=4096, **layers, **options)
    auto = getattr(fastattn, f"AutoModelFor{model_class.partition('For')[2]}")
    with auto.from_pretrained(hf.save(reference, tmp_path)) as model:
        ids = rng.integers(5, reference.config.vocab_size, (1, 70))
        found = np.asarray(model(ids).logits, np.float64)
    ours, naive = errors(reference, ids, found)
    assert ours <= 2 * naive, f"expected at most twice {naive:.3g}, got {ours:.3g}"


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
@pytest.mark.parametrize(("model_class", "task"), [("GPT2LMHeadModel", "causal-lm"), ("BertModel", "encoder")])
def test_every_op_of_a_dtype(model_class: str, task: Any, dtype: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """Compare each op on the same inputs.

    Whole models are chaotic here: if one activation rounds the other way, the change grows to the error of the dtype
    itself within a few layers of random weights.
    """
    checkpoint = open_checkpoint(hf.save(hf.make(model_class), tmp_path))
    built = build(checkpoint.config, checkpoint.tensors, task)
    ids, positions = rng.integers(5, built.config.vocab_size, 40).astype(np.int32), np.arange(40, dtype=np.int32)
    step = Step(ids, np.array([0, 40], np.int32), positions, wanted=np.array([3, 39], np.int32))
    check_every_op(built, step, dtype)


def test_gpt2(tmp_path: Path, rng: np.random.Generator) -> None:
    reference = hf.make("GPT2LMHeadModel")
    with AutoModelForCausalLM.from_pretrained(hf.save(reference, tmp_path)) as model:
        ids = rng.integers(0, reference.config.vocab_size, (2, 40))
        ours, naive = errors(reference, ids, np.asarray(model(ids).logits, np.float64))
        assert ours <= 2 * naive, f"expected at most twice {naive:.3g}, got {ours:.3g}"
        prompt = ids[0, :16]
        found = np.asarray(model.generate(prompt, max_new_tokens=N_GREEDY, eos_token_id=-1))
        assert len(found) == len(prompt) + N_GREEDY
        with torch.no_grad():
            exact = reference(torch.tensor(found[None])).logits[0].numpy()
        largest = np.abs(np.asarray(model(found).logits, np.float64) - exact).max()
    # Greedy tokens are checked along our own text: each must be float64's choice wherever its margin is decisive. A
    # margin is decisive if it is larger than two errors of the size just measured.
    decisive = 0
    for position in range(len(prompt) - 1, len(found) - 1):
        second, first = np.sort(exact[position])[-2:]
        if first - second > 2 * largest:
            decisive += 1
            assert found[position + 1] == exact[position].argmax()
    assert decisive > N_GREEDY // 2
