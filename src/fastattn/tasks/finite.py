"""Checks that the numbers in a result are finite: a model that returns NaN or infinity is an error."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastattn.errors import NonFiniteError


def check_finite(values: NDArray[np.floating[Any]], text: str, what: str) -> None:
    """Raise NonFiniteError if one of the model's values for a text is NaN or infinite.

    text: the argument that holds the text, such as "inputs[3]". what: the name of the values, such as "scores".
    """
    finite = np.isfinite(values)
    if not finite.all():
        bad = values[~finite].flat[0]
        raise NonFiniteError(f"{text}: expected finite {what} from the model, got {bad}")
