"""SentencePiece files: the reader, and tokenizers from files that are written here byte by byte."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from fastattn.errors import FastattnError, ModelFormatError
from fastattn.tokenizer import load_tokenizer
from fastattn.tokenizer.sentencepiece import CONTROL, NORMAL, UNKNOWN, merges_by_id, parse_model
from tests.tasks.tokenizer_folders import VOCABULARIES, write_json

PIECES = [
    ("<unk>", 0.0, UNKNOWN),
    ("<s>", 0.0, CONTROL),
    ("</s>", 0.0, CONTROL),
    ("\u2581the", -1.5, NORMAL),
    ("\u2581cat", -2.0, NORMAL),
    ("s", -3.0, NORMAL),
    ("\u2581", -3.5, NORMAL),
]


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def integer(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def data(number: int, value: bytes | str) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def model(pieces: Sequence[tuple[str, float, int]], trainer: bytes = b"", normalizer: bytes = b"") -> bytes:
    """Return a model file; the type of a normal piece is omitted, because it is the default."""
    parts = []
    for text, score, kind in pieces:
        fields = data(1, text) + varint(2 << 3 | 5) + struct.pack("<f", score)
        parts.append(data(1, fields if kind == NORMAL else fields + integer(3, kind)))
    return b"".join([*parts, data(2, trainer), data(3, normalizer)])


def test_fields_and_defaults() -> None:
    trainer = integer(3, 2) + integer(35, 1) + integer(40, 5) + integer(41, -1) + data(45, "[UNK]") + integer(999, 7)
    normalizer = data(1, "nmt") + integer(3, 0) + integer(4, 0)
    found = parse_model(Path("x.model"), model(PIECES, trainer, normalizer) + varint(200 << 3 | 1) + bytes(8))
    assert [(piece.text, piece.score, piece.kind) for piece in found.pieces] == PIECES
    assert (found.algorithm, found.byte_fallback, found.unk_id, found.bos_id, found.eos_id) == (2, True, 5, -1, 2)
    assert (found.unk_piece, found.bos_piece, found.charsmap) == ("[UNK]", "<s>", None)
    assert (found.add_dummy_prefix, found.remove_extra_whitespaces, found.escape_whitespaces) == (False, False, True)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "the model has no pieces"),
        (b"\x0a", "the data ends inside a number"),
        (b"\x0a\x05ab", "field 1 needs 5 bytes, and 2 are left"),
        (b"\x80" * 11, "a number of more than 64 bits"),
        (b"\x00\x00", "field number 0"),
        (b"\x0b", "unknown wire type 3"),
        (b"\x08\x01", "field 1: expected bytes"),
        (data(1, data(1, b"\xff")), "field 1: expected UTF-8"),
        (data(1, data(2, b"abc")), "field 2: expected a 32-bit float"),
        (data(1, data(3, b"abc")), "field 3: expected an integer"),
        (b"IQ== 0\nIg== 1\n", "expected a SentencePiece model"),  # a file of tiktoken
        (model(PIECES, integer(3, 4)), "expected a Unigram or BPE model"),
        (model([("a" * 1001, 0.0, NORMAL)]), "expected tokens of at most 1000 characters"),
    ],
)
def test_malformed_files(content: bytes, problem: str) -> None:
    with pytest.raises(ModelFormatError, match=rf"^x\.model: .*{problem}") as caught:
        parse_model(Path("x.model"), content)
    assert caught.value.path == "x.model"


def test_work_is_bounded() -> None:
    pieces = {f"{i}" + "a" * 900: i for i in range(200)}
    with pytest.raises(ModelFormatError, match="their merges take too long to compute"):
        merges_by_id(pieces, Path("x.model"))


def test_random_damage(tmp_path: Path) -> None:
    content = model(PIECES, integer(40, 0), integer(3, 1))
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "XLMRobertaTokenizer"})
    rng = random.Random(0)
    n_loaded = 0
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(rng.choice([1, 2, 5])):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (tmp_path / "sentencepiece.bpe.model").write_bytes(damaged[: rng.choice([len(damaged), rng.randrange(100)])])
        try:
            load_tokenizer(tmp_path)
            n_loaded += 1
        except FastattnError:
            pass
    assert 0 < n_loaded < 300


def folder_with(path: Path, name: str, class_name: str, content: bytes) -> Path:
    (path / name).write_bytes(content)
    write_json(path / "tokenizer_config.json", {"tokenizer_class": class_name})
    return path


def test_xlm_roberta_ids(tmp_path: Path) -> None:
    """fairseq's special tokens take the first four ids, and the mask the last."""
    folder = folder_with(tmp_path, "sentencepiece.bpe.model", "XLMRobertaTokenizer", model(PIECES))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("the cats", "cat") == [0, 4, 5, 6, 2, 2, 5, 2]
    assert tokenizer.encode("the \u6771") == [0, 4, 7, 3, 2]
    assert tokenizer.mask_token_id == 8
    assert tokenizer.encode("the<mask>") == [0, 4, 8, 2]
    assert tokenizer.decode([0, 4, 5, 6, 2], skip_special_tokens=True) == "the cats"


