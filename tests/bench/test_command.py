"""`fastattn bench`: its output and files, its exit codes, and libraries that are missing or fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from fastattn.api.quantize import quantize
from fastattn.bench import libraries, machine, run
from fastattn.bench.libraries import LIBRARIES
from fastattn.bench.process import Process
from fastattn.bench.report import result_table
from fastattn.bench.run import Options, bench_model, fingerprint, open_model
from fastattn.bench.works import works_of
from fastattn.cli import main
from fastattn.errors import BenchError, InputError
from fastattn.graph.step_cost import step_cost
from tests.bench.test_process import SOON, broken_torch, has_ended, wait_for
from tests.reference.checkpoints import write_bert, write_gpt2
from tests.reference.command import assert_refused

QUICK = ("--rounds", "1", "--seconds", "0.001", "--threads", "2")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gpt2(tmp_path_factory.mktemp("models") / "gpt2")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(autouse=True)
def _small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "DRAM_BYTES", 1 << 20)


def options(**more: Any) -> Options:
    return Options(**{"threads": 1, "rounds": 1, "seconds": 0.001, **more})


def test_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--machine", *QUICK]) == 0
    printed = capsys.readouterr()
    assert "float32 multiply-add" in printed.out
    assert "memory read" in printed.out
    assert "1 thread" in printed.out
    assert "2 threads" in printed.out
    assert printed.err == "measuring the limits of the machine, about 4 s\n"
    assert main(["bench", "--machine", "--json", *QUICK]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["command"].startswith("fastattn bench --machine --json")
    assert found["models"] == []
    assert [limit["threads"] for limit in found["limits"]["limits"]] == [1, 2]


def test_a_language_model(gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture, figures = tmp_path / "out.svg", tmp_path / "out.json"
    files = ("--picture", str(picture), "--json", str(figures), "--profile")
    assert main(["bench", "-m", str(gpt2), *files, *QUICK]) == 0
    printed = capsys.readouterr().out
    for name in ("prefill-16", "decode-1", "decode-8", "decode-32"):
        assert f"\n{name} " in printed
    assert "tokens/s" in printed
    assert "share of the time" in printed
    assert "linear attn.c_attn [36, 12]" in printed
    assert "memory read" not in printed  # the machine's table was not requested
    (model,) = json.loads(figures.read_text())["models"]
    assert (model["model"], model["task"], model["dtype"], model["threads"]) == ("gpt2", "causal-lm", "float32", 2)
    # Two embeddings of 31 and 16 rows, two norms per layer and the final one; weights and biases of four linears.
    assert model["parameters"] == 12 * (31 + 16) + 5 * 24 + 2 * (12 * 36 + 36 + 12 * 12 + 12 + 2 * 12 * 48 + 48 + 12)
    for row in model["rows"]:
        ours = row["libraries"]["fastattn"]
        assert 0 < ours["best_s"] <= ours["median_s"]
        assert row["profile"]["ops"]
    (decode,) = (row for row in model["rows"] if row["work"] == "decode-1")
    program = open_model(gpt2).built.program
    cost = step_cost(program, next(work for work in works_of("causal-lm", 16) if work.name == "decode-1").shape())
    limit = decode["libraries"]["fastattn"]["limit"]
    assert (limit["operations"], limit["bytes"]) == (cost.operations, cost.bytes)
    ElementTree.parse(picture)
    assert "decode-8" in picture.read_text()


def test_an_encoder_as_json(bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "-m", str(bert), "--json", "--works", "8x16,1x16", *QUICK]) == 0
    printed = capsys.readouterr().out
    (model,) = json.loads(printed)["models"]
    assert model["task"] == "sequence-classification"
    assert [row["work"] for row in model["rows"]] == ["1x16", "8x16"]
    assert {row["unit"] for row in model["rows"]} == {"sequences"}


def test_the_demo_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "out.html"
    assert main(["bench", "--picture", str(page), *QUICK]) == 0
    printed = capsys.readouterr().out
    for text in ("memory read", "gpt2-litbank, causal-lm", "bert-sst2, sequence-classification", "decode-after-223"):
        assert text in printed
        assert text in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--against", "tensorflow"), 2, "argument --against: expected some of torch, onnxruntime,"),
        (("--against", "torch,tensorflow"), 2, "got 'tensorflow'"),
        (("--against", "torch:float8"), 2, "torch: expected a dtype of float32, bfloat16, got 'float8'"),
        (("--against", ","), 2, "argument --against: expected some of"),
        (("--against", "torhc"), 2, "got 'torhc'; did you mean 'torch'?"),
        (("--dtype", "float8"), 2, "argument --dtype: expected float32, bfloat16, int8, int4, got 'float8'"),
        (("--kv-dtype", "int4"), 2, "argument --kv-dtype: expected float32, bfloat16, int8, float16, got 'int4'"),
        (("--max-seconds", "0"), 2, "argument --max-seconds: expected 1 to 604800, got 0"),
        (("--rouns", "3"), 2, "unknown option '--rouns'; did you mean '--rounds'?"),
        (("--machine", "-m", "x"), 2, "not allowed with argument"),
        (("--machine", "--against", "torch"), 2, "argument --machine: not allowed with"),
        (("--machine", "--works", "1x16"), 2, "argument --machine: not allowed with"),
        (("-m", ""), 2, "argument -m/--model: expected a folder or a hub id"),
        (("--picture", "a.png"), 2, "argument --picture: expected FILE.svg or FILE.html, got 'a.png'"),
        (("--json", ""), 2, "argument --json: expected a file"),
        (("--threads", "0"), 2, "argument --threads: expected 1 to 1024, got 0"),
        (("--rounds", "0"), 2, "argument --rounds: expected 1 to 1000, got 0"),
        (("--seconds", "0"), 2, "argument --seconds: expected 0.001 to 600, got 0"),
        (("-m", "/no/such/folder"), 1, "/no/such/folder"),
        (("--json", "/no/such/folder/x.json"), 1, "/no/such/folder/x.json: expected a file in an existing folder"),
        (("--picture", "/no/such/folder/x.svg"), 1, "/no/such/folder/x.svg: expected a file in an existing folder"),
        (("--keep", "/no/such/folder/x"), 1, "/no/such/folder/x: expected a file in an existing folder"),
        (
            ("-m", "{bert}", "--works", "8x512"),
            2,
            "--works: expected some of 1x16,8x16,ragged-32,rerank-100, got '8x512'",
        ),
        (("--works", "nope"), 2, "--works: expected some of prefill-256,"),
        (("--works", ","), 2, "--works: expected names, got ','"),
        (("--head-dtype", "int2"), 2, "argument --head-dtype: expected float32, bfloat16, int8, int4, got 'int2'"),
    ],
)
def test_exit_codes_of_bench(
    bert: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, words: str
) -> None:
    found = ["bench", *(argument.replace("{bert}", str(bert)) for argument in arguments)]
    assert_refused(capsys, found, code=code, words=words, usage="bench")


def test_work_of_one_of_the_demo_models(capsys: pytest.CaptureFixture[str]) -> None:
    """The other one is omitted."""
    assert main(["bench", "--works", "1x16", *QUICK]) == 0
    printed = capsys.readouterr().out
    assert "bert-sst2" in printed
    assert "gpt2-litbank" not in printed


def test_a_library_that_is_not_installed(
    bert: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = libraries.Library("llama_cpp_peer", {"no_such_module_here": "no-such-package"}, ("float32",))
    monkeypatch.setattr(libraries, "LIBRARIES", {**LIBRARIES, "llama_cpp": absent})
    assert main(["bench", "-m", str(bert), "--against", "llama_cpp", "--works", "1x16", *QUICK]) == 0
    printed = capsys.readouterr()
    assert printed.err.endswith("\nleft out: llama_cpp: not installed (pip install no-such-package)\n")
    assert "\n1x16 " in printed.out


DYING = """
import os, sys
class logging:
    set_verbosity_error = disable_progress_bar = staticmethod(lambda: None)
