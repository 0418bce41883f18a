"""The keyword arguments for loading, for type checkers and editors; `LoadOptions` is the table of the checked options.

A function that loads a model takes one of these dictionaries as `**options: Unpack[...]`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


class RunArgs(TypedDict, total=False):
    """How weights are stored, and where a model runs.

    dtype: storage type of the weights: "float32", "bfloat16", "int8" or "int4". The last three also round the inputs
        of matrix products. A numpy or torch dtype works too. None and "auto" use the dtype of a quantized checkpoint,
        else "float32". "float16" is computed in float32 on the CPU, which loses nothing.
    kv_dtype: storage type of keys and values: "float32", "bfloat16" or "int8". None and "auto" follow dtype (int8
        with int4).
    device: "cpu" (also None, -1 and "auto"), "numpy" for the float64 specification, or "cuda", a preview. "cuda"
        requires dtype "float32", "tf32", "bfloat16" or "float16", a kv_dtype from the same list except "tf32", and
        threads=None.
    threads: number of CPU threads. None uses the CPUs of the process's affinity mask, limited by the CPU quota of
        its cgroup.
    """

    dtype: Any
    kv_dtype: Any
    device: Any
    threads: int | None


class HubArgs(TypedDict, total=False):
    """Where to look up a hub id.

    revision, cache_dir, local_files_only and token: for hub ids, as in huggingface_hub.
    """

    revision: str | None
    cache_dir: str | os.PathLike[str] | None
    local_files_only: bool
    token: str | bool | None


class LoadArgs(RunArgs, HubArgs, total=False):
    """Options for loading a model.

    head_dtype: a different dtype for the matrix that computes the logits, and for token embeddings that are tied to
        such a matrix, even if AutoModel loads them without a head. It changes nothing if there is neither, or if the
        matrix is too small to be rounded (fewer than 64 rows).
    kv_cache_bytes: memory for the keys and values of all texts that a language model generates at a time; more texts
        wait. None: on the CPU, a quarter of the memory that the process may use. Keys and values of ended texts remain
        for prompts with the same beginning, until another text needs the memory; with None, at most 256 MiB of them.
    verify: "sha256" compares the weight files with the SHA256SUMS file next to them or with the names of the hub's
        blobs. A mapping gives the digests by file name.
    check_finite: reject NaN and infinity in the weights of a float checkpoint.
    share_weights: on Linux, map packed weights that all processes of this user on this machine share, if they load the
        same files with the same options. The first one packs them.
    subfolder: a folder inside the repository or the local folder.
    gguf_file: the GGUF file to load, inside the repository or the local folder.
    adapter: a LoRA adapter that peft wrote: a folder or hub id. It is added to the weights while they load. None: the
        adapter in the model's own folder, if there is one.
    torch_dtype, device_map, use_auth_token: transformers' names for dtype, device and token.
    """

    head_dtype: Any
    kv_cache_bytes: int | None
    verify: Literal["sha256"] | Mapping[str, str] | None
    check_finite: bool | None
    share_weights: bool | None
    subfolder: str | None
    gguf_file: str | None
    adapter: str | os.PathLike[str] | None
    torch_dtype: Any
    device_map: Any
    use_auth_token: str | bool | None
    trust_remote_code: bool | None


class ModelArgs(LoadArgs, total=False):
    """The keyword arguments of `from_pretrained`.

    num_labels, id2label, label2id, problem_type, pad_token_id, output_hidden_states, output_attentions: override
        config.json.
    Other keywords of transformers are accepted if their values change nothing here.
    """

    pretrained_model_name_or_path: str | Path | None
    num_labels: int | None
    id2label: Mapping[Any, str] | None
    label2id: Mapping[str, int] | None
    problem_type: str | None
    pad_token_id: int | None
    output_hidden_states: bool | None
    output_attentions: bool | None
    # Keywords of transformers that change nothing here.
    adapter_name: Literal["default"] | None
    add_pooling_layer: Literal[True] | None
    attn_implementation: Any
    experts_implementation: Any
    force_download: Literal[False] | None
    from_flax: Literal[False] | None
    from_tf: Literal[False] | None
    ignore_mismatched_sizes: Any
    is_decoder: Literal[False] | None
    load_in_4bit: Literal[False] | None
    load_in_8bit: Literal[False] | None
    low_cpu_mem_usage: Any
    max_memory: Any
    mirror: Any
    offload_buffers: Any
    offload_folder: Any
    offload_state_dict: Any
    output_loading_info: Literal[False] | None
    resume_download: Any
    return_dict: Literal[True] | None
    torchscript: Literal[False] | None
    tp_size: Literal[1] | None
    use_cache: Any
    use_flash_attention_2: bool | None
    use_kernels: Literal[False] | None
    use_safetensors: Literal[True] | None
    weights_only: Any
    _fast_init: Any


def describes(*tables: type) -> Callable[[_Function], _Function]:
    """Return a decorator that replaces `{options}` in a docstring with the texts of these dictionaries, for `help`."""

    def describe(function: _Function) -> _Function:
        if function.__doc__ is not None:  # None with python -OO
            texts = ((table.__doc__ or "").partition("\n\n")[2].strip() for table in tables)
            text = "\n    ".join(texts)
            function.__doc__ = function.__doc__.replace("{options}", text.replace("\n", "\n    "))
        return function

    return describe
