"""A small ELMo with random weights in allennlp's files, and its equations in torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

OPTIONS: dict[str, Any] = {
    "lstm": {
        "use_skip_connections": True,
        "projection_dim": 68,
        "cell_clip": 0.4,
        "proj_clip": 0.25,
        "dim": 72,
        "n_layers": 2,
    },
    "char_cnn": {
        "activation": "relu",
        "filters": [[1, 8], [2, 16], [3, 24], [5, 20]],
        "n_highway": 2,
        "embedding": {"dim": 6},
        "n_characters": 262,
        "max_characters_per_token": 12,
    },
}


def write_elmo(folder: Path, options: dict[str, Any] = OPTIONS, *, seed: int = 0) -> Path:
    """Write options.json and weights.hdf5 in the layout of TensorFlow's model."""
    import h5py

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "options.json").write_text(json.dumps(options))
    rng, cnn, cell = np.random.default_rng(seed), options["char_cnn"], options["lstm"]
    char_dim, n = cnn["embedding"]["dim"], sum(count for _, count in cnn["filters"])
    width, dim = cell["projection_dim"], cell["dim"]

    def numbers(*shape: int) -> Any:
        return (rng.standard_normal(shape) * 1.5 / np.sqrt(shape[0] if len(shape) < 4 else shape[1] * shape[2])).astype(
            np.float32
        )

    with h5py.File(folder / "weights.hdf5", "w") as file:
        file["char_embed"] = rng.standard_normal((261, char_dim)).astype(np.float32)
        for i, (taps, count) in enumerate(cnn["filters"]):
            file[f"CNN/W_cnn_{i}"] = numbers(1, taps, char_dim, count)
            file[f"CNN/b_cnn_{i}"] = rng.standard_normal(count).astype(np.float32)
        for i in range(cnn["n_highway"]):
            for part in ("transform", "carry"):
                file[f"CNN_high_{i}/W_{part}"] = numbers(n, n)
                file[f"CNN_high_{i}/b_{part}"] = rng.standard_normal(n).astype(np.float32)
        file["CNN_proj/W_proj"] = numbers(n, width)
        file["CNN_proj/b_proj"] = rng.standard_normal(width).astype(np.float32)
        for direction in range(2):
            for layer in range(cell["n_layers"]):
                group = f"RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell"
                file[f"{group}/W_0"] = numbers(2 * width, 4 * dim)
                file[f"{group}/B"] = rng.standard_normal(4 * dim).astype(np.float32)
                file[f"{group}/W_P_0"] = numbers(dim, width)
    return folder


class TorchElmo:
    """The published equations in float64, one sentence at a time, with every word padded to its full length."""

    def __init__(self, folder: Path) -> None:
        import h5py
        import torch

        self.torch: Any = torch
        self.options = json.loads((folder / "options.json").read_text())
        self.weights: dict[str, Any] = {}
        with h5py.File(folder / "weights.hdf5", "r") as file:

            def take(name: str, item: Any) -> None:
                if isinstance(item, h5py.Dataset):
                    self.weights[name] = torch.tensor(item[()].astype(np.float64))

            file.visititems(take)

    def characters(self, word: str | int) -> list[int]:
        """Return the rows of the table for a word, or for the mark of a sentence's begin (256) or end (257)."""
        most = self.options["char_cnn"]["max_characters_per_token"]
        data = [word] if isinstance(word, int) else list(word.encode())[: most - 2]
        return [258, *data, 259, *[260] * (most - 2 - len(data))]

    def word(self, word: str | int) -> Any:
        torch, w, cnn = self.torch, self.weights, self.options["char_cnn"]
        x = w["char_embed"][self.characters(word)]
        parts = []
        for i, (taps, _) in enumerate(cnn["filters"]):
            kernel = w[f"CNN/W_cnn_{i}"][0]  # [taps, char_dim, count]
            found = torch.stack([torch.einsum("tc,tcf->f", x[s : s + taps], kernel) for s in range(len(x) - taps + 1)])
            highest = found.max(dim=0).values + w[f"CNN/b_cnn_{i}"]
            parts.append(torch.relu(highest) if cnn["activation"] == "relu" else torch.tanh(highest))
        y = torch.cat(parts)
        for i in range(cnn["n_highway"]):
            prefix = f"CNN_high_{i}/"
            gate = torch.sigmoid(y @ w[prefix + "W_carry"] + w[prefix + "b_carry"])
            y = gate * torch.relu(y @ w[prefix + "W_transform"] + w[prefix + "b_transform"]) + (1 - gate) * y
        return y @ w["CNN_proj/W_proj"] + w["CNN_proj/b_proj"]

    def run(self, x: Any, direction: int, layer: int) -> Any:
        torch, cell = self.torch, self.options["lstm"]
        group = f"RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell/"
        weight, bias, down = (self.weights[group + name] for name in ("W_0", "B", "W_P_0"))
        h, c = torch.zeros(down.shape[1], dtype=torch.float64), torch.zeros(down.shape[0], dtype=torch.float64)
        rows = [h] * len(x)
        for t in range(len(x)) if direction == 0 else reversed(range(len(x))):
            i, j, f, o = (torch.cat([x[t], h]) @ weight + bias).chunk(4)
            c = torch.sigmoid(f + 1.0) * c + torch.sigmoid(i) * torch.tanh(j)
            if cell["cell_clip"]:
                c = c.clamp(-cell["cell_clip"], cell["cell_clip"])
            h = (torch.sigmoid(o) * torch.tanh(c)) @ down
            if cell["proj_clip"]:
                h = h.clamp(-cell["proj_clip"], cell["proj_clip"])
            rows[t] = h
        return torch.stack(rows)

    def sentence(self, words: list[str]) -> Any:
        """Return all layers, [n_layers + 1, n_tokens, 2 * projection_dim]."""
        torch, cell = self.torch, self.options["lstm"]
        x = torch.stack([self.word(word) for word in (256, *words, 257)])
        ways, layers = [x, x], [torch.cat([x, x], dim=1)]
        for layer in range(cell["n_layers"]):
            for direction in range(2):
                y = self.run(ways[direction], direction, layer)
                ways[direction] = y + ways[direction] if layer and cell["use_skip_connections"] else y
            layers.append(torch.cat(ways, dim=1))
        return torch.stack(layers)[:, 1:-1].numpy()
