"""The exact cross-entropy over the whole catalogue.

Scores of P targets against N items would be the largest tensor of a training step by far, so they never exist at
once: the loss and its gradients are made together, a few hundred targets at a time, in one buffer that stays in the
processor's cache. Where the catalogue is too long for that, it is cut into chunks of items too, and read twice.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from raysrec.losses.candidates import check_ids
from raysrec.losses.gradients import Gradients, with_gradients

BITS_PER_NAT = math.log2(math.e)


def softmax_loss(
    states: Float[Tensor, "P D"],
    vectors: Float[Tensor, "V D"],
    targets: Int[Tensor, " P"],
    bias: Float[Tensor, " V"] | None = None,
    *,
    padding_class: bool = False,
    targets_per_chunk: int | None = None,
    items_per_chunk: int | None = None,
) -> Float[Tensor, ""]:
    """Minus the log-probability of each target among all items 1..N, in nats, summed over the targets.

    Equal to `softmax_loss_reference` in value and gradients. Scores, sums and the accumulated gradients are
    float32 (float64 for float64 inputs) whatever the inputs' precision and autocast; the gradients come back in
    the inputs' precision. They are computed with the value, so that backward only scales them; without grad mode
    they are not computed. With no targets the loss is zero, and so are the gradients, which still arrive.

    Args:
        states: The state at each position that has a target.
        vectors: Row i is item i; row 0 (padding) is not a class and receives a gradient of zero.
        targets: Item ids, 1..N.
        bias: A number added to each item's score.
        padding_class: Let row 0 be a class, one more candidate that is never right, as in RecBole's models.
        targets_per_chunk: Targets scored at once; None takes what `chunk_sizes` says.
        items_per_chunk: Items scored at once; when it is less than N, each score is computed twice.

    Raises:
        ValueError: A target is not an item: below 1, or above N.
        ValueError: A chunk size is below 1.
    """
    _check(targets, len(vectors) - 1, targets_per_chunk, items_per_chunk)
    first = 0 if padding_class else 1
    automatic = chunk_sizes(len(targets), max(1, len(vectors) - first), on_gpu=vectors.is_cuda)
    chunks = ChunkSizes(targets_per_chunk or automatic.targets, items_per_chunk or automatic.items)

    def loss(states: Tensor, vectors: Tensor, bias: Tensor | None, gradients: Gradients | None) -> Tensor:
        table, offsets = vectors[first:], None if bias is None else bias[first:]
        of_classes = None if gradients is None else gradients.without_first(first)
        return _softmax_loss(states, table, targets - first, offsets, chunks, of_classes)

    return with_gradients(loss, states, vectors, bias)


def softmax_loss_reference(
    states: Float[Tensor, "P D"],
    vectors: Float[Tensor, "V D"],
    targets: Int[Tensor, " P"],
    bias: Float[Tensor, " V"] | None = None,
    *,
    padding_class: bool = False,
) -> Float[Tensor, ""]:
    """The same loss in the obvious way, with all P * N scores in memory: the truth that tests compare with."""
    first = 0 if padding_class else 1
    scores = states @ vectors[first:].T  # [P N]
    if bias is not None:
        scores = scores + bias[first:]
    return functional.cross_entropy(scores, targets - first, reduction="sum")


class ChunkSizes(NamedTuple):
    """How many targets are scored against how many items at once."""

    targets: int
    items: int

    @property
    def scores(self) -> int:
        """How many scores exist at once: the memory that the loss needs beside tables and gradients."""
        return self.targets * self.items


def chunk_sizes(num_targets: int, num_items: int, *, on_gpu: bool = False) -> ChunkSizes:
    """The chunks that `softmax_loss` takes by itself.

    All items at once for as many targets as keep a CPU's scores in its cache (512 Ki of them) or a GPU busy, but
    for 128 targets at least: fewer make the table's gradient pass through memory too often. Where that is more
    than 32 Mi scores (128 MiB; on a GPU 256 Mi, 1 GiB), items are cut too, and each score is computed
    twice.
    """
    fewest_targets, preferred, most = (1024, 2**28, 2**28) if on_gpu else (128, 2**19, 2**25)
    num_targets = max(1, num_targets)
    if min(num_targets, fewest_targets) * num_items <= most:
        # Matrix products are some 15 % slower when the number of columns does not divide by their tiles.
        targets = max(fewest_targets, preferred // num_items // 32 * 32)
        return ChunkSizes(min(num_targets, targets), num_items)
    targets = min(num_targets, 4 * fewest_targets)
    return ChunkSizes(targets, min(num_items, max(2048, preferred // targets)))


def _softmax_loss(
    states: Float[Tensor, "P D"],
    table: Float[Tensor, "N D"],
    classes: Int[Tensor, " P"],
    bias: Float[Tensor, " N"] | None,
    chunks: ChunkSizes,
    gradients: Gradients | None,
) -> Float[Tensor, ""]:
    """The loss where every row of the table is a class, with its gradients if they are wanted."""
    offsets = None if bias is None else BITS_PER_NAT * bias
    items = _slices(len(table), chunks.items)
    buffer = states.new_empty(min(chunks.targets, len(states)) * min(chunks.items, len(table)))
    losses = states.new_zeros(len(states))
    for rows in _slices(len(states), chunks.targets):
        part, own = states[rows], classes[rows]
        columns = (BITS_PER_NAT * part.T).contiguous()  # [D p]
        sums = _sums_of_powers(columns, table, offsets, items, buffer)
        losses[rows] = (sums.largest + sums.total.log2()) / BITS_PER_NAT - _own_scores(part, own, table, bias)
        if gradients is None:
            continue
        # The gradient of a score is its probability, minus one at the target. Both corrections of the powers, the
        # division by their sum and the minus one, are made on the small sides of the products.
        weights = sums.total.reciprocal()
        weighted = part * weights[:, None]
        grad_columns = torch.zeros_like(columns)
        for chunk in items:
            powers = sums.powers
            if powers is None:
                powers = _scores(columns, table, offsets, chunk, buffer).sub_(sums.largest).exp2_()
            grad_columns.addmm_(table[chunk].T, powers)
            gradients.vectors[chunk].addmm_(powers, weighted)
            if gradients.bias is not None:
                gradients.bias[chunk].addmv_(powers, weights)
        gradients.states[rows] = (grad_columns * weights).T - table.index_select(0, own)
        gradients.vectors.index_add_(0, own, part, alpha=-1)
        if gradients.bias is not None:
            gradients.bias.index_add_(0, own, torch.ones_like(weights), alpha=-1)
    return losses.sum()


class _Sums(NamedTuple):
    """What some targets' scores of all items come to, in bits: powers of two take a third of the time of those of e."""

    largest: Float[Tensor, " p"]
    """The largest score."""
    total: Float[Tensor, " p"]
    """The sum of 2^(score - largest)."""
    powers: Float[Tensor, "N p"] | None
    """These powers themselves, if all items fit into the buffer at once; they stay there until it is used again."""


