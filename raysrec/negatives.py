"""Drawing negatives: items for a loss to compare targets with, and how probable each of them was.

Items are drawn by inverting a distribution function in whole numbers. An item that must not be drawn is cut out of
that function, so nothing is drawn twice, every exclusion holds, and the probabilities that come back are those of
what was really drawn from.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

_TOTAL = 2**40
"""Sum of a popularity distribution's weights: fine enough for rare items, and eight million rows fit into 64 bits."""


class Negatives(NamedTuple):
    """Items that were drawn, the same for all targets (C) or a row for each (P C)."""

    items: Int[Tensor, "*rows C"]
    """Item ids 1..N; 0 where there was none to draw."""
    log_probabilities: Float[Tensor, "*rows C"]
    """Log of the probability that one draw gives this item."""
    draws: int
    """How many draws each target has."""

    def log_expected_counts(self) -> Float[Tensor, "*rows C"]:
        """Log of how often each item was expected among a target's draws, as `sampled_softmax_loss` wants it."""
        return self.log_probabilities + math.log(max(1, self.draws))


class ItemDistribution:
    """Items 1..N with whole-number weights; an item's probability is its share of their sum.

    Args:
        weights: One weight of at least 1 per item, item 1 first; at most 2**40 together.
    """

    def __init__(self, weights: Int[Tensor, " N"]) -> None:
        self.weights = torch.cat((weights.new_zeros(1), weights)).long()
        self.cumulative = self.weights.cumsum(0)
        self.total = int(self.cumulative[-1])

    def to(self, device: torch.device | str) -> "ItemDistribution":
        """The same distribution on a device, which is where its draws will be."""
        return ItemDistribution(self.weights[1:].to(device))

    def log_probabilities(self, items: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Log of each item's probability; -inf for 0."""
        return self.weights[items].log() - math.log(self.total)

    def draw(
        self,
        shape: tuple[int, ...],
        *,
        exclude: Int[Tensor, "E 2"] | None = None,
        rows: Int[Tensor, " P"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Negatives:
        """Items drawn with replacement, each by itself.

        Args:
            shape: (C,) for one sample that all targets share, or (P, C) for a sample each.
            exclude: Pairs (row, item) in any order: what the targets of a row never draw; what is left keeps its
                proportions. A row that excludes everything draws 0. Needs a shape (P, C).
            rows: Of which row each target is, by any numbers, as of users; None if target i is of row i.
            generator: Where the randomness comes from; None takes torch's global one.

        Raises:
            ValueError: Exclusions with a shared sample, or rows that do not fit the shape.
        """
        if exclude is None:
            left = self.cumulative[-1].expand(shape)
            items = self._at(self._positions(left, generator))
            return Negatives(items, self.log_probabilities(items), shape[-1])
        rows = torch.arange(shape[0], device=exclude.device) if rows is None else rows
        if len(shape) != 2 or shape[0] != len(rows):
            raise ValueError(f"a sample of shape {shape} has no row for each of {len(rows)} targets with exclusions")
        holes = _holes(self, exclude, rows)
        left = (self.total - holes.removed)[:, None]  # [P 1]
        positions = self._positions(left.expand(shape), generator)
        nothing_left = left == 0
        items = self._at(holes.widen(positions)).masked_fill(nothing_left, 0)
        log_probabilities = self.weights[items].log() - left.log()
        return Negatives(items, log_probabilities.masked_fill(nothing_left, -torch.inf), shape[-1])

    def _positions(self, left: Int[Tensor, "*shape"], generator: torch.Generator | None) -> Int[Tensor, "*shape"]:
        """Whole numbers, uniform over 0..left-1."""
        share = torch.rand(left.shape, dtype=torch.float64, device=left.device, generator=generator)
        return torch.minimum((share * left).long(), left - 1)

    def _at(self, positions: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """The item in whose stretch of 0..total-1 each position lies."""
        items = torch.searchsorted(self.cumulative, positions.contiguous(), right=True)
        return items.clamp_max(len(self.weights) - 1)


class _Holes(NamedTuple):
    """The stretches of a distribution that each target leaves out.

    With weights 3, 1, 2 and item 2 left out, what is left has the positions 0..4, and the hole at 3 is 1 wide:

        whole    0 1 2 3 4 5        left     0 1 2   3 4
        item     1 1 1 2 3 3        item     1 1 1   3 3

    So a position of what is left lies in the whole behind all holes that begin at it or below: 3 becomes 4. Rows
    differ in their holes; each has a stretch of one common line, so that one search does for all targets.
    """

    begins_at: Int[Tensor, " E"]
    """Where each hole begins on the line, counted in what is left; ascending."""
    weight_before: Int[Tensor, " E+1"]
    """Weight of the first 0..E holes together."""
    row_begins_at: Int[Tensor, " P"]
    """Where the row of each target begins on the line."""
    weight_before_row: Int[Tensor, " P"]
    """Weight of all holes of the rows before it."""
    removed: Int[Tensor, " P"]
    """Weight of its own holes."""

    def widen(self, positions: Int[Tensor, "P C"]) -> Int[Tensor, "P C"]:
        """Positions among what is left to a target, as positions in the whole."""
        below = torch.searchsorted(self.begins_at, positions + self.row_begins_at[:, None], right=True)
        return positions + self.weight_before[below] - self.weight_before_row[:, None]


def _holes(distribution: ItemDistribution, exclude: Int[Tensor, "E 2"], rows: Int[Tensor, " P"]) -> _Holes:
    """Those of targets of these rows, by the pairs (row, item) that are excluded, in any order and repeated or not."""
    # Rows are numbered anew, 0, 1, ..., so that the line is no longer than it must be.
    names, numbers = torch.unique(torch.cat((rows, exclude[:, 0])), return_inverse=True)
    of_target, of_pair = numbers[: len(rows)], numbers[len(rows) :]
    width = len(distribution.weights)
    distinct = torch.unique(of_pair * width + exclude[:, 1])  # by row, then by item
    row, item = distinct // width, distinct % width
    weight_before = F.pad(distribution.weights[item].cumsum(0), (1, 0))
    holes_before_row = torch.searchsorted(row, torch.arange(len(names) + 1, device=row.device))
    weight_before_row = weight_before[holes_before_row]
    stretch = distribution.total + 1  # of a row's line: one more than what could be left, so that rows cannot touch
    # The distribution function at an item is where its stretch ends, which is where it begins once it is taken out,
    # its own weight and that of the row's earlier holes.
    left_below = distribution.cumulative[item] - (weight_before[1:] - weight_before_row[row])
    return _Holes(
        begins_at=row * stretch + left_below,
        weight_before=weight_before,
        row_begins_at=of_target * stretch,
        weight_before_row=weight_before_row[of_target],
        removed=weight_before_row[of_target + 1] - weight_before_row[of_target],
    )


def uniform(num_items: int) -> ItemDistribution:
    """Every item alike."""
    return ItemDistribution(torch.ones(num_items, dtype=torch.int64))


def popularity(counts: Int[Tensor, " V"], power: float = 1.0) -> ItemDistribution:
    """Probability ∝ max(count, 1)^power: 1 as often as items occur, 0 is uniform.

    An item that never occurs counts as one that occurs once, for what is never drawn is never pushed down.

    Args:
        counts: How often each item occurs in training; the entry of padding is ignored.
        power: Between 0 and 1 rare items are drawn more than they occur.

    Source:
        Mikolov et al., "Distributed Representations of Words and Phrases", NeurIPS 2013: the power 0.75.
    """
    shares = counts[1:].double().clamp_min(1).pow(power)
    # Whole numbers; the probabilities are computed from them, so rounding changes no correction.
    return ItemDistribution((shares / shares.sum() * (_TOTAL - len(shares))).long().clamp_min(1))


def in_batch(targets: Int[Tensor, " P"], distribution: ItemDistribution) -> Negatives:
    """The other targets of the batch as negatives: nothing is drawn, for the data's order has drawn them already.

    Args:
        targets: The batch's targets; each is a draw for all others, so there are P - 1 draws for each.
        distribution: How often items are targets: `popularity(counts)`.
    """
    return Negatives(targets, distribution.log_probabilities(targets), len(targets) - 1)
