"""The settings in a tokenizer's files that are not part of the `tokenizers` library's pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from fastattn.tokenizer.marian import MarianSteps

Side = Literal["left", "right"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerOptions:
    """Settings that `Tokenizer` applies to the library's tokenizer, with transformers' defaults.

    class_name: transformers' class without "Fast", None if no file names one.
    special_tokens: role ("bos", "eos", "unk", "sep", "pad", "cls", "mask") to token.
    named_special_tokens: a model's own name ("image" for `image_token`) to special token.
    extra_special_tokens: special tokens without a role.
    model_max_length: in tokens; None means no limit.
    model_input_names: the columns of an encoding that the model accepts.
    add_bos_token, add_eos_token: the values from the files or the user; only the post-processor affects encoding.
    clean_up_tokenization_spaces: for decoding; a BPE tokenizer ignores it unless clean_up_spaces_of_bpe is true.
    chat_template: a Jinja template for `Tokenizer.apply_chat_template`.
    steps: the steps of a class in Python, outside the library; token positions in a text are then unknown.
    """

    class_name: str | None = None
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    named_special_tokens: Mapping[str, str] = field(default_factory=dict)
    extra_special_tokens: tuple[str, ...] = ()
    model_max_length: int | None = None
    model_input_names: tuple[str, ...] = ("input_ids", "token_type_ids", "attention_mask")
    padding_side: Side = "right"
    truncation_side: Side = "right"
    split_special_tokens: bool = False
    clean_up_tokenization_spaces: bool = False
    clean_up_spaces_of_bpe: bool = False
    add_bos_token: bool = False
    add_eos_token: bool = False
    name_or_path: str = ""
    steps: MarianSteps | None = None
    chat_template: str | None = None

    @property
    def type_ids(self) -> bool:
        """Whether the model accepts token type ids."""
        return "token_type_ids" in self.model_input_names
