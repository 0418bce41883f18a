"""The tokenizer of a checkpoint, over the `tokenizers` library (imported when the first one is loaded).

Texts are encoded one at a time: the library's own thread pool is never started, so nothing is printed and nothing
hangs after a fork.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, overload

import numpy as np
from numpy.typing import NDArray

from fastattn.checks import check_count, check_flag, check_keywords
from fastattn.errors import DTypeError, InputError
from fastattn.tokenizer.base import State, TokenizerBase
from fastattn.tokenizer.batch_encoding import BatchEncoding
from fastattn.tokenizer.call import Call, CallArgs, EncodeArgs, PaddingArg, read_call
from fastattn.tokenizer.encode import encode_call, pad_encoded
from fastattn.tokenizer.encoder import Encoder
from fastattn.tokenizer.ids import clean_up, read_sequences
from fastattn.tokenizer.inputs import read_pairs
from fastattn.tokenizer.library import library_errors
from fastattn.tokenizer.limits import MAX_IDS
from fastattn.tokenizer.options import Side, TokenizerOptions
from fastattn.tokenizer.texts import check_text, check_texts, is_list_like
from fastattn.tokenizer.truncation import DO_NOT_TRUNCATE, Truncation, read_truncation

if TYPE_CHECKING:
    from tokenizers import Tokenizer as RawTokenizer
    from typing_extensions import Self, Unpack

_CLEAN_UP = "clean_up_tokenization_spaces"


class Tokenizer(TokenizerBase):
    """A tokenizer of a checkpoint, with the methods and arguments of transformers' fast tokenizers.

    Made by `AutoTokenizer.from_pretrained`, or by `Tokenizer.from_object` from one of another library. It pickles and
    copies by content. Several threads can use one tokenizer: the arguments of a call belong to that call alone. Setting
    an attribute (`pad_token`, `model_max_length`, ...) or adding tokens replaces the settings as a whole: a call that
    has started in another thread finishes with the old ones, and of two changes at the same time one can be lost.
    """

    def __init__(self, raw: RawTokenizer, options: TokenizerOptions) -> None:
        """Takes over `raw`; its padding and truncation are turned off."""
        self._state = State(Encoder(raw, options.steps), options)

    @classmethod
    def from_object(cls, tokenizer: object, name: str = "tokenizer") -> Tokenizer:
        """A tokenizer with the content and settings of a transformers or tokenizers object; one of ours as it is.

        Later changes of the object change nothing here. Raises DTypeError for anything else, such as a tokenizer of
        transformers that is written in Python; `name` is the argument in its message.
        """
        from fastattn.tokenizer.objects import convert_object

        return tokenizer if isinstance(tokenizer, Tokenizer) else cls(*convert_object(tokenizer, name))

    def __repr__(self) -> str:
        return f"<Tokenizer {type(self.raw.model).__name__} with {len(self)} tokens>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self._state.encoder.to_str(), self.options)

    def __copy__(self) -> Self:
        copy = object.__new__(type(self))
        copy._state = self._state  # never changed, only replaced
        return copy

    def __deepcopy__(self, _: object) -> Self:
        return self.__copy__()

    # -- text to ids --------------------------------------------------------------------------------------------

    def tokenize(self, text: str, pair: str | None = None, **options: Unpack[EncodeArgs]) -> list[str]:
        """The tokens of a text or pair, without special ones unless add_special_tokens=True."""
        if is_list_like(text) and not options.get("is_split_into_words"):
            raise DTypeError(f"text: expected str, got {type(text).__name__}")
        options.setdefault("add_special_tokens", False)
        state = self._state
        return encode_call(state, self._read(state, options, "tokenize"), "text", text, pair).tokens()

    @overload
    def encode(
        self, text: str, text_pair: str | None = None, *, return_tensors: None = None, **options: Unpack[EncodeArgs]
    ) -> list[int]: ...
    @overload
    def encode(
        self,
        text: list[str] | tuple[str, ...],
        text_pair: list[str] | tuple[str, ...] | None = None,
        *,
        return_tensors: None = None,
        **options: Unpack[EncodeArgs],
    ) -> list[list[int]]: ...
    @overload
    def encode(
        self,
        text: Any,
        text_pair: Any = None,
        *,
        return_tensors: Literal["np"] | None = None,
        **options: Unpack[EncodeArgs],
    ) -> Any: ...
    def encode(
        self, text: Any, text_pair: Any = None, *, return_tensors: Any = None, **options: Unpack[EncodeArgs]
    ) -> Any:
        """Token ids of a text or pair: a list of int, or an int64 array [1, n_tokens] with return_tensors="np".

        A list of texts gives a list of lists. The options are those of a call of the tokenizer.
        """
        state = self._state
        call = self._read(state, {"return_tensors": return_tensors, **options}, "encode")
        return encode_call(state, call, "text", text, text_pair)["input_ids"]

    def offsets(self, text: str, text_pair: str | None = None, *, add_special_tokens: bool = True) -> NDArray[np.int32]:
        """Where each token of `encode` lies in its text: int32 [n_tokens, 2], begin and end in characters."""
        state, given = self._state, {"add_special_tokens": add_special_tokens, "return_offsets_mapping": True}
        call = self._read(state, given, "offsets")
        encoding = encode_call(state, call, "text", check_text(text, "text"), text_pair)
        return np.array(encoding["offset_mapping"], dtype=np.int32).reshape(-1, 2)

    def __call__(
        self,
        text: Any = None,
        text_pair: Any = None,
        text_target: Any = None,
        text_pair_target: Any = None,
        **options: Unpack[CallArgs],
    ) -> BatchEncoding:
        """Encode a text, a pair, or a sequence of texts or pairs, as transformers does.

        text: a str, or a sequence of str (list, array, Series, column of a data set, iterator); inside a sequence a
        tuple or list of two str is a pair. With is_split_into_words=True each text is a sequence of words.
        text_pair: the second text, or as many of them as there are texts. text_target: texts whose ids become the
        column "labels".
        padding: True or "longest", "max_length", False. truncation: True or "longest_first", "only_first",
        "only_second", False; max_length alone means True, and without it model_max_length is the limit. The other
        options are in `CallArgs`.
        Returns lists like transformers', or with return_tensors="np" int64 arrays [n_texts, seq_len] (texts of
        different lengths then need padding=True). Raises DTypeError, InputError.
        """
        state = self._state
        call = self._read(state, options, "Tokenizer")
        if text is None and text_target is None:
            raise DTypeError("text: expected str or a sequence of them, got None")
        target = None
        if text_target is not None:
            for_target = replace(call, truncation=call.target_truncation, padding=call.target_padding)
            target_state = replace(state, encoder=state.encoder.target)
            target = encode_call(target_state, for_target, "text_target", text_target, text_pair_target)
            if text is None:
                return target
        encoding = encode_call(state, call, "text", text, text_pair)
        if target is not None:
            encoding["labels"] = target["input_ids"]
        return encoding

    def encode_batch(
        self,
        texts: Any,
        *,
        add_special_tokens: bool = True,
        max_length: int | None = None,
        truncation: bool | str = True,
    ) -> list[tuple[NDArray[np.int32], NDArray[np.int32]]]:
        """(token ids, token type ids) of each text or pair, cut to max_length.

        texts: a sequence of str and of pairs (text, second text or None). truncation: transformers' strategies; with
        max_length=None nothing is cut. Types are zeros where the model takes none. Raises DTypeError, InputError.
        """
        return self.encode_pairs(
            read_pairs("texts", texts),
            add_special_tokens=check_flag("add_special_tokens", add_special_tokens),
            max_length=None if max_length is None else check_count("max_length", max_length, low=1),
            strategy=read_truncation("truncation", truncation),
        )

    def encode_pairs(
        self,
        pairs: Iterable[tuple[str, str | None]],
        *,
        add_special_tokens: bool = True,
        max_length: int | None = None,
        strategy: str = "longest_first",
        cut: dict[int, int] | None = None,
    ) -> list[tuple[NDArray[np.int32], NDArray[np.int32]]]:
        """`encode_batch` for texts and arguments that were checked before; the form that the tasks use.

        cut: gets the number of each pair that was cut, with the tokens that are left.
        """
        state, truncation = self._state, None
        if max_length is not None and strategy != DO_NOT_TRUNCATE:
            truncation = Truncation(max_length=max_length, strategy=strategy, side=state.options.truncation_side)
        out = []
        for i, (first, second) in enumerate(pairs):
            encoding = state.encoder.encode(
                first,
                second,
                name=f"texts[{i}]",
                add_special_tokens=add_special_tokens,
                split_special_tokens=state.options.split_special_tokens,
                truncation=truncation,
            )
            if cut is not None and encoding.overflowing:
                cut[i] = len(encoding)
            ids = np.array(encoding.ids, dtype=np.int32)
            types = np.array(encoding.type_ids, np.int32) if state.options.type_ids else np.zeros_like(ids)
            out.append((ids, types))
        return out

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """The number of special tokens that a text or pair gets."""
        return self._state.encoder.n_special(pair=check_flag("pair", pair))

    @property
    def max_len_single_sentence(self) -> int:
        """`model_max_length` without the special tokens of a text."""
        return self.model_max_length - self.num_special_tokens_to_add()

    @property
    def max_len_sentences_pair(self) -> int:
        """`model_max_length` without the special tokens of a pair."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=True)

    def pad(
        self,
        encoded_inputs: Any,
        padding: PaddingArg = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: Side | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: Literal["np"] | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Pad an encoding, a dict of columns, or a list of such dicts, to one length.

        The arguments are those of a call. Columns of arrays give arrays. Columns that are not those of an encoding,
        such as labels, stay as they are, as in transformers.
        """
        options: CallArgs = {
            "padding": padding,
            "max_length": max_length,
            "pad_to_multiple_of": pad_to_multiple_of,
            "padding_side": padding_side,
            "return_attention_mask": return_attention_mask,
            "return_tensors": return_tensors,
            "verbose": verbose,
            "truncation": False,
        }
        return pad_encoded(encoded_inputs, self._read(self._state, options, "pad"))

    def apply_chat_template(self, *_: object, **__: object) -> NoReturn:
        """Not supported: raises InputError."""
        raise InputError(
            "apply_chat_template: chat templates are not supported; write the prompt as one str, as the model's page "
            "describes it, and encode that"
        )

    def _read(self, state: State, options: Mapping[str, Any], where: str) -> Call:
        return read_call(options, state.options, state.ids.get("pad"), where)

    # -- ids to text --------------------------------------------------------------------------------------------

    @overload
    def decode(
        self,
        token_ids: int | Sequence[int],
        skip_special_tokens: bool = False,
        *,
        clean_up_tokenization_spaces: bool | None = None,
        **unused: Any,
    ) -> str: ...
    @overload
    def decode(
        self,
        token_ids: Sequence[Sequence[int]],
        skip_special_tokens: bool = False,
        *,
        clean_up_tokenization_spaces: bool | None = None,
        **unused: Any,
    ) -> list[str]: ...
    @overload
    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        *,
        clean_up_tokenization_spaces: bool | None = None,
        **unused: Any,
    ) -> Any: ...
    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        *,
        clean_up_tokenization_spaces: bool | None = None,
        **unused: Any,
    ) -> Any:
        """The text of token ids (an int, a sequence [n_tokens] or an encoding), or the texts of several sequences.

        Bytes that are no UTF-8 become U+FFFD, ids without a token nothing. clean_up_tokenization_spaces: remove the
        spaces before punctuation; None is the tokenizer's setting; a BPE tokenizer ignores it, as in transformers.
        Raises DTypeError, InputError.
        """
        skip = check_flag("skip_special_tokens", skip_special_tokens)
        check_keywords(unused, ("use_source_tokenizer", "spaces_between_special_tokens"), "decode")
        state, chosen = self._state, clean_up_tokenization_spaces
        clean = _cleans_up(state, None if chosen is None else check_flag(_CLEAN_UP, chosen))
        source = check_flag("use_source_tokenizer", unused.get("use_source_tokenizer", True))
        encoder = state.encoder if source else state.encoder.target
        rows, batched = read_sequences("token_ids", token_ids)
        with library_errors(lambda reason: InputError(f"token_ids: the tokenizer refuses them: {reason}")):
            texts = [encoder.raw.decode(row, skip_special_tokens=skip) for row in rows]
        texts = [clean_up(text) for text in texts] if clean else texts
        return texts if batched else texts[0]

    def cleans_up(self, chosen: bool | None = None) -> bool:
        """Whether `decode` removes spaces before punctuation, with `chosen` as clean_up_tokenization_spaces."""
        return _cleans_up(self._state, chosen)

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **unused: Any,
    ) -> list[str]:
        """`decode` of each item, as a list."""
        if isinstance(sequences, Iterator):
            sequences = list(islice(sequences, MAX_IDS + 1))
        if _is_empty(sequences):
            return []
        texts = self.decode(
            sequences, skip_special_tokens, clean_up_tokenization_spaces=clean_up_tokenization_spaces, **unused
        )
        return [texts] if isinstance(texts, str) else texts

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """The text of tokens, as they stand in the vocabulary."""
        if not is_list_like(tokens):
            raise DTypeError(f"tokens: expected a list of str, got {type(tokens).__name__}")
        texts, decoder = check_texts(tokens, "tokens"), self.raw.decoder
        if decoder is None:
            return " ".join(texts)
        with library_errors(lambda reason: InputError(f"tokens: the tokenizer refuses them: {reason}")):
            return str(decoder.decode(texts))

    def clean_up_tokenization(self, text: str) -> str:
        """A text without the spaces before punctuation and contractions."""
        return clean_up(check_text(text, "text"))

    def save_pretrained(self, save_directory: str | Path, **unused: Any) -> tuple[str, ...]:
        """Write tokenizer.json and tokenizer_config.json, which fastattn and transformers load. Returns their paths."""
        from fastattn.tokenizer.saving import save

        check_keywords(unused, ("legacy_format",), "save_pretrained")
        return save(self.raw, self.options, self.special_tokens_map, save_directory)


def _cleans_up(state: State, chosen: bool | None) -> bool:
    clean = state.options.clean_up_tokenization_spaces if chosen is None else chosen
    return clean and (type(state.encoder.raw.model).__name__ != "BPE" or state.options.clean_up_spaces_of_bpe)


def _is_empty(sequences: Any) -> bool:
    return not isinstance(sequences, Mapping) and hasattr(type(sequences), "__len__") and len(sequences) == 0


def _restore(content: str, options: TokenizerOptions) -> Tokenizer:
    """The tokenizer that `Tokenizer.__reduce__` describes."""
    from tokenizers import Tokenizer as Raw

    return Tokenizer(Raw.from_str(content), options)
