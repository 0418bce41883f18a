"""A recurrent sequence-to-sequence model of torch's modules, saved as a folder, and its equations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "model_type": "recurrent-seq2seq",
    "cell": "gru",
    "attention": "bahdanau",
    "source_vocab_size": 11,
    "target_vocab_size": 9,
    "embedding_size": 10,
    "hidden_size": 12,
    "num_layers": 1,
    "bidirectional": True,
    "decoder_hidden_size": 14,
    "attention_size": 13,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "unk_token_id": 3,
    "tokens": "words",
}
SOURCE = ["<pad>", "<s>", "</s>", "<unk>", "la", "maison", "est", "bleue", "le", "chat", "noir"]
TARGET = ["<pad>", "<s>", "</s>", "the", "house", "is", "blue", "cat", "black"]


class TorchSeq2Seq:
    """The modules by the names of the tensors, in float64, and one step of the decoder from the published equations."""

    def __init__(self, config: dict[str, Any], seed: int = 0) -> None:
        import torch
        from torch import nn

        self.torch: Any = torch
        self.config = config
        rnn = {"gru": nn.GRU, "lstm": nn.LSTM}[config["cell"]]
        ways = 2 if config.get("bidirectional", True) else 1
        e, h, d, a = (config[k] for k in ("embedding_size", "hidden_size", "decoder_hidden_size", "attention_size"))
        kind, encoded = config["attention"], ways * h
        added = kind in ("bahdanau", "luong_concat")
        more = encoded if kind == "bahdanau" else d if config.get("input_feeding") else 0
        parts: dict[str, Any] = {
            "encoder.embedding": nn.Embedding(config["source_vocab_size"], e),
            "encoder.rnn": rnn(e, h, config["num_layers"], bidirectional=ways == 2),
            "bridge": nn.Linear(encoded, d),
            "decoder.embedding": nn.Embedding(config["target_vocab_size"], e),
            "decoder.rnn": rnn(e + more, d),
            "output": nn.Linear(d + encoded if kind == "bahdanau" else d, config["target_vocab_size"]),
        }
        if config["cell"] == "lstm":
            parts["bridge_cell"] = nn.Linear(encoded, d)
        if kind != "luong_dot":
            parts["attention.key"] = nn.Linear(encoded, a if added else d, bias=added)
        if added:
            parts["attention.query"] = nn.Linear(d, a, bias=False)
            parts["attention.score"] = nn.Linear(a, 1, bias=False)
        if kind != "bahdanau":
            parts["decoder.combine"] = nn.Linear(encoded + d, d, bias=False)
        self.parts = parts
        torch.manual_seed(seed)
        with torch.no_grad():
            for part in parts.values():
                part.double()
                for weight in part.parameters():  # exact in float32
                    weight.copy_((torch.randn(weight.shape) * (0.9 if weight.dim() > 1 else 0.3)).double())

    def save(self, folder: Path, *, vocab: bool = True) -> Path:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{name}.{key}": value.float().contiguous()
            for name, part in self.parts.items()
            for key, value in part.state_dict().items()
        }
        save_file(tensors, str(folder / "model.safetensors"))
        (folder / "config.json").write_text(json.dumps(self.config))
        if vocab:
            (folder / "source_vocab.json").write_text(json.dumps(SOURCE))
            (folder / "target_vocab.json").write_text(json.dumps(TARGET))
        return folder

    def encode(self, ids: list[int]) -> tuple[Any, Any]:
        """Return the outputs of the encoder [n, encoded] and the first state of the decoder."""
        torch, p = self.torch, self.parts
        outputs, last = p["encoder.rnn"](p["encoder.embedding"](torch.tensor(ids)))
        ways = 2 if self.config.get("bidirectional", True) else 1
        ends = [last] if self.config["cell"] == "gru" else list(last)
        names = ("bridge", "bridge_cell")
        flat = [torch.cat([end[i - ways] for i in range(ways)]) for end in ends]  # of the last layer
        state = [torch.tanh(p[name](end))[None] for name, end in zip(names, flat, strict=False)]
        return outputs, (state[0] if len(state) == 1 else tuple(state))

    def step(self, token: int, outputs: Any, state: Any, feed: Any) -> tuple[Any, Any, Any, Any]:
        """Return log-probabilities, state, feed and attention of one step."""
        torch, p, kind = self.torch, self.parts, self.config["attention"]
        x = p["decoder.embedding"](torch.tensor([token]))

        def attend(query: Any) -> tuple[Any, Any]:
            if kind in ("bahdanau", "luong_concat"):
                sums = p["attention.query"](query) + p["attention.key"](outputs)
                scores = p["attention.score"](torch.tanh(sums))[:, 0]
            else:
                scores = (outputs if kind == "luong_dot" else p["attention.key"](outputs)) @ query
            probs = torch.softmax(scores, 0)
            return probs, probs @ outputs

        if kind == "bahdanau":
            probs, context = attend((state if self.config["cell"] == "gru" else state[0])[0])
            out, state = p["decoder.rnn"](torch.cat([x, context[None]], 1), state)
            readout = torch.cat([out[0], context])
        else:
            x = torch.cat([x, feed[None]], 1) if self.config.get("input_feeding") else x
            out, state = p["decoder.rnn"](x, state)
            probs, context = attend(out[0])
            readout = torch.tanh(p["decoder.combine"](torch.cat([context, out[0]])))
        return torch.log_softmax(p["output"](readout), 0), state, readout, probs

    def follow(self, source: list[int], target: list[int]) -> tuple[Any, Any]:
        """Return the log-probabilities of every step [len(target), vocab] and the attention [len(target), n]."""
        torch = self.torch
        with torch.no_grad():
            outputs, state = self.encode(source)
            feed, rows, maps = torch.zeros(self.config["decoder_hidden_size"], dtype=torch.float64), [], []
            for token in [self.config["bos_token_id"], *target[:-1]]:
                logprobs, state, feed, probs = self.step(token, outputs, state, feed)
                rows.append(logprobs)
                maps.append(probs)
        return torch.stack(rows).numpy(), torch.stack(maps).numpy()
