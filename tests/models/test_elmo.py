"""ElmoEmbedder: near the published equations in torch, the same bits however called, and typed errors."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn as fa
from fastattn.errors import ConfigError, DTypeError, InputError, ModelFormatError, ModelNotFoundError
from tests.reference.elmo import OPTIONS, TorchElmo, write_elmo

h5py = pytest.importorskip("h5py")
SENTENCES = [
    ["The", "cat", "sat", "."],
    [],
    ["déjà-vu", "a", "incomprehensibilities", "猫猫猫猫猫"],
    ["The"],
    ["0123456789", "012345678", "01234567", "", "cat"],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_elmo(tmp_path_factory.mktemp("elmo"))


def changed(part: str, **change: Any) -> dict[str, Any]:
    options = copy.deepcopy(OPTIONS)
    options[part].update(change)
    return options


@pytest.mark.torch
@pytest.mark.parametrize(
    "options",
    [
        OPTIONS,
        changed("lstm", use_skip_connections=False, cell_clip=None, proj_clip=None, n_layers=1),
        changed("char_cnn", activation="tanh", n_highway=0, max_characters_per_token=50),
    ],
)
def test_parity_with_the_equations(tmp_path: Path, options: dict[str, Any]) -> None:
    pytest.importorskip("torch")
    theirs = TorchElmo(write_elmo(tmp_path, options))
    specification = fa.ElmoEmbedder(tmp_path, device="numpy").embed_batch(SENTENCES)
    found = fa.ElmoEmbedder(tmp_path / "options.json", tmp_path / "weights.hdf5").embed_batch(SENTENCES)
    layers, width = options["lstm"]["n_layers"] + 1, 2 * options["lstm"]["projection_dim"]
    for words, exact, ours in zip(SENTENCES, specification, found, strict=True):
        assert ours.shape == exact.shape == (layers, len(words), width)
        assert ours.dtype == np.float32
        if words:
            expected = theirs.sentence(words)
            scale = np.abs(expected).max()
            assert np.abs(exact - expected).max() <= 2.0**-22 * scale  # only the results are rounded to float32
            # sums of up to 88 terms in about ten ops in a row, and recurrences of up to seven steps
            assert np.abs(ours - expected).max() <= 88 * 17 * 2.0**-24 * scale


@pytest.mark.torch
def test_clips_are_reached(folder: Path) -> None:
    pytest.importorskip("torch")
    layers = fa.ElmoEmbedder(folder).embed_sentence(SENTENCES[0])
    clip = OPTIONS["lstm"]["proj_clip"]
    assert np.abs(layers[1]).max() == np.float32(clip)
    assert np.abs(layers[2]).max() > clip  # with the skip connection


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_same_bits(folder: Path, dtype: str) -> None:
    """Alone, in a batch in any order, in small batches, on any number of threads."""
    expected = [fa.ElmoEmbedder(folder, dtype=dtype, threads=1).embed_sentence(words) for words in SENTENCES]
    for threads in (1, 2, 3):
        with fa.ElmoEmbedder(folder, dtype=dtype, threads=threads) as embedder:
            for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0, 0]):
                sentences = [SENTENCES[i] for i in order]
                for found in (embedder.embed_batch(sentences), list(embedder.embed_sentences(sentences, 2))):
                    assert [layers.tobytes() for layers in found] == [expected[i].tobytes() for i in order]


def test_many_different_words(folder: Path) -> None:
    words = [f"w{i}" for i in range(300)]
    embedder = fa.ElmoEmbedder(folder)
    found = embedder.embed_sentence(words)
    assert found[0, 299].tobytes() == embedder.embed_sentence(words[299:])[0, 0].tobytes()


@pytest.mark.parametrize("do_layer_norm", [False, True])
def test_scalar_mix(folder: Path, do_layer_norm: bool) -> None:
    embedder = fa.ElmoEmbedder(folder)
    layers = embedder.embed_sentence(SENTENCES[0])
    scalars = [0.2, -1.0, 2.0]
    found = embedder.scalar_mix(layers, scalars, 1.5, do_layer_norm)
    weights = np.exp(scalars) / np.exp(scalars).sum()
    expected = np.zeros(layers.shape[1:])
    for weight, layer in zip(weights, layers.astype(np.float64), strict=True):
        normed = (layer - layer.mean()) / np.sqrt(((layer - layer.mean()) ** 2).mean() + 1e-12)
        expected += 1.5 * weight * (normed if do_layer_norm else layer)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= 2.0**-22 * np.abs(expected).max()


def test_no_sentences(folder: Path) -> None:
    embedder = fa.ElmoEmbedder(folder)
    assert embedder.embed_batch([]) == []
    assert embedder.embed_sentence([]).shape == (3, 0, 136)


@pytest.mark.parametrize("batch", ["The cat", ["The cat"], [[1]], [None], [[b"cat"]]])
def test_wrong_sentences(folder: Path, batch: Any) -> None:
    with pytest.raises(DTypeError, match=r"batch\[0\]"):
        fa.ElmoEmbedder(folder).embed_batch(batch)


def test_wrong_mixes(folder: Path) -> None:
    embedder = fa.ElmoEmbedder(folder)
    layers = embedder.embed_sentence(["cat"])
    for arguments in ((layers, [1.0]), (layers[:2], [1.0, 1.0, 1.0]), (layers[0], [1.0, 1.0, 1.0])):
        with pytest.raises(InputError):
            embedder.scalar_mix(*arguments)
    with pytest.raises(DTypeError):
        embedder.scalar_mix(layers.astype(np.float64), [1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("char_cnn", {"activation": "gelu"}, "activation: expected one of relu, tanh"),
        ("char_cnn", {"filters": [[1, 8, 2]]}, "filters: expected a list of pairs"),
        ("char_cnn", {"filters": []}, "filters: expected a list of pairs"),
        ("char_cnn", {"n_characters": 300}, "n_characters: expected 261 or 262"),
        ("char_cnn", {"max_characters_per_token": 4}, "max_characters_per_token: expected at least the width"),
        ("char_cnn", {"embedding": None}, "dim: expected an integer"),
        ("lstm", {"dim": 0}, "dim: expected an integer"),
        ("lstm", {"proj_clip": -1}, "proj_clip: expected a number above 0"),
        ("lstm", {"use_skip_connections": 1}, "use_skip_connections: expected true or false"),
    ],
)
def test_wrong_options(folder: Path, tmp_path: Path, part: str, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "options.json"
    path.write_text(json.dumps(changed(part, **change)))
    with pytest.raises(ConfigError, match=message):
        fa.ElmoEmbedder(path, folder / "weights.hdf5")
    path.write_text(json.dumps({**OPTIONS, "bidirectional": False}))
    with pytest.raises(ConfigError, match="bidirectional: expected true"):
        fa.ElmoEmbedder(path, folder / "weights.hdf5")


def test_wrong_files(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"options\.json"):
        fa.ElmoEmbedder(tmp_path)
    with pytest.raises(InputError, match="weight_file: expected the path"):
        fa.ElmoEmbedder(folder / "options.json")
    with pytest.raises(ModelNotFoundError, match="HDF5"):
        fa.ElmoEmbedder(folder / "options.json", tmp_path / "none.hdf5")
    broken = tmp_path / "weights.hdf5"
    broken.write_bytes((folder / "weights.hdf5").read_bytes()[:3000])
    with pytest.raises(ModelFormatError):
        fa.ElmoEmbedder(folder / "options.json", broken)
    with pytest.raises(InputError, match="kv_dtype: expected None"):
        fa.ElmoEmbedder(folder, kv_dtype="int8")


def _drop(file: Any) -> None:
    del file["CNN_proj/b_proj"]


def _reshape(file: Any) -> None:
    del file["CNN_proj/b_proj"]
    file["CNN_proj/b_proj"] = np.zeros(3, np.float32)


def _integers(file: Any) -> None:
    del file["CNN_proj/b_proj"]
    file["CNN_proj/b_proj"] = np.zeros(68, np.int32)


def _link(file: Any) -> None:
    del file["CNN_proj"]
    file["CNN_proj"] = h5py.ExternalLink("other.hdf5", "/CNN_proj")


def _soft(file: Any) -> None:
    del file["char_embed"]
    file["char_embed"] = h5py.SoftLink("/char_embed")


def _virtual(file: Any) -> None:
    del file["CNN_proj/b_proj"]
    layout = h5py.VirtualLayout(shape=(68,), dtype=np.float32)
    layout[:] = h5py.VirtualSource("other.hdf5", "x", shape=(68,))
    file["CNN_proj"].create_virtual_dataset("b_proj", layout)


def _external(file: Any) -> None:
    del file["CNN_proj/b_proj"]
    file["CNN_proj"].create_dataset("b_proj", (68,), np.float32, external=[("/etc/hostname", 0, 272)])


@pytest.mark.parametrize("change", [_drop, _reshape, _integers, _link, _soft, _virtual, _external])
def test_wrong_weights(tmp_path: Path, change: Any) -> None:
    """A dataset that is missing, has another shape or type, or is outside of the file."""
    write_elmo(tmp_path)
    with h5py.File(tmp_path / "weights.hdf5", "a") as file:
        change(file)
    with pytest.raises(ModelFormatError, match="expected a dataset of floats"):
        fa.ElmoEmbedder(tmp_path)
