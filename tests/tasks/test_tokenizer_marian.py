"""MarianTokenizer: compared with transformers and with values computed by hand; and what it rejects."""

from __future__ import annotations

import copy
import json
import pickle
import random
from pathlib import Path

import pytest

from fastattn.errors import ConfigError, InputError, ModelFormatError
from fastattn.tokenizer import Tokenizer, load_tokenizer
from fastattn.tokenizer.sentencepiece import BYTE, NORMAL, parse_model
from fastattn.tokenizer.unigram_text import UnigramText
from tests.tasks.marian_folders import CODED, LAYOUTS, differences, write_marian, write_models
from tests.tasks.test_tokenizer_sentencepiece import PIECES, data, integer, model
from tests.tasks.tokenizer_folders import WORDS, make_texts, write_json, write_sentencepiece

VOCAB = ["</s>", "<unk>", "s", "\u2581cat", ">>de<<", "\u6771\u4eac", "\u2581Katze", "<pad>"]
TARGET = [*PIECES[:3], ("\u2581Katze", -1.0, NORMAL), ("\u2581", -2.0, NORMAL), ("s", -3.0, NORMAL)]
SETTINGS: list[dict[str, object]] = [
    {},
    {"source_lang": "en", "target_lang": "de", "split_special_tokens": True},
    {"model_max_length": 77, "padding_side": "left", "truncation_side": "left", "clean_up_tokenization_spaces": True},
    {"extra_special_tokens": ["[X]", "\u2581the"]},
    {"additional_special_tokens": ["FooBar", "<eop>"], "model_input_names": ["input_ids"]},
    {"pad_token": "<new>", "mask_token": "<m>", "model_max_length": 1e30},
    {"added_tokens_decoder": {"1": {"content": "<unk>"}}, "eos_token": "<unk>"},
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sentencepiece")
    return write_models(tmp_path_factory.mktemp("models"))


def write_small(folder: Path, source: bytes | None = None, **config: object) -> Path:
    """Write a folder whose models do not need the sentencepiece package."""
    folder.mkdir(exist_ok=True)
    (folder / "source.spm").write_bytes(source or model(PIECES))
    (folder / "target.spm").write_bytes(model(TARGET))
    write_json(folder / "vocab.json", {token: i for i, token in enumerate(VOCAB)})
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "MarianTokenizer", **config})
    return folder


@pytest.fixture
def small(tmp_path: Path) -> Tokenizer:
    return load_tokenizer(write_small(tmp_path / "small"))


@pytest.mark.torch
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(settings) or "default")
@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
def test_against_transformers(layout: str, settings: dict[str, object], models: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = write_marian(tmp_path, models, layout, **settings)
    assert differences(folder, [*CODED, "\ue000 a \ue000\ue001 \ue001\ue000", *make_texts(30)]) == []


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
def test_saved_folders_and_older_files(models: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = write_marian(tmp_path, models)
    n_tokens = len(json.loads((folder / "vocab.json").read_text()))
    write_json(folder / "special_tokens_map.json", {"pad_token": "<p>", "image_token": "<img>"})
    write_json(folder / "added_tokens.json", {"FooBar": n_tokens, "two words": n_tokens + 1})
    texts = [*CODED, *make_texts(20)]
    assert differences(folder, texts) == []
    ours = load_tokenizer(folder)
    ours.add_special_tokens({"extra_special_tokens": ["[X]"]})
    ours.save_pretrained(tmp_path / "ours")
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "theirs")
    for saved in (tmp_path / "ours", tmp_path / "theirs"):
        write_json(saved / "config.json", {"model_type": "marian"})
        assert differences(saved, texts) == []
    assert load_tokenizer(tmp_path / "ours").encode("a [X] b") == ours.encode("a [X] b")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalization_rule_name": "nmt_nfkc_cf"},
        {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
        {"add_dummy_prefix": False, "remove_extra_whitespaces": False},
        {"add_dummy_prefix": False, "normalization_rule_name": "nfkc"},
        {"control_symbols": "[CLS],[SEP]", "user_defined_symbols": "<new>,[X],two words,\u2581a"},
    ],
    ids=lambda options: "-".join(map(str, options.values())) or "default",
)
def test_pieces_of_the_package(options: dict[str, object], tmp_path: Path) -> None:
    """Segmentation, normalization and decoding; sums of scores are equal wherever a word is repeated."""
    sentencepiece = pytest.importorskip("sentencepiece")
    write_sentencepiece(tmp_path, **options)
    path = tmp_path / "x.model"
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ours = UnigramText(parse_model(path, path.read_bytes()))
    texts = [*make_texts(400, seed=5), "\uff76\uff9e\uff76", "\ufb01\u0300 A\u030a e\u0301 \u00bd\u00b2 \u2581"]
    lines = [line.split() for name, line in WORDS.items() if name not in ("special", "odd")]
    repeats = [word * n for line in lines for word in line for n in (3, 5)]  # sums that only differ by rounding
    texts += [before + text for text in repeats for before in ("", "x ", "\u4e16", "Hello world, ")]
    rng = random.Random(3)
    vocab = [theirs.id_to_piece(i) for i in range(theirs.get_piece_size())] + [
        "\u2581foo",
        "\u2581",
        "<unk>",
        "b\u00e4r",
    ]
    for text in texts:
        assert ours.normalize(text) == theirs.normalize(text), text
        pieces = theirs.encode(text, out_type=str)
        assert ours.pieces(text) == pieces, text
        for some in (pieces, rng.choices(vocab, k=5)):
            assert ours.decode(some) == theirs.decode_pieces(some), some


