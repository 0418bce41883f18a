"""The options of `from_pretrained`: checks their types and converts transformers' spellings to ours."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fastattn.api.load_args import HubArgs
from fastattn.api.load_keywords import check_unused
from fastattn.checks import check_choice, check_count, check_flag, check_path, check_str, quote
from fastattn.errors import DTypeError, InputError
from fastattn.formats import DEVICES, DTYPES, FORMATS, KV_DTYPES
from fastattn.options import Choice, Count, Flag, Text, option, options_of

_log = logging.getLogger("fastattn")
MAX_THREADS = 1024
# torch's other names.
_DTYPE_NAMES: Mapping[str, str] = {
    "float": "float32",
    "fp32": "float32",
    "half": "float16",
    "fp16": "float16",
    "bf16": "bfloat16",
    "double": "float64",
}
_HUB_NAMES = (*HubArgs.__annotations__, "subfolder", "gguf_file")
_ALL_KV_DTYPES = dict.fromkeys(name for names in KV_DTYPES.values() for name in names)
# Values of device_map, which tells transformers how to split a model. With one device they are all equivalent.
_DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Checked options for loading a model from its folder, with their flags; `LoadArgs` describes them.

    Each check takes the name, the value and the device. overrides: the config.json keys to replace, with their new
    values.
    """

    threads: int | None = option(
        None,
        lambda _, value, device: _threads(value, device),
        flag=Flag(values=Count(low=1, high=None), metavar="N", help="threads (default: all that this process may use)"),
    )
    dtype: str | None = option(
        None,
        lambda name, value, device: _dtype(name, value, device),
        flag=Flag(
            values=Choice(*FORMATS), help="how weights are stored (default: a quantized model's own, else float32)"
        ),
    )
    kv_dtype: str | None = option(
        None,
        lambda _, value, device: _kv_dtype(value, device),
        flag=Flag(
            values=Choice(*_ALL_KV_DTYPES),
            help="how keys and values are stored (default: as the weights, int8 for int4)",
        ),
    )
    device: str = option(
        "cpu",
        lambda _, value, device: device,  # read before the others
        flag=Flag(
            values=Choice(*DEVICES), default="cpu", help="where to run; numpy is the float64 reference (default: cpu)"
        ),
    )
    head_dtype: str | None = option(
        None,
        lambda name, value, device: _dtype(name, value, device),
        flag=Flag(
            values=Choice(*DTYPES["cpu"]),
            help="how the matrix that computes the logits is stored (default: as the weights)",
        ),
    )
    kv_cache_bytes: int | None = option(
        None,
        lambda name, value, device: None if value is None else check_count(name, value, low=1, high=sys.maxsize),
    )
    verify: str | Mapping[str, str] | None = option(None, lambda _, value, device: _verify(value))
    check_finite: bool = option(False, lambda name, value, device: check_flag(name, value))
    share_weights: bool = option(
        False,
        lambda name, value, device: _share_weights(name, value, device),
    )
    adapter: str | None = option(
        None,
        lambda name, value, device: None if value is None else str(check_path(name, value)),
        flag=Flag(
            values=Text(1, 4096), metavar="DIR", help="a LoRA adapter of peft to add to the weights: a folder or hub id"
        ),
    )
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubOptions:
    """Where to look up a hub id.

    subfolder: a folder inside the repository or inside a local folder; gguf_file: a file, relative to it.
    """

    revision: str | None = None
    cache_dir: Path | None = None
    local_files_only: bool = False
    token: str | bool | None = None
    subfolder: str = ""
    gguf_file: str | None = None


def read_options(options: Mapping[str, Any]) -> tuple[LoadOptions, HubOptions]:
    """Check the options of `from_pretrained`, including keywords that only transformers has.

    Raises InputError, DTypeError.
    """
    rest = dict(options)
    if rest.get("device") is not None and _spreads(rest.get("device_map")):
        del rest["device_map"]  # device already says which one
    _merge(rest, "dtype", "torch_dtype", _dtype_name)
    _merge(rest, "device", "device_map", read_device)
    _merge(rest, "token", "use_auth_token", lambda value: value)
    device = read_device(rest.get("device"))
    checked: dict[str, Any] = {}
    for name, entry in options_of(LoadOptions).items():
        value = rest.pop(name, entry.default)
        checked[name] = value if entry.check is None else entry.check(name, value, device)
    checked["overrides"] = _overrides(rest)
    hub = read_hub_options({name: rest.pop(name) for name in _HUB_NAMES if name in rest})
    check_unused(rest)
    return LoadOptions(**checked), hub


