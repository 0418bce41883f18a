"""The files of a tokenizer: tokenizer.json, vocab.json and merges.txt (byte-level BPE), or vocab.txt (WordPiece)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from fastattn.errors import ConfigError, ModelFormatError
from fastattn.jsonfile import read_json_object
from fastattn.tokenizer.options import TokenizerOptions
from fastattn.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as RawTokenizer

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


def has_tokenizer(directory: Path) -> bool:
    """True where `load_tokenizer` would find files."""
    names = {
        name for name in ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt") if (directory / name).is_file()
    }
    return bool(names & {"tokenizer.json", "vocab.txt"}) or names >= {"vocab.json", "merges.txt"}


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a local directory."""
    config = read_json_object(directory / "tokenizer_config.json")
    model_type = str(read_json_object(directory / "config.json").get("model_type") or "").lower()
    kind = str(config.get("tokenizer_class") or "").lower() + " " + model_type
    family = _family(directory, kind)
    specials = dict(_DEFAULT_SPECIALS[family])
    special_map = read_json_object(directory / "special_tokens_map.json")
    for source in (config, special_map):
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
    path, numbered = _numbered_tokens(directory, config, {*specials.values(), *_extra_specials(config, special_map)})
    _add_tokens(raw, specials, path, numbered)
    longest = config.get("model_max_length")
    names = config.get("model_input_names")
    columns = names if isinstance(names, list) else ["input_ids", "attention_mask"]
    if not isinstance(names, list) and family == "bert" and "distilbert" not in kind:
        columns.append("token_type_ids")
    options = TokenizerOptions(
        special_tokens=specials,
        model_max_length=int(longest) if isinstance(longest, (int, float)) and 0 < longest < 2**31 else None,
        model_input_names=tuple(columns),
        padding_side="left" if config.get("padding_side") == "left" else "right",
        truncation_side="left" if config.get("truncation_side") == "left" else "right",
    )
    return Tokenizer(raw, options)


def _content(token: object) -> str | None:
    """A special token's text: written as a str or as {"content": str}."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _family(directory: Path, kind: str) -> Family:
    """By the names in tokenizer_config.json and config.json, else by the files."""
    names: tuple[Family, ...] = ("roberta", "bert", "gpt2")
    for family in names:  # in this order: "roberta" contains "bert"
        if family in kind:
            return family
    if (directory / "vocab.txt").is_file():
        return "bert"
    model = read_json_object(directory / "tokenizer.json").get("model")
    return "bert" if isinstance(model, dict) and model.get("type") == "WordPiece" else "gpt2"


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


def _extra_specials(*sources: Mapping[str, Any]) -> Iterator[str]:
    """The special tokens that have no role."""
    for source in sources:
        for key in ("additional_special_tokens", "extra_special_tokens"):
            listed = source.get(key)
            for token in listed if isinstance(listed, list) else ():
                content = _content(token)
                if content is not None:
                    yield content


def _numbered_tokens(
    directory: Path, config: Mapping[str, Any], specials: Set[str]
) -> tuple[Path, list[tuple[int, AddedToken]]]:
    """The tokens that a file adds at the ids it names, and that file.

    They are those of tokenizer_config.json; of older folders, without them and without tokenizer.json, of
    added_tokens.json.
    """
    path, named = directory / "tokenizer_config.json", config.get("added_tokens_decoder")
    if isinstance(named, dict):
        return path, _decoder_tokens(path, named)
    path = directory / "added_tokens.json"
    if (directory / "tokenizer.json").is_file():  # which has them all
        return path, []
    return path, _legacy_tokens(path, read_json_object(path), specials)


def _decoder_tokens(path: Path, named: Mapping[str, Any]) -> list[tuple[int, AddedToken]]:
    from tokenizers import AddedToken

    for key in named:
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise ConfigError(f"{path}: added_tokens_decoder: expected ids as keys, got {key!r:.80}")
    tokens = []
    for i, entry in sorted((int(key), entry) for key, entry in named.items()):
        content = _content(entry)
        if not isinstance(entry, dict) or content is None:
            raise ConfigError(
                f'{path}: added_tokens_decoder[{i}]: expected an object with "content", got {entry!r:.80}'
            )
        flags = {
            key: bool(entry.get(key, False)) for key in ("lstrip", "rstrip", "single_word", "normalized", "special")
        }
        tokens.append((i, AddedToken(content, **flags)))
    return tokens


def _legacy_tokens(path: Path, named: Mapping[str, Any], specials: Set[str]) -> list[tuple[int, AddedToken]]:
    """added_tokens.json: token to id. As in transformers, one that is not special is looked for in normalised text."""
    from tokenizers import AddedToken

    for content, i in named.items():
        if type(i) is not int or not 0 <= i < 2**31:
            raise ConfigError(f"{path}: {content!r:.80}: expected an id, got {i!r:.80}")
    return [
        (i, AddedToken(content, normalized=content not in specials, special=content in specials))
        for content, i in sorted(named.items(), key=lambda item: item[1])
    ]


def _add_tokens(
    raw: RawTokenizer, specials: Mapping[str, str], path: Path, numbered: Sequence[tuple[int, AddedToken]]
) -> None:
    """Mark the special tokens, and add those that a file adds, at the ids it names."""
    from tokenizers import AddedToken

    known = {token.content for token in raw.get_added_tokens_decoder().values()}
    for i, token in numbered:
        if token.content in known:
            continue
        add = raw.add_special_tokens if token.special else raw.add_tokens
        add([token])
        found = raw.token_to_id(token.content)
        if found != i:
            raise ConfigError(f"{path}: added token {token.content!r} is {i} there, but {found} by the vocabulary")
        known.add(token.content)
    missing = [token for token in specials.values() if token not in known and raw.token_to_id(token) is not None]
    raw.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in dict.fromkeys(missing)])
