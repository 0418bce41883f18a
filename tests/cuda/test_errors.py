"""Without a module, a driver or a GPU, and with options that CUDA lacks: typed errors that say what to do."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fastattn as fa
import fastattn.executors.cuda
from fastattn.api.auto import AutoModelForCausalLM
from fastattn.cli.main import main
from fastattn.errors import ConfigError, DTypeError, InputError, OutOfMemory
from tests.reference import checkpoints

HAS_MODULE = importlib.util.find_spec("fastattn._cuda") is not None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkpoints.write_gpt2(tmp_path / "gpt2")


@pytest.fixture
def no_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastattn._cuda", None)


def test_a_build_without_cuda(no_module: None, folder: Path) -> None:
    for load in (
        lambda: fa.AutoModelForCausalLM.from_pretrained(folder, device="cuda"),
        lambda: fa.AutoModel.from_pretrained(folder, device="cuda"),
        lambda: fa.pipeline("text-generation", folder, device="cuda"),
        lambda: fa.AutoModelForCausalLM.from_pretrained(folder.parent / "no such folder", device="cuda"),
    ):
        with pytest.raises(ConfigError, match=r"device: expected a build of fastattn with CUDA .*FASTATTN_CUDA=ON"):
            load()
    assert "not usable: device: expected a build" in fastattn.executors.cuda.describe()


def test_a_module_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ImportError("libwhatever.so: cannot open shared object file")

    monkeypatch.setattr(fastattn.executors.cuda, "importlib", SimpleNamespace(import_module=refuse))
    with pytest.raises(ConfigError, match=r"got libwhatever\.so: cannot open"):
        fastattn.executors.cuda.extension()


def test_the_command_says_so(no_module: None, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "-m", str(folder), "--device", "cuda", "-p", "a"]) == 1
    assert "device: expected a build of fastattn with CUDA" in capsys.readouterr().err


@pytest.mark.skipif(not HAS_MODULE, reason="this build has no fastattn._cuda")
def test_a_machine_without_a_gpu(folder: Path) -> None:
    """Works on a machine with a GPU too: the GPU is hidden. The module is imported, but nothing of the driver."""
    code = (
        "import fastattn as fa, fastattn._cuda, sys\n"
        "loaded = open('/proc/self/maps').read()\n"
        "assert 'libcuda.so' not in loaded and 'libcublas' not in loaded\n"
        "try:\n    fa.AutoModelForCausalLM.from_pretrained(sys.argv[1], device='cuda')\n"
        "except fa.ConfigError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('device: expected an NVIDIA GPU for "cuda", got n')
    assert "no NVIDIA driver; install one" in done.stdout or "none that is visible; see nvidia-smi" in done.stdout


def test_cuda_is_not_loaded_unasked(folder: Path) -> None:
    code = (
        "import sys, fastattn as fa\n"
        "fa.AutoModelForCausalLM.from_pretrained(sys.argv[1]).generate([1], max_new_tokens=2)\n"
        "assert not {'fastattn.executors.cuda', 'fastattn._cuda'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"dtype": "int8"},
            InputError,
            "dtype: expected one of float32, tf32, bfloat16, float16, auto on cuda, got 'int8'",
        ),
        ({"dtype": "int4"}, InputError, "on cuda, got 'int4'"),
        ({"head_dtype": "tf32"}, InputError, "head_dtype: expected one of float32, bfloat16, float16, auto on cuda"),
        ({"kv_dtype": "int8"}, InputError, "kv_dtype: expected None or one of float32, bfloat16, float16 on cuda"),
        ({"threads": 2}, InputError, "threads: expected None on cuda, got 2"),
        ({"threads": "2"}, DTypeError, "threads: expected int, got str '2'"),
        ({"device": "cuda:1"}, InputError, "device: expected the first visible GPU, cuda:0, got 'cuda:1'"),
        ({"device": "cpu", "dtype": "tf32"}, InputError, "on cpu, got 'tf32'"),
    ],
)
def test_options(gpu: str, folder: Path, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        AutoModelForCausalLM.from_pretrained(folder, **{"device": "cuda", **options})
    assert message in str(raised.value)


def test_a_quantized_checkpoint(gpu: str, folder: Path, tmp_path: Path) -> None:
    fa.quantize(folder, tmp_path / "int8", dtype="int8")
    with pytest.raises(ConfigError, match="expected device cpu for quantized weights, got cuda"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "int8", device="cuda")


def test_the_budget(gpu: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names what does not fit, and the rest of the model still works."""
    for text in ("0", "1.5", "-1", "many"):
        monkeypatch.setenv(fastattn.executors.cuda.MEMORY_VARIABLE, text)
        with pytest.raises(InputError, match=f"{fastattn.executors.cuda.MEMORY_VARIABLE}: expected a number of MiB"):
            AutoModelForCausalLM.from_pretrained(folder, device="cuda")
    big = checkpoints.write_gpt2(folder.parent / "big", vocab_size=5000, n_embd=96, n_positions=512)
    monkeypatch.setenv(fastattn.executors.cuda.MEMORY_VARIABLE, "1")
    with pytest.raises(OutOfMemory, match=r"could not allocate \d+ bytes for .*budget of 1048576 are in use"):
        AutoModelForCausalLM.from_pretrained(big, device="cuda")
    monkeypatch.setenv(fastattn.executors.cuda.MEMORY_VARIABLE, "36")
    with AutoModelForCausalLM.from_pretrained(big, device="cuda") as model:
        executor: Any = model.executor
        assert executor.budget_bytes == 36 << 20
        with pytest.raises(OutOfMemory, match="for the workspace of a step"):
            model([[1] * 512] * 64)
        assert np.isfinite(model([1, 2, 3]).logits).all()
        assert executor.used_bytes <= executor.budget_bytes


def test_weights_beyond_float16(gpu: str, tmp_path: Path) -> None:
    config = {**checkpoints.GPT2, "vocab_size": 131}
    tensors = checkpoints.gpt2_tensors(config)
    tensors["wte.weight"][3, 3] = 7e4
    path = checkpoints.write(tmp_path / "wide", config, tensors)
    with pytest.raises(ConfigError, match=r"wte.*: expected weights within float16's 65504, got a magnitude of 70000"):
        AutoModelForCausalLM.from_pretrained(path, device="cuda", dtype="float16")
    AutoModelForCausalLM.from_pretrained(path, device="cuda", dtype="bfloat16").close()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child(gpu: str, folder: Path) -> None:
    with AutoModelForCausalLM.from_pretrained(folder, device="cuda") as model:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                model([1, 2])
                text = "no error"
            except ConfigError as error:
                text = str(error)
            os.write(write, text.encode())
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert 'got one forked from it; start it with multiprocessing\'s "spawn"' in os.read(read, 1000).decode()
        assert np.isfinite(model([1, 2]).logits).all()


def test_a_closed_model(gpu: str, folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, device="cuda")
    executor = model.executor
    model.close()
    with pytest.raises(InputError, match="closed"):
        executor.new_cache()
    with (
        pytest.raises(InputError, match="profile: expected a model on device"),
        AutoModelForCausalLM.from_pretrained(folder, device="cuda") as other,
    ):
        other.profile([1, 2])
