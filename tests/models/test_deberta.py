"""DeBERTa-v2: buckets of positions, heads, formats, checkpoints and options. test_families.py compares the encoder.

The tables of positions are float32 in every executor, so float64 results are compared with the bound of float32, except
in `test_exact_tables`.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fastattn
from fastattn.checkpoint import open_checkpoint
from fastattn.checkpoint.source import read_tensor
from fastattn.errors import ConfigError, ContextLengthError
from fastattn.models.deberta_v2 import LAYOUT, buckets_of, columns_of, computed, read_config
from fastattn.models.names import resolve_names
from tests import tolerances
from tests.models.test_families import DEBERTA
from tests.reference.bounds import assert_close

pytest.importorskip("torch")
pytest.importorskip("transformers")
import torch
from safetensors.numpy import load_file, save_file
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from tests.reference import hf

pytestmark = pytest.mark.torch

# Longer than a block of keys, so that windows and panels differ, and with buckets of several distances.
LONG = {**DEBERTA, "max_position_embeddings": 200, "position_buckets": 32}


def write(name: str, folder: Path, **options: Any) -> Path:
    return hf.save(hf.make(name, **{**DEBERTA, **options}), folder)


def single(x: Any) -> NDArray[np.float32]:
    return np.asarray(x).astype(np.float32)


def refused(folder: Path, call: Any = fastattn.AutoModel, **options: Any) -> str:
    """Change config.json and return the message of the error."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **options}))
    with pytest.raises(ConfigError) as caught:
        call.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    return str(caught.value)


@pytest.mark.parametrize(
    ("buckets", "most"),
    [(256, 512), (256, 1024), (256, 1680), (32, 128), (48, 512), (320, 640), (10, 300), (5, 7), (2, 12), (3, 9)],
)
def test_buckets(buckets: int, most: int) -> None:
    """As transformers computes them in float32, also beyond the largest relative position."""
    distances = np.arange(2 * most)
    theirs = make_log_bucket_position(torch.tensor(distances), buckets, most).long().numpy()
    assert np.array_equal(buckets_of(distances, buckets, most), np.minimum(theirs, buckets))


@pytest.mark.parametrize("norms", ["none", "layer_norm", "layer_norm | none", "none|Layer_Norm"])
def test_norms_of_relative_positions(norms: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """Every word of norm_rel_ebd counts."""
    theirs = hf.make("DebertaV2Model", **{**LONG, "norm_rel_ebd": norms})
    ids = rng.integers(2, 61, (1, 70))
    expected = hf.call(theirs, ids)
    scale = max(float(np.abs(hf.array(state)).max()) for state in expected.hidden_states)
    with fastattn.AutoModel.from_pretrained(hf.save(theirs, tmp_path)) as model:
        reference = hf.array(expected.last_hidden_state)
        assert_close(model(ids).last_hidden_state, reference, model.traced, longest=70, scale=scale)


@pytest.mark.parametrize(
    ("options", "unused"),
    [
        ({}, None),
        ({"norm_rel_ebd": "none"}, "encoder.LayerNorm.weight"),
        ({"share_att_key": True}, "encoder.layer.0.attention.self.pos_key_proj.bias"),
        ({"pos_att_type": ["p2c"]}, "encoder.layer.0.attention.self.pos_key_proj.bias"),
        ({"relative_attention": False}, "encoder.LayerNorm"),
    ],
    ids=str,
)
def test_tensors_that_the_config_does_not_use_are_logged(
    options: dict[str, Any], unused: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = {**LONG, "share_att_key": False, "norm_rel_ebd": "layer_norm", "pos_att_type": ["c2p", "p2c"]}
    path = hf.save(hf.make("DebertaV2Model", **config), tmp_path)
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **options}))
    with caplog.at_level(logging.WARNING, "fastattn"):
        fastattn.AutoModel.from_pretrained(path)
    assert (unused in caplog.text and "does not use the tensors" in caplog.text) if unused else not caplog.records


def test_columns_of_the_published_configs() -> None:
    """All distances up to 128 have a column of their own, and eight panels have all columns."""
    published = {
        "relative_attention": True,
        "position_buckets": 256,
        "pos_att_type": "p2c|c2p",
        "max_position_embeddings": 512,
    }
    columns = columns_of(read_config({"vocab_size": 50, **published}))
    assert columns.n_columns == 512
    assert sorted(columns.indices.tolist()) == [-1, *range(1, 512)]
    assert columns.index[511 - 128 : 511 + 129] == tuple(range(256 + 128, 256 - 129, -1))


