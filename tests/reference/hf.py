"""transformers' models with tiny random configs, as a second reference. Needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def make(model_class: str, seed: int = 0, *, pooler: bool | None = None, **options: Any) -> Any:
    """Create a float64 model with weights large enough that every part of it affects the result."""
    torch.manual_seed(seed)
    cls = getattr(transformers, model_class)
    config = cls.config_class(**{"bos_token_id": None, "eos_token_id": None, **options})
    config._attn_implementation = "eager"
    model = cls(config) if pooler is None else cls(config, add_pooling_layer=pooler)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape)
            parameter.copy_(noise / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else parameter + noise / 4)
    return model.eval().double()


def save(model: Any, directory: Path) -> Path:
    """Save as float32; the weights of the float64 model are exact in float32."""
    model.float().save_pretrained(directory)
    model.double()
    return directory


def call(model: Any, ids: list[list[int]], **inputs: Any) -> Any:
    """Return the model's outputs for a dense batch, in float64, as numpy arrays (or tuples of arrays)."""
    with torch.no_grad():
        out = model(
            torch.tensor(ids),
            output_hidden_states=True,
            output_attentions=True,
            **{name: torch.tensor(value) for name, value in inputs.items()},
        )
    return out


def array(tensor: Any) -> NDArray[np.float64]:
    """Convert a torch tensor to a float64 array."""
    result: NDArray[np.float64] = tensor.detach().numpy().astype(np.float64)
    return result
