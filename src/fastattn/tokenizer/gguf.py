"""The tokenizer of a GGUF file, as the files that a Hugging Face folder would have.

The metadata has a vocabulary and the name of its rules in llama.cpp. They become a tokenizer.json and a
tokenizer_config.json in memory, so loading, checks and overrides are those of a folder.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from fastattn.checkpoint.gguf.keys import Keys
from fastattn.checkpoint.gguf.reader import GgufFile, read_gguf
from fastattn.checks import quote
from fastattn.files import SourceFile
from fastattn.tokenizer.folder import Folder, format_error
from fastattn.tokenizer.sentencepiece import BYTE, CONTROL, UNKNOWN, USER_DEFINED, Piece, merges_of_pieces
from fastattn.tokenizer.vocabulary import check_tokens

_PREFIX = "tokenizer.ggml."
_SPACE = "\u2581"
_GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3_SPLIT = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2_SPLIT = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_log = logging.getLogger("fastattn")
_Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rules:
    """How a byte-level BPE splits text before its merges: by each regular expression in turn.

    ignore_merges: whether a piece that is a token needs no merges. add_bos: the default of the key. nfc: whether text
    is normalized, as in the original tokenizers; llama.cpp does not.
    """

    splits: Sequence[str]
    ignore_merges: bool = False
    add_bos: bool = False
    nfc: bool = False


_GPT2 = _Rules(splits=[_GPT2_SPLIT])
_LLAMA3 = _Rules(splits=[_LLAMA3_SPLIT], ignore_merges=True, add_bos=True)
_QWEN2 = _Rules(splits=[_QWEN2_SPLIT], nfc=True)
_DIGITS = _Rules(splits=[r"\p{N}", _GPT2_SPLIT])
# By tokenizer.ggml.pre: llama-vocab.cpp of https://github.com/ggml-org/llama.cpp.
_RULES: Mapping[str, _Rules] = {
    "default": _Rules(splits=[r"[\p{P}\$\+<=>\^~\|]+", _GPT2_SPLIT, r"\p{N}+", r"[0-9][0-9][0-9]"]),
    **dict.fromkeys(("gpt-2", "phi-2", "jina-es", "jina-de", "mpt", "olmo"), _GPT2),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"), _LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe"), _Rules(splits=[_LLAMA3_SPLIT])),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _QWEN2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell"), _DIGITS),
    "falcon": _Rules(splits=[r"[\p{P}\$\+<=>\^~\|`]+", _GPT2_SPLIT, r"[0-9][0-9][0-9]"]),
}
# Keys that change nothing here: their content is also in the tokens or the architecture, or is for code completion.
_NEUTRAL = (
    "token_type_count eot_token_id eom_token_id fim_pre_token_id fim_suf_token_id fim_mid_token_id "
    "fim_pad_token_id fim_rep_token_id fim_sep_token_id prefix_token_id suffix_token_id middle_token_id"
)
_ROLES: Mapping[str, tuple[str, ...]] = {
    **{role: (f"{role}_token_id",) for role in ("bos", "eos", "cls", "mask")},
    "unk": ("unknown_token_id",),
    "sep": ("separator_token_id", "seperator_token_id"),  # llama.cpp writes the second
    "pad": ("padding_token_id",),
}


class GgufFolder(Folder):
    """The tokenizer files that represent a GGUF file. Messages name the file itself."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._contents = _files_of(read_gguf(self._files.open(path)))

    def path(self, name: str) -> Path:
        return self.directory

    def has(self, *names: str) -> bool:
        return all(name in self._contents for name in names)

    def _read(self, path: Path) -> bytes | None:
        text = self._contents.get(path.name)
        return None if text is None else text.encode()


def has_gguf_tokenizer(path: Path) -> bool:
    """Return whether a GGUF file has a tokenizer, even if it is one that cannot be read. Raises ModelFormatError."""
    file = SourceFile(path)
    try:
        model = read_gguf(file).metadata.get(f"{_PREFIX}model")
        return model is not None and not (isinstance(model, str) and model in ("none", "no_vocab"))
    finally:
        file.close()


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """The tokens, their kinds, which are those of SentencePiece, and their ids."""

    path: Path
    tokens: list[str]
    kinds: list[int]
    ids: Mapping[str, int]

    def added(self) -> list[_Json]:
        """Return the tokens that are matched in a text before it is split."""
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        return [
            {"id": i, "content": token, "special": kind != USER_DEFINED, **flags}
            for i, (token, kind) in enumerate(zip(self.tokens, self.kinds, strict=True))
            if kind in (UNKNOWN, CONTROL, USER_DEFINED)
        ]


