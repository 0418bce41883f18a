"""Models of an encoder and a decoder: like transformers, and the same bits however they run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn as fa
from fastattn.errors import ConfigError, ContextLengthError, InputError
from fastattn.graph.error_bounds import program_bound
from fastattn.tokenizer import load_tokenizer
from tests.tasks.test_tokenizer_marian import write_small

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)

SIZES: dict[str, Any] = {
    "vocab_size": 99, "d_model": 64, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 80, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 80,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2, "init_std": 0.3,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bart": ("Bart", {"forced_bos_token_id": 0}),
    "marian": ("Marian", {"scale_embedding": True, "decoder_start_token_id": 1, "activation_function": "swish"}),
    "mbart": ("MBart", {"scale_embedding": True, "encoder_layers": 4, "forced_eos_token_id": 2}),
    "pegasus": ("Pegasus", {"decoder_start_token_id": 1, "activation_function": "relu"}),
    "m2m_100": ("M2M100", {"forced_bos_token_id": 9}),
    "t5": ("T5", {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 9}),
    "flan-t5": ("T5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_decoder_layers": 2}),
    "mt5": ("MT5", {"feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 12}),
}
T5_SIZES: dict[str, Any] = {
    "vocab_size": 99, "d_model": 64, "d_kv": 12, "d_ff": 80, "num_layers": 3, "num_heads": 4, "pad_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1, "initializer_factor": 1.0,
}  # fmt: skip
CLASSES = {"Marian": "MarianMTModel"}
UNKNOWN = [0, 1, 4, *range(7, 99)]  # ids that the small tokenizer lacks, or does not show
SOURCES = [[5, 17, 9, 2], [44, 3, 2], [8, 30, 31, 32, 50, 60, 70, 80, 90, 11, 2], [6, 2]]
TARGETS = [[2, 5], [2, 9, 8, 7, 33, 21], [2], [2, 40, 41]]


def write(folder: Path, name: str) -> Any:
    """Write a random model with biases, and return transformers' model."""
    family, options = FAMILIES[name]
    config = getattr(transformers, f"{family}Config")(**{**(T5_SIZES if "T5" in family else SIZES), **options})
    torch.manual_seed(len(name))
    model = getattr(transformers, CLASSES.get(family, f"{family}ForConditionalGeneration"))(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape))
            elif "shared" in key or "embed_tokens" in key:
                parameter.mul_(0.5)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_()
        if family == "T5" and "tie_word_embeddings" in options:  # T5 1.1 has an output matrix of its own
            model.lm_head.weight = torch.nn.Parameter(0.1 * torch.randn(99, 64))
    model.save_pretrained(folder)
    return model.double()


