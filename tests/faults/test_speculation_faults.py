"""Wrong arguments of speculation, and what happens to it in forked children and after signals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fastattn as fa
from fastattn import AutoModelForCausalLM
from fastattn.api.causal_lm import CausalLM
from fastattn.cli import main
from fastattn.errors import ConfigError, DTypeError, InputError, ModelFormatError
from fastattn.generation.options import GenerationOptions
from tests.reference.checkpoints import write_gpt2
from tests.reference.hang import HANG_SECONDS

DEMO = Path(fa.__file__).parent / "demo" / "gpt2-litbank"
SIZES = {"vocab_size": 300, "n_positions": 128, "n_embd": 48, "n_layer": 2, "n_head": 3}


@pytest.fixture
def lm(tmp_path: Path) -> Iterator[CausalLM]:
    with AutoModelForCausalLM.from_pretrained(write_gpt2(tmp_path / "gpt2", **SIZES)) as model:
        yield model


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"prompt_lookup_num_tokens": 0}, InputError, "prompt_lookup_num_tokens: expected 1 to 64, got 0"),
        ({"prompt_lookup_num_tokens": "3"}, DTypeError, "prompt_lookup_num_tokens: expected int"),
        ({"max_matching_ngram_size": 0}, InputError, "max_matching_ngram_size: expected 1 to 64, got 0"),
        ({"num_assistant_tokens": 65}, InputError, "num_assistant_tokens: expected 1 to 64, got 65"),
        (
            {"assistant_model": "gpt2"},
            InputError,
            "assistant_model: expected a model from AutoModelForCausalLM.from_pretrained, or one of bfloat16, int8,",
        ),
        ({"assistant_model": 3}, DTypeError, "assistant_model: expected a model from .*, got int"),
        (
            {"assistant_model": "int4", "prompt_lookup_num_tokens": 3},
            InputError,
            "assistant_model: expected None with prompt_lookup_num_tokens",
        ),
        (
            {"prompt_lookup_num_tokens": 3, "num_beams": 2},
            InputError,
            "prompt_lookup_num_tokens: expected None with num_beams",
        ),
        ({"assistant_model": "int4", "num_beams": 2}, InputError, "assistant_model: expected None with num_beams"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        GenerationOptions(**options)


def test_draft_model_of_another_vocabulary(lm: CausalLM, tmp_path: Path) -> None:
    folder = write_gpt2(tmp_path / "other", **{**SIZES, "vocab_size": 301})
    with (
        AutoModelForCausalLM.from_pretrained(folder) as other,
        pytest.raises(InputError, match=r"^assistant_model: expected a model with the same 300 ids, got one with 301"),
    ):
        lm.generate([1, 2], assistant_model=other)
    assert lm.kv_stats().in_use == 0


def test_draft_model_with_another_tokenizer(tmp_path: Path) -> None:
    for name in DEMO.iterdir():
        (tmp_path / name.name).write_bytes(name.read_bytes())
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = tokenizer["model"]["vocab"]
    first, second = list(vocab)[-2:]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with (
        AutoModelForCausalLM.from_pretrained(DEMO) as lm,
        AutoModelForCausalLM.from_pretrained(tmp_path) as other,
        AutoModelForCausalLM.from_pretrained(DEMO) as same,
    ):
        with pytest.raises(InputError, match=r"^assistant_model: expected a model with the same tokenizer"):
            lm.stream("The sea", assistant_model=other)
        assert lm.generate([1, 2], assistant_model=same).tolist() == lm.generate([1, 2]).tolist()


def test_encoders_and_closed_models_are_no_draft_models(lm: CausalLM, tmp_path: Path) -> None:
    encoder = fa.pipeline("text-classification").model
    with pytest.raises(DTypeError, match=r"^assistant_model: expected a model from AutoModelForCausalLM"):
        lm.generate([1, 2], assistant_model=encoder)
    closed = AutoModelForCausalLM.from_pretrained(write_gpt2(tmp_path / "closed", **SIZES))
    closed.close()
    with pytest.raises(InputError, match="open model, got one after close"):
        lm.generate([1, 2], assistant_model=closed)


def test_copies_that_do_not_exist(lm: CausalLM, tmp_path: Path) -> None:
    with (
        AutoModelForCausalLM.from_pretrained(lm.path, dtype="int4") as small,
        pytest.raises(InputError, match=r"^assistant_model: expected a dtype other than the model's own, got 'int4'"),
    ):
        small.generate([1, 2], assistant_model="int4")
    fa.quantize(lm.path, tmp_path / "int8", dtype="int8")
    with (
        AutoModelForCausalLM.from_pretrained(tmp_path / "int8") as packed,
        pytest.raises(ConfigError, match="dtype: expected None or 'int8', as this checkpoint is quantized, got 'int4'"),
    ):
        packed.generate([1, 2], assistant_model="int4")


def test_copy_of_files_that_changed(lm: CausalLM) -> None:
    before = lm.generate([1, 2], max_new_tokens=5).tolist()
    write_gpt2(lm.path, seed=1, **SIZES)
    with pytest.raises(ModelFormatError, match="expected the file as it was when the model was loaded"):
        lm.generate([1, 2], assistant_model="int4")
    assert lm.generate([1, 2], max_new_tokens=5).tolist() == before


def test_copies_close_with_their_model(lm: CausalLM) -> None:
    copy = lm.copy_in("int8")
    lm.close()
    with pytest.raises(InputError, match="open model, got one after close"):
        copy.generate([1, 2])


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "-p", "The weaver sat. The weaver", "-n", "60", "--seed", "3", "--json"]
    assert main(words) == 0
    (expected,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "n_proposed_tokens" not in expected
    for more in (["--prompt-lookup", "6"], ["--assistant-model", "int8"], ["--assistant-model", str(DEMO)]):
        assert main([*words, *more]) == 0
        shown = capsys.readouterr()
        (found,) = [json.loads(line) for line in shown.out.splitlines()]
        n_proposed, n_accepted = found.pop("n_proposed_tokens"), found.pop("n_accepted_tokens")
        assert found.pop("n_steps") == 60 - n_accepted
        assert found == expected
        assert f"{n_accepted} of {n_proposed} proposed tokens accepted" in shown.err
        assert main([*words[:-1], *more]) == 0  # as a stream
        shown = capsys.readouterr()
        assert shown.out == expected["prompt"] + expected["text"] + "\n"
        assert "proposed tokens accepted" in shown.err
    assert main([*words, "--assistant-model", str(DEMO / "nothing")]) != 0
    assert main([*words, "--prompt-lookup", "3", "--num-beams", "2"]) != 0


SETUP = """
import os, signal, sys, threading, time
import fastattn as fa
from fastattn.generation.payoff import Account, Payoff, Tries

