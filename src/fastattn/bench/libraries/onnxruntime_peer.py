"""onnxruntime, with graphs of its fused operators (`onnx_graphs`), or graphs that PyTorch exports (`onnx_export`)."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from fastattn.bench.libraries.base import HEADS, Array, Ids, Job, Source, Unsupported, pad

_FILE = "model.onnx"


def convert(job: Job) -> None:
    """Write the graph in the dtype."""
    target = job.folder / _FILE
    if job.dtype == "float32":
        _write(job, target)
        return
    plain = job.folder / "float32.onnx"
    _write(job, plain)
    _quantize(plain, target, job.dtype)
    plain.unlink()


def _write(job: Job, target: Path) -> None:
    """Write the graph in float32: with fused operators for the families of HEADS, exported by PyTorch for others."""
    source = Source(job)
    if source.model_type in ("gpt2", *HEADS):
        from fastattn.bench.libraries import onnx_graphs

        onnx_graphs.write(source, target)
    elif importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
        raise Unsupported(f"{source.model_type} needs torch and transformers (pip install torch transformers)")
    else:
        from fastattn.bench.libraries import onnx_export

        onnx_export.write(job, target)


def _quantize(plain: Path, target: Path, dtype: str) -> None:
    """Quantize to int8 (activations at run time), or to int4 with weight blocks of 32 and int8 activations."""
    if dtype == "int8":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        kinds = ["MatMul", "Attention", "Gemm"]
        quantize_dynamic(plain, target, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=kinds,
                         extra_options={"DefaultTensorType": 1})  # fmt: skip
        return
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(plain), bits=4, block_size=32, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    quantizer.model.save_model_to_file(str(target), False)


class Model:
    """A session on the CPU, in float32, int8 or int4."""

    def __init__(self, job: Job) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = job.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.task = job.task
        self.config: Any = Source(job).config
        self.session = ort.InferenceSession(str(job.folder / _FILE), options, providers=["CPUExecutionProvider"])

    def forward(self, ids: Ids) -> Array:
        """Run the padded rectangle with a mask."""
        if self.task == "causal-lm":
            return self._greedy(ids, 1)[2]
        padded, mask = pad(ids)
        out: Array = self.session.run(None, {"input_ids": padded.astype(np.int32), "mask": mask.astype(np.int32)})[0]
        return out[:, 0] if self.task == "encoder" else out

    def decode(self, ids: Ids, n_new: int) -> tuple[Ids, float]:
        """Run a greedy loop with the session."""
        tokens, seconds, _ = self._greedy(ids, n_new)
        return tokens, seconds

    def _greedy(self, ids: Ids, n_new: int) -> tuple[Ids, float, Array]:
        """Decode with past and present in one buffer per layer, so no step copies the cache."""
        config = self.config
        x = np.asarray(ids, np.int64)
        batch, prompt = x.shape
        cache_shape = (batch, config.n_head, prompt + n_new, config.n_embd // config.n_head)
        binding = self.session.io_binding()
        for i in range(config.n_layer):
            for part in "kv":
                cache = ort.OrtValue.ortvalue_from_numpy(np.zeros(cache_shape, np.float32))
                binding.bind_ortvalue_input(f"past_{part}{i}", cache)
                binding.bind_ortvalue_output(f"present_{part}{i}", cache)
        logits = ort.OrtValue.ortvalue_from_shape_and_type((batch, 1, config.vocab_size), np.float32)
        binding.bind_ortvalue_output("logits", logits)
        tokens: list[Array] = []
        begin = 0.0
        for total in range(prompt, prompt + n_new):
            positions = np.arange(total - x.shape[1], total, dtype=np.int64)
            binding.bind_cpu_input("input_ids", x)
            binding.bind_cpu_input("position_ids", np.ascontiguousarray(np.broadcast_to(positions, x.shape)))
            binding.bind_cpu_input("seqlens_k", np.full(batch, total - 1, np.int32))
            binding.bind_cpu_input("total_len", np.array([total], np.int32))
            self.session.run_with_iobinding(binding)
            x = logits.numpy()[:, 0].argmax(-1)[:, None]
            tokens.append(x)
            begin = begin or time.perf_counter()
        seconds = time.perf_counter() - begin
        return np.concatenate(tokens, 1).tolist(), seconds, logits.numpy()[:, 0].copy()
