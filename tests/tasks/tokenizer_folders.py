"""Tokenizer folders of every known class, made with the tokenizers and sentencepiece libraries, and texts for them."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORDS = {
    "latin": "the quick brown fox jumps over lazy dogs café naïve Ünïcode résumé Hello WORLD I'm don't it's he'd",
    "greek": "καλημέρα κόσμε Ελλάδα ΑΘΗΝΑ",
    "cyrillic": "привет мир Москва ёлка ПРИВЕТ",
    "east": "東京大学に行く 中文字符 日本語 한국어 안녕하세요 カタカナ ｶﾀｶﾅ",
    "right to left": "مرحبا بالعالم العربية שלום עולם",
    "south": "नमस्ते दुनिया தமிழ் ไทยภาษา বাংলা",
    "emoji": "😁 👨‍👩‍👧‍👦 🇩🇪 ❤️ 👍🏽",
    "numbers": "123 4,567 3.14 2, ½ ² Ⅷ ١٢٣",
    "signs": ". , ! ? ; : ' \" ( ) [ ] - _ / \\ @ # $ % & * + = < > | ~ ` ... '' `` -- … “” «» 's 'LL",
    "odd": "ﬁ Å A\u030a e\u0301 İ ß ǅ \u0300 \ufffd \U0010ffff ▁ ▁a ##s </w> Ġ @@ <0x41>",
    "special": "<s> </s> <pad> <unk> <mask> [CLS] [SEP] [MASK] [PAD] [UNK] <|endoftext|> <|startoftext|> <extra_id_0> "
    "<new> FooBar [X] en_XX <cls> <sep>",
}
SPACES = [" ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u3000", "\u200b", "\ufeff", "\0", "\x1f", "\u0085"]
POOLS = [[*line.split(), "two words"] if name == "special" else line.split() for name, line in WORDS.items()]
POOLS.append(SPACES)


def make_texts(n_texts: int, seed: int = 0) -> list[str]:
    """Return texts in many scripts, with special tokens and unusual characters."""
    rng = random.Random(seed)
    texts = ["", " ", "a", "\n", "Hello world", "[MASK] good <mask> <|endoftext|>"]
    while len(texts) < n_texts:
        chosen = rng.choices(POOLS, k=rng.randint(1, 3))
        parts = [rng.choice(rng.choice(chosen if rng.random() < 0.8 else POOLS)) for _ in range(rng.randint(1, 12))]
        joint = rng.choice([" ", "", " ", "  ", None])
        texts.append(
            "".join(part + rng.choice(["", " ", "\n"]) for part in parts) if joint is None else joint.join(parts)
        )
    return texts


def _corpus() -> list[str]:
    return make_texts(2500, seed=99) + ["the cat sat on the mat", "hello world good film bad dogs"] * 50


def write_wordpiece(folder: Path, specials: Sequence[str], unk: str) -> None:
    """Write vocab.txt."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    raw = Tokenizer(models.WordPiece(unk_token=unk))
    raw.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=1000, special_tokens=list(specials), show_progress=False)
    raw.train_from_iterator(_corpus(), trainer)
    vocab = raw.get_vocab()
    (folder / "vocab.txt").write_text("\n".join(sorted(vocab, key=lambda t: vocab[t])) + "\n", encoding="utf-8")


def write_byte_level(folder: Path, specials: Sequence[str], suffix: str | None = None) -> None:
    """Write vocab.json and merges.txt of bytes."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE() if suffix is None else models.BPE(end_of_word_suffix=suffix))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        **({} if suffix is None else {"end_of_word_suffix": suffix}),
    )
    raw.train_from_iterator(_corpus(), trainer)
    _write_bpe(raw, folder)


def write_byte_level_json(folder: Path) -> None:
    """Write only a tokenizer.json of bytes, without vocab.json and merges.txt."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    write_byte_level(folder, ["<|endoftext|>", "<|padding|>"])
    raw = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.post_processor = processors.ByteLevel(trim_offsets=False)
    raw.save(str(folder / "tokenizer.json"))
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()


