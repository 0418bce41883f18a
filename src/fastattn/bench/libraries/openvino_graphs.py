"""Writes OpenVINO graphs of checkpoints, converted from PyTorch. The KV cache of a language model is graph state."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as op
import torch

from fastattn.bench.libraries.base import Job, Source, Unsupported
from fastattn.bench.libraries.torch_peer import load_transformers


def write(job: Job, target: Path) -> None:
    """Write the graph of a checkpoint, with its weights in the dtype. Raises Unsupported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = load_transformers(job)
        graph = _language_model(model, Source(job).config) if job.task == "causal-lm" else _encoder(model)
    _float_masks(graph)
    if job.dtype == "int8" and job.task != "causal-lm":
        graph = _quantized(graph, Source(job).config.vocab_size)
    elif job.dtype in ("int8", "int4"):  # bfloat16 is a setting of the computation, not of the file
        graph = _compressed(graph, job.dtype)
    ov.save_model(graph, target, compress_to_fp16=False)


def _compressed(graph: Any, dtype: str) -> Any:
    try:
        import nncf
    except ImportError:
        raise Unsupported(f"{dtype} weights need nncf (pip install nncf)") from None
    mode = nncf.CompressWeightsMode
    if dtype == "int8":
        return nncf.compress_weights(graph, mode=mode.INT8_SYM)
    return nncf.compress_weights(graph, mode=mode.INT4_SYM, group_size=64, ratio=1.0, all_layers=True)


def _quantized(graph: Any, vocab_size: int) -> Any:
    """Quantize weights and activations, as fastattn does in int8, with ranges from random token ids."""
    try:
        import nncf
    except ImportError:
        raise Unsupported("int8 needs nncf (pip install nncf)") from None
    rng = np.random.default_rng(0)
    rows = [{"input_ids": rng.integers(5, vocab_size, (1, 64)), "attention_mask": np.ones((1, 64), np.int64)}
            for _ in range(32)]  # fmt: skip
    return nncf.quantize(graph, nncf.Dataset(rows), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(rows))


def _encoder(model: Any) -> Any:
    ids = torch.full((2, 8), 3)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return ov.convert_model(model, example_input={"input_ids": ids, "attention_mask": mask})


class _Step(torch.nn.Module):  # type: ignore[misc]
    """A step of a language model from past keys and values: logits of the last token, and all keys and values."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any, *past: Any) -> Any:
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        for layer, key, value in zip(cache.layers, past[::2], past[1::2], strict=True):
            layer.lazy_initialization(key, value)
            layer.keys, layer.values = key, value
        out = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, past_key_values=cache,
            use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        after = [tensor for layer in out.past_key_values.layers for tensor in (layer.keys, layer.values)]
        return (out.logits[:, -1], *after)


def _language_model(model: Any, config: Any) -> Any:
    """Convert keys and values to variables of the graph, in the form that the plugin fuses with its attention."""
    from openvino._offline_transformations import apply_make_stateful_transformation

    heads, head_dim = config.n_head, config.n_embd // config.n_head
    n_past = 2 * config.n_layer
    past = [torch.zeros(2, heads, 3, head_dim) for _ in range(n_past)]
    ids, mask = torch.full((2, 4), 3), torch.ones(2, 7, dtype=torch.long)
    graph = ov.convert_model(_Step(model), example_input=(ids, mask, torch.arange(3, 7).expand(2, 4), *past))
    names = ["input_ids", "attention_mask", "position_ids", *(f"past.{i}" for i in range(n_past))]
    for port, name in zip(graph.inputs, names, strict=True):
        port.get_tensor().set_names({name})
        if name.startswith("past."):
            port.get_node().set_partial_shape(ov.PartialShape([-1, heads, -1, head_dim]))
    for i, port in enumerate(graph.outputs):
        port.get_tensor().set_names({f"present.{i - 1}" if i else "logits"})
    graph.validate_nodes_and_infer_types()
    rows = op.parameter([-1], dtype=np.int32, name="beam_idx")
    rows.output(0).get_tensor().add_names({"beam_idx"})
    graph.add_parameters([rows])
    zero = op.constant(np.int64(0))
    for i in range(n_past):
        node = graph.input(f"past.{i}").get_node()
        users = list(node.output(0).get_target_inputs())
        picked = op.gather(node, rows, zero)
        for user in users:
            user.replace_source_output(picked.output(0))
    graph.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(graph, {f"past.{i}": f"present.{i}" for i in range(n_past)})
    batch = op.gather(op.shape_of(graph.input("input_ids").get_node(), "i64"), op.constant(np.array([0])), zero)
    empty = op.concat([batch, op.constant(np.array([heads, 0, head_dim]))], 0)
    for node in graph.get_ops():
        if node.get_type_name() == "ReadValue":
            node.set_arguments([op.broadcast(op.constant(np.float32(0)), empty).output(0)])
    graph.validate_nodes_and_infer_types()
    return graph


def _float_masks(graph: Any) -> None:
    """Convert boolean attention masks to 0 and the lowest float32: steps with boolean masks took 2.6 times as long."""
    made: dict[str, Any] = {}
    for node in graph.get_ops():
        if node.get_type_name() != "ScaledDotProductAttention" or len(node.inputs()) < 4:
            continue
        mask = node.input_value(3)
        if mask.get_element_type() != ov.Type.boolean:
            continue
        name = mask.get_node().get_friendly_name()
        if name not in made:
            low = np.finfo(np.float32).min
            made[name] = op.select(mask, op.constant(np.float32(0)), op.constant(low))
        node.input(3).replace_source_output(made[name].output(0))
    graph.validate_nodes_and_infer_types()
