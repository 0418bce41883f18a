"""Text to token ids and back, over the `tokenizers` library (imported when the first tokenizer is loaded).

Texts are encoded one at a time: the library's own thread pool is never started, so nothing is printed and nothing
hangs after a fork.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from fastattn.errors import ConfigError, DTypeError, InputError, ModelFormatError
from fastattn.jsonfile import read_json_object

if TYPE_CHECKING:
    from tokenizers import Encoding as RawEncoding
    from tokenizers import Tokenizer as RawTokenizer

MAX_TEXT_CHARS = 16 * 2**20  # a longer text is refused before it is tokenised
_ROLES = ("bos", "eos", "pad", "cls", "sep", "mask", "unk")
_DEFAULT_SPECIALS: dict[str, dict[str, str]] = {
    "gpt2": {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "unk": "<|endoftext|>"},
    "bert": {"cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]", "unk": "[UNK]"},
    "roberta": {
        "bos": "<s>",
        "eos": "</s>",
        "cls": "<s>",
        "sep": "</s>",
        "pad": "<pad>",
        "mask": "<mask>",
        "unk": "<unk>",
    },
}
Family: TypeAlias = Literal["gpt2", "bert", "roberta"]
Truncation: TypeAlias = Literal["right", "left"]


def check_text(text: object, name: str) -> str:
    """`text` as a str that can be encoded: DTypeError if not a str, InputError for surrogates or too long a text."""
    if not isinstance(text, str):
        raise DTypeError(f"{name}: expected str, got {type(text).__name__}")
    if len(text) > MAX_TEXT_CHARS:
        raise InputError(f"{name}: expected at most {MAX_TEXT_CHARS} characters, got {len(text)}")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            found = f"U+{ord(text[error.start]):04X}"
            raise InputError(f"{name}: expected Unicode text, got a lone surrogate {found} at {error.start}") from None
    return text


def check_texts(texts: object, name: str) -> list[str]:
    """A list, tuple, array or pandas Series of str, or another iterable, as a list of checked texts."""
    if isinstance(texts, (str, bytes, bytearray, Mapping)) or not isinstance(texts, Iterable):
        raise DTypeError(f"{name}: expected a sequence of str, got {type(texts).__name__}")
    shape = getattr(texts, "shape", (0,))
    if len(shape) != 1:
        raise InputError(f"{name}: expected one dimension of str, got shape {tuple(shape)}")
    return [check_text(text, f"{name}[{i}]") for i, text in enumerate(texts)]


def is_list_like(value: object) -> bool:
    """True for what holds several texts: list, tuple, ndarray, pandas Series and Index, but not str or Mapping."""
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes, bytearray, Mapping))


class BatchEncoding(dict[str, Any]):
    """What a tokenizer returns: a dict with attribute access (`encoding.input_ids`)."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Tokenizer:
    """A tokenizer of a checkpoint. Made by `AutoTokenizer.from_pretrained`; immutable, usable from several threads."""

    def __init__(
        self,
        raw: RawTokenizer,
        *,
        specials: Mapping[str, str],
        model_max_length: int | None = None,
        type_ids: bool = False,
        padding_side: str = "right",
        truncation_side: str = "right",
    ) -> None:
        raw.no_padding()
        raw.no_truncation()
        self.raw = raw
        self.model_max_length = model_max_length
        self.padding_side = padding_side
        self.truncation_side = truncation_side
        self._type_ids = type_ids
        known = {role: token for role, token in specials.items() if raw.token_to_id(token) is not None}
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
        self.byte_level = type(raw.decoder).__name__ == "ByteLevel"

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
        """The tokens as they stand in the vocabulary (byte-level ones with their letters for bytes)."""
        return [cast(str, self.raw.id_to_token(i)) for i in self._checked_ids(ids)]

    def convert_tokens_to_ids(self, tokens: Sequence[str]) -> list[int]:
        """The ids of tokens; a token outside the vocabulary is an InputError."""
        ids = [self.raw.token_to_id(check_text(token, "tokens")) for token in tokens]
        for token, i in zip(tokens, ids, strict=True):
            if i is None:
                raise InputError(f"tokens: {token!r} is not in the vocabulary")
        return cast("list[int]", ids)

    def _checked_ids(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> list[int]:
        array = np.asarray(ids)
        if array.size == 0:
            return []
        if array.ndim != 1:
            raise InputError(f"ids: expected one dimension, got shape {array.shape}")
        if array.dtype.kind not in "iu":
            raise DTypeError(f"ids: expected integers, got {array.dtype}")
        known = self.vocab_size
        bad = np.flatnonzero((array < 0) | (array >= known))
        if bad.size:
            raise InputError(f"ids[{bad[0]}]: expected 0 to {known - 1}, got {array[bad[0]]}")
        return cast("list[int]", array.tolist())

    # -- text to ids --------------------------------------------------------------------------------------------

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text, without special ones."""
        return list(self._raw_encode(check_text(text, "text"), None, add_special_tokens=False).tokens)

    def encode(self, text: str, text_pair: str | None = None, *, add_special_tokens: bool = True) -> NDArray[np.int32]:
        """Token ids of a text or a pair: int32 [n_tokens]."""
        pair = None if text_pair is None else check_text(text_pair, "text_pair")
        encoding = self._raw_encode(check_text(text, "text"), pair, add_special_tokens=add_special_tokens)
        return np.array(encoding.ids, dtype=np.int32)

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
        """(token ids, token type ids) of each text or pair, cut to max_length; the form that the tasks use."""
        out = []
        for i, item in enumerate(texts):
            first, second = item if isinstance(item, tuple) else (item, None)
            a = check_text(first, f"texts[{i}]")
            b = None if second is None else check_text(second, f"texts[{i}]")
            encoding = self._encode_pair(a, b, add_special_tokens=add_special_tokens, limit=max_length)
            out.append((np.array(encoding.ids, dtype=np.int32), np.array(encoding.type_ids, dtype=np.int32)))
        return out

    def _pairs(self, text: object, text_pair: object, *, single: bool) -> list[tuple[str, str | None]]:
        if single:
            pair = None if text_pair is None else check_text(text_pair, "text_pair")
            return [(check_text(text, "text"), pair)]
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
        """The text of token ids [n_tokens]; bytes that are no UTF-8 become U+FFFD."""
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


# -- loading ----------------------------------------------------------------------------------------------------


class AutoTokenizer:
    """Loads the tokenizer of a checkpoint directory."""

    def __init__(self) -> None:
        raise TypeError("AutoTokenizer is not made directly: call AutoTokenizer.from_pretrained(path)")

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | None = None,
    ) -> Tokenizer:
        """The tokenizer of a directory or hub id: tokenizer.json, vocab.json + merges.txt, or vocab.txt.

        ConfigError where there is none, ModelFormatError where a file is malformed.
        """
        if Path(path).is_dir():
            return load_tokenizer(Path(path))
        from fastattn.checkpoint.hub import resolve

        directory = resolve(
            path, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only, token=token
        )
        return load_tokenizer(directory)


def has_tokenizer(directory: Path) -> bool:
    """True where `load_tokenizer` would find files."""
    names = {
        name for name in ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt") if (directory / name).is_file()
    }
    return bool(names & {"tokenizer.json", "vocab.txt"}) or names >= {"vocab.json", "merges.txt"}


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a local directory."""
    config = read_json_object(directory / "tokenizer_config.json")
    family = _family(directory, config)
    specials = dict(_DEFAULT_SPECIALS[family])
    for source in (config, read_json_object(directory / "special_tokens_map.json")):
        for role in _ROLES:
            content = _content(source.get(f"{role}_token"))
            if content is not None:
                specials[role] = content
    if (directory / "tokenizer.json").is_file():
        raw = _raw_from_json(directory / "tokenizer.json")
    elif (directory / "vocab.txt").is_file() and family == "bert":
        raw = _raw_wordpiece(directory, config, specials)
    elif (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        raw = _raw_byte_level(directory, config, specials, family)
    else:
        raise ConfigError(f"{directory}: expected tokenizer.json, vocab.json and merges.txt, or vocab.txt; found none")
    _add_tokens(raw, config, specials, directory)
    longest = config.get("model_max_length")
    names = config.get("model_input_names")
    kind = str(config.get("tokenizer_class") or "")
    return Tokenizer(
        raw,
        specials=specials,
        model_max_length=int(longest) if isinstance(longest, (int, float)) and 0 < longest < 2**31 else None,
        type_ids="token_type_ids" in names if isinstance(names, list) else family == "bert" and "Distil" not in kind,
        padding_side="left" if config.get("padding_side") == "left" else "right",
        truncation_side="left" if config.get("truncation_side") == "left" else "right",
    )


def _content(token: object) -> str | None:
    """A special token's text: written as a str or as {"content": str}."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _family(directory: Path, config: Mapping[str, Any]) -> Family:
    kind = str(
        config.get("tokenizer_class") or read_json_object(directory / "config.json").get("model_type") or ""
    ).lower()
    if "roberta" in kind:
        return "roberta"
    if "bert" in kind:
        return "bert"
    if "gpt2" in kind:
        return "gpt2"
    return "bert" if (directory / "vocab.txt").is_file() else "gpt2"


def _raw_from_json(path: Path) -> RawTokenizer:
    from tokenizers import Tokenizer as Raw

    read_json_object(path)
    try:
        return Raw.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise ModelFormatError(f"{path}: expected a tokenizer: {error}", path=str(path), code="tokenizer") from error


def _raw_wordpiece(directory: Path, config: Mapping[str, Any], specials: Mapping[str, str]) -> RawTokenizer:
    """BERT's tokenizer from vocab.txt (one token a line)."""
    from tokenizers import Tokenizer as Raw
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

    path = directory / "vocab.txt"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ModelFormatError(f"{path}: expected UTF-8: {error}", path=str(path), code="utf8") from error
    tokens = [line.rstrip("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    vocab = {token: i for i, token in enumerate(tokens)}
    for role in ("cls", "sep", "unk"):
        if specials[role] not in vocab:
            raise ConfigError(f"{path}: the {role} token {specials[role]!r} is not in the vocabulary")
    raw = Raw(models.WordPiece(vocab, unk_token=specials["unk"], max_input_chars_per_word=100))
    raw.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(config.get("tokenize_chinese_chars", True)),
        strip_accents=config.get("strip_accents"),
        lowercase=bool(config.get("do_lower_case", True)),
    )
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    cls, sep = specials["cls"], specials["sep"]
    raw.post_processor = processors.BertProcessing((sep, vocab[sep]), (cls, vocab[cls]))
    raw.decoder = decoders.WordPiece(prefix="##")
    return raw


def _raw_byte_level(
    directory: Path, config: Mapping[str, Any], specials: Mapping[str, str], family: Family
) -> RawTokenizer:
    """GPT-2's or RoBERTa's tokenizer from vocab.json and merges.txt."""
    from tokenizers import Tokenizer as Raw
    from tokenizers import decoders, models, pre_tokenizers, processors

    vocab = read_json_object(directory / "vocab.json")
    prefix_space = bool(config.get("add_prefix_space", False))
    try:
        raw = Raw(models.BPE.from_file(str(directory / "vocab.json"), str(directory / "merges.txt")))
    except Exception as error:  # the library raises plain Exception
        path = str(directory / "merges.txt")
        raise ModelFormatError(f"{path}: expected byte-pair merges: {error}", path=path, code="tokenizer") from error
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    raw.decoder = decoders.ByteLevel()
    if family == "roberta":
        cls, sep = specials["cls"], specials["sep"]
        for token in (cls, sep):
            if token not in vocab:
                raise ConfigError(f"{directory / 'vocab.json'}: the special token {token!r} is not in the vocabulary")
        raw.post_processor = processors.RobertaProcessing(
            (sep, vocab[sep]), (cls, vocab[cls]), trim_offsets=True, add_prefix_space=prefix_space
        )
    else:
        raw.post_processor = processors.ByteLevel(trim_offsets=False)
    return raw


def _add_tokens(raw: RawTokenizer, config: Mapping[str, Any], specials: Mapping[str, str], directory: Path) -> None:
    """Mark the special tokens, and add those that tokenizer_config.json adds, at the ids it names."""
    from tokenizers import AddedToken

    known = {token.content for token in raw.get_added_tokens_decoder().values()}
    named = config.get("added_tokens_decoder")
    entries = (
        sorted(((int(i), e) for i, e in named.items()), key=lambda item: item[0]) if isinstance(named, dict) else []
    )
    for i, entry in entries:
        content = _content(entry)
        if content is None or content in known:
            continue
        flags = {
            key: bool(entry.get(key, False)) for key in ("lstrip", "rstrip", "single_word", "normalized", "special")
        }
        add = raw.add_special_tokens if flags["special"] else raw.add_tokens
        add([AddedToken(content, **flags)])
        if raw.token_to_id(content) != i:
            raise ConfigError(
                f"{directory / 'tokenizer_config.json'}: added token {content!r} is {i} there, "
                f"but {raw.token_to_id(content)} by the vocabulary"
            )
        known.add(content)
    missing = [token for token in specials.values() if token not in known and raw.token_to_id(token) is not None]
    raw.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in dict.fromkeys(missing)])
