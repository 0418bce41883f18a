"""`share_weights=True`: processes map one copy of packed weights, which nobody can change."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fastattn import _core
from fastattn.api.auto import AutoModel, AutoModelForCausalLM
from fastattn.errors import ConfigError, InputError
from fastattn.executors import shared_weights
from tests.reference.checkpoints import write_bert, write_gpt2
from tests.reference.package import PYTHON_ENVIRONMENT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="weights are shared on Linux only")
IDS = [[2, 7, 3, 4], [5, 4]]
WORKER = """
import sys
from fastattn import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], threads=1, share_weights=True, dtype=sys.argv[2])
states = model([[2, 7, 3, 4], [5, 4]]).last_hidden_state
print(b"".join(row.tobytes() for row in states).hex(), flush=True)
sys.stdin.read()
"""


def bits(rows: Iterable[NDArray[np.float32]]) -> bytes:
    return b"".join(row.tobytes() for row in rows)


@pytest.fixture(autouse=True)
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / f"fastattn-{os.getuid()}"


def mapped(pid: int | str) -> dict[str, dict[str, int]]:
    """Return the KiB of each field of smaps, by memfd of shared weights."""
    found: dict[str, dict[str, int]] = {}
    fields: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            ours = len(words) > 5 and words[5].startswith("/memfd:fastattn-")
            fields = found.setdefault(words[4], {"n": 0}) if ours else {}
            fields["n"] = fields.get("n", 0) + 1
            assert not ours or words[1] == "r--s"
        elif words[-1] == "kB":
            fields[words[0][:-1]] = fields.get(words[0][:-1], 0) + int(words[1])
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_the_same_bits_from_shared_weights(tmp_path: Path, notes: Path, dtype: str) -> None:
    folder = write_gpt2(tmp_path / "m")
    with AutoModelForCausalLM.from_pretrained(folder, dtype=dtype) as model:
        expected = bits(model(IDS).logits)
    with AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, share_weights=True) as first:
        with AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, share_weights=True) as second:
            assert len(mapped("self")) == 1
            assert bits(first(IDS).logits) == bits(second(IDS).logits) == expected
        assert bits(first(IDS).logits) == expected
    del first, second
    assert mapped("self") == {}
    assert list(notes.glob("*-*")) == []


def test_two_processes_have_one_copy(tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "m")
    with AutoModel.from_pretrained(folder, dtype="int8") as model:
        expected = bits(model(IDS).last_hidden_state).hex()
    environment = {**PYTHON_ENVIRONMENT, "XDG_RUNTIME_DIR": str(tmp_path)}
    command = [sys.executable, "-c", WORKER, str(folder), "int8"]
    pipe = subprocess.PIPE
    workers = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) for _ in range(2)]
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline().strip() == expected
        ours = [mapped(worker.pid) for worker in workers]
        assert len(ours[0]) == 1
        assert ours[0].keys() == ours[1].keys()  # the same file
        for [fields] in (found.values() for found in ours):
            assert fields["n"] == 1
            assert fields["Private_Dirty"] == 0
            assert fields["Shared_Clean"] + fields["Shared_Dirty"] > 0
            assert fields["Pss"] < fields["Rss"]  # the pages that both have read count by halves
        third = subprocess.run(command, input="", stdout=pipe, text=True, env=environment, check=True)
        assert third.stdout.strip() == expected
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    # Their notes name no open file, so the weights are packed anew.
    with AutoModel.from_pretrained(folder, dtype="int8", share_weights=True) as model:
        assert bits(model(IDS).last_hidden_state).hex() == expected


def test_other_files_or_options_are_other_weights(tmp_path: Path) -> None:
    one, two = write_gpt2(tmp_path / "one"), write_gpt2(tmp_path / "two")
    load: Callable[..., AutoModelForCausalLM] = AutoModelForCausalLM.from_pretrained
    models = [load(one, share_weights=True), load(two, share_weights=True)]
    models.append(load(one, share_weights=True, dtype="int8"))
    assert len(mapped("self")) == 3
    (one / "model.safetensors").write_bytes((one / "model.safetensors").read_bytes())
    models.append(load(one, share_weights=True))
    assert len(mapped("self")) == 4


def test_the_weights_are_sealed(tmp_path: Path, notes: Path) -> None:
    with AutoModelForCausalLM.from_pretrained(write_gpt2(tmp_path / "m"), share_weights=True):
        [note] = notes.glob("*-*")
        digest, process, descriptor = note.name.split("-")
        assert int(process) == os.getpid()
        path = f"/proc/self/fd/{descriptor}"
        with open(path, "r+b", buffering=0) as file:
            with pytest.raises(PermissionError):
                os.pwrite(file.fileno(), b"x", 0)
            with pytest.raises(PermissionError):
                os.ftruncate(file.fileno(), 0)
            with pytest.raises(PermissionError):
                mmap.mmap(file.fileno(), 4096)
        assert shared_weights._open_sealed(path, "0" * len(digest)) == -1
    plain = os.memfd_create(f"fastattn-{digest}", os.MFD_ALLOW_SEALING)
    try:  # one that can still be written to is not used
        assert shared_weights._open_sealed(f"/proc/self/fd/{plain}", digest) == -1
    finally:
        os.close(plain)


def test_what_is_refused(tmp_path: Path, notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_gpt2(tmp_path / "m")
    with pytest.raises(InputError, match="share_weights: expected False on numpy, got True"):
        AutoModelForCausalLM.from_pretrained(folder, device="numpy", share_weights=True)
    notes.mkdir(mode=0o700)
    notes.chmod(0o755)
    with pytest.raises(ConfigError, match="expected a folder of this user with mode 700"):
        AutoModelForCausalLM.from_pretrained(folder, share_weights=True)
    notes.chmod(0o700)
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ConfigError, match="share_weights: expected Linux, got darwin"):
        AutoModelForCausalLM.from_pretrained(folder, share_weights=True)


def test_arrays_outside_of_the_file(tmp_path: Path) -> None:
    engine = _core.Engine(1)
    with open(tmp_path / "file", "w+b") as file:
        file.truncate(4096)
        for offset in (-64, 1, 4096, 4032, 1 << 62):
            with pytest.raises(InputError, match="expected bytes inside the shared weights"):
                engine.load_mapped(file.fileno(), 4096, [("v", "vector", "float32", 32, 1, (offset, 0, 0))])
        engine.load_mapped(file.fileno(), 4096, [("v", "vector", "float32", 16, 1, (4032, 0, 0))])
        assert np.concatenate(engine.packed("v")).tobytes() == bytes(64)
        with pytest.raises(ConfigError, match="could not map"):
            engine.load_mapped(file.fileno(), 0, [])
