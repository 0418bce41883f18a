"""The defaults in generation_config.json: what transformers does with the same folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastattn.api.auto import AutoModelForCausalLM
from fastattn.errors import InputError
from fastattn.generation.generate import generate, stream
from fastattn.generation.generation_config import with_defaults
from fastattn.tasks.pipelines import pipeline
from tests.tasks.tiny import write_gpt2_model
from tests.tasks.toy import ToyModel

PROMPTS = [[5, 6, 7, 5, 6], [9]]


@pytest.mark.torch
@pytest.mark.parametrize(
    ("generation", "call"),
    [
        ({"max_new_tokens": 7, "repetition_penalty": 1.6}, {}),
        ({"max_length": 11, "no_repeat_ngram_size": 2}, {}),
        ({"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 6, "early_stopping": True}, {}),
        ({"max_new_tokens": 7, "repetition_penalty": 1.6}, {"repetition_penalty": 1.0, "max_new_tokens": 3}),
        ({"suppress_tokens": [1, 2, 3], "begin_suppress_tokens": [4, 5, 6]}, {"max_new_tokens": 9}),
        ({"do_sample": True, "top_k": 1}, {"max_new_tokens": 5}),
        ({"temperature": 0.2, "top_k": 3}, {"max_new_tokens": 5}),
    ],
)
def test_the_same_ids_as_transformers(generation: dict[str, Any], call: dict[str, Any], tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = write_gpt2_model(tmp_path)
    path = folder / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": 265, "pad_token_id": 0, **generation}))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with AutoModelForCausalLM.from_pretrained(folder, threads=1) as ours:
        for prompt in PROMPTS:
            ids = torch.tensor([prompt])
            wanted = theirs.generate(ids, attention_mask=torch.ones_like(ids), **call).tolist()
            found = ours.generate([prompt], **call)
            assert [row.tolist() for row in found] == [_cut(row, len(prompt)) for row in wanted]


def _cut(row: list[int], start: int) -> list[int]:
    """Return a row without the padding after its end."""
    return row[: row.index(265, start) + 1] if 265 in row[start:] else row


def test_keywords_take_precedence() -> None:
    defaults = {"max_length": 9, "max_new_tokens": 5, "min_new_tokens": 4, "do_sample": True, "top_k": 3}
    assert with_defaults({}, defaults) == defaults
    assert with_defaults({"do_sample": None, "top_k": None}, defaults) == {**defaults, "top_k": None}
    assert with_defaults({"max_length": 30}, {"max_new_tokens": 5}) == {"max_length": 30}
    assert with_defaults({"max_new_tokens": 3}, defaults)["min_new_tokens"] == 3
    off = {"use_model_defaults": False, "top_p": 0.5}
    assert with_defaults(off, defaults) == off


def test_defaults_of_generate_and_stream() -> None:
    model = ToyModel()
    plain = generate(model, PROMPTS, max_new_tokens=6, no_repeat_ngram_size=1)
    model.generation_config = {"max_new_tokens": 6, "no_repeat_ngram_size": 1}
    assert [row.tolist() for row in generate(model, PROMPTS)] == [row.tolist() for row in plain]
    each = generate(model, PROMPTS, generation_config=[{}, {"max_new_tokens": 2}])
    assert [row.tolist() for row in each] == [plain[0].tolist(), plain[1].tolist()[:3]]
    assert len(generate(model, PROMPTS[0], use_model_defaults=False)) == 25
    model.generation_config = {"num_beams": 3}
    with pytest.raises(InputError, match="num_beams: expected 1, got 3"):
        stream(model, PROMPTS[0])


def test_defaults_of_the_pipeline(tmp_path: Path) -> None:
    """The pipeline samples at 0.7 only if neither the call nor the checkpoint says otherwise."""
    folder = write_gpt2_model(tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False, "max_new_tokens": 4}))
    with pipeline("text-generation", str(folder), threads=1) as write:
        first = write("ab", return_tensors=True)[0]["generated_token_ids"]
        assert write("ab", return_tensors=True)[0]["generated_token_ids"] == first
        greedy = write.model.generate(first[:-4])
        assert first == list(greedy)
