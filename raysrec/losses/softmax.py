"""The exact cross-entropy over the whole catalogue.

Scores of P targets against N items would be the largest tensor of a training step by far, so they never exist at
once: the loss and its gradients are made together, a few hundred targets at a time, in one buffer that stays in the
processor's cache. Where the catalogue is too long for that, it is cut into chunks of items too, and read twice.
"""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from raysrec.losses.candidates import check_ids

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
    # Inside a Function's forward grad mode is always off, so the caller's is looked up here.
    loss: Tensor = _SoftmaxLoss.apply(states, vectors, targets, bias, first, chunks, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    return loss


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


class _SoftmaxLoss(torch.autograd.Function):
    """Makes value and gradients in `forward`, and scales the gradients in `backward`."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        vectors: Tensor,
        targets: Tensor,
        bias: Tensor | None,
        first: int,
        chunks: ChunkSizes,
        learning: bool,
    ) -> Tensor:
        # Autocast would turn the float32 products back into bfloat16.
        with torch.autocast(states.device.type, enabled=False):
            loss, *gradients = _loss_and_gradients(states, vectors, targets, bias, first, chunks, learning=learning)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [None if given is None else given.dtype for given in (states, vectors, bias)]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        # On a GPU the comparison would wait for the device, and the product costs less than that.
        unscaled = not grad_output.is_cuda and bool(grad_output == 1)
        states, vectors, bias = (
            None if gradient is None else (gradient if unscaled else gradient * grad_output).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return states, vectors, None, bias, None, None, None


def _loss_and_gradients(
    states: Tensor,
    vectors: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    first: int,
    chunks: ChunkSizes,
    *,
    learning: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The loss and, if learning, its gradients for states, vectors and bias, in the precision they are summed in.

    The classes are the rows from `first` on.
    """
    dtype = torch.promote_types(torch.promote_types(states.dtype, vectors.dtype), torch.float32)
    table = vectors[first:].to(dtype)
    offsets = None if bias is None else BITS_PER_NAT * bias[first:].to(dtype)
    classes = targets - first
    grad_states = states.new_empty(states.shape, dtype=dtype) if learning else None
    grad_vectors = vectors.new_zeros(vectors.shape, dtype=dtype) if learning else None
    grad_bias = bias.new_zeros(bias.shape, dtype=dtype) if learning and bias is not None else None
    losses = states.new_zeros(states.shape[0], dtype=dtype)
    items = _slices(len(table), chunks.items)
    buffer = states.new_empty(min(chunks.targets, states.shape[0]) * min(chunks.items, len(table)), dtype=dtype)
    for rows in _slices(states.shape[0], chunks.targets):
        part, own = states[rows].to(dtype), classes[rows]
        columns = (BITS_PER_NAT * part.T).contiguous()  # [D p]
        sums = _sums_of_powers(columns, table, offsets, items, buffer)
        losses[rows] = (sums.largest + sums.total.log2()) / BITS_PER_NAT - _own_scores(part, own, table, offsets)
        if grad_states is None or grad_vectors is None:
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
            grad_vectors[first:][chunk].addmm_(powers, weighted)
            if grad_bias is not None:
                grad_bias[first:][chunk].addmv_(powers, weights)
        grad_states[rows] = (grad_columns * weights).T - table.index_select(0, own)
        grad_vectors[first:].index_add_(0, own, part, alpha=-1)
        if grad_bias is not None:
            grad_bias[first:].index_add_(0, own, torch.ones_like(weights), alpha=-1)
    return losses.sum(), grad_states, grad_vectors, grad_bias


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


def _own_scores(states: Tensor, classes: Tensor, table: Tensor, offsets: Tensor | None) -> Float[Tensor, " p"]:
    """The targets' scores, in nats."""
    scores = (states * table.index_select(0, classes)).sum(1)
    return scores if offsets is None else scores + offsets.index_select(0, classes) / BITS_PER_NAT


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _check(targets: Tensor, num_items: int, *sizes: int | None) -> None:
    if any(size is not None and size < 1 for size in sizes):
        raise ValueError(f"a chunk needs at least one target and one item, not {sizes}")
    # On a GPU nobody looks; `index_select` refuses them there instead.
    check_ids(targets, 1, num_items, "targets")
