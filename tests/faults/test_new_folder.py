"""`quantize` writes its folder atomically: whatever fails, dies or runs in parallel, nobody sees half of one."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn
from fastattn.api.auto import AutoModelForCausalLM
from fastattn.checkpoint import new_folder
from fastattn.checkpoint.new_folder import SUFFIX
from fastattn.errors import ConfigError, ModelFormatError
from fastattn.executors import cpu
from tests.reference.checkpoints import gpt2_tensors, safetensors, write_gpt2

SIZES = {"vocab_size": 70, "n_positions": 16, "n_embd": 72, "n_layer": 1, "n_head": 3}
SECRET = b"private"
HANG_SECONDS = 600


@pytest.fixture
def floats(tmp_path: Path) -> Path:
    folder = write_gpt2(tmp_path / "floats", **SIZES)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def names_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


EXPECTED = ["1_Pooling/config.json", "config.json", "model.safetensors", "tokenizer_config.json"]


def hook(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Call `act` in the middle of writing the weights."""
    pack = cpu.pack_weight

    def pack_weight(name: str, *args: Any) -> Any:
        if name == "ln_f.weight":
            act()
        return pack(name, *args)

    monkeypatch.setattr(cpu, "pack_weight", pack_weight)


def unfinished(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.endswith(SUFFIX)]


