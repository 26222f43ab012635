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
    buffer = states.new_empty(min(chunks.targets, states.shape[0]) * min(chunks.items, len(table)), dtype=dtype)
    for rows in _slices(states.shape[0], chunks.targets):
        part = _TargetChunk(states[rows].to(dtype), classes[rows], table, offsets, chunks.items, buffer)
        losses[rows] = part.losses()
        if grad_states is not None and grad_vectors is not None:
            grad_states[rows] = part.gradients(grad_vectors[first:], None if grad_bias is None else grad_bias[first:])
    return losses.sum(), grad_states, grad_vectors, grad_bias


class _TargetChunk:
    """Some targets against all items: their losses first, then what they add to the gradients.

    Scores stand as [items, targets], which is the layout in which the three matrix products are fastest on a CPU, and
    count bits, not nats: there, powers of two take a third of the time of those of e.
    """

    def __init__(
        self,
        states: Tensor,
        classes: Tensor,
        table: Tensor,
        offsets: Tensor | None,
        items_per_chunk: int,
        buffer: Tensor,
    ) -> None:
        self.states, self.classes, self.table, self.offsets, self.buffer = states, classes, table, offsets, buffer
        self.columns = (BITS_PER_NAT * states.T).contiguous()  # [D p]
        self.chunks = _slices(len(table), items_per_chunk)
        # Running over the chunks of items: the largest score, and the sum of 2^(score - largest).
        self.largest = states.new_full((len(states),), -torch.inf)
        self.total = states.new_zeros(len(states))

    def losses(self) -> Tensor:
        """Log of the sum of all powers, minus the target's own score, in nats."""
        for items in self.chunks:
            scores = self._scores(items)
            largest = torch.maximum(self.largest, scores.amax(0))
            self.total.mul_(self.largest.sub_(largest).exp2_()).add_(scores.sub_(largest).exp2_().sum(0))
            self.largest = largest
        own = BITS_PER_NAT * (self.states * self.table.index_select(0, self.classes)).sum(1)
        if self.offsets is not None:
            own += self.offsets.index_select(0, self.classes)
        return (self.largest + self.total.log2() - own) / BITS_PER_NAT

    def gradients(self, grad_table: Tensor, grad_offsets: Tensor | None) -> Tensor:
        """Add to the gradients of the table and the offsets, and return that of the states.

        The gradient of a score is its probability, minus one at the target. Both corrections of the powers,
        the division by their sum and the minus one, are made on the small sides of the products.
        """
        weights = self.total.reciprocal()
        weighted = self.states * weights[:, None]
        grad_columns = torch.zeros_like(self.columns)
        for items in self.chunks:
            powers = self._powers(items)  # [items p]
            grad_columns.addmm_(self.table[items].T, powers)
            grad_table[items].addmm_(powers, weighted)
            if grad_offsets is not None:
                grad_offsets[items].addmv_(powers, weights)
        grad_table.index_add_(0, self.classes, self.states, alpha=-1)
        if grad_offsets is not None:
            grad_offsets.index_add_(0, self.classes, torch.ones_like(weights), alpha=-1)
        return (grad_columns * weights).T - self.table.index_select(0, self.classes)

    def _powers(self, items: slice) -> Tensor:
        """2^(score - largest); when all items are one chunk, `losses` has left them in the buffer."""
        if len(self.chunks) == 1:
            return self._view(items)
        return self._scores(items).sub_(self.largest).exp2_()

    def _scores(self, items: slice) -> Tensor:
        scores = torch.mm(self.table[items], self.columns, out=self._view(items))
        return scores if self.offsets is None else scores.add_(self.offsets[items, None])

    def _view(self, items: slice) -> Tensor:
        """The part of the buffer that holds the scores of these items."""
        shape = items.stop - items.start, len(self.states)
        return self.buffer[: shape[0] * shape[1]].view(shape)


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _check(targets: Tensor, num_items: int, *sizes: int | None) -> None:
    if any(size is not None and size < 1 for size in sizes):
        raise ValueError(f"a chunk needs at least one target and one item, not {sizes}")
    # On a GPU nobody looks; `index_select` refuses them there instead.
    check_ids(targets, 1, num_items, "targets")