@pytest.mark.parametrize(
    "options", [{}, {"position_buckets": -1}, {"share_att_key": False}, {"conv_kernel_size": 3}], ids=str
)
def test_long_texts(options: dict[str, Any], tmp_path: Path, device: str, rng: np.random.Generator) -> None:
    """In a ragged batch, padded for transformers."""
    theirs = hf.make("DebertaV2Model", **{**LONG, **options})
    lengths = (200, 1, 65, 130)
    ids = rng.integers(2, 61, (4, 200))
    mask = (np.arange(200) < np.array(lengths)[:, None]).astype(np.int64)
    expected = hf.call(theirs, ids, attention_mask=mask)
    scale = max(float(np.abs(hf.array(state)).max()) for state in expected.hidden_states)
    with fastattn.AutoModel.from_pretrained(hf.save(theirs, tmp_path), device=device) as model:
        found = model([row[:n].tolist() for row, n in zip(ids, lengths, strict=True)]).last_hidden_state
        padded = model(ids, attention_mask=mask).last_hidden_state
        for i, n in enumerate(lengths):
            reference = hf.array(expected.last_hidden_state)[i, :n]
            assert_close(single(found[i]), reference, model.traced, longest=200, scale=scale)
            assert_close(single(padded[i, :n]), reference, model.traced, longest=200, scale=scale)
        with pytest.raises(ContextLengthError, match="200"):
            model([list(range(2, 61)) * 4])


@pytest.mark.parametrize("options", [{}, {"position_buckets": -1}, {"share_att_key": False}], ids=str)
def test_exact_tables(options: dict[str, Any], tmp_path: Path, device: str, rng: np.random.Generator) -> None:
    """With numbers of a few bits, the tables and the scale 1 / 6 round nothing, so float64 has the bound of float64."""
    sizes = {"hidden_size": 36, "norm_rel_ebd": "none"}
    theirs = hf.make("DebertaV2Model", **{**LONG, **sizes, **options})
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "rel_embeddings" in name or name.endswith(("_proj.weight", "_proj.bias")):
                parameter.copy_((parameter * 16).round() / 16)
    ids = rng.integers(2, 61, (1, 150))
    expected = hf.call(theirs, ids)
    scale = max(float(np.abs(hf.array(state)).max()) for state in expected.hidden_states)
    with fastattn.AutoModel.from_pretrained(hf.save(theirs, tmp_path), device=device) as model:
        found = model(ids, output_attentions=True)
        pairs = [(found.last_hidden_state, expected.last_hidden_state)]
        for ours, reference in [*pairs, *zip(found.attentions, expected.attentions, strict=True)]:
            assert_close(ours, hf.array(reference), model.traced, longest=150, scale=scale)


@pytest.mark.parametrize("share", [True, False])
def test_tables(share: bool, tmp_path: Path) -> None:
    """They are within the bound of a layer norm and a linear of the float64 formula; unused columns are 0."""
    theirs = hf.make("DebertaV2Model", **{**LONG, "share_att_key": share})
    checkpoint = open_checkpoint(hf.save(theirs, tmp_path))
    config = read_config(checkpoint.config)
    sources = computed(config, resolve_names(checkpoint.tensors, LAYOUT))
    columns, rows = columns_of(config), theirs.encoder.get_rel_embedding()
    eps = tolerances.gamma(2 * tolerances.tree_sum_roundings(24) + 10)
    for i, layer in enumerate(theirs.encoder.layer):
        own = ("pos_key_proj", "pos_query_proj") if not share else ("key_proj", "query_proj")
        for kind, name in zip(("position_keys", "position_queries"), own, strict=True):
            linear = getattr(layer.attention.self, name)
            table = read_tensor(sources[f"encoder.layer.{i}.attention.self.{kind}.weight"])
            table = table.reshape(3, columns.n_columns, 8)
            with torch.no_grad():
                exact = hf.array(linear(rows)).reshape(-1, 3, 8).transpose(1, 0, 2)
                most = hf.array(rows.abs() @ linear.weight.abs().T + linear.bias.abs()).reshape(-1, 3, 8)
            used = columns.indices >= 0
            bound = (tolerances.gamma(24 + 2) + 4 * eps) * most.transpose(1, 0, 2)[:, columns.indices[used]]
            assert (np.abs(table[:, used] - exact[:, columns.indices[used]]) <= bound).all()
            assert not table[:, ~used].any()


HEADS = [
    ("DebertaV2ForMaskedLM", {}),
    ("DebertaV2ForMaskedLM", {"legacy": False}),
    ("DebertaV2ForMaskedLM", {"embedding_size": 10, "hidden_act": "relu"}),
    ("DebertaV2ForMaskedLM", {"tie_word_embeddings": False}),
    ("DebertaV2ForTokenClassification", {"num_labels": 5}),
    ("DebertaV2ForQuestionAnswering", {}),
    ("DebertaV2ForSequenceClassification", {"num_labels": 3}),
]