def test_ids_by_hand(small: Tokenizer) -> None:
    assert small.encode(">>de<< the cats") == [4, 1, 3, 2, 0]  # the piece "▁the" is not in vocab.json
    assert small.encode("cat\u6771\u4eac") == [3, 5, 0]  # a run of unknown characters may be in vocab.json
    assert small.encode("cat\u6771") == [3, 1, 0]
    assert small.encode("cat x>>de<<") == [3, 1, 1, 0]  # a code counts only at the beginning
    assert small.encode("cats", "cat") == [3, 2, 3, 0]
    assert small(text_target="Katzes")["input_ids"] == [6, 2, 0]
    assert small("cat", text_target="cat")["labels"] == [1, 1, 0]
    assert small.decode([4, 6, 2, 3, 0]) == ">>de<< Katzes cat</s>"
    assert small.decode([3, 2, 1, 3, 0, 7], skip_special_tokens=True) == "cats cat"
    assert (small.model_max_length, len(small), small.vocab_size) == (512, 8, 8)
    padded = small(["cats", "cat"], padding=True)
    assert padded.input_ids == [[3, 2, 0], [3, 0, 7]]
    assert padded.attention_mask == [[1, 1, 1], [1, 1, 0]]


def test_copies(small: Tokenizer) -> None:
    small.add_tokens(["FooBar"])
    for other in (pickle.loads(pickle.dumps(small)), copy.deepcopy(small)):
        assert other.encode(">>de<<FooBar the cats") == small.encode(">>de<<FooBar the cats") == [4, 8, 1, 3, 2, 0]
        assert other.decode([3, 2]) == "cats"
        assert other(text_target="Katze").input_ids == [6, 0]


def test_places_of_tokens_are_refused(small: Tokenizer) -> None:
    for call in (lambda: small("cat", return_offsets_mapping=True), lambda: small.offsets("cat")):
        with pytest.raises(InputError, match="MarianTokenizer does not provide the positions of"):
            call()
    encoding = small(["cats", "cat"], padding=True)
    assert (encoding.is_fast, encoding.encodings) == (False, None)
    assert encoding.tokens(1) == ["\u2581cat", "</s>", "<pad>"]
    assert encoding.sequence_ids(0) == [0, 0, None]
    assert encoding[:1] == {"input_ids": [[3, 2, 0]], "attention_mask": [[1, 1, 1]]}
    for found in (encoding, pickle.loads(pickle.dumps(encoding))):
        for name in ("word_ids", "char_to_token", "token_to_chars", "__getitem__"):
            with pytest.raises(InputError, match="does not provide the positions of"):
                getattr(found, name)(0)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError, ValueError])
def test_errors_within_the_library_pass(kind: type[BaseException], small: Tokenizer) -> None:
    def fail(*_: object) -> None:
        raise kind("from a handler")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UnigramText, "pieces", fail)
        patch.setattr(UnigramText, "decode", fail)
        for call in (lambda: small("cat"), lambda: small.decode([3])):
            with pytest.raises(kind, match="from a handler"):
                call()
    assert small.encode("cat") == [3, 0]


def test_an_added_token_as_a_piece(small: Tokenizer) -> None:
    small.add_tokens([">>fr<<"], special_tokens=True)
    assert small.encode(">>fr<<cat") == [8, 3, 0]
    with pytest.raises(InputError, match=r"split_special_tokens: the added token '>>fr<<' is a piece of the text"):
        small.encode(">>fr<<cat", split_special_tokens=True)


