"""The numbers of the pictures, computed in bounded memory: attention maps of some heads, logits of every layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fastattn.api.causal_lm import CausalLM
from fastattn.api.model import Model
from fastattn.graph.ir import Program, Step
from fastattn.graph.rewrites import optimize, with_lens, with_maps
from fastattn.models.inputs import read_model_batch

Floats = NDArray[np.floating[Any]]
MAX_FLOATS = 1 << 24  # of the temporary arrays of one step: 64 MiB


def attention_shape(model: Model) -> tuple[int, int]:
    """Return the number of layers and of heads per layer."""
    heads = [int(op.attrs["n_head"]) for op in model.traced.ops if op.kind == "attention"]
    return len(heads), heads[0] if heads else 0


def attention_maps(
    model: Model,
    ids: NDArray[np.int32],
    types: NDArray[np.int32] | None,
    layers: Sequence[int],
    heads: Sequence[int],
) -> Floats:
    """Return the attention probabilities [layers, heads, n_tokens, n_tokens] of some heads for one sequence.

    The maps have the same bits as those of `output_attentions`. Only these maps are computed, layer by layer: each run
    stops after its layer, so besides the result, only the maps of one layer are in memory.
    """
    batch = read_model_batch(model.config, [ids], None, None if types is None else [types], explain=model.explain_id)
    program = model.trace(types=model.adds_types(batch))
    found: Floats | None = None
    for a, layer in enumerate(layers):
        outputs = _run(model, with_maps(program, [layer], heads), batch.step())
        for b, head in enumerate(heads):
            (maps,) = outputs.pop(f"attentions.{layer}.{head}")
            if found is None:
                found = np.empty((len(layers), len(heads), len(ids), len(ids)), maps.dtype)
            found[a, b] = maps[0]
    assert found is not None
    return found


def _run(model: Model, program: Program, step: Step) -> dict[str, Any]:
    executor = model.executor.with_program(optimize(program))
    try:
        return dict(executor.run(step))
    finally:
        executor.close()


def token_logits(
    model: CausalLM, ids: NDArray[np.int32], *, lens: bool, max_floats: int = MAX_FLOATS
) -> Iterator[tuple[int, list[Floats]]]:
    """Yield the first position and the logits [positions, vocab_size] of consecutive parts of a sequence.

    lens: those of every hidden state, as in `with_lens`; otherwise only those of the model. A KV cache connects the
    parts, so every token is computed once, and at most `max_floats` logits exist at a time, or the logits of
    one position if those are more. The bits of the logits do not depend on the size of the parts.
    """
    batch = read_model_batch(model.config, [ids], explain=model.explain_id)
    program = optimize(with_lens(model.traced) if lens else model.traced)
    names = [f"lens.{i}" for i in range(len(program.outputs))] if lens else ["logits"]
    width = program.values[program.outputs[names[-1]]].width
    size = max(1, max_floats // (len(names) * width))
    executor = model.executor.with_program(program)
    cache = executor.new_cache()
    try:
        for at in range(0, batch.n_tokens, size):
            part = batch.token_ids[at : at + size]
            rows = np.arange(len(part), dtype=np.int32)
            step = Step(part, np.array([0, len(part)], np.int32), rows + np.int32(at), rows, caches=(cache,))
            found = executor.run(step, names)
            yield at, [cast(Floats, found[name]) for name in names]
    finally:
        cache.close()
        executor.close()
