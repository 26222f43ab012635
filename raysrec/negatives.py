"""Drawing negatives: items for a loss to compare targets with, and how probable each of them was.

Items are drawn by inverting a distribution function in whole numbers. An item that must not be drawn is cut out of
that function, so nothing is drawn twice, every exclusion holds, and the probabilities that come back are those of
what was really drawn from.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
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
        exclude: Int[Tensor, "R L"] | None = None,
        rows: Int[Tensor, " P"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Negatives:
        """Items drawn with replacement, each by itself.

        Args:
            shape: (C,) for one sample that all targets share, or (P, C) for a sample each.
            exclude: Item ids that a row never draws, in any order, 0 for none; what is left keeps its proportions.
                A row that excludes everything draws 0. Needs a shape (P, C).
            rows: Which row of `exclude` holds for each target; None if there is one row per target.
            generator: Where the randomness comes from; None takes torch's global one.

        Raises:
            ValueError: Exclusions with a shared sample, or rows that do not fit the shape.
        """
        if exclude is None:
            left = self.cumulative[-1].expand(shape)
            items = self._at(self._positions(left, generator))
            return Negatives(items, self.log_probabilities(items), shape[-1])
        rows = torch.arange(len(exclude), device=exclude.device) if rows is None else rows
        if len(shape) != 2 or shape[0] != len(rows):
            raise ValueError(f"a sample of shape {shape} has no row for each of {len(rows)} rows of exclusions")
        holes = _Holes(self, exclude)
        left = (self.total - holes.removed[rows, -1])[:, None]  # [P 1]
        positions = self._positions(left.expand(shape), generator)
        nothing_left = left == 0
        items = self._at(holes.widen(positions, rows)).masked_fill(nothing_left, 0)
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


class _Holes:
    """The stretches of a distribution that each row leaves out."""

    def __init__(self, distribution: ItemDistribution, exclude: Int[Tensor, "R L"]) -> None:
        items = exclude.sort(dim=1).values
        repeated = torch.zeros_like(items, dtype=torch.bool)
        repeated[:, 1:] = items[:, 1:] == items[:, :-1]
        removed = distribution.weights[items].masked_fill(repeated, 0).cumsum(1)
        self.removed = torch.cat((removed.new_zeros(len(items), 1), removed), dim=1)  # [R L+1]
        """Weight of a row's first 0..L exclusions."""
        # One sorted line for all rows, so that one search does for all.
        self.length = items.shape[1]
        self.stride = distribution.total + 1
        offsets = torch.arange(len(items), device=items.device)[:, None] * self.stride
        self.starts = (distribution.cumulative[items] - removed + offsets).flatten()
        """How much is left below each hole."""

    def widen(self, positions: Int[Tensor, "P C"], rows: Int[Tensor, " P"]) -> Int[Tensor, "P C"]:
        """Positions among what is left of a row, as positions in the whole."""
        row = rows[:, None]
        below = torch.searchsorted(self.starts, positions + row * self.stride, right=True) - row * self.length
        return positions + self.removed[row, below]


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


def in_batch(
    targets: Int[Tensor, " P"],
    distribution: ItemDistribution,
    *,
    exclude: Int[Tensor, "R L"] | None = None,
    rows: Int[Tensor, " P"] | None = None,
) -> Negatives:
    """The other targets of the batch as negatives: nothing is drawn, for the data's order has drawn them already.

    Args:
        targets: The batch's targets; each is a draw for all others, so there are P - 1 draws for each.
        distribution: How often items are targets: `popularity(counts)`.
        exclude: Item ids that are no negatives for a row, 0 for none. Each target then has a row of negatives of its
            own, with 0 in the place of those.
        rows: Which row of `exclude` holds for each target; None if there is one row per target.
    """
    log_probabilities = distribution.log_probabilities(targets)
    draws = len(targets) - 1
    if exclude is None:
        return Negatives(targets, log_probabilities, draws)
    rows = torch.arange(len(exclude), device=exclude.device) if rows is None else rows
    hit = _are_among(targets, exclude, len(distribution.weights))[rows]
    return Negatives(targets.expand_as(hit).masked_fill(hit, 0), log_probabilities.expand(hit.shape), draws)


def _are_among(items: Int[Tensor, " C"], sets: Int[Tensor, "R L"], num_rows: int) -> Bool[Tensor, "R C"]:
    """Which items occur in which set."""
    offsets = torch.arange(len(sets), device=sets.device)[:, None] * num_rows
    keys = (sets + offsets).flatten().sort().values
    wanted = items + offsets
    found = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
    return keys[found] == wanted
