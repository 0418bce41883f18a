"""Writes small tokenizers, made from text and in the layout of the real vocabularies."""

from __future__ import annotations

import json
from pathlib import Path

BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]
LETTERS = {b: chr(b) for b in BYTES} | {b: chr(256 + i) for i, b in enumerate(sorted(set(range(256)) - set(BYTES)))}
MERGES = ["Ġ t", "h e", "Ġt he", "i n", "Ġ a", "l l", "he ll", "hell o", "Ċ Ċ"]
WORDS = [
    "good",
    "bad",
    "film",
    "great",
    "a",
    "cat",
    "dog",
    "the",
    "##s",
    "##ing",
    ".",
    ",",
    "!",
    "run",
    "un",
    "##known",
]


def write_gpt2(folder: Path) -> Path:
    """Write a byte-level BPE of 256 bytes, a few merges and <|endoftext|>: vocab.json, merges.txt. 266 ids."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = [LETTERS[b] for b in range(256)] + [merge.replace(" ", "") for merge in MERGES] + ["<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer", "model_max_length": 64})
    )
    return folder


def write_roberta(folder: Path) -> Path:
    """Write the same merges with RoBERTa's special tokens first."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = ["<s>", "<pad>", "</s>", "<unk>"] + [LETTERS[b] for b in range(256)]
    tokens += [merge.replace(" ", "") for merge in MERGES] + ["<mask>"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "RobertaTokenizer"}))
    return folder


def write_bert(folder: Path) -> Path:
    """Write a WordPiece vocabulary of letters and a few words: vocab.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + c for c in letters)]
    tokens += [word for word in WORDS if word not in tokens]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 64})
    )
    return folder


def write_metaspace(folder: Path) -> Path:
    """Write a Unigram tokenizer.json with Metaspace, a template with </s> and its own token types. About 40 ids."""
    from tokenizers import Tokenizer as Raw
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

    folder.mkdir(parents=True, exist_ok=True)
    letters = [(letter, -6.0 - i / 100) for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz.,!é你好мир")]
    words = [("▁the", -3.0), ("▁hello", -4.0), ("▁good", -4.5), ("film", -4.0), ("▁", -4.0), ("s", -3.0)]
    raw = Raw(models.Unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *words, *letters], unk_id=2))
    raw.normalizer = normalizers.NFKC()
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    raw.add_special_tokens(["<pad>", "</s>", "<unk>"])
    raw.post_processor = processors.TemplateProcessing(
        single="$A:0 </s>:0", pair="$A:0 </s>:0 $B:1 </s>:1", special_tokens=[("</s>", 1)]
    )
    raw.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "unk_token": "<unk>"}))
    return folder
