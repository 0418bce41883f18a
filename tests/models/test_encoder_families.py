"""The encoder families after BERT, DistilBERT and RoBERTa: layouts, checkpoints, refusals, equal bits, full width."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fastattn
from fastattn.api.auto import AutoModel, AutoModelForSequenceClassification
from fastattn.bench.libraries.base import Job, Source, Unsupported
from fastattn.checkpoint import array_sources, open_checkpoint, read_tensor
from fastattn.errors import ConfigError
from fastattn.executors.cpu import CpuExecutor
from fastattn.graph.ir import Step
from fastattn.models.registry import FAMILIES, build
from tests.models.test_lenient import ODD_VALUES, refusal
from tests.reference.checkpoints import write
from tests.tasks.bounds import assert_as_good_as
from tests.tasks.sentence_folders import TEXTS, change_json, write_modules
from tests.tasks.tokenizers import write_bert

pytest.importorskip("torch")
pytest.importorskip("transformers")
import torch
import transformers

from tests.reference import hf

pytestmark = pytest.mark.torch

SIZES: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 72,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 100,
    "max_position_embeddings": 140,
    "pad_token_id": 1,
}
MODERN = {"layer_types": ["full_attention", "sliding_attention"], "local_attention": 8, "cls_token_id": 2}
DEBERTA = {
    "relative_attention": True,
    "pos_att_type": "p2c|c2p",
    "position_buckets": 32,
    "position_biased_input": False,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "camembert": ("Camembert", {}),
    "electra": ("Electra", {"embedding_size": 40}),
    "albert": ("Albert", {"embedding_size": 40, "num_hidden_groups": 1}),
    "mpnet": ("MPNet", {}),
    "modernbert": ("ModernBert", {**MODERN, "sep_token_id": 3}),
    "nomic_bert": ("NomicBert", {}),
    "gte": ("Gte", {"type_vocab_size": 2}),
    "deberta-v2": ("DebertaV2", DEBERTA),
}
# The widths of the published base models.
FULL: dict[str, dict[str, Any]] = {
    "electra": {"embedding_size": 128, "intermediate_size": 1024, "num_attention_heads": 4, "hidden_size": 256},
    "albert": {"embedding_size": 128},
    "modernbert": {"intermediate_size": 1152, "local_attention": 128},
    "deberta-v2": {"position_buckets": 256},
}
LENGTHS = (1, 7, 17, 64, 65, 130)
EXTRA: dict[str, tuple[str, ...]] = {
    "camembert": ("roberta.embeddings.position_ids", "lm_head.bias"),
    "electra": ("electra.embeddings.position_ids", "discriminator_predictions.dense.bias", "generator_lm_head.bias"),
    "albert": ("albert.embeddings.position_ids", "sop_classifier.classifier.bias", "predictions.bias"),
    "mpnet": ("mpnet.embeddings.position_ids", "lm_head.layer_norm.bias"),
    "modernbert": ("decoder.bias",),
    "nomic_bert": ("cls.predictions.bias",),
    "gte": ("lm_head.dense.bias", "new.pooler.dense.bias"),
    "deberta-v2": ("deberta.embeddings.position_ids", "mask_predictions.dense.bias", "lm_predictions.lm_head.bias"),
}


def saved(family: str, folder: Path, head: str = "Model", **options: Any) -> Path:
    name, own = MODELS[family]
    return hf.save(hf.make(f"{name}{head}", **{**SIZES, **own, **options}), folder)


def texts() -> list[NDArray[np.int64]]:
    rng = np.random.default_rng(4)
    return [rng.integers(5, 131, n) for n in LENGTHS]


def same(a: Any, b: Any) -> bool:
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("family", MODELS)
def test_same_bits(family: str, dtype: str, tmp_path: Path) -> None:
    """Alone, in a batch in any order, with padding, on any number of threads, and quantized in advance."""
    folder, batch = saved(family, tmp_path / "a"), texts()
    with AutoModel.from_pretrained(folder, dtype=dtype, threads=1) as model:
        alone = [model(text).last_hidden_state for text in batch]
    for threads in (1, 2, 3):
        with AutoModel.from_pretrained(folder, dtype=dtype, threads=threads) as model:
            together = model([list(text) for text in batch[::-1]]).last_hidden_state[::-1]
            assert all(map(same, together, alone))
            ids, mask = np.full((2, 70), 9), np.zeros((2, 70), np.int64)
            for row, text in enumerate(batch[3:5]):
                ids[row, -len(text) :], mask[row, -len(text) :] = text, 1
            padded = model(ids, attention_mask=mask).last_hidden_state
            assert all(same(padded[row][mask[row] == 1], alone[3 + row]) for row in range(2))
    if dtype != "float32":
        small = fastattn.quantize(folder, tmp_path / "b", dtype=dtype)
        with AutoModel.from_pretrained(small, threads=2) as model:
            assert all(map(same, model([list(text) for text in batch]).last_hidden_state, alone))


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("head", ["Model", "ForSequenceClassification"])
@pytest.mark.parametrize("family", MODELS)
def test_rewrites_change_no_bit(family: str, head: str, dtype: str, tmp_path: Path) -> None:
    auto: Any = AutoModel if head == "Model" else AutoModelForSequenceClassification
    with auto.from_pretrained(saved(family, tmp_path, head), dtype=dtype, threads=2) as model:
        built = model._built
        assert len(built.program.ops) < len(built.traced.ops)
        plain = CpuExecutor(built.traced, built.tensors, dtype=dtype, threads=2)
        ends = np.cumsum([0, *LENGTHS]).astype(np.int32)
        step = Step(
            token_ids=np.concatenate(texts()).astype(np.int32),
            cu_seqlens=ends,
            positions=np.concatenate([np.arange(n) for n in LENGTHS]).astype(np.int32),
            wanted=ends[1:] - 1,
        )
        found = model.executor.run(step)
        for name, value in plain.run(step).items():
            assert same(found[name], value)


@pytest.mark.parametrize("family", MODELS)
def test_long_texts_equal_transformers(family: str, tmp_path: Path) -> None:
    """Texts longer than a window and than the single buckets, in one ragged batch, to float32 rounding."""
    name, own = MODELS[family]
    reference = hf.make(f"{name}ForSequenceClassification", **{**SIZES, **own, "num_labels": 5})
    batch = texts()
    expected = [hf.array(hf.call(reference, text[None]).logits)[0] for text in batch]
    naive = reference.float()
    with torch.no_grad():
        rough = [naive(torch.tensor(text[None])).logits.numpy()[0] for text in batch]
    with AutoModelForSequenceClassification.from_pretrained(hf.save(reference, tmp_path)) as model:
        found = model([list(text) for text in batch]).logits
    ours, theirs = (np.sqrt(np.mean((np.array(x, np.float64) - np.array(expected)) ** 2)) for x in (found, rough))
    assert 0 < ours <= 2 * theirs


@pytest.mark.slow
@pytest.mark.parametrize("family", MODELS)
def test_full_width(family: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """Two layers of the published width: at most twice PyTorch's float32 error."""
    name, own = MODELS[family]
    wide = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 514}
    reference = hf.make(f"{name}Model", **{**SIZES, **own, "vocab_size": 1000, **wide, **FULL.get(family, {})})
    ids = rng.integers(5, 1000, (1, 200))
    exact = hf.array(hf.call(reference, ids).last_hidden_state)
    with torch.no_grad():
        rough = reference.float()(torch.tensor(ids)).last_hidden_state.numpy()
    with AutoModel.from_pretrained(hf.save(reference, tmp_path)) as model:
        found = model(ids).last_hidden_state
    ours, theirs = (float(np.sqrt(np.mean((x.astype(np.float64) - exact) ** 2))) for x in (found, rough))
    assert 0 < ours <= 2 * theirs


