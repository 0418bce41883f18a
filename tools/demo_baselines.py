"""Compute baselines for the demo GPT-2's held-out bits per byte: compressors and a token trigram.

Run after ``train_demo_gpt2.py`` has filled its ``--work`` folder::

    python tools/demo_baselines.py --data ../shared/data --work build/demo-gpt2
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import lzma
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from demo_data import load_novels, split_novels

ROOT = Path(__file__).resolve().parent.parent
DISCOUNT = 0.75


class Counts:
    """Counts the occurrences of each key."""

    def __init__(self, keys: np.ndarray) -> None:
        self.keys, self.counts = np.unique(keys, return_counts=True)

    def __getitem__(self, wanted: np.ndarray) -> np.ndarray:
        place = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where(self.keys[place] == wanted, self.counts[place], 0)


def discounted(count: np.ndarray, total: np.ndarray, kinds: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Apply absolute discounting, interpolated with the lower order; an unseen context uses only the lower order."""
    safe = np.maximum(total, 1)
    return np.maximum(count - DISCOUNT, 0) / safe + np.where(total > 0, DISCOUNT * kinds / safe, 1.0) * lower


def trigram_bits(train: np.ndarray, texts: list[np.ndarray], size: int) -> float:
    """Return the bits that an interpolated Kneser-Ney token trigram needs for the texts (each starts with token 0)."""
    x = train.astype(np.int64)
    pairs = x[:-1] * size + x[1:]
    trigrams = Counts(pairs[:-1] * size + x[2:])
    contexts, context_kinds = Counts(pairs[:-1]), Counts(trigrams.keys // size)
    followed = Counts(trigrams.keys % (size * size))  # number of different tokens seen before each pair
    followed_total = np.bincount(followed.keys // size, weights=followed.counts, minlength=size)
    followed_kinds = np.bincount(followed.keys // size, minlength=size)
    single = np.bincount(np.unique(pairs) % size, minlength=size) + 0.5
    single /= single.sum()
    bits = 0.0
    for text in texts:
        a, b, c = text[:-2].astype(np.int64), text[1:-1].astype(np.int64), text[2:].astype(np.int64)
        two = discounted(followed[b * size + c], followed_total[b], followed_kinds[b], single[c])
        context = a * size + b
        three = discounted(trigrams[context * size + c], contexts[context], context_kinds[context], two)
        bits -= np.log2(three).sum() + np.log2(single[text[1]])
    return bits


def main() -> None:
    """Print every baseline's bits per byte on the held-out novels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data")
    parser.add_argument("--work", type=Path, default=ROOT / "build/demo-gpt2")
    args = parser.parse_args()
    texts = [text.encode() for text in split_novels(load_novels(args.data))[1].values()]
    size = sum(map(len, texts))
    print(f"gzip -9: {8 * sum(len(gzip.compress(text, 9)) for text in texts) / size:.3f}")
    print(f"xz -9e: {8 * sum(len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) for text in texts) / size:.3f}")
    print(f"bzip2 -9: {8 * sum(len(bz2.compress(text)) for text in texts) / size:.3f}")
    tokenizer = Tokenizer.from_file(str(args.work / "tokenizer.json"))
    encoded = [np.array([0, *tokenizer.encode(text.decode()).ids]) for text in texts]
    bits = trigram_bits(np.load(args.work / "train.npy"), encoded, tokenizer.get_vocab_size())
    print(f"token trigram, Kneser-Ney: {bits / size:.3f}")


if __name__ == "__main__":
    main()
