"""Compares all heads with transformers in float64, and tests what a checkpoint must have."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn
from fastattn.errors import ConfigError, ContextLengthError, DTypeError, InputError
from tests.models.decoder_cases import DECODERS, LABELERS, ROUNDED
from tests.models.test_families import ALBERT, BERT, DISTIL, ELECTRA, GPT2, MODERN
from tests.reference.bounds import assert_close

pytest.importorskip("torch")
pytest.importorskip("transformers")
from tests.reference import hf

pytestmark = pytest.mark.torch

# The families with heads for masked tokens, token classification, question answering and multiple choice.
FAMILIES = {
    "Bert": BERT,
    "Roberta": BERT,
    "XLMRoberta": BERT,
    "DistilBert": DISTIL,
    "Camembert": BERT,
    "Electra": ELECTRA,
    "Albert": ALBERT,
    "MPNet": BERT,
    "ModernBert": MODERN,
}
OTHERS = {"NomicBert": BERT, "Gte": BERT, "GPT2": GPT2, **DECODERS, **LABELERS}
HEADS = ("MaskedLM", "TokenClassification", "QuestionAnswering")
PLAIN = (
    *(f"{family}For{head}" for family in FAMILIES for head in HEADS),
    *(f"{family}For{head}" for family in ("NomicBert", "Gte") for head in HEADS[:2]),
    *(f"{family}For{head}" for family in ("GPT2", *DECODERS) for head in HEADS[1:]),
    *(f"{family}ForTokenClassification" for family in LABELERS),
    "BertForNextSentencePrediction",
    "BertForPreTraining",
    "AlbertForPreTraining",
    "ElectraForPreTraining",
)
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in PLAIN),
    ("BertForMaskedLM", {"hidden_act": "relu", "layer_norm_eps": 0.01}),
    ("BertForMaskedLM", {"tie_word_embeddings": False}),
    ("BertForPreTraining", {"tie_word_embeddings": False}),
    ("RobertaForMaskedLM", {"hidden_act": "gelu_new", "layer_norm_eps": 0.01}),
    ("RobertaForMaskedLM", {"tie_word_embeddings": False}),
    ("DistilBertForMaskedLM", {"activation": "relu"}),
    ("DistilBertForMaskedLM", {"tie_word_embeddings": False}),
    ("BertForTokenClassification", {"num_labels": 5}),
    ("DistilBertForTokenClassification", {"num_labels": 1}),
    ("GPT2ForTokenClassification", {"num_labels": 5, "n_inner": 33}),
    ("ElectraForMaskedLM", {"embedding_size": 24, "hidden_act": "relu", "layer_norm_eps": 0.01}),
    ("ElectraForMaskedLM", {"tie_word_embeddings": False}),
    ("ElectraForPreTraining", {"hidden_act": "silu"}),
    ("AlbertForMaskedLM", {"tie_word_embeddings": False, "hidden_act": "relu"}),
    ("AlbertForPreTraining", {"num_labels": 3, "embedding_size": 24}),
    ("MPNetForMaskedLM", {"tie_word_embeddings": False, "hidden_act": "relu"}),
    ("CamembertForMaskedLM", {"tie_word_embeddings": False}),
    ("ModernBertForMaskedLM", {"tie_word_embeddings": False, "classifier_activation": "silu"}),
    ("ModernBertForMaskedLM", {"decoder_bias": False, "classifier_bias": True, "norm_bias": True}),
    ("ModernBertForTokenClassification", {"num_labels": 5, "classifier_bias": True}),
    ("NomicBertForMaskedLM", {"tie_word_embeddings": False, "hidden_act": "gelu"}),
    ("GteForMaskedLM", {"tie_word_embeddings": False, "hidden_act": "silu"}),
    ("GteForTokenClassification", {"num_labels": 5, "type_vocab_size": 0}),
]
# Outputs with one row per token, and outputs with one row per sequence.
OUTPUTS = {"BertForPreTraining": (("prediction_logits",), ("seq_relationship_logits",)),
           "AlbertForPreTraining": (("prediction_logits",), ("sop_logits",)),
           "ForQuestionAnswering": (("start_logits", "end_logits"), ()),
           "ForNextSentencePrediction": ((), ("logits",))}  # fmt: skip


def family_of(name: str) -> dict[str, Any]:
    return {**FAMILIES, **OTHERS}[name.partition("For")[0]]


def auto(name: str) -> Any:
    return getattr(fastattn, f"AutoModelFor{name.partition('For')[2]}")


def outputs_of(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return OUTPUTS.get(name, OUTPUTS.get(f"For{name.partition('For')[2]}", (("logits",), ())))


def rounded(name: str, output: Any) -> Any:
    """Return an output of a family whose float64 model has numbers of float32 in float32."""
    return output.astype(np.float32) if name.startswith(ROUNDED) else output


def write(name: str, folder: Path, **options: Any) -> Path:
    return hf.save(hf.make(name, **{**family_of(name), **options}), folder)


@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda value: str(value) if value else "-")
def test_outputs_equal_transformers(
    name: str, options: dict[str, Any], tmp_path: Path, device: str, rng: np.random.Generator
) -> None:
    theirs = hf.make(name, **{**family_of(name), **options})
    model = auto(name).from_pretrained(hf.save(theirs, tmp_path), device=device)
    ids = rng.integers(2, 61, (2, 9))
    mask = np.ones_like(ids)
    mask[1, 6:] = 0
    inputs: dict[str, Any] = {"attention_mask": mask}
    if model.config.type_vocab_size:
        inputs["token_type_ids"] = rng.integers(0, model.config.type_vocab_size, ids.shape) * mask
    expected = hf.call(theirs, ids, **inputs)
    found = model(ids, output_hidden_states=True, output_attentions=True, **inputs)
    assert list(found) == [key for key in expected if key not in ("loss", "cache", "past_key_values")]
    scale = max(float(np.abs(hf.array(state)).max()) for state in expected.hidden_states)
    per_token, per_sequence = outputs_of(name)
    for key in per_token:
        ours, reference = rounded(name, found[key]), hf.array(expected[key])
        assert ours.shape == reference.shape
        assert not ours[1, 6:].any()
        for row, n_tokens in ((0, 9), (1, 6)):
            assert_close(ours[row, :n_tokens], reference[row, :n_tokens], model.traced, longest=9, scale=scale)
    for key in per_sequence:
        assert_close(rounded(name, found[key]), hf.array(expected[key]), model.traced, longest=9, scale=scale)
    for ours, reference in zip(found.hidden_states, expected.hidden_states, strict=True):
        assert_close(rounded(name, ours)[0], hf.array(reference)[0], model.traced, longest=9, scale=scale)


@pytest.mark.parametrize("name", PLAIN)
def test_rows_do_not_depend_on_the_batch(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """A list of sequences gives lists, an array gives an array, and each row has the same bits as alone."""
    folder = write(name, tmp_path)
    batch = [rng.integers(2, 61, n).tolist() for n in (1, 7, 20, 3)]
    for dtype in ("float32", "int8"):
        with auto(name).from_pretrained(folder, threads=2, dtype=dtype) as model:
            together, alone = model(batch), [model(np.array(ids)) for ids in batch]
            per_token, per_sequence = outputs_of(name)
            for key in (*per_token, *per_sequence):
                assert isinstance(together[key], list) == (key in per_token)
                for row, one in zip(together[key], alone, strict=True):
                    np.testing.assert_array_equal(row.view(np.uint32), one[key].view(np.uint32))


MASKED = [name for name in PLAIN if name.endswith("MaskedLM") and not name.startswith(("XLM", "Camembert"))]


@pytest.mark.parametrize("name", MASKED)
def test_logits_at_a_token(name: str, tmp_path: Path, device: str) -> None:
    model = auto(name).from_pretrained(write(name, tmp_path), device=device)
    batch = [[5, 4, 9, 4], [7, 8], [4]]
    found, whole = model.logits_at(batch, 4), model(batch).logits
    assert [rows.shape for rows in found] == [(2, 61), (0, 61), (1, 61)]
    if device != "numpy":
        np.testing.assert_array_equal(found[0], whole[0][[1, 3]])
        np.testing.assert_array_equal(found[2], whole[2])
    else:
        assert_close(found[0], whole[0][[1, 3]], model.traced, longest=4)
    assert [rows.shape for rows in model.logits_at(batch, 60)] == [(0, 61)] * 3
    masked = model.logits_at(np.array([[4, 4, 5]]), 4, attention_mask=np.array([[1, 0, 1]]))
    assert [rows.shape for rows in masked] == [(1, 61)]
    assert model.logits_at([], 4) == []
    with pytest.raises(InputError, match="token_id: expected 0 to 60, got 61"):
        model.logits_at(batch, 61)


@pytest.mark.parametrize("name", MASKED)
def test_tied_weights_are_stored_once(name: str, tmp_path: Path) -> None:
    """Embeddings are in memory once, count once, and have one format for every task."""
    folder = write(name, tmp_path, vocab_size=131)  # matrices of fewer than 64 rows are not quantized
    reference = hf.make(name, **{**family_of(name), "vocab_size": 131})
    with auto(name).from_pretrained(folder) as model:
        assert model.num_parameters() == reference.num_parameters()
    for dtype in ("float32", "bfloat16", "int8", "int4"):
        with (
            auto(name).from_pretrained(folder, dtype=dtype) as model,
            fastattn.AutoModel.from_pretrained(folder, dtype=dtype) as encoder,
        ):
            state = model([[5, 6, 7]], output_hidden_states=True).hidden_states[-1][0]
            np.testing.assert_array_equal(state, encoder([[5, 6, 7]]).last_hidden_state[0])
        packed = fastattn.quantize(folder, tmp_path / dtype, dtype=dtype) if dtype != "float32" else folder
        for kind in (auto(name), fastattn.AutoModel):
            with kind.from_pretrained(folder, dtype=dtype) as model, kind.from_pretrained(packed) as again:
                np.testing.assert_array_equal(model([[5, 6, 7]])[0][0], again([[5, 6, 7]])[0][0])


def test_a_stored_copy_of_the_decoder_is_the_embeddings(tmp_path: Path) -> None:
    """Files of old versions of transformers store both."""
    from safetensors.numpy import load_file, save_file

    folder = write("BertForMaskedLM", tmp_path / "a")
    with auto("BertForMaskedLM").from_pretrained(folder) as model:
        expected = model([[5, 6, 7]]).logits[0]
    tensors = load_file(folder / "model.safetensors")
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].copy()
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].copy()
    save_file(tensors, folder / "model.safetensors")
    with auto("BertForMaskedLM").from_pretrained(folder) as model:
        assert "cls.predictions.decoder.weight" not in model.traced.weights
        np.testing.assert_array_equal(model([[5, 6, 7]]).logits[0], expected)
    del tensors["bert.embeddings.word_embeddings.weight"]
    save_file(tensors, folder / "model.safetensors")
    with auto("BertForMaskedLM").from_pretrained(folder) as model:
        np.testing.assert_array_equal(model([[5, 6, 7]]).logits[0], expected)


@pytest.mark.parametrize(
    ("stored", "asked", "message"),
    [
        ("BertModel", "MaskedLM", r"no masked-language-model head \(cls\.predictions\.\*"),
        ("RobertaModel", "MaskedLM", "no masked-language-model head"),
        ("DistilBertModel", "MaskedLM", r"vocab_transform\.weight is missing"),
        ("BertForMaskedLM", "TokenClassification", r"no classification head .*ForMaskedLM"),
        ("RobertaForSequenceClassification", "TokenClassification", r"classifier\.weight: expected this tensor"),
        ("BertForMaskedLM", "QuestionAnswering", r"no question-answering head \(qa_outputs\.weight is missing\)"),
        ("DistilBertForMaskedLM", "QuestionAnswering", "no question-answering head"),
        ("BertForMaskedLM", "NextSentencePrediction", "no next-sentence head"),
        ("BertForMaskedLM", "PreTraining", r"expected this tensor in the checkpoint .*ForMaskedLM"),
        ("RobertaModel", "NextSentencePrediction", "no such head"),
        ("GPT2LMHeadModel", "MaskedLM", "no such head"),
        ("GPT2LMHeadModel", "TokenClassification", r"no classification head \(classifier\.weight"),
        ("GPT2DoubleHeadsModel", "MultipleChoice", "multiple_choice_head of GPT2DoubleHeadsModel is not supported"),
        ("ElectraForPreTraining", "MaskedLM", r"no masked-language-model head \(generator_predictions\.dense\.\*"),
        ("ElectraForMaskedLM", "PreTraining", r"no pre-training head \(discriminator_predictions\.dense\.\*"),
        ("AlbertForMaskedLM", "PreTraining", r"(?s)expected this tensor .*AlbertForMaskedLM"),
        ("AlbertModel", "MaskedLM", r"no masked-language-model head \(predictions\.dense\.\*"),
        ("ModernBertForSequenceClassification", "MaskedLM", "no masked-language-model head .*decoder.* is missing"),
        ("ModernBertForMaskedLM", "QuestionAnswering", r"no question-answering head \(classifier\.weight"),
        ("NomicBertModel", "QuestionAnswering", "no such head"),
        ("GteForMaskedLM", "MultipleChoice", "no such head"),
    ],
)
def test_a_missing_head_is_an_error(stored: str, asked: str, message: str, tmp_path: Path) -> None:
    families = {**FAMILIES, **OTHERS}
    base = next(families[key] for key in sorted(families, key=len, reverse=True) if stored.startswith(key))
    folder = hf.save(hf.make(stored, **base), tmp_path)
    with pytest.raises(ConfigError, match=message):
        getattr(fastattn, f"AutoModelFor{asked}").from_pretrained(folder)


@pytest.mark.parametrize(
    "tensor", ["transform.dense.bias", "transform.LayerNorm.weight", "bias", "transform.dense.weight"]
)
def test_half_a_head_is_an_error(tensor: str, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = write("BertForMaskedLM", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors[f"cls.predictions.{tensor}"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ConfigError, match="expected this tensor in the checkpoint"):
        auto("BertForMaskedLM").from_pretrained(folder)


def test_an_untied_decoder_must_be_there(tmp_path: Path) -> None:
    folder = write("BertForMaskedLM", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with pytest.raises(ConfigError, match=r"cls\.predictions\.decoder\.weight: expected this tensor"):
        auto("BertForMaskedLM").from_pretrained(folder)


@pytest.mark.parametrize("name", [f"{family}ForMultipleChoice" for family in FAMILIES])
def test_multiple_choice(name: str, tmp_path: Path, device: str, rng: np.random.Generator) -> None:
    theirs = hf.make(name, **family_of(name))
    model = auto(name).from_pretrained(hf.save(theirs, tmp_path), device=device)
    ids = rng.integers(2, 61, (2, 3, 7))
    mask = np.ones_like(ids)
    mask[1, 2, 5:] = 0
    expected = hf.call(theirs, ids, attention_mask=mask)
    found = model(ids, attention_mask=mask, output_hidden_states=True)
    scale = max(float(np.abs(hf.array(state)).max()) for state in expected.hidden_states)
    assert_close(found.logits, hf.array(expected.logits), model.traced, longest=7, scale=scale)
    assert found.hidden_states[-1].shape == tuple(expected.hidden_states[-1].shape)
    lists = [[row.tolist() for row in item] for item in ids]
    lists[1][2] = lists[1][2][:5]
    ragged = model(lists).logits
    assert_close(ragged, hf.array(expected.logits), model.traced, longest=7, scale=scale)
    assert model(lists, return_dict=False)[0].shape == (2, 3)
    for wrong in ([5, 6, 7], [[5, 6, 7]], [[[5], [6]], [[7]]], [], [[]], ids[0], None, 3):
        with pytest.raises(InputError, match=r"input_ids: expected \[batch, num_choices, seq_len\]"):
            model(wrong)
    with pytest.raises(InputError, match="attention_mask: expected 3 choices per item, as in input_ids, got 2"):
        model(ids, attention_mask=mask.reshape(3, 2, 7))


@pytest.mark.parametrize(
    "options",
    [
        {"summary_type": "last"},
        {"summary_type": "cls_index", "summary_activation": "relu"},
        {"summary_type": "mean", "summary_activation": "tanh"},
        {"summary_use_proj": False},
    ],
    ids=str,
)
def test_the_summary_of_electra(options: dict[str, Any], tmp_path: Path, rng: np.random.Generator) -> None:
    """Without padding; transformers' "last" and "mean" also read padding."""
    theirs = hf.make("ElectraForMultipleChoice", **ELECTRA, **options)
    with fastattn.AutoModelForMultipleChoice.from_pretrained(hf.save(theirs, tmp_path), device="numpy") as model:
        ids = rng.integers(2, 61, (2, 3, 7))
        expected = hf.call(theirs, ids)
        scale = max(float(np.abs(hf.array(state)).max()) for state in expected.hidden_states)
        assert_close(model(ids).logits, hf.array(expected.logits), model.traced, longest=7, scale=scale)


