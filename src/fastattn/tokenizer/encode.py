"""Turns the checked arguments of a call into the encoding that it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastattn.checks import quote
from fastattn.errors import DTypeError, InputError
from fastattn.tokenizer.base import State
from fastattn.tokenizer.batch_encoding import BatchEncoding
from fastattn.tokenizer.call import Call
from fastattn.tokenizer.inputs import Inputs, read_inputs
from fastattn.tokenizer.padding import to_array, to_rows

if TYPE_CHECKING:
    from tokenizers import Encoding as RawEncoding

_MAIN = "input_ids"


def encode_call(state: State, call: Call, name: str, text: Any, text_pair: Any) -> BatchEncoding:
    """Encode a text or pair, or a sequence of them."""
    if call.offsets and state.options.steps is not None:
        raise InputError(f"return_offsets_mapping: {state.options.class_name} does not provide the positions of tokens")
    inputs = read_inputs(name, text, text_pair, words=call.words)
    rows, samples = _encode_all(state, call, name, inputs)
    columns, pads = _columns(rows, call, state), None
    if call.padding is not None:
        mains = [len(row.ids) for i, row in enumerate(rows) if i == 0 or samples[i] != samples[i - 1]]
        pads = call.padding.pad(columns, call.padding.width(mains))
    if call.length:
        columns["length"] = [len(ids) for ids in columns[_MAIN]]
    if call.overflow:
        columns["overflow_to_sample_mapping"] = samples
    if call.tensors:
        columns = {column: to_array(column, values) for column, values in columns.items()}
    elif not inputs.batched and not call.overflow:
        columns = {column: _only(values) for column, values in columns.items()}
    return BatchEncoding(columns, rows, pads, state.tokens.get("pad"), aligned=state.options.steps is None)


def _encode_all(state: State, call: Call, name: str, inputs: Inputs) -> tuple[list[RawEncoding], list[int]]:
    """Return the encodings, each followed by its overflowing parts if requested, and the text index of each."""
    rows: list[RawEncoding] = []
    samples: list[int] = []
    for i, (first, second) in enumerate(inputs.pairs):
        encoding = state.encoder.encode(
            first,
            second,
            name=f"{name}[{i}]" if inputs.batched else name,
            add_special_tokens=call.add_special_tokens,
            split_special_tokens=call.split_special_tokens,
            words=call.words,
            truncation=call.truncation,
            overflow=call.overflow,
        )
        parts = [encoding, *encoding.overflowing] if call.overflow else [encoding]
        rows += parts
        samples += [i] * len(parts)
    return rows, samples


def _columns(rows: Sequence[RawEncoding], call: Call, state: State) -> dict[str, Any]:
    columns: dict[str, Any] = {_MAIN: [row.ids for row in rows]}
    if call.token_type_ids:
        columns["token_type_ids"] = [row.type_ids for row in rows]
    if call.attention_mask:
        columns["attention_mask"] = [row.attention_mask for row in rows]
    if call.special_tokens_mask:
        columns["special_tokens_mask"] = [_special_mask(row, call, state) for row in rows]
    if call.offsets:
        columns["offset_mapping"] = [row.offsets for row in rows]
    return columns


def _special_mask(row: RawEncoding, call: Call, state: State) -> list[int]:
    """Return 1 for each added special token; transformers' Python tokenizers also mark those in the text."""
    if state.options.steps is None or not call.add_special_tokens:
        return row.special_tokens_mask
    special = state.encoder.special_ids - {state.ids.get("unk")}
    return [*(int(i in special) for i in row.ids[:-1]), 1]


def _only(values: list[Any]) -> Any:
    """Return the row of a single text; a column of numbers stays a list, as in transformers."""
    return values[0] if values and isinstance(values[0], list) else values


def pad_encoded(encoded: Any, call: Call) -> BatchEncoding:
    """Pad columns for `Tokenizer.pad`. As in transformers, columns that are not part of an encoding are unchanged."""
    columns, arrays = _read_columns(encoded)
    ids = columns[_MAIN]
    if not ids:
        if call.attention_mask:
            columns["attention_mask"] = []
        return BatchEncoding(columns)
    single = not isinstance(ids[0], (list, tuple))
    if single:
        columns = {name: [column] for name, column in columns.items()}
    rows = columns[_MAIN]
    for name, column in columns.items():
        if len(column) != len(rows):
            raise InputError(f"{name}: expected {len(rows)} rows, as many as in {_MAIN}, got {len(column)}")
    if call.attention_mask and "attention_mask" not in columns:
        columns["attention_mask"] = [[1] * len(row) for row in rows]
    if call.padding is not None:
        known = [_MAIN, "attention_mask", "token_type_ids", "special_tokens_mask"]
        padded = {name: [list(row) for row in columns[name]] for name in known if name in columns}
        call.padding.pad(padded, call.padding.width([len(row) for row in rows]))
        columns |= padded
    if single:
        columns = {name: column[0] for name, column in columns.items()}
    if call.tensors or arrays:
        columns = {name: to_array(name, column) for name, column in columns.items()}
    return BatchEncoding(columns)


def _read_columns(encoded: Any) -> tuple[dict[str, Any], bool]:
    """Return the columns of an encoding, or of a list of encodings, as lists, and whether they were arrays."""
    if isinstance(encoded, (list, tuple)) and encoded and all(isinstance(item, Mapping) for item in encoded):
        names = list(encoded[0])
        for i, item in enumerate(encoded):
            if list(item) != names and set(item) != set(names):
                raise InputError(f"encoded_inputs[{i}]: expected the columns {quote(names)}, got {quote(list(item))}")
        encoded = {name: [item[name] for item in encoded] for name in names}
    if not isinstance(encoded, Mapping):
        raise DTypeError(f"encoded_inputs: expected an encoding or a list of them, got {type(encoded).__name__}")
    if _MAIN not in encoded:
        raise InputError(f"encoded_inputs: expected the column {_MAIN!r}, got {quote(list(encoded))}")
    found = {str(name): to_rows(str(name), column) for name, column in encoded.items()}
    return {name: rows for name, (rows, _) in found.items()}, found[_MAIN][1]