@pytest.mark.parametrize("name", ["source.spm", "target.spm", "vocab.json"])
def test_missing_files(name: str, tmp_path: Path) -> None:
    folder = write_small(tmp_path)
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=rf"expected source\.spm, target\.spm and vocab\.json, .* missing: {name}"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"separate_vocabs": True}, "separate_vocabs: expected false"),
        ({"sp_model_kwargs": {"enable_sampling": True}}, "sp_model_kwargs: expected {}"),
        ({"unk_token": "<u>"}, "vocab.json: expected the unknown token '<u>'"),
        ({"eos_token": None}, "eos_token: expected a token"),
        ({"added_tokens_decoder": {"12": {"content": "x"}}}, "'x': expected the id 8, .* got 12"),
        ({"added_tokens_decoder": {"3": {"content": "<pad>"}}}, "'<pad>': expected the id 7, .* got 3"),
    ],
)
def test_settings_that_are_refused(config: dict[str, object], problem: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=problem):
        load_tokenizer(write_small(tmp_path, **config))


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (model(PIECES, integer(3, 2)), "expected a Unigram model, got a BPE model"),
        (model(PIECES, integer(35, 1)), "byte_fallback is not supported"),
        (model([*PIECES, ("<0x41>", 0.0, BYTE)]), "byte_fallback is not supported"),
        (model(PIECES, integer(24, 1)), "treat_whitespace_as_suffix is not supported"),
        (model(PIECES) + data(5, data(2, b"abc")), "a denormalizer_spec is not supported"),
        (model(PIECES, b"", integer(5, 0)), "escape_whitespaces=false is not supported"),
        (model(PIECES[:3]), "expected at least one normal piece"),
        (model(PIECES, b"", data(2, b"\xff\xff\0\0abcd")), "expected a table of the stated size"),
        (model([*PIECES, ("x", float("nan"), NORMAL)]), "expected finite scores"),
        (b"abc", "expected a SentencePiece model"),
    ],
)
def test_models_that_are_refused(source: bytes, problem: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, ModelFormatError), match=rf"source\.spm: .*{problem}"):
        load_tokenizer(write_small(tmp_path, source))


@pytest.mark.parametrize("ids", [[0, 1, 2, 4], [0, 1, 1, 2], [1, 2, 3, 4]])
def test_ids_that_are_refused(ids: list[int], tmp_path: Path) -> None:
    folder = write_small(tmp_path)
    write_json(folder / "vocab.json", dict(zip(["</s>", "<unk>", "s", "<pad>"], ids, strict=True)))
    with pytest.raises(ModelFormatError, match="expected each id from 0 to 3 once"):
        load_tokenizer(folder)


def test_random_damage_of_the_normalization_table(tmp_path: Path) -> None:
    """A damaged table gives other texts or an error, and is never read past its end."""
    rng = random.Random(0)
    units = rng.randbytes(4 * 300)
    for _ in range(100):
        table = len(units).to_bytes(4, "little") + units + b"x\0 y\0"
        units = rng.randbytes(4 * rng.randint(1, 300))
        text = UnigramText(parse_model(tmp_path / "x", model(PIECES, b"", data(2, table))))
        assert isinstance(text.pieces("the cats \u6771\u4eac e\u0301 <>"), list)


def test_a_folder_with_tokenizer_json_alone(small: Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "json"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(small._state.encoder.to_str())
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "MarianTokenizer"})
    assert load_tokenizer(folder).convert_tokens_to_ids("\u2581cat") == 3
    assert "fastattn does not implement the rules of MarianTokenizer" in caplog.text


def test_added_tokens_of_tokenizer_json(small: Tokenizer, tmp_path: Path) -> None:
    """With the files of the class, only the added tokens of tokenizer.json are used."""
    folder = write_small(tmp_path)
    (folder / "tokenizer.json").write_text(
        json.dumps({"model": {"vocab": {}}, "added_tokens": [{"id": 8, "content": "FooBar", "special": False}]})
    )
    assert load_tokenizer(folder).encode("catFooBar") == [3, 8, 0]
    (folder / "tokenizer.json").write_text(
        json.dumps({"model": {"vocab": {}}, "added_tokens": [{"content": "FooBar"}]})
    )
    with pytest.raises(ModelFormatError, match="added_tokens: expected objects with id and content"):
        load_tokenizer(folder)
