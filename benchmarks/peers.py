"""The libraries that are compared, behind one interface. Each is imported in its own process only (worker.py)."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Ids = list[list[int]]


class Peer(Protocol):
    def forward(self, ids: Ids) -> NDArray[Any]:
        """[n_sequences, vocab or classes]: logits of the last token (GPT-2) or of each sequence."""
        ...

    def decode(self, ids: Ids, n_new: int) -> tuple[list[int], float]:
        """Greedy tokens after one prompt, and seconds from the first of them to the last."""
        ...


class Fastattn:
    def __init__(self, path: Path, threads: int) -> None:
        import fastattn as fa

        gpt2 = "gpt2" in path.name
        auto: Any = fa.AutoModelForCausalLM if gpt2 else fa.AutoModelForSequenceClassification
        self.model = auto.from_pretrained(str(path), threads=threads)
        self.gpt2 = gpt2

    def forward(self, ids: Ids) -> NDArray[Any]:
        if self.gpt2:
            return np.stack([np.asarray(rows)[-1] for rows in self.model(ids, logits_to_keep=1).logits])
        logits: NDArray[Any] = self.model(ids).logits
        return logits

    def decode(self, ids: Ids, n_new: int) -> tuple[list[int], float]:
        """Two calls, because `generate` does not say when its first token came."""
        begin = time.perf_counter()
        self.model.generate(ids[0], max_new_tokens=1, eos_token_id=-1)
        first = time.perf_counter() - begin
        begin = time.perf_counter()
        out = self.model.generate(ids[0], max_new_tokens=n_new, eos_token_id=-1)
        return [int(i) for i in out[-n_new:]], time.perf_counter() - begin - first


class Torch:
    def __init__(self, path: Path, threads: int) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        config = transformers.AutoConfig.from_pretrained(path)
        self.model = getattr(transformers, config.architectures[0]).from_pretrained(path, dtype=torch.float32).eval()
        self.torch = torch
        self.gpt2 = config.model_type == "gpt2"

    def forward(self, ids: Ids) -> NDArray[Any]:
        torch = self.torch
        with torch.inference_mode():
            if self.gpt2:
                logits = self.model(input_ids=torch.tensor(ids), use_cache=False, logits_to_keep=1).logits[:, -1]
            else:
                padded, mask = pad(ids)
                extra = {} if mask.all() else {"attention_mask": torch.from_numpy(mask)}
                logits = self.model(input_ids=torch.from_numpy(padded), **extra).logits
        out: NDArray[Any] = logits.numpy()
        return out

    def decode(self, ids: Ids, n_new: int) -> tuple[list[int], float]:
        """A bare greedy loop: transformers' generate() costs more."""
        torch = self.torch
        with torch.inference_mode():
            out = self.model(input_ids=torch.tensor(ids), use_cache=True, logits_to_keep=1)
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            tokens, begin = [token], time.perf_counter()
            for _ in range(n_new - 1):
                out = self.model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
                token = out.logits[:, -1].argmax(-1, keepdim=True)
                tokens.append(token)
        return torch.cat(tokens, 1)[0].tolist(), time.perf_counter() - begin


class OnnxRuntime:
    """Hand-written graphs of the fused operators that its own transformer optimizer produces."""

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime as ort

        import onnx_graphs

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self.ort = ort
        self.config = onnx_graphs.read_config(path)
        self.gpt2 = "n_embd" in self.config
        graph = str(onnx_graphs.write(path))
        self.session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def forward(self, ids: Ids) -> NDArray[Any]:
        if self.gpt2:
            return self._greedy(ids, 1)[2]
        padded, mask = pad(ids)
        feed = {"input_ids": padded.astype(np.int32), "mask": mask.astype(np.int32)}
        out: NDArray[Any] = self.session.run(None, feed)[0]
        return out

    def decode(self, ids: Ids, n_new: int) -> tuple[list[int], float]:
        tokens, seconds, _ = self._greedy(ids, n_new)
        return tokens, seconds

    def _greedy(self, ids: Ids, n_new: int) -> tuple[list[int], float, NDArray[Any]]:
        """Past and present share one buffer a layer, so that no step copies the cache."""
        ort, config = self.ort, self.config
        x = np.asarray(ids, np.int64)
        batch, prompt = x.shape
        cache_shape = (batch, config["n_head"], prompt + n_new, config["n_embd"] // config["n_head"])
        binding = self.session.io_binding()
        for i in range(config["n_layer"]):
            for part in "kv":
                cache = ort.OrtValue.ortvalue_from_numpy(np.zeros(cache_shape, np.float32))
                binding.bind_ortvalue_input(f"past_{part}{i}", cache)
                binding.bind_ortvalue_output(f"present_{part}{i}", cache)
        logits = ort.OrtValue.ortvalue_from_shape_and_type((batch, 1, config["vocab_size"]), np.float32)
        binding.bind_ortvalue_output("logits", logits)
        tokens: list[int] = []
        begin = 0.0
        for total in range(prompt, prompt + n_new):
            positions = np.arange(total - x.shape[1], total, dtype=np.int64)
            binding.bind_cpu_input("input_ids", x)
            binding.bind_cpu_input("position_ids", np.ascontiguousarray(np.broadcast_to(positions, x.shape)))
            binding.bind_cpu_input("seqlens_k", np.full(batch, total - 1, np.int32))
            binding.bind_cpu_input("total_len", np.array([total], np.int32))
            self.session.run_with_iobinding(binding)
            x = logits.numpy()[:, 0].argmax(-1)[:, None]
            tokens.append(int(x[0, 0]))
            begin = begin or time.perf_counter()
        return tokens, time.perf_counter() - begin, logits.numpy()[:, 0].copy()


def pad(ids: Ids) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids and mask, padded on the right to the longest sequence."""
    width = max(map(len, ids))
    padded, mask = np.zeros((len(ids), width), np.int64), np.zeros((len(ids), width), np.int64)
    for i, row in enumerate(ids):
        padded[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return padded, mask


PEERS: dict[str, type[Any]] = {"fastattn": Fastattn, "torch": Torch, "onnxruntime": OnnxRuntime}


def load(name: str, path: Path, threads: int) -> Peer:
    peer: Peer = PEERS[name](path, threads)
    return peer
