"""Keywords of transformers' `from_pretrained` that fastattn does not use.

They are accepted if their values change nothing; otherwise the error says what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastattn.api.load_args import ModelArgs
from fastattn.checks import Neutral, check_neutral


def _accept(name: str, value: object) -> None:
    """Accept any value."""


# No value of these changes a result.
_WORDS = (
    "attn_implementation experts_implementation ignore_mismatched_sizes low_cpu_mem_usage max_memory mirror "
    "offload_buffers offload_folder offload_state_dict resume_download use_cache weights_only _fast_init"
)
_KEYWORDS: Mapping[str, Neutral] = {
    **{name: Neutral(check=_accept) for name in _WORDS.split()},
    "adapter_kwargs": Neutral((), "merge the adapter into the weights first"),
    "adapter_name": Neutral(("default",), "merge the adapter into the weights first"),
    "add_pooling_layer": Neutral((True,), "ignore pooler_output instead"),
    "code_revision": Neutral((), "no code of a checkpoint is run"),
    "config": Neutral((), "config.json of the folder is used; num_labels=, id2label= and pad_token_id= override it"),
    "device_mesh": Neutral((), "a model is loaded on one device"),
    "force_download": Neutral((False,), "delete the model from the cache to download it again"),
    "from_flax": Neutral((False,), "convert it once to model.safetensors"),
    "from_tf": Neutral((False,), "convert it once to model.safetensors"),
    "generation_config": Neutral((), "pass the options to generate"),
    "is_decoder": Neutral((False,), "these models are encoders, or decoders alone"),
    "key_mapping": Neutral((), "rename the tensors in the file"),
    "kernel_config": Neutral((), "leave it out"),
    "load_in_4bit": Neutral((False,), 'use dtype="int4"'),
    "load_in_8bit": Neutral((False,), 'use dtype="int8"'),
    "output_loading_info": Neutral((False,), "tensors that do not fit raise an error, and unused ones are logged"),
    "proxies": Neutral((), "set HTTPS_PROXY in the environment"),
    "quantization_config": Neutral((), 'use dtype="int8" or dtype="int4"'),
    "return_dict": Neutral((True,), "pass return_dict=False to the call"),
    "state_dict": Neutral((), "save it to a folder first"),
    "torchscript": Neutral((False,), "leave it out"),
    "tp_plan": Neutral((), "a model is loaded on one device"),
    "tp_size": Neutral((1,), "a model is loaded on one device"),
    "trust_remote_code": Neutral((False, True), "no code of a checkpoint is run"),
    "use_flash_attention_2": Neutral((False, True), "leave it out"),
    "use_kernels": Neutral((False,), "leave it out"),
    "use_safetensors": Neutral((True,), "only safetensors are read"),
    "variant": Neutral((), "only model.safetensors is read: rename the variant's file"),
}


def check_unused(keywords: Mapping[str, Any]) -> None:
    """Reject unknown keywords and keywords that would change the model. Raises InputError."""
    hint = "; config.json determines the architecture"
    check_neutral(keywords, _KEYWORDS, "from_pretrained", ModelArgs.__annotations__, hint=hint)
