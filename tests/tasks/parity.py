"""Texts, and tiny models with the tokenizers of three families, to compare pipelines with those of transformers."""

from __future__ import annotations

import random
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.tasks.tokenizer_folders import KINDS, Maker, make_texts

# Family: the tokenizer, the prefix of the model classes, and settings of the model. Tokens: words with marks of
# continuation, bytes, and pieces with marks of spaces.
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertTokenizer-bert", "Bert", {}),
    "roberta": ("RobertaTokenizer-roberta", "Roberta", {"type_vocab_size": 1, "max_position_embeddings": 514}),
    "xlm-roberta": (
        "XLMRobertaTokenizer-unigram",
        "XLMRoberta",
        {"type_vocab_size": 1, "max_position_embeddings": 514},
    ),
}
LABELS = dict(enumerate(["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC"]))


def write_family(maker: Maker, family: str, head: str, **options: Any) -> Path:
    """Write a folder with a random model of 2 layers that transformers loads as well."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.set_num_threads(1)
    torch.manual_seed(3)
    named, prefix, settings = FAMILIES[family]
    kind = next(kind for kind in KINDS if str(kind) == named)
    folder = maker.files(kind, model_max_length=512, **({"add_prefix_space": True} if family == "roberta" else {}))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model_class = getattr(transformers, f"{prefix}For{head}" if head else f"{prefix}Model")
    config = model_class.config_class(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        initializer_range=0.3, pad_token_id=tokenizer.pad_token_id, **{**settings, **options},
    )  # fmt: skip
    model_class(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)  # so that other versions of transformers read the same tokenizer
    return folder


def real_texts(data: Path, n_texts: int = 500) -> list[str]:
    """Return sentences of reviews, articles and novels. Skips the test if they are not there."""
    names = ("sst2/dev.tsv", "wikitext2/test.txt", "litbank/litbank-original-100-novels.tar.gz")
    for name in names:
        if not (data / name).is_file():
            pytest.skip(f"{name} is not in {data}; name the folder in FASTATTN_DATA")
    reviews = [line.rpartition("\t")[0] for line in (data / names[0]).read_text(encoding="utf-8").splitlines()]
    articles = [line.strip() for line in (data / names[1]).read_text(encoding="utf-8").splitlines()]
    with tarfile.open(data / names[2]) as archive:
        member = next(member for member in archive if member.name.endswith(".txt"))
        file = archive.extractfile(member)
        assert file is not None
        novel = re.split(r"\n\s*\n", file.read().decode("utf-8"))
    chosen: list[str] = []
    for i, (texts, count) in enumerate(((reviews, 200), (articles, 150), (novel, 150))):
        known = [text for text in texts if 0 < len(text) <= 300]
        chosen += random.Random(i).sample(known, count)
    return chosen[:n_texts]


def random_texts(n_texts: int = 200) -> list[str]:
    """Return random texts in many scripts, with unusual spaces, signs and special tokens."""
    return make_texts(n_texts, seed=11)


def masked(texts: list[str], mask: str, seed: int) -> list[str]:
    """Return the texts with one or two words replaced with the mask token."""
    rng = random.Random(seed)
    found = []
    for text in texts:
        words = text.replace(mask, " ").split(" ")
        for _ in range(1 + (rng.random() < 0.2)):
            words[rng.randrange(len(words))] = mask
        found.append(" ".join(words))
    return found


def without_scores(value: Any) -> Any:
    """Return a result without its scores and vectors."""
    if isinstance(value, dict):
        return {key: item if key != "scores" else len(item) for key, item in value.items() if key != "score"}
    return [without_scores(item) for item in value] if isinstance(value, list) else value


def scores_of(value: Any) -> list[float]:
    """Return all scores of a result, in order."""
    if isinstance(value, dict):
        return [float(item) for item in value["scores"]] if "scores" in value else [float(value["score"])]
    return [score for item in value for score in scores_of(item)]