def test_a_classifier_without_a_decoder_is_not_a_masked_language_model(tmp_path: Path) -> None:
    """Its tensors have all names of a ModernBERT with tied embeddings and no decoder_bias."""
    folder = write("ModernBertForSequenceClassification", tmp_path, decoder_bias=False)
    with pytest.raises(ConfigError, match=r"no masked-language-model head \(it has a classifier"):
        fastattn.AutoModelForMaskedLM.from_pretrained(folder)


def test_a_gpt2_with_two_heads_is_a_language_model(tmp_path: Path, rng: np.random.Generator) -> None:
    """Its other head, for multiple choice, is refused by name."""
    theirs = hf.make("GPT2DoubleHeadsModel", **GPT2)
    ids = rng.integers(2, 61, (1, 9))
    expected = hf.call(theirs, ids)
    with fastattn.AutoModelForCausalLM.from_pretrained(hf.save(theirs, tmp_path), device="numpy") as model:
        scale = max(float(np.abs(hf.array(state)).max()) for state in expected.hidden_states)
        assert_close(model(ids).logits, hf.array(expected.logits), model.traced, longest=9, scale=scale)


def test_errors_of_multiple_choice_name_the_item_and_the_choice(tmp_path: Path) -> None:
    with fastattn.AutoModelForMultipleChoice.from_pretrained(write("BertForMultipleChoice", tmp_path)) as model:
        good = [5, 6]
        for wrong, message in (
            ([[good] * 3, [good, good, [5] * 25]], r"^input_ids\[1\]\[2\]: expected at most 24 tokens"),
            (
                [[good] * 3, [good, [5, 61], good]],
                r"^input_ids\[1\]\[1\]\[1\]: expected a token id from 0 to 60, got 61",
            ),
            ([[good, good, []], [good] * 3], r"^input_ids\[0\]\[2\]: expected at least one token"),
            ([[good] * 3, [good, good, [5, "a"]]], r"^input_ids\[1\]\[2\]\[1\]: expected an integer"),
            (np.array([[[5], [6], [7]], [[5], [61], [7]]]), r"^input_ids\[1, 1, 0\]: expected a token id"),
        ):
            with pytest.raises((InputError, DTypeError), match=message):
                model(wrong)
        with pytest.raises(InputError, match=r"^token_type_ids\[1\]\[0\]\[1\]: expected a token type from 0 to 1"):
            model([[good] * 2] * 2, token_type_ids=[[[0, 0], [0, 0]], [[0, 9], [0, 0]]])
        with pytest.raises(ContextLengthError) as long:
            model([[good, [5] * 30]])
        assert (long.value.index, long.value.n_tokens, long.value.context) == (1, 30, 24)


def test_no_advice_about_labels_for_a_head_without_labels(tmp_path: Path) -> None:
    folder = write("BertForSequenceClassification", tmp_path)
    with pytest.raises(ConfigError, match=r"classifier\.weight: expected shape \[1, .* got \[2, ") as error:
        fastattn.AutoModelForMultipleChoice.from_pretrained(folder)
    assert "num_labels" not in str(error.value)


def test_a_head_for_another_task_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The classifiers of texts and of tokens have the same names in BERT."""
    folder = write("BertForSequenceClassification", tmp_path / "a")
    with caplog.at_level(logging.WARNING, "fastattn"):
        fastattn.AutoModelForTokenClassification.from_pretrained(folder).close()
        right = write("BertForTokenClassification", tmp_path / "b")
        fastattn.AutoModelForTokenClassification.from_pretrained(right).close()
        # Pre-training includes a masked language model.
        fastattn.AutoModelForMaskedLM.from_pretrained(write("BertForPreTraining", tmp_path / "c")).close()
    (record,) = caplog.records
    assert "trained for AutoModelForSequenceClassification" in record.getMessage()
