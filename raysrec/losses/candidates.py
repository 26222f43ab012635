"""Scores of targets and of their negatives, and which negatives count: what all losses with negatives begin with."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

_VALUES_AT_ONCE = 2**22


class Candidates(NamedTuple):
    """What a loss compares: each target's own score and those of its negatives."""

    own: Float[Tensor, " P"]
    """Scores of the targets."""
    negative: Float[Tensor, "P C"]
    """Scores of the negatives."""
    counts: Bool[Tensor, "P C"]
    """False where a negative is none: the target itself, or 0."""


def score_candidates(
    states: Float[Tensor, "P D"],
    vectors: Float[Tensor, "V D"],
    targets: Int[Tensor, " P"],
    negatives: Int[Tensor, " C"] | Int[Tensor, "P C"],
    bias: Float[Tensor, " V"] | None,
) -> Candidates:
    """Score targets and negatives, in float32 (float64 for float64 inputs) whatever the precision and autocast.

    Raises:
        ValueError: A target is not an item 1..N, or a negative is not 0..N.
    """
    check_ids(targets, 1, len(vectors) - 1, "targets")
    check_ids(negatives, 0, len(vectors) - 1, "negatives")
    dtype = torch.promote_types(torch.promote_types(states.dtype, vectors.dtype), torch.float32)
    with torch.autocast(states.device.type, enabled=False):
        exact = states.to(dtype)
        own = (exact * functional.embedding(targets, vectors).to(dtype)).sum(1)
        if negatives.ndim == 1:
            negative = exact @ functional.embedding(negatives, vectors).to(dtype).T
        else:
            negative = _OwnScores.apply(exact, vectors, negatives)  # type: ignore[no-untyped-call]
        if bias is not None:
            own, negative = own + bias[targets].to(dtype), negative + bias[negatives].to(dtype)
    return Candidates(own, negative, (negatives != 0) & (negatives != targets[:, None]))


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


class _OwnScores(torch.autograd.Function):
    """state · vector for each target's own negatives, in bounded memory."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, vectors: Tensor, negatives: Tensor) -> Tensor:
        ctx.save_for_backward(states, vectors, negatives)
        score = _score_all if _all_are_cheaper(negatives, vectors) else _score_gathered
        table = vectors.to(states.dtype)
        scores = states.new_empty(negatives.shape)
        for rows in _row_chunks(negatives, vectors):
            scores[rows] = score(states[rows], table, negatives[rows])
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        states, vectors, negatives = ctx.saved_tensors
        learn = _learn_all if _all_are_cheaper(negatives, vectors) else _learn_gathered
        table = vectors.to(states.dtype)
        grad_states, grad_table = torch.empty_like(states), torch.zeros_like(table)
        for rows in _row_chunks(negatives, vectors):
            grad_states[rows] = learn(grad[rows], states[rows], table, negatives[rows], grad_table)
        return grad_states, grad_table.to(vectors.dtype), None


def _all_are_cheaper(negatives: Tensor, vectors: Tensor) -> bool:
    """Is a product with the whole table faster than gathering vectors? Some 50 times per item, on a CPU."""
    return len(vectors) <= 32 * negatives.shape[1]


def _row_chunks(negatives: Tensor, vectors: Tensor) -> list[slice]:
    """Slices of targets whose scores or gathered vectors are some 4 Mi values."""
    width = len(vectors) if _all_are_cheaper(negatives, vectors) else negatives.shape[1] * vectors.shape[1]
    step = max(1, _VALUES_AT_ONCE // max(1, width))
    return [slice(start, min(start + step, len(negatives))) for start in range(0, len(negatives), step)]


def _score_all(states: Tensor, table: Tensor, negatives: Tensor) -> Tensor:
    return (states @ table.T).gather(1, negatives)


def _score_gathered(states: Tensor, table: Tensor, negatives: Tensor) -> Tensor:
    return (table[negatives] @ states[:, :, None]).squeeze(2)


def _learn_all(grad: Tensor, states: Tensor, table: Tensor, negatives: Tensor, grad_table: Tensor) -> Tensor:
    """Add to the table's gradient, and return that of the states."""
    weights = grad.new_zeros(len(states), len(table)).scatter_add_(1, negatives, grad)
    grad_table.addmm_(weights.T, states)
    return weights @ table


def _learn_gathered(grad: Tensor, states: Tensor, table: Tensor, negatives: Tensor, grad_table: Tensor) -> Tensor:
    """The same, touching the negatives' rows only."""
    grad_table.index_add_(0, negatives.flatten(), (grad[:, :, None] * states[:, None]).flatten(0, 1))
    return (grad[:, None] @ table[negatives]).squeeze(1)
