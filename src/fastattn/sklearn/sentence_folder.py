"""Writes a model and a linear classifier as the modules of sentence-transformers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastattn.api.save_classifier import encoder_tensors, open_original, write_config
from fastattn.checkpoint import ArraySource
from fastattn.checkpoint.new_folder import NewFolder, new_folder
from fastattn.checkpoint.safetensors_writer import write_tensors
from fastattn.checks import check_path
from fastattn.errors import ConfigError
from fastattn.tasks.sentence.encoders import InputModule, Transformer
from fastattn.tasks.sentence.features import Module
from fastattn.tasks.sentence.modules import Dense, LayerNorm, Normalize
from fastattn.tasks.sentence.pooling import Pooling
from fastattn.tasks.sentence_transformer import SentenceTransformer

Tensors = dict[str, NDArray[np.float32]]


def save_sentence_classifier(
    model: SentenceTransformer,
    directory: str | os.PathLike[str],
    *,
    weight: NDArray[np.float64],
    bias: NDArray[np.float64],
    labels: Sequence[str],
    centered: bool,
) -> Path:
    """Write the modules of a model and a last one that computes vector @ weight.T + bias; return the folder.

    weight [n_labels, width], bias [n_labels]. centered: the classifier reads (vector - average) / standard deviation.
    Raises ConfigError, ModelFormatError if the model's files changed after it was loaded, OSError.
    """
    target = check_path("directory", directory)
    first, *later = list(model)
    if not isinstance(first, Transformer):
        raise ConfigError("model: expected a model with a transformer, got a StaticEmbedding")
    if model.truncate_dim is not None:
        raise ConfigError(
            f"model: expected truncate_dim=None, because a folder cannot cut vectors before its last module, got "
            f"{model.truncate_dim}"
        )
    modules: list[InputModule | Module] = list(later)
    if centered:
        width = weight.shape[1]
        modules += [_dense(np.eye(width) - 1 / width, None), Normalize()]
        weight = weight * np.sqrt(width)  # the standard deviation is the length divided by this
    modules.append(_dense(weight, bias))
    with open_original(first.auto_model) as checkpoint, new_folder(target) as folder:
        model_type = first.auto_model.config.model_type
        write_config(folder, checkpoint.config, {"model_type": model_type}, labels)
        with folder.create("model.safetensors") as file:
            write_tensors(file, encoder_tensors(checkpoint, model_type, prefix=""))
        checkpoint.check_unchanged()
        first.tokenizer.save_pretrained(folder.path)
        _write_modules(folder, modules)
        _write_json(
            folder, "sentence_bert_config.json", {"max_seq_length": first.max_seq_length, "do_lower_case": False}
        )
        settings = {"prompts": model.prompts, "default_prompt_name": model.default_prompt_name}
        _write_json(folder, "config_sentence_transformers.json", {**settings, "similarity_fn_name": "cosine"})
    return target


def _dense(weight: NDArray[np.float64], bias: NDArray[np.float64] | None) -> Dense:
    n_out, n_in = weight.shape
    matrix = np.ascontiguousarray(weight, np.float32)
    return Dense(n_in, n_out, matrix, None if bias is None else bias.astype(np.float32), None, "Identity")


def _write_modules(folder: NewFolder, modules: Sequence[InputModule | Module]) -> None:
    home = "sentence_transformers.models."
    listed = [{"idx": 0, "name": "0", "path": "", "type": f"{home}Transformer"}]
    for i, module in enumerate(modules, 1):
        kind = type(module).__name__
        path = f"{i}_{kind}"
        listed.append({"idx": i, "name": str(i), "path": path, "type": f"{home}{kind}"})
        config, tensors = _contents(module)
        _write_json(folder, f"{path}/config.json", config)
        if tensors:
            with folder.create(f"{path}/model.safetensors") as file:
                write_tensors(file, {name: ArraySource(name, array) for name, array in tensors.items()})
    _write_json(folder, "modules.json", listed)


def _contents(module: object) -> tuple[Mapping[str, object], Tensors]:
    """Return the config.json and the tensors of a module."""
    if isinstance(module, Pooling):
        mode = module.pooling_mode if isinstance(module.pooling_mode, str) else list(module.pooling_mode)
        size = module.embedding_dimension
        return {"embedding_dimension": size, "pooling_mode": mode, "include_prompt": module.include_prompt}, {}
    if isinstance(module, LayerNorm):
        return {"dimension": module.dimension}, {"norm.weight": module.weight, "norm.bias": module.bias}
    if isinstance(module, Normalize):
        return {}, {}
    assert isinstance(module, Dense)
    tensors = {"linear.weight": module.weight, "linear.bias": module.bias, "residual.weight": module.residual}
    place = "linear" if module.activation_function == "Identity" else "activation"
    config = {
        "in_features": module.in_features,
        "out_features": module.out_features,
        "bias": module.bias is not None,
        "activation_function": f"torch.nn.modules.{place}.{module.activation_function}",
        "module_input_name": module.module_input_name,
        "module_output_name": module.module_output_name,
        "use_residual": module.use_residual,
    }
    return config, {name: array for name, array in tensors.items() if array is not None}


def _write_json(folder: NewFolder, name: str, value: object) -> None:
    with folder.create(name) as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n")
