"""A checkpoint directory: config.json and safetensors, single or sharded. Knows no model, and never imports pickle."""

from __future__ import annotations

import hashlib
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fastattn.checkpoint.files import open_regular, read_at
from fastattn.checkpoint.quantised import CONFIG_KEY, Quantised, is_quantised, read_quantised
from fastattn.checkpoint.safetensors import NOT_THERE, WEIGHT_DTYPES, TensorInfo, read_header
from fastattn.checkpoint.strict_json import JsonError, JsonValue, parse
from fastattn.errors import ConfigError, ModelFormatError, ModelNotFoundError

CONFIG_NAME = "config.json"
GENERATION_NAME = "generation_config.json"
SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
SUMS_NAME = "SHA256SUMS"
MAX_CONFIG_BYTES = 16 << 20
MAX_INDEX_BYTES = 64 << 20
MAX_INDEX_ENTRIES = 100_000
OTHER_FORMATS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx")

_READ_BYTES = 16 << 20
_log = logging.getLogger("fastattn")


@dataclass(frozen=True, slots=True)
class NonFinite:
    """A weight that is NaN or infinite: the tensor, the index of the first one in it, and how many there are."""

    tensor: str
    index: tuple[int, ...]
    value: float
    count: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a directory holds. Nothing but headers has been read.

    quantised: the packed weights of a directory that `fastattn quantize` wrote; there `tensors` are those that they
    were made from, which say their shapes alone.
    """

    path: Path
    config: Mapping[str, JsonValue]
    tensors: Mapping[str, TensorInfo]
    quantised: Quantised | None = None

    def read(self, name: str) -> NDArray[np.float32]:
        """A tensor as float32 in its own shape. Raises ModelFormatError where its dtype is no weight's, ConfigError for
        a quantised directory."""
        self._need_floats()
        return read_tensor(self.tensors[name])

    def find_nonfinite(self) -> list[NonFinite]:
        """Every tensor of weights that holds NaN or infinity. Raises ConfigError for a quantised directory."""
        self._need_floats()
        found = []
        for info in self.tensors.values():
            if info.dtype in WEIGHT_DTYPES:
                found.extend(_nonfinite(info))
        return found

    def _need_floats(self) -> None:
        if self.quantised is not None:
            raise ConfigError(f"{self.path}: expected a float checkpoint, got a quantised one")


def open_checkpoint(
    path: str | Path,
    *,
    verify: Literal["sha256"] | Mapping[str, str] | None = None,
    check_finite: bool = False,
    check_config: Callable[[Mapping[str, JsonValue]], object] | None = None,
) -> Checkpoint:
    """Read config.json and the headers of a directory.

    verify: "sha256" compares every weight file with SHA256SUMS in the directory, or with the name of its blob in a
    Hugging Face cache; a mapping gives the digests by file name. check_finite: refuse NaN and infinity in the weights.
    check_config: raises for a config.json that is of no use, before weights are looked for.
    Raises ConfigError (config.json), ModelFormatError (weights), OSError (not there, not readable).
    """
    require_little_endian()
    directory = Path(path)
    if not directory.is_dir():
        raise ModelNotFoundError(f"{directory}: expected a directory with {CONFIG_NAME} and {SINGLE_NAME}")
    config = read_config(directory)
    if check_config is not None:
        check_config(config)
    quantised = None
    if is_quantised(config):
        quantised = read_quantised(directory / SINGLE_NAME, config)
        del config[CONFIG_KEY]
    tensors = _read_tensors(directory) if quantised is None else dict(quantised.originals)
    if verify is not None:
        _verify(directory, {info.path for info in tensors.values()}, None if verify == "sha256" else verify)
    checkpoint = Checkpoint(directory, config, tensors, quantised)
    if check_finite and (bad := checkpoint.find_nonfinite()):
        listed = "; ".join(f"{item.tensor}{list(item.index)} = {item.value} ({item.count} in all)" for item in bad[:20])
        raise ModelFormatError(
            f"{directory}: expected finite weights, got {listed}",
            path=str(directory),
            tensor=bad[0].tensor,
            code="not_finite",
        )
    return checkpoint


def require_little_endian(byteorder: str = sys.byteorder) -> None:
    """The files are little-endian and are read as they are."""
    if byteorder != "little":
        raise ModelFormatError(
            f"checkpoints are little-endian, and this machine is {byteorder}-endian", code="byte_order"
        )


def read_config(directory: Path) -> dict[str, JsonValue]:
    """config.json as a dict. As in transformers, bos and eos ids of a generation_config.json win; its padding id, for
    generation alone, becomes "generation_pad_token_id", which is null where that file names none.

    Raises ConfigError.
    """
    config = _read_object(directory / CONFIG_NAME)
    if config is None:
        raise ConfigError(f"{directory / CONFIG_NAME}: expected a config.json beside the weights, found none")
    generation = read_generation_config(directory)
    ids = {key: generation[key] for key in ("bos_token_id", "eos_token_id") if generation.get(key) is not None}
    pad = {"generation_pad_token_id": generation.get("pad_token_id")} if generation else {}
    return {**config, **ids, **pad}


def read_generation_config(directory: Path) -> dict[str, JsonValue]:
    """generation_config.json as a dict, {} where there is none. Raises ConfigError."""
    return _read_object(directory / GENERATION_NAME) or {}


def _read_object(path: Path) -> dict[str, JsonValue] | None:
    """A JSON object; None where there is no such file."""
    try:
        value = parse(_read_small(path, MAX_CONFIG_BYTES))
    except FileNotFoundError:
        return None
    except (JsonError, ModelFormatError) as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _read_small(path: Path, limit: int) -> bytes:
    with open_regular(path) as (descriptor, size):
        if size > limit:
            raise ModelFormatError(
                f"{path}: expected at most {limit} bytes, got {size}", path=str(path), code="file_too_large"
            )
        return read_at(descriptor, size, 0)


def _read_tensors(directory: Path) -> dict[str, TensorInfo]:
    single = directory / SINGLE_NAME
    if single.is_symlink() or single.exists():  # before an index, as transformers does it
        return read_header(single)
    if (directory / INDEX_NAME).exists():
        return _read_shards(directory)
    others = sorted(entry.name for entry in directory.iterdir() if entry.suffix in OTHER_FORMATS)
    if others:
        hint = "convert it once with transformers: AutoModel.from_pretrained(directory).save_pretrained(new_directory)"
        raise ModelFormatError(
            f"{directory}: expected {SINGLE_NAME}, found only {', '.join(others[:5])}; {hint}",
            path=str(directory),
            code="other_format",
        )
    raise ModelNotFoundError(f"{directory}: expected {SINGLE_NAME} or {INDEX_NAME}, found neither")


def _read_shards(directory: Path) -> dict[str, TensorInfo]:
    weight_map = _read_index(directory / INDEX_NAME)
    tensors: dict[str, TensorInfo] = {}
    for shard in sorted(set(weight_map.values())):
        path = directory / shard
        try:
            found = read_header(path)
        except FileNotFoundError:
            raise ModelFormatError(
                f"{path}: listed in {INDEX_NAME}, but missing", path=str(path), code="shard"
            ) from None
        for name, info in found.items():
            listed = weight_map.get(name)
            if name in tensors or (listed is not None and listed != shard):
                other = tensors[name].path.name if name in tensors else listed
                raise ModelFormatError(
                    f"{path}: tensor {name!r} is also in {other}", path=str(path), tensor=name, code="shard_twice"
                )
            if listed is None:
                _log.warning("%s: tensor %r is not listed in %s", path, name, INDEX_NAME)
            tensors[name] = info
    for name, shard in weight_map.items():
        if name not in tensors:
            raise ModelFormatError(
                f"{directory / shard}: tensor {name!r} is listed in {INDEX_NAME}, but not there",
                path=str(directory / shard),
                tensor=name,
                code="shard_missing_tensor",
            )
    return tensors


def _read_index(path: Path) -> dict[str, str]:
    """weight_map: tensor name -> file name, with every file name a single harmless basename."""
    data = _read_small(path, MAX_INDEX_BYTES)
    if data.count(b'"') > 4 * MAX_INDEX_ENTRIES:
        raise ModelFormatError(
            f"{path}: expected at most {MAX_INDEX_ENTRIES} entries", path=str(path), code="index_too_large"
        )
    try:
        value = parse(data)
    except JsonError as error:
        raise ModelFormatError(f"{path}: {error}", path=str(path), code="index_json") from None
    weight_map = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFormatError(f"{path}: expected a weight_map of names to files", path=str(path), code="index_json")
    checked: dict[str, str] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_shard_name(shard):
            raise ModelFormatError(
                f"{path}: weight_map[{name!r}]: expected the name of a .safetensors file beside the index, "
                f"got {shard!r:.80}",
                path=str(path),
                tensor=name,
                code="shard_name",
            )
        checked[name] = shard
    return checked


def _is_shard_name(name: str) -> bool:
    """One basename, judged by its text alone: in a Hugging Face cache the file itself is a symlink elsewhere."""
    return re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,200}\.safetensors", name) is not None


def _chunks(info: TensorInfo, size: int) -> Iterator[bytes]:
    with open_regular(info.path) as (descriptor, _):
        done = 0
        while done < info.nbytes:
            chunk = read_at(descriptor, min(size, info.nbytes - done), info.offset + done)
            if not chunk:
                raise ModelFormatError(
                    f"{info.path}: tensor {info.name!r}: the file became shorter while it was read",
                    path=str(info.path),
                    tensor=info.name,
                    offset=info.offset + done,
                    code="data_truncated",
                )
            done += len(chunk)
            yield chunk


def require_weight_dtype(info: TensorInfo) -> None:
    """Refuse a tensor whose dtype is known but no weight's (integers, 8-bit floats, ...)."""
    if info.dtype not in WEIGHT_DTYPES:
        raise ModelFormatError(
            f"{info.path}: tensor {info.name!r}: dtype: expected one of {', '.join(WEIGHT_DTYPES)}, got {info.dtype}",
            path=str(info.path),
            tensor=info.name,
            offset=info.offset,
            code="dtype_unsupported",
        )


