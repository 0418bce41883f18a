"""`fastattn generate` with beams and several texts, and `fastattn chat`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fastattn
from fastattn.api.auto import AutoModelForCausalLM
from fastattn.cli import main
from tests.tasks.tiny import write_gpt2_model

pytest.importorskip("torch")
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gpt2_model(tmp_path_factory.mktemp("gpt2"))


def run(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def test_beams_and_several_texts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("generate", "-m", folder, "--device", "numpy", "-n", 5, "--json", "-p", "the", "-p", "hello")
    out = run(capsys, *common, "--temp", 0, "--num-beams", 3, "--num-return-sequences", 2)
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["prompt"] for row in rows] == ["the", "the", "hello", "hello"]
    generator = fastattn.pipeline("text-generation", folder, device="numpy")
    wanted = generator(["the", "hello"], num_beams=3, num_return_sequences=2, max_new_tokens=5, do_sample=False)
    assert [row["prompt"] + row["text"] for row in rows] == [one["generated_text"] for many in wanted for one in many]
    best = [json.loads(line) for line in run(capsys, *common, "--seed", 1, "--best-of", 3).splitlines()]
    assert [row["prompt"] for row in best] == ["the", "hello"]
    plain = run(capsys, *common[:7], "-p", "the", "--seed", 1, "--no-repeat-ngram-size", 1, "--presence-penalty", 0.5)
    assert plain.startswith("the")


def test_a_command_has_its_own_defaults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("generate", "-m", write_gpt2_model(tmp_path), "--device", "numpy", "-n", 5, "--temp", 0, "-p", "the")
    before = run(capsys, *words)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 265, "no_repeat_ngram_size": 1}))
    assert run(capsys, *words) == before


def test_a_chat(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("jinja2")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    words = ("chat", "-m", folder, "--device", "numpy", "--temp", 0, "-n", 4, "--system", "s", "-p", "a", "-p", "b")
    rows = [json.loads(line) for line in run(capsys, *words, "--json").splitlines()]
    assert [row["role"] for row in rows] == ["assistant", "assistant"]
    prompt = f"system: s\nuser: a\nassistant: {rows[0]['content']}\nuser: b\nassistant: "
    with AutoModelForCausalLM.from_pretrained(folder, device="numpy") as model:
        assert "".join(model.stream(prompt, max_new_tokens=4)) == rows[1]["content"]
    assert run(capsys, *words) == "".join(row["content"] + "\n" for row in rows)
    (tmp_path / "long").write_text("word " * 100 + "\n")
    assert main(["chat", "-m", str(folder), "--device", "numpy", "-f", str(tmp_path / "long")]) == 1
    assert "expected a conversation of fewer than 64 tokens" in capsys.readouterr().err
