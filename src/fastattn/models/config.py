"""Reads config.json. Each option is used, must have a supported value, is known to change nothing, or is logged."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar

from fastattn.checks import closest, quote, shown_names
from fastattn.errors import ConfigError, InputError
from fastattn.graph.kinds import Activation
from fastattn.models.labels import LabelTable, read_labels
from fastattn.settings import Settings

MAX_SIZE = 2**31 - 1
MAX_LAYERS = 1000
MAX_TABLE_POSITIONS = 1 << 20  # of families that compute a number or row for each relative position
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")

# transformers' names. gelu_fast has sqrt(2 / pi) to ten digits, which is the same function in float32.
ACTIVATION_NAMES: Mapping[str, Activation] = {
    "gelu": "gelu_erf",
    "gelu_python": "gelu_erf",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
    "tanh": "tanh",
    "silu": "silu",
    "swish": "silu",
    "linear": "none",
}

# Options of any family that do not affect the result: training, saving, generation, tokenizers, history.
_HARMLESS_WORDS = """
    _name_or_path _attn_implementation _commit_hash architectures auto_map bos_token_id chunk_size_feed_forward
    classifier_dropout cls_token_id custom_pipelines dtype eos_token_id finetuning_task gradient_checkpointing
    initializer_range initializer_factor keys_to_ignore_at_inference language_model mask_token_id model_type
    output_past prefix return_dict return_dict_in_generate sep_token_id task_specific_params tf_legacy_loss
    tie_encoder_decoder tie_word_embeddings tokenizer_class torch_dtype torchscript transformers.js_config
    transformers_version
    trust_remote_code unk_token_id use_bfloat16 use_cache vocab_size
    bad_words_ids begin_suppress_tokens decoder_start_token_id diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty
    max_length min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores
    remove_invalid_values repetition_penalty suppress_tokens temperature top_k top_p typical_p
    sentence_transformers
"""
HARMLESS = frozenset(_HARMLESS_WORDS.split())
# Options of any family for which only some values are supported.
REQUIRED: Mapping[str, tuple[object, ...]] = {
    "is_decoder": (False, None),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "cross_attention_hidden_size": (None,),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "position_embedding_type": ("absolute", None),
    "adapters": (None,),
    "per_layer_config": (None,),
    "tie_last_hidden_states": (None, True),
}

# Options of any family for which transformers treats null like a missing option. For all others it fails, or computes
# something else.
_NULL_WORDS = """
    label2id layer_types local_rope_theta n_inner output_attentions output_hidden_states pos_att_type problem_type
    rope_parameters rope_scaling share_att_key
"""
_NULL_IS_DEFAULT = frozenset(_NULL_WORDS.split())
_log = logging.getLogger("fastattn")
_MAX_NAMED = 20
_Config = TypeVar("_Config", bound=type)
_Default = TypeVar("_Default")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonConfig:
    """The options that all families share, in transformers' names.

    eos_token_ids: all ids that end a text. generation_pad_token_id: the padding id of `generate`. labels: the class
    names in order. label2id: as in the file, else the inverse of labels. output_hidden_states, output_attentions: the
    defaults of a call. position_offset: the row of the position table for position 0 (RoBERTa: the padding id + 1).
    """

    vocab_size: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    generation_pad_token_id: int | None
    labels: tuple[str, ...]
    label2id: Mapping[str, int]
    problem_type: str | None
    output_hidden_states: bool
    output_attentions: bool
    architectures: tuple[str, ...]
    model_type: str
    position_offset: int = 0

    if TYPE_CHECKING:  # each family has these as fields or properties (`add_names`)

        @property
        def hidden_size(self) -> int: ...
        @property
        def num_hidden_layers(self) -> int: ...
        @property
        def num_attention_heads(self) -> int: ...
        @property
        def max_position_embeddings(self) -> int: ...
        @property
        def type_vocab_size(self) -> int | None: ...

    @property
    def max_positions(self) -> int:
        """The longest text, in tokens."""
        return self.max_position_embeddings - self.position_offset

    @property
    def eos_token_id(self) -> int | list[int] | None:
        """None, one id or a list of ids, as in transformers."""
        ids = self.eos_token_ids
        return None if not ids else ids[0] if len(ids) == 1 else list(ids)

    @property
    def num_labels(self) -> int:
        return len(self.labels)

    @property
    def id2label(self) -> Mapping[int, str]:
        return LabelTable(enumerate(self.labels))


def unchangeable(config: _Config) -> _Config:
    """Decorate a config class so that setting an attribute raises InputError, which says what to do instead."""

    def refuse(self: object, name: str, value: object) -> None:
        raise InputError(
            f"config.{quote(name)[1:-1]}: expected no change after loading, got {quote(value)}; num_labels, id2label, "
            "label2id, problem_type, pad_token_id and the output_ options can be given to from_pretrained"
        )

    setters: Callable[..., None] = refuse
    type.__setattr__(config, "__setattr__", setters)
    return config


def add_names(names: Mapping[str, str]) -> Callable[[_Config], _Config]:
    """Return a decorator that adds a property for each of transformers' common names; see `ConfigReader`."""

    def add(config: _Config) -> _Config:
        for common, own in names.items():
            setattr(config, common, property(attrgetter(own)))
        return config

    return add