def tokenizer_files(path: Path) -> dict[str, str]:
    """Return the contents of tokenizer.json and the files next to it, by name. Raises ConfigError, ModelFormatError."""
    file = SourceFile(path)
    try:
        return _files_of(read_gguf(file))
    finally:
        file.close()


def _files_of(gguf: GgufFile) -> dict[str, str]:
    keys = Keys(gguf, _PREFIX)
    model = keys.text("model")
    if model not in _MODELS:
        keys.fail("model", f"one of {', '.join(_MODELS)}")
    vocabulary = _read_vocabulary(gguf, keys)
    roles = _read_roles(keys, vocabulary)
    content, config = _MODELS[model](keys, vocabulary, roles)
    keys.ignore(*_NEUTRAL.split())
    keys.finish()
    config |= {f"{role}_token": token for role, token in roles.items()}
    context = gguf.metadata.get(f"{gguf.metadata.get('general.architecture')}.context_length")
    if type(context) is int and context > 0:
        config["model_max_length"] = context
    files = {
        "tokenizer.json": json.dumps(content, ensure_ascii=False),
        "tokenizer_config.json": json.dumps(config, ensure_ascii=False),
    }
    template = Keys(gguf, "tokenizer.").text("chat_template", "")
    return {**files, "chat_template.jinja": template} if template else files


def _read_vocabulary(gguf: GgufFile, keys: Keys) -> _Vocabulary:
    tokens = keys.texts("tokens") or keys.fail("tokens", "an array of texts")
    check_tokens(gguf.path, tokens)
    kinds = keys.numbers("token_type", "iu")
    if kinds is None or len(kinds) != len(tokens):
        keys.fail("token_type", f"{len(tokens)} integers, one for each token")
    ids = {token: i for i, token in enumerate(tokens)}
    if len(ids) < len(tokens):
        twice = next(token for i, token in enumerate(tokens) if ids[token] != i)
        raise format_error(gguf.path, f"{_PREFIX}tokens: expected each token once, got {quote(twice)} twice")
    return _Vocabulary(gguf.path, tokens, kinds.tolist(), ids)


def _read_roles(keys: Keys, vocabulary: _Vocabulary) -> dict[str, str]:
    """Return the special tokens that the file names, by our names of their roles."""
    roles, most = {}, len(vocabulary.tokens) - 1
    for role, names in _ROLES.items():
        for key in names:
            if keys.raw(key) is not None:
                roles[role] = vocabulary.tokens[keys.size(key, low=0, high=most)]
    return roles


def _byte_level(keys: Keys, vocabulary: _Vocabulary, roles: dict[str, str]) -> tuple[_Json, _Json]:
    """Return a byte-level BPE, as in GPT-2."""
    pre = keys.text("pre", "")
    if not pre:
        _log.warning(
            "%s: %spre is missing; text is split by llama.cpp's default rules, which may not be the model's",
            vocabulary.path,
            _PREFIX,
        )
    rules = _RULES.get(pre or "default") or keys.fail("pre", f"one of {', '.join(_RULES)}")
    keys.must_be("add_space_prefix", False)
    keys.ignore("scores")  # the merges have the order
    splits = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        for regex in rules.splits
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    model = {
        "type": "BPE",
        "vocab": vocabulary.ids,
        "merges": _merges(keys),
        "ignore_merges": rules.ignore_merges,
    }
    content = {
        "version": "1.0",
        "added_tokens": vocabulary.added(),
        "normalizer": {"type": "NFC"} if rules.nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
        "post_processor": _ends(keys, vocabulary, roles, add_bos=rules.add_bos),
        "decoder": byte_level,
        "model": model,
    }
    return content, _generic_config()


def _merges(keys: Keys) -> list[list[str]]:
    found = [merge.split(" ") for merge in keys.texts("merges") or []]
    wrong = next((" ".join(merge) for merge in found if len(merge) != 2), None)
    if wrong is not None:
        keys.fail("merges", f"two tokens separated by a space in each merge, unlike {quote(wrong)}")
    return found


