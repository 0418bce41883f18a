"""The keywords of transformers' `generate`: the same ids, or a typed error; padding without a mask; streamers."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastattn.api.auto import AutoModelForCausalLM
from fastattn.api.causal_lm import CausalLM
from fastattn.errors import ContextLengthError, DTypeError, InputError
from fastattn.generation.generate import generate, stream
from fastattn.generation.options import GenerationOptions, read_options, request_seed
from fastattn.models.outputs import GenerateOutput
from tests.tasks.tiny import write_gpt2_model
from tests.tasks.toy import ToyModel

PROMPT = [5, 6, 7, 8]
HARMLESS: list[dict[str, Any]] = [
    {"use_cache": True},
    {"use_cache": False},
    {"use_cache": None},
    {"num_beams": 1},
    {"num_beam_groups": 1},
    {"early_stopping": False},
    {"early_stopping": "never"},
    {"length_penalty": 0.5},
    {"renormalize_logits": True},
    {"typical_p": 1.0},
    {"epsilon_cutoff": 0.0},
    {"no_repeat_ngram_size": 0},
    {"bad_words_ids": None},
    {"logits_processor": []},
    {"stopping_criteria": None},
    {"synced_gpus": False},
    {"output_scores": False},
    {"output_hidden_states": False},
    {"return_dict_in_generate": False},
    {"num_return_sequences": 1},
    {"guidance_scale": 1.0},
    {"temperature": None, "top_p": None, "do_sample": None, "min_new_tokens": None},
    {"cache_implementation": "dynamic"},
    {"assistant_model": None, "negative_prompt_ids": None, "custom_generate": None},
    {"token_type_ids": None, "position_ids": None, "past_key_values": None, "inputs_embeds": None, "labels": None},
    {"remove_invalid_values": False},
    {"tokenizer": None},
    {"streamer": None},
    {"pad_token_id": 0},
    {"bos_token_id": 3},
    {"generation_config": None},
]
REFUSED: list[tuple[str, Any, str]] = [
    ("num_beams", 0, "num_beams: expected 1 to 1024, got 0"),
    ("num_beams", True, "num_beams: expected int, got bool"),
    ("output_scores", 1, "output_scores: expected True or False, got int 1"),
    ("output_attentions", True, "output_attentions: .*; call the model"),
    ("no_repeat_ngram_size", -2, "no_repeat_ngram_size: expected 0 to"),
    ("typical_p", 0.0, "typical_p: expected a finite number from 1e-06 to 1.0"),
    ("logits_processor", [3], r"logits_processor\[0\]: expected a function, got int"),
    ("stopping_criteria", "a", r"stopping_criteria\[0\]: expected a function, got str"),
    ("guidance_scale", 2.0, "guidance_scale: .*; use logits_processor"),
    ("constraints", [1], "constraints: .*; use prefix_allowed_tokens_fn"),
    ("token_type_ids", [0, 0, 0, 0], "token_type_ids: .*; generate takes no token types; pass only input_ids and"),
    ("position_ids", [0, 1, 2, 3], "position_ids: .*; positions count"),
    ("inputs_embeds", np.ones((1, 2, 3)), "inputs_embeds: .*; pass input_ids"),
    ("cache_implementation", "quantized", "cache_implementation: .*; load the model with kv_dtype="),
    ("remove_invalid_values", True, 'remove_invalid_values: .*; use nan="finite"'),
    ("use_cache", "false", "use_cache: expected True or False, got str 'false'"),
    ("length_penalty", "1", "length_penalty: expected a number, got str '1'"),
    ("generation_config", 3, "generation_config: expected a GenerationConfig or a mapping, got 3"),
    ("streamer", print, "streamer: expected an object with put and end"),
    ("tokenizer", 3, "tokenizer: expected"),
    ("max_newtokens", 3, "generate: unknown keyword 'max_newtokens'; did you mean 'max_new_tokens'"),
    ("attention_mas", [1], "generate: unknown keyword 'attention_mas'; did you mean 'attention_mask'"),
    ("greedy", True, "greedy: expected None, got True; use do_sample=False"),
    ("stop", ["a"], "stop: expected None, got .*; use stop_strings"),
    ("stream", True, "stream: expected None or False, got True; call stream"),
    ("whatever", 3, "generate: unknown keyword 'whatever'; see GenerationOptions"),
    ("return_dict_in_generate", "yes", "return_dict_in_generate: expected True or False"),
    ("inputs", [1], "inputs: expected None, because input_ids is set"),
]  # fmt: skip


@pytest.mark.parametrize("options", HARMLESS)
def test_keywords_that_change_nothing(options: dict[str, Any]) -> None:
    model = ToyModel()
    expected = generate(model, PROMPT, max_new_tokens=6)
    found = generate(model, PROMPT, max_new_tokens=6, **options)
    assert isinstance(expected, np.ndarray)
    assert isinstance(found, np.ndarray)
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize(("name", "value", "message"), REFUSED)
def test_keywords_that_are_refused(name: str, value: Any, message: str) -> None:
    model = ToyModel()
    options: Any = {name: value, **({"stop_strings": "a"} if name == "tokenizer" else {})}
    with pytest.raises((InputError, DTypeError), match=f"^{message}"):
        generate(model, PROMPT, max_new_tokens=6, **options)
    assert model.executor.sizes == []


def test_max_length_counts_the_prompt() -> None:
    model = ToyModel()
    assert len(generate(model, PROMPT, max_length=10)) == 10
    assert [len(ids) for ids in generate(model, [PROMPT, [1]], max_length=10)] == [10, 10]
    assert len(generate(model, PROMPT, max_length=10, max_new_tokens=2)) == 6  # max_new_tokens takes precedence
    model.always_say([9], prompt_len=4)
    assert len(generate(model, PROMPT, max_length=10, min_length=8, eos_token_id=9)) == 9
    assert len(generate(model, PROMPT, max_length=10, min_length=8, min_new_tokens=2, eos_token_id=9)) == 7
    with pytest.raises(InputError, match=r"max_length: expected more than the 4 tokens of the prompt.*got 4"):
        generate(model, PROMPT, max_length=4)
    mask = [[0, 0, 1, 1], [1, 1, 1, 1]]
    rows = generate(model, np.array([PROMPT, PROMPT]), attention_mask=mask, max_length=10)
    assert [len(row) for row in rows] == [8, 10]  # six new ones each, as in transformers


def test_num_return_sequences() -> None:
    model = ToyModel()
    options: Any = {"do_sample": True, "max_new_tokens": 8, "seed": 5}
    three = generate(model, PROMPT, num_return_sequences=3, **options)
    assert isinstance(three, list)
    for i, ids in enumerate(three):
        alone = generate(model, PROMPT, **{**options, "seed": request_seed(5, i)})
        assert ids.tolist() == np.asarray(alone).tolist()
    both = generate(model, [PROMPT, [1]], num_return_sequences=2, **options)
    assert [ids[: len(p)].tolist() for ids, p in zip(both, [PROMPT, PROMPT, [1], [1]], strict=True)] == [
        PROMPT, PROMPT, [1], [1],
    ]  # fmt: skip
    assert len({tuple(ids.tolist()) for ids in both}) == 4
    seeded = generate(model, PROMPT, num_return_sequences=2, **{**options, "seed": [7, 8]})
    assert len(seeded) == 2
    for count in (2**30, 2**31 - 1):
        with pytest.raises(InputError, match="num_return_sequences: expected at most"):
            generate(model, PROMPT, num_return_sequences=count, **options)
    with pytest.raises(InputError, match="num_return_sequences: expected 1 without do_sample=True, got 2"):
        generate(model, PROMPT, num_return_sequences=2)


def test_bos_token_id_starts_an_empty_prompt() -> None:
    model = ToyModel()
    model.bos_token_id = 8
    assert np.asarray(generate(model, [[]], max_new_tokens=2, bos_token_id=3)[0])[0] == 3
    assert np.asarray(generate(model, [[]], max_new_tokens=2)[0])[0] == 8
    with pytest.raises(InputError, match="bos_token_id: expected 0 to 31, got 32"):
        generate(model, [[]], bos_token_id=32)


def test_a_prompt_without_memory_is_refused_at_once() -> None:
    model = ToyModel()
    endless = np.broadcast_to(np.int64(1), (2**40,))
    for options in ({}, {"truncate": "left"}):
        for ids in (endless, endless[: 2**30], endless.reshape(2**20, 2**20), [endless]):
            with pytest.raises(InputError, match=r"^input_ids"):
                generate(model, ids, **options)  # type: ignore[arg-type]
    long = generate(model, np.arange(10**6) % 32, truncate="left", max_new_tokens=2)
    assert len(long) == 64


def test_padding_is_inferred() -> None:
    model = ToyModel()
    model.pad_token_id = 1
    alone = np.asarray(generate(model, [5, 6], max_new_tokens=4)).tolist()
    for ids in ([[1, 1, 5, 6], [9, 8, 7, 6]], np.array([[1, 1, 5, 6], [9, 8, 7, 6]])):
        assert np.asarray(generate(model, ids, max_new_tokens=4)[0]).tolist() == alone
    assert np.asarray(generate(model, [1, 5, 6], max_new_tokens=4)).tolist() == alone
    given = generate(model, [[1, 1, 5, 6]], attention_mask=[[1, 1, 1, 1]], max_new_tokens=4)
    assert np.asarray(given[0])[:4].tolist() == [1, 1, 5, 6]
    model.pad_token_id = None
    assert np.asarray(generate(model, [[1, 5, 6]], max_new_tokens=4, pad_token_id=1)[0]).tolist() == alone
    assert np.asarray(generate(model, [[1, 5, 6]], max_new_tokens=4)[0])[:3].tolist() == [1, 5, 6]


def test_padding_where_nothing_was_padded_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    model = ToyModel()
    model.pad_token_id = 1
    for ids in ([5, 1, 6], np.array([1, 5, 6]), [[5, 1, 6], [9]], [[1, 5]]):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="fastattn"):
            generate(model, ids, max_new_tokens=1)
        (record,) = caplog.records
        assert record.getMessage().startswith("input_ids: id 1 is pad_token_id, so it is removed as padding; if it")
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="fastattn"):
        generate(model, [[1, 5], [6, 7]], max_new_tokens=1)
        generate(model, [5, 1, 6], attention_mask=[1, 1, 1], max_new_tokens=1)
        generate(model, [5, 6], max_new_tokens=1)
    assert not caplog.records


def test_padding_that_is_eos_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    model = ToyModel()
    model.eos_token_ids = (1,)
    ids = np.array([[1, 1, 5, 6], [9, 8, 7, 6]])
    for pad in (None, 1):
        model.pad_token_id = pad
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="fastattn"):
            found = generate(model, ids, max_new_tokens=2)
        assert np.asarray(found[0])[:4].tolist() == [1, 1, 5, 6]
        assert len(caplog.records) == 1
        assert (
            caplog.records[0].getMessage().startswith("input_ids: rows begin or end with id 1, which is also an eos id")
        )
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="fastattn"):
        generate(model, [[1, 1, 5, 6], [9, 8, 7]], max_new_tokens=2)
        generate(model, ids[1:], max_new_tokens=2)
        generate(model, ids, attention_mask=ids != 1, max_new_tokens=2)
    assert not caplog.records


def test_output_has_keys() -> None:
    found = generate(ToyModel(), PROMPT, max_new_tokens=3, return_dict_in_generate=True)
    assert isinstance(found, GenerateOutput)
    assert list(found) == ["sequences", "finish_reasons", "logprobs", "seeds", "stats"]
    assert found["sequences"] is found.sequences
    assert found[0] is found.sequences


def test_a_generation_config_is_a_set_of_options() -> None:
    read = read_options({"generation_config": {"max_new_tokens": 3, "top_k": 7}, "top_k": 9}, "generate")
    assert read == GenerationOptions(max_new_tokens=3, top_k=9)
    with pytest.raises(InputError, match="guidance_scale"):
        read_options({"generation_config": {"guidance_scale": 3}}, "generate")


def test_a_generation_config_counts_in_generate() -> None:
    model = ToyModel()
    config: dict[str, Any] = {
        "num_return_sequences": 3, "return_dict_in_generate": True, "do_sample": True, "max_new_tokens": 2, "seed": 5,
    }  # fmt: skip
    found = generate(model, PROMPT, generation_config=config)
    expected = generate(model, PROMPT, num_return_sequences=3, do_sample=True, max_new_tokens=2, seed=5)
    assert isinstance(found, GenerateOutput)
    assert [ids.tolist() for ids in found.sequences] == [ids.tolist() for ids in expected]  # type: ignore[union-attr]
    assert len(found.sequences) == 3
    for none in (None, 1):
        got = generate(
            model, PROMPT, generation_config=config, num_return_sequences=none, return_dict_in_generate=False
        )
        assert len(got) == (3 if none is None else 6)  # a list of three, or one array
    for name in ("temperature", "max_new_tokens", "do_sample"):  # None means "not given"
        read = read_options({"generation_config": {**config, "temperature": 0.5}, name: None}, "stream")
        assert (read.temperature, read.max_new_tokens, read.do_sample) == (0.5, 2, True)
    with pytest.raises(DTypeError, match=r"^return_dict_in_generate: expected True or False"):
        read_options({"generation_config": {"return_dict_in_generate": "yes"}}, "stream")


def test_messages_name_the_argument() -> None:
    from fastattn.tokenizer import Tokenizer
    from fastattn.tokenizer.options import TokenizerOptions
    from tests.tasks.test_decoders import RAW

    model = ToyModel(Tokenizer(RAW["Metaspace"], TokenizerOptions()))
    with pytest.raises(ContextLengthError, match=r"^input_ids: expected prompt .*60 \+ 5; truncate=\"left\" cuts"):
        generate(model, [1] * 60, max_new_tokens=5)
    with pytest.raises(
        ContextLengthError, match=r"got 60 \+ 64; pass max_new_tokens of at most 4$"
    ):  # cutting the prompt does not help
        generate(model, [1] * 60, max_new_tokens=64)
    with pytest.raises(ContextLengthError, match=r"^input_ids\[1\]: expected prompt") as caught:
        generate(model, [[1], [1] * 60], max_new_tokens=5)
    assert (caught.value.index, caught.value.n_tokens, caught.value.context) == (1, 60, 64)
    with pytest.raises(ContextLengthError, match=r"^input_ids\[1\]: expected at most 64 tokens") as caught:
        generate(model, [[1], [1] * 65])
    assert (caught.value.index, caught.value.n_tokens, caught.value.context) == (1, 65, 64)
    with pytest.raises(ContextLengthError, match=r"^text_or_ids: expected at most 64 tokens.*; truncate="):
        stream(model, [1] * 65)
    with pytest.raises(ContextLengthError, match=r"^text_or_ids: expected prompt"):
        stream(model, [1] * 60, max_new_tokens=5)
    with pytest.raises(InputError, match=r"^text_or_ids: expected one sequence"):
        stream(model, [[1], [2]])
    with pytest.raises(InputError, match=r"^text_or_ids\[0\]: expected a token id"):
        stream(model, [10**6])
    with pytest.raises(DTypeError, match=r"^text_or_ids: expected one text .* got list of str; pass one text per call"):
        stream(model, ["a", "b"])
    with pytest.raises(DTypeError, match=r"^text_or_ids: expected token ids, got dict; pass the text, or the"):
        stream(model, {"input_ids": [1]})
    with pytest.raises(DTypeError, match=r"^input_ids: expected token ids, got list of str; encode the text .* stream"):
        generate(model, ["a", "b"])


@pytest.mark.parametrize("seed", [{5, 9}, frozenset({5, 9})])
def test_seeds_have_an_order(seed: Any) -> None:
    with pytest.raises(DTypeError, match=r"^seed: expected an int or a list of them, got (frozen)?set, which has no"):
        GenerationOptions(seed=seed)


class Streamer:
    """The interface of transformers' streamers."""

    def __init__(self) -> None:
        self.put_values: list[list[int]] = []
        self.ended = 0

    def put(self, value: Any) -> None:
        self.put_values.append(np.asarray(value).reshape(-1).tolist())

    def end(self) -> None:
        self.ended += 1


