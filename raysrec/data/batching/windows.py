"""Which stretch of which history is one row of a batch, and at which of its positions it learns.

The first n interactions of a user are learned from (`splits.py` says how many), and the first of them is never a
target, so positions 0..n-2 each have one: the item that follows. Windows say how these n-1 positions are cut into
rows. Everything here is arithmetic on lengths; no item is touched.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from raysrec.config import TrainConfig
from raysrec.data.arrays import IntArray
from raysrec.data.splits import Positions


@dataclass(frozen=True)
class Windows:
    """Rows of a batch: positions start..stop-1 of a history are read, those from `learn_from` on have a target."""

    rows: IntArray
    """Which history."""
    starts: IntArray
    stops: IntArray
    learn_from: IntArray

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: IntArray) -> "Windows":
        """The windows at these indices, in this order."""
        return Windows(self.rows[indices], self.starts[indices], self.stops[indices], self.learn_from[indices])

    @property
    def lengths(self) -> IntArray:
        """Positions of each window."""
        return self.stops - self.starts

    @property
    def num_targets(self) -> IntArray:
        """Targets of each window."""
        return self.stops - self.learn_from


def tile(counts: IntArray, max_length: int, rng: np.random.Generator) -> Windows:
    """Windows side by side: each target once, with less context near the start of a window.

    The first window of a user who needs more than one has a random length, so that over the epochs every target
    is seen with every amount of context.

    Args:
        counts: Training positions of each history.
        max_length: Longest window (L).
        rng: Draws the offsets.
    """
    first = np.where(counts > max_length, rng.integers(1, max_length, len(counts), endpoint=True), counts)
    rows, turn = _repeat(np.where(counts > 0, 1 + -(-(counts - first) // max_length), 0))
    starts = np.where(turn == 0, 0, first[rows] + (turn - 1) * max_length)
    stops = np.minimum(first[rows] + turn * max_length, counts[rows])
    return Windows(rows, starts, stops, starts)


def overlap(counts: IntArray, max_length: int, rng: np.random.Generator) -> Windows:
    """Windows that share half their length: each target once, with at least L // 2 positions of context.

    Args:
        counts: Training positions of each history.
        max_length: Longest window (L).
        rng: Not used; overlapping windows have no offset to draw.
    """
    context = max_length // 2
    stride = max_length - context
    more = np.maximum(counts - max_length, 0)
    rows, turn = _repeat(np.where(counts > 0, 1 + -(-more // stride), 0))
    learn_from = np.where(turn == 0, 0, max_length + (turn - 1) * stride)
    starts = np.where(turn == 0, 0, learn_from - context)
    stops = np.minimum(np.where(turn == 0, max_length, learn_from + stride), counts[rows])
    return Windows(rows, starts, stops, learn_from)


def last(counts: IntArray, max_length: int, rng: np.random.Generator) -> Windows:
    """Only the newest window of each user; targets further back are not learned from.

    Args:
        counts: Training positions of each history.
        max_length: Longest window (L).
        rng: Not used.
    """
    rows = np.flatnonzero(counts > 0)
    starts = np.maximum(counts[rows] - max_length, 0)
    return Windows(rows, starts, counts[rows], starts)


WINDOWS: dict[str, Callable[[IntArray, int, np.random.Generator], Windows]] = {
    "tile": tile,
    "overlap": overlap,
    "last": last,
}


class Prefixes:
    """One window per position, which ends there; enumerated, never materialised.

    Args:
        counts: Training positions of each history.
        max_length: Longest prefix (L); older items are cut off.
        per_user: At most so many prefixes of each history, equally far apart from a random start, so that each
            target of the history is as likely as any other to be among them; None takes all.
        learn_throughout: Learn at all positions of a prefix, not at its last alone.
        rng: Draws the starts.
    """

    def __init__(
        self,
        counts: IntArray,
        max_length: int,
        *,
        per_user: int | None = None,
        learn_throughout: bool = False,
        rng: np.random.Generator,
    ) -> None:
        taken = counts if per_user is None else np.minimum(counts, per_user)
        self._counts = counts
        self._ends = np.cumsum(taken)
        self._firsts = self._ends - taken
        self._distance = counts / np.maximum(taken, 1)
        self._starts = np.where(taken < counts, rng.random(len(counts)) * self._distance, 0.0)
        self._max_length = max_length
        self._learn_throughout = learn_throughout

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def take(self, indices: IntArray) -> Windows:
        """The prefixes at these indices; they go on user after user, oldest target first."""
        rows = np.searchsorted(self._ends, indices, side="right")
        turn = indices - self._firsts[rows]
        position = np.floor(turn * self._distance[rows] + self._starts[rows]).astype(np.int64)
        position = np.minimum(position, self._counts[rows] - 1)  # a sum may be rounded up to the next whole number
        starts = np.maximum(position + 1 - self._max_length, 0)
        return Windows(rows, starts, position + 1, starts if self._learn_throughout else position)


Samples = Windows | Prefixes
"""All windows of some histories, perhaps never in memory at once: a length, and `take(indices)`."""


def training_samples(
    positions: Positions, config: TrainConfig, *, max_length: int, rng: np.random.Generator
) -> Samples:
    """Everything that an epoch learns from, in some histories.

    Args:
        positions: What the histories are used for.
        config: Supervision and how histories are cut.
        max_length: Longest row (L).
        rng: Draws offsets and prefixes.
    """
    cloze = config.supervision == "cloze"
    # A hidden item needs none that follows it: the last one to learn from is itself part of the row.
    counts = positions.train if cloze else positions.num_targets
    if config.supervision == "last_position" or config.windows == "prefixes":
        per_user = None if config.prefixes_per_user == "all" else config.prefixes_per_user
        return Prefixes(counts, max_length, per_user=per_user, learn_throughout=cloze, rng=rng)
    return WINDOWS[config.windows](counts, max_length, rng)


def _repeat(counts: IntArray) -> tuple[IntArray, IntArray]:
    """For each row its index `counts[row]` times, and beside it 0, 1, 2, … within the row."""
    rows = np.repeat(np.arange(len(counts)), counts)
    turn = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rows, turn
