"""Which interactions are kept when users and items must each have enough of them, and not too many.

Arithmetic on integer codes: nothing here knows files, ids or the order of a history.
"""

import numpy as np
from numpy.typing import NDArray

from raysrec.schema import Interval

ROWS_AT_ONCE = 1 << 24
"""Interactions counted together; `np.bincount` makes an 8-byte copy of each."""


def keep_intervals(
    user_codes: NDArray[np.integer], item_codes: NDArray[np.integer], *, users: Interval, items: Interval
) -> tuple[NDArray[np.bool_], int]:
    """Which interactions remain once every user and every item has an allowed number of them.

    A round finds, on the current counts, all users outside their interval and all items outside theirs, and drops the
    interactions of both at the same time; rounds go on until one finds nothing. Upper bounds take part in every
    round, so an item that is too frequent at first is gone for good, even if later rounds would have thinned it out.
    A user and an item that meet several times count several times.

    Args:
        user_codes: Which user each interaction belongs to; small whole numbers from 0.
        item_codes: Which item, likewise.
        users: The number of interactions a user may have.
        items: The number of interactions an item may have.

    Returns:
        A mask over the interactions, true where kept, and the number of rounds that dropped something.

    Source:
        RecBole 1.2, `Dataset._filter_by_inter_num`, described in its documentation of `user_inter_num_interval`.
    """
    kept = np.ones(len(user_codes), dtype=np.bool_)
    user_counts, item_counts = _counts(user_codes), _counts(item_codes)
    rounds = 0
    while True:
        dropped = outside(user_counts, users)[user_codes]
        dropped |= outside(item_counts, items)[item_codes]
        dropped &= kept
        if not dropped.any():
            return kept, rounds
        kept &= ~dropped
        rounds += 1
        user_counts -= _counts(user_codes[dropped], len(user_counts))
        item_counts -= _counts(item_codes[dropped], len(item_counts))


def outside(counts: NDArray[np.int64], allowed: Interval) -> NDArray[np.bool_]:
    """Which counts the interval does not allow."""
    return (counts < allowed.low) | (counts > allowed.high)


def _counts(codes: NDArray[np.integer], size: int = 0) -> NDArray[np.int64]:
    """How often each code occurs; at least `size` counts."""
    size = max(size, int(codes.max()) + 1 if len(codes) else 0)
    counts = np.zeros(size, dtype=np.int64)
    for start in range(0, len(codes), ROWS_AT_ONCE):
        counts += np.bincount(codes[start : start + ROWS_AT_ONCE], minlength=size)
    return counts