def write_characters(folder: Path) -> None:
    """Write vocab.json and merges.txt of characters, with "</w>" at the ends of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    raw.train_from_iterator(_corpus(), trainer)
    _write_bpe(raw, folder)


def _write_bpe(raw: Any, folder: Path) -> None:
    model = json.loads(raw.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n", encoding="utf-8")


def write_sentencepiece(folder: Path, **options: Any) -> None:
    """Write x.model, trained by the sentencepiece package."""
    import sentencepiece

    corpus = folder / "corpus.txt"
    lines = [text.replace("\0", "").replace("\n", " ") for text in _corpus() if text.strip()]
    corpus.write_text("\n".join(lines), encoding="utf-8")
    settings = {"vocab_size": 700, "hard_vocab_limit": False, "minloglevel": 2, "character_coverage": 0.98, **options}
    sentencepiece.SentencePieceTrainer.train(input=str(corpus), model_prefix=str(folder / "x"), **settings)
    corpus.unlink()
    (folder / "x.vocab").unlink()


_BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_FAIRSEQ = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
VOCABULARIES: dict[str, Callable[[Path], None]] = {
    "bert": lambda folder: write_wordpiece(folder, _BERT, "[UNK]"),
    "mpnet": lambda folder: write_wordpiece(folder, ["<s>", "[UNK]", "<pad>", "</s>", "<mask>"], "[UNK]"),
    "funnel": lambda folder: write_wordpiece(
        folder, ["<pad>", "<unk>", "<cls>", "<sep>", "<mask>", "<s>", "</s>"], "<unk>"
    ),
    "gpt2": lambda folder: write_byte_level(folder, ["<|endoftext|>", "<|padding|>"]),
    "gpt2 json": write_byte_level_json,
    "roberta": lambda folder: write_byte_level(folder, _FAIRSEQ),
    "deberta": lambda folder: write_byte_level(folder, _BERT),
    "clip": lambda folder: write_byte_level(folder, ["<|startoftext|>", "<|endoftext|>"], "</w>"),
    "characters": write_characters,
    "unigram": write_sentencepiece,
    "unigram with symbols": lambda folder: write_sentencepiece(
        folder, control_symbols="[CLS],[SEP],[MASK],<sep>,<cls>", user_defined_symbols="<new>,[X]"
    ),
    "albert": lambda folder: write_sentencepiece(
        folder,
        control_symbols="[SEP],[MASK]",
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=-1,
        bos_piece="[CLS]",
        pad_piece="<pad>",
    ),
    "deberta v2": lambda folder: write_sentencepiece(
        folder,
        control_symbols="[MASK]",
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        pad_piece="[PAD]",
        unk_piece="[UNK]",
    ),
    "t5": lambda folder: write_sentencepiece(folder, pad_id=0, eos_id=1, unk_id=2, bos_id=-1),
    "xglm": lambda folder: write_sentencepiece(folder, bos_id=0, pad_id=1, eos_id=2, unk_id=3),
    "xlnet": lambda folder: write_sentencepiece(
        folder, control_symbols="<cls>,<sep>,<pad>,<mask>,<eod>", user_defined_symbols="<eop>"
    ),
    "unigram with bytes": lambda folder: write_sentencepiece(folder, byte_fallback=True, vocab_size=1000),
    "unigram as it is": lambda folder: write_sentencepiece(
        folder, normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False
    ),
    "bpe": lambda folder: write_sentencepiece(folder, model_type="bpe", user_defined_symbols="<new>,[X]"),
    "bpe with bytes": lambda folder: write_sentencepiece(
        folder,
        model_type="bpe",
        byte_fallback=True,
        vocab_size=1000,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    ),
    "gemma": lambda folder: write_sentencepiece(
        folder,
        model_type="bpe",
        byte_fallback=True,
        vocab_size=1000,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        user_defined_symbols="<mask>,<new>,[X]",
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        bos_piece="<bos>",
        eos_piece="<eos>",
    ),
}


@dataclass(frozen=True, slots=True)
class Kind:
    """A tokenizer class, its vocabulary and file, a model type, and the class's own settings."""

    name: str
    vocabulary: str
    model_type: str
    file: str = ""
    settings: Mapping[str, Sequence[object]] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name}-{self.vocabulary}"


