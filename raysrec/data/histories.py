"""Histories in memory: users and items with their numbers, each user's interactions in order.

Here stand the rules by which interactions become histories. All of the data, or some of its users: the same functions
serve both, so that whoever prepares a part of the users gets what the whole would give for them.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysrec.config import DataConfig

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Histories:
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


@dataclass(frozen=True, eq=False)
class Counts:
    """What is counted of some users' histories; counts of parts of the users add up to those of all."""

    num_users: int
    num_interactions: int
    num_targets: int
    longest_history: int
    tied_interactions: int
    tied_validation_targets: int
    tied_test_targets: int
    of_items: IntArray
    """Interactions of each item, at the index of its number."""
    held_out: IntArray
    """How many of these are a user's last two."""

    @classmethod
    def of(cls, histories: Histories, num_items: int) -> Self:
        """Of whole histories, of which there may be none."""
        lengths, ends = np.diff(histories.offsets), histories.offsets[1:]
        last_two = histories.items[np.concatenate([ends - 1, ends - 2])]
        return cls(
            num_users=len(lengths),
            num_interactions=len(histories.items),
            num_targets=int(np.maximum(lengths - 3, 0).sum()),
            longest_history=int(lengths.max(initial=0)),
            **count_ties(histories),
            of_items=np.bincount(histories.items, minlength=num_items + 1),
            held_out=np.bincount(last_two, minlength=num_items + 1),
        )

    def __add__(self, other: "Counts") -> "Counts":
        both = {name: value + getattr(other, name) for name, value in vars(self).items()}
        return Counts(**both | {"longest_history": max(self.longest_history, other.longest_history)})

    def for_manifest(self) -> dict[str, int]:
        """The manifest's fields of these names."""
        return {name: value for name, value in vars(self).items() if isinstance(value, int)}


def count_ties(histories: Histories) -> dict[str, int]:
    """How much of the order is decided by the rule for ties: the manifest's three counts of it."""
    ends = histories.offsets[1:]
    same = np.zeros(len(histories.times) + 1, dtype=np.bool_)  # same[i]: i - 1 and i are one user's at the same time
    same[1:-1] = histories.times[1:] == histories.times[:-1]
    same[histories.offsets] = False
    return {
        "tied_interactions": int(np.count_nonzero(same[1:] | same[:-1])),
        "tied_validation_targets": int(np.count_nonzero(same[ends - 1] | same[ends - 2])),
        "tied_test_targets": int(np.count_nonzero(same[ends - 1])),
    }


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


def nothing_left(config: DataConfig, interactions: int) -> ValueError:
    """The error where filtering keeps nothing."""
    return ValueError(
        f"data.user_interactions={config.user_interactions} and data.item_interactions={config.item_interactions}: "
        f"nothing is left of the {interactions} interactions of {config.source}; widen the intervals"
    )