def test_streamer() -> None:
    model, streamer = ToyModel(), Streamer()
    ids = np.asarray(generate(model, PROMPT, max_new_tokens=3, streamer=streamer)).tolist()
    assert streamer.put_values == [PROMPT, *([i] for i in ids[4:])]
    assert streamer.ended == 1
    with pytest.raises(InputError, match="streamer: expected one sequence"):
        generate(model, [PROMPT, PROMPT], streamer=Streamer())
    failed = Streamer()
    with pytest.raises(InputError, match="context"):
        generate(model, [1] * 64, max_new_tokens=3, streamer=failed)
    assert failed.put_values == []


def test_stream_takes_the_same_keywords() -> None:
    from fastattn.tokenizer import Tokenizer
    from fastattn.tokenizer.options import TokenizerOptions
    from tests.tasks.test_decoders import RAW

    model = ToyModel(Tokenizer(RAW["Metaspace"], TokenizerOptions()))
    expected = "".join(stream(model, PROMPT, max_new_tokens=6))
    assert "".join(stream(model, PROMPT, max_length=10, use_cache=True, num_beams=1)) == expected
    with pytest.raises(InputError, match="stream: unknown keyword 'max_newtokens'; did you mean 'max_new_tokens'"):
        stream(model, PROMPT, max_newtokens=3)  # type: ignore[call-arg]


