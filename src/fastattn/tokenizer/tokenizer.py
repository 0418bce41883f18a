"""The tokenizer of a checkpoint, over the `tokenizers` library (imported when the first one is loaded).

Texts are encoded one at a time: the library's own thread pool is never started, so nothing is printed and nothing
hangs after a fork.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from fastattn.errors import DTypeError, InputError
from fastattn.tokenizer.options import TokenizerOptions
from fastattn.tokenizer.texts import check_one_dimension, check_text, check_texts, is_list_like

if TYPE_CHECKING:
    from tokenizers import Encoding as RawEncoding
    from tokenizers import Tokenizer as RawTokenizer


class BatchEncoding(dict[str, Any]):
    """What a tokenizer returns: a dict with attribute access (`encoding.input_ids`)."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Tokenizer:
    """A tokenizer of a checkpoint. Made by `AutoTokenizer.from_pretrained`; immutable, usable from several threads."""

    def __init__(self, raw: RawTokenizer, options: TokenizerOptions) -> None:
        raw.no_padding()
        raw.no_truncation()
        self.raw = raw
        self.options = options
        self.model_max_length = options.model_max_length
        self.padding_side = options.padding_side
        self.truncation_side = options.truncation_side
        self._type_ids = options.type_ids
        known = {role: token for role, token in options.special_tokens.items() if raw.token_to_id(token) is not None}
        ids = {role: raw.token_to_id(token) for role, token in known.items()}
        self.bos_token, self.bos_token_id = known.get("bos"), ids.get("bos")
        self.eos_token, self.eos_token_id = known.get("eos"), ids.get("eos")
        self.pad_token, self.pad_token_id = known.get("pad"), ids.get("pad")
        self.cls_token, self.cls_token_id = known.get("cls"), ids.get("cls")
        self.sep_token, self.sep_token_id = known.get("sep"), ids.get("sep")
        self.mask_token, self.mask_token_id = known.get("mask"), ids.get("mask")
        self.unk_token, self.unk_token_id = known.get("unk"), ids.get("unk")
        added = {i for i, token in raw.get_added_tokens_decoder().items() if token.special}
        self.all_special_ids: frozenset[int] = frozenset(added | {i for i in ids.values() if i is not None})
        # one more than the highest id: above the number of tokens where the vocabulary has holes
        self.id_limit = 1 + max(raw.get_vocab(with_added_tokens=True).values(), default=-1)
        self.byte_level = type(raw.decoder).__name__ == "ByteLevel"

    def __repr__(self) -> str:
        return f"<Tokenizer {type(self.raw.model).__name__} with {self.vocab_size} tokens>"

    # -- vocabulary ---------------------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """Number of tokens, the added ones included."""
        return self.raw.get_vocab_size(with_added_tokens=True)

    def __len__(self) -> int:
        return self.vocab_size

    def get_vocab(self) -> dict[str, int]:
        """Token to id."""
        return self.raw.get_vocab(with_added_tokens=True)

    def convert_ids_to_tokens(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> list[str]:
        """The tokens as they stand in the vocabulary (byte-level ones with their letters for bytes).

        Raises InputError for an id outside the vocabulary, DTypeError."""
        tokens = [self.raw.id_to_token(i) for i in self._checked_ids(ids)]
        if None in tokens:
            at = tokens.index(None)
            raise InputError(f"ids[{at}]: expected an id of the vocabulary, got {ids[at]}, which has no token")
        return cast("list[str]", tokens)

    def convert_tokens_to_ids(self, tokens: Sequence[str]) -> list[int]:
        """The ids of tokens; a token outside the vocabulary is an InputError."""
        ids = [self.raw.token_to_id(check_text(token, "tokens")) for token in tokens]
        for token, i in zip(tokens, ids, strict=True):
            if i is None:
                raise InputError(f"tokens: {token!r} is not in the vocabulary")
        return cast("list[int]", ids)

    def _checked_ids(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> list[int]:
        try:
            array = np.asarray(ids)
        except ValueError:
            raise InputError("ids: expected one dimension, got lists of several lengths; see batch_decode") from None
        if array.size == 0:
            return []
        if array.ndim != 1:
            raise InputError(f"ids: expected one dimension, got shape {array.shape}")
        if array.dtype.kind not in "iu":
            raise DTypeError(f"ids: expected integers, got {array.dtype}")
        bad = np.flatnonzero((array < 0) | (array >= self.id_limit))
        if bad.size:
            raise InputError(f"ids[{bad[0]}]: expected 0 to {self.id_limit - 1}, got {array[bad[0]]}")
        return cast("list[int]", array.tolist())

    # -- text to ids --------------------------------------------------------------------------------------------

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text, without special ones."""
        return list(self._raw_encode(check_text(text, "text"), None, add_special_tokens=False).tokens)

    def encode(self, text: str, text_pair: str | None = None, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text or a pair."""
        pair = None if text_pair is None else check_text(text_pair, "text_pair")
        return list(self._raw_encode(check_text(text, "text"), pair, add_special_tokens=add_special_tokens).ids)

    def offsets(self, text: str, text_pair: str | None = None, *, add_special_tokens: bool = True) -> NDArray[np.int32]:
        """Where each token of `encode` lies in its text: int32 [n_tokens, 2], begin and end in characters."""
        pair = None if text_pair is None else check_text(text_pair, "text_pair")
        encoding = self._raw_encode(check_text(text, "text"), pair, add_special_tokens=add_special_tokens)
        return np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)

    def __call__(
        self,
        text: object,
        text_pair: object = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | Literal["longest", "max_length", "do_not_pad"] = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: Literal["np"] | None = None,
        return_token_type_ids: bool | None = None,
        return_offsets_mapping: bool = False,
    ) -> BatchEncoding:
        """Encode a text, a list (array, Series) of texts, or pairs: `(a, b)` tuples in a list, or `text_pair`.

        Returns input_ids, attention_mask and, where the checkpoint's tokenizer has them, token_type_ids: lists like
        transformers', or with return_tensors="np" int32 arrays [n_texts, seq_len] (texts of different lengths then
        need padding=True). Nothing is cut unless truncation=True.
        """
        if return_tensors not in (None, "np"):
            raise InputError(f'return_tensors: expected "np" or None, got {return_tensors!r}')
        single = not is_list_like(text)
        pairs = self._pairs(text, text_pair, single=single)
        limit = self._limit(truncation=truncation, max_length=max_length)
        encodings = [self._encode_pair(a, b, add_special_tokens=add_special_tokens, limit=limit) for a, b in pairs]
        type_ids = self._type_ids if return_token_type_ids is None else return_token_type_ids
        out = self._columns(encodings, type_ids=type_ids, offsets=return_offsets_mapping)
        self._pad(out, padding=padding, max_length=max_length)
        if return_tensors == "np":
            return BatchEncoding({name: _stack(name, rows) for name, rows in out.items()})
        return BatchEncoding({name: rows[0] if single else rows for name, rows in out.items()})

    def encode_batch(
        self,
        texts: Sequence[str] | Sequence[tuple[str, str | None]],
        *,
        add_special_tokens: bool = True,
        max_length: int | None = None,
    ) -> list[tuple[NDArray[np.int32], NDArray[np.int32]]]:
        """(token ids, token type ids) of each text or pair, cut to max_length; the form that the tasks use.

        Types are zeros where the checkpoint's tokenizer has none.
        """
        out = []
        for i, item in enumerate(texts):
            first, second = item if isinstance(item, tuple) else (item, None)
            a = check_text(first, f"texts[{i}]")
            b = None if second is None else check_text(second, f"texts[{i}]")
            encoding = self._encode_pair(a, b, add_special_tokens=add_special_tokens, limit=max_length)
            ids = np.array(encoding.ids, dtype=np.int32)
            out.append((ids, np.array(encoding.type_ids, np.int32) if self._type_ids else np.zeros_like(ids)))
        return out

    def _pairs(self, text: object, text_pair: object, *, single: bool) -> list[tuple[str, str | None]]:
        if single:
            pair = None if text_pair is None else check_text(text_pair, "text_pair")
            return [(check_text(text, "text"), pair)]
        check_one_dimension(text, "text")
        items = list(cast("Iterable[object]", text))
        if text_pair is not None:
            seconds = check_texts(text_pair, "text_pair")
            firsts = check_texts(items, "text")
            if len(firsts) != len(seconds):
                raise InputError(f"text_pair: expected {len(firsts)} texts, as text has, got {len(seconds)}")
            return list(zip(firsts, seconds, strict=True))
        pairs: list[tuple[str, str | None]] = []
        for i, item in enumerate(items):
            if isinstance(item, (tuple, list)):
                if len(item) != 2:
                    raise InputError(f"text[{i}]: expected a str or a pair of them, got {len(item)} items")
                pairs.append((check_text(item[0], f"text[{i}][0]"), check_text(item[1], f"text[{i}][1]")))
            else:
                pairs.append((check_text(item, f"text[{i}]"), None))
        return pairs

    def _limit(self, *, truncation: bool, max_length: int | None) -> int | None:
        if max_length is not None and (isinstance(max_length, bool) or not isinstance(max_length, (int, np.integer))):
            raise DTypeError(f"max_length: expected int or None, got {type(max_length).__name__}")
        if max_length is not None and max_length < 1:
            raise InputError(f"max_length: expected at least 1, got {max_length}")
        if not truncation:
            return None
        limit = max_length or self.model_max_length
        if limit is None:
            raise InputError("max_length: needed with truncation=True, as the tokenizer names no model_max_length")
        return int(limit)

    def _encode_pair(self, text: str, pair: str | None, *, add_special_tokens: bool, limit: int | None) -> RawEncoding:
        if limit is None:
            return self._raw_encode(text, pair, add_special_tokens=add_special_tokens)
        first = self._raw_encode(text, None, add_special_tokens=False)
        second = None if pair is None else self._raw_encode(pair, None, add_special_tokens=False)
        room = limit
        if add_special_tokens:
            room -= self.raw.num_special_tokens_to_add(second is not None)
        if room < 0:
            raise InputError(f"max_length: expected room for the special tokens, got {limit}")
        n_first, n_second = _longest_first(len(first.ids), 0 if second is None else len(second.ids), room)
        first.truncate(n_first, direction=self.truncation_side)
        if second is not None:
            second.truncate(n_second, direction=self.truncation_side)
        return self.raw.post_process(first, second, add_special_tokens)

    def _raw_encode(self, text: str, pair: str | None, *, add_special_tokens: bool) -> RawEncoding:
        try:
            return self.raw.encode(text, pair, add_special_tokens=add_special_tokens)
        except Exception as error:  # the library raises plain Exception, as for a missing unk token
            raise InputError(f"text: the tokenizer refuses it: {error}") from error

    def _columns(self, encodings: list[RawEncoding], *, type_ids: bool, offsets: bool) -> dict[str, list[list[Any]]]:
        out: dict[str, list[list[Any]]] = {"input_ids": [list(e.ids) for e in encodings]}
        if type_ids:
            out["token_type_ids"] = [list(e.type_ids) for e in encodings]
        out["attention_mask"] = [[1] * len(e.ids) for e in encodings]
        if offsets:
            out["offset_mapping"] = [list(e.offsets) for e in encodings]
        return out

    def _pad(self, out: dict[str, list[list[Any]]], *, padding: bool | str, max_length: int | None) -> None:
        if padding is False or padding == "do_not_pad":
            return
        if padding not in (True, "longest", "max_length"):
            raise InputError(f'padding: expected True, False, "longest" or "max_length", got {padding!r}')
        if self.pad_token_id is None:
            raise InputError("padding: this tokenizer has no pad token; give ragged lists to the models instead")
        width = max((len(row) for row in out["input_ids"]), default=0)
        if padding == "max_length":
            target = max_length or self.model_max_length
            if target is None:
                raise InputError('max_length: needed with padding="max_length"')
            width = max(width, target)
        fill: dict[str, Any] = {"input_ids": self.pad_token_id, "offset_mapping": (0, 0)}
        for name, rows in out.items():
            for i, row in enumerate(rows):
                missing = [fill.get(name, 0)] * (width - len(row))
                rows[i] = missing + row if self.padding_side == "left" else row + missing

    # -- ids to text --------------------------------------------------------------------------------------------

    def decode(self, ids: Sequence[int] | NDArray[np.integer[Any]], *, skip_special_tokens: bool = False) -> str:
        """The text of token ids [n_tokens]; bytes that are no UTF-8 become U+FFFD, ids without a token nothing."""
        return self.raw.decode(self._checked_ids(ids), skip_special_tokens=skip_special_tokens)

    def batch_decode(
        self, ids: Iterable[Sequence[int] | NDArray[np.integer[Any]]], *, skip_special_tokens: bool = False
    ) -> list[str]:
        """`decode` of each item."""
        return [self.decode(row, skip_special_tokens=skip_special_tokens) for row in ids]


def _stack(name: str, rows: list[list[Any]]) -> NDArray[np.int32]:
    if not rows:
        return np.zeros((0, 0), np.int32)
    lengths = {len(row) for row in rows}
    if len(lengths) > 1:
        raise InputError(f"{name}: texts have {min(lengths)} to {max(lengths)} tokens; an array needs padding=True")
    return np.array(rows, dtype=np.int32)


def _longest_first(n_first: int, n_second: int, room: int) -> tuple[int, int]:
    """Lengths after cutting the longer of two sequences first, as the tokenizers library does."""
    if n_first + n_second <= room:
        return n_first, n_second
    short, long = min(n_first, n_second), max(n_first, n_second)
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short = room // 2
        long = short + room % 2
    return (short, long) if n_first <= n_second else (long, short)
