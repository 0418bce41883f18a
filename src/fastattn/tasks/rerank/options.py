"""The arguments of `CrossEncoder.predict` and `rank`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastattn.checks import Neutral, check_count, check_flag, check_str
from fastattn.options import Count, check_fields, option
from fastattn.tasks.rerank.activations import Activation, read_activation
from fastattn.tasks.sentence.encoding import read_tensor
from fastattn.tokenizer import check_text

# Arguments of older releases that change nothing.
OLD_KEYWORDS: Mapping[str, Neutral] = {"num_workers": Neutral(check=check_count)}
OLD_RANK_KEYWORDS: Mapping[str, Neutral] = {
    **OLD_KEYWORDS,
    "apply_softmax": Neutral(check=check_flag),
    "convert_to_numpy": Neutral(check=check_flag),
    "convert_to_tensor": Neutral(check=check_flag),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictOptions:
    """The checked arguments of one call; `CrossEncoder.predict` describes them. Raises DTypeError, InputError.

    cut: receives the index of each pair that was cut and its remaining number of tokens.
    """

    prompt_name: str | None = option(None, check_str)
    prompt: str | None = option(None, lambda name, value: check_text(value, name))
    batch_size: int = option(32, Count(low=1))
    show_progress_bar: bool | None = option(None, check_flag)
    activation_fn: Activation | None = option(None, read_activation)
    apply_softmax: bool | None = option(None, check_flag)
    convert_to_numpy: bool = option(True, check_flag)
    convert_to_tensor: bool = option(False, read_tensor)
    processing_kwargs: object = None
    cut: dict[int, int] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
