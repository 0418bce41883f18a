"""Measures the machine's limits: multiplication rates and read rates of every cache and of memory."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fastattn.bench.tables import quantity, size, text_table
from fastattn.executors import cpu
from fastattn.profiling import limits
from fastattn.profiling.limits import Limits

DRAM_BYTES = 1 << 29  # minimum; four times the largest cache if that is more
_SYSTEM = Path("/sys/devices/system/cpu")
_LIBRARIES = ("numpy", "torch", "transformers", "onnxruntime", "ctranslate2", "openvino", "llama_cpp_python")
RATE_NAMES = {"float32": "float32 multiply-add", "bfloat16": "bfloat16 dot product", "int8": "int8 dot product"}


@dataclass(frozen=True, slots=True)
class CacheLevel:
    """One level of data cache: the size of one cache in bytes, and the sets of CPUs that share one."""

    level: int
    bytes: int
    shared: tuple[frozenset[int], ...]

    def bytes_for(self, threads: int) -> int:
        """Return the total size available to threads that run on separate CPUs."""
        return self.bytes * min(threads, len(self.shared))


@dataclass(frozen=True, slots=True)
class ReadRate:
    """GB/s when reading `bytes` repeatedly; place: "L1", "L2", "L3" or "memory"."""

    place: str
    bytes: int
    gbps: float


@dataclass(frozen=True, slots=True)
class Machine:
    """The limits by number of threads. rates: as in `fastattn.profiling.limits.Limits`."""

    caches: tuple[CacheLevel, ...]
    limits: Mapping[int, Limits]
    reads: Mapping[int, tuple[ReadRate, ...]]

    def as_dict(self) -> dict[str, Any]:
        return {
            "caches": [
                {"level": cache.level, "bytes": cache.bytes, "count": len(cache.shared)} for cache in self.caches
            ],
            "limits": [
                {"threads": n, "rates": dict(found.rates), "reads": [asdict(read) for read in self.reads[n]]}
                for n, found in self.limits.items()
            ],
        }

    def table(self) -> str:
        """Return a table of the rates with one thread and with all."""
        counts = list(self.limits)
        header = ["", *(f"{n} thread{'s' if n > 1 else ''}" for n in counts)]
        rows = []
        for name in self.limits[counts[0]].rates:
            unit = "GOP/s" if name.startswith("int") else "GFLOP/s"
            cells = [f"{quantity(self.limits[n].rates[name])} {unit}" for n in counts]
            rows.append([RATE_NAMES.get(name, name), *cells])
        places = list(dict.fromkeys(read.place for n in counts for read in self.reads[n]))
        for place in places:
            cells = []
            for n in counts:
                found = [read for read in self.reads[n] if read.place == place]
                cells.append(f"{quantity(found[0].gbps)} GB/s" if found else "")
            rows.append([self._place(place), *cells])
        return text_table(header, rows)

    def _place(self, place: str) -> str:
        for cache in self.caches:
            if place == f"L{cache.level}":
                times = f"{len(cache.shared)} x " if len(cache.shared) > 1 else ""
                return f"{place} read ({times}{size(cache.bytes)})"
        return f"{place} read"


def measure_machine(threads: int, *, seconds: float = 0.2) -> Machine:
    """Measure with one thread and with `threads`, for about `seconds` / 2 per rate. Raises InputError."""
    caches = read_caches()
    counts = list(dict.fromkeys((1, threads)))
    found: dict[int, Limits] = {}
    reads: dict[int, tuple[ReadRate, ...]] = {}
    for n in counts:
        rates = [ReadRate(place, n_bytes, limits.measure(n, seconds=seconds, read_bytes=n_bytes).read_gbps)
                 for place, n_bytes in buffers(caches, n)]  # fmt: skip
        found[n] = limits.measure(n, seconds=seconds, read_bytes=memory_bytes(caches))
        reads[n] = (*rates, ReadRate("memory", memory_bytes(caches), found[n].read_gbps))
    return Machine(caches, found, reads)


def buffers(caches: tuple[CacheLevel, ...], threads: int) -> list[tuple[str, int]]:
    """Return half of each cache level's size for these threads, if that does not fit into the previous level."""
    found, before = [], 0
    for cache in caches:
        n_bytes = cache.bytes_for(threads) // 2
        if n_bytes > before:
            found.append((f"L{cache.level}", n_bytes))
        before = max(before, cache.bytes_for(threads))
    return found


def memory_bytes(caches: tuple[CacheLevel, ...]) -> int:
    """Return the size of a buffer that exceeds every cache but uses at most a quarter of the free memory."""
    largest = max((cache.bytes_for(len(cache.shared)) for cache in caches), default=0)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1 << 20, min(max(DRAM_BYTES, 4 * largest), free // 4))


def read_caches(root: Path = _SYSTEM) -> tuple[CacheLevel, ...]:
    """Return the data caches of the CPUs that this process may use, from the kernel; empty if unknown."""
    allowed = os.sched_getaffinity(0)
    found: dict[int, dict[frozenset[int], int]] = {}
    for number in sorted(allowed):
        for index in sorted((root / f"cpu{number}" / "cache").glob("index*")):
            try:
                fields = {name: (index / name).read_text().strip() for name in ("level", "type", "size")}
                shared = cpu_list((index / "shared_cpu_list").read_text()) & allowed
                n_bytes = _bytes(fields["size"])
                level = int(fields["level"])
            except (OSError, ValueError):
                continue
            if fields["type"] != "Instruction":
                found.setdefault(level, {})[frozenset(shared or {number})] = n_bytes
    return tuple(CacheLevel(level, min(by_cpus.values()), tuple(by_cpus)) for level, by_cpus in sorted(found.items()))


def cpu_list(text: str) -> set[int]:
    """Convert the kernel's "0-2,8" to numbers. Raises ValueError."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def _bytes(text: str) -> int:
    """Convert the kernel's "48K" to bytes."""
    found = re.fullmatch(r"(\d+)([KMG]?)", text)
    if found is None:
        raise ValueError(text)
    return int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2]]


def about() -> dict[str, Any]:
    """Describe the CPU, the build and the installed packages, for reports."""
    info = cpu.info()
    versions = {}
    for name in sorted(_LIBRARIES):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "cpu": cpu_name(),
        "cpus": len(os.sched_getaffinity(0)),
        "target": info["target_active"],
        "compiler": info["compiler"],
        "fastattn": info["version"],
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def cpu_name() -> str:
    """Return the kernel's name for the CPU."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def headline(found: Mapping[str, Any]) -> str:
    """Format the result of `about` as one line."""
    cpus = f"{found['cpus']} CPU{'s' if found['cpus'] > 1 else ''}"
    return f"{found['cpu']}, {cpus}, target {found['target']}, fastattn {found['fastattn']} ({found['compiler']})"