@pytest.mark.parametrize(("name", "options"), HEADS, ids=str)
def test_heads(name: str, options: dict[str, Any], tmp_path: Path, device: str, rng: np.random.Generator) -> None:
    """Near transformers in a padded batch; each row has the bits of the row alone."""
    theirs = hf.make(name, **{**DEBERTA, **options})
    auto = getattr(fastattn, f"AutoModelFor{name.partition('For')[2]}")
    ids, mask = rng.integers(2, 61, (2, 9)), np.ones((2, 9), np.int64)
    mask[1, 6:] = 0
    expected = hf.call(theirs, ids, attention_mask=mask)
    scale = max(float(np.abs(hf.array(state)).max()) for state in expected.hidden_states)
    with auto.from_pretrained(hf.save(theirs, tmp_path), device=device) as model:
        found = model(ids, attention_mask=mask)
        for key in found:
            reference, ours = hf.array(expected[key]), found[key]
            for row, n in ((0, 9), (1, 6)):
                part = slice(None) if "Sequence" in name else slice(n)
                assert_close(single(ours[row, part]), reference[row, part], model.traced, longest=9, scale=scale)
        if device == "cpu":
            if options.get("tie_word_embeddings", True):  # else transformers counts a second bias, which it never reads
                assert model.num_parameters() == theirs.num_parameters()
            together = model([ids[0].tolist(), ids[1, :6].tolist()])
            for key in found:
                assert np.array_equal(together[key][0], model(ids[0])[key])
                assert np.array_equal(together[key][1], model(ids[1, :6])[key])


def test_multiple_choice(tmp_path: Path, device: str, rng: np.random.Generator) -> None:
    theirs = hf.make("DebertaV2ForMultipleChoice", **DEBERTA)
    ids = rng.integers(2, 61, (2, 3, 7))
    expected = hf.call(theirs, ids)
    scale = max(float(np.abs(hf.array(state)).max()) for state in expected.hidden_states)
    with fastattn.AutoModelForMultipleChoice.from_pretrained(hf.save(theirs, tmp_path), device=device) as model:
        assert_close(single(model(ids).logits), hf.array(expected.logits), model.traced, longest=7, scale=scale)


@pytest.mark.parametrize("kernel", [0, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_same_bits(dtype: str, kernel: int, tmp_path: Path, rng: np.random.Generator) -> None:
    """Alone and in a batch, with any number of threads, and from a folder that `quantize` wrote."""
    options = {**LONG, "hidden_size": 96, "vocab_size": 131, "conv_kernel_size": kernel}
    folder = write("DebertaV2Model", tmp_path / "a", **options)
    batch = [rng.integers(2, 131, n).tolist() for n in (200, 1, 64, 17, 130, 65)]
    with fastattn.AutoModel.from_pretrained(folder, dtype=dtype, threads=1) as model:
        alone = [np.asarray(model(ids).last_hidden_state) for ids in batch]
    packed = fastattn.quantize(folder, tmp_path / "b", dtype=dtype) if dtype != "float32" else folder
    for threads, place, options in ((2, folder, {"dtype": dtype}), (3, packed, {})):
        with fastattn.AutoModel.from_pretrained(place, threads=threads, **options) as model:
            for found, expected in zip(model(batch).last_hidden_state, alone, strict=True):
                assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("conv_kernel_size", 2),
        ("conv_kernel_size", -1),
        ("attention_head_size", 4),
        ("pooler_hidden_size", 12),
        ("pooler_hidden_act", "mish"),
        ("pos_att_type", "p2p|c2p"),
        ("pos_att_type", ["p2p"]),
        ("pos_att_type", 3),
        ("norm_rel_ebd", "batch_norm"),
        ("position_buckets", 1),
        ("position_buckets", 46),
        ("position_buckets", "8"),
        ("position_buckets", 10**9),
        ("max_position_embeddings", 2**20 + 1),
        ("max_relative_positions", -2),
        ("relative_attention", "yes"),
        ("position_biased_input", 1),
        ("share_att_key", "true"),
        ("type_vocab_size", -1),
        ("embedding_size", 0),
        ("legacy", 0),
        ("layer_norm_eps", 0),
        ("num_attention_heads", 5),
        ("hidden_act", "mish"),
        ("position_embedding_type", "relative_key"),
    ],
)
def test_unsupported_options_are_named(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key):
        read_config({**DEBERTA, "model_type": "deberta-v2", key: value})


