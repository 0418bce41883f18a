"""Adapters of a served model: models of their own, with the texts of the library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

import fastattn as fa
from fastattn.errors import InputError
from fastattn.server.models import load_models
from fastattn.server.options import ModelSpec, ServeOptions
from fastattn.tasks.demo import demo_model
from tests.models.test_request_adapters import MODULES, PREFIX, write_adapter
from tests.server.live import WAIT, Live

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, base = tmp_path_factory.mktemp("adapters"), demo_model("text-generation")
    return write_adapter(folder, base, seed=1, modules=MODULES["gpt2"], prefix=PREFIX["gpt2"])


@pytest.fixture(scope="module")
def served(adapter: Path) -> Iterator[Live]:
    specs = [ModelSpec(path=str(demo_model("text-generation")), kind="generate")]
    models = load_models(specs, {}, [f"pirate={adapter}"])
    live = Live(models)
    yield live
    live.close()
    models.close()


def client_of(live: Live) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", timeout=WAIT, max_retries=0)


def test_an_adapter_is_a_model(served: Live, adapter: Path) -> None:
    client = client_of(served)
    assert [model.id for model in client.models.list()] == ["gpt2-litbank", "pirate"]
    with fa.AutoModelForCausalLM.from_pretrained(demo_model("text-generation")) as lm:
        lm.load_adapter(adapter, "a")
        assert lm.tokenizer is not None
        ids = lm.tokenizer.encode(PROMPT)
        for model, name in (("pirate", "a"), ("gpt2-litbank", None)):
            new = lm.generate(ids, max_new_tokens=12, adapter_name=name)[len(ids) :].tolist()
            found = client.completions.create(model=model, prompt=PROMPT, max_tokens=12, temperature=0)
            assert found.choices[0].text == lm.tokenizer.decode([*ids, *new])[len(PROMPT) :]
        echoed = client.completions.create(model="pirate", prompt=PROMPT, max_tokens=1, echo=True, logprobs=0)
        scored = lm.score(ids[:1], [ids[1:]], adapter_name="a").logprobs[0].tolist()
        assert echoed.choices[0].logprobs is not None
        assert (echoed.choices[0].logprobs.token_logprobs or [])[1 : len(ids)] == scored


def test_errors(adapter: Path) -> None:
    with pytest.raises(InputError, match="adapters: expected NAME=DIR, got 'pirate'"):
        ServeOptions(adapters=("pirate",))
    reviews = ModelSpec(path=str(demo_model("text-classification")), kind="classify")
    with pytest.raises(InputError, match="expected a language model"):
        load_models([reviews], {}, [f"pirate={adapter}"])
