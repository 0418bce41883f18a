"""Caches as the kernel reports them, buffers that fit, and a table; no test depends on a clock."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fastattn.bench import machine
from fastattn.bench.machine import CacheLevel, about, buffers, cpu_list, headline, measure_machine, read_caches
from fastattn.errors import InputError

KIB, MIB = 1 << 10, 1 << 20


def write_cache(root: Path, cpu: int, index: int, level: int, kind: str, size: str, shared: str) -> None:
    folder = root / f"cpu{cpu}" / "cache" / f"index{index}"
    folder.mkdir(parents=True)
    for name, text in {"level": level, "type": kind, "size": size, "shared_cpu_list": shared}.items():
        (folder / name).write_text(f"{text}\n")


def test_caches_of_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    for cpu in range(4):
        pair = f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}"
        write_cache(tmp_path, cpu, 0, 1, "Data", "48K", str(cpu))
        write_cache(tmp_path, cpu, 1, 1, "Instruction", "32K", str(cpu))
        write_cache(tmp_path, cpu, 2, 2, "Unified", "1024K", pair)
        write_cache(tmp_path, cpu, 3, 3, "Unified", "32M", "0-3")
    caches = read_caches(tmp_path)
    assert [(cache.level, cache.bytes) for cache in caches] == [(1, 48 * KIB), (2, MIB), (3, 32 * MIB)]
    assert caches[0].shared == (frozenset({0}), frozenset({1}), frozenset({2}))
    assert caches[1].shared == (frozenset({0, 1}), frozenset({2}))  # CPU 3 is not available to us
    assert caches[2].shared == (frozenset({0, 1, 2}),)
    assert [cache.bytes_for(2) for cache in caches] == [96 * KIB, 2 * MIB, 32 * MIB]


def test_a_kernel_that_does_not_report_its_caches(tmp_path: Path) -> None:
    assert read_caches(tmp_path) == ()
    write_cache(tmp_path, min(os.sched_getaffinity(0)), 0, 1, "Data", "many", "0")
    assert read_caches(tmp_path) == ()
    assert buffers((), 2) == []


@pytest.mark.parametrize(("text", "cpus"), [("0", {0}), ("0-2\n", {0, 1, 2}), ("0-1,8,10-11", {0, 1, 8, 10, 11})])
def test_cpu_lists(text: str, cpus: set[int]) -> None:
    assert cpu_list(text) == cpus


def test_text_that_is_not_a_cpu_list() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        cpu_list("a-b")


def test_buffers_fit_their_level_alone() -> None:
    cpus = tuple(frozenset({i}) for i in range(4))
    caches = (CacheLevel(1, 48 * KIB, cpus), CacheLevel(2, MIB, cpus), CacheLevel(3, 32 * MIB, (frozenset(range(4)),)))
    assert buffers(caches, 1) == [("L1", 24 * KIB), ("L2", 512 * KIB), ("L3", 16 * MIB)]
    assert buffers(caches, 4) == [("L1", 96 * KIB), ("L2", 2 * MIB), ("L3", 16 * MIB)]
    small = (caches[0], CacheLevel(2, 2 * MIB, cpus), CacheLevel(3, 6 * MIB, (frozenset(range(4)),)))
    assert [place for place, _ in buffers(small, 4)] == ["L1", "L2"]  # half of L3 would fit into the four L2


def test_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "DRAM_BYTES", 8 * MIB)
    monkeypatch.setattr(machine, "read_caches", lambda: (CacheLevel(1, 16 * KIB, (frozenset({0}), frozenset({1}))),))
    found = measure_machine(2, seconds=0.01)
    assert list(found.limits) == [1, 2]
    for threads, reads in found.reads.items():
        assert [read.place for read in reads] == ["L1", "memory"]
        assert reads[0].bytes == 8 * KIB * threads
        assert all(read.gbps > 0 for read in reads)
        assert all(rate > 0 for rate in found.limits[threads].rates.values())
    assert json.loads(json.dumps(found.as_dict()))["limits"][1]["reads"][0]["place"] == "L1"
    lines = found.table().splitlines()
    assert lines[0].split() == ["1", "thread", "2", "threads"]
    assert lines[1].startswith("float32 multiply-add")
    assert lines[-2].startswith("L1 read (2 x 16 KiB)")
    assert lines[-1].startswith("memory read")
    assert list(measure_machine(1, seconds=0.01).limits) == [1]


def test_no_threads() -> None:
    with pytest.raises(InputError, match="threads"):
        measure_machine(0, seconds=0.01)


def test_about_this_machine() -> None:
    found = about()
    assert found["cpus"] == len(os.sched_getaffinity(0))
    assert found["versions"]["numpy"]
    assert found["cpu"] in headline(found)
    assert json.dumps(found)
