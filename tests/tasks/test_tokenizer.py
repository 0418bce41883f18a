"""The tokenizers: shapes of results, special tokens, truncation, decoding."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastattn.api.auto_tokenizer import AutoTokenizer
from fastattn.errors import ConfigError, DTypeError, InputError, ModelFormatError
from fastattn.generation.detokenizer import Detokenizer
from fastattn.tokenizer import Tokenizer, load_tokenizer
from fastattn.tokenizer.truncation import longest_first
from tests.reference.hang import HANG_SECONDS
from tests.tasks.tokenizers import write_bert, write_gpt2, write_roberta

TEXTS = ["the hello", "", " \n\n", "Ünïcode 😁 cats", "a\0b", "<|endoftext|> the"]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_gpt2(tmp_path_factory.mktemp("gpt2")))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_bert(tmp_path_factory.mktemp("bert")))


@pytest.mark.parametrize("text", TEXTS)
def test_gpt2_round_trip(gpt2: Tokenizer, text: str) -> None:
    ids = gpt2.encode(text)
    assert all(type(i) is int for i in ids)
    assert gpt2.decode(ids) == text


def test_gpt2_special_tokens(gpt2: Tokenizer) -> None:
    assert gpt2.eos_token_id == gpt2.bos_token_id == gpt2.vocab_size - 1 == 265
    assert gpt2.pad_token_id is None
    assert gpt2.encode("<|endoftext|>") == [265]
    assert gpt2.decode([265, 104], skip_special_tokens=True) == gpt2.decode([104])


def test_bert_specials_and_types(bert: Tokenizer) -> None:
    encoding = bert("good film", "bad dogs")
    assert bert.convert_ids_to_tokens(encoding.input_ids) == [
        "[CLS]", "good", "film", "[SEP]", "bad", "dog", "##s", "[SEP]",
    ]  # fmt: skip
    assert encoding.token_type_ids == [0, 0, 0, 0, 1, 1, 1, 1]
    assert encoding.attention_mask == [1] * 8
    assert bert.decode(encoding["input_ids"], skip_special_tokens=True) == "good film bad dogs"
    assert (bert.cls_token, bert.sep_token, bert.mask_token) == ("[CLS]", "[SEP]", "[MASK]")


def test_vocabularies_with_holes(tmp_path: Path) -> None:
    """A line occurs twice: its first id has no token, and the last id is above the number of tokens."""
    path = write_bert(tmp_path) / "vocab.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:7], lines[5], *lines[7:], "last"]) + "\n")
    tokenizer = load_tokenizer(tmp_path)
    last = len(lines) + 1
    assert (len(tokenizer), tokenizer.id_limit) == (last, last + 1)
    assert tokenizer.encode("last a")[1:-1] == [last, 7]
    assert tokenizer.decode([last, 5, 7]) == "last a"
    assert tokenizer.convert_ids_to_tokens([last, 7]) == ["last", "a"]
    assert tokenizer.convert_ids_to_tokens([last, 5]) == ["last", None]
    assert tokenizer.decode([last + 1, 7]) == "a"


def test_roberta_specials(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_roberta(tmp_path))
    ids = tokenizer.encode("the", "hello")
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert tokens == ["<s>", "t", "he", "</s>", "</s>", "hello", "</s>"]
    assert "token_type_ids" not in tokenizer("the")
    assert tokenizer.pad_token_id == 1


def test_batches_and_arrays(bert: Tokenizer) -> None:
    assert bert(["good", "bad film"]).input_ids == [bert.encode("good"), bert.encode("bad film")]
    padded = bert(np.array(["good", "bad film"]), padding=True, return_tensors="np")
    assert padded.input_ids.shape == (2, 4)
    assert padded.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert padded.input_ids[0, 3] == bert.pad_token_id
    assert bert("good", return_tensors="np").input_ids.shape == (1, 3)
    assert bert([("good", "bad")]).input_ids == [bert.encode("good", "bad")]
    assert bert([], return_tensors="np").input_ids.shape == (0, 0)
    with pytest.raises(InputError, match="padding=True"):
        bert(["good", "bad film"], return_tensors="np")


def test_truncation(bert: Tokenizer) -> None:
    assert len(bert("good " * 100).input_ids) == 102
    assert len(bert("good " * 100, truncation=True).input_ids) == 64
    cut = bert("good film", "bad dogs . .", truncation=True, max_length=7)
    assert bert.convert_ids_to_tokens(cut.input_ids) == ["[CLS]", "good", "film", "[SEP]", "bad", "dog", "[SEP]"]
    with pytest.raises(InputError, match="special tokens"):
        bert("good", truncation=True, max_length=1)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 60))
def test_longest_first_is_the_librarys(n_first: int, n_second: int, room: int) -> None:
    from tokenizers import Tokenizer as Raw
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    raw = Raw(WordLevel({"x": 0, "y": 1, "?": 2}, unk_token="?"))
    raw.pre_tokenizer = Whitespace()
    raw.enable_truncation(max_length=room)
    ids = raw.encode("x " * n_first, "y " * n_second).ids
    assert longest_first(n_first, n_second, room) == (ids.count(0), ids.count(1))


def test_offsets(gpt2: Tokenizer, bert: Tokenizer) -> None:
    text = "a cat, good films"
    spans = bert.offsets(text, add_special_tokens=False)
    assert [text[a:b] for a, b in spans] == ["a", "cat", ",", "good", "film", "s"]
    assert bert.offsets("").tolist() == [[0, 0], [0, 0]]
    mapping = gpt2("the hello", return_offsets_mapping=True).offset_mapping
    assert mapping[-1][1] == len("the hello")


def test_loads_tokenizer_json_without_its_truncation(tmp_path: Path, bert: Tokenizer) -> None:
    bert.raw.enable_truncation(5)
    bert.raw.enable_padding(length=9)
    bert.raw.save(str(tmp_path / "tokenizer.json"))
    bert.raw.no_truncation()
    bert.raw.no_padding()
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "good film , bad dogs and cats"
    assert again.encode(text) == bert.encode(text)
    assert again("good").token_type_ids == [0, 0, 0]


def test_added_tokens(tmp_path: Path) -> None:
    folder = write_gpt2(tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {"266": {"content": "<pad>", "special": True}}
    config["pad_token"] = {"content": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("a<pad>") == [97, 266]
    assert tokenizer.pad_token_id == 266
    for malformed in ({"x": {"content": "<pad>"}}, {"266": "<pad>"}, {"266": {"special": True}}):
        config["added_tokens_decoder"] = malformed
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        with pytest.raises(ConfigError, match="added_tokens_decoder"):
            load_tokenizer(folder)


def test_pickles(bert: Tokenizer) -> None:
    again = pickle.loads(pickle.dumps(bert))
    assert again.encode("good film") == bert.encode("good film")


def test_nothing_to_load(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelFormatError, match="expected a tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelFormatError, match="JSON"):
        load_tokenizer(tmp_path)


def test_bad_ids(gpt2: Tokenizer) -> None:
    for ids in ([-1], [2**40], np.array([-100])):
        with pytest.raises(InputError, match=r"ids\[0\]"):
            gpt2.decode(ids)
    with pytest.raises(DTypeError):
        gpt2.decode([0.5])
    assert gpt2.decode([97, 266, 98]) == "ab"
    assert gpt2.decode([]) == ""
    assert gpt2.batch_decode([[97], [98]]) == ["a", "b"]


@settings(max_examples=200)
@given(ids=st.lists(st.one_of(st.integers(0, 265), st.sampled_from([226, 130, 172, 240, 159, 152, 128])), max_size=30))
@pytest.mark.parametrize("skip", [True, False])
def test_pieces_are_the_decoded_text_gpt2(gpt2: Tokenizer, ids: list[int], skip: bool) -> None:
    pieces = _pieces(gpt2, ids, skip)
    assert "".join(pieces) == gpt2.decode(ids, skip_special_tokens=skip)


@settings(max_examples=100)
@given(ids=st.lists(st.integers(5, 70), max_size=30))
def test_pieces_are_the_decoded_text_bert(bert: Tokenizer, ids: list[int]) -> None:
    assert "".join(_pieces(bert, ids, True)) == bert.decode(ids, skip_special_tokens=True)


def test_no_half_character(gpt2: Tokenizer) -> None:
    pieces = _pieces(gpt2, gpt2.encode("a😁é"), True)
    assert [piece for piece in pieces if piece] == ["a", "😁", "é"]


def _pieces(tokenizer: Tokenizer, ids: list[int], skip: bool) -> list[str]:
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip)
    return [detokenizer.push(i) for i in ids] + [detokenizer.flush()]


def test_silent_after_fork(tmp_path: Path) -> None:
    folder = write_gpt2(tmp_path)
    code = (
        "import os, sys\n"
        "from fastattn.tokenizer import load_tokenizer\n"
        "from pathlib import Path\n"
        "t = load_tokenizer(Path(sys.argv[1])); t(['the hello'] * 100)\n"
        "pid = os.fork()\n"
        "t(['the hello'] * 100)\n"
        "sys.exit(0 if pid == 0 else os.waitpid(pid, 0)[1])\n"
    )
    env = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        env=env,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
