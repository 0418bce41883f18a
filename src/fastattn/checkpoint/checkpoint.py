"""Opens a checkpoint: a directory with config.json and safetensors, single or sharded, or a GGUF file.

Independent of the model, and never imports pickle.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastattn.checkpoint.digests import check_verify, verify_files
from fastattn.checkpoint.file_names import (
    ADAPTER_NAME,
    CONFIG_NAME,
    GENERATION_NAME,
    INDEX_NAME,
    OTHER_FORMATS,
    SINGLE_NAME,
)
from fastattn.checkpoint.gguf.checkpoint import is_gguf, open_gguf
from fastattn.checkpoint.index import read_shards
from fastattn.checkpoint.quantized import CONFIG_KEY, QuantizedCheckpoint, is_quantized, read_quantized
from fastattn.checkpoint.safetensors import WEIGHT_DTYPES, TensorInfo, read_source
from fastattn.checkpoint.source import WeightSource, read_tensor
from fastattn.checks import check_flag, quote
from fastattn.errors import ConfigError, ModelFormatError, ModelNotFoundError
from fastattn.files import FileSet, malformed
from fastattn.jsonfile import CONFIG_LIMITS, JsonValue, read_json

if TYPE_CHECKING:
    from typing_extensions import Self

_MAX_SHOWN = 5
_CheckConfig: TypeAlias = "Callable[[Mapping[str, JsonValue]], object]"


@dataclass(frozen=True, slots=True)
class NonFinite:
    """The NaN or infinite weights of a tensor: the index and value of the first one, and how many there are."""

    tensor: str
    index: tuple[int, ...]
    value: float
    count: int


@dataclass(frozen=True, slots=True, repr=False)
class Checkpoint:
    """The contents of a directory, or of a GGUF file. Only headers have been read.

    config: config.json. A GGUF file's metadata and tensors have the names that Hugging Face uses. gguf_bytes: the total
    bytes of the tensors of each type in a GGUF file, by llama.cpp's name of the type.
    quantized: the packed weights of a directory that `fastattn quantize` wrote. `tensors` then has only the shapes of
    the tensors that they were made from. Each file is opened once and stays open until `close` or the end of a `with`
    block, so headers and data come from the same file. Tensors can also be read after that; this raises
    ModelFormatError (code "changed") if a file was replaced since.
    """

    path: Path
    config: Mapping[str, JsonValue]
    tensors: Mapping[str, WeightSource]
    quantized: QuantizedCheckpoint | None = None
    files: FileSet = field(default_factory=FileSet, compare=False)
    gguf_bytes: Mapping[str, int] = field(default_factory=dict)

    @property
    def weight_files(self) -> list[Path]:
        """The files with the weights."""
        if self.path.is_file():
            return [self.path]
        return sorted({info.path for info in self.tensors.values() if isinstance(info, TensorInfo)})

    def read(self, name: str) -> NDArray[np.float32]:
        """Read a tensor as float32 in its own shape.

        Raises ModelFormatError if weights cannot have its dtype, ConfigError for a quantized directory.
        """
        self._need_floats()
        return read_tensor(self.tensors[name])

    def find_nonfinite(self) -> list[NonFinite]:
        """Find every weight tensor that has NaN or infinity. Raises ConfigError for a quantized directory."""
        self._need_floats()
        found = []
        for info in self.tensors.values():
            if info.dtype in WEIGHT_DTYPES:
                found.extend(_nonfinite(info))
        return found

    def check_unchanged(self) -> None:
        """Raise ModelFormatError (code "changed") if a file was replaced or written to since it was opened."""
        self.files.check_unchanged()

    def close(self) -> None:
        self.files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        kind = "" if self.quantized is None else f", quantized to {self.quantized.dtype}"
        return f"<Checkpoint {str(self.path)!r}: {len(self.tensors)} tensors{kind}>"

    def _need_floats(self) -> None:
        if self.quantized is not None:
            raise ConfigError(f"{self.path}: expected a float checkpoint, got one quantized to {self.quantized.dtype}")


def open_checkpoint(
    path: str | Path,
    *,
    verify: Literal["sha256"] | Mapping[str, str] | None = None,
    check_finite: bool = False,
    check_config: _CheckConfig | None = None,
) -> Checkpoint:
    """Read config.json and the headers of a directory, or the header of a GGUF file.

    verify: "sha256" compares every weight file with SHA256SUMS in the directory, or with the name of its blob in a
    Hugging Face cache; a mapping gives the digests by file name. check_finite: refuse NaN and infinity in the weights.
    check_config: called before looking for weights; it raises for an unusable config.json. Raises InputError,
    DTypeError (arguments), ConfigError (config.json), ModelFormatError (weights), OSError (missing or unreadable file).
    """
    require_little_endian()
    check_finite = check_flag("check_finite", check_finite)
    digests = None if verify is None else check_verify(verify)
    directory = Path(path)
    from_gguf = is_gguf(directory)
    if not from_gguf and not directory.is_dir():
        raise ModelNotFoundError(
            f"{directory}: expected a directory with {CONFIG_NAME} and {SINGLE_NAME}; pass gguf_file for a GGUF file"
        )
    files = FileSet()
    try:
        checkpoint = (_open_gguf if from_gguf else _open_folder)(directory, files, check_config)
        if verify is not None:
            weights = [files.open(path) for path in checkpoint.weight_files]
            verify_files(directory.parent if from_gguf else directory, weights, digests, files)
        if check_finite:
            refuse_nonfinite(checkpoint)
    except BaseException:
        files.close()
        raise
    return checkpoint


def _open_folder(directory: Path, files: FileSet, check_config: _CheckConfig | None) -> Checkpoint:
    config = read_config(directory, files=files)
    if check_config is not None:
        check_config(config)
    quantized = None
    if is_quantized(config):
        quantized = read_quantized(directory / SINGLE_NAME, config, files=files)
        del config[CONFIG_KEY]
    tensors = _read_tensors(directory, config, files) if quantized is None else dict(quantized.originals)
    return Checkpoint(directory, config, tensors, quantized, files)


def _open_gguf(path: Path, files: FileSet, check_config: _CheckConfig | None) -> Checkpoint:
    found = open_gguf(path, files)
    if check_config is not None:
        check_config(found.config)
    return Checkpoint(path, found.config, found.tensors, None, files, found.stored)


def refuse_nonfinite(checkpoint: Checkpoint) -> None:
    """Raise ModelFormatError (code "not_finite") if a weight is NaN or infinite."""
    bad = checkpoint.find_nonfinite()
    if not bad:
        return
    listed = "; ".join(
        f"{_shown(item.tensor)}{list(item.index)} = {item.value} ({item.count} in all)" for item in bad[:_MAX_SHOWN]
    )
    more = f"; {len(bad) - _MAX_SHOWN} more tensors" if len(bad) > _MAX_SHOWN else ""
    raise ModelFormatError(
        f"{checkpoint.path}: expected finite weights, got {listed}{more}",
        path=str(checkpoint.path),
        tensor=bad[0].tensor,
        code="not_finite",
    )


def require_little_endian(byteorder: str = sys.byteorder) -> None:
    """Refuse a big-endian machine: the files are little-endian and are read without conversion."""
    if byteorder != "little":
        raise ModelFormatError(
            f"checkpoints are little-endian, and this machine is {byteorder}-endian", code="byte_order"
        )


def read_config(directory: Path, *, files: FileSet | None = None) -> dict[str, JsonValue]:
    """Read config.json as a dict. As in transformers, the bos and eos ids of generation_config.json take precedence.

    The padding id of that file is for generation only. It becomes "generation_pad_token_id", null if the file has none.
    files: the set that the files join. Raises ConfigError.
    """
    config = read_object(directory / CONFIG_NAME, files)
    if config is None:
        raise ConfigError(f"{directory / CONFIG_NAME}: expected a config.json next to the weights, found none")
    generation = read_generation_config(directory, files=files)
    ids = {key: generation[key] for key in ("bos_token_id", "eos_token_id") if generation.get(key) is not None}
    pad = {"generation_pad_token_id": generation.get("pad_token_id")} if generation else {}
    return {**config, **ids, **pad}


def read_generation_config(directory: Path, *, files: FileSet | None = None) -> dict[str, JsonValue]:
    """Read generation_config.json as a dict; {} if there is none, as next to a GGUF file. Raises ConfigError."""
    if is_gguf(directory):
        return {}
    return read_object(directory / GENERATION_NAME, files) or {}


def read_object(path: Path, files: FileSet | None) -> dict[str, JsonValue] | None:
    """Read a JSON object; None if there is no such file."""
    try:
        value = read_json(path, files=files, limits=CONFIG_LIMITS)
    except FileNotFoundError:
        return None
    except ModelFormatError as error:
        if error.code == "changed":
            raise
        raise ConfigError(str(error)) from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _read_tensors(directory: Path, config: Mapping[str, JsonValue], files: FileSet) -> Mapping[str, WeightSource]:
    single = directory / SINGLE_NAME
    if single.is_symlink() or single.exists():  # takes precedence over an index, as in transformers
        return read_source(files.open(single))[0]
    files.expect_missing(single)
    if (directory / INDEX_NAME).exists():
        return read_shards(directory, files)
    others = sorted(entry.name for entry in directory.iterdir() if entry.suffix in OTHER_FORMATS)
    if others:
        call = f"{_class_of(config)}.from_pretrained(directory).save_pretrained(directory)"
        hint = f"convert it once with transformers: {call}"
        shown = ", ".join(map(_shown, others[:_MAX_SHOWN]))
        raise malformed(directory, "other_format", f"expected {SINGLE_NAME}, found only {shown}; {hint}")
    adapter = (directory / ADAPTER_NAME).exists()
    hint = (
        f"; found {ADAPTER_NAME}: load the model that it was trained for with adapter={str(directory)!r}"
        if adapter
        else ""
    )
    raise ModelNotFoundError(f"{directory}: expected {SINGLE_NAME} or {INDEX_NAME}, found neither{hint}")


def _class_of(config: Mapping[str, JsonValue]) -> str:
    """Return the class of transformers that loads a checkpoint with its head; AutoModel would drop it."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    return name if isinstance(name, str) and len(name) <= 60 and re.fullmatch(r"[A-Za-z0-9]+", name) else "AutoModel"


def _shown(name: str) -> str:
    """Format a name for a message, without quotes if it is plain ASCII."""
    return name if len(name) <= 60 and name.isprintable() and name.isascii() else quote(name)


def _nonfinite(info: WeightSource) -> list[NonFinite]:
    values = read_tensor(info)
    bad = np.flatnonzero(~np.isfinite(values))
    if not len(bad):
        return []
    index = tuple(int(i) for i in np.unravel_index(int(bad[0]), info.shape))
    return [NonFinite(info.name, index, float(values.reshape(-1)[bad[0]]), len(bad))]
