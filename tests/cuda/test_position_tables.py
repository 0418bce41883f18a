"""Attention with tables of relative positions or soft caps is refused on CUDA, with and without maps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastattn.errors import ConfigError
from fastattn.graph.rewrites import with_outputs
from tests.cuda.test_decoder_ops import cuda
from tests.reference.decoder_program import decoder_program
from tests.reference.positioned_program import positioned_program


@pytest.mark.parametrize("maps", [False, True])
def test_position_tables_are_refused(gpu: str, maps: bool) -> None:
    made = positioned_program()
    program = with_outputs(made.program, attentions=True) if maps else made.program
    with pytest.raises(ConfigError, match=r'device: expected "cpu" .* tables of relative positions .* got "cuda"'):
        cuda(replace(made, program=program))


@pytest.mark.parametrize("maps", [False, True])
def test_soft_caps_are_refused(gpu: str, maps: bool) -> None:
    made = decoder_program(softcap=2.0)
    program = with_outputs(made.program, attentions=True) if maps else made.program
    with pytest.raises(ConfigError, match=r'device: expected "cpu" .* scores are soft-capped .* got "cuda"'):
        cuda(replace(made, program=program))
