"""Arrays in which things of different lengths lie end to end."""

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


def offsets_of(lengths: NDArray[np.integer] | NDArray[np.bool_]) -> IntArray:
    """Where each of some things of these lengths begins when they lie end to end, and where the last one ends."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
