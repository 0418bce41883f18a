"""Recurrent Programs are refused on CUDA by the name of their op."""

from __future__ import annotations

import pytest

from fastattn.errors import ConfigError
from tests.cuda.test_decoder_ops import cuda
from tests.reference.recurrent_program import recurrent_program


@pytest.mark.parametrize("kind", ["lstm", "gru", "elmo"])
def test_recurrent_programs_are_refused(gpu: str, kind: str) -> None:
    with pytest.raises(ConfigError, match=r'device: expected "cpu" for a recurrent model, .* op features, got "cuda"'):
        cuda(recurrent_program(kind))
