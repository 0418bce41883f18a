"""Padding with and without a mask, token types and positions, as in transformers; RoBERTa's positions too."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastattn.api.auto import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from fastattn.errors import DTypeError, InputError
from fastattn.models.inputs import read_batch
from tests.reference.bounds import assert_close
from tests.reference.checkpoints import BERT, GPT2, gpt2_tensors, write, write_bert, write_gpt2

FULL = [9, 8, 7, 6, 5]
SIZES = {
    "vocab_size": 40,
    "num_hidden_layers": 2,
    "hidden_size": 12,
    "num_attention_heads": 3,
    "max_position_embeddings": 20,
}
MODELS = [
    "GPT2LMHeadModel", "GPT2Model", "GPT2ForSequenceClassification", "BertModel", "BertForSequenceClassification",
    "RobertaModel", "RobertaForSequenceClassification", "XLMRobertaModel", "DistilBertModel",
    "DistilBertForSequenceClassification",
]  # fmt: skip


def cases(pad: int) -> dict[str, dict[str, Any]]:
    """Return inputs by name.

    transformers computes the same results, except for masked padding on the left, where it counts positions from the
    padding.
    """
    p = pad
    right, left = [[7, 8, 9, p, p], FULL], [[p, p, 7, 8, 9], FULL]
    mask = [[1, 1, 1, 0, 0], [1] * 5]
    types = [[0, 0, 1, 1, 1], [0, 1, 1, 0, 1]]
    return {
        "padding on the right": {"input_ids": right},
        "padding on the left": {"input_ids": left},
        "padding inside": {"input_ids": [[7, p, p, 8, 9], [p, 7, p, 8, p]]},
        "padding alone": {"input_ids": [[p] * 5, FULL]},
        "one row": {"input_ids": [[7, 8, p, p]]},
        "mask": {"input_ids": right, "attention_mask": mask},
        "a mask that leaves padding in": {"input_ids": right, "attention_mask": [[1, 1, 1, 1, 0], [1] * 5]},
        "types": {"input_ids": [FULL, FULL[::-1]], "token_type_ids": types},
        "types and mask": {"input_ids": right, "attention_mask": mask, "token_type_ids": types},
        "types that are 0": {"input_ids": [FULL], "token_type_ids": [[0] * 5]},
        "positions": {"input_ids": [FULL, FULL[::-1]], "position_ids": [[3, 4, 5, 6, 7], [9, 0, 2, 2, 1]]},
        "one row of positions": {"input_ids": [FULL, FULL[::-1]], "position_ids": [[2, 3, 4, 5, 6]]},
        "positions and types": {"input_ids": [FULL], "position_ids": [[2, 3, 4, 5, 6]], "token_type_ids": types[:1]},
    }


def auto_class(name: str) -> Any:
    if name.endswith("ForSequenceClassification"):
        return AutoModelForSequenceClassification
    return AutoModelForCausalLM if name == "GPT2LMHeadModel" else AutoModel


@pytest.mark.torch
@pytest.mark.parametrize("name", MODELS)
def test_as_transformers(name: str, tmp_path: Path, device: str, caplog: pytest.LogCaptureFixture) -> None:
    torch = pytest.importorskip("torch")
    from tests.reference import hf

    given: dict[str, Any] = {"pad_token_id": 3} if name.startswith(("GPT2", "Roberta")) else {}
    theirs = hf.make(name, **SIZES, **given, **({"num_labels": 3} if "Sequence" in name else {}))
    ours = auto_class(name).from_pretrained(hf.save(theirs, tmp_path), device=device)
    for case, inputs in cases(theirs.config.pad_token_id).items():
        with torch.no_grad():
            expected = theirs(**{key: torch.tensor(value) for key, value in inputs.items()})[0].numpy()
        found = np.asarray(ours(**{key: np.array(value) for key, value in inputs.items()})[0])
        if "attention_mask" in inputs and expected.ndim == 3:  # values at masked positions are meaningless
            real = np.array(inputs["attention_mask"]) == 1
            found, expected = found[real], expected[real]
        assert found.shape == expected.shape, case
        assert_close(found, expected, ours.traced, longest=5, scale=8.0)
    said = [record for record in caplog.records if "pad_token_id" in record.getMessage()]
    assert len(said) == 1  # once per model


def test_recorded_values(tmp_path: Path) -> None:
    """Results of transformers 5.24 in float64 for the same files: the last token that is not padding, types added."""
    tensors = {**gpt2_tensors(), "score.weight": gpt2_tensors(seed=1)["wte.weight"][:3]}
    config = {**GPT2, "architectures": ["GPT2ForSequenceClassification"], "pad_token_id": 1, "num_labels": 3}
    write(tmp_path, config, tensors)
    with AutoModelForSequenceClassification.from_pretrained(tmp_path, device="numpy") as classifier:
        found = classifier(np.array([[5, 6, 1, 1], [1, 1, 1, 1], [9, 8, 7, 6]])).logits
        assert_close(found, np.array(PADDED), classifier.traced, longest=4)
        ragged = classifier([[5, 6], [1, 1], [9, 8, 7, 6]]).logits
        assert_close(ragged, np.array(PADDED), classifier.traced, longest=4)
    with AutoModelForCausalLM.from_pretrained(tmp_path, device="numpy") as model:
        found = model([5, 6, 7], token_type_ids=[0, 0, 2]).logits[:, :3]
        assert_close(np.asarray(found), np.array(TYPED), model.traced, longest=3)


PADDED = [
    [0.19603381293141425, -0.7358385769323055, -3.8382703901598547],
    [1.9444984563766468, -0.4021952543158593, -2.9403526921151193],
    [0.7418059131230876, -1.1235797507646623, -8.58772571067784],
]
TYPED = [
    [6.4013245336371, -1.9977595263453352, -3.3033601019658856],
    [4.6429852405587555, -2.0419727054063186, -2.5178966725436265],
    [1.8624896964311737, -0.33514678301526035, 0.5812159134755487],
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_gpt2_types_are_rows_of_the_table_of_tokens(tmp_path: Path, dtype: str) -> None:
    """In every dtype and each row separately, bit for bit; a call without types is unchanged."""
    folder = write_gpt2(tmp_path, vocab_size=131, n_embd=96)
    with AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, threads=2) as model:
        before = model([1, 2, 3]).logits
        rows, types = [[1, 2, 3], [4], [5, 6]], [[0, 7, 130], [2], [1, 1]]
        batch = model(rows, token_type_ids=types, output_hidden_states=True)
        assert batch.hidden_states is not None
        for i, (row, row_types) in enumerate(zip(rows, types, strict=True)):
            assert np.array_equal(batch.logits[i], model(row, token_type_ids=row_types).logits)
        assert not np.array_equal(model([1, 2, 3], token_type_ids=[0, 0, 0]).logits, before)
        assert np.array_equal(model([1, 2, 3]).logits, before)
        for bad in (131, -1):
            with pytest.raises(InputError, match=r"^token_type_ids\[1\]: expected a token type from 0 to 130, got"):
                model([1, 2], token_type_ids=[0, bad])
        with pytest.raises(InputError, match="token_type_ids: expected None with decode=True"):
            model.profile([1, 2], token_type_ids=[0, 0], decode=True)


def test_positions_are_checked(tmp_path: Path, device: str) -> None:
    with AutoModel.from_pretrained(write_bert(tmp_path), device=device) as model:
        expected = model([[1, 2, 3]]).last_hidden_state
        assert np.array_equal(model([[1, 2, 3]], position_ids=[[0, 1, 2]])[0], expected)
        assert np.array_equal(model([1, 2, 3], position_ids=np.arange(3))[0], expected[0])
        mask = [[0, 1, 1, 1]]  # values next to padding are ignored
        found = model([[9, 1, 2, 3]], attention_mask=mask, position_ids=[[-7, 0, 1, 2]])[0]
        assert np.array_equal(found[0][1:], expected[0])
        with pytest.raises(InputError, match=r"^position_ids\[0\]\[2\]: expected a position from 0 to 15, got 16$"):
            model([[1, 2, 3]], position_ids=[[0, 1, 16]])
        with pytest.raises(InputError, match=r"^position_ids: expected the shape of input_ids, \[1, 3\], got \[1, 2\]"):
            model([[1, 2, 3]], position_ids=[[0, 1]])


def test_roberta_counts_what_is_not_padding() -> None:
    """create_position_ids_from_input_ids of transformers, minus the padding id + 1."""
    options: dict[str, Any] = {"vocab_size": 31, "max_positions": 16, "position_offset": 2}
    batch = read_batch([[1, 1, 5, 6], [0, 5, 1, 6], [7]], **options)
    assert batch.positions is not None
    assert batch.positions.tolist() == [-1, -1, 0, 1, 0, 1, -1, 2, 0]
    assert batch.step().positions is batch.positions
    assert read_batch([[0, 5], [7]], **options).positions is None
    given = read_batch([[1, 5], [7, 1]], position_ids=[[0, 17], [2, 3]], **options)
    assert given.positions is not None
    assert given.positions.tolist() == [-2, 15, 0, 1]
    with pytest.raises(InputError, match=r"^position_ids\[0\]\[1\]: expected a position from 0 to 17, got 18"):
        read_batch([[1, 5]], position_ids=[[0, 18]], **options)


@pytest.mark.parametrize(
    ("ids", "padding", "rows"),
    [
        ([[5, 6, 1, 1], [1, 5]], 1, [1, 5]),
        ([[5, 1, 6, 1]], 1, [2]),
        ([[1, 1], [1]], 1, [0, 2]),
        ([[5, 6], [7]], None, [1, 2]),
        ([[], [5, 1]], 1, [0]),
        ([], 1, []),
    ],
)
def test_the_last_token_that_is_not_padding(ids: Any, padding: int | None, rows: list[int]) -> None:
    batch = read_batch(ids, vocab_size=31, max_positions=16)
    assert batch.last_rows(padding).tolist() == rows


@pytest.mark.parametrize(
    ("ids", "warned"),
    [
        (np.array([[5, 3], [6, 7]]), True), (np.array([[3, 5], [6, 7]]), True), ([[5, 3], [6, 7]], True),
        ([5, 6, 3], True), (np.array([[5, 3, 6], [6, 3, 7]]), False), ([[5, 3], [6]], False),
        ([np.array([5, 3]), np.array([6, 7])], False), (np.zeros((2, 0), np.int64), False), ([], False),
    ],
)  # fmt: skip
def test_padding_without_a_mask_is_logged_once(
    tmp_path: Path, ids: Any, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The warning appears if rows have one length and so may be padded; tokenizers return no lists of arrays."""
    with AutoModelForCausalLM.from_pretrained(write_gpt2(tmp_path, pad_token_id=3), device="numpy") as model:
        with caplog.at_level(logging.WARNING, "fastattn"):
            for _ in range(2):
                model(ids)
                model(np.array([[5, 3]]), attention_mask=np.array([[1, 0]]))
        assert len(caplog.records) == int(warned)
        if warned:
            assert "begin or end with pad_token_id 3, and there is no attention_mask" in caplog.text


