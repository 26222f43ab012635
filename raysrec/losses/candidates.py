"""Sums over targets of what each one and its negatives cost: what all losses with negatives have in common.

Scores of P targets and their negatives would be the largest tensors of a training step. So a few targets at a time are
scored, judged and learned from, and only the gradients stay.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from raysrec.losses.gradients import Gradients, with_gradients

VALUES_AT_ONCE = {"cpu": 2**20, "cuda": 2**26}
"""About how many scores, or values of gathered vectors, are made at once: few stay in a cache, many fill a GPU."""


class Candidates(NamedTuple):
    """What a loss compares: each target's own score and those of its negatives."""

    own: Float[Tensor, " P"]
    """Scores of the targets."""
    negative: Float[Tensor, "P C"]
    """Scores of the negatives."""
    counts: Bool[Tensor, "P C"]
    """False where a negative is none: the target itself, or 0."""


def sum_over_targets(
    cost: Callable[[Candidates], Float[Tensor, ""]],
    states: Float[Tensor, "P D"],
    vectors: Float[Tensor, "V D"],
    targets: Int[Tensor, " P"],
    negatives: Int[Tensor, " C"] | Int[Tensor, "P C"],
    bias: Float[Tensor, " V"] | None,
    discounts: Float[Tensor, " C"] | Float[Tensor, "P C"] | None = None,
) -> Float[Tensor, ""]:
    """What all targets cost, in bounded memory.

    Args:
        cost: The summed cost of some targets. It must treat each target by itself, for it sees a few at a time.
        states: The state at each position that has a target.
        vectors: Row i is item i.
        targets: Item ids, 1..N.
        negatives: Item ids shared by all targets, or a row of them for each.
        bias: A number added to each item's score.
        discounts: A number taken from each negative's score; it receives no gradient.

    Raises:
        ValueError: A target is not an item 1..N, or a negative is not 0..N.
    """
    check_ids(targets, 1, len(vectors) - 1, "targets")
    check_ids(negatives, 0, len(vectors) - 1, "negatives")

    def loss(states: Tensor, table: Tensor, bias: Tensor | None, gradients: Gradients | None) -> Tensor:
        scores = _scores_of(negatives, table)
        targets_at_once = max(1, VALUES_AT_ONCE[states.device.type] // max(1, scores.values_per_target))
        total = states.new_zeros(())
        for start in range(0, len(targets), targets_at_once):
            rows = slice(start, min(start + targets_at_once, len(targets)))
            own_items, others = targets[rows], negatives if negatives.ndim == 1 else negatives[rows]
            own_vectors = table[own_items]
            own = (states[rows] * own_vectors).sum(1)
            negative = scores.of(states[rows], rows)
            if bias is not None:
                own, negative = own + bias[own_items], negative.add_(bias[others])
            if discounts is not None:
                negative = negative.sub_(discounts if discounts.ndim == 1 else discounts[rows])
            counts = (others != 0) & (others != own_items[:, None])
            if gradients is None:
                total += cost(Candidates(own, negative, counts))
                continue
            with torch.enable_grad():
                learned = own.requires_grad_(), negative.requires_grad_()
                costs = cost(Candidates(*learned, counts))
            total += costs.detach()
            own_slopes, slopes = torch.autograd.grad(costs, learned)
            gradients.states[rows] = scores.learn(slopes, states[rows], rows, gradients.vectors)
            gradients.states[rows] += own_slopes[:, None] * own_vectors
            gradients.vectors.index_add_(0, own_items, own_slopes[:, None] * states[rows])
            if gradients.bias is not None:
                gradients.bias.index_add_(0, own_items, own_slopes)
                each = slopes.sum(0) if others.ndim == 1 else slopes
                gradients.bias.index_add_(0, others.flatten(), each.flatten())
        return total

    return with_gradients(loss, states, vectors, bias)


def check_ids(ids: Int[Tensor, "..."], low: int, high: int, what: str) -> None:
    """See that all ids are low..high; on a GPU not, for looking would wait for the device.

    Raises:
        ValueError: One is not.
    """
    if not ids.numel() or ids.is_cuda:
        return
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < low or highest > high:
        reason = "; 0 is padding: leave those positions out" if low == 1 else ""
        raise ValueError(f"{what} are {lowest}..{highest}, but must be items {low}..{high}{reason}")


class _SharedScores:
    """Scores of negatives that all targets share: [C]."""

    def __init__(self, negatives: Tensor, table: Tensor) -> None:
        self.negatives, self.vectors = negatives, table[negatives]
        self.values_per_target = len(negatives)

    def of(self, states: Tensor, _: slice) -> Tensor:
        return states @ self.vectors.T

    def learn(self, slopes: Tensor, states: Tensor, _: slice, grad_table: Tensor) -> Tensor:
        """Add to the table's gradient, and return that of the states."""
        grad_table.index_add_(0, self.negatives, slopes.T @ states)
        return slopes @ self.vectors


class _GatheredScores:
    """Scores of each target's own negatives [P C], of whose vectors each is fetched."""

    def __init__(self, negatives: Tensor, table: Tensor) -> None:
        self.negatives, self.table = negatives, table
        self.values_per_target = negatives.shape[1] * table.shape[1]

    def of(self, states: Tensor, rows: slice) -> Tensor:
        return (self.table[self.negatives[rows]] @ states[:, :, None]).squeeze(2)

    def learn(self, slopes: Tensor, states: Tensor, rows: slice, grad_table: Tensor) -> Tensor:
        """The same, touching the negatives' rows only."""
        negatives = self.negatives[rows]
        grad_table.index_add_(0, negatives.flatten(), (slopes[:, :, None] * states[:, None]).flatten(0, 1))
        return (slopes[:, None] @ self.table[negatives]).squeeze(1)


class _PickedScores:
    """The same scores, picked from those of all items."""

    def __init__(self, negatives: Tensor, table: Tensor) -> None:
        self.negatives, self.table = negatives, table
        self.values_per_target = len(table)

    def of(self, states: Tensor, rows: slice) -> Tensor:
        return (states @ self.table.T).gather(1, self.negatives[rows])

    def learn(self, slopes: Tensor, states: Tensor, rows: slice, grad_table: Tensor) -> Tensor:
        """Add to the table's gradient, and return that of the states."""
        weights = slopes.new_zeros(len(states), len(self.table)).scatter_add_(1, self.negatives[rows], slopes)
        grad_table.addmm_(weights.T, states)
        return weights @ self.table


def _scores_of(negatives: Tensor, table: Tensor) -> _SharedScores | _GatheredScores | _PickedScores:
    if negatives.ndim == 1:
        return _SharedScores(negatives, table)
    picked = picking_is_cheaper(negatives.shape[1], len(table))
    return (_PickedScores if picked else _GatheredScores)(negatives, table)


def picking_is_cheaper(num_negatives: int, num_rows: int) -> bool:
    """Is a product with the whole table faster than gathering vectors? Some 50 times per item, on a CPU."""
    return num_rows <= 32 * num_negatives


def bytes_at_once(num_targets: int, num_negatives: int, table: torch.Size, *, shared: bool, on_gpu: bool) -> int:
    """About what `sum_over_targets` needs beside tables and gradients; some ten tensors of scores exist together."""
    num_rows, dim = table
    picked = num_rows if picking_is_cheaper(num_negatives, num_rows) else num_negatives * dim
    values = num_targets * (num_negatives if shared else picked)
    return 10 * 4 * min(values, VALUES_AT_ONCE["cuda" if on_gpu else "cpu"])
