"""Reading config.json: an option is understood, or must have the value that we compute, or is known not to matter."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastattn.errors import ConfigError
from fastattn.graph.tensor import Activation

MAX_SIZE = 2**31 - 1
MAX_LAYERS = 1000

# transformers' names. gelu_fast writes sqrt(2 / pi) with ten digits, which is the same function in float32.
ACTIVATION_NAMES: Mapping[str, Activation] = {
    "gelu": "gelu_erf",
    "gelu_python": "gelu_erf",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "tanh": "tanh",
    "silu": "silu",
    "swish": "silu",
    "linear": "none",
}

# Options of any family that change nothing in what we compute: training, saving, generation, tokenizers, history.
_HARMLESS_WORDS = """
    _name_or_path _attn_implementation _commit_hash architectures auto_map bos_token_id chunk_size_feed_forward
    classifier_dropout cls_token_id custom_pipelines dtype eos_token_id finetuning_task gradient_checkpointing id2label
    initializer_range initializer_factor keys_to_ignore_at_inference label2id language_model mask_token_id model_type
    num_labels output_attentions output_hidden_states output_past pad_token_id prefix problem_type return_dict
    return_dict_in_generate sep_token_id task_specific_params tf_legacy_loss tie_encoder_decoder tie_word_embeddings
    tokenizer_class torch_dtype torchscript transformers_version trust_remote_code unk_token_id use_bfloat16 use_cache
    vocab_size
    bad_words_ids begin_suppress_tokens decoder_start_token_id diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty
    max_length min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores
    remove_invalid_values repetition_penalty suppress_tokens temperature top_k top_p typical_p
    sentence_transformers
"""
HARMLESS = frozenset(_HARMLESS_WORDS.split())
# Options of any family of which we compute one value alone.
REQUIRED: Mapping[str, tuple[object, ...]] = {
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "position_embedding_type": ("absolute", None),
    "adapters": (None,),
}

_log = logging.getLogger("fastattn")


class ConfigReader:
    """Takes the options of a config.json one by one; `finish` refuses what is left and not harmless."""

    def __init__(self, raw: Mapping[str, object], family: str) -> None:
        self.raw = raw
        self.family = family
        self._taken: set[str] = set()

    def error(self, key: str, expected: str) -> ConfigError:
        """The error for an option with a value that is not `expected`."""
        return ConfigError(f"config.json of {self.family}: {key}: expected {expected}, got {self.raw.get(key)!r:.80}")

    def size(self, key: str, default: int | None = None, *, low: int = 1, high: int = MAX_SIZE) -> int:
        """An integer from `low` to `high`. Without a default it must be there."""
        self._taken.add(key)
        value = self.raw.get(key, default)
        if value is None and default is not None:
            value = default
        if type(value) is not int or not low <= value <= high:
            raise self.error(key, f"an integer from {low} to {high}")
        return value

    def optional_size(self, key: str, *, low: int = 0) -> int | None:
        """An integer from `low` on, or None."""
        return None if self.raw.get(key) is None else self.size(key, low=low)

    def epsilon(self, key: str, default: float) -> float:
        """A finite number above 0 and below 1."""
        self._taken.add(key)
        value = self.raw.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:  # NaN is neither
            raise self.error(key, "a number above 0 and below 1")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        self._taken.add(key)
        value = self.raw.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def activation(self, key: str, default: str) -> Activation:
        """An activation function by transformers' name."""
        self._taken.add(key)
        value = self.raw.get(key, default)
        if not isinstance(value, str) or value not in ACTIVATION_NAMES:
            raise self.error(key, f"one of {', '.join(sorted(ACTIVATION_NAMES))}")
        return ACTIVATION_NAMES[value]

    def heads(self, width: int, width_key: str, heads_key: str, default: int) -> int:
        """A number of heads that divides the width."""
        heads = self.size(heads_key, default)
        if width % heads:
            raise self.error(heads_key, f"a divisor of {width_key} = {width}")
        return heads

    def token_id(self, key: str, vocab_size: int) -> int | None:
        """A token id, or None. As in transformers one that no token has (-1 is seen) does no harm: it is logged, and
        None."""
        value = self.optional_size(key, low=-MAX_SIZE)
        return value if value is None or self._has_token(key, value, vocab_size) else None

    def eos(self, vocab_size: int) -> tuple[int, ...]:
        """eos_token_id: None, one id or a list of ids; those that no token has are logged and left out."""
        self._taken.add("eos_token_id")
        value = self.raw.get("eos_token_id")
        ids: list[Any] = [] if value is None else value if isinstance(value, list) else [value]
        if not all(type(item) is int and 0 <= item <= MAX_SIZE for item in ids):
            raise self.error("eos_token_id", "a token id, a list of them or null")
        return tuple(item for item in ids if self._has_token("eos_token_id", item, vocab_size))

    def _has_token(self, key: str, value: int, vocab_size: int) -> bool:
        known = 0 <= value < vocab_size
        if not known:
            _log.warning("config.json of %s: %s = %d is ignored, vocab_size is %d", self.family, key, value, vocab_size)
        return known

    def labels(self) -> tuple[str, ...]:
        """The names of the classes in order: id2label, else num_labels times LABEL_<i>, else two."""
        self._taken.update(("id2label", "label2id", "num_labels"))
        names = self.raw.get("id2label")
        if names is None:
            count = self.size("num_labels", 2)
            if count > 1_000_000:
                raise self.error("num_labels", "at most 1000000")
            return tuple(f"LABEL_{i}" for i in range(count))
        if not isinstance(names, dict) or not names:
            raise self.error("id2label", "an object of names by class number")
        try:
            return tuple(str(names[str(i)]) for i in range(len(names)))
        except KeyError:
            raise self.error("id2label", f"the keys 0 to {len(names) - 1}") from None

    def problem_type(self) -> str | None:
        """What the scores of a classifier mean, as transformers says it."""
        self._taken.add("problem_type")
        value = self.raw.get("problem_type")
        known = ("regression", "single_label_classification", "multi_label_classification")
        if value is not None and value not in known:
            raise self.error("problem_type", f"null or one of {', '.join(known)}")
        return str(value) if value is not None else None

    def must_be(self, key: str, *allowed: object) -> None:
        """Refuse an option, where it is there, that has another value than the ones that we compute."""
        self._taken.add(key)
        if key in self.raw and not any(type(self.raw[key]) is type(v) and self.raw[key] == v for v in allowed):
            values = " or ".join(repr(value) for value in allowed)
            raise ConfigError(
                f"config.json of {self.family}: {key} = {self.raw[key]!r:.80} is unsupported; supported: {values}"
            )

    def finish(self, harmless: str = "") -> None:
        """Check the options that every family shares, and log the ones that nobody knows."""
        for key, allowed in REQUIRED.items():
            self.must_be(key, *allowed)
        for key in ("auto_map", "trust_remote_code"):
            if key in self.raw:
                _log.warning("config.json of %s: %s is ignored; no code of a checkpoint is run", self.family, key)
        known = HARMLESS | self._taken | set(harmless.split())
        for key in sorted(set(self.raw) - known):
            _log.warning("config.json of %s: unknown option %s = %r is ignored", self.family, key, self.raw[key])