def _to_float32(data: bytes, dtype: str) -> NDArray[np.float32]:
    if dtype == "BF16":
        wide: NDArray[np.float32] = (np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
        return wide
    return np.frombuffer(data, "<f4" if dtype == "F32" else "<f2").astype(np.float32)


def read_tensor(info: TensorInfo) -> NDArray[np.float32]:
    """A tensor as float32 in its own shape."""
    require_weight_dtype(info)
    return _to_float32(b"".join(_chunks(info, _READ_BYTES)), info.dtype).reshape(info.shape)


def same_data(a: TensorInfo, b: TensorInfo) -> bool:
    """Whether two tensors hold the same bytes in the same dtype and shape."""
    if (a.dtype, a.shape) != (b.dtype, b.shape) or NOT_THERE in (a.offset, b.offset):
        return False
    pairs = zip(_chunks(a, _READ_BYTES), _chunks(b, _READ_BYTES), strict=True)
    return (a.path, a.offset) == (b.path, b.offset) or all(left == right for left, right in pairs)


def _nonfinite(info: TensorInfo) -> list[NonFinite]:
    values = read_tensor(info)
    bad = np.flatnonzero(~np.isfinite(values))
    if not len(bad):
        return []
    index = tuple(int(i) for i in np.unravel_index(int(bad[0]), info.shape))
    return [NonFinite(info.name, index, float(values.reshape(-1)[bad[0]]), len(bad))]


def _verify(directory: Path, files: set[Path], digests: Mapping[str, str] | None) -> None:
    known = _known_digests(directory, files) if digests is None else digests
    for path in sorted(files):
        expected = known.get(path.name)
        if expected is None:
            raise ModelFormatError(
                f"{path}: verify: expected its SHA-256 in {SUMS_NAME}, found none",
                path=str(path),
                code="sha256_unknown",
            )
        digest = hashlib.sha256()
        with open_regular(path) as (descriptor, size):
            for offset in range(0, size, _READ_BYTES):
                digest.update(read_at(descriptor, _READ_BYTES, offset))
        if digest.hexdigest() != expected.lower():
            raise ModelFormatError(
                f"{path}: expected SHA-256 {expected.lower()}, got {digest.hexdigest()}", path=str(path), code="sha256"
            )


def _known_digests(directory: Path, files: set[Path]) -> dict[str, str]:
    """From SHA256SUMS (sha256sum's format), else from the names of the blobs in a Hugging Face cache."""
    digests = {path.name: path.resolve().name for path in files if re.fullmatch("[0-9a-f]{64}", path.resolve().name)}
    sums = directory / SUMS_NAME
    if sums.exists():
        lines = _read_small(sums, MAX_CONFIG_BYTES).decode("utf-8", "replace").splitlines()
        for line in lines:
            match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](.+)", line)
            if match:
                digests[match[2]] = match[1]
    return digests
