"""The ops of memories are refused on CUDA."""

from __future__ import annotations

import pytest

from fastattn.errors import ConfigError
from tests.cuda.test_decoder_ops import cuda
from tests.reference.decoder_program import DecoderProgram
from tests.reference.memory_programs import memory_programs


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_memories_are_refused(gpu: str, name: str) -> None:
    made = memory_programs()
    with pytest.raises(ConfigError, match=r'device: expected "cpu" .* an encoder and a decoder, got "cuda"'):
        cuda(DecoderProgram(getattr(made, name), made.sources))
