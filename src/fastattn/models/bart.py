"""BART (Lewis et al. 2020): learned positions, norms after attention and the inner layers."""

from __future__ import annotations

from collections.abc import Mapping

from fastattn.models.config import ConfigReader
from fastattn.models.seq2seq import NAMES, Defaults, Seq2SeqConfig, Style, read_options

ARCHITECTURES = (
    "BartForConditionalGeneration",
    "BartModel",
)
STYLE = Style()
DEFAULTS = Defaults()


def read_config(raw: Mapping[str, object]) -> Seq2SeqConfig:
    """Read config.json. Raises ConfigError."""
    c = ConfigReader(raw, "BART", NAMES)
    return read_options(c, "bart", STYLE, DEFAULTS)