class ConfigReader(Settings):
    """Reads the options of a config.json one by one. `finish` reports unused options that are not known to be harmless.

    names: maps transformers' common option names to the family's own names. As in transformers, the common one is used
    if both are given.
    """

    def __init__(self, raw: Mapping[str, Any], family: str, names: Mapping[str, str] | None = None) -> None:
        renamed = {own: raw[common] for common, own in (names or {}).items() if common in raw}
        super().__init__(f"config.json of {family}", {**raw, **renamed})
        self.family = family
        self._taken.update(names or ())

    def _missing(self, key: str, default: _Default, expected: str) -> _Default:
        """Return the default of a missing key. Null is refused, unless transformers treats it like a missing option."""
        if key in self.values and key not in _NULL_IS_DEFAULT:
            raise self.error(key, expected)
        return default

    def size(self, key: str, default: int | None = None, *, low: int = 1, high: int = MAX_SIZE) -> int:
        """Read an integer from `low` to `high`. It is required if there is no default."""
        value = self.raw(key)
        if value is None and default is not None:
            value = self._missing(key, default, f"an integer from {low} to {high}")
        if type(value) is not int or not low <= value <= high:
            raise self.error(key, f"an integer from {low} to {high}")
        return value

    def epsilon(self, key: str, default: float | None) -> float:
        """Read a finite number above 0 and below 1. It is required if the default is None."""
        value = self.raw(key) if key in self.values else default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:  # NaN fails too
            raise self.error(key, "a number above 0 and below 1")
        return float(value)

    def activation(self, key: str, default: str) -> Activation:
        """Read an activation function by transformers' name."""
        value = self.raw(key) if key in self.values else default
        if not isinstance(value, str) or value not in ACTIVATION_NAMES:
            raise self.error(key, f"one of {', '.join(sorted(ACTIVATION_NAMES))}")
        return ACTIVATION_NAMES[value]

    def heads(self, width: int, width_key: str, heads_key: str, default: int) -> int:
        """Read a number of heads that divides the width."""
        heads = self.size(heads_key, default)
        if width % heads:
            raise self.error(heads_key, f"a divisor of {width_key} = {width}")
        return heads

    def common(
        self,
        model_type: str,
        vocab_size: int,
        *,
        bos: int | None = None,
        eos: int | None = None,
        pad: int | None = None,
    ) -> dict[str, Any]:
        """Read the fields of CommonConfig.

        bos, eos, pad: the default ids, from the family's config class in transformers.
        """
        labels = read_labels(self)
        self.raw("model_type")  # `find_family` used it
        architectures = self.raw("architectures")
        pad_id = self.token_id("pad_token_id", vocab_size, pad)
        return {
            "model_type": model_type,
            "vocab_size": vocab_size,
            "bos_token_id": self.token_id("bos_token_id", vocab_size, bos),
            "eos_token_ids": self.eos(vocab_size, eos),
            "pad_token_id": pad_id,
            "generation_pad_token_id": self.token_id("generation_pad_token_id", vocab_size, pad_id),
            "labels": labels.names,
            "label2id": LabelTable(labels.ids),
            "problem_type": self.problem_type(),
            "output_hidden_states": self.flag("output_hidden_states", False),
            "output_attentions": self.flag("output_attentions", False),
            "architectures": tuple(architectures) if isinstance(architectures, list) else (),
        }

    def token_id(self, key: str, vocab_size: int, default: int | None = None) -> int | None:
        """Read a token id, or None. As in transformers, ids outside the vocabulary (like -1) are logged and ignored."""
        if key not in self.values:
            return default if default is not None and default < vocab_size else None
        value = None if self.raw(key) is None else self.count(key, None, low=-MAX_SIZE)
        return None if value is None else next(iter(self._known(key, [value], vocab_size)), None)

    def eos(self, vocab_size: int, default: int | None = None) -> tuple[int, ...]:
        """Read eos_token_id: None, one id or a list of ids. Ids outside the vocabulary are logged and ignored."""
        value = self.raw("eos_token_id")
        if "eos_token_id" not in self.values:
            return () if default is None or default >= vocab_size else (default,)
        ids: list[Any] = [] if value is None else value if isinstance(value, list) else [value]
        if not all(type(item) is int and 0 <= item <= MAX_SIZE for item in ids):
            raise self.error("eos_token_id", "a token id, a list of them or null")
        return tuple(self._known("eos_token_id", ids, vocab_size))

    def _known(self, key: str, ids: list[int], vocab_size: int) -> list[int]:
        """Return the ids in the vocabulary, and log the others."""
        others = [value for value in ids if not 0 <= value < vocab_size]
        if others:
            shown = quote(others[0] if len(others) == 1 else others)
            _log.warning("%s: %s = %s is ignored, vocab_size is %d", self.where, key, shown, vocab_size)
        return [value for value in ids if 0 <= value < vocab_size]

    def problem_type(self) -> str | None:
        """Read problem_type: what a classifier's scores mean. Values unknown to transformers are logged and ignored."""
        value = self.text("problem_type", None)
        if value is None or value in PROBLEM_TYPES:
            return value
        hint = closest(value, PROBLEM_TYPES)
        _log.warning(
            "%s: problem_type = %s is ignored, because transformers does not have it%s", self.where, quote(value), hint
        )
        return None

    def must_be(self, key: str, *allowed: object) -> None:
        """Refuse an option that has a value other than the supported ones."""
        value = self.raw(key)
        if key in self.values and not any(type(value) is type(v) and value == v for v in allowed):
            values = " or ".join(repr(item) for item in allowed)
            raise ConfigError(f"{self.where}: {key} = {quote(value)} is unsupported; supported: {values}")

    def finish(self, harmless: str = "", own: Collection[str] = ()) -> None:
        """Check the options that every family shares, and log the unknown ones.

        own: the options of REQUIRED that the family has read.
        """
        for key, allowed in REQUIRED.items():
            if key not in own:
                self.must_be(key, *allowed)
        for key in ("auto_map", "trust_remote_code"):
            if self.values.get(key):
                _log.warning("%s: %s is ignored; code from a checkpoint never runs", self.where, key)
        if self.values.get("return_dict") is False:
            _log.warning("%s: return_dict = False is ignored; outputs can be indexed like tuples", self.where)
        self.ignore(*HARMLESS, *harmless.split())
        self.finished = True
        names = self.unused()
        if names:
            options = (f"{quote(name, 40)[1:-1]} = {quote(self.values[name], 40)}" for name in names)
            shown = shown_names(options, len(names), _MAX_NAMED)
            _log.warning("%s: unknown options are ignored: %s", self.where, shown)
