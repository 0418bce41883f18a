"""Faults 41 to 48 and 50 of token ids: every error names the place, and nothing runs before it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastattn.api.auto import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from fastattn.api.causal_lm import CausalLM
from fastattn.api.encoders import Encoder, SequenceClassifier
from fastattn.errors import ContextLengthError, DTypeError, InputError
from fastattn.models.inputs import read_batch
from tests.reference.checkpoints import write_bert, write_distilbert, write_gpt2


@pytest.fixture
def lm(tmp_path: Path, device: str) -> Iterator[CausalLM]:
    with AutoModelForCausalLM.from_pretrained(write_gpt2(tmp_path), device=device) as model:
        yield model


@pytest.fixture
def encoder(tmp_path: Path, device: str) -> Iterator[Encoder]:
    with AutoModel.from_pretrained(write_bert(tmp_path), device=device) as model:
        yield model


@pytest.fixture
def classifier(tmp_path: Path, device: str) -> Iterator[SequenceClassifier]:
    with AutoModelForSequenceClassification.from_pretrained(write_bert(tmp_path), device=device) as model:
        yield model


def read(ids: Any, **options: Any) -> Any:
    return read_batch(ids, **{"vocab_size": 31, "max_positions": 16, "type_vocab_size": 2, **options})


@pytest.mark.parametrize("bad", [-1, 31, 2**31, 2**32 + 1, 2**63, -(2**63) - 1, 10**30])
def test_fault_41_ids_out_of_range(bad: int) -> None:
    with pytest.raises(InputError, match=rf"^input_ids\[2\]: expected .*, got {bad}$"):
        read([1, 2, bad])
    with pytest.raises(InputError, match=rf"^input_ids\[1\]\[1\]: expected .*, got {bad}$"):
        read([[1, 2], [3, bad], [4]])
    if -(2**63) <= bad < 2**63:
        with pytest.raises(InputError, match=rf"^input_ids\[1, 0\]: expected a token id from 0 to 30, got {bad}$"):
            read(np.array([[1, 2], [bad, 3]], np.int64))


def test_fault_41_uint64_is_not_cut_to_32_bits() -> None:
    with pytest.raises(InputError, match=rf"input_ids\[0\]: .*got {2**64 - 1}"):
        read(np.array([2**64 - 1], np.uint64))
    with pytest.raises(InputError, match=rf"input_ids\[1\]: .*got {2**32 + 5}"):
        read(np.array([5, 2**32 + 5], np.uint64))


def test_fault_41_an_integer_of_thousands_of_digits() -> None:
    with pytest.raises(InputError, match=r"input_ids\[1\]: .*got one of 3322\d bits"):
        read([1, 10**10000])


@pytest.mark.parametrize("bad", [np.array(-1), np.array(2**64 - 1, np.uint64)])
def test_fault_41_an_array_without_axes_as_an_item(bad: Any) -> None:
    with pytest.raises(InputError, match=rf"^input_ids\[1\]: expected .*, got {bad}$"):
        read([1, bad])
    assert read([np.array(3), np.array(4, np.uint64)]).ids[0].tolist() == [3, 4]


def test_fault_41_the_model_says_so_too(lm: CausalLM) -> None:
    with pytest.raises(InputError, match=r"input_ids\[1\]"):
        lm([1, 31])
    assert np.isfinite(np.asarray(lm([1, 30]).logits)).all()


def test_fault_41_ids_under_the_mask_are_not_looked_at(lm: CausalLM) -> None:
    """Other tokenizers pad with -100 or with an id that the model does not have."""
    ids = np.array([[1, 2, -100], [3, 4, 5]])
    assert np.asarray(lm(ids, attention_mask=[[1, 1, 0], [1, 1, 1]]).logits).shape == (2, 3, 31)
    with pytest.raises(InputError, match=r"input_ids\[0, 2\]: .*got -100"):
        lm(ids, attention_mask=np.array([[0, 1, 1], [1, 1, 1]]))


def test_fault_42_empty_sequences(lm: CausalLM, encoder: Encoder, classifier: SequenceClassifier) -> None:
    assert np.asarray(lm(np.zeros(0, np.int32)).logits).shape == (0, 31)
    found = lm([[1, 2], [], [3]]).logits
    assert [part.shape for part in found] == [(2, 31), (0, 31), (1, 31)]
    for model in (encoder, classifier):  # a pooler and a classifier need a token
        with pytest.raises(InputError, match=r"^input_ids\[0\]: expected at least one token, got 0; "):
            model([[], [1]])
        with pytest.raises(InputError, match=r"^input_ids: expected at least one token, got 0; "):
            model(np.zeros(0, np.int64))


def test_fault_43_empty_batch(lm: CausalLM, encoder: Encoder, classifier: SequenceClassifier) -> None:
    assert lm([]).logits == []
    assert np.asarray(lm(np.zeros((0, 5), np.int64)).logits).shape == (0, 5, 31)
    assert np.asarray(lm(np.zeros((3, 0), np.int64)).logits).shape == (3, 0, 31)
    assert classifier([]).logits.shape == (0, 3)
    assert classifier([]).logits.dtype == np.float32
    found = encoder([], output_hidden_states=True, output_attentions=True)
    assert found.last_hidden_state == []
    assert found.pooler_output is not None
    assert found.pooler_output.shape == (0, 12)
    assert found.hidden_states == ([], [], [])
    assert found.attentions == ([], [])
    dense = lm(np.zeros((2, 0), np.int64), output_attentions=True)
    assert dense.attentions is not None
    assert np.asarray(dense.attentions[0]).shape == (2, 3, 0, 0)


@pytest.mark.parametrize(
    "bad",
    [
        "hello", b"hello", None, 7, 7.0, {1: 2}, {1, 2}, object(), [1, "a"], ["a", "b"], [None], [1, None], [b"x"],
        ["\ud800"], "\ud800", "a\0b", [[1], "ab"], [[1], 2], [1, [2]], [[1], None], [[1, [2]]], [1.0], [1, 2.5], [True],
        [1, True], [np.float32(1)], [np.bool_(True)], [[1], [2.0]], np.array([1.0]), np.array([True]), np.array(["a"]),
        np.array([1, None]), np.array([1j]), np.zeros(2, [("a", "i4")]), [np.array([1.5])],
        np.array([1], "datetime64[s]"),
    ],
    ids=lambda bad: ascii(bad).split(" object at")[0][:30],
)  # fmt: skip
def test_fault_44_no_token_ids(bad: Any) -> None:
    with pytest.raises(DTypeError, match=r"^input_ids"):
        read(bad)


@pytest.mark.parametrize("texts", ["hello", ["hello"], [["a", "b"]]])
def test_fault_44_texts_need_a_tokenizer(texts: Any) -> None:
    with pytest.raises(DTypeError, match=r"^input_ids.* got str; encode texts first"):
        read(texts)


@pytest.mark.parametrize("bad", [1.9, 2.0, True, 1j, "a", None, np.datetime64(1, "s")])
def test_fault_50_an_array_without_axes_is_never_cut_to_an_integer(lm: CausalLM, bad: Any) -> None:
    item = np.array(bad)
    message = re.escape(f"input_ids[1]: expected an integer, got ndarray of {item.dtype}")
    for call in (lm, lm.generate):
        with pytest.raises(DTypeError, match=rf"^{message}$"):
            call([1, item])
    with pytest.raises(DTypeError, match=r"^input_ids\[0\]\[0\]: expected an integer"):
        read([[item], [2]])


@pytest.mark.torch
def test_fault_50_a_tensor_without_axes_is_never_cut_to_an_integer() -> None:
    torch = pytest.importorskip("torch")
    assert read([torch.tensor(3), 4]).ids[0].tolist() == [3, 4]
    for bad in (torch.tensor(1.7), torch.tensor(2.0), torch.tensor(True), torch.tensor(1, dtype=torch.bfloat16)):
        with pytest.raises(DTypeError, match=rf"^input_ids\[0\]: expected an integer, got Tensor of {bad.dtype}"):
            read([bad])
    with pytest.raises(InputError, match=r"^input_ids\[0\]: .*, got -1$"):
        read([torch.tensor(-1)])
    ones = torch.ones(2, dtype=torch.bfloat16)
    for mask in (ones, torch.ones(2, requires_grad=True), torch.ones(2, device="meta")):
        with pytest.raises(DTypeError, match=r"^attention_mask: .* a tensor that numpy cannot read .*\.long\(\)$"):
            read([3, 4], attention_mask=mask)
    assert read([3, 4], attention_mask=ones.half()).n_tokens == 2
    mask = [torch.tensor(True), torch.tensor(False)]
    assert read([3, 4], attention_mask=mask).ids[0].tolist() == [3]


@pytest.mark.parametrize("bad", [np.zeros((1, 2, 3), int), np.array(5), [np.zeros((1, 2), int)]])
def test_fault_44_too_many_or_too_few_axes(bad: Any) -> None:
    with pytest.raises(InputError, match=r"expected \[seq_len\]"):
        read(bad)


def test_fault_44_large_and_odd_lists_are_fine() -> None:
    assert read([(1, 2), np.array([3], np.uint8), [np.int64(4)]]).ids[2].tolist() == [4]
    assert read((1, 2)).layout == "single"
    assert read([[1, 2], [3, 4]]).layout == "ragged"
    assert read(np.array([[1, 2], [3, 4]])).layout == "dense"
    assert read([np.int32(1), 2]).ids[0].dtype == np.int32


def test_fault_45_context(lm: CausalLM, encoder: Encoder) -> None:
    assert np.asarray(lm([1] * 16).logits).shape == (16, 31)
    for model in (lm, encoder):
        with pytest.raises(ContextLengthError, match=r"^input_ids\[1\]: expected at most 16 tokens, .* got 17"):
            model([[1], [1] * 17])
        with pytest.raises(ContextLengthError, match=r"^input_ids: .* got 1000000"):
            model(np.ones(10**6, np.int64))


def test_fault_45_padding_does_not_count(lm: CausalLM) -> None:
    mask = np.zeros((1, 40), np.int64)
    mask[0, 30:35] = 1
    assert np.asarray(lm(np.ones((1, 40), np.int64), attention_mask=mask).logits).shape == (1, 40, 31)


def test_fault_46_all_masked(lm: CausalLM, encoder: Encoder, classifier: SequenceClassifier) -> None:
    ids, mask = np.array([[1, 2], [3, 4]]), np.array([[0, 0], [1, 1]])
    logits = np.asarray(lm(ids, attention_mask=mask).logits)
    assert not logits[0].any()
    assert np.isfinite(logits).all()
    for model in (encoder, classifier):
        with pytest.raises(InputError, match=r"^input_ids\[0\]: .* one token, got 2, all of them masked; "):
            model(ids, attention_mask=mask)


@pytest.mark.parametrize(
    "mask",
    [
        np.ones((2, 3), int),
        np.ones(2, int),
        np.ones((3, 2), int),
        [[1, 1]],
        [1, 1],
        [[1], [1, 1]],
        np.ones((2, 0), int),
    ],
    ids=lambda mask: str(np.shape(mask) if isinstance(mask, np.ndarray) else mask),
)
def test_fault_46_mask_of_another_shape(mask: Any) -> None:
    with pytest.raises(InputError, match=r"^attention_mask: expected the shape of input_ids, \[2, 2\], got"):
        read(np.array([[1, 2], [3, 4]]), attention_mask=mask)


def test_fault_46_mask_values_and_dtypes() -> None:
    ids = np.array([[1, 2]])
    with pytest.raises(InputError, match=r"^attention_mask\[0, 1\]: expected 0 or 1, got 2$"):
        read(ids, attention_mask=np.array([[1, 2]]))
    with pytest.raises(InputError, match=r"^attention_mask\[0, 0\]: expected 0 or 1, got -1$"):
        read(ids, attention_mask=np.array([[-1, 1]]))
    floats = (np.array([[1.0, 0.5]]), [[1.0, 0.5]], np.array([[1.0, np.nan]]), [[0.0, -np.inf]], np.array([[0, -1e9]]))
    for bad in floats:
        with pytest.raises(InputError, match=r"^attention_mask\[0(, |\]\[)1\]: expected 0 or 1, got"):
            read(ids, attention_mask=bad)
    for bad in (np.array([["a", "b"]]), "11", [["a", "b"]], np.array([[1j, 0]])):
        with pytest.raises(DTypeError, match=r"^attention_mask"):
            read(ids, attention_mask=bad)
    halves = np.array([[1, 0]], np.float16)
    for good in (np.array([[True, False]]), np.array([[1, 0]], np.uint8), [[True, False]], halves, [[1.0, 0.0]]):
        assert read(ids, attention_mask=good).ids[0].tolist() == [1]


@pytest.mark.parametrize("bad", [-1, 2**31])
def test_fault_47_logits_to_keep(lm: CausalLM, bad: int) -> None:
    with pytest.raises(InputError, match=r"^logits_to_keep: expected"):
        lm([1], logits_to_keep=bad)
    for wrong in (1.0, True, "1", None):
        with pytest.raises(DTypeError, match=r"^logits_to_keep: expected int, got"):
            lm([1], logits_to_keep=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [2, -1, 2**31])
def test_fault_48_token_types_out_of_range(encoder: Encoder, bad: int) -> None:
    with pytest.raises(InputError, match=rf"^token_type_ids\[1\]: expected a token type from 0 to 1, got {bad}$"):
        encoder([1, 2], token_type_ids=[0, bad])


def test_fault_48_token_types_of_another_shape_or_dtype(encoder: Encoder) -> None:
    with pytest.raises(InputError, match=r"^token_type_ids: expected the shape of input_ids, \[2\], got \[3\]"):
        encoder([1, 2], token_type_ids=[0, 1, 1])
    with pytest.raises(DTypeError, match=r"^token_type_ids"):
        encoder([1, 2], token_type_ids=[0.0, 1.0])
    with pytest.raises(DTypeError, match=r"^token_type_ids\[1\]"):
        encoder([1, 2], token_type_ids=[0, True])


def test_fault_48_models_without_token_types(tmp_path: Path, device: str, caplog: pytest.LogCaptureFixture) -> None:
    """As in transformers they are ignored, whatever a tokenizer returned; one warning says so."""
    directory = write_distilbert(tmp_path)
    with AutoModel.from_pretrained(directory, device=device) as model, caplog.at_level(logging.WARNING, "fastattn"):
        expected = np.asarray(model([1, 2]).last_hidden_state)
        assert np.array_equal(np.asarray(model([1, 2], token_type_ids=[0, 0])[0]), expected)
        assert not caplog.records
        for types in ([0, 1], [1, 1], np.array([0, 7])):
            assert np.array_equal(np.asarray(model([1, 2], token_type_ids=types)[0]), expected)
        assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == [
            "this model has no token types"
        ]
        with pytest.raises(InputError, match=r"^token_type_ids: expected the shape of input_ids"):
            model([1, 2], token_type_ids=[0])


def test_fault_48_512_tokens_and_no_more(tmp_path: Path) -> None:
    directory = write_bert(tmp_path, max_position_embeddings=512)
    with AutoModel.from_pretrained(directory, device="numpy") as model:
        assert np.asarray(model([1] * 512).last_hidden_state).shape == (512, 12)
        with pytest.raises(ContextLengthError, match="at most 512 tokens"):
            model([1] * 513)


def test_threads_of_any_integer_type(tmp_path: Path, device: str) -> None:
    with AutoModel.from_pretrained(write_bert(tmp_path), device=device, threads=np.int64(1)) as model:
        assert np.asarray(model([1]).last_hidden_state).shape == (1, 12)
    for bad, error in ((np.bool_(True), DTypeError), (1.0, DTypeError), (np.int64(0), InputError)):
        with pytest.raises(error, match=r"^threads: expected"):
            AutoModel.from_pretrained(tmp_path, device=device, threads=bad)  # type: ignore[arg-type]
