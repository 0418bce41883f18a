"""Pegasus (Zhang et al. 2020): sines as positions, norms before attention and the inner layers."""

from __future__ import annotations

from collections.abc import Mapping

from fastattn.models.config import ConfigReader
from fastattn.models.seq2seq import NAMES, Defaults, Seq2SeqConfig, Style, read_options

ARCHITECTURES = (
    "PegasusForConditionalGeneration",
    "PegasusModel",
)
STYLE = Style(learned=False, offset=0, norm_first=True, norm_embedding=False)
DEFAULTS = Defaults(bos=None, eos=1, pad=0, start=0)


def read_config(raw: Mapping[str, object]) -> Seq2SeqConfig:
    """Read config.json. Raises ConfigError."""
    c = ConfigReader(raw, "Pegasus", NAMES)
    return read_options(c, "pegasus", STYLE, DEFAULTS)