_XLM = "sentencepiece.bpe.model"
_BERT_SETTINGS = {
    "do_lower_case": [False],
    "strip_accents": [True, False],
    "tokenize_chinese_chars": [False],
}
_BOS = {"add_bos_token": [True, False], "add_eos_token": [True]}
_PREFIX = {"add_prefix_space": [True, False]}
KINDS = [
    Kind(
        "BertTokenizer",
        "bert",
        "bert",
        settings={**_BERT_SETTINGS, "do_basic_tokenize": [False], "never_split": [["good"]]},
    ),
    Kind("DistilBertTokenizer", "bert", "distilbert", settings=_BERT_SETTINGS),
    Kind("ElectraTokenizer", "bert", "electra", settings={"do_lower_case": [False]}),
    Kind("BertTokenizerFast", "bert", "distilbert"),
    Kind("ConvBertTokenizer", "bert", "convbert", settings={"do_lower_case": [False]}),
    Kind("DPRQuestionEncoderTokenizer", "bert", "dpr", settings={"do_lower_case": [False]}),
    Kind("MPNetTokenizer", "mpnet", "mpnet", settings=_BERT_SETTINGS),
    Kind("FunnelTokenizer", "funnel", "funnel", settings={**_BERT_SETTINGS, "clean_text": [False]}),
    Kind("RobertaTokenizer", "roberta", "roberta", settings={**_PREFIX, "trim_offsets": [True, False]}),
    Kind("BartTokenizer", "roberta", "bart", settings={"add_prefix_space": [True], "trim_offsets": [False]}),
    Kind("LongformerTokenizer", "roberta", "longformer"),
    Kind("GPT2Tokenizer", "gpt2", "gpt2", settings={**_PREFIX, **_BOS, "errors": ["ignore"]}),
    Kind("CodeGenTokenizer", "gpt2", "codegen", settings={**_PREFIX, **_BOS}),
    Kind("GPTNeoXTokenizer", "gpt2", "gpt_neox", settings={**_PREFIX, **_BOS, "trim_offsets": [False]}),
    Kind("CohereTokenizer", "gpt2", "cohere", settings={**_PREFIX, **_BOS}),
    Kind("Qwen2Tokenizer", "gpt2", "qwen3", settings={"add_prefix_space": [True]}),
    Kind("Qwen3_5Tokenizer", "gpt2 json", "qwen3_5", settings={**_PREFIX, **_BOS}),
    Kind("Qwen3_5Tokenizer", "bpe with bytes", "qwen3_5_moe", "tokenizer.model", _PREFIX),
    Kind("DebertaTokenizer", "deberta", "deberta", settings=_PREFIX),
    Kind("BlenderbotTokenizer", "roberta", "blenderbot", settings={"add_prefix_space": [False]}),
    Kind("HerbertTokenizer", "characters", "herbert"),
    Kind("OpenAIGPTTokenizer", "characters", "openai-gpt"),
    Kind("CLIPTokenizer", "clip", "clip"),
    Kind("XLMRobertaTokenizer", "unigram", "xlm-roberta", _XLM, _PREFIX),
    Kind("XLMRobertaTokenizer", "unigram with symbols", "xlm-roberta", _XLM),
    Kind("CamembertTokenizer", "unigram", "camembert", _XLM, _PREFIX),
    Kind("BarthezTokenizer", "unigram", "barthez", _XLM, _PREFIX),
    Kind(
        "AlbertTokenizer",
        "albert",
        "albert",
        "spiece.model",
        {"do_lower_case": [False], "keep_accents": [True], "add_prefix_space": [False]},
    ),
    Kind("FNetTokenizer", "albert", "fnet", "spiece.model", {"do_lower_case": [False]}),
    Kind(
        "DebertaV2Tokenizer",
        "deberta v2",
        "deberta-v2",
        "spm.model",
        {"do_lower_case": [True], "split_by_punct": [True], "add_prefix_space": [False]},
    ),
    Kind("T5Tokenizer", "t5", "t5", "spiece.model", {"extra_ids": [5, 0]}),
    Kind("PegasusTokenizer", "t5", "pegasus", "spiece.model", {"offset": [10]}),
    Kind("BigBirdTokenizer", "unigram with symbols", "big_bird", "spiece.model", {"add_prefix_space": [False]}),
    Kind("XLNetTokenizer", "xlnet", "xlnet", "spiece.model", {"do_lower_case": [True]}),
    Kind(
        "RemBertTokenizer",
        "unigram with symbols",
        "rembert",
        "sentencepiece.model",
        {"do_lower_case": [True], "keep_accents": [False]},
    ),
    Kind("MBartTokenizer", "unigram", "mbart", _XLM, {"src_lang": ["de_DE"]}),
    Kind("MBart50Tokenizer", "unigram", "mbart50", _XLM, {"src_lang": ["de_DE"]}),
    Kind("XGLMTokenizer", "xglm", "xglm", "tokenizer.model", {**_PREFIX, **_BOS}),
    Kind("ReformerTokenizer", "bpe", "reformer", "spiece.model"),
    Kind("GemmaTokenizer", "gemma", "gemma", "tokenizer.model", _BOS),
    Kind("GemmaTokenizerFast", "gemma", "gemma3_text", "tokenizer.model", {"add_bos_token": [True]}),
    Kind("LlamaTokenizer", "bpe with bytes", "llama", "tokenizer.model", {**_PREFIX, **_BOS, "legacy": [True]}),
    Kind("LlamaTokenizerFast", "bpe with bytes", "idefics2", "tokenizer.model", {"add_bos_token": [True]}),
    Kind("PreTrainedTokenizerFast", "bpe with bytes", "foo", "tokenizer.model", {"legacy": [False], **_BOS}),
    Kind("PreTrainedTokenizerFast", "bpe", "foo", "tokenizer.model", {"legacy": [False]}),
    Kind("PreTrainedTokenizerFast", "unigram with bytes", "foo", "tokenizer.model", {"legacy": [False]}),
    Kind("PreTrainedTokenizerFast", "unigram as it is", "foo", "tokenizer.model"),
]