def test_camembert_ids(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "sentencepiece.bpe.model", "CamembertTokenizer", model(PIECES))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("the cats") == [5, 7, 8, 9, 6]
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.mask_token_id) == (1, 3, 11)


def test_t5_ids(tmp_path: Path) -> None:
    pieces = [("<pad>", 0.0, CONTROL), ("</s>", 0.0, CONTROL), ("<unk>", 0.0, UNKNOWN), *PIECES[3:]]
    folder = folder_with(tmp_path, "spiece.model", "T5Tokenizer", model(pieces, integer(40, 2)))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("the cats", "the") == [3, 4, 5, 1, 3, 1]
    assert tokenizer.encode("<extra_id_0> cat<extra_id_99>") == [106, 4, 7, 1]
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer", "extra_ids": 2})
    assert load_tokenizer(folder).encode("<extra_id_0> cat") == [8, 4, 1]


def test_llama_merges(tmp_path: Path) -> None:
    """The order of the pieces defines the BPE merges; text without a piece becomes bytes."""
    pieces = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    pieces += [(f"<0x{i:02X}>", 0.0, 6) for i in range(256)]
    pieces += [
        (text, -float(i), NORMAL)
        for i, text in enumerate(("ca", "\u2581ca", "cat", "\u2581cat", "\u2581", "c", "a", "t"))
    ]
    content = model(pieces, integer(3, 2) + integer(35, 1))
    folder = folder_with(tmp_path, "tokenizer.model", "LlamaTokenizer", content)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("cat cat\u00e9") == [262, 262, 3 + 0xC3, 3 + 0xA9]
    assert tokenizer.decode([262, 262, 3 + 0xC3, 3 + 0xA9]) == "cat cat\u00e9"
    assert tokenizer.padding_side == "left"
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True})
    assert load_tokenizer(folder).encode("cat") == [1, 262]


def test_as_the_file_says(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "tokenizer.model", "PreTrainedTokenizerFast", model(PIECES))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("  the   cats ") == [3, 4, 5]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    assert tokenizer.decode([3, 4, 5]) == "the cats"


@pytest.mark.parametrize("name", [name for name in VOCABULARIES if name.startswith(("unigram", "bpe", "albert"))])
def test_the_same_as_the_package_reads(name: str, tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    from sentencepiece import sentencepiece_model_pb2

    VOCABULARIES[name](tmp_path)
    content = (tmp_path / "x.model").read_bytes()
    theirs = sentencepiece_model_pb2.ModelProto.FromString(content)
    ours = parse_model(tmp_path / "x.model", content)
    assert [(p.text, p.score, p.kind) for p in ours.pieces] == [(p.piece, p.score, p.type) for p in theirs.pieces]
    trainer, normalizer = theirs.trainer_spec, theirs.normalizer_spec
    assert ours.charsmap == (normalizer.precompiled_charsmap or None)
    assert (ours.algorithm, ours.byte_fallback) == (trainer.model_type, trainer.byte_fallback)
    assert (ours.unk_id, ours.bos_id, ours.eos_id) == (trainer.unk_id, trainer.bos_id, trainer.eos_id)
    assert (ours.unk_piece, ours.bos_piece, ours.eos_piece) == (trainer.unk_piece, trainer.bos_piece, trainer.eos_piece)
    assert ours.add_dummy_prefix == normalizer.add_dummy_prefix
    assert ours.remove_extra_whitespaces == normalizer.remove_extra_whitespaces
    assert ours.escape_whitespaces == normalizer.escape_whitespaces
