"""The tokenizer of a checkpoint, based on the `tokenizers` library (imported when the first one is loaded).

The library's own thread pool never starts, so nothing is printed and nothing hangs after a fork: a call of the library
encodes one text, or several if TOKENIZERS_PARALLELISM turns its threads off.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from fastattn.checks import check_count, check_flag, check_keywords, check_str
from fastattn.errors import ConfigError, DTypeError, InputError
from fastattn.tokenizer.base import State, TokenizerBase
from fastattn.tokenizer.batch_encoding import BatchEncoding
from fastattn.tokenizer.call import Call, CallArgs, EncodeArgs, PaddingArg, read_call
from fastattn.tokenizer.chat_template import render
from fastattn.tokenizer.encode import encode_call, pad_encoded
from fastattn.tokenizer.encoder import Encoder
from fastattn.tokenizer.ids import clean_up, read_sequences
from fastattn.tokenizer.inputs import read_pairs
from fastattn.tokenizer.library import library_errors
from fastattn.tokenizer.limits import MAX_IDS
from fastattn.tokenizer.options import Side, TokenizerOptions
from fastattn.tokenizer.texts import check_text, check_texts, is_list_like, read_items
from fastattn.tokenizer.truncation import DO_NOT_TRUNCATE, Truncation, read_truncation

if TYPE_CHECKING:
    from tokenizers import Tokenizer as RawTokenizer
    from typing_extensions import Self, Unpack

_CLEAN_UP = "clean_up_tokenization_spaces"


class Tokenizer(TokenizerBase):
    """A tokenizer of a checkpoint, with the methods and arguments of transformers' fast tokenizers.

    `AutoTokenizer.from_pretrained` loads one, and `Tokenizer.from_object` converts one of another library. It pickles
    and copies by content. Several threads can use one tokenizer: the arguments of a call affect only that call. Setting
    an attribute (`pad_token`, `model_max_length`, ...) or adding tokens replaces all settings at once. A call that has
    started in another thread finishes with the old ones. If two threads change settings at the same time, one change
    can be lost.
    """

    def __init__(self, raw: RawTokenizer, options: TokenizerOptions) -> None:
        """Take ownership of `raw`, and turn off its padding and truncation."""
        self._state = State(Encoder(raw, options.steps), options)

    @classmethod
    def from_object(cls, tokenizer: object, name: str = "tokenizer") -> Tokenizer:
        """Convert a tokenizer of transformers or tokenizers, with its settings.

        A `Tokenizer` is returned unchanged. Later changes to the object have no effect here. Raises DTypeError for
        anything else, such as a Python tokenizer of transformers. name: the argument's name in messages.
        """
        from fastattn.tokenizer.objects import convert_object

        return tokenizer if isinstance(tokenizer, Tokenizer) else cls(*convert_object(tokenizer, name))

    def __repr__(self) -> str:
        return f"<Tokenizer {type(self.raw.model).__name__} with {len(self)} tokens>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self._state.encoder.to_str(), self.options)

    def __copy__(self) -> Self:
        copy = object.__new__(type(self))
        copy._state = self._state  # immutable; only replaced as a whole
        return copy

    def __deepcopy__(self, _: object) -> Self:
        return self.__copy__()

    # -- text to ids --------------------------------------------------------------------------------------------

    def tokenize(self, text: str, pair: str | None = None, **options: Unpack[EncodeArgs]) -> list[str]:
        """Return the tokens of a text or pair, without special ones unless add_special_tokens=True.

        Raises DTypeError, InputError.
        """
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
        """Return the token ids of a text or pair: a list of int, or int64 [1, n_tokens] with return_tensors="np".

        A list of texts gives a list of lists. The options are those of a tokenizer call. Raises DTypeError, InputError.
        """
        state = self._state
        call = self._read(state, {"return_tensors": return_tensors, **options}, "encode")
        return encode_call(state, call, "text", text, text_pair)["input_ids"]

    def offsets(self, text: str, text_pair: str | None = None, *, add_special_tokens: bool = True) -> NDArray[np.int32]:
        """Return the position of each token of `encode` in its text: int32 [n_tokens, 2], in characters.

        Raises DTypeError, InputError.
        """
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

        text: a str, or a sequence of str (list, array, Series, column of a data set, iterator). Inside a sequence, a
        tuple or list of two str is a pair. With is_split_into_words=True, each text is a sequence of words.
        text_pair: the second text, or one for each text. text_target: texts whose ids become the column "labels".
        padding: True or "longest", "max_length", False. truncation: True or "longest_first", "only_first",
        "only_second", False. max_length alone means truncation=True; without it, model_max_length is the limit.
        `CallArgs` lists the other options.
        Returns lists like transformers, or int64 arrays [n_texts, seq_len] with return_tensors="np"; texts of different
        lengths then need padding=True. Raises DTypeError, InputError.
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
        """Return (token ids, token type ids) of each text or pair, int32 [n_tokens] each, truncated to max_length.

        texts: a sequence of str and of pairs (text, second text or None). truncation: transformers' strategies; without
        max_length, nothing is truncated. Types are zeros if the model has none. Raises DTypeError, InputError.
        """
        items = [
            item[0] if isinstance(item, (tuple, list)) and len(item) == 2 and item[1] is None else item
            for item in read_items(texts, "texts")
        ]
        return self.encode_pairs(
            read_pairs("texts", items),
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
        names: Sequence[str] | None = None,
    ) -> list[tuple[NDArray[np.int32], NDArray[np.int32]]]:
        """Encode texts like `encode_batch`, with checked arguments. The tasks use this method.

        cut: if given, it receives the index of each truncated pair and the number of remaining tokens. names: of the
        pairs, for messages; None uses texts[i].
        """
        state, truncation = self._state, None
        if max_length is not None and strategy != DO_NOT_TRUNCATE:
            truncation = Truncation(max_length=max_length, strategy=strategy, side=state.options.truncation_side)
        encodings = state.encoder.encode_all(
            pairs,
            lambda i: f"texts[{i}]" if names is None else names[i],
            add_special_tokens=add_special_tokens,
            split_special_tokens=state.options.split_special_tokens,
            truncation=truncation,
        )
        out = []
        for i, encoding in enumerate(encodings):
            if cut is not None and encoding.overflowing:
                cut[i] = len(encoding)
            ids = np.array(encoding.ids, dtype=np.int32)
            types = np.array(encoding.type_ids, np.int32) if state.options.type_ids else np.zeros_like(ids)
            out.append((ids, types))
        return out

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Return the number of special tokens added to a text or pair."""
        return self._state.encoder.n_special(pair=check_flag("pair", pair))

    @property
    def max_len_single_sentence(self) -> int:
        """`model_max_length` minus the special tokens of a text."""
        return self.model_max_length - self.num_special_tokens_to_add()

    @property
    def max_len_sentences_pair(self) -> int:
        """`model_max_length` minus the special tokens of a pair."""
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

        The arguments are those of a tokenizer call. Columns of arrays give arrays. As in transformers, columns that are
        not part of an encoding, such as labels, are unchanged. Raises DTypeError, InputError.
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

    @property
    def chat_template(self) -> str | None:
        """The Jinja template of conversations; None if the folder has none."""
        return self._state.options.chat_template

    def apply_chat_template(
        self,
        conversation: Any,
        tools: Any = None,
        documents: Any = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        *,
        padding: PaddingArg = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: Any = None,
        return_dict: bool = True,
        **others: Any,
    ) -> Any:
        """Turn a conversation, or a list of them, into a prompt with the checkpoint's chat template.

        conversation: messages, such as {"role": "user", "content": "Hi"}. chat_template: replaces that of the
        checkpoint. add_generation_prompt: whether the prompt ends where an answer begins. continue_final_message:
        whether it ends inside the last message. Returns a BatchEncoding; return_dict=False: only the ids, a list of
        int per conversation; tokenize=False: text. tools, documents, others: variables of the template. The only
        special tokens are those that the template writes. Raises ConfigError (no template, no jinja2), DTypeError,
        InputError.
        """
        for name, flag in (("add_generation_prompt", add_generation_prompt), ("tokenize", tokenize)):
            check_flag(name, flag)
        if check_flag("continue_final_message", continue_final_message) and add_generation_prompt:
            raise InputError("continue_final_message: expected False with add_generation_prompt=True, got True")
        template = self.chat_template if chat_template is None else check_str("chat_template", chat_template)
        if template is None:
            raise ConfigError(
                "apply_chat_template: expected a tokenizer with a chat_template, got one without; add it to "
                "tokenizer_config.json, or pass chat_template to apply_chat_template or Llm"
            )
        several = isinstance(conversation, (list, tuple)) and all(
            isinstance(item, (list, tuple)) for item in conversation
        )
        several = several and bool(conversation)
        texts = [
            render(
                template,
                messages,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tools=tools,
                documents=documents,
                others={**self.special_tokens_map, **others},
            )
            for messages in (conversation if several else [conversation])
        ]
        if not tokenize:
            return texts if several else texts[0]
        options: dict[str, Any] = {"padding": padding, "truncation": truncation, "return_tensors": return_tensors}
        encoded = self(texts if several else texts[0], add_special_tokens=False, max_length=max_length, **options)
        return encoded if check_flag("return_dict", return_dict) else encoded["input_ids"]

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
        """Return the text of token ids, or the texts of several sequences.

        token_ids: an int, a sequence [n_tokens], an encoding, or a list of sequences. Invalid UTF-8 becomes U+FFFD, and
        ids without a token give no text. clean_up_tokenization_spaces: remove the spaces before punctuation (None: the
        tokenizer's setting). As in transformers, a BPE tokenizer ignores it, unless a setting in its files says
        otherwise. use_source_tokenizer=False: a MarianTokenizer decodes with target.spm. Raises DTypeError, InputError.
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
        """Return whether `decode` removes spaces before punctuation, with `chosen` as clean_up_tokenization_spaces."""
        return _cleans_up(self._state, chosen)

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **unused: Any,
    ) -> list[str]:
        """Decode each item, and return a list of texts. See `decode`."""
        if isinstance(sequences, Iterator):
            sequences = list(islice(sequences, MAX_IDS + 1))
        if _is_empty(sequences):
            return []
        texts = self.decode(
            sequences, skip_special_tokens, clean_up_tokenization_spaces=clean_up_tokenization_spaces, **unused
        )
        return [texts] if isinstance(texts, str) else texts

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Return the text of tokens, written as in the vocabulary. Raises DTypeError, InputError."""
        if not is_list_like(tokens):
            raise DTypeError(f"tokens: expected a list of str, got {type(tokens).__name__}")
        texts, decoder = check_texts(tokens, "tokens"), self.raw.decoder
        if decoder is None:
            return " ".join(texts)
        with library_errors(lambda reason: InputError(f"tokens: the tokenizer refuses them: {reason}")):
            return str(decoder.decode(texts))

    def clean_up_tokenization(self, text: str) -> str:
        """Remove the spaces before punctuation and contractions."""
        return clean_up(check_text(text, "text"))

    def save_pretrained(self, save_directory: str | Path, **unused: Any) -> tuple[str, ...]:
        """Write tokenizer.json and tokenizer_config.json for fastattn and transformers. Returns their paths.

        A MarianTokenizer writes its own files instead of tokenizer.json. Raises DTypeError, InputError, OSError.
        """
        from fastattn.tokenizer.saving import save

        check_keywords(unused, ("legacy_format",), "save_pretrained")
        return save(self.raw, self.options, self.special_tokens_map, save_directory)


def _cleans_up(state: State, chosen: bool | None) -> bool:
    clean = state.options.clean_up_tokenization_spaces if chosen is None else chosen
    return clean and (type(state.encoder.raw.model).__name__ != "BPE" or state.options.clean_up_spaces_of_bpe)


def _is_empty(sequences: Any) -> bool:
    return not isinstance(sequences, Mapping) and hasattr(type(sequences), "__len__") and len(sequences) == 0


def _restore(content: str, options: TokenizerOptions) -> Tokenizer:
    """Rebuild the tokenizer from the state of `Tokenizer.__reduce__`."""
    from tokenizers import Tokenizer as Raw

    return Tokenizer(Raw.from_str(content), options)
