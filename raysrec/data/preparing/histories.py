"""Histories in memory: users and items with their numbers, each user's interactions in order.

Here stand the rules by which interactions become histories. All of the data, or some of its users: the same functions
serve both, so that whoever prepares a part of the users gets what the whole would give for them.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysrec.config import DataConfig
from raysrec.data.arrays import IntArray
from raysrec.data.preparing.counts import Counts, ItemCounts
from raysrec.data.splits import SplitRule
from raysrec.errors import LastingError

COUNTED_AT_ONCE = 1 << 20
"""Interactions that are counted together, so that counting takes little memory beside the histories."""


@dataclass(frozen=True)
class NumberedHistories:
    """Users' histories end to end, as they are written."""

    users: IntArray
    """The users' numbers, rising; 1..M where it is all of them."""
    user_ids: pa.Array
    """Their external ids."""
    offsets: IntArray
    """Where each user's history starts in `items` and `times`, from 0, and where the last one ends."""
    items: NDArray[np.int32]
    """Item numbers 1..N, oldest first within a user."""
    times: IntArray
    """Unix time of each of `items`, as the source counts it."""
    per_second: int = 1
    """How much of `times` is a second; seconds are written."""

    def parts(self) -> Iterator[tuple[IntArray, NDArray[np.int32], IntArray]]:
        """Offsets from 0, items and times of some users after the other: what is counted at once."""
        for first, last in cut_users(self.offsets, COUNTED_AT_ONCE):
            begin, end = self.offsets[first], self.offsets[last]
            yield self.offsets[first : last + 1] - begin, self.items[begin:end], self.times[begin:end]

    def seconds(self) -> Iterator[IntArray]:
        """Unix seconds of the interactions of some users after the other."""
        return (self.in_seconds(times) for _, _, times in self.parts())

    def in_seconds(self, times: IntArray) -> IntArray:
        """Some of the times as they are written."""
        return times if self.per_second == 1 else times // self.per_second


def count_histories(histories: NumberedHistories, rule: SplitRule, num_items: int) -> tuple[Counts, ItemCounts]:
    """What the manifest and the catalogue say of these histories, split by this rule."""
    counts, of_items = Counts(), ItemCounts.none(num_items)
    for offsets, items, times in histories.parts():
        counts += Counts.of(rule, offsets, items, times, histories.per_second)
        of_items += ItemCounts.of(rule, offsets, items, histories.in_seconds(times), num_items)
    return counts, of_items


def cut_users(offsets: IntArray, share: int) -> list[tuple[int, int]]:
    """Users in stretches, `first` to `last` - 1 counted from 0, each closed by who brings it over the share.

    Args:
        offsets: Where each user's history starts among all interactions, from 0, and where the last one ends.
        share: Interactions.
    """
    starts = np.flatnonzero(np.diff(offsets[:-1] // share, prepend=-1))
    return list(itertools.pairwise([*starts.tolist(), len(offsets) - 1]))


def number_by_appearance(codes: NDArray[np.int32], ids: pa.Array) -> tuple[NDArray[np.int32], pa.Array]:
    """Codes renumbered 1, 2, … in the order in which they first appear, and the ids in that order.

    Ids whose code does not appear are left out.
    """
    numbers, appearing = number_by_position(first_positions(codes, np.arange(len(codes)), len(ids)))
    return numbers[codes], ids.take(pa.array(appearing))


def first_positions(codes: NDArray[np.integer], positions: IntArray, size: int) -> IntArray:
    """The smallest position of each code 0..size-1; `NOWHERE` for one that does not occur."""
    first = np.full(size, NOWHERE)
    np.minimum.at(first, codes, positions)
    return first


NOWHERE = np.iinfo(np.int64).max
"""The position of what does not appear: after all others."""


def number_by_position(first: IntArray) -> tuple[NDArray[np.int32], IntArray]:
    """Numbers 1, 2, … by first position, 0 for what appears nowhere; and which are numbered, in that order."""
    appearing = np.flatnonzero(first < NOWHERE)
    appearing = appearing[np.argsort(first[appearing])]
    numbers = np.zeros(len(first), dtype=np.int32)
    numbers[appearing] = np.arange(1, len(appearing) + 1)
    return numbers, appearing


def nothing_left(config: DataConfig, interactions: int) -> LastingError:
    """The error where filtering keeps nothing."""
    return LastingError(
        f"data.user_interactions={config.user_interactions} and data.item_interactions={config.item_interactions}: "
        f"nothing is left of the {interactions} interactions of {config.source}; widen the intervals"
    )
