"""The table of tokenizer classes, and how to find the class of a folder.

The class comes from tokenizer_config.json, else config.json, else the default of the model type, with the same
exceptions as transformers 5 (`AutoTokenizer.from_pretrained`).
"""

from __future__ import annotations

import logging

from fastattn.checks import quote
from fastattn.errors import ConfigError
from fastattn.settings import Settings
from fastattn.tokenizer import bytepair, wordpiece
from fastattn.tokenizer.folder import Folder
from fastattn.tokenizer.model_types import CLASS_OF_MODEL_TYPE, WRONG_CLASS_IN_FILES
from fastattn.tokenizer.parts import TokenizerClass

_log = logging.getLogger("fastattn")
GENERIC = "PreTrainedTokenizerFast"
_CLASSES: dict[str, TokenizerClass] = {entry.name: entry for entry in (*wordpiece.CLASSES, *bytepair.CLASSES)}
# Other names of a class. PreTrainedTokenizerFast depends only on its file.
ALIASES = {
    alias: name
    for name, aliases in {
        "BertTokenizer": (
            "ElectraTokenizer LayoutLMTokenizer LxmertTokenizer MobileBertTokenizer SqueezeBertTokenizer"
        ),
        "RobertaTokenizer": "BartTokenizer LEDTokenizer LongformerTokenizer MvpTokenizer",
        "LlamaTokenizer": "Phi3Tokenizer",
        GENERIC: "PreTrainedTokenizer TokenizersBackend PythonBackend BloomTokenizer",
    }.items()
    for alias in aliases.split()
}
# Classes whose rules no pipeline of the tokenizers library can express.
REFUSED = {
    "BertJapaneseTokenizer": "it splits words with MeCab or another program for Japanese",
    "BertweetTokenizer": "it rewrites tweets by its own rules before it splits words (bpe.codes)",
    "PhobertTokenizer": "it expects segmented words, and its merges have a special format (bpe.codes)",
    "RoFormerTokenizer": "it splits words with jieba",
    "CpmTokenizer": "it splits words with jieba",
    "CpmAntTokenizer": "it splits words with jieba",
    "XLMTokenizer": "it splits words with Moses and other programs",
    "FlaubertTokenizer": "it splits words with Moses",
    "FSMTTokenizer": "it splits words with Moses",
    "BioGptTokenizer": "it splits words with Moses",
    "GPTNeoXJapaneseTokenizer": "it splits Japanese by its own rules",
    "TapasTokenizer": "it reads tables",
    "CanineTokenizer": "its ids are characters, without a vocabulary",
    "ByT5Tokenizer": "its ids are bytes, without a vocabulary",
    "PerceiverTokenizer": "its ids are bytes, without a vocabulary",
}


def find_class_name(folder: Folder, settings: Settings) -> str | None:
    """Return the name of the tokenizer class without "Fast", None if no file gives one. Raises ConfigError."""
    config = Settings(folder.path("config.json"), folder.json("config.json"))
    declared = settings.text("tokenizer_class", None) or config.text("tokenizer_class", None)
    model_type = config.text("model_type", None) or ""
    usual = CLASS_OF_MODEL_TYPE.get(model_type)
    if not declared:
        return usual
    name = _canonical(declared)
    if model_type in WRONG_CLASS_IN_FILES and "auto_map" not in settings:
        return usual or GENERIC
    if name == "LlamaTokenizer" and usual != "LlamaTokenizer" and _is_byte_level(folder):
        return GENERIC
    if usual == "TokenizersBackend" and "auto_map" not in settings:
        return GENERIC
    return name


def _canonical(name: str) -> str:
    stripped = name.removesuffix("Fast")
    return ALIASES.get(stripped, stripped)


def find_class(name: str | None) -> TokenizerClass | None:
    """Return the table entry of a class, None if it depends only on its file or is unknown."""
    if name is None or is_generic(name):
        return None
    canonical = _canonical(name)
    return _CLASSES.get(canonical) or _rare_class(canonical)


def _rare_class(name: str) -> TokenizerClass | None:
    """Return an entry of the larger modules, which are imported only if a folder needs them."""
    from fastattn.tokenizer import marian, unigram

    return next((entry for entry in (*unigram.CLASSES, marian.CLASS) if entry.name == name), None)


def is_generic(name: str | None) -> bool:
    """Return whether a class depends only on its file."""
    return name is None or _canonical(name) in (GENERIC, "PreTrainedTokenizer")


def has_rules(name: str) -> bool:
    """Return whether this is a class of transformers that may do more than apply its tokenizer.json."""
    return name in REFUSED or name in CLASS_OF_MODEL_TYPE.values()


def class_of_files(folder: Folder) -> TokenizerClass | None:
    """Guess the class from the names of the files, with a warning."""
    name = "BertTokenizer" if folder.has("vocab.txt") else None
    if folder.has("vocab.json", "merges.txt"):
        name = "GPT2Tokenizer"
    if name is None:
        return None
    _log.warning(
        "%s: no file names the tokenizer class; %s is assumed from the file names. To be sure, set "
        '"tokenizer_class" in tokenizer_config.json',
        folder.directory,
        name,
    )
    return _CLASSES[name]


def refuse(folder: Folder, name: str) -> ConfigError:
    """Return the error for an unsupported class without a tokenizer.json."""
    reason = REFUSED.get(name, "fastattn does not implement its rules")
    return ConfigError(
        f"{folder.directory}: {quote(name)[1:-1]} is not supported: {reason}. Save a tokenizer.json with transformers "
        f"(PreTrainedTokenizerFast(tokenizer_object=...).save_pretrained(folder)) or use another tokenizer"
    )


def _is_byte_level(folder: Folder) -> bool:
    """Return whether tokenizer.json is byte-level, as in Llama 3 and others that name LlamaTokenizer."""
    return '"ByteLevel"' in (folder.text("tokenizer.json") or "")
