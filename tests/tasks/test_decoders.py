"""Compares decoding token by token with the library's decoding of all tokens, for every decoder and every split."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models
from tokenizers import Tokenizer as RawTokenizer

from fastattn.errors import InputError
from fastattn.generation.decoders import length_of_beginning, make_decoder, make_stages, run_stages
from fastattn.generation.detokenizer import Detokenizer
from fastattn.tokenizer import Tokenizer
from fastattn.tokenizer.options import TokenizerOptions

TOKENS = [
    "a", "b", "ab", "ba", "aa", " ", "  ", " a", "a ", "▁", "▁▁", "▁a", "a▁b", "▁▁b", "##a", "##b", "##", "a##",
    "##b ##", "a</w>", "</w>", "b</w>a", "</", "w>", ".", " .", "!", "'", "n't", "'s", "'", "do", "not", "|", "<pad>",
    "|a|", "a<pad>", "<0x61>", "<0xE4>", "<0xBD>", "<0xA0>", "<0xF0>", "<0x9F>", "<0x98>", "<0x81>", "<0x20>", "<0xzz>",
    "<0x+f>", "Ġa", "Ġ", "ä", "½", "ł", "ð", "Ł", "ĺ", "ģ", "Ã", "©", "é", "你", "\ufffd", "日本", "x\ny", "\n", "Ċ",
]  # fmt: skip
SIMPLE: dict[str, Any] = {
    "none": None,
    "ByteLevel": decoders.ByteLevel(),
    "WordPiece": decoders.WordPiece(),
    "WordPiece, no clean-up": decoders.WordPiece(prefix="a", cleanup=False),
    "Metaspace": decoders.Metaspace(),
    "Metaspace, never": decoders.Metaspace(prepend_scheme="never"),
    "BPEDecoder": decoders.BPEDecoder(),
    "CTC": decoders.CTC(),
    "CTC, no clean-up": decoders.CTC(cleanup=False),
    "Replace": decoders.Replace("a", " b"),
    "Replace, regular expression": decoders.Replace(Regex("a+|▁"), "b"),
    "Fuse": decoders.Fuse(),
    "Strip": decoders.Strip("a", 2, 0),
    "ByteFallback": decoders.ByteFallback(),
}
LLAMA = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
SEQUENCES: dict[str, Any] = {
    "Llama": decoders.Sequence(LLAMA),
    "Gemma": decoders.Sequence(LLAMA[:3]),
    "CLIP": decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " "), decoders.Strip(" ", 1, 1)]),
    "nested": decoders.Sequence([decoders.Sequence([decoders.WordPiece(), LLAMA[2]]), decoders.Replace("ba", "")]),
    "strip both ends": decoders.Sequence([decoders.Fuse(), decoders.Strip("a", 2, 1), decoders.Replace("aab", "aaa")]),
    "after everything": decoders.Sequence([*[decoders.Fuse(), decoders.Replace(Regex("a.*b"), "c")], LLAMA[3]]),
    "words, then one text": decoders.Sequence([decoders.Fuse(), decoders.WordPiece()]),
}  # fmt: skip
DECODERS = {**SIMPLE, **SEQUENCES}


def make_raw(decoder: Any) -> RawTokenizer:
    """Return a tokenizer with TOKENS, then two special tokens, then an id without a token."""
    vocab = {token: i for i, token in enumerate(dict.fromkeys(TOKENS))}
    raw = RawTokenizer(models.WordLevel(vocab, unk_token="a"))
    raw.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    if decoder is not None:
        raw.decoder = decoder
    return raw


RAW = {name: make_raw(decoder) for name, decoder in DECODERS.items()}
N_IDS = RAW["none"].get_vocab_size() + 1
IDS = st.lists(st.integers(0, N_IDS - 1), max_size=30)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("clean", [False, True])
@given(prompt=IDS, new=IDS, skip=st.booleans())
def test_pieces_are_the_end_of_the_whole_text(
    name: str, clean: bool, prompt: list[int], new: list[int], skip: bool
) -> None:
    tokenizer = Tokenizer(RAW[name], TokenizerOptions(clean_up_tokenization_spaces=clean))
    try:
        base = tokenizer.decode(prompt, skip_special_tokens=skip) if prompt else ""
        whole = tokenizer.decode(prompt + new, skip_special_tokens=skip)
    except InputError:  # the library's Strip fails for texts shorter than what it may strip
        return
    detokenizer = Detokenizer(tokenizer, prompt, skip_special_tokens=skip)
    pieces = [detokenizer.push(token_id) for token_id in new]
    pieces.append(detokenizer.flush())
    assert "".join(pieces) == whole[len(base) :]


@given(parts=st.lists(st.sampled_from([d for d in SIMPLE.values() if d is not None]), max_size=4), ids=IDS)
def test_random_sequences_of_decoders(parts: list[Any], ids: list[int]) -> None:
    raw = make_raw(decoders.Sequence(parts))
    tokenizer = Tokenizer(raw, TokenizerOptions())
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(token_id) for token_id in ids] + [detokenizer.flush()]
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("name", "prompt", "new", "pieces"),
    [
        ("Metaspace", ["▁a"], ["▁a", "b"], [" a", "b", ""]),
        ("WordPiece", ["a"], ["##b", "do", "."], ["b", " do", ".", ""]),
        ("ByteLevel", ["a", "ð"], ["Ł", "ĺ", "ģ", "Ġa"], ["", "", "", " a", ""]),
        ("ByteLevel", ["a"], ["ð", "Ł", "ĺ", "ģ"], ["", "", "", "😁", ""]),
        ("Llama", ["▁a"], ["▁", "<0xE4>", "<0xBD>", "<0xA0>", "b"], [" ", "", "", "", "你b", ""]),
        ("Llama", ["▁a"], ["<0xE4>", "<0xBD>"], ["", "", "\ufffd\ufffd"]),
        ("BPEDecoder", ["a</w>"], ["a", "b</w>a", "</w>"], [" ", "a", "b a", ""]),
        ("none", ["a"], ["b"], [" b", ""]),
        ("CTC", ["a"], ["a", "<pad>", "a", "|"], ["", "", "a", " ", ""]),
        ("after everything", [], ["a", "b", "b", "▁"], ["", "", "", "", "c▁"]),
    ],
)
def test_when_text_is_certain(name: str, prompt: list[str], new: list[str], pieces: list[str]) -> None:
    raw = RAW[name]
    tokenizer = Tokenizer(raw, TokenizerOptions())
    ids = [raw.token_to_id(token) for token in new]
    detokenizer = Detokenizer(tokenizer, [raw.token_to_id(token) for token in prompt])
    assert [*(detokenizer.push(token_id) for token_id in ids), detokenizer.flush()] == pieces


def test_the_first_half_of_a_character_in_the_prompt_is_the_prompts() -> None:
    """decode(prompt) then ends with U+FFFD, one character of the whole text: the identity counts characters."""
    raw = RAW["ByteLevel"]
    tokenizer = Tokenizer(raw, TokenizerOptions())
    ids = [raw.token_to_id(token) for token in ("a", "ð", "Ł", "ĺ", "ģ", "b")]
    assert tokenizer.decode(ids[:2]) == "a\ufffd"
    detokenizer = Detokenizer(tokenizer, ids[:2])
    assert "".join([*(detokenizer.push(token_id) for token_id in ids[2:]), detokenizer.flush()]) == "b"
    assert tokenizer.decode(ids)[2:] == "b"


class Counted:
    """Counts the tokens that a decoder receives."""

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder
        self.n_tokens = 0

    def decode(self, tokens: list[str]) -> str:
        self.n_tokens += len(tokens)
        return str(self.decoder.decode(tokens))


@pytest.mark.parametrize("name", DECODERS)
def test_the_work_for_a_token_does_not_grow(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library decodes a few tokens for each new one, however many came before."""
    made: list[Counted] = []

    def counted(state: Any) -> Counted:
        made.append(Counted(make_decoder(state)))
        return made[-1]

    monkeypatch.setattr("fastattn.generation.decoders.make_decoder", counted)
    stages = make_stages(RAW[name])
    for i in range(5000):
        run_stages(stages, [TOKENS[i % 20]])
    run_stages(stages, [], last=True)
    assert sum(decoder.n_tokens for decoder in made) <= 4 * 5000


@pytest.mark.parametrize("name", ["Metaspace", "Llama", "CLIP", "WordPiece", "ByteLevel", "strip both ends"])
def test_stages_store_a_bounded_amount(name: str) -> None:
    stages = make_stages(RAW[name])
    for i in range(5000):
        run_stages(stages, [TOKENS[i % len(TOKENS)]])
    for stage in stages:
        values = [getattr(stage, key) for key in vars(stage)]
        assert all(len(value) < 20 for value in values if isinstance(value, (str, bytearray, list)))


def test_a_decoder_written_in_python_waits_for_the_last_token() -> None:
    class Backwards:
        def decode_chain(self, tokens: list[str]) -> list[str]:
            return tokens[::-1]

    raw = make_raw(decoders.Decoder.custom(Backwards()))
    tokenizer = Tokenizer(raw, TokenizerOptions())
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push(0), detokenizer.push(1), detokenizer.flush()] == ["", "", tokenizer.decode([0, 1])]


@given(text=st.text("ab", max_size=12), of=st.text("ab", min_size=1, max_size=6))
def test_length_of_beginning(text: str, of: str) -> None:
    ends = [n for n in range(1, len(of)) if text.endswith(of[:n])]
    assert length_of_beginning(text, of) == max(ends, default=0)
