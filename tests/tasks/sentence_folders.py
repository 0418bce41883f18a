"""Writes folders of sentence-transformers models without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.reference import checkpoints
from tests.tasks.tokenizers import write_bert

WIDTH = 12
TEXTS = ["good film", "the cat, a dog running!", "", "bad " * 40, "a", "[SEP] Good FILM", "great unknown [MASK] cats"]
MEAN = {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": True}
Tensors = Mapping[str, NDArray[Any]]
# The class, config.json (None: no file) and tensors (None: no file) of a module.
ModuleFiles = tuple[str, "Mapping[str, Any] | None", "Tensors | None"]
POOLING: ModuleFiles = ("Pooling", MEAN, None)


def random(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Return normally distributed random numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def dense(n_in: int, n_out: int, seed: int = 0, **config: Any) -> ModuleFiles:
    """Return a Dense module with random weights."""
    options = {"in_features": n_in, "out_features": n_out, "bias": True, **config}
    tensors: dict[str, NDArray[Any]] = {"linear.weight": random(n_out, n_in, seed=seed)}
    if options["bias"]:
        tensors["linear.bias"] = random(n_out, seed=seed + 1)
    if options.get("use_residual") and n_in != n_out:
        tensors["residual.weight"] = random(n_out, n_in, seed=seed + 2)
    return "Dense", options, tensors


def layer_norm(width: int, seed: int = 0) -> ModuleFiles:
    """Return a LayerNorm module with random weights."""
    return (
        "LayerNorm",
        {"dimension": width},
        {"norm.weight": random(width, seed=seed), "norm.bias": random(width, seed=seed + 1)},
    )


NORMALIZE: ModuleFiles = ("Normalize", None, None)


def write_transformer(folder: Path) -> Path:
    """Write a plain BERT with its tokenizer."""
    write_bert(folder)
    words = len((folder / "vocab.txt").read_text(encoding="utf-8").splitlines())
    return checkpoints.write_bert(folder, vocab_size=words, architectures=["BertModel"], max_position_embeddings=64)


def write_modules(folder: Path, *modules: ModuleFiles, settings: Mapping[str, Any] | None = None) -> Path:
    """Write the modules after the first one, which is in the folder itself, and config_sentence_transformers.json."""
    if not (folder / "modules.json").exists():
        write_json(folder / "modules.json", [entry(0, "Transformer", "")])
    listed = json.loads((folder / "modules.json").read_text())
    for kind, config, tensors in modules:
        path = f"{len(listed)}_{kind}"
        listed.append(entry(len(listed), kind, path))
        (folder / path).mkdir(exist_ok=True)
        if config is not None:
            write_json(folder / path / "config.json", config)
        if tensors is not None:
            (folder / path / "model.safetensors").write_bytes(checkpoints.safetensors(tensors))
    write_json(folder / "modules.json", listed)
    if settings is not None:
        write_json(folder / "config_sentence_transformers.json", settings)
    return folder


def write_model(folder: Path, *modules: ModuleFiles, settings: Mapping[str, Any] | None = None) -> Path:
    """Write a BERT and the modules after it."""
    return write_modules(write_transformer(folder), *modules, settings=settings)


def write_static(folder: Path, *modules: ModuleFiles, truncation: int | None = None, width: int = WIDTH) -> Path:
    """Write a StaticEmbedding with the words of `write_bert`, and the modules after it."""
    from tokenizers import Tokenizer

    from fastattn.tokenizer import load_tokenizer

    raw = Tokenizer.from_str(load_tokenizer(write_bert(folder / "words")).raw.to_str())
    if truncation is not None:
        raw.enable_truncation(truncation)
    raw.save(str(folder / "tokenizer.json"))
    tensors = {"embedding.weight": random(raw.get_vocab_size(), width, seed=7)}
    (folder / "model.safetensors").write_bytes(checkpoints.safetensors(tensors))
    write_json(folder / "modules.json", [entry(0, "StaticEmbedding", "")])
    return write_modules(folder, *modules)


def entry(i: int, kind: str, path: str) -> dict[str, Any]:
    """Return an entry of modules.json."""
    return {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}


def write_json(path: Path, value: object) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(value), encoding="utf-8")


def change_json(path: Path, **values: Any) -> None:
    """Change keys of a JSON object, which may be missing; None removes a key."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found.update(values)
    write_json(path, {key: value for key, value in found.items() if value is not None})
