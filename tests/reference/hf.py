"""transformers' models with tiny random configs, as a second reference. Needs torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.gptj.modeling_gptj import GPTJRotaryEmbedding

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


@contextmanager
def exact(model: Any) -> Iterator[None]:
    """Let a model compute rotary angles and softmax in float64; by default, many models round them to float32.

    The cosines and sines are then rounded to float32, as they are in a `RotaryTable`.
    """
    rotary = [module for module in model.modules() if hasattr(module, "compute_default_rope_parameters")]
    float32 = torch.float32

    def rounded(module: Any, args: Any, output: Any) -> Any:
        return tuple(part.to(float32).double() for part in output)

    handles = [module.register_forward_hook(rounded) for module in rotary]
    with (
        patch.multiple(torch, float=torch.float64, float32=torch.float64),
        patch.object(torch.Tensor, "float", torch.Tensor.double),
    ):
        for module in rotary:
            _set_frequencies(module)
        for module in model.modules():
            if isinstance(module, GPTJRotaryEmbedding):
                _set_angles(module)
        yield
    for handle in handles:
        handle.remove()


def _set_frequencies(module: Any) -> None:
    """Compute the frequencies of a rotary module again, in the current precision."""
    by_layer = isinstance(module.rope_type, dict)
    for layer_type, rope_type in module.rope_type.items() if by_layer else [(None, module.rope_type)]:
        compute = module.compute_default_rope_parameters
        if rope_type != "default":
            compute = ROPE_INIT_FUNCTIONS[rope_type]
        frequencies, _ = compute(module.config, layer_type=layer_type)
        setattr(module, f"{layer_type}_inv_freq" if by_layer else "inv_freq", frequencies.double())


def _set_angles(module: Any) -> None:
    """Compute the table of a GPT-J again, in float64, and round it to float32."""
    exponents = np.arange(0, module.pos_embd_dim, 2) / module.pos_embd_dim
    angles = np.arange(module.max_positions)[:, None] * 10000.0**-exponents
    table = np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
    module.embed_positions = torch.from_numpy(table).double()


def call(model: Any, ids: list[list[int]], **inputs: Any) -> Any:
    """Return the model's outputs for a dense batch: float64 torch tensors, which `array` converts."""
    with torch.no_grad(), exact(model):
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
