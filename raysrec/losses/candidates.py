"""Sums over targets of what each one and its negatives cost: what all losses with negatives have in common.

Scores of P targets and their negatives would be the largest tensors of a training step. So a few targets at a time are
scored, judged and learned from, and only the gradients stay.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

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

    Scores and sums are float32 (float64 for float64 inputs) whatever the precision and autocast. Gradients are made
    with the value, so that backward only scales them; without grad mode they are not.

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
    # Inside a Function's forward grad mode is always off, so the caller's is looked up here.
    learning = torch.is_grad_enabled()
    total: Tensor = _Sum.apply(states, vectors, bias, targets, negatives, discounts, cost, learning)  # type: ignore[no-untyped-call]
    return total


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


class _Sum(torch.autograd.Function):
    """Makes value and gradients in `forward`, and scales the gradients in `backward`."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        vectors: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        negatives: Tensor,
        discounts: Tensor | None,
        cost: Callable[[Candidates], Tensor],
        learning: bool,
    ) -> Tensor:
        dtype = torch.promote_types(torch.promote_types(states.dtype, vectors.dtype), torch.float32)
        # Autocast would turn the float32 products back into bfloat16.
        with torch.autocast(states.device.type, enabled=False):
            total, gradients = _total_and_gradients(
                cost,
                states.to(dtype),
                vectors.to(dtype),
                None if bias is None else bias.to(dtype),
                targets,
                negatives,
                discounts,
                learning=learning,
            )
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [None if given is None else given.dtype for given in (states, vectors, bias)]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (
            None if gradient is None else (gradient * grad_output).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return *scaled, None, None, None, None, None


def _total_and_gradients(
    cost: Callable[[Candidates], Tensor],
    states: Tensor,
    table: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    negatives: Tensor,
    discounts: Tensor | None,
    *,
    learning: bool,
) -> tuple[Tensor, list[Tensor | None]]:
    """The sum and, if learning, its gradients for states, table and bias."""
    grad_states, grad_table = (torch.zeros_like(each) if learning else None for each in (states, table))
    grad_bias = torch.zeros_like(bias) if learning and bias is not None else None
    scores = _scores_of(negatives, table)
    total = states.new_zeros(())
    targets_at_once = max(1, VALUES_AT_ONCE[states.device.type] // max(1, scores.values_per_target))
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
        if grad_states is None or grad_table is None:
            total += cost(Candidates(own, negative, counts))
            continue
        with torch.enable_grad():
            learned = own.requires_grad_(), negative.requires_grad_()
            costs = cost(Candidates(*learned, counts))
        total += costs.detach()
        own_slopes, slopes = torch.autograd.grad(costs, learned)
        grad_states[rows] = scores.learn(slopes, states[rows], rows, grad_table) + own_slopes[:, None] * own_vectors
        grad_table.index_add_(0, own_items, own_slopes[:, None] * states[rows])
        if grad_bias is not None:
            grad_bias.index_add_(0, own_items, own_slopes)
            grad_bias.index_add_(0, others.flatten(), (slopes.sum(0) if others.ndim == 1 else slopes).flatten())
    return total, [grad_states, grad_table, grad_bias]


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