@pytest.fixture(scope="module", params=list(FAMILIES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp(request.param)
    return folder, write(folder, request.param)


def expected_of(model: Any, source: Sequence[int], target: Sequence[int]) -> tuple[Any, Any]:
    with torch.no_grad():
        out = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([target]))
    return out.logits[0].numpy(), out.encoder_last_hidden_state[0].numpy()


def test_logits(pair: tuple[Path, Any], caplog: pytest.LogCaptureFixture) -> None:
    """A ragged batch is within the float64 bound of transformers in float64, and float64 itself far within it."""
    folder, theirs = pair
    for device, precise in (("cpu", 1.0), ("numpy", 1e-3)):
        with fa.AutoModelForSeq2SeqLM.from_pretrained(folder, device=device) as model:
            assert not [record for record in caplog.records if record.levelname == "WARNING"]
            out = model(SOURCES, decoder_input_ids=TARGETS)
            programs = (model.encoder.program, model.executor.program)
            bound = precise * sum(program_bound(one, np.float32, longest=11, scale=60.0) for one in programs)
            for i, (source, target) in enumerate(zip(SOURCES, TARGETS, strict=True)):
                logits, states = expected_of(theirs, source, target)
                assert np.abs(out.logits[i] - logits).max() <= bound
                assert np.abs(out.encoder_last_hidden_state[i] - states).max() <= bound
                assert np.abs(logits).max() > 1


OPTIONS: list[dict[str, Any]] = [
    {"max_new_tokens": 12},
    {"max_new_tokens": 12, "num_beams": 4, "length_penalty": 0.6, "early_stopping": True},
    {"max_new_tokens": 9, "num_beams": 3, "no_repeat_ngram_size": 2, "forced_bos_token_id": 7},
    {"max_new_tokens": 9, "min_new_tokens": 4, "repetition_penalty": 1.3},
]


@pytest.mark.parametrize("number", range(len(OPTIONS)))
def test_generate(pair: tuple[Path, Any], number: int) -> None:
    """Greedy texts and beams, to the token, with scores, for a ragged batch."""
    folder, theirs = pair
    options = OPTIONS[number]
    more = {"return_dict_in_generate": True, "output_scores": True, "do_sample": False}
    with fa.AutoModelForSeq2SeqLM.from_pretrained(folder) as model:
        found = model.generate(SOURCES, return_dict_in_generate=True, do_sample=False, **options)
        plain = model.generate(SOURCES, do_sample=False, **options)
    for i, source in enumerate(SOURCES):
        out = theirs.generate(torch.tensor([source]), **options, **more)
        ids = found.sequences[i].tolist()
        assert plain[i].tolist() == ids
        assert ids == out.sequences[0].tolist()[: len(ids)]
        assert set(out.sequences[0].tolist()[len(ids) :]) <= {1}
        if "num_beams" in options:
            assert found.sequences_scores[i] == pytest.approx(float(out.sequences_scores[0]), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_same_bits(pair: tuple[Path, Any], dtype: str) -> None:
    """Alone, in a batch, on several threads: the same logits; beams and steps with a cache give the same texts."""
    folder, _ = pair
    asked: dict[str, Any] = {
        "max_new_tokens": 10,
        "num_beams": 3,
        "return_dict_in_generate": True,
        "num_return_sequences": 2,
    }
    with fa.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=dtype, threads=1) as model:
        alone = [model([s], decoder_input_ids=[t]).logits[0] for s, t in zip(SOURCES, TARGETS, strict=True)]
        beams = [model.generate([s], **asked) for s in SOURCES]
    with fa.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=dtype, threads=2) as model:
        batch = model(SOURCES, decoder_input_ids=TARGETS).logits
        together = model.generate(SOURCES, **asked)
        greedy = model.generate(SOURCES, max_new_tokens=10, return_dict_in_generate=True)
        for i, ids in enumerate(greedy.sequences):  # the log-probabilities of the steps are those of one call
            logits = model([SOURCES[i]], decoder_input_ids=[ids[:-1]]).logits[0].astype(np.float64)
            top = logits - logits.max(axis=1, keepdims=True)
            logprobs = top - np.log(np.exp(top).sum(axis=1, keepdims=True))
            chosen = logprobs[np.arange(len(ids) - 1), ids[1:]]
            np.testing.assert_allclose(greedy.logprobs[i], chosen, atol=2e-5, rtol=1e-5)
    assert [one.tobytes() for one in alone] == [one.tobytes() for one in batch]
    for i, one in enumerate(beams):
        for j in range(2):
            assert one.sequences[j].tolist() == together.sequences[2 * i + j].tolist()
            assert one.sequences_scores[j] == together.sequences_scores[2 * i + j]


def test_pages_are_freed(pair: tuple[Path, Any]) -> None:
    with fa.AutoModelForSeq2SeqLM.from_pretrained(pair[0]) as model:
        model.generate(SOURCES, max_new_tokens=70, num_beams=2, min_new_tokens=70)
        model(SOURCES, decoder_input_ids=TARGETS)
        assert model.executor.kv_pages_in_use == 0


def test_padding_and_layouts(pair: tuple[Path, Any]) -> None:
    with fa.AutoModelForSeq2SeqLM.from_pretrained(pair[0]) as model:
        array = np.array([[5, 17, 9, 2], [44, 3, 2, 1]])
        found = model.generate(array, max_new_tokens=8)
        mask = np.array([[1, 1, 1, 1], [1, 1, 1, 0]])
        masked = model.generate(array, attention_mask=mask, max_new_tokens=8)
        alone = [model.generate(SOURCES[i], max_new_tokens=8) for i in range(2)]
        assert [ids.tolist() for ids in found] == [ids.tolist() for ids in alone] == [ids.tolist() for ids in masked]
        dense = model(array, mask, np.array([[2, 5], [2, 9]])).logits
        assert dense.shape == (2, 2, 99)
        assert dense[1].tobytes() == model(SOURCES[1], decoder_input_ids=[2, 9]).logits.tobytes()


