"""The keyword dictionaries of sentence-transformers: model_kwargs, processor_kwargs, config_kwargs, processing_kwargs.

They come from the caller or from a file in the folder. Each key is used, accepted if its value changes nothing, or
rejected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fastattn.api.load_options import read_device
from fastattn.checks import Neutral, check_count, check_neutral, closest, quote
from fastattn.errors import ConfigError, DTypeError, InputError
from fastattn.tasks.sentence.text_model import TextTruncation
from fastattn.tokenizer.overrides import TokenizerSettings, read_overrides
from fastattn.tokenizer.truncation import read_truncation


def _accept(name: str, value: object) -> None:
    """Accept any value."""


def _not_here(name: str, value: object) -> None:
    """Reject keywords that change where a module comes from: all modules come from one folder."""
    if value is not False:  # the value may be a secret token, so do not show it
        key = name.rpartition(": ")[2]
        raise InputError(f"{name}: expected None; pass {key} to SentenceTransformer itself")


# These keywords change no vector: they request more results, or select how torch computes.
_WORDS = "code_revision low_cpu_mem_usage offload_folder resume_download use_cache use_fast weights_only"
_OF_THE_FOLDER = ("cache_dir", "local_files_only", "revision", "token", "use_auth_token")
_KEYWORDS: Mapping[str, Neutral] = {
    **{name: Neutral(check=_accept) for name in _WORDS.split()},
    **{name: Neutral(check=_not_here) for name in _OF_THE_FOLDER},
    "add_pooling_layer": Neutral((True, False)),
    "attn_implementation": Neutral(("eager", "sdpa")),
    "backend": Neutral(("torch",)),
    "force_download": Neutral((False,), "delete the model from the cache to download it again"),
    "gguf_file": Neutral((), "load GGUF files with AutoModel"),
    "max_memory": Neutral(),
    "output_attentions": Neutral((False,)),
    "output_hidden_states": Neutral((False,)),
    "proxies": Neutral((), "set HTTPS_PROXY in the environment"),
    "quantization_config": Neutral((), 'use dtype="int8" or dtype="int4"'),
    "return_dict": Neutral((True,)),
    "subfolder": Neutral(("",)),
    "trust_remote_code": Neutral((False,), "code in a model folder never runs"),
    "use_safetensors": Neutral((True,), "only safetensors are read"),
    "variant": Neutral((), "only model.safetensors is read: rename the variant's file"),
}


@dataclass(frozen=True, slots=True)
class TransformerOptions:
    """The settings of the Transformer module from the keyword dictionaries.

    dtype: any value that `AutoModel.from_pretrained` accepts. tokenizer: settings that replace those of
    tokenizer_config.json.
    """

    dtype: Any = None
    tokenizer: Mapping[str, Any] = field(default_factory=dict)


def is_on(device: object, *names: str) -> bool:
    """Return whether a device is one of those named, in any spelling that `AutoModel.from_pretrained` takes."""
    try:
        return read_device(device) in names
    except (DTypeError, InputError):
        return False


def read_model_kwargs(where: str, values: object, options: TransformerOptions) -> TransformerOptions:
    """Read model_kwargs: dtype or torch_dtype is used. Raises DTypeError, InputError."""
    found = _dictionary(where, values)
    for key in ("dtype", "torch_dtype"):
        value = found.pop(key, None)
        if value is not None:
            options = replace(options, dtype=value)
    device_map = found.pop("device_map", None)
    if not is_on(device_map, "cpu"):
        raise InputError(f"{where}: device_map: expected None, 'auto' or 'cpu', got {quote(device_map)}; use device=")
    for key in ("provider", "file_name", "export"):
        if found.pop(key, None) is not None:
            raise InputError(
                f"{where}: {key}: expected None, because there are no ONNX or OpenVINO files; only safetensors are read"
            )
    _refuse(where, found, ("dtype", "torch_dtype", "device_map"))
    return options


def read_processor_kwargs(where: str, values: object, options: TransformerOptions) -> TransformerOptions:
    """Read processor_kwargs: the settings that `AutoTokenizer.from_pretrained` takes. Raises DTypeError, InputError."""
    found = _dictionary(where, values)
    names = TokenizerSettings.__annotations__
    settings = {key: found.pop(key) for key in list(found) if key in names or _is_token(key, found[key])}
    _refuse(where, found, tuple(names))
    return replace(options, tokenizer={**options.tokenizer, **read_overrides(settings, ())})


def _is_token(key: object, value: object) -> bool:
    """Return whether a setting names a special token of the model's own, such as image_token="<image>"."""
    return isinstance(key, str) and key.endswith("_token") and key != "use_auth_token" and isinstance(value, str)


def read_config_kwargs(where: str, values: object) -> None:
    """Check config_kwargs: none of it is used. Raises DTypeError, InputError."""
    _refuse(where, _dictionary(where, values), ())


def read_processing_kwargs(where: str, values: object, truncation: TextTruncation) -> TextTruncation:
    """Read processing_kwargs: "truncation" and "max_length" of "text" and "common" are used.

    Padding changes nothing; settings of images, audio, video and chat templates do not apply to texts. Raises
    DTypeError, InputError.
    """
    found = _dictionary(where, values)
    for group in ("text", "common"):
        inside = f"{where}: {group}"
        settings = _dictionary(inside, found.pop(group, None))
        if "truncation" in settings:
            strategy = read_truncation(f"{inside}: truncation", settings.pop("truncation"))
            truncation = replace(truncation, strategy=strategy)
        if "max_length" in settings:
            length = settings.pop("max_length")
            if length is not None:
                length = check_count(f"{inside}: max_length", length, low=1)
            truncation = replace(truncation, max_length=length)
        for key in ("padding", "pad_to_multiple_of", "padding_side", "return_tensors", "verbose"):
            settings.pop(key, None)
        _refuse(inside, settings, ("truncation", "max_length"))
    for group in ("image", "audio", "video", "chat_template"):
        found.pop(group, None)
    for key in found:
        raise InputError(f"{where}: unknown key {quote(key)}{closest(str(key), ('text', 'common'))}")
    return truncation


def _dictionary(where: str, values: object) -> dict[Any, Any]:
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise DTypeError(f"{where}: expected a dictionary or None, got {type(values).__name__}")
    return dict(values)


def _refuse(where: str, found: Mapping[Any, Any], used: tuple[str, ...]) -> None:
    """Reject the remaining keys that have an effect in sentence-transformers."""
    for key in found:
        if not isinstance(key, str):
            raise DTypeError(f"{where}: expected keys of str, got {quote(key)}")
    check_neutral(found, _KEYWORDS, where, used, prefix=f"{where}: ")


def from_file(where: str, read: Callable[..., Any], values: object, *rest: Any) -> Any:
    """Call `read` for a dictionary from a file and convert its errors to ConfigError."""
    try:
        return read(where, values, *rest)
    except (DTypeError, InputError) as error:
        raise ConfigError(str(error)) from None
