"""The keys of an embeddings cache: everything that decides the bits of a vector."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

from fastattn import _core
from fastattn.tasks.sentence.text_model import TextTask, TextTruncation
from fastattn.tokenizer import Tokenizer

_FORMAT = 1  # of the keys


def settings_key(
    model_digest: str,
    tokenizer_digest: str,
    *,
    device: str,
    dtype: str,
    max_seq_length: float,
    modules: tuple[str, ...],
    truncation: TextTruncation,
    task: TextTask | None,
    prompt_len: int,
) -> bytes:
    """Return the part of the keys that all texts of a call share.

    The version of fastattn is part of it, because only one version promises equal bits (the numerics contract). So is
    the order in which the CPU adds bfloat16 products, if the model uses them.
    """
    sums = _core.bfloat16_sums(_core.active_target()) if device == "cpu" and dtype == "bfloat16" else ""
    parts: list[Any] = [_FORMAT, _core.version, model_digest, tokenizer_digest, device, dtype, sums]
    parts += [str(max_seq_length), modules, repr(truncation), task, prompt_len]
    return hashlib.sha256(json.dumps(parts).encode()).digest()


def text_key(shared: bytes, first: str, second: str | None) -> bytes:
    """Return the key of a text or pair, with its prompt."""
    texts = json.dumps([first, second])
    return hashlib.sha256(shared + texts.encode()).digest()


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """Return the SHA-256 of a tokenizer and of all its settings."""
    options = replace(tokenizer.options, name_or_path="")
    return hashlib.sha256(f"{tokenizer._state.encoder.to_str()}\0{options!r}".encode()).hexdigest()