@pytest.mark.parametrize("family", MODELS)
def test_sentence_vectors(family: str, tmp_path: Path) -> None:
    reference = pytest.importorskip("sentence_transformers").SentenceTransformer
    folder = write_bert(saved(family, tmp_path))
    # With a tokenizer.json, because transformers knows no other kind of tokenizer for ModernBERT.
    transformers.BertTokenizer.from_pretrained(folder, model_max_length=64).save_pretrained(folder)
    change_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    write_modules(folder, ("Pooling", {"embedding_dimension": 72, "pooling_mode": ["mean"]}, None))
    wide, single = (
        reference(str(folder), device="cpu", model_kwargs={"dtype": dtype}) for dtype in (torch.float64, torch.float32)
    )
    with hf.exact(wide):
        exact = wide.encode(TEXTS)
    with fastattn.SentenceTransformer(folder, threads=1) as model:
        vectors = model.encode(TEXTS)
        assert_as_good_as(vectors, exact, single.encode(TEXTS))
        assert all(same(model.encode(text), vector) for text, vector in zip(TEXTS, vectors, strict=True))


@pytest.mark.parametrize("family", MODELS)
def test_graphs_for_other_libraries_are_refused(family: str, tmp_path: Path) -> None:
    source = Source(Job(task="encoder", dtype="float32", threads=1, folder=tmp_path, path=saved(family, tmp_path)))
    with pytest.raises(Unsupported, match=family):
        source.head_names()


