"""The result of a tokenizer call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from fastattn.checks import check_count, closest, quote
from fastattn.errors import DTypeError, InputError
from fastattn.tokenizer.padding import to_array

if TYPE_CHECKING:
    from tokenizers import Encoding as RawEncoding

_Item = TypeVar("_Item")


class TokenSpan(NamedTuple):
    """The tokens in [start, end)."""

    start: int
    end: int


class CharSpan(NamedTuple):
    """The characters in [start, end)."""

    start: int
    end: int


class BatchEncoding(dict[str, Any]):
    """Columns by name, as a dict and as attributes (`encoding.input_ids`), and the positions of tokens in the texts.

    As in transformers, `encoding[0]` is the library's Encoding of the first row (without padding), and a slice is a
    list of Encodings; if `is_fast` is False, a slice gives the rows of each column. If the batch has one row, you can
    omit the row index in methods that have one. These methods raise DTypeError, InputError.
    """

    def __init__(
        self,
        columns: Mapping[str, Any],
        encodings: Sequence[RawEncoding] | None = None,
        pads: Sequence[tuple[int, int]] | None = None,
        pad_token: str | None = None,
        *,
        aligned: bool = True,
    ) -> None:
        """Store the columns, and the encodings that the other methods read.

        pads: (left, right), the number of padding tokens around each encoding. aligned: whether token positions are
        known.
        """
        super().__init__(columns)
        self.__dict__["_encodings"] = None if encodings is None else list(encodings)
        self.__dict__["_pads"] = list(pads) if pads is not None else [(0, 0)] * len(encodings or ())
        self.__dict__["_pad_token"] = pad_token
        self.__dict__["_aligned"] = aligned

    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, str):
            return super().__getitem__(item)
        if isinstance(item, slice):
            if self.is_fast:
                return self._encodings[item]
            return {name: column[item] for name, column in self.items()}
        return self._encoding(item)[0]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return super().__getitem__(name)
        except KeyError:
            raise AttributeError(f"BatchEncoding has no column {quote(name)}{closest(name, self)}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        state = (dict(self), self._encodings, self._pads, self._pad_token)
        return partial(BatchEncoding, aligned=self._aligned), state

    @property
    def data(self) -> dict[str, Any]:
        """The columns."""
        return dict(self)

    @property
    def encodings(self) -> list[RawEncoding] | None:
        """The library's Encoding of each row, without padding; None after `pad`, and if `is_fast` is False."""
        found: list[RawEncoding] | None = self._encodings if self._aligned else None
        return found

    @property
    def is_fast(self) -> bool:
        """Whether the methods that map tokens to the text are available."""
        return self._encodings is not None and self._aligned

    @property
    def n_sequences(self) -> int | None:
        """1 for texts, 2 for pairs, None if unknown."""
        return int(self._encodings[0].n_sequences) if self._encodings else None

    def tokens(self, batch_index: int = 0) -> list[str]:
        """Return the tokens of a row."""
        encoding, left, right = self._encoding(batch_index, aligned=False)
        pad = self._pad_token or ""
        return _padded(encoding.tokens, left, right, pad)

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """Return the index of the word of each token of a row, None for special tokens."""
        encoding, left, right = self._encoding(batch_index)
        return _padded(encoding.word_ids, left, right, None)

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """Return 0 for tokens of the first text, 1 for those of the second, None for special tokens."""
        encoding, left, right = self._encoding(batch_index, aligned=False)
        return _padded(encoding.sequence_ids, left, right, None)

    def token_to_sequence(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """Return 0 for a token of the first text, 1 for one of the second, None for a special token."""
        encoding, token, _ = self._token(batch_or_token_index, token_index)
        return None if token is None else encoding.token_to_sequence(token)

    def token_to_word(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """Return the index of the word of a token, None for a special token."""
        encoding, token, _ = self._token(batch_or_token_index, token_index)
        found = None if token is None else encoding.token_to_word(token)
        return found[1] if isinstance(found, tuple) else found

    def token_to_chars(self, batch_or_token_index: int, token_index: int | None = None) -> CharSpan | None:
        """Return the characters of a token, None for a special token."""
        encoding, token, _ = self._token(batch_or_token_index, token_index)
        found: Any = None if token is None else encoding.token_to_chars(token)
        return None if found is None else CharSpan(*found)

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """Return the tokens of a word, None if it has none."""
        encoding, left, word = self._position("word_index", batch_or_word_index, word_index)
        found = encoding.word_to_tokens(word, _sequence(sequence_index))
        return None if found is None else TokenSpan(found[0] + left, found[1] + left)

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> CharSpan | None:
        """Return the characters of a word, None if there is no such word."""
        encoding, _, word = self._position("word_index", batch_or_word_index, word_index)
        found = encoding.word_to_chars(word, _sequence(sequence_index))
        return None if found is None else CharSpan(*found)

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """Return the token that covers a character; None if there is none, as for a space."""
        encoding, left, char = self._position("char_index", batch_or_char_index, char_index)
        found = encoding.char_to_token(char, _sequence(sequence_index))
        return None if found is None else found + left

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """Return the index of the word of a character."""
        encoding, _, char = self._position("char_index", batch_or_char_index, char_index)
        return encoding.char_to_word(char, _sequence(sequence_index))

    def convert_to_tensors(self, tensor_type: str | None = None, prepend_batch_axis: bool = False) -> BatchEncoding:
        """Convert the columns to int64 arrays in place ("np"; None changes nothing). Raises InputError."""
        from fastattn.tokenizer.call import read_tensors

        if read_tensors(tensor_type):
            arrays = {
                name: to_array(name, [column] if prepend_batch_axis else column)
                for name, column in self.items()
                if isinstance(column, (list, tuple))
            }
            self.update(arrays)
        return self

    def to(self, device: Any, **_: Any) -> BatchEncoding:
        """Return itself, because the models accept lists and arrays for any device."""
        return self

    def _encoding(self, row: Any, *, aligned: bool = True) -> tuple[RawEncoding, int, int]:
        """Return the encoding of a row, and its left and right pads. aligned: whether token positions are required."""
        encodings = self._encodings
        if encodings is None:
            raise InputError(
                "BatchEncoding: expected the result of a tokenizer call, got one of pad(), which has no positions; "
                'use a column by name, such as encoding["input_ids"]'
            )
        if aligned and not self._aligned:
            raise InputError("BatchEncoding: this tokenizer does not provide the positions of tokens in the text")
        n_rows = len(encodings)
        if isinstance(row, bool):
            raise DTypeError("batch_index: expected int, got bool")
        i = check_count("batch_index", row, low=-n_rows, high=n_rows - 1)
        return encodings[i], *self._pads[i]

    def _position(self, name: str, row_or_index: int, index: int | None) -> tuple[RawEncoding, int, int]:
        """Return the encoding, its left pads, and the index of a word or character."""
        row, position = (0, row_or_index) if index is None else (row_or_index, index)
        encoding, left, _ = self._encoding(row)
        return encoding, left, check_count(name, position)

    def _token(self, row_or_index: int, index: int | None) -> tuple[RawEncoding, int | None, int]:
        """Return the encoding, the index of a token in it (None for a pad), and the left pads."""
        row, position = (0, row_or_index) if index is None else (row_or_index, index)
        encoding, left, right = self._encoding(row)
        n_tokens = len(encoding.ids) + left + right
        found = check_count("token_index", position, low=-n_tokens)
        token = (found if found >= 0 else found + n_tokens) - left
        return encoding, token if 0 <= token < len(encoding.ids) else None, left


def _padded(items: Sequence[_Item], left: int, right: int, pad: _Item) -> list[_Item]:
    return [pad] * left + list(items) + [pad] * right


def _sequence(index: int) -> int:
    return check_count("sequence_index", index, high=1)
