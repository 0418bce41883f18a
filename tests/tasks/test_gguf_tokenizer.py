"""Tokenizers of GGUF files: the ids of the tokenizers that they were converted from."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn as fa
from fastattn.tokenizer import Tokenizer, has_tokenizer, load_tokenizer
from tests.reference.gguf_files import gguf_bytes, gpt2_metadata
from tests.tasks import tokenizers
from tests.tasks.test_tokenizer_published import _ggml_cases

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
SILAS = Path(fa.__file__).parent / "demo" / "silas_marner.txt"
TEXTS = [
    *SILAS.read_text(encoding="utf-8").split("\n")[:12],
    "",
    "x",
    "a  b   c",
    "ends ",
    "I'll they've IT'S we'RE",
    "1 12 123 1234567 3.14 a1b22 ٣٤",
    "tabs\tand\n\n\nlines\r\n  indented",
    "東京 大学 привет мир مرحبا",
    "é e\u0301 \u00a0 \u2028 😀👍🏽 \x00\x7f",
    "def f(x):\n\treturn x**2  # c$$+=<>^~|`",
    "<s> </s> <unk> <|end|> <0x41> \u2581",
]


def write(path: Path, tokens: Sequence[str], kinds: Sequence[int], model: str, **keys: Any) -> Path:
    """Write a file with a tokenizer and without tensors. keys: those of `tokenizer.ggml.`."""
    metadata = {
        **{key: value for key, value in gpt2_metadata().items() if not key.startswith("tokenizer.")},
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.tokens": list(tokens),
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        **{f"tokenizer.ggml.{key}": value for key, value in keys.items()},
    }
    path.write_bytes(gguf_bytes({key: value for key, value in metadata.items() if value is not None}, {}))
    return path


def write_bpe(path: Path, **keys: Any) -> Path:
    """Write the byte-level BPE of `tokenizers.write_gpt2`, with one token more."""
    letters = [tokenizers.LETTERS[b] for b in range(256)]
    merged = [merge.replace(" ", "") for merge in tokenizers.MERGES]
    tokens = [*letters, *merged, "<|endoftext|>", "<|end|>"]
    kinds = [NORMAL] * (len(tokens) - 2) + [CONTROL, USER_DEFINED]
    more = {"pre": "gpt-2", "merges": tokenizers.MERGES, "bos_token_id": 265, "eos_token_id": 265, **keys}
    return write(path, tokens, kinds, "gpt2", **more)


def reference(path: Path) -> Any:
    """Load a tokenizer with transformers."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def assert_same(found: Tokenizer, expected: Callable[[str], Sequence[int]], texts: Sequence[str] = TEXTS) -> None:
    for text in texts:
        assert list(found.encode(text)) == list(expected(text)), text


def test_published_ids_of_gpt2(data_folder: Path, tmp_path: Path) -> None:
    folder = data_folder / "gpt2-tokenizer"
    original = load_tokenizer(folder)
    tokens = [original.convert_ids_to_tokens(i) for i in range(len(original))]
    kinds = [CONTROL if token == "<|endoftext|>" else NORMAL for token in tokens]
    content = json.loads(original.raw.to_str())
    merges = [" ".join(merge) for merge in content["model"]["merges"]]
    path = write(
        tmp_path / "m.gguf", tokens, kinds, "gpt2", pre="gpt-2", merges=merges, bos_token_id=50256, eos_token_id=50256
    )
    found = load_tokenizer(path)
    cases = _ggml_cases(folder, "ggml-vocab-gpt-2.gguf")
    assert len(cases) > 40
    for text, ids in cases:
        assert found.encode(text) == ids, text
        assert found.decode(ids) == text
    assert_same(found, original.encode)
    assert len(found) == 50257


def test_published_ids_of_bert(data_folder: Path, tmp_path: Path) -> None:
    folder = data_folder / "bert-tokenizer"
    original = load_tokenizer(folder)
    words = [original.convert_ids_to_tokens(i) for i in range(len(original))]
    path = write_wordpiece(tmp_path / "m.gguf", words)
    found = load_tokenizer(path)
    cases = _ggml_cases(folder, "ggml-vocab-bert-bge.gguf")
    assert len(cases) > 40
    for text, ids in cases:
        assert found.encode(text, add_special_tokens=False) == ids, text
    assert_same(found, original.encode)
    assert found("a", "b") == original("a", "b")
    assert found.special_tokens_map == original.special_tokens_map