def test_albert_stores_shared_layers_once(tmp_path: Path) -> None:
    weights, layers = [], (2, 6)
    for n in layers:
        checkpoint = open_checkpoint(saved("albert", tmp_path / str(n), num_hidden_layers=n))
        built = build(checkpoint.config, checkpoint.tensors, "encoder")
        assert built.program.n_layer == n
        with AutoModel.from_pretrained(tmp_path / str(n)) as model:
            weights.append((len(built.program.weights), model.executor.weight_bytes))
    assert weights[0] == weights[1]


@pytest.mark.parametrize("family", MODELS)
def test_layouts_of_checkpoints(family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The prefix may be missing, buffers and heads of pre-training are ignored, all without a warning."""
    caplog.set_level(logging.WARNING, "fastattn")
    checkpoint = open_checkpoint(saved(family, tmp_path / "a"))
    config, ids = dict(checkpoint.config), [5, 9, 7]
    prefix = FAMILIES[family].layout.prefixes[0]
    tensors = {name.removeprefix(prefix): read_tensor(info) for name, info in checkpoint.tensors.items()}
    extra = {name: np.zeros(3, np.float32) for name in EXTRA[family]}
    prefixed = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    with AutoModel.from_pretrained(tmp_path / "a") as model:
        expected = model(ids).last_hidden_state
    for number, stored in enumerate((tensors, {**prefixed, **extra})):
        with AutoModel.from_pretrained(write(tmp_path / str(number), config, stored)) as model:
            assert same(model(ids).last_hidden_state, expected)
    assert not caplog.records
    outer = {f"module.{name}": tensor for name, tensor in prefixed.items()}
    with AutoModel.from_pretrained(write(tmp_path / "outer", config, outer)) as model:
        assert same(model(ids).last_hidden_state, expected)
    assert "begin with 'module.'" in caplog.text
    embeddings, head = FAMILIES[family].layout.tied or ("", "")
    renamed = {**prefixed, head: prefixed[f"{prefix}{embeddings}"]}
    del renamed[f"{prefix}{embeddings}"]
    with AutoModel.from_pretrained(write(tmp_path / "tied", config, renamed)) as model:
        assert same(model(ids).last_hidden_state, expected)


REFUSED: list[tuple[str, str, Any]] = [
    *((family, "is_decoder", True) for family in MODELS),
    *((family, "position_embedding_type", "relative_key") for family in MODELS),
    *((family, "hidden_size", 71) for family in ("camembert", "electra", "albert", "mpnet", "modernbert", "gte")),
    *((family, "hidden_act", "mish") for family in ("camembert", "electra", "albert", "mpnet", "nomic_bert")),
    ("electra", "embedding_size", 0),
    ("albert", "inner_group_num", 501),
    ("albert", "num_hidden_groups", 0),
    ("albert", "gap_size", 1),
    ("albert", "net_structure_type", 1),
    ("albert", "num_memory_blocks", 2),
    ("albert", "down_scale_factor", 2),
    ("mpnet", "relative_attention_num_buckets", 64),
    ("modernbert", "layer_types", ["full_attention"]),
    ("modernbert", "layer_types", ["full_attention", "chunked_attention"]),
    ("modernbert", "local_attention", 0),
    ("modernbert", "sliding_window", 5),
    ("modernbert", "head_dim", 8),
    ("modernbert", "rope_scaling", {"rope_type": "linear", "factor": 2.0}),
    ("modernbert", "rope_theta", 500.0),
    ("modernbert", "rope_parameters", {"rope_type": "default"}),
    ("modernbert", "global_rope_theta", 1.0),
    ("modernbert", "local_rope_theta", -5),
    ("modernbert", "classifier_pooling", "max"),
    ("modernbert", "hidden_activation", "mish"),
    ("modernbert", "norm_bias", 1),
    ("nomic_bert", "n_head", 3),
    ("nomic_bert", "rotary_emb_fraction", 0.5),
    ("nomic_bert", "partial_rotary_factor", 0.5),
    ("nomic_bert", "rope_parameters", {"rope_type": "default", "rope_theta": 10.0, "partial_rotary_factor": 0.5}),
    ("nomic_bert", "head_dim", 7),
    ("gte", "head_dim", 7),
    ("gte", "layer_norm_type", "rms_norm"),
    ("gte", "pack_qkv", False),
    ("gte", "rope_parameters", {"rope_type": "ntk", "rope_theta": 10.0, "factor": 2.0}),
    ("gte", "rope_parameters", {"rope_type": "default", "rope_theta": 10.0, "partial_rotary_factor": 0.5}),
    ("mpnet", "max_position_embeddings", 2**31 - 1),
    ("electra", "summary_type", "attn"),
    ("electra", "summary_activation", "mish"),
    ("electra", "summary_proj_to_labels", True),
]


@pytest.mark.parametrize(("family", "key", "value"), REFUSED)
def test_unsupported_options_are_named(family: str, key: str, value: Any) -> None:
    config = {"model_type": family, **SIZES, **MODELS[family][1]}
    FAMILIES[family].read_config(config)
    named = "num_attention_heads: .*hidden_size" if key == "hidden_size" else key
    with pytest.raises(ConfigError, match=named):
        FAMILIES[family].read_config({**config, key: value})


@pytest.mark.parametrize("family", MODELS)
def test_any_value_of_any_option(family: str) -> None:
    """Any value is accepted, or rejected in one short line that names the option."""
    theirs = getattr(transformers, f"{MODELS[family][0]}Config")()
    base = {"model_type": family, **SIZES, **MODELS[family][1]}
    read: Any = FAMILIES[family].read_config
    keys = {*theirs.to_dict(), *base, "layer_types", "global_rope_theta", "rope_scaling", "head_dim", "n_embd"}
    refused = [(key, text) for key in sorted(keys) for value in ODD_VALUES if (text := refusal(read, base, key, value))]
    assert len(refused) > 60
    for key, text in refused:
        assert key in text or (key in ("hidden_size", "num_hidden_layers") and family in text.lower())
        assert len(text) < 500
        assert text.isprintable()


OWN_DEFAULTS = (
    "embedding_size inner_group_num num_hidden_groups intermediate_size layer_norm_eps norm_eps norm_bias "
    "attention_bias mlp_bias local_attention layer_types classifier_pooling classifier_bias head_dim type_vocab_size"
)


@pytest.mark.parametrize("family", MODELS)
def test_defaults_of_a_family(family: str, caplog: pytest.LogCaptureFixture) -> None:
    """They are transformers', and a file with all of transformers' options gives no warning."""
    caplog.set_level(logging.WARNING, "fastattn")
    theirs = getattr(transformers, f"{MODELS[family][0]}Config")()
    read: Any = FAMILIES[family].read_config
    ours = read({"model_type": family})
    for key in OWN_DEFAULTS.split():
        expected = getattr(theirs, key, None)
        if key == "type_vocab_size" and expected == 0:  # there are no token types
            assert ours.type_vocab_size is None
        elif hasattr(ours, key) and expected is not None:
            assert getattr(ours, key) == (tuple(expected) if isinstance(expected, list) else expected), key
    assert read({**json.loads(theirs.to_json_string(use_diff=False)), "architectures": None}) == ours
    assert not caplog.records


def test_older_options_of_modernbert() -> None:
    """The names on the hub give the same as the current ones."""
    base: dict[str, Any] = {"model_type": "modernbert", "num_hidden_layers": 5}
    older = {"global_attn_every_n_layers": 2, "global_rope_theta": 300.0, "local_rope_theta": 200.0}
    full, local = "full_attention", "sliding_attention"
    ropes = {full: {"rope_theta": 300.0}, local: {"rope_theta": 200.0}}
    current = {"layer_types": [full, local, full, local, full], "rope_parameters": ropes}
    read: Any = FAMILIES["modernbert"].read_config
    assert read({**base, **older}) == read({**base, **current}) != read(base)


def test_weights_that_contradict_the_config(tmp_path: Path) -> None:
    def traced(family: str, name: str, array: NDArray[np.float32]) -> Any:
        checkpoint = open_checkpoint(saved(family, tmp_path / family))
        return build(checkpoint.config, {**checkpoint.tensors, **array_sources({name: array})}, "encoder")

    with pytest.raises(ConfigError, match=r"final_norm\.bias: expected no such tensor with this config.json"):
        traced("modernbert", "final_norm.bias", np.ones(72, np.float32))
    bias = "encoder.relative_attention_bias.weight"
    with pytest.raises(ConfigError, match=rf"{bias}: expected shape \[32, 3\] from config.json, got \[32, 4\]"):
        traced("mpnet", bias, np.ones((32, 4), np.float32))


def test_modernbert_without_a_local_theta_uses_the_global_one() -> None:
    """null has this meaning in transformers 4; transformers 5 cannot read it."""
    sizes = {"model_type": "modernbert", **SIZES, **MODELS["modernbert"][1], "global_rope_theta": 5000.0}
    read: Any = FAMILIES["modernbert"].read_config
    thetas = (None, 5000.0, 10000.0)
    ropes = [read({**sizes, "local_rope_theta": theta}).ropes["sliding_attention"] for theta in thetas]
    assert ropes[0] == ropes[1] != ropes[2]