Payoff.measures = lambda *_: False
Payoff.choose = lambda payoff, n_rows, offers: [offer.count for offer in offers]
Account.add = lambda *_: None
Tries.add = lambda *_: None
lm = fa.AutoModelForCausalLM.from_pretrained(sys.argv[1], threads=2)
options = {"max_new_tokens": 60, "do_sample": True, "seed": 3, "eos_token_id": -1}
prompts = [[i, i + 1, i, i + 1] for i in range(8)]

def texts(**more):
    return [ids.tolist() for ids in lm.generate(prompts, **options, **more)]

expected = texts()
kinds = ({"assistant_model": "int8"}, {"prompt_lookup_num_tokens": 6})
assert all(texts(**kind) == expected for kind in kinds)
"""
FORK = """
done = threading.Event()

def draw_on():
    while not done.is_set():
        for kind in kinds:
            texts(**kind)

thread = threading.Thread(target=draw_on)
thread.start()
codes = []
for i in range(6):
    pid = os.fork()
    if pid == 0:
        signal.alarm(300)
        os._exit(0 if texts(**kinds[i % 2]) == expected else 1)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    time.sleep(0.003)
done.set()
thread.join()
print(sum(codes))
"""
INTERRUPT = """
class Stop(Exception):
    pass

def stop(*_):
    raise Stop

signal.signal(signal.SIGALRM, stop)
n_stopped = 0
for i in range(60):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005 + i * 0.001)
        texts(**kinds[i % 2])
        signal.setitimer(signal.ITIMER_REAL, 0)  # in the block, because the signal may arrive before this call
    except Stop:
        n_stopped += 1
    if i % 10 == 0:
        assert texts(**kinds[i % 2]) == expected
assert n_stopped > 0
assert lm.kv_stats().in_use == 0, lm.kv_stats()
assert lm.copy_in("int8").executor.kv_pages_in_use == 0
print(0)
"""


@pytest.mark.parametrize("work", [FORK, INTERRUPT], ids=["fork", "signal"])
def test_speculation_in_forks_and_after_signals(tmp_path: Path, work: str) -> None:
    folder = write_gpt2(tmp_path, **{**SIZES, "n_embd": 192, "n_head": 4})
    done = subprocess.run(
        [sys.executable, "-c", SETUP + work, str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