def write_wordpiece(path: Path, words: Sequence[str], **keys: Any) -> Path:
    """Write a WordPiece vocabulary as llama.cpp's converter does."""
    special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    tokens = [word if word in special else word[2:] if word.startswith("##") else f"\u2581{word}" for word in words]
    roles = {
        "bos_token_id": words.index("[CLS]"),
        "eos_token_id": words.index("[SEP]"),
        "unknown_token_id": words.index("[UNK]"),
        "seperator_token_id": words.index("[SEP]"),
        "padding_token_id": words.index("[PAD]"),
        "mask_token_id": words.index("[MASK]"),
    }
    kinds = [CONTROL if word in special else NORMAL for word in words]
    return write(path, tokens, kinds, "bert", **{**roles, **keys})


def test_bert_with_capital_letters(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "The", "the", "cat", "##s"]
    path = write_wordpiece(tmp_path / "m.gguf", words)
    assert load_tokenizer(path).encode("The cats") == [2, 5, 7, 8, 3]
    assert "the vocabulary has capital letters, so text is not changed to lowercase" in caplog.text
    lowered = fa.AutoTokenizer.from_pretrained(path, do_lower_case=True)
    assert lowered.encode("The cats") == [2, 6, 7, 8, 3]


@pytest.mark.torch
@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "dbrx"])
def test_byte_level_rules_are_those_of_transformers(tmp_path: Path, pre: str) -> None:
    path = write_bpe(tmp_path / "m.gguf", pre=pre, add_bos_token=False)
    found, expected = load_tokenizer(path), reference(path)
    assert_same(found, lambda text: expected(text)["input_ids"])
    for text in TEXTS:
        ids = found.encode(text)
        assert found.decode(ids) == expected.decode(ids)


@pytest.mark.torch
def test_qwen2_is_the_class_of_transformers(tmp_path: Path) -> None:
    """The class normalizes to NFC, which transformers omits for GGUF files."""
    transformers = pytest.importorskip("transformers")
    found = load_tokenizer(write_bpe(tmp_path / "m.gguf", pre="qwen2"))
    merges = [tuple(merge.split(" ")) for merge in tokenizers.MERGES]
    expected = transformers.Qwen2Tokenizer(vocab=found.get_vocab(), merges=merges, unk_token="<|endoftext|>")
    assert_same(found, lambda text: expected(text)["input_ids"], [text for text in TEXTS if "<|end" not in text])


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("smollm", "in 2024 x", ["in", "Ġ", "2", "0", "2", "4", "Ġx"]),
        ("gpt-2", "in 2024 x", ["in", "Ġ2024", "Ġx"]),
        ("llama-bpe", "in 20245 x", ["in", "Ġ", "202", "45", "Ġx"]),
        ("qwen2", "in 2024 x", ["in", "Ġ", "2", "0", "2", "4", "Ġx"]),
        ("default", "a+b 12345", ["a", "+", "b", "Ġ", "123", "45"]),
        ("falcon", "a`b 12345", ["a", "`", "b", "Ġ", "123", "45"]),
    ],
)
def test_pieces_before_the_merges(tmp_path: Path, pre: str, text: str, pieces: list[str]) -> None:
    """The rules of llama.cpp; for smollm they are Digits and ByteLevel of the published SmolLM tokenizers."""
    found = load_tokenizer(write_bpe(tmp_path / "m.gguf", pre=pre))
    before = found.raw.pre_tokenizer
    assert before is not None
    assert [piece for piece, _ in before.pre_tokenize_str(text)] == pieces


def test_smollm_splits_as_its_published_tokenizer(tmp_path: Path) -> None:
    from tokenizers import pre_tokenizers

    found = load_tokenizer(write_bpe(tmp_path / "m.gguf", pre="smollm")).raw.pre_tokenizer
    assert found is not None
    published = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    for text in TEXTS:
        assert [piece for piece, _ in found.pre_tokenize_str(text)] == [
            piece for piece, _ in published.pre_tokenize_str(text)
        ]


