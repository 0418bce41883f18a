"""Constants that several tokenizer files share."""

from __future__ import annotations

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
ADDED_TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")

NO_LIMIT = int(1e30)  # model_max_length of a tokenizer without a limit, as in transformers
LARGEST_LIMIT = int(1e20)  # a larger model_max_length is no limit
MAX_IDS = 2**26  # per call or padded batch; more are refused before any is read
# The tokenizers library frees its prefix tree recursively, and a token of 200,000 characters crashes the process. The
# longest token in a published vocabulary that we know of has 256 characters.
MAX_TOKEN_CHARS = 1000