def test_wrong_calls(pair: tuple[Path, Any]) -> None:
    with fa.AutoModelForSeq2SeqLM.from_pretrained(pair[0]) as model:
        with pytest.raises(ConfigError, match="expected a tokenizer"):
            model.generate("A text", max_new_tokens=2)
        with pytest.raises(InputError, match="at least one token for the encoder"):
            model.generate([[3], []], max_new_tokens=2)
        with pytest.raises(ContextLengthError):
            model.generate([[3] * (model.config.max_positions + 1)], max_new_tokens=2)
        with pytest.raises(ContextLengthError):
            model.generate([[3] * 8], max_new_tokens=model.config.max_positions)
        with pytest.raises(InputError, match="decoder_start_token_id: expected 0 to 98"):
            model.generate([[3]], decoder_start_token_id=99)
        with pytest.raises(InputError, match="assistant_model"):
            model.generate([[3]], assistant_model="int8")
        with pytest.raises(InputError, match="overflow"):
            model.generate([[3]], overflow="slide")
        with pytest.raises(InputError, match="expected 2 sequences"):
            model([[3], [4]], decoder_input_ids=[[2]])
    with pytest.raises(ConfigError, match="AutoModelForSeq2SeqLM"):
        fa.AutoModelForCausalLM.from_pretrained(pair[0])


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("bart", {"decoder_attention_heads": 2}, "decoder_attention_heads"),
        ("marian", {"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings"),
        ("m2m_100", {"pad_token_id": 0}, "pad_token_id"),
        ("marian", {"decoder_vocab_size": 50}, "decoder_vocab_size"),
        ("pegasus", {"is_encoder_decoder": False}, "is_encoder_decoder"),
    ],
)
def test_refused_options(tmp_path: Path, name: str, changes: dict[str, Any], message: str) -> None:
    write(tmp_path, name)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ConfigError, match=message):
        fa.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)


def test_texts(tmp_path: Path) -> None:
    """A folder of Marian with its SentencePiece files: texts in, texts out, one or several."""
    write(tmp_path, "marian")
    tokenizer = load_tokenizer(write_small(tmp_path))
    with fa.AutoModelForSeq2SeqLM.from_pretrained(tmp_path) as model:
        texts = ["cats", "cat cat"]
        options: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 4, "suppress_tokens": UNKNOWN}
        options["forced_eos_token_id"] = 2
        ids = model.generate([tokenizer.encode(text) for text in texts], **options)
        found = model.generate(texts, **options)
        assert found == [tokenizer.decode(one, skip_special_tokens=True) for one in ids]
        assert any(found)
        assert model.generate(texts[0], **options) == found[0]
        with pytest.raises(InputError, match="attention_mask: expected None with texts"):
            model.generate(texts, attention_mask=[[1], [1]])


@pytest.mark.parametrize("beams", [1, 3])
def test_many_texts_stay_within_the_memory(tmp_path: Path, beams: int) -> None:
    """The encoder runs when there is room for what it writes; a text that can never fit is an error."""
    write(tmp_path, "bart")
    sources = [[5, 6, 7 + i % 80, 2] for i in range(60)]
    options: dict[str, Any] = {"max_new_tokens": 6, "num_beams": beams, "num_return_sequences": beams}
    with fa.AutoModelForSeq2SeqLM.from_pretrained(tmp_path) as model:
        page = model.engine.stats().page_bytes
        expected = [ids.tolist() for ids in model.generate(sources, **options)]
    most = 2 + 3 * beams
    with fa.AutoModelForSeq2SeqLM.from_pretrained(tmp_path, kv_cache_bytes=most * page) as model:
        seen: list[int] = []

        def look(ids: Any, scores: Any) -> Any:
            seen.append(model.engine.stats().in_use)
            return scores

        found = [ids.tolist() for ids in model.generate(sources, **options, logits_processor=look)]
        assert found == expected
        assert max(seen) <= most
        assert model.engine.stats().in_use == 0
    with (
        fa.AutoModelForSeq2SeqLM.from_pretrained(tmp_path, kv_cache_bytes=page) as model,
        pytest.raises(fa.OutOfMemory, match="expected at least"),
    ):
        model.generate(sources[:1], max_new_tokens=6)


def test_an_error_in_the_middle_frees_all_pages(tmp_path: Path) -> None:
    write(tmp_path, "bart")

    def fail(ids: Any, scores: Any) -> Any:
        if ids.shape[1] == 3:
            raise ValueError("stop")
        return scores

    with fa.AutoModelForSeq2SeqLM.from_pretrained(tmp_path) as model:
        with pytest.raises(ValueError, match="stop"):
            model.generate([[5, 6, 2]] * 40, max_new_tokens=6, logits_processor=fail)
        assert model.engine.stats().in_use == 0
        assert len(model.generate([5, 6, 2], max_new_tokens=3)) <= 4