def read_hub_options(options: Mapping[str, Any]) -> HubOptions:
    """Check the options that locate a hub id; `resolve` checks the token. Raises InputError, DTypeError."""
    revision, cache_dir = options.get("revision"), options.get("cache_dir")
    return HubOptions(
        revision=None if revision is None else check_str("revision", revision),
        cache_dir=None if cache_dir is None else check_path("cache_dir", cache_dir),
        local_files_only=check_flag("local_files_only", options.get("local_files_only", False)),
        token=options.get("token"),
        subfolder=_inside("subfolder", options.get("subfolder"), "a folder") or "",
        gguf_file=_inside("gguf_file", options.get("gguf_file"), "a file"),
    )


def check_target(value: Any, device: str, dtype: str) -> None:
    """Check that `model.to` got the device or dtype that the model already has. Raises InputError."""
    if _dtype_name(value) == dtype:
        return
    try:
        found = read_device(value)
    except (InputError, DTypeError):
        found = None
    if found != device:
        raise InputError(
            f"to: expected {device!r} or {dtype!r}, as loaded, got {quote(value)}; load it with "
            "from_pretrained(..., device=, dtype=)"
        )


def _merge(options: dict[str, Any], name: str, other: str, normal: Callable[[Any], object]) -> None:
    """Merge the alias `other` into `name`; both may be given if they agree. normal: converts a spelling to one form."""
    value, own = options.pop(other, None), options.get(name)
    if value is None:
        return
    if own is None:
        options[name] = value
    elif normal(own) != normal(value):
        shown = "" if name == "token" else f", got {quote(own)} and {quote(value)}"
        raise InputError(f"{other}: expected None or the same as {name}{shown}")


def _spreads(device_map: object) -> bool:
    """Return whether a device_map leaves the choice of devices to transformers."""
    return isinstance(device_map, str) and device_map in _DEVICE_MAPS


def read_device(value: Any) -> str:
    """Return "cpu", "cuda" or "numpy" from transformers' and torch's spellings. Raises DTypeError, InputError."""
    if isinstance(value, Mapping):
        found = {read_device(item) for item in value.values()}
        if len(found) != 1:
            raise InputError(f"device_map: expected one device for the whole model, got {quote(value)}")
        return found.pop()
    if value is None or _spreads(value):
        return "cpu"
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        name = "cpu" if value == -1 else f"cuda:{int(value)}"
    else:
        name = str(value) if type(value).__module__ == "torch" else value
    if name in ("cpu:0", "cuda:0"):
        name = name[:-2]
    if isinstance(name, str) and name.startswith("cuda:"):
        raise InputError(f"device: expected the first visible GPU, cuda:0, got {quote(value)}")
    if isinstance(name, str) and name == "gpu":
        raise InputError(f"device: expected one of {', '.join(map(repr, DEVICES))}, got 'gpu'; use 'cuda'")
    return check_choice("device", name, DEVICES)


def _dtype(name: str, value: Any, device: str) -> str | None:
    """Return the name of a dtype given as a str or as a numpy or torch dtype.

    `from_pretrained` describes "auto" and "float16" on the CPU.
    """
    if value is None:
        return None
    found = _dtype_name(value)
    if found == "auto":
        return None
    if found == "float16" and device != "cuda":
        return "float32"
    # tf32 is a way to multiply float32; it applies to all weights.
    known = tuple(known for known in DTYPES[device] if name == "dtype" or known != "tf32")
    if found not in known:
        raise _unknown_dtype(name, value if found is None else found, (*known, "auto"), device)
    return found


def _dtype_name(value: Any) -> str | None:
    if isinstance(value, str):
        name = value.removeprefix("torch.")
        return _DTYPE_NAMES.get(name, name)
    if type(value).__module__ == "torch":
        return str(value).removeprefix("torch.")
    if isinstance(value, np.dtype):
        return str(value.name)
    if isinstance(value, type) and issubclass(value, np.generic):
        return str(np.dtype(value).name)
    return None


