"""Keywords of transformers' `from_pretrained` that fastattn has no use for: accepted with the values that change
nothing, refused with what to do otherwise."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fastattn.checks import closest, quote
from fastattn.errors import InputError

# They change nothing in a result, whatever their value.
_WORDS = (
    "attn_implementation experts_implementation ignore_mismatched_sizes low_cpu_mem_usage max_memory mirror "
    "offload_buffers offload_folder offload_state_dict resume_download use_cache weights_only _fast_init"
)
_WITHOUT_EFFECT = frozenset(_WORDS.split())
# The values that change nothing, besides None, and what to do instead of others.
_REFUSED: Mapping[str, tuple[tuple[object, ...], str]] = {
    "adapter_kwargs": ((), "merge the adapter into the weights first"),
    "adapter_name": (("default",), "merge the adapter into the weights first"),
    "add_pooling_layer": ((True,), "ignore pooler_output instead"),
    "code_revision": ((), "no code of a checkpoint is run"),
    "config": ((), "config.json of the folder is used; num_labels=, id2label= and pad_token_id= override it"),
    "device_mesh": ((), "a model is loaded on one device"),
    "force_download": ((False,), "delete the model from the cache to download it again"),
    "from_flax": ((False,), "convert it once to model.safetensors"),
    "from_tf": ((False,), "convert it once to model.safetensors"),
    "generation_config": ((), "give the options to generate"),
    "gguf_file": ((), "only safetensors are read"),
    "is_decoder": ((False,), "these models are encoders, or GPT-2"),
    "key_mapping": ((), "rename the tensors in the file"),
    "kernel_config": ((), "leave it out"),
    "load_in_4bit": ((False,), 'use dtype="int4"'),
    "load_in_8bit": ((False,), 'use dtype="int8"'),
    "output_loading_info": ((False,), "what does not fit is an error, what is not used is logged"),
    "proxies": ((), "set HTTPS_PROXY in the environment"),
    "quantization_config": ((), 'use dtype="int8" or dtype="int4"'),
    "return_dict": ((True,), "give return_dict=False to the call"),
    "state_dict": ((), "save it to a folder first"),
    "torchscript": ((False,), "leave it out"),
    "tp_plan": ((), "a model is loaded on one device"),
    "tp_size": ((1,), "a model is loaded on one device"),
    "trust_remote_code": ((False, True), "no code of a checkpoint is run"),
    "use_flash_attention_2": ((False, True), "leave it out"),
    "use_kernels": ((False,), "leave it out"),
    "use_safetensors": ((True,), "only safetensors are read"),
    "variant": ((), "only model.safetensors is read: rename the variant's file"),
}


def check_unused(keywords: Mapping[str, Any], ours: Collection[str]) -> None:
    """Refuse what would change something, and names that nobody knows. Raises InputError."""
    for name, value in keywords.items():
        if name in _WITHOUT_EFFECT:
            continue
        if name not in _REFUSED:
            known = {*ours, *_REFUSED, *_WITHOUT_EFFECT, *_ALSO_TAKEN}
            hint = closest(name, known) or "; config.json says what the model is"
            raise InputError(f"from_pretrained: unknown keyword {quote(name)}{hint}")
        allowed, instead = _REFUSED[name]
        if value is not None and not any(type(value) is type(item) and value == item for item in allowed):
            expected = " or ".join(repr(item) for item in (None, *allowed))
            raise InputError(f"{name}: expected {expected}, got {quote(value)}; {instead}")


_ALSO_TAKEN = (
    "device_map",
    "id2label",
    "label2id",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "problem_type",
    "subfolder",
    "torch_dtype",
    "use_auth_token",
)