# -- against transformers ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gpt2_model(tmp_path_factory.mktemp("gpt2"))


def reference(folder: Path) -> Any:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    return transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float64)


@pytest.mark.torch
@pytest.mark.parametrize(
    "options",
    [
        {"max_length": 12},
        {"max_length": 12, "max_new_tokens": 3},
        {"max_length": 40, "min_length": 12, "eos_token_id": 0},
        {"max_new_tokens": 8, "pad_token_id": 3},
        {"max_new_tokens": 8, "pad_token_id": 265},
        {"max_new_tokens": 8, "pad_token_id": 3, "eos_token_id": [3, 4]},
        {"max_new_tokens": 8, "pad_token_id": 3, "eos_token_id": 4},
        {"max_new_tokens": 8, "pad_token_id": 3, "repetition_penalty": 1.2},
    ],
)
def test_new_ids_are_transformers(folder: Path, options: dict[str, Any]) -> None:
    """For an array with padding on the left or inside. transformers pads finished rows on the right."""
    import torch

    model: CausalLM = AutoModelForCausalLM.from_pretrained(folder, device="numpy")
    ids = np.array([[3, 3, 7, 8, 9], [1, 2, 40, 5, 6], [3, 9, 3, 7, 8]])
    for mask in (None, np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 0, 1, 1]])):
        extra = {} if mask is None else {"attention_mask": torch.tensor(mask)}
        expected = reference(folder).generate(torch.tensor(ids), do_sample=False, **extra, **options)[:, 5:].tolist()
        found = model.generate(ids, attention_mask=mask, **options)
        kept = [int(row.sum()) for row in (ids != 3 if _infers(options) else np.ones_like(ids))]
        kept = kept if mask is None else [int(row.sum()) for row in mask]
        for ours, theirs, n_prompt in zip(found, expected, kept, strict=True):
            new = np.asarray(ours)[n_prompt:].tolist()
            assert new == theirs[: len(new)]
            assert set(theirs[len(new) :]) <= {options.get("pad_token_id", options.get("eos_token_id", 265))}