def test_a_missing_rule_is_llama_cpps_default_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = load_tokenizer(write_bpe(tmp_path / "m.gguf", pre=None))
    assert "tokenizer.ggml.pre is missing" in caplog.text
    assert found.raw.pre_tokenizer is not None
    assert [piece for piece, _ in found.raw.pre_tokenizer.pre_tokenize_str("a+1")] == ["a", "+", "1"]


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Train a BPE of SentencePiece with the settings of Llama."""
    package = pytest.importorskip("sentencepiece")
    prefix = tmp_path_factory.mktemp("spm") / "m"
    package.SentencePieceTrainer.train(
        input=str(SILAS),
        model_prefix=str(prefix),
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    return package.SentencePieceProcessor(model_file=f"{prefix}.model")


def write_llama(path: Path, model: Any, **keys: Any) -> Path:
    n = model.get_piece_size()
    kinds = [
        UNKNOWN if model.is_unknown(i) else CONTROL if model.is_control(i) else BYTE if model.is_byte(i) else NORMAL
        for i in range(n)
    ]
    more = {
        "scores": np.array([model.get_score(i) for i in range(n)], np.float32),
        "bos_token_id": model.bos_id(),
        "eos_token_id": model.eos_id(),
        "unknown_token_id": model.unk_id(),
        **keys,
    }
    return write(path, [model.id_to_piece(i) for i in range(n)], kinds, "llama", **more)


def test_llama_gives_the_ids_of_sentencepiece(tmp_path: Path, sentencepiece_model: Any) -> None:
    model = sentencepiece_model
    found = load_tokenizer(write_llama(tmp_path / "m.gguf", model))
    texts = [text for text in TEXTS if "<s>" not in text]  # SentencePiece reads special tokens as text
    assert_same(found, lambda text: [model.bos_id(), *model.encode(text)], texts)
    assert_same(found, lambda text: [model.bos_id(), *model.encode(text)], [f"  {text}" for text in texts])
    for text in texts:
        assert found.decode(found.encode(text), skip_special_tokens=True) == model.decode(model.encode(text))


def test_special_tokens_are_read_in_texts(tmp_path: Path, sentencepiece_model: Any) -> None:
    model = sentencepiece_model
    found = load_tokenizer(write_llama(tmp_path / "m.gguf", model, add_bos_token=False, add_eos_token=True))
    the, cat = model.encode("the"), model.encode("cat")
    assert found.encode("the<s>cat") == [*the, model.bos_id(), *cat, model.eos_id()]
    assert found("the", "cat")["input_ids"] == [*the, model.eos_id(), *cat, model.eos_id()]


@pytest.mark.torch
def test_llama_gives_the_ids_of_transformers(tmp_path: Path, sentencepiece_model: Any) -> None:
    path = write_llama(tmp_path / "m.gguf", sentencepiece_model)
    found, expected = load_tokenizer(path), reference(path)
    assert_same(found, lambda text: expected(text)["input_ids"], [text for text in TEXTS if "<s>" not in text])


def test_without_a_space_at_the_start(tmp_path: Path, sentencepiece_model: Any) -> None:
    found = load_tokenizer(write_llama(tmp_path / "m.gguf", sentencepiece_model, add_space_prefix=False))
    with_space = load_tokenizer(write_llama(tmp_path / "n.gguf", sentencepiece_model))
    assert found.encode(" the") == with_space.encode("the")
    assert found.encode("the") != with_space.encode("the")
    assert found.decode(found.encode(" the"), skip_special_tokens=True) == " the"


def test_settings_and_chat_template(tmp_path: Path) -> None:
    path = write_bpe(tmp_path / "m.gguf", padding_token_id=266, add_bos_token=True)
    data = gguf_bytes({"tokenizer.chat_template": "{% for m in messages %}[{{ m.content }}]{% endfor %}"}, {})
    whole = path.read_bytes()
    header = len(b"GGUF") + 4 + 8
    n_keys = int.from_bytes(whole[header : header + 8], "little")
    template = data[header + 8 :].rstrip(b"\0")
    path.write_bytes(whole[:header] + (n_keys + 1).to_bytes(8, "little") + template + whole[header + 8 :])
    found = fa.AutoTokenizer.from_pretrained(path)
    assert (found.bos_token, found.eos_token, found.pad_token) == ("<|endoftext|>", "<|endoftext|>", "<|end|>")
    assert found.model_max_length == 16
    assert found.encode("a") == [265, 97]
    assert found.encode("a<|end|>") == [265, 97, 266]
    assert found.decode([265, 97, 266], skip_special_tokens=True) == "a"  # <|end|> is the padding
    chat = [{"role": "user", "content": "hi"}]
    assert found.apply_chat_template(chat, tokenize=False) == "[hi]"
    other = fa.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf", add_bos_token=False, pad_token="a")
    assert other.encode("a") == [97]
    assert other.pad_token == "a"
    folder = tmp_path / "saved"
    found.save_pretrained(folder)
    assert_same(load_tokenizer(folder), found.encode)


def test_a_model_has_its_tokenizer(tmp_path: Path) -> None:
    from tests.reference.checkpoints import GPT2
    from tests.reference.gguf_files import gpt2_stored

    config = {**GPT2, "vocab_size": 267, "bos_token_id": 265, "eos_token_id": 265}
    path = write_bpe(tmp_path / "t.gguf")
    with_tokenizer = {
        **gpt2_metadata(config),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.merges": tokenizers.MERGES,
        "tokenizer.ggml.tokens": [load_tokenizer(path).convert_ids_to_tokens(i) for i in range(267)],
        "tokenizer.ggml.token_type": np.array([NORMAL] * 265 + [CONTROL, USER_DEFINED], np.int32),
    }
    (tmp_path / "m.gguf").write_bytes(gguf_bytes(with_tokenizer, gpt2_stored(config)))
    with fa.AutoModelForCausalLM.from_pretrained(tmp_path / "m.gguf") as model:
        assert model.tokenizer is not None
        ids = model.generate(model.tokenizer.encode("the"), max_new_tokens=3)
        assert "".join(model.stream("the", max_new_tokens=3)) == model.tokenizer.decode(ids)[3:]
    fa.quantize(tmp_path / "m.gguf", tmp_path / "int8", dtype="int8")
    assert_same(load_tokenizer(tmp_path / "int8"), load_tokenizer(tmp_path / "m.gguf").encode)
    with fa.AutoModelForCausalLM.from_pretrained(tmp_path / "int8") as model:
        assert model.tokenizer is not None


def test_no_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes(gpt2_metadata(), {}))
    assert not has_tokenizer(path)
    path.write_bytes(gguf_bytes({**gpt2_metadata(), "tokenizer.ggml.model": "no_vocab"}, {}))
    assert not has_tokenizer(path)
    with pytest.raises(fa.ConfigError, match=r"tokenizer\.ggml\.model: expected one of gpt2, llama, bert, got 'no_v"):
        load_tokenizer(path)
    path.write_bytes(gguf_bytes({**gpt2_metadata(), "tokenizer.ggml.model": np.zeros(3, np.int32)}, {}))
    assert has_tokenizer(path)
    with pytest.raises(fa.ConfigError, match=r"tokenizer\.ggml\.model: expected a text, got "):
        load_tokenizer(path)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"pre": "tekken"}, "pre: expected one of default, gpt-2"),
        ({"merges": ["a b c"]}, "merges: expected two tokens separated by a space in each merge, unlike 'a b c'"),
        ({"merges": np.zeros(3, np.int32)}, "merges: expected an array of texts"),
        ({"token_type": np.zeros(3, np.int32)}, "token_type: expected 267 integers, one for each token"),
        ({"token_type": ["a"]}, "token_type: expected an array of numbers"),
        ({"bos_token_id": 267}, "bos_token_id: expected an integer from 0 to 266, got 267"),
        ({"add_space_prefix": True}, "add_space_prefix: expected False, got True"),
        ({"add_bos_token": 1}, "add_bos_token: expected true or false, got 1"),
        ({"new_rule": True}, "expected only keys that fastattn supports, got 'tokenizer.ggml.new_rule'"),
        ({"precompiled_charsmap": np.zeros(3, np.uint8)}, "got 'tokenizer.ggml.precompiled_charsmap'"),
        ({"add_bos_token": True, "bos_token_id": None}, "bos_token_id: expected a token, because add_bos_token is"),
    ],
)
def test_unsupported_keys_are_named(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    path = write_bpe(tmp_path / "m.gguf", **keys)
    with pytest.raises(fa.ConfigError) as caught:
        load_tokenizer(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_hostile_vocabularies(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", ["a", "a"], [1, 1], "gpt2", pre="gpt-2")
    with pytest.raises(fa.ModelFormatError, match="expected each token once, got 'a' twice"):
        load_tokenizer(path)
    path = write(tmp_path / "m.gguf", ["a" * 2000], [1], "gpt2", pre="gpt-2")
    with pytest.raises(fa.ModelFormatError, match="expected tokens of at most 1000 characters"):
        load_tokenizer(path)
    path = write(tmp_path / "m.gguf", ["a"], [1], "gpt2", pre="gpt-2", merges=["b c"])
    with pytest.raises(fa.ModelFormatError, match="the tokenizers library refuses the file"):
        load_tokenizer(path)
    long = ["ab" * 400 + str(i) for i in range(100)]
    path = write(tmp_path / "m.gguf", long, [1] * 100, "llama", scores=np.zeros(100, np.float32))
    with pytest.raises(fa.ModelFormatError, match="their merges take too long to compute"):
        load_tokenizer(path)
    nan = np.full(2, np.nan, np.float32)
    path = write(tmp_path / "m.gguf", ["a", "aa"], [1, 1], "llama", scores=nan)
    with pytest.raises(fa.ConfigError, match="scores: expected finite numbers"):
        load_tokenizer(path)
