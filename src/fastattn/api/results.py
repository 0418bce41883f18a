"""The outputs of one run of a Program, in the layout of the input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fastattn.graph.executor import Output
from fastattn.graph.ir import Program
from fastattn.models.inputs import Batch
from fastattn.models.outputs import PerToken


def empty_outputs(program: Program) -> dict[str, Output]:
    """Return the outputs of a step without tokens."""
    outputs: dict[str, Output] = {}
    for name, value in program.outputs.items():
        width = program.values[value].width
        outputs[name] = np.zeros((0, width), np.float32) if width else []
    return outputs


class Results:
    """The outputs of one run, in the layout of the input."""

    def __init__(self, batch: Batch, program: Program, outputs: Mapping[str, Output], logits_to_keep: int) -> None:
        self._batch, self._program, self._outputs, self._keep = batch, program, outputs, logits_to_keep

    def matrix(self, name: str) -> NDArray[Any]:
        """Return an output as it was computed: one row per token, per wanted token or per non-empty sequence."""
        return cast("NDArray[Any]", self._outputs[name])

    def per_token(self, name: str) -> PerToken:
        """Return an output with one row per token."""
        return self._batch.restore_tokens(self.matrix(name))

    def wanted(self, name: str) -> PerToken:
        """Return an output with one row per wanted token."""
        return self._batch.restore_wanted(self.matrix(name), self._keep)

    def per_sequence(self, name: str) -> NDArray[Any] | None:
        """Return an output with one row per sequence, if any: [batch, width], or [width] for a 1-D input."""
        if name not in self._outputs:
            return None
        rows = self._batch.restore_sequences(self.matrix(name))
        return rows[0] if self._batch.layout == "single" else rows

    def hidden_states(self) -> tuple[PerToken, ...] | None:
        """Return all hidden states, if they were requested."""
        names = self._numbered("hidden_states")
        return tuple(self.per_token(name) for name in names) or None

    def attentions(self) -> tuple[PerToken, ...] | None:
        """Return the attention maps of all layers, if they were requested."""
        names = self._numbered("attentions")
        if not names:
            return None
        heads = {
            f"attentions.{op.attrs['layer']}": int(op.attrs["n_head"])
            for op in self._program.ops
            if op.attrs.get("q_rows")
        }
        maps = []
        for name in names:
            found = cast("list[NDArray[Any]]", self._outputs[name])
            dtype = found[0].dtype if found else np.dtype(np.float32)
            maps.append(self._batch.restore_maps(found, heads[name], dtype))
        return tuple(maps)

    def _numbered(self, group: str) -> list[str]:
        names = [name for name in self._outputs if name.startswith(f"{group}.")]
        return sorted(names, key=lambda name: int(name.rpartition(".")[2]))