def test_a_convolution_in_groups_is_refused() -> None:
    with pytest.raises(ConfigError, match="conv_groups = 2 is unsupported; supported: 1"):
        read_config({**DEBERTA, "conv_kernel_size": 3, "conv_groups": 2})
    read_config({**DEBERTA, "conv_groups": 2})  # there is no convolution


def test_the_convolution_is_checked_and_counted(tmp_path: Path) -> None:
    folder = write("DebertaV2Model", tmp_path, conv_kernel_size=3)
    tensors = load_file(folder / "model.safetensors")
    with fastattn.AutoModel.from_pretrained(folder) as model:
        assert model.num_parameters() == sum(tensor.size for tensor in tensors.values())
    name = next(name for name in tensors if name.endswith("encoder.conv.conv.weight"))
    save_file({**tensors, name: tensors[name][..., :1]}, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=r"conv\.conv\.weight: expected shape \[24, 24, 3\] from config.json, got"):
        fastattn.AutoModel.from_pretrained(folder)


def test_the_other_head_for_masked_tokens_needs_full_embeddings() -> None:
    with pytest.raises(ConfigError, match="embedding_size = 10 is unsupported"):
        read_config({**DEBERTA, "legacy": False, "embedding_size": 10})


def test_known_options_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    published = {"conv_act": "gelu", "attention_head_size": 8, "pooler_dropout": 0, "cls_dropout": None}
    with caplog.at_level(logging.WARNING, "fastattn"):
        read_config({**DEBERTA, **published, "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02})
        assert not caplog.records
        read_config({**DEBERTA, "rel_pos_scale": 2})
    assert "rel_pos_scale = 2" in caplog.text


@pytest.mark.parametrize(
    ("tensor", "options"),
    [
        ("encoder.rel_embeddings.weight", {}),
        ("encoder.LayerNorm.bias", {}),
        ("encoder.layer.1.attention.self.key_proj.weight", {}),
        ("encoder.layer.1.attention.self.pos_key_proj.weight", {"share_att_key": False}),
        ("encoder.layer.0.attention.self.pos_query_proj.bias", {"share_att_key": False}),
    ],
)
def test_tensors_of_positions_are_checked(tensor: str, options: dict[str, Any], tmp_path: Path) -> None:
    """The model does not read them itself; missing ones and wrong shapes are named before anything is loaded."""
    file = write("DebertaV2Model", tmp_path, **options) / "model.safetensors"
    tensors = load_file(file)
    whole = tensors.pop(tensor)
    save_file(tensors, file)
    with pytest.raises(ConfigError, match=f"{tensor}: expected this tensor in the checkpoint"):
        fastattn.AutoModel.from_pretrained(tmp_path)
    save_file({**tensors, tensor: np.concatenate([whole, whole])}, file)
    with pytest.raises(ConfigError, match=rf"{tensor}: expected shape \[.*\] from config\.json, got \["):
        fastattn.AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["position_columns", "layer.1.attention.self.position_keys"])
def test_a_checkpoint_with_computed_tables_is_refused(name: str, tmp_path: Path) -> None:
    file = write("DebertaV2Model", tmp_path) / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, f"encoder.{name}.weight": np.zeros((1, 9), np.float32)}, file)
    with pytest.raises(ConfigError, match=r"expected no such tensor with this config\.json"):
        fastattn.AutoModel.from_pretrained(tmp_path)


def test_the_head_must_be_the_one_of_legacy(tmp_path: Path) -> None:
    """The published v3 checkpoints have the other head, and a config.json without legacy."""
    auto = fastattn.AutoModelForMaskedLM
    other = write("DebertaV2ForMaskedLM", tmp_path / "a", legacy=False)
    assert "legacy: expected false for the head lm_predictions" in refused(other, auto, legacy=True)
    first = write("DebertaV2ForMaskedLM", tmp_path / "b")
    assert "legacy: expected true for the head cls.predictions" in refused(first, auto, legacy=False)
    bare = write("DebertaV2Model", tmp_path / "c")
    assert "no masked-language-model head" in refused(bare, auto)


def test_token_types_without_a_table_are_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """transformers ignores them, and its tokenizer gives them to pairs of texts."""
    with fastattn.AutoModel.from_pretrained(write("DebertaV2Model", tmp_path)) as model:
        plain = model([[5, 6, 7]]).last_hidden_state[0]
        typed = model([[5, 6, 7]], token_type_ids=[[0, 1, 1]]).last_hidden_state[0]
        assert np.array_equal(plain, typed)
    assert "this model has no token types" in caplog.text
