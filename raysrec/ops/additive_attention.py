"""Causal additive attention: what NARM's attention becomes when every position asks, not only the last.

    c_t = sum over j <= t of alpha_tj v_j,      alpha_tj = <w, sigmoid(k_j + q_t)>

The weights are not normalised and may be negative. There is no form as a product of queries and keys, so each pair of
positions costs one sigmoid per channel: O(L² E) time. `additive_attention_reference` is the definition and holds all
pairs at once, [B L L E]. `causal_additive_attention` is the same function for bounded memory: a few queries of a few
rows at a time, computed again for the gradient, which keeps only q, k, v and w. Sums count in float32 at least.

Source:
    Bahdanau, Cho, Bengio, "Neural Machine Translation by Jointly Learning to Align and Translate", ICLR 2015; with
    the sigmoid and without the softmax in Li et al., "Neural Attentive Session-based Recommendation", CIKM 2017.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from raysrec.ops.precision import at_least_float32

VALUES_AT_ONCE = {"cpu": 2**19, "cuda": 2**25}
"""Values (rows * queries * keys * channels) in one piece: on a CPU, what a cache holds several times."""


def causal_additive_attention(
    query: Float[Tensor, "B L E"],
    key: Float[Tensor, "B L E"],
    value: Float[Tensor, "B L D"],
    weight: Float[Tensor, " E"],
) -> Float[Tensor, "B L D"]:
    """Each position's sum of the values up to and including its own.

    Args:
        query: What each position asks.
        key: What each position answers to.
        value: What is summed.
        weight: How much each channel of query and key says (w).
    """
    with torch.autocast(query.device.type, enabled=False):
        wide = map(at_least_float32, (query, key, value, weight))
        mixed: Tensor = _CausalAdditiveAttention.apply(*wide)  # type: ignore[no-untyped-call]
        return mixed.to(value.dtype)


def additive_attention_reference(
    query: Float[Tensor, "B L E"],
    key: Float[Tensor, "B L E"],
    value: Float[Tensor, "B L D"],
    weight: Float[Tensor, " E"],
) -> Float[Tensor, "B L D"]:
    """The definition of `causal_additive_attention`, all pairs at once."""
    alpha = torch.sigmoid(query[:, :, None] + key[:, None]) @ weight  # [B query key]
    return alpha.tril() @ value


class _CausalAdditiveAttention(torch.autograd.Function):
    """A piece is a few queries of a few rows, with all keys that they see."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, weight: Tensor) -> Tensor:
        mixed = torch.empty_like(value)
        for rows, queries, seen, space in _pieces(query):
            alpha = (_likeness(query[rows, queries], key[rows, seen], space) @ weight).tril_(queries.start)
            mixed[rows, queries] = alpha @ value[rows, seen]
        ctx.save_for_backward(query, key, value, weight)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        query, key, value, weight = ctx.saved_tensors
        grad_query, grad_key, grad_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        grad_weight = torch.zeros_like(weight)
        for rows, queries, seen, space in _pieces(query):
            likeness = _likeness(query[rows, queries], key[rows, seen], space)
            alpha = (likeness @ weight).tril_(queries.start)
            grad_value[rows, seen] += alpha.mT @ grad[rows, queries]
            grad_alpha = (grad[rows, queries] @ value[rows, seen].mT).tril_(queries.start)
            grad_weight += grad_alpha.flatten() @ likeness.flatten(0, 2)
            slope = torch.addcmul(likeness, likeness, likeness, value=-1, out=likeness)  # of the sigmoid
            slope.mul_(grad_alpha[..., None])
            grad_query[rows, queries] = slope.sum(2)
            grad_key[rows, seen] += slope.sum(1)
        return grad_query.mul_(weight), grad_key.mul_(weight), grad_value, grad_weight


def _likeness(
    query: Float[Tensor, "B Q E"], key: Float[Tensor, "B K E"], space: Float[Tensor, " values"]
) -> Float[Tensor, "B Q K E"]:
    """The sigmoids of all pairs, in memory already paid for: fresh pages cost more than they do."""
    shape = (query.shape[0], query.shape[1], key.shape[1], key.shape[2])
    pairs = space[: math.prod(shape)].view(shape)
    return torch.add(query[:, :, None], key[:, None], out=pairs).sigmoid_()


def _pieces(query: Float[Tensor, "B L E"]) -> Iterator[tuple[slice, slice, slice, Tensor]]:
    """Rows, queries, the keys that the last of these queries sees, and room for all of these pairs."""
    batch, length, channels = query.shape
    room = VALUES_AT_ONCE.get(query.device.type, 2**25) // channels  # pairs of positions
    queries = max(1, min(length, room // length))
    rows = max(1, min(batch, room // (queries * length)))
    space = query.new_empty(rows * queries * length * channels)
    for first_row in range(0, batch, rows):
        for first in range(0, length, queries):
            last = min(first + queries, length)
            yield slice(first_row, first_row + rows), slice(first, last), slice(0, last), space