def _unknown_dtype(name: str, value: Any, known: Collection[str], device: str) -> Exception:
    expected = f"{name}: expected one of {', '.join(known)} on {device}"
    if not isinstance(value, str):
        return DTypeError(f"{expected}, got {quote(value)}")
    hint = ""
    if value == "float64":
        hint = '; device="numpy" computes in float64'
    elif device == "cpu" and value in ("uint8", "fp8", "float8_e4m3fn", "nf4", "fp4"):
        hint = "; use int8 or int4 for smaller weights"
    return InputError(f"{expected}, got {quote(value)}{hint}")


def _kv_dtype(value: Any, device: str) -> str | None:
    if value is None:
        return None
    found, known = _dtype_name(value), KV_DTYPES[device]
    if found == "auto":
        return None
    if found == "float16" and device == "cpu":
        return "float32"
    if found not in known:
        names = f" or one of {', '.join(known)}" if known else ""
        kind = DTypeError if found is None else InputError
        raise kind(f"kv_dtype: expected None{names} on {device}, got {quote(value)}")
    return found


def _threads(value: Any, device: str) -> int | None:
    if value is None:
        return None
    found = check_count("threads", value, low=1, high=MAX_THREADS)
    if device == "cuda":
        raise InputError(f"threads: expected None on cuda, got {found}")
    if device == "numpy":
        _log.warning("threads: ignored on device numpy, got %d", found)
    return found


def _share_weights(name: str, value: Any, device: str) -> bool:
    found = False if value is None else check_flag(name, value)
    if found and device != "cpu":
        raise InputError(f"{name}: expected False on {device}, got True")
    return found


def _verify(value: Any) -> Any:
    if value is not None:
        from fastattn.checkpoint.digests import check_verify  # `fastattn --help` does not need it

        check_verify(value)
    return value


def _inside(name: str, value: Any, expected: str) -> str | None:
    """Read the path of something inside a model's folder; None if it is empty."""
    path = "" if value is None else check_str(name, value)
    parts = PurePosixPath(path).parts
    if path.startswith("/") or ".." in parts or "\0" in path or "\\" in path:
        raise InputError(f"{name}: expected {expected} inside the model's folder, got {quote(path)}")
    return "/".join(part for part in parts if part != ".") or None


def _overrides(rest: dict[str, Any]) -> dict[str, Any]:
    """Return the replacements for keys of config.json, as JSON values."""
    found: dict[str, Any] = {}
    if (count := rest.pop("num_labels", None)) is not None:
        found["num_labels"] = check_count("num_labels", count, low=1, high=1_000_000)
    if (names := rest.pop("id2label", None)) is not None:
        found["id2label"] = _id2label(names)
        if found.setdefault("num_labels", len(names)) != len(names):
            raise InputError(f"id2label: expected num_labels={found['num_labels']} names, got {len(names)}")
    if (ids := rest.pop("label2id", None)) is not None:
        found["label2id"] = _label2id(ids)
    if (problem := rest.pop("problem_type", None)) is not None:
        from fastattn.models.config import PROBLEM_TYPES

        found["problem_type"] = check_choice("problem_type", problem, PROBLEM_TYPES)
    if (pad := rest.pop("pad_token_id", None)) is not None:
        found["pad_token_id"] = check_count("pad_token_id", pad)
    for name in ("output_hidden_states", "output_attentions"):
        if (flag := rest.pop(name, None)) is not None:
            found[name] = check_flag(name, flag)
    return found


def _id2label(names: Any) -> dict[str, str]:
    if not isinstance(names, Mapping) or not names:
        raise DTypeError(f"id2label: expected a mapping of class numbers to names, got {quote(names)}")
    return {
        str(check_count("id2label", int(key) if isinstance(key, str) and key.isdecimal() else key)): check_str(
            f"id2label[{quote(key)}]", name
        )
        for key, name in names.items()
    }


def _label2id(ids: Any) -> dict[str, int]:
    if not isinstance(ids, Mapping):
        raise DTypeError(f"label2id: expected a mapping of names to class numbers, got {quote(ids)}")
    return {check_str("label2id", name): check_count(f"label2id[{quote(name)}]", i) for name, i in ids.items()}
