"""The files of tokenizers: what is read, what is rejected by name and what causes a warning, with correct values."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from fastattn.errors import ConfigError, FastattnError, ModelFormatError
from fastattn.tokenizer import has_tokenizer, load_tokenizer
from tests.tasks.tokenizer_folders import write_json
from tests.tasks.tokenizers import write_bert, write_gpt2, write_roberta


def set_config(folder: Path, **values: object) -> Path:
    """Change tokenizer_config.json."""
    path = folder / "tokenizer_config.json"
    write_json(path, {**json.loads(path.read_text()), **values})
    return folder


def tokens(folder: Path, text: str, pair: str | None = None) -> list[str]:
    raw = load_tokenizer(folder).raw
    return list(raw.encode(text, pair).tokens if pair is not None else raw.encode(text).tokens)


def type_ids(folder: Path, text: str, pair: str) -> list[int]:
    return list(load_tokenizer(folder).raw.encode(text, pair).type_ids)


# -- classes ----------------------------------------------------------------------------------------------------------


def test_the_same_files_with_different_classes(tmp_path: Path) -> None:
    folder = write_bert(tmp_path)
    bert = load_tokenizer(folder)
    assert bert.options.class_name == "BertTokenizer"
    assert bert.options.model_input_names == ("input_ids", "token_type_ids", "attention_mask")
    set_config(folder, tokenizer_class="DistilBertTokenizerFast")
    distil = load_tokenizer(folder)
    assert distil.options.class_name == "DistilBertTokenizer"
    assert distil.options.model_input_names == ("input_ids", "attention_mask")
    # Pairs have BERT's types, whether or not the model uses them.
    assert type_ids(folder, "good film", "bad") == [0, 0, 0, 0, 1, 1]


def test_class_of_config_json_and_of_the_model_type(tmp_path: Path) -> None:
    folder = write_bert(tmp_path)
    (folder / "tokenizer_config.json").unlink()
    write_json(folder / "config.json", {"model_type": "electra"})
    assert load_tokenizer(folder).options.class_name == "BertTokenizer"
    write_json(folder / "config.json", {"model_type": "bert", "tokenizer_class": "DistilBertTokenizer"})
    assert load_tokenizer(folder).options.class_name == "DistilBertTokenizer"
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizerFast"})
    assert load_tokenizer(folder).options.class_name == "BertTokenizer"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("BertJapaneseTokenizer", "MeCab"),
        ("PhobertTokenizer", "bpe.codes"),
        ("BertweetTokenizer", "bpe.codes"),
        ("TapasTokenizer", "tables"),
        ("MyOwnTokenizer", "does not implement its rules"),
    ],
)
@pytest.mark.parametrize("where", ["tokenizer_config.json", "config.json"])
def test_classes_that_are_refused_by_name(name: str, reason: str, where: str, tmp_path: Path) -> None:
    folder = write_bert(tmp_path)
    (folder / "tokenizer_config.json").unlink()
    write_json(folder / where, {"tokenizer_class": name})
    with pytest.raises(ConfigError, match=rf"{name} is not supported: .*{reason}.*Save a tokenizer\.json"):
        load_tokenizer(folder)


def test_an_unknown_class_follows_its_tokenizer_json(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_bert(tmp_path)
    load_tokenizer(folder).raw.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").unlink()
    set_config(folder, tokenizer_class="MyOwnTokenizer", do_lower_case=False)
    assert tokens(folder, "GOOD film") == ["[CLS]", "good", "film", "[SEP]"]
    assert caplog.text == ""
    set_config(folder, tokenizer_class="BertJapaneseTokenizer")
    assert tokens(folder, "GOOD film") == ["[CLS]", "good", "film", "[SEP]"]
    assert "fastattn does not implement the rules of BertJapaneseTokenizer" in caplog.text
    set_config(folder, tokenizer_class="MyOwnTokenizer", auto_map={"AutoTokenizer": ["code.Mine", None]})
    load_tokenizer(folder)
    assert "the code that auto_map names never runs" in caplog.text


def test_settings_on_top_of_tokenizer_json(tmp_path: Path) -> None:
    folder = write_bert(tmp_path)
    load_tokenizer(folder).raw.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").unlink()
    assert tokens(folder, "Héllo GOOD") == ["[CLS]", "h", "##e", "##l", "##l", "##o", "good", "[SEP]"]
    set_config(folder, strip_accents=False)
    assert tokens(folder, "Héllo GOOD") == ["[CLS]", "[UNK]", "good", "[SEP]"]
    set_config(folder, strip_accents=None, do_lower_case=False)
    assert tokens(folder, "Héllo GOOD good") == ["[CLS]", "[UNK]", "[UNK]", "good", "[SEP]"]


def test_another_kind_of_model_than_the_class_uses(tmp_path: Path) -> None:
    folder = write_gpt2(tmp_path)
    load_tokenizer(folder).raw.save(str(folder / "tokenizer.json"))
    set_config(folder, tokenizer_class="BertTokenizer")
    with pytest.raises(
        ModelFormatError,
        match=r"expected a WordPiece model for its tokenizer class, got 'BPE'; .*PreTrainedTokenizerFast",
    ):
        load_tokenizer(folder)
    set_config(folder, tokenizer_class="PreTrainedTokenizerFast")
    assert tokens(folder, "hello") == ["hello"]


def test_a_guess_by_file_names_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_gpt2(tmp_path)
    (folder / "tokenizer_config.json").unlink()
    assert load_tokenizer(folder).options.class_name == "GPT2Tokenizer"
    assert "no file names the tokenizer class; GPT2Tokenizer is assumed" in caplog.text


# -- settings ---------------------------------------------------------------------------------------------------------


def test_add_bos_token_without_tokenizer_json(tmp_path: Path) -> None:
    folder = set_config(write_gpt2(tmp_path), add_bos_token=True)
    raw = load_tokenizer(folder).raw
    assert raw.encode("hello").ids == [265, 263]
    assert raw.encode("hello", "the").type_ids == [0, 0, 1, 1, 1]
    raw.save(str(folder / "tokenizer.json"))
    set_config(folder, add_bos_token=False)  # with tokenizer.json the setting is ignored, as in transformers
    assert load_tokenizer(folder).raw.encode("hello").ids == [265, 263]


def test_prefix_space_and_trimmed_offsets(tmp_path: Path) -> None:
    folder = write_roberta(tmp_path)
    assert tokens(folder, "the the") == ["<s>", "t", "he", "Ġthe", "</s>"]
    assert load_tokenizer(folder).raw.encode("a the").offsets == [(0, 0), (0, 1), (2, 5), (0, 0)]
    set_config(folder, trim_offsets=False, add_prefix_space=True)
    assert tokens(folder, "the the") == ["<s>", "Ġthe", "Ġthe", "</s>"]
    assert load_tokenizer(folder).raw.encode("a the").offsets == [(0, 0), (0, 1), (1, 5), (0, 0)]


def test_options(tmp_path: Path) -> None:
    folder = set_config(
        write_bert(tmp_path),
        padding_side="left",
        truncation_side="left",
        model_max_length=1e30,
        split_special_tokens=True,
        clean_up_tokenization_spaces=True,
        model_input_names=["input_ids"],
        extra_special_tokens={"image_token": "cat"},
        pad_token=None,
    )
    options = load_tokenizer(folder).options
    assert (options.padding_side, options.truncation_side, options.model_max_length) == ("left", "left", None)
    assert options.split_special_tokens
    assert options.clean_up_tokenization_spaces
    assert options.model_input_names == ("input_ids",)
    assert options.named_special_tokens == {"image": "cat"}
    assert options.special_tokens == {"unk": "[UNK]", "sep": "[SEP]", "cls": "[CLS]", "mask": "[MASK]"}


@pytest.mark.parametrize(
    ("key", "value"), [("cls_token", None), ("cls_token", ""), ("sep_token", None), ("unk_token", None)]
)
def test_tokens_that_the_class_needs(key: str, value: object, tmp_path: Path) -> None:
    folder = set_config(write_bert(tmp_path), **{key: value})
    with pytest.raises(
        ConfigError, match=rf"tokenizer_config\.json: {key}: expected a token, because BertTokenizer needs it"
    ):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("strip_accents", "x", "expected true or false"),
        ("do_lower_case", "false", "expected true or false"),
        ("tokenize_chinese_chars", 1, "expected true or false"),
        ("padding_side", "both", "expected one of left, right"),
        ("model_max_length", "512", "expected a positive integer"),
        ("model_max_length", -1, "expected a positive integer"),
        ("model_max_length", True, "expected a positive integer"),
        ("model_input_names", "input_ids", "expected a list of strings"),
        ("split_special_tokens", "no", "expected true or false"),
        ("tokenizer_class", 5, "expected a string"),
        ("pad_token", 5, 'expected an object with "content"'),
        ("pad_token", "a\ud800", "expected valid Unicode"),
        ("pad_token", "a" * 1001, "expected a token of at most 1000 characters"),
        ("additional_special_tokens", "[X]", "expected a list of tokens"),
        ("extra_special_tokens", [1], 'expected an object with "content"'),
        ("added_tokens_decoder", {"x": {"content": "a"}}, "expected ids from 0 to"),
        ("added_tokens_decoder", {"4294967296": {"content": "a"}}, "expected ids from 0 to"),
        ("added_tokens_decoder", {"3": "a"}, 'expected an object with "content"'),
        ("added_tokens_decoder", {"3": {"content": "a", "lstrip": "yes"}}, "lstrip: expected true or false"),
        ("added_tokens_decoder", {"3": {"content": "a", "colour": 1}}, "unknown flag 'colour'"),
        ("fast_tokenizer_files", ["tokenizer.4.0.json"], "expected only tokenizer.json"),
    ],
)
def test_values_of_the_wrong_kind(key: str, value: object, message: str, tmp_path: Path) -> None:
    folder = set_config(write_bert(tmp_path), **{key: value})
    with pytest.raises(ConfigError, match=rf"tokenizer_config\.json: .*{key}.*: {message}") as caught:
        load_tokenizer(folder)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_unknown_and_ignored_settings_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = set_config(
        write_bert(tmp_path), do_basic_tokenize=True, never_split=None, name_or_path="x", chat_template="y"
    )
    load_tokenizer(folder)
    assert caplog.records == []
    set_config(folder, do_basic_tokenize=False, wordpiece_size=3, lower="yes")
    load_tokenizer(folder)
    messages = [record.getMessage().split("tokenizer_config.json: ")[-1] for record in caplog.records]
    assert messages == [
        "ignored, as in transformers 5: do_basic_tokenize",
        "unknown settings are ignored: 'lower', 'wordpiece_size'",
    ]
    assert all(record.levelno == logging.WARNING for record in caplog.records)


def test_added_tokens_whose_ids_do_not_fit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_bert(tmp_path)
    write_json(folder / "added_tokens.json", {"<new>": 3})
    raw = load_tokenizer(folder).raw
    assert raw.token_to_id("<new>") == raw.get_vocab_size(with_added_tokens=False)
    assert "added_tokens.json: ids of added tokens differ from the vocabulary" in caplog.text
    assert "'<new>' has id 3 there and" in caplog.text
    write_json(folder / "added_tokens.json", {"<new>": "3"})
    with pytest.raises(ConfigError, match=r"added_tokens\.json: '<new>': expected an id"):
        load_tokenizer(folder)


def test_special_tokens_that_are_not_in_the_vocabulary(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = set_config(write_bert(tmp_path), pad_token="<nothing>")
    assert load_tokenizer(folder).pad_token_id == 71
    assert "special tokens are not in the vocabulary and get new ids at its end" in caplog.text
    assert "'<nothing>'" in caplog.text


# -- old vocabulary files ---------------------------------------------------------------------------------------------


def vocabulary_of(folder: Path, content: bytes) -> dict[str, int]:
    (folder / "vocab.txt").write_bytes(content)
    found: dict[str, int] = load_tokenizer(folder).raw.get_vocab(with_added_tokens=False)
    return found


def test_lines_of_vocab_txt(tmp_path: Path) -> None:
    folder = write_bert(tmp_path)
    head = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"
    specials = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
    assert vocabulary_of(folder, head + b"a\nb") == {**specials, "a": 5, "b": 6}
    assert vocabulary_of(folder, (head + b"a\nb\n").replace(b"\n", b"\r\n")) == {**specials, "a": 5, "b": 6}
    assert vocabulary_of(folder, head + b"a \nb\xe3\x80\x80\n") == {**specials, "a": 5, "b": 6}
    assert vocabulary_of(folder, head + b"a\n\n") == {**specials, "a": 5, "": 6}
    assert vocabulary_of(folder, head + b"a\nb\na\n") == {**specials, "b": 6, "a": 7}
    with pytest.raises(ModelFormatError, match=r"vocab\.txt: expected no byte order mark"):
        vocabulary_of(folder, b"\xef\xbb\xbf" + head)
    with pytest.raises(ModelFormatError, match=r"vocab\.txt: expected UTF-8, got invalid"):
        vocabulary_of(folder, head + b"\xff\n")


def test_lines_of_merges_txt(tmp_path: Path) -> None:
    folder = write_gpt2(tmp_path)
    merges = (folder / "merges.txt").read_bytes()
    for content in (merges + b"\n\n", merges.replace(b"\n", b"\r\n"), merges.split(b"\n", 1)[1]):
        (folder / "merges.txt").write_bytes(content)
        assert tokens(folder, "hello") == ["hello"]
    for content, line in ((merges + b"a b c\n", 11), (b"a\n" + merges, 1)):
        (folder / "merges.txt").write_bytes(content)
        with pytest.raises(ModelFormatError, match=rf"merges\.txt: line {line}: expected two tokens"):
            load_tokenizer(folder)
    (folder / "merges.txt").write_bytes(merges + b"xx yy\n")
    with pytest.raises(ModelFormatError, match=r"vocab\.json: .*out of vocabulary"):
        load_tokenizer(folder)
    (folder / "merges.txt").unlink()
    with pytest.raises(ConfigError, match=r"expected tokenizer\.json or vocab\.json and merges\.txt, which GPT2Tok"):
        load_tokenizer(folder)


@pytest.mark.torch
def test_vocab_txt_as_in_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = write_bert(tmp_path)
    head = (folder / "vocab.txt").read_bytes()
    for content in (head + b"\n", head + b"zz \n\nyy\n", head.replace(b"\n", b"\r\n"), head + b"good\n", head[:-1]):
        (folder / "vocab.txt").write_bytes(content)
        theirs = transformers.BertTokenizer.from_pretrained(folder)
        ours = load_tokenizer(folder)
        assert ours.raw.get_vocab(True) == theirs.get_vocab()
        assert ours.raw.encode("good zz yy films").ids == theirs.encode("good zz yy films")


def test_byte_order_marks_of_json_files(tmp_path: Path) -> None:
    folder = write_gpt2(tmp_path)
    expected = load_tokenizer(folder).encode("the hello")
    load_tokenizer(folder).raw.save(str(folder / "tokenizer.json"))
    for name in ("vocab.json", "tokenizer_config.json", "tokenizer.json"):
        (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    assert load_tokenizer(folder).encode("the hello") == expected
    (folder / "tokenizer.json").unlink()
    assert load_tokenizer(folder).encode("the hello") == expected


# -- health -----------------------------------------------------------------------------------------------------------


def test_a_tokenizer_that_makes_no_tokens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_gpt2(tmp_path)
    write_json(folder / "vocab.json", {"<|endoftext|>": 0})
    (folder / "merges.txt").write_text("#version: 0.2\n")
    load_tokenizer(folder)
    assert "the tokenizer finds no tokens in any test text" in caplog.text


def test_a_vocabulary_far_smaller_than_the_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_bert(tmp_path)
    write_json(folder / "config.json", {"model_type": "bert", "vocab_size": 700})
    load_tokenizer(folder)
    assert caplog.text == ""
    write_json(folder / "config.json", {"model_type": "bert", "vocab_size": 30522})
    load_tokenizer(folder)
    assert "the tokenizer has 71 tokens, and the model has 30522 ids" in caplog.text


# -- files that do not belong to a tokenizer
# ------------------------------------------------------------------------------


def test_nothing_to_read(tmp_path: Path) -> None:
    assert not has_tokenizer(tmp_path)
    with pytest.raises(ConfigError, match=r"expected tokenizer\.json, tokenizer\.model, .* found no tokenizer file"):
        load_tokenizer(tmp_path)
    write_json(tmp_path / "config.json", {"model_type": "xlm-roberta"})
    with pytest.raises(ConfigError, match=r"expected tokenizer\.json or sentencepiece\.bpe\.model, which XLMRob"):
        load_tokenizer(tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"; found spiece\.model, which this tokenizer class does not read"):
        load_tokenizer(tmp_path)
    (tmp_path / "tekken.json").write_text("{}")
    assert has_tokenizer(tmp_path)
    with pytest.raises(ConfigError, match=r"tekken\.json: files of this kind are not supported"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "config.json"])
def test_files_of_the_wrong_kind_or_size(name: str, tmp_path: Path) -> None:
    folder = write_gpt2(tmp_path)
    path = folder / name
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(6 * 2**30)  # a sparse file
    with pytest.raises(ModelFormatError, match=rf"{name}: expected at most 67108864 bytes"):
        load_tokenizer(folder)
    for make in (os.mkfifo, os.mkdir):
        path.unlink()
        make(path)
        with pytest.raises(ModelFormatError, match=rf"{name}: .*expected a"):
            load_tokenizer(folder)
    path.rmdir()
    path.symlink_to(folder / "nowhere")
    with pytest.raises(FastattnError, match=name):
        load_tokenizer(folder)
