"""No command runs code from the current directory, such as the folder of a downloaded model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from fastattn.bench.process import command_of
from fastattn.tasks.demo import demo_model
from tests.reference.command import ENVIRONMENT

Task = Literal["text-generation", "text-classification"]
# Modules that the command, its workers or Python itself import.
NAMES = ("json", "numpy", "fastattn", "sitecustomize", "usercustomize", "tokenizers", "tqdm", "shtab", "safetensors",
         "huggingface_hub", "torch", "argparse", "encodings", "site", "ctypes", "signal", "tempfile", "nvidia",
         "conftest", "__main__", "config", "tokenizer", "modeling_custom", "setup")  # fmt: skip


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """Write what pip writes for the command: Python puts the script's folder first on the path, not the current one."""
    path = tmp_path / "bin" / "fastattn"
    path.parent.mkdir()
    path.write_text("import sys\nfrom fastattn.cli import main\nif __name__ == '__main__':\n    sys.exit(main())\n")
    return path


def trap(folder: Path, task: Task, marker: Path) -> Path:
    """Write a model's folder with code files that leave a marker."""
    shutil.copytree(demo_model(task), folder)
    code = f"open({str(marker)!r}, 'a').write(__name__ + '\\n')\nraise SystemExit(99)\n"
    for name in NAMES:
        (folder / f"{name}.py").write_text(code)
    return folder


@pytest.mark.parametrize(
    ("task", "arguments"),
    [
        ("text-generation", "info"),
        ("text-generation", "generate -m . -p a -n 2"),
        ("text-classification", "embed -m . -p a"),
        ("text-classification", "classify -m . -p a"),
        ("text-generation", "look -m . a -o {out}.html"),
        ("text-generation", "quality -m . --dtypes int8 --max-tokens 16"),
        ("text-generation", "quantize . {out} --dtype int8"),
        ("text-classification", "bench -m . --works 1x16 --rounds 1 --seconds 0.001"),
        ("text-classification", "bench -m . --works 1x16 --rounds 1 --seconds 0.001 --against torch,llama_cpp"),
        ("text-generation", "completion bash"),
    ],
)
def test_code_in_the_current_directory(tmp_path: Path, script: Path, task: Task, arguments: str) -> None:
    marker = tmp_path / "marker"
    folder = trap(tmp_path / "model", task, marker)
    words = arguments.replace("{out}", str(tmp_path / "out")).split()
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [sys.executable, script, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=600,
        check=False,
    )  # fmt: skip
    assert not marker.exists(), marker.read_text()
    assert done.returncode == 0, done.stderr


def test_workers_of_a_path_with_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interactive Python has "" first on its path; a worker does not inherit it."""
    marker = tmp_path / "marker"
    trap(tmp_path / "model", "text-classification", marker)
    (tmp_path / "safe").mkdir()
    (tmp_path / "safe" / "worker_of_this_test.py").write_text("import json\ndef main(text): print(json.dumps(text))\n")
    monkeypatch.setattr(sys, "path", ["", ".", "model", str(tmp_path / "safe"), *sys.path])
    monkeypatch.chdir(tmp_path / "model")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "model")}  # not even this
    done = subprocess.run(
        command_of("worker_of_this_test", "hello"), env=environment, capture_output=True, text=True, timeout=600,
        check=False,
    )  # fmt: skip
    assert (done.returncode, json.loads(done.stdout)) == (0, "hello")
    assert not marker.exists()
