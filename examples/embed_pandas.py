"""Compute sentence vectors for a pandas column, and find the sentences closest to a question.

pip install pandas
python examples/embed_pandas.py FOLDER    # a sentence-transformers folder, such as all-MiniLM-L6-v2
"""

from __future__ import annotations

import sys

import fastattn

try:
    import pandas as pd
except ImportError:
    sys.exit("examples/embed_pandas.py needs pandas: pip install pandas")


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/embed_pandas.py FOLDER")
    model = fastattn.SentenceTransformer(sys.argv[1])
    frame = pd.DataFrame(
        {
            "text": [
                "The train to Geneva leaves at nine.",
                "Add the eggs and stir until smooth.",
                "Our flight was delayed by three hours.",
                "Bake for forty minutes at 180 degrees.",
            ]
        }
    )
    frame["vector"] = list(model.encode(frame["text"], normalize_embeddings=True))
    for question in ("How long is it in the oven?", "When do we depart?"):
        scores = model.similarity(model.encode(question), list(frame["vector"]))[0]
        best = frame.assign(score=scores).nlargest(2, "score")
        print(question)
        print(best[["score", "text"]].to_string(index=False, header=False))


if __name__ == "__main__":
    main()
