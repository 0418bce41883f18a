"""`save_classifier`: an encoder and a linear classifier on its vectors, as a normal checkpoint of its family."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastattn.api.classifier_head import HEAD_LAYOUTS, Pooling, check_writable, head_tensors
from fastattn.api.encoders import Encoder
from fastattn.api.reload import verify_files
from fastattn.checkpoint import ArraySource, Checkpoint, TensorInfo, WeightSource
from fastattn.checkpoint.gguf.checkpoint import is_gguf
from fastattn.checkpoint.new_folder import NewFolder, new_folder
from fastattn.checkpoint.safetensors_writer import write_tensors
from fastattn.checks import check_path
from fastattn.errors import ConfigError
from fastattn.jsonfile import JsonValue
from fastattn.models.adapters import open_with_adapter
from fastattn.models.names import resolve_names
from fastattn.models.registry import build, find_family
from fastattn.tokenizer import Tokenizer

_log = logging.getLogger("fastattn")
# Keys of config.json that describe another head, or come from another file.
_DROPPED = ("num_labels", "id2label", "label2id", "generation_pad_token_id", "auto_map", "_name_or_path")


def save_classifier(
    encoder: Encoder,
    tokenizer: Tokenizer,
    directory: str | os.PathLike[str],
    *,
    weight: NDArray[np.floating],
    bias: NDArray[np.floating],
    labels: Sequence[str],
    pooling: Pooling,
) -> Path:
    """Write a checkpoint for `AutoModelForSequenceClassification`, of fastattn and of transformers; return its folder.

    weight [n_labels, hidden_size], bias [n_labels]: the classifier. pooling: the vector that it reads: that of the
    first token, or the mean over all tokens, centered and divided by its standard deviation if `adds_layer` says so. In
    ModernBERT, each row of `weight` must have the average 0. The encoder's weights are copied as they are stored. The
    folder must be new or empty; it appears only when everything is written. Raises ConfigError, ModelFormatError if the
    encoder's files changed after it was loaded, OSError.
    """
    target = check_path("directory", directory)
    config = encoder.config
    layout = check_writable(config.model_type, pooling)
    if encoder.dtype != "float32":
        _log.warning(
            "%s: the classifier was fitted on the vectors of dtype=%r; load it with the same dtype",
            target,
            encoder.dtype,
        )
    with open_original(encoder) as checkpoint, new_folder(target) as folder:
        prefix = find_family(checkpoint.config).layout.prefixes[0]
        matrix, offset = np.asarray(weight, np.float64), np.asarray(bias, np.float64)
        head, changes = head_tensors(config, layout, prefix, matrix, offset, pooling=pooling)
        changes["architectures"] = [f"{layout.architecture}ForSequenceClassification"]
        # The head's numbers are outside the range of float16. torch_dtype is the name in transformers 4.
        changes |= {"problem_type": "single_label_classification", "dtype": "float32", "torch_dtype": "float32"}
        write_config(folder, checkpoint.config, {**changes, "model_type": config.model_type}, labels)
        tensors = encoder_tensors(checkpoint, config.model_type, prefix=prefix)
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{prefix}pooler.")}
        with folder.create("model.safetensors") as file:
            write_tensors(file, kept | {name: ArraySource(name, array) for name, array in head.items()})
        checkpoint.check_unchanged()
        tokenizer.save_pretrained(folder.path)
    return target


def write_config(
    folder: NewFolder, old: Mapping[str, JsonValue], changes: Mapping[str, object], labels: Sequence[str]
) -> None:
    """Write config.json with other labels and changed keys."""
    new = {
        **{key: value for key, value in old.items() if key not in _DROPPED},
        **changes,
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }
    with folder.create("config.json") as file:
        file.write(json.dumps(new, indent=2).encode() + b"\n")


def encoder_tensors(checkpoint: Checkpoint, model_type: str, *, prefix: str) -> dict[str, TensorInfo | ArraySource]:
    """Return the tensors of the encoder in a checkpoint, without other heads, by transformers' names after a prefix."""
    layout, named = HEAD_LAYOUTS.get(model_type), find_family(checkpoint.config).layout
    sources: dict[str, WeightSource] = dict(build(checkpoint.config, checkpoint.tensors, "encoder").tensors)
    if layout is not None and layout.also is not None:
        sources[layout.also] = resolve_names(checkpoint.tensors, named).get(layout.also)
    return {f"{prefix}{name}": source for name, source in sources.items() if isinstance(source, TensorInfo)}


def open_original(encoder: Encoder) -> Checkpoint:
    """Open the checkpoint that an encoder was loaded from.

    Raises ModelFormatError if its files changed since, ConfigError if it is quantized or a GGUF file.
    """
    if is_gguf(encoder.path):
        raise ConfigError(f"{encoder.path}: expected a folder of safetensors, got a GGUF file; fit on the original")
    _, (recipe,) = encoder.__reduce__()
    verify_files(recipe)
    checkpoint = open_with_adapter(encoder.path, adapter=recipe.options.adapter)
    if checkpoint.quantized is not None:
        checkpoint.close()
        raise ConfigError(f"{encoder.path}: expected a float checkpoint, got a quantized one; fit on the original")
    return checkpoint