class AutoModelForSequenceClassification:
    @staticmethod
    def from_pretrained(*_, **__):
        print("its last words", file=sys.stderr, flush=True)
        os._exit(7)
"""


def test_a_library_that_dies(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It dies when it loads the model, in its first turn: the table says why, and the others continue."""
    torch = "float32 = bfloat16 = None\nset_num_threads = set_grad_enabled = print\n"
    site = broken_torch(tmp_path / "site", torch)
    (tmp_path / "site" / "transformers.py").write_text(DYING)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(run, "missing", lambda name: [])
    bench = bench_model(bert, options(against=("torch",), works=("1x16", "8x16")))
    reason = "the process ended with exit code 7: its last words"
    assert bench.left_out == []
    assert [row.errors for row in bench.rows] == [{"torch": reason}] * 2
    assert [list(row.turns) for row in bench.rows] == [["fastattn"], ["fastattn"]]
    assert reason in result_table(bench.rows)


def test_a_library_that_dies_when_it_is_imported(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(broken_torch(tmp_path / "site", "import os; os.abort()"))
    monkeypatch.setattr(run, "missing", lambda name: [])
    bench = bench_model(bert, options(against=("torch",), works=("1x16",)))
    assert len(bench.left_out) == 1
    assert bench.left_out[0].startswith("torch: the process ended with signal SIGABRT")
    assert list(bench.rows[0].turns) == ["fastattn"]


def test_a_conversion_that_fails(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "llama_cpp.py").write_text("")
    (site / "gguf.py").write_text("raise OSError('no room\\nfor it')")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(run, "missing", lambda name: [])
    keep = tmp_path / "keep"
    bench = bench_model(bert, options(against=("llama_cpp",), works=("1x16",), keep=keep))
    assert bench.left_out == ["llama_cpp: OSError: no room for it"]
    assert not [path for path in keep.rglob("llama_cpp-*") if path.suffix != ".part"]  # a failed file is not reused


def test_a_library_that_does_not_answer_in_time(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(broken_torch(tmp_path / "site", "import time; time.sleep(600)"))
    monkeypatch.setattr(run, "missing", lambda name: [])
    ask = Process.ask

    def hasty(self: Process, timeout: float = 900, **command: Any) -> dict[str, Any]:
        """Give our own worker all the time that it may need."""
        given.append(timeout)
        arguments = self._process.args
        assert isinstance(arguments, list)
        library = json.loads(str(arguments[-1]))["library"]
        return ask(self, timeout if library == "torch" else SOON, **command)

    given = list[float]()
    monkeypatch.setattr(Process, "ask", hasty)
    bench = bench_model(bert, options(against=("torch",), works=("1x16",), timeout=2.0))
    said = [*bench.left_out, *bench.rows[0].errors.values()]
    assert len(said) == 1
    assert "no answer within 2 s" in said[0]
    assert set(given) == {2.0}
    assert list(bench.rows[0].turns) == ["fastattn"]


def test_our_own_dtypes_next_to_each_other(gpt2: Path) -> None:
    """ "fastattn:float32" is the same library again; with the dtype of the run there is nothing to compare."""
    bench = bench_model(gpt2, options(against=("fastattn:float32",), works=("decode-1",)))
    assert list(bench.rows[0].turns) == ["fastattn"]


@pytest.mark.parametrize(("dtype", "kv_dtype"), [("bfloat16", None), ("int8", "float32"), ("int4", None)])
def test_other_dtypes(tmp_path: Path, dtype: str, kv_dtype: str | None) -> None:
    path = write_gpt2(tmp_path / "m", n_embd=96, vocab_size=200)
    bench = bench_model(
        path, options(dtype=dtype, kv_dtype=kv_dtype, works=("decode-1",), against=("fastattn:float32",))
    )
    assert (bench.dtype, bench.kv_dtype) == (dtype, kv_dtype or {"int4": "int8"}.get(dtype, dtype))
    (row,) = bench.rows
    assert list(row.turns) == ["fastattn", "fastattn:float32"]
    assert row.limit("fastattn").bytes < 96 * 96 * 12 * 2 * 4  # for the float32 matrices alone


def test_head_dtype(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the head is stored, and counted, in its dtype."""
    path, found = write_gpt2(tmp_path / "m", n_embd=96, vocab_size=200), {}
    for head_dtype in (None, "int8"):
        flags = () if head_dtype is None else ("--head-dtype", head_dtype)
        assert main(["bench", "-m", str(path), "--works", "decode-1", "--json", *flags, *QUICK]) == 0
        (model,) = json.loads(capsys.readouterr().out)["models"]
        assert (model["dtype"], model["head_dtype"]) == ("float32", head_dtype)
        found[head_dtype] = model["rows"][0]["libraries"]["fastattn"]["limit"]["bytes"]
    assert 200 * 96 < found[None] - found["int8"] < 200 * 96 * 4


def test_a_quantized_checkpoint(tmp_path: Path) -> None:
    source = write_gpt2(tmp_path / "m", n_embd=96, vocab_size=200)
    quantize(source, tmp_path / "q", dtype="int8")
    bench = bench_model(tmp_path / "q", options(works=("decode-1",), against=("torch",)))
    assert bench.dtype == "int8"
    assert bench.left_out == ["torch: cannot read this quantized checkpoint"]
    assert list(bench.rows[0].turns) == ["fastattn"]
    with pytest.raises(InputError, match=r"expected None or 'int8', as .* is quantized, got 'int4'"):
        bench_model(tmp_path / "q", options(dtype="int4"))
    with pytest.raises(InputError, match=r"head_dtype: expected None, as .* is quantized, got 'int4'"):
        bench_model(tmp_path / "q", options(head_dtype="int4"))


def test_refused_before_any_process(gpt2: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got 'tensorflow'"):
        bench_model(gpt2, options(against=("tensorflow",)))
    with pytest.raises(InputError, match="dtype: expected one of float32"):
        bench_model(gpt2, options(dtype="float8"))
    with pytest.raises(InputError, match="head_dtype: expected one of float32"):
        bench_model(gpt2, options(head_dtype="float8"))
    with pytest.raises(InputError, match="works"):
        bench_model(gpt2, options(works=("nothing",)))


def test_a_model_that_cannot_be_loaded(gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTATTN_FORCE_TARGET", "no-such-target")
    with pytest.raises(BenchError, match=r"decode-1: .*no-such-target"):
        bench_model(gpt2, options(works=("decode-1",)))


def test_converted_models_belong_to_one_checkpoint(tmp_path: Path) -> None:
    first, second = write_gpt2(tmp_path / "a"), write_gpt2(tmp_path / "b")
    assert fingerprint(first) == fingerprint(first)
    assert fingerprint(first) != fingerprint(second)
    before = fingerprint(first)
    write_gpt2(first, n_layer=1)
    assert fingerprint(first) != before


def test_ctrl_c_leaves_nothing_behind(gpt2: Path) -> None:
    """Its workers end with it, whether they are stopped or not."""
    command = [sys.executable, "-m", "fastattn", "bench", "-m", str(gpt2), "--rounds", "1000", "--seconds", "0.1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as parent:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        wait_for(lambda: children.read_text().split())
        (child,) = map(int, children.read_text().split())
        time.sleep(0.5)  # during or before its turns: it must work in both cases
        parent.send_signal(signal.SIGINT)
        _, errors = parent.communicate(timeout=SOON)
    assert parent.returncode == 130
    assert b"Traceback" not in errors
    wait_for(lambda: has_ended(child))