def _infers(options: dict[str, Any]) -> bool:
    eos = options.get("eos_token_id", 265)
    return options.get("pad_token_id") == 3 and 3 not in (eos if isinstance(eos, list) else [eos])


@pytest.mark.torch
def test_where_the_padding_id_comes_from(folder: Path, tmp_path: Path) -> None:
    """As in transformers: generation_config.json if it exists, else config.json."""
    import shutil

    transformers = pytest.importorskip("transformers")
    cases: list[tuple[Any, Any, int | None]] = [
        ({"pad_token_id": 3}, None, 3),
        ({"pad_token_id": 3}, {"pad_token_id": 5}, 5),
        ({"pad_token_id": 3}, {"eos_token_id": 4}, None),
        ({}, None, None),
    ]
    for i, (config, generation, expected) in enumerate(cases):
        case = tmp_path / str(i)
        shutil.copytree(folder, case)
        (case / "generation_config.json").unlink()
        if generation is not None:
            (case / "generation_config.json").write_text(json.dumps(generation))
        known = json.loads((case / "config.json").read_text())
        (case / "config.json").write_text(json.dumps({**known, **config}))
        theirs = transformers.AutoModelForCausalLM.from_pretrained(case).generation_config.pad_token_id
        assert AutoModelForCausalLM.from_pretrained(case).pad_token_id == theirs == expected


