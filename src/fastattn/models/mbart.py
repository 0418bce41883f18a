"""mBART (Liu et al. 2020): BART with norms before attention and the inner layers."""

from __future__ import annotations

from collections.abc import Mapping

from fastattn.models.config import ConfigReader
from fastattn.models.seq2seq import NAMES, Defaults, Seq2SeqConfig, Style, read_options

ARCHITECTURES = (
    "MBartForConditionalGeneration",
    "MBartModel",
)
STYLE = Style(norm_first=True)
DEFAULTS = Defaults(start=None)


def read_config(raw: Mapping[str, object]) -> Seq2SeqConfig:
    """Read config.json. Raises ConfigError."""
    c = ConfigReader(raw, "mBART", NAMES)
    return read_options(c, "mbart", STYLE, DEFAULTS)
