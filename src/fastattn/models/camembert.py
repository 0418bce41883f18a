"""CamemBERT (Martin et al. 2020): RoBERTa with its own vocabulary and architecture names."""

from __future__ import annotations

from collections.abc import Mapping

from fastattn.models.bert import HEADS, BertConfig, read_bert_config
from fastattn.models.config import ConfigReader

ARCHITECTURES = tuple(f"Camembert{head}" for head in HEADS.split())


def read_config(raw: Mapping[str, object]) -> BertConfig:
    """Read config.json. Raises ConfigError."""
    c = ConfigReader(raw, "CamemBERT")
    padding = c.count("pad_token_id", 1)
    common = c.common("camembert", c.size("vocab_size", 30522), bos=0, eos=2, pad=1)
    return read_bert_config(c, common, padding + 1)
