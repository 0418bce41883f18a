"""Generate text with a model: all at once, streamed, and several prompts in one batch.

python examples/generate.py [FOLDER]      # without a folder: the demo model that ships with fastattn
"""

from __future__ import annotations

import sys

import fastattn


def main() -> None:
    generator = fastattn.pipeline("text-generation", sys.argv[1] if len(sys.argv) > 1 else None)
    model, tokenizer = generator.model, generator.tokenizer

    print("Piece by piece:")
    for piece in model.stream("It was a dark", max_new_tokens=60, do_sample=True, temperature=0.8, seed=1):
        print(piece, end="", flush=True)

    print("\n\nSeveral prompts of any length in one batch, each with its own seed:")
    prompts = ["The old man", "She opened the letter, and"]
    ids = model.generate(
        [tokenizer.encode(text) for text in prompts], max_new_tokens=30, do_sample=True, top_p=0.9, seed=[1, 2]
    )
    for text in tokenizer.batch_decode(ids, skip_special_tokens=True):
        print("-", text)

    print(
        "\nUp to the end of the paragraph (the text does not include the stop string), as a transformers-style result:"
    )
    print(generator("The house", max_new_tokens=100, stop_strings=["\n"], seed=3))


if __name__ == "__main__":
    main()
