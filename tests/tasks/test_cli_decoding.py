"""`fastattn generate` with beams and several texts, and `fastattn chat`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
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


FLAGS: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (("--logit-bias", "5=3.5", "--logit-bias", "7=-9"), {"logit_bias": {5: 3.5, 7: -9.0}}),
    (("--sequence-bias", "5=4", "--sequence-bias", "5,6=6"), {"sequence_bias": [[[5], 4.0], [[5, 6], 6.0]]}),
    (("--bad-words-ids", "100", "--bad-words-ids", "30,31"), {"bad_words_ids": [[100], [30, 31]]}),
    (("--suppress-tokens", "1,2,3", "--begin-suppress-tokens", "4,5"),
     {"suppress_tokens": [1, 2, 3], "begin_suppress_tokens": [4, 5]}),
    (("--forced-eos-token-id", "9,8"), {"forced_eos_token_id": [9, 8]}),
    (("--exponential-decay-length-penalty", "2,1.5"), {"exponential_decay_length_penalty": (2, 1.5)}),
    (("--eos-token-id", "9,8,120", "--min-new-tokens", "3"), {"eos_token_id": [9, 8, 120], "min_new_tokens": 3}),
    (("--num-beams", "4", "--num-beam-groups", "2", "--diversity-penalty", "0.7", "--num-return-sequences", "4"),
     {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.7, "num_return_sequences": 4}),
    (("--num-beams", "3", "--early-stopping", "true"), {"num_beams": 3, "early_stopping": True}),
    (("--num-beams", "3", "--early-stopping", "never", "--length-penalty", "2"),
     {"num_beams": 3, "early_stopping": "never", "length_penalty": 2.0}),
    (("--overflow", "slide", "-n", "90"), {"overflow": "slide", "max_new_tokens": 90}),
    (("--nan", "finite", "--max-batch-size", "1"), {"nan": "finite", "max_batch_size": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "options"), FLAGS)
def test_flags_do_what_their_options_do(
    folder: Path, flags: tuple[str, ...], options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("generate", "-m", folder, "--device", "numpy", "-n", 8, "--temp", 0, "--json", "-p", "the", "-p", "hello")
    rows = [json.loads(line) for line in run(capsys, *words, *flags).splitlines()]
    with AutoModelForCausalLM.from_pretrained(folder, device="numpy") as model:
        prompts = [model.tokenizer.encode(text) for text in ("the", "hello")]
        found = model.generate(prompts, return_dict_in_generate=True, **{"max_new_tokens": 8, **options})
        n_texts = options.get("num_return_sequences", 1)
        for i, row in enumerate(rows):
            prompt, ids = prompts[i // n_texts], found.sequences[i].tolist()
            whole = model.tokenizer.decode(ids, skip_special_tokens=True)
            assert row["text"] == whole[len(model.tokenizer.decode(prompt)) :]
            assert row["n_tokens"] == len(ids) - len(prompt)
            assert row["finish_reason"] == found.finish_reasons[i]
    assert len(rows) == 2 * n_texts


def test_log_probabilities(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("generate", "-m", folder, "--device", "numpy", "-n", 4, "--temp", 0, "-p", "the", "--top-logprobs", 2)
    row = json.loads(run(capsys, *words, "--json"))
    with AutoModelForCausalLM.from_pretrained(folder, device="numpy") as model:
        prompt = model.tokenizer.encode("the")
        found = model.generate(prompt, max_new_tokens=4, top_logprobs=2, return_dict_in_generate=True)
        assert found.top_logprobs is not None
        new = found.sequences[0].tolist()[len(prompt) :]
        assert [item["token"] for item in row["logprobs"]] == [model.tokenizer.decode([i]) for i in new]
        assert [np.float32(item["logprob"]) for item in row["logprobs"]] == found.logprobs[0].tolist()
        for item, (ids, logprobs) in zip(row["logprobs"], found.top_logprobs[0], strict=True):
            top = [(one["token"], one["logprob"]) for one in item["top_logprobs"]]
            assert top == [
                (model.tokenizer.decode([i]), p) for i, p in zip(ids.tolist(), logprobs.tolist(), strict=True)
            ]
    assert main([str(word) for word in words]) == 1
    assert "--top-logprobs: expected --json" in capsys.readouterr().err


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
    listed = [json.loads(line) for line in run(capsys, *words, "--json", "--top-logprobs", 1).splitlines()]
    assert [{name: row[name] for name in rows[0]} for row in listed] == rows
    for row in listed:
        assert "".join(item["token"] for item in row["logprobs"]) == row["content"]
        assert all(item["logprob"] == item["top_logprobs"][0]["logprob"] for item in row["logprobs"])  # greedy
    assert run(capsys, *words) == "".join(row["content"] + "\n" for row in rows)
    (tmp_path / "long").write_text("word " * 100 + "\n")
    assert main(["chat", "-m", str(folder), "--device", "numpy", "-f", str(tmp_path / "long")]) == 1
    assert "expected a conversation of fewer than 64 tokens" in capsys.readouterr().err
