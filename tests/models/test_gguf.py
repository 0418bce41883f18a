"""Models of GGUF files: the same bits as safetensors with the same numbers."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fastattn as fa
from fastattn.checkpoint import open_checkpoint, read_tensor
from fastattn.checkpoint.gguf.blocks import BLOCK_TYPES, decode_blocks
from fastattn.checkpoint.source import ComputedSource, read_rows
from tests.reference.checkpoints import BERT, GPT2, write, write_bert, write_gpt2
from tests.reference.gguf_files import (
    QUANTIZED,
    TYPES,
    Raw,
    Stored,
    bert_metadata,
    bert_stored,
    gguf_bytes,
    gpt2_metadata,
    gpt2_stored,
    random_blocks,
    random_tensor,
)

IDS = [[1, 2, 3, 4], [5]]
_EPSILON = "gpt2.attention.layer_norm_epsilon"
WIDE = {**GPT2, "n_embd": 256, "n_head": 4, "n_layer": 1}


def write_gguf(path: Path, metadata: dict[str, Any], tensors: dict[str, Stored], **options: Any) -> Path:
    path.write_bytes(gguf_bytes(metadata, tensors, **options))
    return path


def logits(path: Path, **options: Any) -> list[NDArray[Any]]:
    with fa.AutoModelForCausalLM.from_pretrained(path, **options) as model:
        return [np.asarray(row) for row in model(IDS).logits]


def assert_same(left: list[NDArray[Any]], right: list[NDArray[Any]]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


def block_gpt2(kind: str, config: dict[str, Any] = WIDE) -> dict[str, Stored]:
    """Return a GPT-2 with all matrices in blocks, except the positions."""
    rng, tensors = np.random.default_rng(3), gpt2_stored(config)
    for name, tensor in tensors.items():
        if len(tensor.shape) == 2 and name != "position_embd.weight":
            tensors[name] = random_tensor(rng, kind, (tensor.shape[0], tensor.shape[1]))
    return tensors


@pytest.mark.parametrize("kind", QUANTIZED)
def test_blocks_decode_to_the_bits_of_the_gguf_package(kind: str, rng: np.random.Generator) -> None:
    package = pytest.importorskip("gguf")
    blocks = random_blocks(rng, kind, 500)
    found = decode_blocks(BLOCK_TYPES[TYPES[kind]], blocks)
    expected = package.dequantize(blocks, package.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_sizes_of_all_types_are_those_of_the_gguf_package() -> None:
    package = pytest.importorskip("gguf")
    for number, kind in BLOCK_TYPES.items():
        assert package.GGMLQuantizationType(number).name == kind.name
        assert package.GGML_QUANT_SIZES[package.GGMLQuantizationType(number)] == (kind.n_values, kind.n_bytes)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [1, 32, 4096])
def test_gpt2_gives_the_bits_of_safetensors(
    tmp_path: Path, device: str, version: int, alignment: int, caplog: pytest.LogCaptureFixture
) -> None:
    metadata = {**gpt2_metadata(), "general.alignment": alignment}
    path = write_gguf(tmp_path / "m.gguf", metadata, gpt2_stored(), version=version, alignment=alignment)
    found = logits(path, device=device)
    assert caplog.text == ""
    assert_same(found, logits(write_gpt2(tmp_path / "folder"), device=device))


def test_bert_gives_the_bits_of_safetensors(tmp_path: Path, device: str, caplog: pytest.LogCaptureFixture) -> None:
    path, folder = write_gguf(tmp_path / "m.gguf", bert_metadata(), bert_stored()), write_bert(tmp_path / "folder")
    with (
        fa.AutoModelForSequenceClassification.from_pretrained(path, device=device) as found,
        fa.AutoModelForSequenceClassification.from_pretrained(folder, device=device) as expected,
    ):
        assert dict(found.config.id2label) == {0: "a", 1: "b", 2: "c"}
        np.testing.assert_array_equal(found(IDS).logits, expected(IDS).logits)
    assert caplog.text == ""


def test_bert_without_a_head_is_an_encoder(tmp_path: Path) -> None:
    metadata, tensors = bert_metadata(), bert_stored()
    del metadata["bert.classifier.output_labels"]
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("cls")}
    with (
        fa.AutoModel.from_pretrained(write_gguf(tmp_path / "m.gguf", metadata, tensors)) as found,
        fa.AutoModel.from_pretrained(write_bert(tmp_path / "folder")) as expected,
    ):
        for a, b in zip(found(IDS).last_hidden_state, expected(IDS).last_hidden_state, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", ["F16", "BF16", "F64"])
def test_other_floats_give_the_bits_of_their_values(tmp_path: Path, kind: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", gpt2_metadata(), gpt2_stored(kind=kind))
    with open_checkpoint(path) as checkpoint:
        values = {name: read_tensor(source) for name, source in checkpoint.tensors.items()}
    assert_same(logits(path), logits(write(tmp_path / "folder", GPT2, values)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "Q6_K"])
def test_blocks_give_the_bits_of_their_values(tmp_path: Path, kind: str, dtype: str) -> None:
    package = pytest.importorskip("gguf")
    stored = block_gpt2(kind)
    path = write_gguf(tmp_path / "m.gguf", gpt2_metadata(WIDE), stored)
    values: dict[str, NDArray[Any]] = {}
    with open_checkpoint(path) as checkpoint:
        values = {name: read_tensor(source) for name, source in checkpoint.tensors.items()}
    reader = package.GGUFReader(path)
    for tensor in reader.tensors:  # the values are those of the package
        expected = package.dequantize(tensor.data, tensor.tensor_type)
        there = {"token_embd.weight": "wte.weight", "blk.0.ffn_down.weight": "h.0.mlp.c_proj.weight"}.get(tensor.name)
        if there is not None:
            np.testing.assert_array_equal(values[there], expected if there == "wte.weight" else expected.T)
    assert_same(logits(path, dtype=dtype), logits(write(tmp_path / "folder", WIDE, values), dtype=dtype))


def test_rows_are_decoded_in_slices(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", gpt2_metadata(WIDE), block_gpt2("Q5_K"))
    with open_checkpoint(path) as checkpoint:
        for name in ("wte.weight", "h.0.attn.c_attn.weight"):
            source = checkpoint.tensors[name]
            assert isinstance(source, ComputedSource)
            whole = read_tensor(source)
            for begin, end in ((0, 1), (3, 9), (source.shape[0] - 1, source.shape[0])):
                np.testing.assert_array_equal(read_rows(source, begin, end), whole[begin:end])


def test_an_output_matrix_that_is_a_copy_is_tied(tmp_path: Path) -> None:
    stored = gpt2_stored()
    path = write_gguf(tmp_path / "m.gguf", gpt2_metadata(), {**stored, "output.weight": stored["token_embd.weight"]})
    with open_checkpoint(path) as checkpoint:
        assert "lm_head.weight" not in checkpoint.tensors
        assert checkpoint.config["tie_word_embeddings"] is True


def test_an_own_output_matrix_is_used(tmp_path: Path) -> None:
    stored = gpt2_stored()
    other = gpt2_stored(seed=7)["token_embd.weight"]
    path = write_gguf(tmp_path / "m.gguf", gpt2_metadata(), {**stored, "output.weight": other})
    tensors = {**{"lm_head.weight": np.frombuffer(other.data, np.float32).reshape(other.shape)}}
    with open_checkpoint(write_gpt2(tmp_path / "a")) as checkpoint:
        tensors |= {name: read_tensor(source) for name, source in checkpoint.tensors.items()}
    folder = write(tmp_path / "b", {**GPT2, "tie_word_embeddings": False}, tensors)
    assert_same(logits(path), logits(folder))
    assert not np.array_equal(logits(path)[0], logits(tmp_path / "a")[0])


def test_a_folder_with_one_file_and_the_keyword_gguf_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = logits(write_gguf(tmp_path / "m.gguf", gpt2_metadata(), gpt2_stored()))
    assert_same(logits(tmp_path), expected)
    assert_same(logits(tmp_path, gguf_file="m.gguf"), expected)
    assert_same(logits(tmp_path.parent, subfolder=tmp_path.name, gguf_file="m.gguf"), expected)
    assert caplog.text == ""
    (tmp_path / "generation_config.json").write_text('{"max_new_tokens": 1}')
    assert_same(logits(tmp_path), expected)
    assert "not read, because the GGUF file has its own settings: generation_config.json" in caplog.text
    write_gguf(tmp_path / "n.gguf", gpt2_metadata(), gpt2_stored(seed=1))
    with pytest.raises(fa.InputError, match=r"gguf_file: expected one of 'm\.gguf', 'n\.gguf', got None"):
        logits(tmp_path)
    assert_same(logits(tmp_path, gguf_file="m.gguf"), expected)
    write_gpt2(tmp_path, seed=5)  # safetensors take precedence
    assert_same(logits(tmp_path), logits(write_gpt2(tmp_path / "other", seed=5)))
    assert_same(logits(tmp_path, gguf_file="m.gguf"), expected)


def test_wrong_places(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", gpt2_metadata(), gpt2_stored())
    with pytest.raises(fa.InputError, match=r"gguf_file: expected None with the path of a GGUF file, got 'm\.gguf'"):
        logits(path, gguf_file="m.gguf")
    with pytest.raises(fa.ModelNotFoundError, match=r"n\.gguf: expected a GGUF file, found none"):
        logits(tmp_path, gguf_file="n.gguf")
    with pytest.raises(fa.InputError, match="gguf_file: expected a file inside the model's folder"):
        logits(tmp_path, gguf_file="../m.gguf")
    with pytest.raises(fa.ModelNotFoundError, match="expected the folder of a model, got a file"):
        logits(path.rename(tmp_path / "m.bin"))
    with pytest.raises(fa.ModelNotFoundError, match="got a file; load GGUF files with AutoModel"):
        fa.SentenceTransformer((tmp_path / "m.bin").rename(path))


def test_pickles_and_copies(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", gpt2_metadata(), gpt2_stored())
    with fa.AutoModelForCausalLM.from_pretrained(path, dtype="int8") as model:
        data, expected = pickle.dumps(model), np.asarray(model([1, 2]).logits)
        assert model.path == path
    with pickle.loads(data) as again:
        np.testing.assert_array_equal(again([1, 2]).logits, expected)
    write_gguf(path, gpt2_metadata(), gpt2_stored(seed=1))
    with pytest.raises(fa.ModelFormatError, match=r"m\.gguf: expected the file as it was"):
        pickle.loads(data)


def test_digests(tmp_path: Path) -> None:
    import hashlib

    path = write_gguf(tmp_path / "m.gguf", gpt2_metadata(), gpt2_stored())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "SHA256SUMS").write_text(f"{digest}  m.gguf\n")
    logits(path, verify="sha256", check_finite=True)
    with pytest.raises(fa.ModelFormatError, match="expected SHA-256 0000"):
        logits(path, verify={"m.gguf": "0" * 64})


def test_quantize_writes_a_folder_with_the_same_bits(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", gpt2_metadata(WIDE), block_gpt2("Q4_K"))
    fa.quantize(path, tmp_path / "int8", dtype="int8")
    assert_same(logits(tmp_path / "int8"), logits(path, dtype="int8"))


def test_reports(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", gpt2_metadata(WIDE), block_gpt2("Q4_K"))
    found = fa.check_folder(path)
    assert found.problems == ()
    assert found.model is not None
    assert set(found.model.stored_dtypes) == {"F32", "Q4_K"}
    assert sum(found.model.stored_dtypes.values()) < path.stat().st_size
    assert [entry.name for entry in found.files if entry.used] == ["m.gguf"]


def test_a_fitted_classifier_needs_the_original(tmp_path: Path) -> None:
    from fastattn.api.save_classifier import open_original

    path = write_gguf(tmp_path / "m.gguf", bert_metadata(), bert_stored())
    with (
        fa.AutoModel.from_pretrained(path) as encoder,
        pytest.raises(fa.ConfigError, match=r"expected a folder of safetensors, got a GGUF file"),
    ):
        open_original(encoder)


def test_keys_and_tensors_that_may_change_results_are_refused(tmp_path: Path) -> None:
    def error(metadata: dict[str, Any], tensors: dict[str, Stored] | None = None) -> str:
        path = write_gguf(tmp_path / "m.gguf", metadata, gpt2_stored() if tensors is None else tensors)
        with pytest.raises(fa.ConfigError) as caught:
            open_checkpoint(path)
        return str(caught.value).removeprefix(f"{path}: ")

    def loading(metadata: dict[str, Any]) -> str:
        with pytest.raises(fa.ConfigError) as caught:
            logits(write_gguf(tmp_path / "m.gguf", metadata, gpt2_stored()))
        return str(caught.value)

    good = gpt2_metadata()
    assert error({**good, "general.architecture": "rwkv6"}) == (
        "general.architecture: expected one of gpt2, bert, llama, qwen2, qwen3, smollm3, got 'rwkv6'"
    )
    assert error({**good, "gpt2.attention.scale": 0.5}) == (
        "expected only keys that fastattn supports, got 'gpt2.attention.scale'"
    )
    assert error({**good, "gpt2.block_count": 0}) == "gpt2.block_count: expected an integer from 1 to 1000, got 0"
    assert error({**good, "gpt2.embedding_length": "12"}).startswith("gpt2.embedding_length: expected an integer")
    assert error({**good, "gpt2.attention.layer_norm_epsilon": float("nan")}).endswith(
        "expected a finite number, got nan"
    )
    huge = Raw(12, struct.pack("<d", 1e300))
    assert "layer_norm_epsilon: expected a number above 0 and below 1" in loading({**good, _EPSILON: huge})
    assert error({key: value for key, value in good.items() if key != "gpt2.context_length"}).endswith("got none")
    assert error({**good, "general.type": "adapter"}) == "general.type: expected 'model', got 'adapter'"
    assert error({**good, "split.count": 3}) == "split.count: expected 0 or 1, got 3"
    extra = {**gpt2_stored(), "blk.0.attn_q_norm.weight": gpt2_stored()["output_norm.weight"]}
    assert "got 'blk.0.attn_q_norm.weight' (1 unknown)" in error(good, extra)
    beyond = {**gpt2_stored(), "blk.2.ffn_norm.weight": gpt2_stored()["output_norm.weight"]}
    assert "got 'blk.2.ffn_norm.weight' (1 unknown)" in error(good, beyond)


def test_shapes_that_do_not_fit_name_the_file(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", {**gpt2_metadata(WIDE), "gpt2.feed_forward_length": 7}, block_gpt2("Q8_0"))
    with pytest.raises(fa.ConfigError, match=rf"expected shape \[256, 7\] .* in {path}"):
        logits(path)


def test_bert_config(tmp_path: Path) -> None:
    with open_checkpoint(write_gguf(tmp_path / "m.gguf", bert_metadata(), bert_stored())) as checkpoint:
        expected = {key: BERT[key] for key in BERT if key != "architectures"}
        assert {key: checkpoint.config[key] for key in expected} == expected
