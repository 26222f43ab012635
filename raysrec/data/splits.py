"""Which of a user's interactions are learned from, and which one is held out to validate and which to test.

Two ways. *Leave one out*: a user's last interaction tests, the second last validates, what comes before is learned
from. *Temporal*: two moments cut time for everybody; before the first is learned from, between the two is validated,
from the second on is tested. A user's target in such a time is the last interaction there (or the first, by
`data.split.target`), and the history given with it is all that the user had before, also from within that time.
The last is the default because what a model is asked for should resemble what it learned: between a user's last
interaction before the cut and the first one after it lies a break that the rest of the history may not know. A target
needs a history: a user's very first interaction is never one, and who has no other interaction in a time is not ranked
there.

All else knows positions only; they are found anew wherever histories are read, and no file holds them.

Source:
    Gusak et al., "Time to Split: Exploring Data Splitting Strategies for Offline Evaluation of Sequential
    Recommenders", RecSys 2025, which compares these and other targets; testing on a tenth is theirs, too.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raysrec.config import SplitConfig
from raysrec.data.arrays import IntArray
from raysrec.errors import LastingError
from raysrec.schema import Section, date_of

HELD_OUT = ("validation", "test")
"""What is held out, in order of time."""

BUCKETS = 1 << 16
"""Stretches of time whose interactions are counted in one pass over the times."""


@dataclass(frozen=True)
class Positions:
    """What some histories are used for; position 0 is a history's oldest interaction."""

    train: IntArray
    """How many interactions of each history are learned from: its first ones."""
    held_out: Mapping[str, IntArray]
    """For each of `HELD_OUT`, the position of the item to rank in each history; -1 where there is none."""

    @property
    def num_targets(self) -> IntArray:
        """Training targets of each history: each interaction to learn from but the first, which nothing precedes."""
        return np.maximum(self.train - 1, 0)


class SplitRule(Section):
    """How histories are split: what `data.split` asks for, its moments found."""

    name: Literal["leave_one_out", "temporal"] = "leave_one_out"
    """As in `data.split.name`."""
    target: Literal["last", "first"] = "last"
    """`temporal`: which of a user's interactions in a time is ranked."""
    validate_from: int = 0
    """`temporal`: Unix seconds at which the time to validate begins; before it is learned from."""
    test_from: int = 0
    """`temporal`: Unix seconds at which the time to test begins, which has no end."""

    def __str__(self) -> str:
        if self.name == "leave_one_out":
            return "leave one out: each user's last interaction tests, the one before validates"
        return (
            f"temporal: learns before {date_of(self.validate_from)}, validates before {date_of(self.test_from)}, tests "
            f"from there on, on each user's {self.target} interaction (UTC)"
        )

    def positions(self, offsets: IntArray, times: IntArray) -> Positions:
        """Where histories are cut.

        Args:
            offsets: Where each history starts in `times`, and where the last one ends.
            times: Unix seconds of all histories, oldest first within each.
        """
        lengths = np.diff(offsets)
        if self.name == "leave_one_out":
            held_out = {"validation": _with_history(lengths - 2), "test": _with_history(lengths - 1)}
            return Positions(np.maximum(lengths - 2, 0), held_out)
        train, before_test = (_count_before(moment, offsets, times) for moment in (self.validate_from, self.test_from))
        held_out = {"validation": self._within(train, before_test), "test": self._within(before_test, lengths)}
        return Positions(train, held_out)

    def _within(self, starts: IntArray, stops: IntArray) -> IntArray:
        """The target among positions starts..stops-1 of each history; -1 where there is none."""
        chosen = stops - 1 if self.target == "last" else np.maximum(starts, 1)
        return np.where((chosen >= np.maximum(starts, 1)) & (chosen < stops), chosen, -1)


def find_rule(config: SplitConfig, read_times: Callable[[], Iterable[IntArray]]) -> SplitRule:
    """The rule that the config asks for; where it names shares, the moments are found among the times.

    Args:
        config: What is asked for.
        read_times: Gives the Unix seconds of all interactions in parts of any size and order, as often as it is called.

    Raises:
        LastingError: Nothing would be validated on, because too many interactions have the same time.
    """
    if config.name == "leave_one_out":
        return SplitRule()
    if config.validate_from is not None and config.test_from is not None:
        validate_from, test_from = config.validate_from.seconds, config.test_from.seconds
    else:
        total = sum(len(times) for times in read_times())
        test_from, validate_from = (
            latest_with(read_times, max(1, round(total * share)))
            for share in (config.test_share, config.test_share + config.validation_share)
        )
        if validate_from == test_from:
            raise LastingError(
                f"data.split.validation_share={config.validation_share:g} and "
                f"data.split.test_share={config.test_share:g}: at {date_of(test_from)} there are so many interactions "
                "that nothing is left to validate on; name data.split.validate_from and data.split.test_from"
            )
    return SplitRule(name="temporal", target=config.target, validate_from=validate_from, test_from=test_from)


def latest_with(read_times: Callable[[], Iterable[IntArray]], count: int) -> int:
    """The latest moment at or after which at least `count` of the times lie.

    Counts in ever narrower stretches of time, so memory does not grow with the number of times; seconds of a century
    take two passes and one to begin with.
    """
    ends = [(int(times.min()), int(times.max())) for times in read_times() if len(times)]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    later = 0  # times after `high`
    while low < high:
        width = (high - low) // BUCKETS + 1
        counts = np.zeros(BUCKETS, np.int64)
        for times in read_times():
            inside = times[(times >= low) & (times <= high)]
            counts += np.bincount((_steps_from(low, inside) // np.uint64(width)).astype(np.int64), minlength=BUCKETS)
        from_here = later + np.cumsum(counts[::-1])[::-1]
        bucket = int(np.flatnonzero(from_here >= count)[-1])
        later = int(from_here[bucket]) - int(counts[bucket])
        low, high = low + bucket * width, min(high, low + (bucket + 1) * width - 1)
    return low


def in_first(offsets: IntArray, counts: IntArray) -> NDArray[np.bool_]:
    """For each interaction of some histories: is it among the first `counts` of its history?"""
    lengths = np.diff(offsets)
    within = np.arange(offsets[0], offsets[-1]) - np.repeat(offsets[:-1], lengths)
    return within < np.repeat(counts, lengths)


def _count_before(moment: int, offsets: IntArray, times: IntArray) -> IntArray:
    """How many interactions of each history lie before a moment: all histories are bisected at once."""
    low, high = offsets[:-1], offsets[1:]  # the first one at or after the moment lies within
    while (low < high).any():
        middle = np.minimum((low + high) // 2, len(times) - 1)
        earlier = (low < high) & (times[middle] < moment)
        low, high = np.where(earlier, middle + 1, low), np.where(earlier, high, np.minimum(middle, high))
    return low - offsets[:-1]


def _with_history(positions: IntArray) -> IntArray:
    found: IntArray = np.where(positions >= 1, positions, -1)
    return found


def _steps_from(low: int, times: IntArray) -> NDArray[np.uint64]:
    """How far times lie after `low`, also where the distance is no int64."""
    steps: NDArray[np.uint64] = times.astype(np.int64).view(np.uint64) - np.int64(low).view(np.uint64)
    return steps
