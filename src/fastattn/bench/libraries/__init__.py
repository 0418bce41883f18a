"""The libraries to compare with. Each is imported only in its own process, when it is loaded."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastattn.bench.libraries.base import Job, Peer, Unsupported

__all__ = ["LIBRARIES", "Job", "Library", "Peer", "Unsupported", "convert", "load", "missing"]


@dataclass(frozen=True, slots=True)
class Library:
    """A library to compare with.

    adapter: its module in this folder, which has the class `Model` and, if the library has its own format, `convert`.
    needs: required packages, by import name and package name.
    """

    adapter: str
    needs: Mapping[str, str]
    dtypes: tuple[str, ...]


_TORCH = {"torch": "torch", "transformers": "transformers"}
LIBRARIES: Mapping[str, Library] = {
    "fastattn": Library("ours", {}, ("float32", "bfloat16", "int8", "int4")),
    "torch": Library("torch_peer", _TORCH, ("float32", "bfloat16")),
    "onnxruntime": Library(
        "onnxruntime_peer", {"onnxruntime": "onnxruntime", "onnx": "onnx"}, ("float32", "int8", "int4")
    ),
    "ctranslate2": Library("ctranslate2_peer", {"ctranslate2": "ctranslate2", **_TORCH}, ("float32", "int8")),
    "openvino": Library("openvino_peer", {"openvino": "openvino", **_TORCH}, ("float32", "bfloat16", "int8", "int4")),
    "llama_cpp": Library(
        "llama_cpp_peer", {"llama_cpp": "llama-cpp-python", "gguf": "gguf"}, ("float32", "bfloat16", "int8", "int4")
    ),
}


def missing(name: str) -> list[str]:
    """Return the required packages of a library that are not installed."""
    return [package for module, package in LIBRARIES[name].needs.items() if importlib.util.find_spec(module) is None]


def convert(name: str, job: Job) -> None:
    """Write the model in the library's own format, if it has one and the file does not exist yet.

    Raises Unsupported, and whatever the library raises.
    """
    library = LIBRARIES[name]
    if job.dtype not in library.dtypes:
        raise Unsupported(f"{name}: expected one of {', '.join(library.dtypes)}, got {job.dtype}")
    target = _folder(name, job)
    adapter = _adapter(name)
    if not hasattr(adapter, "convert") or target.exists():
        return
    part = target.with_name(target.name + ".part")  # an incomplete file from a stopped process is never used
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    adapter.convert(replace(job, folder=part))
    part.rename(target)


def load(name: str, job: Job) -> Peer:
    """Load a converted model. Raises whatever the library raises."""
    peer: Peer = _adapter(name).Model(replace(job, folder=_folder(name, job)))
    return peer


def _folder(name: str, job: Job) -> Path:
    return job.folder / f"{name}-{job.task}-{job.dtype}"


def _adapter(name: str) -> Any:
    return importlib.import_module(f"fastattn.bench.libraries.{LIBRARIES[name].adapter}")
