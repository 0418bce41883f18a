"""A folder that changes while it is read: one complete state of it is loaded, or a ModelFormatError reports it."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import fastattn
from fastattn.api.auto import AutoModelForCausalLM
from fastattn.checkpoint import open_checkpoint, read_header, read_tensor
from fastattn.checkpoint.index import INDEX_NAME
from fastattn.errors import ModelFormatError
from fastattn.executors import cpu
from fastattn.files import FileSet, SourceFile
from fastattn.jsonfile import read_json
from tests.reference.checkpoints import GPT2, gpt2_tensors, safetensors, write

IDS = [1, 2, 3, 4]
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def write_model(folder: Path, *, sharded: bool, n_head: int, scale: float) -> Path:
    """Write models of one shape: the header, config or index of one fits the data of another."""
    config = {**GPT2, "n_head": n_head}
    tensors = {name: (array * np.float32(scale)) for name, array in gpt2_tensors(config).items()}
    if n_head == 4:  # tensors in a different order: its header does not fit the others' data
        tensors = dict(reversed(tensors.items()))
    write(folder, config, tensors)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": n_head}))
    if sharded:
        (folder / "model.safetensors").unlink()
        names = list(tensors)
        halves = (names[::2], names[1::2]) if n_head == 3 else (names[1::2], names[::2])
        for shard, half in zip(SHARDS, halves, strict=True):
            (folder / shard).write_bytes(safetensors({name: tensors[name] for name in half}))
        weight_map = {name: shard for shard, half in zip(SHARDS, halves, strict=True) for name in half}
        (folder / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def logits_of(folder: Path, device: str) -> np.ndarray[Any, Any]:
    with AutoModelForCausalLM.from_pretrained(folder, device=device) as model:
        return np.asarray(model(IDS).logits)


@pytest.fixture(params=[False, True], ids=["single", "sharded"])
def versions(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """Return two models of the same shapes, old enough for the file system's clock to tell them from new files."""
    first = write_model(tmp_path / "first", sharded=request.param, n_head=3, scale=1)
    second = write_model(tmp_path / "second", sharded=request.param, n_head=4, scale=0.5)
    wait_for_file_clock(tmp_path)
    return first, second


def wait_for_file_clock(folder: Path) -> None:
    """Wait until a file written now is newer than those written before: the clock of a file system has ticks."""
    probe = folder / "probe"
    probe.write_bytes(b"a")
    begin = probe.stat().st_mtime_ns
    while probe.stat().st_mtime_ns == begin:
        probe.write_bytes(b"a")


class Hook:
    """Calls `act` before the n-th step that touches a folder: opening, reading or examining one of its files."""

    def __init__(self, folder: Path, at: int, act: Callable[[], None]) -> None:
        self.folder, self.at, self.act, self.steps, self.acted = folder, at, act, 0, False

    def step(self) -> None:
        if self.steps == self.at and not self.acted:
            self.acted = True
            self.act()
        self.steps += 1


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> Callable[[Hook], contextlib.AbstractContextManager[None]]:
    current: list[Hook] = []

    def wrap(name: str, module: Any = os) -> None:
        original = getattr(module, name)

        @functools.wraps(original)
        def hooked_call(*args: Any, **options: Any) -> Any:
            ours = current and not current[0].acted
            if ours and (not isinstance(args[0], (str, Path)) or str(current[0].folder) in str(args[0])):
                current[0].step()
            return original(*args, **options)

        monkeypatch.setattr(module, name, hooked_call)

    for name in ("open", "pread", "fstat", "stat"):
        wrap(name)
    wrap("_load", cpu)  # where the C++ engine reads

    @contextlib.contextmanager
    def use(hook: Hook) -> Iterator[None]:
        current.append(hook)
        try:
            yield
        finally:
            current.clear()

    return use


def replace_files(source: Path, target: Path, names: list[str]) -> None:
    """Replace each file by a rename, like programs that never write over a file."""
    for name in names:
        copy = target.with_name(f"{name}.new")
        shutil.copyfile(source / name, copy)
        os.replace(copy, target / name)


