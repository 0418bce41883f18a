"""What a task answers is made of numbers: a model that gives NaN or infinity is an error, not an answer."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastattn.errors import NonFiniteError


def check_finite(values: NDArray[np.floating[Any]], text: str, what: str) -> None:
    """NonFiniteError where one of the values that the model gives for a text is NaN or infinite.

    text: the argument that holds it, as "inputs[3]". what: the values, as "scores".
    """
    finite = np.isfinite(values)
    if not finite.all():
        bad = values[~finite].flat[0]
        raise NonFiniteError(f"{text}: expected finite {what} from the model, got {bad}")
