"""Generation with real models, compared with transformers and with itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fastattn.api.auto import AutoModelForCausalLM
from fastattn.api.auto_tokenizer import AutoTokenizer
from fastattn.api.causal_lm import CausalLM
from fastattn.generation.options import request_seed
from fastattn.models.outputs import GenerateOutput
from tests.reference.command import run
from tests.tasks.bounds import assert_same_bits
from tests.tasks.tiny import write_gpt2_model

pytestmark = pytest.mark.torch
PROMPTS = [[1, 2, 3], [40], [5, 6, 7, 8, 9, 10, 11, 200, 201], [99, 98]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gpt2_model(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture
def model(folder: Path, device: str) -> CausalLM:
    return AutoModelForCausalLM.from_pretrained(folder, device=device, threads=1)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_is_transformers(folder: Path, model: CausalLM, prompt: list[int]) -> None:
    import torch
    import transformers

    reference = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float64)
    ids = torch.tensor([prompt])
    expected = reference.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False, pad_token_id=265
    )
    assert model.generate(prompt, max_new_tokens=40).tolist() == expected[0].tolist()


def test_repetition_penalty_is_transformers(folder: Path, model: CausalLM) -> None:
    import torch
    import transformers

    reference = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float64)
    ids = torch.tensor([PROMPTS[0]])
    expected = reference.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False, repetition_penalty=1.5,
        pad_token_id=265,
    )  # fmt: skip
    assert model.generate(PROMPTS[0], max_new_tokens=40, repetition_penalty=1.5).tolist() == expected[0].tolist()


def test_log_probabilities_are_transformers(folder: Path, model: CausalLM, device: str) -> None:
    import torch
    import transformers

    found = model.generate(PROMPTS[2], max_new_tokens=10, return_dict_in_generate=True)
    assert isinstance(found, GenerateOutput)
    reference = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float64)
    ids = torch.from_numpy(found.sequences[0].astype(np.int64))
    with torch.no_grad():
        rows = reference(ids[None]).logits[0].log_softmax(-1)
    exact = np.array([rows[i - 1, ids[i]] for i in range(len(PROMPTS[2]), len(ids))])
    if device == "numpy":
        assert (found.logprobs[0] == exact.astype(np.float32)).mean() > 0.5
    single = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        rough = single(ids[None]).logits[0].log_softmax(-1)
    error = np.abs(np.array([rough[i - 1, ids[i]] for i in range(len(PROMPTS[2]), len(ids))]) - exact).max()
    assert np.abs(found.logprobs[0] - exact).max() <= 2 * error + 2 * np.spacing(np.float32(np.abs(exact).max()))


@pytest.mark.parametrize("do_sample", [False, True])
def test_a_batch_says_what_each_says_alone(model: CausalLM, device: str, do_sample: bool) -> None:
    batch = PROMPTS * 3
    options = {"do_sample": do_sample, "max_new_tokens": 12, "return_dict_in_generate": True}
    together = model.generate(batch, seed=5, **options)
    for i, prompt in enumerate(batch):
        alone = model.generate(prompt, seed=request_seed(5, i), **options)
        assert alone.sequences[0].tolist() == together.sequences[i].tolist()
        assert_same_bits(alone.logprobs[0], together.logprobs[i], device)
    small = model.generate(batch, seed=5, max_batch_size=5, **options)
    for ours, theirs in zip(small.logprobs, together.logprobs, strict=True):
        assert_same_bits(ours, theirs, device)


def test_padded_input(model: CausalLM) -> None:
    ids = np.array([[0, 0, 7, 8], [1, 2, 3, 4]])
    mask = np.array([[0, 0, 1, 1], [1, 1, 1, 1]])
    found = model.generate(ids, attention_mask=mask, max_new_tokens=5)
    assert found[0].tolist() == model.generate([7, 8], max_new_tokens=5).tolist()
    assert found[1].tolist() == model.generate([1, 2, 3, 4], max_new_tokens=5).tolist()


def test_stream_is_the_decoded_text(model: CausalLM) -> None:
    tokenizer = model.tokenizer
    assert tokenizer is not None
    prompt = tokenizer.encode("the hello")
    for seed in range(4):
        ids = model.generate(prompt, max_new_tokens=40, do_sample=True, temperature=2.0, seed=seed)
        pieces = list(model.stream("the hello", max_new_tokens=40, do_sample=True, temperature=2.0, seed=seed))
        assert "".join(pieces) == tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)


def test_stop_string_cuts_the_same_text(model: CausalLM) -> None:
    whole = "".join(model.stream("the", max_new_tokens=40, do_sample=True, seed=1))
    stop = whole[len(whole) // 2 :][:2]
    cut = "".join(model.stream("the", max_new_tokens=40, do_sample=True, seed=1, stop_strings=[stop]))
    assert cut == whole[: whole.index(stop)]


def test_several_threads_use_one_model(model: CausalLM, device: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def work(i: int) -> GenerateOutput:
        prompt = PROMPTS[i % len(PROMPTS)]
        found = model.generate(prompt, do_sample=True, seed=i, max_new_tokens=15, return_dict_in_generate=True)
        assert isinstance(found, GenerateOutput)
        return found

    alone = [work(i) for i in range(12)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(work, range(12)))
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.sequences[0].tolist() == theirs.sequences[0].tolist()
        assert_same_bits(ours.logprobs[0], theirs.logprobs[0], device)


def test_the_padding_id_in_a_text_is_text(folder: Path, tmp_path: Path) -> None:
    """Nothing in a text is dropped as padding, in `stream` and in the pipeline of transformers."""
    import torch
    import transformers

    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "the hello the hello in"
    ids = tokenizer.encode(text)
    shutil.copytree(folder, tmp_path / "m")
    for name in ("config.json", "generation_config.json"):
        path = tmp_path / "m" / name
        path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token_id": ids[1]}))
    reference = transformers.pipeline("text-generation", str(tmp_path / "m"), dtype=torch.float64)
    expected = reference(text, do_sample=False, max_new_tokens=12)[0]["generated_text"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m", device="numpy")
    with model.stream(text, max_new_tokens=12) as pieces:
        assert text + "".join(pieces) == expected
        assert pieces.token_ids[: len(ids)].tolist() == ids
    options = ("--device", "numpy", "-n", 12, "--temp", 0, "-p", text)
    for more in ((), ("--no-stream",)):
        assert run("generate", "-m", tmp_path / "m", *options, *more).stdout == f"{expected}\n"