def overwrite_files(source: Path, target: Path, names: list[str]) -> None:
    """Overwrite in place with the old times: sizes and inodes do not change either."""
    for name in names:
        status = (target / name).stat()
        with (target / name).open("r+b") as file:
            file.write((source / name).read_bytes())
            file.truncate()
        os.utime(target / name, ns=(status.st_atime_ns, status.st_mtime_ns))


def touched(names: list[str], which: str) -> list[str]:
    if which == "all":
        return names
    kind = {"weights": ".safetensors", "config": "config.json", "index": INDEX_NAME}[which]
    return [name for name in names if name.endswith(kind)]


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # from numpy, for the numbers in torn files
@pytest.mark.parametrize("which", ["all", "weights", "config", "index"])
@pytest.mark.parametrize("change", [replace_files, overwrite_files])
def test_a_folder_that_changes_at_any_step_of_a_load(
    versions: tuple[Path, Path],
    tmp_path: Path,
    device: str,
    change: Callable[[Path, Path, list[str]], None],
    which: str,
    hooked: Callable[[Hook], contextlib.AbstractContextManager[None]],
) -> None:
    first, second = versions
    names = touched(sorted(path.name for path in first.iterdir()), which)
    if not names:
        return  # a single file has no index
    mixed = tmp_path / "mixed"
    shutil.copytree(first, mixed)
    change(second, mixed, names)
    before, after = outcome(first, device), outcome(mixed, device)
    assert isinstance(before, np.ndarray)
    counts, at = {"before": 0, "after": 0, "changed": 0}, 0
    while True:
        folder = tmp_path / f"folder{at}"
        shutil.copytree(first, folder)
        wait_for_file_clock(tmp_path)
        hook = Hook(folder, at, lambda folder=folder: change(second, folder, names))  # type: ignore[misc]
        with hooked(hook):
            found = outcome(folder, device)
        assert judged(found, before, after, counts), (at, which, found)
        if not hook.acted:
            break
        at += 3 if at > 12 else 1  # every step at first, where headers are read
    assert counts["before"] > 0  # at least without a change
    assert counts["changed"] > 1
    assert at > 15


Outcome = np.ndarray[Any, Any] | fastattn.FastattnError


def outcome(folder: Path, device: str) -> Outcome:
    try:
        return logits_of(folder, device)
    except fastattn.FastattnError as error:
        return error


def judged(found: Outcome, before: Outcome, after: Outcome, counts: dict[str, int]) -> bool:
    """Return whether the outcome matches one of the two states, or is an error about the change or the mismatch."""
    if isinstance(found, np.ndarray):
        for name, known in (("before", before), ("after", after)):
            if isinstance(known, np.ndarray) and np.array_equal(found, known):
                counts[name] += 1
                return True
        return False
    counts["changed"] += isinstance(found, ModelFormatError) and found.code == "changed"
    return True