@pytest.mark.torch
def test_streamer_of_transformers(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = AutoModelForCausalLM.from_pretrained(folder, device="numpy")
    assert model.tokenizer is not None
    ids = model.tokenizer.encode("the hello")
    streamer = transformers.TextIteratorStreamer(transformers.AutoTokenizer.from_pretrained(folder), skip_prompt=True)
    whole = model.generate(ids, max_new_tokens=8, streamer=streamer)
    assert "".join(streamer) == model.tokenizer.decode(whole[len(ids) :])


@pytest.mark.torch
def test_a_generation_config_of_transformers(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = AutoModelForCausalLM.from_pretrained(folder, device="numpy")
    config = transformers.GenerationConfig(max_new_tokens=3, num_beams=1)
    assert len(model.generate(PROMPT, generation_config=config)) == 7
    assert len(model.generate(PROMPT, generation_config=config, max_new_tokens=5)) == 9


@pytest.mark.torch
def test_an_encoding_is_unpacked(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, device="numpy")
    tokenizer = model.tokenizer
    assert tokenizer is not None
    one = model.generate(**tokenizer("the hello"), max_new_tokens=3)
    assert isinstance(one, np.ndarray)
    for encoding in (tokenizer(["the hello"]), tokenizer("the hello", return_tensors="np")):
        many = model.generate(**encoding, max_new_tokens=3)
        assert isinstance(many, list)
        assert [ids.tolist() for ids in many] == [one.tolist()]