class Maker:
    """Creates folders; each vocabulary is trained once per test run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.n_folders = 0

    def folder(self) -> Path:
        """Return a new empty folder."""
        self.n_folders += 1
        path = self.root / f"folder{self.n_folders}"
        path.mkdir()
        return path

    def files(self, kind: Kind, **config: object) -> Path:
        """Write a folder of a class without tokenizer.json."""
        base = self.root / kind.vocabulary
        if not base.exists():
            base.mkdir()
            VOCABULARIES[kind.vocabulary](base)
        folder = self.folder()
        for path in base.iterdir():
            shutil.copy(path, folder / (kind.file if path.name == "x.model" else path.name))
        write_json(folder / "tokenizer_config.json", {"tokenizer_class": kind.name, **config})
        write_json(folder / "config.json", {"model_type": kind.model_type})
        return folder

    def changed(self, source: Path, name: str = "tokenizer_config.json", **values: object) -> Path:
        """Write a copy of a folder with other values in one of its JSON files."""
        folder = self.folder()
        shutil.copytree(source, folder, dirs_exist_ok=True)
        path = folder / name
        write_json(path, {**(json.loads(path.read_text()) if path.exists() else {}), **values})
        return folder


def write_json(path: Path, value: object) -> None:
    """Write a JSON file in ASCII."""
    path.write_text(json.dumps(value))