def test_a_link_that_is_switched_to_another_folder(versions: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = versions
    current = tmp_path / "current"
    current.symlink_to(first)
    with open_checkpoint(current) as checkpoint:
        checkpoint.check_unchanged()
        (tmp_path / "new").symlink_to(second)
        os.replace(tmp_path / "new", current)
        for name, info in read_header_of(first).items():
            assert np.array_equal(checkpoint.read(name), read_tensor(info))  # the files that were opened
        with pytest.raises(ModelFormatError) as caught:
            checkpoint.check_unchanged()
        assert caught.value.code == "changed"


def read_header_of(folder: Path) -> dict[str, Any]:
    with open_checkpoint(folder) as checkpoint:
        return dict(checkpoint.tensors)


def test_tensors_after_close(tmp_path: Path) -> None:
    """They are read from the path again while it is the same file."""
    first = write_model(tmp_path / "first", sharded=False, n_head=3, scale=1)
    second = write_model(tmp_path / "second", sharded=False, n_head=4, scale=0.5)
    path = first / "model.safetensors"
    info = read_header(path)["wte.weight"]
    expected = read_tensor(info)
    copy = tmp_path / "copy"
    shutil.copy2(path, copy)
    os.replace(copy, path)  # same bytes and times, but a different file
    with pytest.raises(ModelFormatError, match="load it again") as caught:
        read_tensor(info)
    assert caught.value.code == "changed"
    info = read_header(path)["wte.weight"]
    assert np.array_equal(read_tensor(info), expected)
    wait_for_file_clock(tmp_path)
    overwrite_files(second, first, ["model.safetensors"])
    with pytest.raises(ModelFormatError) as caught:
        read_tensor(info)
    assert caught.value.code == "changed"
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_tensor(info)


@pytest.mark.parametrize("name", ["generation_config.json", "model.safetensors"])
def test_a_file_that_appears_or_goes(tmp_path: Path, name: str) -> None:
    sharded = write_model(tmp_path / "model", sharded=True, n_head=3, scale=1)
    (sharded / "generation_config.json").unlink()
    with open_checkpoint(sharded) as checkpoint:
        checkpoint.check_unchanged()
        (sharded / name).write_text("{}")
        with pytest.raises(ModelFormatError) as caught:
            checkpoint.check_unchanged()
        assert caught.value.path == str(sharded / name)
        (sharded / name).unlink()
        checkpoint.check_unchanged()
        (sharded / SHARDS[1]).unlink()
        with pytest.raises(ModelFormatError) as caught:
            checkpoint.check_unchanged()
        assert caught.value.path == str(sharded / SHARDS[1])


def test_a_set_of_files_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[1]")
    with FileSet() as files:
        assert read_json(path, files=files) == [1]
        (tmp_path / "b").write_text("[2]")
        os.replace(tmp_path / "b", path)
        assert read_json(path, files=files) == [1]
        with pytest.raises(ModelFormatError) as caught:
            files.check_unchanged()
        assert caught.value.code == "changed"


def test_models_and_checkpoints_leave_no_file_open(tmp_path: Path, device: str) -> None:
    folder = write_model(tmp_path / "model", sharded=True, n_head=3, scale=1)
    before = os.listdir("/proc/self/fd")
    with AutoModelForCausalLM.from_pretrained(folder, device=device):
        assert len(os.listdir("/proc/self/fd")) == len(before)
    open_checkpoint(folder)  # closed with the last reference
    (folder / SHARDS[1]).write_bytes(b"")
    with pytest.raises(ModelFormatError):
        open_checkpoint(folder)
    assert len(os.listdir("/proc/self/fd")) == len(before)


class Alarm(Exception):
    """Raised by a signal handler."""


def raise_at(instruction: int, work: Callable[[], object], file: str) -> bool:
    """Run `work` and raise Alarm before its n-th instruction in a source file, where a signal handler could raise.

    Returns whether there was such an instruction. `__del__` is excluded: its exceptions are ignored.
    """
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename != file or frame.f_code.co_name in ("__del__", "close"):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            count += 1
            if count == instruction:
                raise Alarm
        return trace

    sys.settrace(trace)
    try:
        work()
    except Alarm:
        return True
    finally:
        sys.settrace(None)
    return False


def read_one(path: Path) -> None:
    with FileSet() as files:
        file = files.open(path)
        file.read(8)
        files.check_unchanged()
    assert isinstance(file, SourceFile)
    file.read(8)


def test_a_signal_handler_that_raises_anywhere_leaks_no_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345678")
    read_one(path)
    before = len(os.listdir("/proc/self/fd"))
    source = SourceFile.__init__.__code__.co_filename
    instruction = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # this test intends closing by the garbage collector
        while True:
            instruction += 1
            raised = raise_at(instruction, lambda: read_one(path), source)
            assert len(os.listdir("/proc/self/fd")) == before, instruction
            if not raised:
                break
    assert instruction > 200


def test_a_file_object_is_what_opening_gives(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    from fastattn.files import open_file

    with open_file(tmp_path / "file") as file:
        assert isinstance(file, io.FileIO)
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(OSError, match="symbolic link"):
        open_file(tmp_path / "link", follow_links=False)
