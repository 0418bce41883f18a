"""M2M100 (Fan et al. 2020) and NLLB: sines as positions, norms before attention and the inner layers."""

from __future__ import annotations

from collections.abc import Mapping

from fastattn.models.config import ConfigReader
from fastattn.models.seq2seq import NAMES, Defaults, Seq2SeqConfig, Style, read_options

ARCHITECTURES = ("M2M100ForConditionalGeneration", "M2M100Model")
PADDING_ID = 1  # position 0 has the row after it
STYLE = Style(
    learned=False,
    interpolated=True,
    offset=PADDING_ID + 1,
    norm_first=True,
    norm_embedding=False,
    logits_bias=False,
)
DEFAULTS = Defaults(vocab_size=128112, activation="relu", scale_embedding=True)


def read_config(raw: Mapping[str, object]) -> Seq2SeqConfig:
    """Read config.json. Raises ConfigError."""
    c = ConfigReader(raw, "M2M100", NAMES)
    c.must_be("pad_token_id", PADDING_ID)
    return read_options(c, "m2m_100", STYLE, DEFAULTS)
