"""The checks in tools/ find what they look for, and the pinned versions of the tools agree."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module
    spec.loader.exec_module(module)
    return module


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


GOOD = {
    "src/fastattn/__init__.py": "from fastattn.tasks.pipeline import pipeline\nfrom . import ops\n",
    "src/fastattn/tasks/pipeline.py": "from fastattn.models import auto\nfrom ..errors import x\nimport numpy\n",
    "src/fastattn/models/auto.py": "import fastattn.graph.ir\nfrom fastattn import _core\nfrom . import bert\n",
    "csrc/bindings/module.cpp": '#include <pybind11/pybind11.h>\n#include "program/executor.h"\n#include <vector>\n',
    "csrc/kernels/linear.cpp": '#include "simd/vec.h"\n#include "linear.h"\n',
    "csrc/simd/vec.h": "#include <immintrin.h>\n",
}


def test_the_layers_of_this_checkout_are_right() -> None:
    assert tool("check_layers").check(ROOT) == []


def test_imports_and_includes_that_go_down_are_accepted(tmp_path: Path) -> None:
    assert tool("check_layers").check(write(tmp_path, GOOD)) == []


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "src/fastattn/graph/ir.py",
            "from fastattn.models import auto",
            "ir.py:1: graph uses models, which is above it",
        ),
        ("src/fastattn/graph/ir.py", "from ..models.auto import x", "graph uses models"),
        ("src/fastattn/graph/ir.py", "def f():\n    import fastattn.cli.main", "ir.py:2: graph uses cli"),
        ("src/fastattn/graph/ir.py", "importlib.import_module('fastattn.models.auto')", "graph uses models"),
        ("src/fastattn/errors.py", "if TYPE_CHECKING:\n    from fastattn import tasks", "errors uses tasks"),
        ("src/fastattn/tasks/x.py", "from fastattn import pipeline", "tasks uses __init__"),
        ("src/fastattn/extra/x.py", "from fastattn import ops", "'extra' is in no layer"),
        ("csrc/core/buffer.h", '#include "ops/ops.h"', "core uses ops"),
        ("csrc/ops/linear.cpp", "#include <pybind11/numpy.h>", "reserved for csrc/bindings"),
        ("csrc/kernels/softmax.cpp", "#include <immintrin.h>", "reserved for csrc/simd"),
        ("csrc/kernels/softmax.cpp", "  #  include <arm_neon.h>", "reserved for csrc/simd"),
        ("csrc/program/plan.cpp", "#include <cuda_runtime.h>", "reserved for csrc/cuda"),
        ("csrc/program/plan.cpp", '#include "cuda/plan.h"', "program uses cuda"),
        ("csrc/cuda/kernels/pool.cu", '#include "bindings/bindings.h"', "cuda uses bindings"),
        ("csrc/other/x.h", '#include "core/error.h"', "'other' is in no layer"),
    ],
)
def test_what_goes_up_is_found(tmp_path: Path, name: str, text: str, expected: str) -> None:
    root = write(tmp_path, {**GOOD, name: text + "\n"})
    layers = tool("check_layers")
    (complaint,) = layers.check(root)
    assert expected in complaint
    assert layers.main([str(root)]) == 1


def test_no_file_of_this_checkout_is_too_long() -> None:
    assert tool("check_length").check(ROOT) == []


def test_long_files_and_functions_are_found(tmp_path: Path) -> None:
    length = tool("check_length")
    body = "".join(f"    x{i} = {i}\n" for i in range(59))
    root = write(tmp_path, {"src/a.py": f"def f():\n{body}", "csrc/ops/b.cpp": "\n" * 500})
    assert length.check(root) == []
    write(tmp_path, {"src/a.py": f"def f():\n{body}    y = 0\n", "csrc/ops/b.cpp": "\n" * 501})
    found = length.check(root)
    assert len(found) == 2
    assert "function f has 61 lines" in found[0]
    assert "b.cpp: 501 lines" in found[1]
    assert length.main([str(root)]) == 1


def test_long_cpp_functions_are_found(tmp_path: Path) -> None:
    length = tool("check_length")
    body = "    f(\"{\", '{');  // {\n"
    root = write(tmp_path, {"csrc/ops/a.cpp": f"int f(int x) {{\n{body * 59}}}\n"})
    (found,) = length.check(root)
    assert "a.cpp:1: function f has 61 lines" in found
    method = f"struct B {{\n    B(int x,\n      int y)\n        : x_(x) {{\n{body * 59}    }}\n}};\n"
    (found,) = length.check(write(tmp_path, {"csrc/ops/a.cpp": method}))
    assert "a.cpp:2: function B has 63 lines" in found
    structs = "struct B {\n    int x = 0;\n};\n" * 30
    text = f"namespace a {{\n{structs}template <class T>\nvoid B::g(int a,\n       int b) {{\n{body * 57}}}\n}}\n"
    assert length.check(write(tmp_path, {"csrc/ops/a.cpp": text})) == []


def test_this_checkout_has_no_second_homes() -> None:
    assert list(tool("check_homes").check(ROOT)) == []


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("src/fastattn/cli/values.py", 'DTYPES = (\n    "float32", "int8")', "values.py:1: a list of number formats"),
        ("src/fastattn/models/gpt2.py", "\nX = OpKind(name='x')", "gpt2.py:2: a kind of op: put this in src/"),
        ("csrc/program/run_op.cpp", "const OpKind AddAttrs::kKind{", "run_op.cpp:1: a kind of op: put this in csrc/"),
        ("csrc/ops/linear.cpp", "if (fork_generation() != 1) return;", "linear.cpp:1: fork safety (use ForkLocal)"),
        ("csrc/ops/linear.cpp", '{"int8", Format::kInt8}', "linear.cpp:1: the names of number formats"),
    ],
)
def test_second_homes_are_found(tmp_path: Path, name: str, text: str, expected: str) -> None:
    homes = tool("check_homes")
    (found,) = homes.check(write(tmp_path, {name: text + "\n"}))
    assert found.startswith(name)
    assert expected in found
    assert homes.main([str(tmp_path)]) == 1


def test_pre_commit_uses_the_pinned_versions() -> None:
    pins = dict(re.findall(r"^([\w-]+)==([\w.]+)$", (ROOT / "tools/requirements-check.txt").read_text(), re.MULTILINE))
    hooks = dict(re.findall(r'"([\w-]+)==([\w.]+)"', (ROOT / ".pre-commit-config.yaml").read_text()))
    assert pins
    assert {name: hooks[name] for name in pins} == pins


def test_extra_reads_the_optional_dependencies() -> None:
    extra = tool("extra")
    text = '[project.optional-dependencies]\na = ["x>=1",\n  "y"]\nab = ["z"]\n[tool]\na = ["no"]\n'
    assert extra.requirements("a", text) == ["x>=1", "y"]
    assert "pytest>=8" in extra.requirements("test", (ROOT / "pyproject.toml").read_text())
    with pytest.raises(SystemExit):
        extra.requirements("none", text)


def test_weak_symbols_of_kernel_objects_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weak = tool("check_weak_symbols")
    listing = "0 T fastattn::neon::linear(int)\n0 t local\n0 N $d\n0 N $d.1\n0 W std::max(int)\n0 T other\n"
    done = weak.subprocess.CompletedProcess([], 0, stdout=listing)
    monkeypatch.setattr(weak.subprocess, "run", lambda *_, **__: done)
    assert weak.foreign_symbols(tmp_path / "x.o", "neon") == ["W std::max(int)", "T other"]
    for build, status in (("asan", 2), ("release", 1)):  # 2: no kernel objects found
        folder = tmp_path / build / "fastattn_kernels_neon.dir"
        folder.mkdir(parents=True)
        (folder / "x.o").touch()
        assert weak.main([str(tmp_path)]) == status