def _sentencepiece(keys: Keys, vocabulary: _Vocabulary, roles: dict[str, str]) -> tuple[_Json, _Json]:
    """Return a BPE over characters, whose merges follow from the scores; unknown characters become bytes."""
    scores = keys.numbers("scores", "f")
    if scores is None or len(scores) != len(vocabulary.tokens):
        keys.fail("scores", f"{len(vocabulary.tokens)} numbers, one for each token")
    if not np.isfinite(scores).all():
        keys.fail("scores", "finite numbers")
    keys.must_be("remove_extra_whitespaces", False)
    keys.must_be("pre", "default", "llama")
    keys.ignore("merges")
    prefix = keys.flag("add_space_prefix", True)
    pieces = list(map(Piece, vocabulary.tokens, scores.tolist(), vocabulary.kinds))
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    prepend = [{"type": "Prepend", "prepend": _SPACE}] if prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    model = {
        "type": "BPE",
        "vocab": vocabulary.ids,
        "merges": merges_of_pieces(vocabulary.path, pieces, vocabulary.ids),
        "unk_token": roles.get("unk"),
        "fuse_unk": True,
        "byte_fallback": BYTE in vocabulary.kinds,
    }
    content = {
        "version": "1.0",
        "added_tokens": vocabulary.added(),
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, replace]},
        "pre_tokenizer": None,
        "post_processor": _ends(keys, vocabulary, roles, add_bos=True),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *strip,
            ],
        },
        "model": model,
    }
    return content, _generic_config()


def _ends(keys: Keys, vocabulary: _Vocabulary, roles: Mapping[str, str], *, add_bos: bool) -> _Json | None:
    """Return the post-processor that adds bos and eos; the second text of a pair has type 1."""
    wanted = {"bos": keys.flag("add_bos_token", add_bos), "eos": keys.flag("add_eos_token", False)}
    for role in (role for role, add in wanted.items() if add and role not in roles):
        if keys.raw(f"add_{role}_token") is not None:
            keys.fail(f"{role}_token_id", f"a token, because add_{role}_token is true")
        wanted[role] = False
    if not any(wanted.values()):
        return None

    def one(text: str, number: int) -> list[_Json]:
        token = {role: {"SpecialToken": {"id": roles.get(role), "type_id": number}} for role in wanted}
        before, after = ([token[role]] if wanted[role] else [] for role in ("bos", "eos"))
        return [*before, {"Sequence": {"id": text, "type_id": number}}, *after]

    tokens = {roles[role] for role, add in wanted.items() if add}
    return {
        "type": "TemplateProcessing",
        "single": one("A", 0),
        "pair": [*one("A", 0), *one("B", 1)],
        "special_tokens": {
            token: {"id": token, "ids": [vocabulary.ids[token]], "tokens": [token]} for token in sorted(tokens)
        },
    }


def _wordpiece(keys: Keys, vocabulary: _Vocabulary, roles: dict[str, str]) -> tuple[_Json, _Json]:
    """Return BERT's WordPiece. The file marks the tokens that start a word; BERT marks the others with "##"."""
    keys.must_be("add_bos_token", True)
    keys.must_be("add_eos_token", True)
    keys.must_be("add_sep_token", True)
    keys.ignore("scores", "merges", "pre")
    ids: dict[str, int] = {}
    for i, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True)):
        whole = kind in (UNKNOWN, CONTROL) or token.startswith(_SPACE)
        ids[token.removeprefix(_SPACE) if whole else f"##{token}"] = i
    if len(ids) < len(vocabulary.tokens):
        raise format_error(vocabulary.path, f"{_PREFIX}tokens: expected each token once, got some twice")
    # llama.cpp names them as in other models; BERT has no bos and eos.
    first, last = roles.pop("bos", None), roles.pop("eos", None)
    roles.setdefault("cls", first or "[CLS]")
    roles.setdefault("sep", last or "[SEP]")
    roles.setdefault("unk", "[UNK]")
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    if any(token.startswith(_SPACE) and token != token.lower() and "[" not in token for token in vocabulary.tokens):
        config["do_lower_case"] = False
        _log.warning(
            "%s: the vocabulary has capital letters, so text is not changed to lowercase, as llama.cpp would do; pass "
            "do_lower_case=True to AutoTokenizer for that",
            vocabulary.path,
        )
    model = {
        "type": "WordPiece",
        "vocab": ids,
        "unk_token": roles["unk"],
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
    }
    return {"version": "1.0", "added_tokens": [], "model": model}, config


def _generic_config() -> _Json:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }


_MODELS: Mapping[str, Callable[[Keys, _Vocabulary, dict[str, str]], tuple[_Json, _Json]]] = {
    "gpt2": _byte_level,
    "llama": _sentencepiece,
    "bert": _wordpiece,
}