def loads(folder: Path) -> bool:
    with AutoModelForCausalLM.from_pretrained(folder) as model:
        return bool(np.isfinite(np.asarray(model([5]).logits)).all())


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, MemoryError])
@pytest.mark.parametrize("existed", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_a_failure_leaves_nothing(
    error: type[BaseException],
    existed: bool,
    inside: bool,
    floats: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "new" / "out"
    if existed:
        out.mkdir(parents=True)
    if inside:
        monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == out)
    seen: list[str] = []

    def fail() -> None:
        (part,) = unfinished(out if existed and inside else out.parent)
        seen.extend(names_in(part))
        assert not out.exists() or all(path == part for path in out.iterdir())
        raise error

    with monkeypatch.context() as patch:
        hook(patch, fail)
        with pytest.raises(error):
            fastattn.quantize(floats, out, dtype="int8")
    assert "model.safetensors" in seen
    assert sorted(path.name for path in tmp_path.iterdir()) == ["floats", *(["new"] if existed else [])]
    assert not existed or not any(out.iterdir())
    fastattn.quantize(floats, out, dtype="int8")
    assert names_in(out) == EXPECTED
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert loads(out)


def test_inside_a_mount_point(floats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are moved up one at a time, config.json last: without it nothing loads."""
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == out)
    moved: list[str] = []
    rename = os.rename

    def spy(source: Any, target: Any, **options: Any) -> None:
        moved.append(str(source))
        with pytest.raises(fastattn.FastattnError):
            loads(out)
        rename(source, target, **options)

    monkeypatch.setattr(os, "rename", spy)
    fastattn.quantize(floats, out, dtype="int8")
    monkeypatch.undo()
    assert moved == ["1_Pooling", "tokenizer_config.json", "model.safetensors", "config.json"]
    assert names_in(out) == EXPECTED
    assert not unfinished(out)
    assert loads(out)


def test_a_parent_that_is_not_ours(floats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "locked" / "out"
    out.mkdir(parents=True)
    mkdir = os.mkdir

    def refuses(path: Any, *args: Any, **options: Any) -> None:
        if Path(path).parent == out.parent:
            raise PermissionError(13, "no", str(path))
        mkdir(path, *args, **options)

    monkeypatch.setattr(os, "mkdir", refuses)
    fastattn.quantize(floats, out, dtype="int8")
    assert names_in(out) == EXPECTED
    with pytest.raises(PermissionError):
        fastattn.quantize(floats, out.parent / "other", dtype="int8")


def test_a_failure_while_files_move_up(floats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == out)
    rename = os.rename

    def fails(source: Any, target: Any, **options: Any) -> None:
        if source == "config.json":
            raise KeyboardInterrupt
        rename(source, target, **options)

    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(KeyboardInterrupt):
        fastattn.quantize(floats, out, dtype="int8")
    assert not any(out.iterdir())


def test_permissions_of_the_folder_stay(floats: Path, tmp_path: Path) -> None:
    """A folder from tempfile.mkdtemp remains private, and a new one has default permissions."""
    out, plain = tmp_path / "out", tmp_path / "plain"
    out.mkdir(mode=0o700)
    plain.mkdir()
    for folder, mode in ((out, 0o700), (tmp_path / "new", plain.stat().st_mode & 0o777)):
        fastattn.quantize(floats, folder, dtype="int8")
        assert folder.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("name", ["model.safetensors.part", "config.json", "tokenizer_config.json", "other"])
@pytest.mark.parametrize("kind", ["file", "fifo", "link", "link to nothing", "folder"])
def test_what_is_in_the_way_is_not_touched(name: str, kind: str, floats: Path, tmp_path: Path) -> None:
    """A FIFO is not opened, and nothing is written through a link."""
    victim, out = tmp_path / "victim", tmp_path / "out"
    victim.write_bytes(SECRET)
    out.mkdir()
    path = out / name
    make: dict[str, Callable[[], object]] = {
        "file": lambda: path.write_bytes(SECRET),
        "fifo": lambda: os.mkfifo(path),
        "link": lambda: path.symlink_to(victim),
        "link to nothing": lambda: path.symlink_to(tmp_path / "nothing"),
        "folder": path.mkdir,
    }
    make[kind]()
    with pytest.raises(ConfigError, match=r"out: expected a new or an empty folder"):
        fastattn.quantize(floats, out, dtype="int8")
    assert [entry.name for entry in out.iterdir()] == [name]
    assert victim.read_bytes() == SECRET
    assert not (tmp_path / "nothing").exists()
    assert not unfinished(tmp_path)


@pytest.mark.parametrize("kind", ["file", "fifo", "link to file", "link to nothing", "loop"])
def test_a_target_that_is_not_a_folder(kind: str, floats: Path, tmp_path: Path) -> None:
    out, victim = tmp_path / "out", tmp_path / "victim"
    victim.write_bytes(SECRET)
    make: dict[str, Callable[[], object]] = {
        "file": lambda: out.write_bytes(SECRET),
        "fifo": lambda: os.mkfifo(out),
        "link to file": lambda: out.symlink_to(victim),
        "link to nothing": lambda: out.symlink_to(tmp_path / "nothing"),
        "loop": lambda: out.symlink_to(out),
    }
    make[kind]()
    with pytest.raises(ConfigError, match="expected a new or an empty folder, got"):
        fastattn.quantize(floats, out, dtype="int8")
    assert victim.read_bytes() == SECRET
    assert not (tmp_path / "nothing").exists()


def test_a_link_to_an_empty_folder(floats: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    assert fastattn.quantize(floats, tmp_path / "out", dtype="int8") == tmp_path / "out"
    assert (tmp_path / "out").is_symlink()
    assert names_in(tmp_path / "real") == EXPECTED


def test_links_that_appear_in_the_unfinished_folder(
    floats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(SECRET)

    def add_link() -> None:
        (part,) = unfinished(tmp_path)
        (part / "tokenizer_config.json").symlink_to(victim)

    hook(monkeypatch, add_link)
    with pytest.raises(FileExistsError):
        fastattn.quantize(floats, tmp_path / "out", dtype="int8")
    assert victim.read_bytes() == SECRET
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("inside", [False, True])
def test_one_of_two_processes_that_write_one_folder_wins(
    inside: bool, floats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second runs completely in the middle of the first."""
    out = tmp_path / "out"
    if inside:
        out.mkdir()
        monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == out)
    second: list[object] = []

    def run_second() -> None:
        if second:
            return
        second.append("begun")
        try:
            second[0] = fastattn.quantize(floats, out, dtype="int4")
        except ConfigError as error:
            second[0] = error

    hook(monkeypatch, run_second)
    with pytest.raises(ConfigError, match="another process wrote to it in the meantime") if not inside else nothing():
        fastattn.quantize(floats, out, dtype="int8")
    if inside:
        assert isinstance(second[0], ConfigError)
        assert "another process is writing to it" in str(second[0])
    else:
        assert second == [out]
    assert json.loads((out / "config.json").read_text())["quantization_config"]["dtype"] == (
        "int8" if inside else "int4"
    )
    assert names_in(out) == EXPECTED
    assert not unfinished(tmp_path)
    assert loads(out)


@contextlib.contextmanager
def nothing() -> Iterator[None]:
    yield


def test_many_that_write_one_folder(floats: Path, tmp_path: Path) -> None:
    """Of several processes exactly one succeeds, and a concurrent reader sees nothing or a complete folder."""
    script = (
        "import sys, fastattn\n"
        "try: fastattn.quantize(sys.argv[1], sys.argv[2], dtype='int8'); print('written')\n"
        "except fastattn.ConfigError as error: print(error)\n"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-c", script, str(floats), str(out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for _ in range(4)
    ]
    seen: set[tuple[str, ...]] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            if out.exists():
                seen.add(tuple(names_in(out)))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        answers = [process.communicate(timeout=HANG_SECONDS) for process in running]
    finally:
        done.set()
        reader.join()
    printed = sorted(answer.strip() for answer, _ in answers)
    assert printed[-1] == "written", answers
    assert all("expected a new or an empty folder" in answer for answer in printed[:-1])
    assert seen <= {tuple(EXPECTED)}
    assert names_in(out) == EXPECTED
    assert not unfinished(tmp_path)


def test_what_a_killed_process_left_is_removed(floats: Path, tmp_path: Path) -> None:
    script = (
        "import os, signal, sys, fastattn\n"
        "from fastattn.executors import cpu\n"
        "pack = cpu.pack_weight\n"
        "def kill(name, *args):\n"
        "    if name == 'ln_f.weight': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return pack(name, *args)\n"
        "cpu.pack_weight = kill\n"
        "fastattn.quantize(sys.argv[1], sys.argv[2], dtype='int8')\n"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-c", script, str(floats), str(out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run(command, env=environment, timeout=HANG_SECONDS, check=False).returncode == -signal.SIGKILL
    assert not out.exists()
    (left,) = unfinished(tmp_path)
    assert left.name.startswith(".out.")
    fastattn.quantize(floats, tmp_path / "another", dtype="int8")
    assert left.exists()  # of another target
    fastattn.quantize(floats, out, dtype="int8")
    assert not unfinished(tmp_path)
    assert names_in(out) == EXPECTED


def test_an_unfinished_folder_of_a_live_process_stays(
    floats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, link = tmp_path / f".out.{'0' * 16}{SUFFIX}", tmp_path / f".out.{'1' * 16}{SUFFIX}"
    foreign = tmp_path / f".out.{'2' * 16}{SUFFIX}"
    victim = tmp_path / "victim"
    for folder in (live, victim, foreign):
        folder.mkdir()
        (folder / "file").write_bytes(SECRET)
    link.symlink_to(victim)
    other = tmp_path / f".out.x{SUFFIX}"
    other.mkdir()
    descriptor = os.open(live, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    fstat = os.fstat

    def as_another(found: int) -> os.stat_result:
        status = fstat(found)
        if os.path.samestat(status, foreign.stat()):
            return os.stat_result((*status[:4], status.st_uid + 1, *status[5:]))
        return status

    monkeypatch.setattr(os, "fstat", as_another)
    try:
        fastattn.quantize(floats, tmp_path / "out", dtype="int8")
    finally:
        os.close(descriptor)
    for folder in (live, victim, foreign):
        assert (folder / "file").read_bytes() == SECRET
    assert link.is_symlink()
    assert other.exists()


def test_a_file_system_without_locks(floats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without locks, no folder is treated as left behind by a dead process."""
    left = tmp_path / f".out.{'0' * 16}{SUFFIX}"
    left.mkdir()

    def no_locks(*_: Any) -> None:
        raise OSError(95, "not supported")

    monkeypatch.setattr(new_folder.fcntl, "flock", no_locks)
    fastattn.quantize(floats, tmp_path / "out", dtype="int8")
    assert names_in(tmp_path / "out") == EXPECTED
    assert left.exists()


def test_the_source_changes_meanwhile(floats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def replace() -> None:
        (tmp_path / "new").write_bytes(safetensors(gpt2_tensors({**SIZES, "n_inner": None})))
        os.replace(tmp_path / "new", floats / "model.safetensors")

    hook(monkeypatch, replace)
    with pytest.raises(ModelFormatError) as caught:
        fastattn.quantize(floats, tmp_path / "out", dtype="int8")
    assert caught.value.code == "changed"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["floats"]