def test_bert_has_no_padding_of_its_own_without_a_pad_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = {**BERT, "pad_token_id": None}
    with AutoModel.from_pretrained(write_bert(tmp_path, **config), device="numpy") as model:
        model(np.array([[5, 0]]))
    assert not caplog.records


@pytest.mark.parametrize(
    "ids",
    [
        np.broadcast_to(np.int64(1), (2**40,)), np.broadcast_to(np.int64(1), (2**20, 2**20)),
        np.zeros((2**25, 0), np.int64), np.broadcast_to(np.int64(1), (1, 2**50)),
        [np.broadcast_to(np.int64(1), (2**40,))], [np.broadcast_to(np.int64(1), (2**25,))] * 3,
    ],
    ids=lambda ids: str(np.shape(ids) if isinstance(ids, np.ndarray) else len(ids)),
)  # fmt: skip
def test_arrays_without_memory_are_refused_by_their_length(ids: Any) -> None:
    ones: Any = np.broadcast_to(np.int64(1), (2**40,))
    with pytest.raises(InputError, match=r"^input_ids(\[0\])?: expected at most \d+ (tokens|sequences)"):
        read_batch(ids, vocab_size=31, max_positions=16)
    for name in ("attention_mask", "token_type_ids", "position_ids"):
        with pytest.raises(InputError, match=rf"^{name}: expected at most \d+ tokens in one call"):
            read_batch([1], vocab_size=31, max_positions=16, **{name: ones})


def test_masked_arrays_are_refused() -> None:
    masked: Any = np.ma.array([[5, 6, 7]], mask=[[0, 0, 1]])
    for bad in (masked, [masked[0]], np.ma.array([5, 6])):
        with pytest.raises(DTypeError, match=r"^input_ids.* got a masked array; pass input_ids=a\.filled"):
            read_batch(bad, vocab_size=31, max_positions=16)
    with pytest.raises(DTypeError, match=r"^attention_mask: .* got a masked array"):
        read_batch(np.array([[5, 6, 7]]), masked, vocab_size=31, max_positions=16)
    assert read_batch(masked.filled(0), ~np.ma.getmaskarray(masked), vocab_size=31, max_positions=16).n_tokens == 2
