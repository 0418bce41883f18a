"""The tokenizer's arguments and attributes: correct values recorded from transformers 5, and typed errors."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastattn.api.auto_tokenizer import AutoTokenizer
from fastattn.errors import ConfigError, DTypeError, FastattnError, InputError, ModelNotFoundError
from fastattn.tokenizer import BatchEncoding, Tokenizer
from tests.reference.names import short_repr
from tests.tasks.tokenizers import write_bert, write_gpt2

MAX_MESSAGE_CHARS = 500


@pytest.fixture
def bert(tmp_path: Path) -> Tokenizer:
    return AutoTokenizer.from_pretrained(write_bert(tmp_path))


@pytest.fixture
def gpt2(tmp_path: Path) -> Tokenizer:
    return AutoTokenizer.from_pretrained(write_gpt2(tmp_path / "gpt2"))


# -- what calls return ------------------------------------------------------------------------------------------


def test_ids_are_lists_of_int(bert: Tokenizer) -> None:
    ids = bert.encode("good film") + bert.encode("a", add_special_tokens=False)
    assert ids == [2, 57, 59, 3, 5]
    assert json.dumps(ids) == "[2, 57, 59, 3, 5]"
    assert json.loads(json.dumps(bert(["good", "a film"], padding=True))) == {
        "input_ids": [[2, 57, 3, 0], [2, 5, 59, 3]],
        "token_type_ids": [[0, 0, 0, 0], [0, 0, 0, 0]],
        "attention_mask": [[1, 1, 1, 0], [1, 1, 1, 1]],
    }
    array = bert.encode("good film", return_tensors="np")
    assert (array.dtype, array.tolist()) == (np.int64, [[2, 57, 59, 3]])


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (True, ["[CLS]", "good", "film", "[SEP]", "bad", "dog", "[SEP]"]),
        ("longest_first", ["[CLS]", "good", "film", "[SEP]", "bad", "dog", "[SEP]"]),
        ("only_first", ["[CLS]", "good", "[SEP]", "bad", "dog", "##s", "[SEP]"]),
        ("only_second", ["[CLS]", "good", "film", ".", "[SEP]", "bad", "[SEP]"]),
        ("do_not_truncate", ["[CLS]", "good", "film", ".", "[SEP]", "bad", "dog", "##s", "[SEP]"]),
        (False, ["[CLS]", "good", "film", ".", "[SEP]", "bad", "dog", "##s", "[SEP]"]),
    ],
)
def test_truncation_strategies(bert: Tokenizer, strategy: Any, expected: list[str]) -> None:
    assert bert("good film.", "bad dogs", truncation=strategy, max_length=7).tokens() == expected
    ids = bert.encode_batch([("good film.", "bad dogs")], truncation=strategy, max_length=7)[0][0]
    assert bert.convert_ids_to_tokens(ids) == expected


def test_max_length_alone_truncates_and_padding_keeps_it_off(bert: Tokenizer) -> None:
    assert bert.encode("a a a a", max_length=4) == [2, 5, 5, 3]
    assert bert.encode("a a a a", max_length=4, padding=True) == [2, 5, 5, 5, 5, 3]
    assert bert.encode("a", max_length=6, padding="max_length") == [2, 5, 3, 0, 0, 0]


def test_overflow(bert: Tokenizer) -> None:
    found = bert(["a good film", "cat"], max_length=4, truncation=True, stride=1, return_overflowing_tokens=True)
    assert found.input_ids == [[2, 5, 57, 3], [2, 57, 59, 3], [2, 61, 3]]
    assert found.overflow_to_sample_mapping == [0, 0, 1]


def test_words_and_offsets(bert: Tokenizer) -> None:
    found = bert(["dogs", "good"], is_split_into_words=True, return_offsets_mapping=True, return_length=True)
    assert found.tokens() == ["[CLS]", "dog", "##s", "good", "[SEP]"]
    assert found.word_ids() == [None, 0, 0, 1, None]
    assert found.offset_mapping == [(0, 0), (0, 3), (3, 4), (0, 4), (0, 0)]
    assert found.length == [5]
    assert found.word_to_tokens(0) == (1, 3)
    assert found.token_to_chars(2) == (3, 4)


def test_maps_count_pads(bert: Tokenizer) -> None:
    found = bert(["good dogs", "a"], padding=True, padding_side="left", pad_to_multiple_of=4)
    assert found.tokens(1) == ["[PAD]"] * 5 + ["[CLS]", "a", "[SEP]"]
    assert found.char_to_token(1, 0) == 6
    assert found.word_ids(1) == [None] * 6 + [0, None]
    assert found.token_to_chars(1, 6) == (0, 1)
    assert found.token_to_chars(1, 0) is None
    assert found.token_to_word(1, -2) == 0
    again = pickle.loads(pickle.dumps(copy.deepcopy(found)))
    assert (dict(again), again.tokens(1)) == (dict(found), found.tokens(1))
    assert found[0].tokens == ["[CLS]", "good", "dog", "##s", "[SEP]"]
    with pytest.raises(InputError, match="batch_index: expected -2 to 1, got 2"):
        found.tokens(2)
    with pytest.raises(AttributeError, match="did you mean 'input_ids'"):
        _ = found.inputs_ids


def test_pairs_are_read_as_in_transformers(bert: Tokenizer) -> None:
    good, bad, pair = bert.encode("good"), bert.encode("bad"), bert.encode("good", "bad")
    assert bert(["good", "bad"]).input_ids == bert(("good", "bad")).input_ids == [good, bad]
    assert bert([("good", "bad")]).input_ids == bert([["good", "bad"]]).input_ids == [pair]
    assert bert([("good", "bad"), "bad"]).input_ids == [pair, bad]
    assert bert(["good"], ["bad"]).input_ids == [pair]
    assert bert("good", "").input_ids == good  # an empty second text counts as none
    assert bert([("good", "")]).input_ids == [[2, 57, 3, 3]]
    assert bert([["a", "cat", "run"]], is_split_into_words=True).input_ids == [bert.encode("a cat run")]


def test_pad(bert: Tokenizer) -> None:
    padded = bert.pad([bert("good"), bert("a film")], return_tensors="np")
    assert padded.input_ids.tolist() == [[2, 57, 3, 0], [2, 5, 59, 3]]
    assert padded.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert bert.pad({"input_ids": np.array([2, 3])}, padding="max_length", max_length=3).input_ids.tolist() == [2, 3, 0]
    with pytest.raises(InputError, match="expected the column 'input_ids'"):
        bert.pad({"ids": [1]})
    with pytest.raises(InputError, match=r"attention_mask: expected 2 rows, as many as in input_ids, got 1"):
        bert.pad({"input_ids": [[1], [2, 3]], "attention_mask": [[1]]})
    with pytest.raises(InputError, match="expected the result of a tokenizer call"):
        padded.tokens()


def test_decode(bert: Tokenizer, gpt2: Tokenizer) -> None:
    ids = bert.encode("good film!")
    assert bert.decode(ids) == "[CLS] good film! [SEP]"
    assert bert.decode(ids, True) == bert.decode(np.array(ids), skip_special_tokens=True) == "good film!"
    assert bert.decode(57) == bert.decode(np.int32(57)) == bert.decode(np.array(57)) == "good"
    assert bert.decode([[57], [59, 57]]) == bert.batch_decode(iter([[57], [59, 57]])) == ["good", "film good"]
    assert bert.decode(np.array([[57], [59]])) == ["good", "film"]
    assert bert.decode(bert("good")) == "[CLS] good [SEP]"
    assert bert.batch_decode([]) == []
    assert bert.decode([57, 9999, 59]) == "good film"
    assert gpt2.decode(gpt2.encode("a ."), clean_up_tokenization_spaces=True) == "a ."  # never for BPE
    bert.clean_up_tokenization_spaces = True
    assert bert.clean_up_tokenization("do n't , he 's") == "don't, he's"
    assert bert.convert_tokens_to_string(["dog", "##s"]) == "dogs"
    assert gpt2.convert_tokens_to_string(gpt2.tokenize("the hello")) == "the hello"
    assert bert.decode([57, 70], clean_up_tokenization_spaces=False) == bert.decode([57, 70])


def test_tokens_and_ids(bert: Tokenizer, gpt2: Tokenizer) -> None:
    assert bert.convert_ids_to_tokens(57) == "good"
    assert bert.convert_ids_to_tokens(np.array([2, 57]), skip_special_tokens=True) == ["good"]
    assert bert.convert_ids_to_tokens([57, 9999]) == ["good", None]
    assert bert.convert_tokens_to_ids("good") == 57
    assert bert.convert_tokens_to_ids(["good", "no such"]) == [57, bert.unk_token_id]
    assert (bert.all_special_ids, bert.all_special_tokens) == (
        [1, 3, 0, 2, 4],
        ["[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"],
    )
    assert gpt2.special_tokens_map == dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    assert (bert.model_max_length, bert.model_input_names) == (64, ["input_ids", "token_type_ids", "attention_mask"])
    assert (bert.num_special_tokens_to_add(), bert.num_special_tokens_to_add(pair=True)) == (2, 3)
    assert bert.get_special_tokens_mask([2, 57, 3], already_has_special_tokens=True) == [1, 0, 1]
    assert (bert.is_fast, bool(bert), bert.padding_side, bert.truncation_side) == (True, True, "right", "right")


# -- attributes -------------------------------------------------------------------------------------------------


def test_special_tokens_are_set_with_effect(gpt2: Tokenizer) -> None:
    with pytest.raises(InputError, match="no pad token"):
        gpt2(["a", "b c"], padding=True)
    gpt2.pad_token = gpt2.eos_token
    assert (gpt2.pad_token, gpt2.pad_token_id) == ("<|endoftext|>", 265)
    assert gpt2(["a", "bb"], padding=True).input_ids == [[97, 265], [98, 98]]
    gpt2.pad_token_id = 97
    assert (gpt2.pad_token, gpt2.pad_token_id) == ("a", 97)
    gpt2.pad_token = None
    assert (gpt2.pad_token, gpt2.pad_token_id) == (None, None)


def test_new_tokens(gpt2: Tokenizer) -> None:
    from tokenizers import AddedToken

    assert gpt2.add_special_tokens({"pad_token": "[PAD]", "extra_special_tokens": ["<a>", "<|endoftext|>"]}) == 2
    assert (gpt2.pad_token_id, gpt2.extra_special_tokens_ids, len(gpt2), gpt2.vocab_size) == (266, [267, 265], 268, 266)
    assert gpt2.encode("a<a>[PAD]") == [97, 267, 266]
    assert gpt2.decode([97, 267, 266], skip_special_tokens=True) == "a"
    assert gpt2.add_tokens(["xyz", AddedToken("Q", lstrip=True)]) == 2
    assert gpt2.encode("axyz Q") == [97, 268, 81]
    assert gpt2.decode([268, 97], skip_special_tokens=True) == "xyza"
    assert gpt2.encode("<a>", split_special_tokens=True) == [ord("<"), ord("a"), ord(">")]
    assert gpt2.id_limit == 269
    assert gpt2.add_tokens([]) == gpt2.add_special_tokens({}) == 0


def test_settings_are_set_with_effect(bert: Tokenizer) -> None:
    text = "a cat run good"
    bert.model_max_length = 4
    assert bert.encode(text, truncation=True) == bert.encode("a cat")
    bert.truncation_side = "left"
    assert bert.encode(text, truncation=True) == bert.encode("run good")
    bert.padding_side = "left"
    assert bert.encode("a", padding="max_length") == [0, 2, 5, 3]
    bert.model_input_names = ["input_ids", "attention_mask"]
    assert list(bert("a")) == ["input_ids", "attention_mask"]
    bert.model_max_length = int(1e30)
    assert bert.options.model_max_length is None


def test_without_a_limit_nothing_is_cut(bert: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    bert.model_max_length = None  # type: ignore[assignment]
    assert bert.model_max_length == int(1e30)
    with caplog.at_level(logging.WARNING, "fastattn"):
        assert bert.encode("a " * 100, truncation=True) == [2, *[5] * 100, 3]
    assert "truncation is ignored: the tokenizer has no model_max_length" in caplog.text


@pytest.mark.parametrize(
    ("name", "value", "kind", "message"),
    [
        ("pad_token", "<new>", InputError, "expected a token in the vocabulary, got '<new>'; add it with"),
        ("pad_token", 3, DTypeError, "expected str or AddedToken"),
        ("pad_token", "", InputError, "expected a token of 1 to"),
        ("sep_token_id", -7, InputError, "expected 0 to"),
        ("sep_token_id", 9999, InputError, "expected an id of the vocabulary, got 9999"),
        ("sep_token_id", "3", DTypeError, "expected int"),
        ("extra_special_tokens", "a", DTypeError, "expected a list of tokens"),
        ("extra_special_tokens", ["<no>"], InputError, "add it with tok.add_special_tokens"),
        ("model_max_length", 0, InputError, "expected 1 to"),
        ("model_max_length", float("nan"), DTypeError, "expected int"),
        ("model_max_length", "5", DTypeError, "expected int"),
        ("padding_side", "both", InputError, "expected one of 'left', 'right'"),
        ("truncation_side", None, DTypeError, "expected one of"),
        ("clean_up_tokenization_spaces", "false", DTypeError, "expected True or False"),
        ("split_special_tokens", 1, DTypeError, "expected True or False"),
        ("model_input_names", "input_ids", DTypeError, "expected a list of str"),
        ("pad_tokn", "x", AttributeError, "did you mean 'pad_token'"),
        ("additional_special_tokens", ["x"], AttributeError, "cannot be set; set extra_special_tokens"),
        ("do_lower_case", True, AttributeError, "cannot be set; it is a setting of the tokenizer's files"),
        ("vocab_size", 3, AttributeError, "cannot be set"),
        ("all_special_ids", [1], AttributeError, "cannot be set"),
    ],
)
def test_refused_attributes(bert: Tokenizer, name: str, value: Any, kind: type[Exception], message: str) -> None:
    before = bert.options
    with pytest.raises(kind, match=message):
        setattr(bert, name, value)
    assert bert.options is before


def test_unknown_attributes(bert: Tokenizer) -> None:
    with pytest.raises(AttributeError, match="did you mean 'mask_token'"):
        _ = bert.masc_token  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match=r"call the tokenizer: tok\(text\)"):
        _ = bert.encode_plus  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="expected a tokenizer with a chat_template, got one without"):
        bert.apply_chat_template([{"role": "user", "content": "a"}])
    assert bert.chat_template is None


# -- arguments --------------------------------------------------------------------------------------------------

ODD = [float("nan"), 10**400, Decimal(3), "3", 2.0, np.array(3.0), object(), b"1", [3], True, -1]


@pytest.mark.parametrize("value", ODD, ids=short_repr)
@pytest.mark.parametrize("name", ["max_length", "stride", "pad_to_multiple_of", "max_target_length"])
def test_odd_counts(bert: Tokenizer, name: str, value: Any) -> None:
    with pytest.raises((DTypeError, InputError), match=rf"^(max_length|{name}): expected") as caught:
        bert("a", truncation=True, **{"max_length": 5, name: value})
    assert len(str(caught.value)) < MAX_MESSAGE_CHARS
    if name == "max_length":
        with pytest.raises((DTypeError, InputError), match=r"^max_length: expected"):
            bert.encode_batch(["a"], max_length=value)


@pytest.mark.parametrize("value", ["false", "True", 1, 0, 1.0, [], object()], ids=short_repr)
@pytest.mark.parametrize(
    "name",
    [
        "add_special_tokens", "truncation", "padding", "is_split_into_words", "return_overflowing_tokens",
        "return_attention_mask", "return_token_type_ids", "return_special_tokens_mask", "return_offsets_mapping",
        "return_length", "split_special_tokens", "verbose",
    ],
)  # fmt: skip
def test_strings_and_numbers_are_not_flags(bert: Tokenizer, name: str, value: Any) -> None:
    with pytest.raises((DTypeError, InputError), match=f"^{name}: expected"):
        bert("a", **{name: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truncate": True}, "unknown keyword 'truncate'; did you mean 'truncation'"),
        ({"return_tensor": "np"}, "did you mean 'return_tensors'"),
        ({"pad_to_max_length": True}, "unknown keyword 'pad_to_max_length'"),
        ({"return_tensors": "pt"}, "expected \"np\" or None, got 'pt'; fastattn works with lists and NumPy"),
        ({"return_tensors": "numpy"}, "expected one of 'np', got 'numpy'"),
        ({"tokenizer_kwargs": {}}, "pass its items as keywords"),
        ({"padding": "max"}, "expected one of 'longest', 'max_length', 'do_not_pad', got 'max'"),
        ({"truncation": "only_third"}, "did you mean 'only_first'"),
        ({"padding_side": "up"}, "expected one of 'left', 'right'"),
        ({"truncation": True, "max_length": 1}, "expected room for the 2 special tokens, got 1"),
        ({"truncation": True, "max_length": 5, "stride": 3}, "stride: expected less than the 3 tokens"),
        ({"truncation": True, "max_length": 5, "padding": True, "pad_to_multiple_of": 4}, "a divisor of max_length"),
        ({"padding": "max_length", "max_length": 2**31 - 1}, "padding: expected at most 67108864 ids in one batch"),
        ({"padding": True, "pad_to_multiple_of": 2**31 - 1}, "got 1 rows of 2147483647"),
        ({"truncation": "only_second", "max_length": 4}, '"only_second" needs a pair'),
    ],
)
def test_refused_arguments(bert: Tokenizer, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        bert("a a a a", **options)


def test_enumerations_of_transformers_count_as_their_values(bert: Tokenizer) -> None:
    import enum

    class Strategy(str, enum.Enum):
        FIRST = "only_first"
        LONGEST = "longest"
        NUMPY = "np"

    options: Any = {"truncation": Strategy.FIRST, "padding": Strategy.LONGEST, "return_tensors": Strategy.NUMPY}
    assert bert("a a a", max_length=4, **options).input_ids.tolist() == [[2, 5, 5, 3]]


def test_ragged_arrays_are_refused(bert: Tokenizer) -> None:
    with pytest.raises(InputError, match="input_ids: rows have 3 to 4 items; an array needs padding=True"):
        bert(["a", "a cat"], return_tensors="np")


@pytest.mark.parametrize(
    "ids", ["abc", 1.5, None, [1.0], [None], ["a"], [True], {1, 2}, [1, [2]], [[1], 2], [[[1]]]], ids=short_repr
)
def test_odd_ids(bert: Tokenizer, ids: Any) -> None:
    with pytest.raises((DTypeError, InputError), match="token_ids"):
        bert.decode(ids)


def test_arrays_of_ids_without_memory(bert: Tokenizer) -> None:
    for shape in ((2**40,), (2**20, 2**20), (2**27, 0)):
        with pytest.raises(InputError, match="token_ids: expected at most"):
            bert.decode(np.broadcast_to(np.int64(1), shape))


# -- copies and other libraries ---------------------------------------------------------------------------------


def _same(a: Tokenizer, b: Tokenizer) -> None:
    text = "a good [MASK] film xyz <new>"
    assert dict(a(text, "dogs")) == dict(b(text, "dogs"))
    assert (a.options, a.get_vocab(), a.skipped_ids, a.pad_token_id) == (
        b.options,
        b.get_vocab(),
        b.skipped_ids,
        b.pad_token_id,
    )


def test_copies(bert: Tokenizer) -> None:
    bert.add_special_tokens({"pad_token": "<new>"})
    bert.padding_side = "left"
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        _same(pickle.loads(pickle.dumps(bert, protocol)), bert)
    for again in (copy.copy(bert), copy.deepcopy(bert)):
        _same(again, bert)
        again.pad_token = "a"
        again.add_tokens("xyz")
        assert (bert.pad_token, again.pad_token, len(again) - len(bert)) == ("<new>", "a", 1)


def test_another_process(bert: Tokenizer) -> None:
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(bert.encode, ["good film", "a"]) == [bert.encode("good film"), bert.encode("a")]


def test_save_and_load(bert: Tokenizer, tmp_path: Path) -> None:
    bert.add_special_tokens({"pad_token": "<new>", "extra_special_tokens": ["<a>"]})
    bert.padding_side, bert.model_max_length = "left", 9
    paths = bert.save_pretrained(tmp_path / "saved")
    assert [Path(path).name for path in paths] == ["tokenizer_config.json", "tokenizer.json"]
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    text = "Good <a> [MASK] films"
    assert dict(again(text, "dogs")) == dict(bert(text, "dogs"))
    assert (again.special_tokens_map, again.extra_special_tokens) == (bert.special_tokens_map, ["<a>"])
    assert (again.padding_side, again.model_max_length, again.pad_token_id) == ("left", 9, bert.pad_token_id)
    with pytest.raises(InputError, match="save_directory: expected a folder"):
        bert.save_pretrained(paths[0])


def test_objects_of_the_tokenizers_library(bert: Tokenizer) -> None:
    import tokenizers

    raw = tokenizers.Tokenizer.from_str(bert.raw.to_str())
    raw.enable_padding(pad_token="[PAD]", pad_id=0, direction="left")
    raw.enable_truncation(5)
    found = Tokenizer.from_object(raw)
    assert (found.pad_token, found.padding_side, found.model_max_length) == ("[PAD]", "left", 5)
    assert dict(found("good", "bad film")) == dict(bert("good", "bad film"))
    assert raw.truncation is not None
    raw.add_tokens(["xyz"])
    assert len(found) == len(bert)
    assert Tokenizer.from_object(bert) is bert


def test_objects_that_are_not_tokenizers(bert: Tokenizer) -> None:
    class Slow:
        def convert_tokens_to_ids(self) -> None: ...

    for value in (42, None, "name", object()):
        with pytest.raises(DTypeError, match=r"^tokenizer: expected a folder, a hub id, a Tokenizer"):
            Tokenizer.from_object(value)
    with pytest.raises(DTypeError, match=r"^it: expected a fast tokenizer, got Slow, which is written in Python; save"):
        Tokenizer.from_object(Slow(), "it")


def test_threads_with_different_arguments(bert: Tokenizer) -> None:
    text = "a good film and cats run . " * 3
    wanted = {n: bert.encode(text, truncation=True, max_length=n) for n in range(4, 20)}

    def work(n: int) -> bool:
        return all(
            bert.encode(text, truncation=True, max_length=n, split_special_tokens=bool(i % 2)) == wanted[n]
            for i in range(50)
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, wanted))


# -- AutoTokenizer ----------------------------------------------------------------------------------------------


def test_settings_as_keywords(tmp_path: Path) -> None:
    folder = write_bert(tmp_path)
    found = AutoTokenizer.from_pretrained(
        folder, use_fast=True, trust_remote_code=False, padding_side="left", truncation_side="left",
        model_max_length=4, pad_token="a", do_lower_case=False, extra_special_tokens=["film"], image_token="cat",
    )  # fmt: skip
    assert found.encode("Good", padding="max_length") == [5, 2, 1, 3]
    assert found.encode("a cat run good", truncation=True) == found.encode("run good")
    assert (found.extra_special_tokens, found.image_token, found.image_token_id) == (["film"], "cat", 61)
    assert found.name_or_path == str(folder)
    gpt2 = AutoTokenizer.from_pretrained(write_gpt2(tmp_path / "gpt2"), add_prefix_space=True, add_bos_token=True)
    assert gpt2.encode("the") == [265, gpt2.convert_tokens_to_ids("Ġthe")]


def test_bos_as_a_keyword_applies_to_tokenizer_json(gpt2: Tokenizer, tmp_path: Path) -> None:
    gpt2.save_pretrained(tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved", add_eos_token=True).encode("a") == [97, 265]
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").encode("a") == [97]


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"do_lowercase": True}, InputError, "did you mean 'do_lower_case'"),
        ({"padding_sid": "left"}, InputError, "did you mean 'padding_side'"),
        ({"gguf_file": "a"}, ModelNotFoundError, "a: expected a GGUF file, found none"),
        ({"gguf_file": 3}, DTypeError, "gguf_file: expected str"),
        ({"add_prefix_space": True}, InputError, r"add_prefix_space: the tokenizer of .* does not use this setting"),
        ({"padding_side": "lft"}, InputError, "did you mean 'left'"),
        ({"model_max_length": "9"}, DTypeError, "model_max_length: expected int"),
        ({"do_lower_case": "false"}, DTypeError, "do_lower_case: expected True or False"),
        ({"pad_token": 3}, DTypeError, "pad_token: expected str or AddedToken"),
        ({"use_fast": "yes"}, DTypeError, "use_fast: expected True or False"),
        ({"extra_special_tokens": "a"}, DTypeError, "extra_special_tokens: expected a list"),
        ({"subfolder": "../x"}, InputError, "subfolder: expected a folder inside the model's"),
        ({"subfolder": "x"}, ModelNotFoundError, "x: expected the subfolder of a model, found none"),
        ({"force_download": True}, InputError, "force_download: expected False, got True; delete the model"),
        ({"force_download": "yes"}, DTypeError, "force_download: expected True or False"),
        ({"proxies": {"https": "a"}}, InputError, "set HTTPS_PROXY"),
        ({"token": "a", "use_auth_token": "b"}, InputError, "use_auth_token: expected None, because token is set"),
        ({"token": 3}, DTypeError, "token: expected str, True, False or None"),
        ({"pretrained_model_name_or_path": "b"}, InputError, "expected None, because path is set"),
    ],
)
def test_refused_keywords(tmp_path: Path, options: Any, kind: type[FastattnError], message: str) -> None:
    with pytest.raises(kind, match=message):
        AutoTokenizer.from_pretrained(write_bert(tmp_path), **options)


def test_keywords_of_transformers_that_change_nothing(tmp_path: Path) -> None:
    found = AutoTokenizer.from_pretrained(
        pretrained_model_name_or_path=write_bert(tmp_path), use_auth_token=None, force_download=False, proxies=None,
        trust_remote_code=None, use_fast=None, resume_download=True, subfolder=None, token=False,
    )  # fmt: skip
    assert found.encode("good") == [2, 57, 3]
    assert found.name_or_path == str(tmp_path)


def test_subfolder(tmp_path: Path) -> None:
    write_bert(tmp_path / "a" / "tokenizer")
    found = AutoTokenizer.from_pretrained(tmp_path / "a", subfolder="tokenizer")
    assert isinstance(found("good"), BatchEncoding)
    assert found.encode("good") == [2, 57, 3]
