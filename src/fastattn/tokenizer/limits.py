"""Constants that several files of the tokenizer share."""

from __future__ import annotations

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
ADDED_TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")

NO_LIMIT = int(1e30)  # model_max_length of a tokenizer without a limit, as in transformers
LARGEST_LIMIT = int(1e20)  # a larger model_max_length is no limit
MAX_IDS = 2**26  # more ids in one call or one padded batch are refused before any is read
# The tokenizers library walks its prefix tree recursively when it frees it: a token of 200,000 characters ends the
# process. The longest token of a published vocabulary that we know has 256 characters.
MAX_TOKEN_CHARS = 1000
