"""1-D, 2-D with any padding, and ragged input give the same numbers, bit for bit, in the requested layout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastattn.api.auto import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from fastattn.api.causal_lm import CausalLM
from fastattn.api.encoders import Encoder, SequenceClassifier
from fastattn.errors import DTypeError
from tests.reference.bounds import assert_close
from tests.reference.checkpoints import write_bert, write_gpt2

SEQUENCES = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [10, 11, 12, 13]]


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


def same(device: str, actual: Any, expected: Any, model: Any) -> None:
    """Assert equal bits on the CPU (numerics contract); the rounding of numpy's matrix product depends on the shape."""
    if device == "cpu":
        assert np.array_equal(actual, expected)
    else:
        assert_close(actual, expected, model.traced, longest=8, scale=float(np.abs(expected).max(initial=0.0)))


def padded(side: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return SEQUENCES as [4, 7] ids and mask; ids under the mask are valid but must not matter."""
    ids, mask = np.full((4, 7), 30), np.zeros((4, 7), np.int64)
    for i, row in enumerate(SEQUENCES):
        places = {"right": range(len(row)), "left": range(7 - len(row), 7), "holes": [0, 2, 3, 5, 6][-len(row) :]}[side]
        ids[i, list(places)], mask[i, list(places)] = row, 1
    return ids, mask


@pytest.mark.parametrize("side", ["left", "right", "holes"])
def test_fault_46_padding_of_any_kind_is_no_padding(lm: CausalLM, device: str, side: str) -> None:
    ids, mask = padded(side)
    dense = np.asarray(lm(ids, attention_mask=mask).logits)
    assert dense.shape == (4, 7, 31)
    assert not dense[mask == 0].any()
    for i, row in enumerate(SEQUENCES):
        same(device, dense[i][mask[i] == 1], np.asarray(lm(row).logits), lm)


@pytest.mark.parametrize("side", ["left", "right", "holes"])
def test_fault_46_encoders_too(encoder: Encoder, device: str, side: str) -> None:
    ids, mask = padded(side)
    types = np.arange(28).reshape(4, 7) % 2
    dense = encoder(ids, attention_mask=mask, token_type_ids=types, output_attentions=True, output_hidden_states=True)
    assert dense.attentions is not None
    assert dense.hidden_states is not None
    assert dense.pooler_output is not None
    for i, row in enumerate(SEQUENCES):
        kept = mask[i] == 1
        alone = encoder(row, token_type_ids=types[i][kept], output_attentions=True, output_hidden_states=True)
        assert alone.attentions is not None
        assert alone.hidden_states is not None
        same(device, dense.last_hidden_state[i][kept], alone.last_hidden_state, encoder)
        same(device, dense.pooler_output[i], alone.pooler_output, encoder)
        for layer in range(2):
            whole = np.asarray(dense.attentions[layer])[i]
            same(device, whole[:, kept][:, :, kept], alone.attentions[layer], encoder)
            assert not whole[:, ~kept].any()
            assert not whole[:, :, ~kept].any()
        for ours, theirs in zip(dense.hidden_states, alone.hidden_states, strict=True):
            same(device, ours[i][kept], theirs, encoder)


def test_ragged_lists_in_lists_out(lm: CausalLM, device: str) -> None:
    found = lm(SEQUENCES, output_hidden_states=True, output_attentions=True)
    assert found.hidden_states is not None
    assert found.attentions is not None
    assert [part.shape for part in found.logits] == [(len(row), 31) for row in SEQUENCES]
    assert [part.shape for part in found.hidden_states[2]] == [(len(row), 12) for row in SEQUENCES]
    assert [part.shape for part in found.attentions[1]] == [(3, len(row), len(row)) for row in SEQUENCES]
    for part, row in zip(found.logits, SEQUENCES, strict=True):
        same(device, part, np.asarray(lm(row).logits), lm)
        assert np.asarray(lm(np.array(row)).logits).shape == (len(row), 31)
    plain = lm(SEQUENCES).logits
    for part, other in zip(found.logits, plain, strict=True):
        same(device, part, other, lm)


def test_a_ragged_mask_drops_positions(lm: CausalLM, device: str) -> None:
    found = lm([[1, 30, 2, 3], [4]], attention_mask=[[1, 0, 1, 1], [1]]).logits
    assert [part.shape for part in found] == [(4, 31), (1, 31)]
    same(device, found[0][[0, 2, 3]], np.asarray(lm([1, 2, 3]).logits), lm)


def test_logits_to_keep(lm: CausalLM, device: str) -> None:
    whole = lm(SEQUENCES).logits
    for keep in (1, 2, 9):
        kept = lm(SEQUENCES, logits_to_keep=keep).logits
        for part, rows in zip(kept, whole, strict=True):
            same(device, part, rows[-keep:], lm)
    ids, mask = padded("right")
    dense = np.asarray(lm(ids, attention_mask=mask, logits_to_keep=2).logits)
    assert dense.shape == (4, 2, 31)
    same(device, dense[:, 1], np.stack([rows[-1] for rows in whole]), lm)
    assert not dense[1, 0].any()


def test_classifier_shapes(classifier: SequenceClassifier, device: str) -> None:
    batch = classifier(SEQUENCES).logits
    assert batch.shape == (4, 3)
    assert classifier([1, 2, 3]).logits.shape == (3,)
    same(device, classifier([1, 2, 3]).logits, batch[0], classifier)
    ids, mask = padded("left")
    same(device, classifier(ids, attention_mask=mask).logits, batch, classifier)
    assert dict(classifier.id2label) == {0: "a", 1: "b", 2: "c"}


def test_token_types_matter(encoder: Encoder) -> None:
    zero = np.asarray(encoder([1, 2, 3]).last_hidden_state)
    assert np.array_equal(zero, np.asarray(encoder([1, 2, 3], token_type_ids=[0, 0, 0]).last_hidden_state))
    assert not np.array_equal(zero, np.asarray(encoder([1, 2, 3], token_type_ids=[0, 1, 1]).last_hidden_state))


def test_output_dtype(encoder: Encoder, device: str) -> None:
    state = np.asarray(encoder([1, 2]).last_hidden_state)
    assert state.dtype == (np.float32 if device == "cpu" else np.float64)
    assert np.asarray(encoder([]).pooler_output).dtype == np.float32


def test_arrays_of_other_libraries(lm: CausalLM) -> None:
    class Dlpack:
        """An array from a library without __array__."""

        def __init__(self, array: NDArray[Any]) -> None:
            self.array = array

        def __dlpack__(self, **options: Any) -> Any:
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return self.array.__dlpack_device__()

    ids = np.array([[1, 2, 3]], np.int64)
    expected = np.asarray(lm(ids).logits)
    assert np.array_equal(np.asarray(lm(Dlpack(ids)).logits), expected)
    for other in (ids.astype(np.uint8), ids.astype(">i4"), np.asfortranarray(ids), ids[:, ::-1][:, ::-1]):
        assert np.array_equal(np.asarray(lm(other).logits), expected)
    assert np.array_equal(np.asarray(lm([np.array([1, 2, 3])]).logits[0]), expected[0])


def test_models_close(lm: CausalLM) -> None:
    lm.close()
    with pytest.raises(ValueError, match=r"after close"):
        lm([1])


@pytest.mark.parametrize("option", ["output_hidden_states", "output_attentions"])
def test_flags_are_bools(encoder: Encoder, option: str) -> None:
    with pytest.raises(DTypeError, match=option):
        encoder([[1, 2]], **{option: "yes"})  # type: ignore[arg-type]


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification])
def test_models_are_loaded_by_from_pretrained_alone(auto: type[Any]) -> None:
    with pytest.raises(TypeError, match=rf"{auto.__name__}\.from_pretrained"):
        auto()
