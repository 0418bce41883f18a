"""Marian (Junczys-Dowmunt et al. 2018), the translation models of OPUS-MT: BART with sines as positions."""

from __future__ import annotations

from collections.abc import Mapping

from fastattn.models.config import ConfigReader
from fastattn.models.seq2seq import NAMES, Defaults, Seq2SeqConfig, Style, read_options

ARCHITECTURES = (
    "MarianMTModel",
    "MarianModel",
)
STYLE = Style(learned=False, offset=0, norm_embedding=False)
DEFAULTS = Defaults(vocab_size=58101, bos=None, eos=0, pad=58100, start=58100)


def read_config(raw: Mapping[str, object]) -> Seq2SeqConfig:
    """Read config.json. Raises ConfigError."""
    c = ConfigReader(raw, "Marian", NAMES)
    c.must_be("share_encoder_decoder_embeddings", True)
    if c.raw("decoder_vocab_size") not in (None, c.raw("vocab_size")):
        raise c.error("decoder_vocab_size", "vocab_size, because both sides share their embeddings")
    return read_options(c, "marian", STYLE, DEFAULTS)