def _sums_of_powers(
    columns: Float[Tensor, "D p"],
    table: Float[Tensor, "N D"],
    offsets: Float[Tensor, " N"] | None,
    items: list[slice],
    buffer: Float[Tensor, " B"],
) -> _Sums:
    """Go through the chunks of items with a running maximum and a running sum."""
    largest, total = columns.new_full((columns.shape[1],), -torch.inf), columns.new_zeros(columns.shape[1])
    powers = None
    for chunk in items:
        scores = _scores(columns, table, offsets, chunk, buffer)
        larger = torch.maximum(largest, scores.amax(0))
        powers = scores.sub_(larger).exp2_()
        total.mul_(largest.sub_(larger).exp2_()).add_(powers.sum(0))
        largest = larger
    return _Sums(largest, total, powers if len(items) == 1 else None)


def _scores(columns: Tensor, table: Tensor, offsets: Tensor | None, chunk: slice, buffer: Tensor) -> Tensor:
    """Scores in bits as [items, targets], in which layout the three matrix products are fastest on a CPU."""
    shape = chunk.stop - chunk.start, columns.shape[1]
    scores = torch.mm(table[chunk], columns, out=buffer[: shape[0] * shape[1]].view(shape))
    return scores if offsets is None else scores.add_(offsets[chunk, None])


def _own_scores(states: Tensor, classes: Tensor, table: Tensor, bias: Tensor | None) -> Float[Tensor, " p"]:
    """The targets' scores, in nats."""
    scores = (states * table.index_select(0, classes)).sum(1)
    return scores if bias is None else scores + bias.index_select(0, classes)


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _check(targets: Tensor, num_items: int, *sizes: int | None) -> None:
    if any(size is not None and size < 1 for size in sizes):
        raise ValueError(f"a chunk needs at least one target and one item, not {sizes}")
    # On a GPU nobody looks; `index_select` refuses them there instead.
    check_ids(targets, 1, num_items, "targets")
