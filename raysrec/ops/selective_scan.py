"""The selective scan of Mamba: a recursion along a history whose decay and input depend on the item.

    h_t = exp(Delta_t A) h_{t-1} + (Delta_t u_t) B_t        for each channel e and state n; h_0 = 0
    y_t = sum over n of h_t C_t  +  skip u_t

Delta comes in *after* the softplus: positive, in units of one position. A is negative, so a state decays.
`selective_scan_reference` is the definition, one `selective_scan_step` per position. `selective_scan` is the same
function, fast: the library `mamba_ssm` where it is installed and the tensors are on a GPU, `_ChunkedScan` everywhere
else. States count in float32 at least, whatever comes in; the result has the precision of `u`.

The cost is E * S state values per position (4,096 in Mamba4Rec): a tensor [B L E S] does not fit a cache, and for long
histories not the memory. So `_ChunkedScan` takes a few positions at a time, in buffers that are used again and again,
and keeps for the gradient only the state before each chunk. There is no cumulative sum of log decays (which would need
no loop): at the papers' initial values its exponential overflows at the fourth item.
"""

import logging
import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from raysrec.ops.precision import at_least_float32

POSITIONS_PER_CHUNK = 8
"""Positions between two kept states where a slab is full: backward keeps B * L / 8 * E * S values. With fewer rows a
chunk has more positions, so that one operation over it always moves about as much."""

VALUES_PER_SLAB = {"cpu": 2**15, "cuda": 2**23}
"""State values (rows * E * S) that are moved on at once, per thread: on a CPU, what its cache holds several times."""

_log = logging.getLogger(__name__)


def selective_scan(
    u: Float[Tensor, "B L E"],
    delta: Float[Tensor, "B L E"],
    a: Float[Tensor, "E S"],
    b: Float[Tensor, "B L S"],
    c: Float[Tensor, "B L S"],
    skip: Float[Tensor, " E"],
    *,
    positions_per_chunk: int | None = None,
) -> Float[Tensor, "B L E"]:
    """Scan histories from their first position to their last.

    Args:
        u: Values that enter the state.
        delta: Step sizes, after the softplus: how far each item moves time on, per channel.
        a: Decay rates, negative.
        b: How much of an item enters each state.
        c: How much of each state is read out.
        skip: How much of `u` goes past the state to the output (D in the paper).
        positions_per_chunk: Positions between two states that are kept for the gradient (the torch path only); None for
            as many as the cache holds, at least POSITIONS_PER_CHUNK.

    Source:
        Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, Algorithm 2; the library
        is state-spaces/mamba (Apache-2.0). Delta * B stands for the exact discretisation of B, as in their code.
    """
    kernel = _cuda_kernel() if u.is_cuda and u.dtype != torch.float64 else None
    # Autocast would turn the products inside back into half precision.
    with torch.autocast(u.device.type, enabled=False):
        precise = map(at_least_float32, (u, delta, a, b, c, skip))
        scanned = _scan_in_torch(positions_per_chunk, *precise) if kernel is None else _scan_in_cuda(kernel, *precise)
    return scanned.to(u.dtype)


def selective_scan_reference(
    u: Float[Tensor, "B L E"],
    delta: Float[Tensor, "B L E"],
    a: Float[Tensor, "E S"],
    b: Float[Tensor, "B L S"],
    c: Float[Tensor, "B L S"],
    skip: Float[Tensor, " E"],
) -> Float[Tensor, "B L E"]:
    """The definition, by a step per position."""
    state = initial_scan_state(u.shape[0], a)
    outputs = []
    for t in range(u.shape[1]):
        output, state = selective_scan_step(u[:, t], delta[:, t], a, b[:, t], c[:, t], skip, state)
        outputs.append(output)
    return torch.stack(outputs, dim=1)


def initial_scan_state(batch_size: int, a: Float[Tensor, "E S"]) -> Float[Tensor, "B E S"]:
    """The state before the first position, on the device and (float32 at least) in the precision of `a`."""
    return at_least_float32(a).new_zeros(batch_size, *a.shape)


def selective_scan_step(
    u: Float[Tensor, "B E"],
    delta: Float[Tensor, "B E"],
    a: Float[Tensor, "E S"],
    b: Float[Tensor, "B S"],
    c: Float[Tensor, "B S"],
    skip: Float[Tensor, " E"],
    state: Float[Tensor, "B E S"],
) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B E S"]]:
    """One position: what is read out, and the state after it."""
    precise_u, delta, a, b, c, skip = map(at_least_float32, (u, delta, a, b, c, skip))
    decay = torch.exp(delta[:, :, None] * a)
    state = decay * state + (delta * precise_u)[:, :, None] * b[:, None, :]
    y = (state * c[:, None, :]).sum(-1) + skip * precise_u
    return y.to(u.dtype), state


def _scan_in_cuda(
    kernel: Callable[..., Tensor], u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor
) -> Tensor:
    # The library wants time last.
    return kernel(u.mT.contiguous(), delta.mT.contiguous(), a, b.mT.contiguous(), c.mT.contiguous(), skip).mT


def _scan_in_torch(
    positions_per_chunk: int | None, u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor
) -> Tensor:
    # Time first: what happens at one position then lies in one piece.
    by_time = [x.transpose(0, 1).contiguous() for x in (delta, delta * u, b, c)]
    # Inside a Function's forward grad mode is always off, so the caller's is looked up here.
    apply: Callable[..., Tensor] = _ChunkedScan.apply
    y = apply(*by_time, a.T.contiguous(), positions_per_chunk, torch.is_grad_enabled())
    return torch.addcmul(y.transpose(0, 1), u, skip)


class _ChunkedScan(torch.autograd.Function):
    """y_t = C_t h_t with h_t = exp(delta_t A) h_{t-1} + x_t B_t: time first, A as [S E].

    Channels are innermost, so that sums over states (y, and the gradients of x and delta) run along whole rows.
    Groups of rows go one after the other, each small enough for the cache (a *slab* is their state at one position).
    """

    @staticmethod
    def forward(
        ctx: Any,
        delta: Float[Tensor, "L B E"],
        x: Float[Tensor, "L B E"],
        b: Float[Tensor, "L B S"],
        c: Float[Tensor, "L B S"],
        a: Float[Tensor, "S E"],
        positions_per_chunk: int | None,
        learning: bool,
    ) -> Float[Tensor, "L B E"]:
        y = torch.empty_like(x)
        kept = []
        for rows in _row_groups(x.shape[1], a):
            chunk = _chunk(rows, delta, x, b, c, a, positions_per_chunk)
            starts = x.new_empty(len(chunk.spans) if learning else 0, chunk.batch, *a.shape)
            for number, span in enumerate(chunk.spans):
                if learning:
                    starts[number] = chunk.states[0]
                y[span, rows] = chunk.run(span)
                chunk.states[0] = chunk.states[span.stop - span.start]
            kept.append(starts)
        ctx.save_for_backward(delta, x, b, c, a, *kept)
        ctx.positions_per_chunk = positions_per_chunk
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        delta, x, b, c, a, *kept = ctx.saved_tensors
        grads = tuple(torch.empty_like(given) for given in (delta, x, b, c))
        grad_a = torch.zeros_like(a)
        with torch.autocast(x.device.type, enabled=False):
            for rows, starts in zip(_row_groups(x.shape[1], a), kept, strict=True):
                chunk = _chunk(rows, delta, x, b, c, a, ctx.positions_per_chunk)
                back = _ChunkGradient(chunk, grad_y[:, rows].contiguous())
                for span, start in zip(reversed(chunk.spans), reversed(starts.unbind()), strict=True):
                    chunk.states[0] = start
                    chunk.advance(span)
                    for grad, part in zip(grads, back.run(span), strict=True):
                        grad[span, rows] = part
                grad_a += back.grad_a.sum(0)
        return *grads, grad_a, None, None


def _chunk(rows: slice, delta: Tensor, x: Tensor, b: Tensor, c: Tensor, a: Tensor, positions: int | None) -> "_Chunk":
    """The chunk that serves a group of rows."""
    if positions is None:
        positions = POSITIONS_PER_CHUNK * max(1, _rows_per_slab(a) // (rows.stop - rows.start))
    return _Chunk(delta[:, rows], x[:, rows], b[:, rows], c[:, rows], a, positions)


class _Chunk:
    """A few positions of some rows: their states, computed in buffers that serve every chunk in turn."""

    def __init__(self, delta: Tensor, x: Tensor, b: Tensor, c: Tensor, a: Tensor, positions: int) -> None:
        self.delta, self.x, self.b, self.c = (part.contiguous() for part in (delta, x, b, c))
        self.a, self.batch = a, x.shape[1]
        self.a_in_bits = math.log2(math.e) * a  # on a CPU, powers of two take a third of the time of those of e
        length = x.shape[0]
        positions = min(positions, length)
        self.spans = [slice(begin, min(begin + positions, length)) for begin in range(0, length, positions)]
        self.decay = x.new_empty(positions, self.batch, *a.shape)
        self.states = x.new_zeros(positions + 1, self.batch, *a.shape)  # 0 is the one before the chunk
        # One view per position, made once: making them costs as much as using them.
        self.decays, self.slabs = self.decay.unbind(), self.states.unbind()

    def advance(self, span: slice) -> None:
        """Fill the states of a span from `states[0]`."""
        length = span.stop - span.start
        torch.mul(self.delta[span, :, None], self.a_in_bits, out=self.decay[:length]).exp2_()
        torch.mul(self.x[span, :, None], self.b[span, ..., None], out=self.states[1 : length + 1])
        for before, after, decay in zip(self.slabs[:length], self.slabs[1:], self.decays, strict=False):
            after.addcmul_(decay, before)

    def run(self, span: slice) -> Tensor:
        """Fill the states of a span and read them out, [span B E]."""
        self.advance(span)
        return _sum_over_states(self.c[span], self.states[1 : span.stop - span.start + 1])


class _ChunkGradient:
    """The way back through chunks, from the last to the first."""

    def __init__(self, chunk: _Chunk, grad_y: Tensor) -> None:
        self.chunk, self.grad_y = chunk, grad_y
        self.grad_a = torch.zeros_like(chunk.states[0])  # per row; the caller sums
        self.carry = torch.zeros_like(chunk.states[0])  # what the chunk after this one says about its last state
        self.grad = torch.empty_like(chunk.decay)
        self.slabs = self.grad.unbind()

    def run(self, span: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of delta, x, b and c in a span whose states and decays the chunk holds; overwrites the decays."""
        chunk, length = self.chunk, span.stop - span.start
        states, grad, decay = chunk.states[: length + 1], self.grad[:length], chunk.decay[:length]
        grad_y, delta = self.grad_y[span], chunk.delta[span]
        torch.mul(grad_y[:, :, None], chunk.c[span, ..., None], out=grad)
        self._pass_back(length)
        grad_c = _sum_over_channels(grad_y, states[1:])
        grad_b = _sum_over_channels(chunk.x[span], grad)
        grad_x = _sum_over_states(chunk.b[span], grad)
        exponent = decay.mul_(states[:-1])  # the gradient of delta * A: grad * decay * state before
        for slab, step in zip(exponent.unbind(), delta[:, :, None].unbind(), strict=True):
            self.grad_a.addcmul_(slab, step)
        return exponent.mul_(chunk.a).sum(2), grad_x, grad_b, grad_c

    def _pass_back(self, length: int) -> None:
        """Make `grad` whole, from the last position to the first, and leave grad * decay in the chunk's decays."""
        from_later = self.carry
        for t in reversed(range(length)):
            self.slabs[t].add_(from_later)
            from_later = self.chunk.decays[t].mul_(self.slabs[t])
        self.carry.copy_(from_later)


def _sum_over_states(weights: Float[Tensor, "T B S"], states: Float[Tensor, "T B S E"]) -> Float[Tensor, "T B E"]:
    return torch.bmm(weights.flatten(0, 1)[:, None], states.flatten(0, 1)).view(*states.shape[:2], -1)


def _sum_over_channels(weights: Float[Tensor, "T B E"], states: Float[Tensor, "T B S E"]) -> Float[Tensor, "T B S"]:
    # A row times the transpose: the other way round, bmm takes four times as long.
    return torch.bmm(weights.flatten(0, 1)[:, None], states.flatten(0, 1).mT).view(*states.shape[:2], -1)


def _row_groups(num_rows: int, a: Tensor) -> Iterator[slice]:
    """The rows of a batch in groups that fill a slab."""
    size = _rows_per_slab(a)
    return (slice(begin, min(begin + size, num_rows)) for begin in range(0, num_rows, size))


def _rows_per_slab(a: Tensor) -> int:
    threads = torch.get_num_threads() if a.device.type == "cpu" else 1
    return max(1, threads * VALUES_PER_SLAB.get(a.device.type, 2**23) // a.numel())


@cache
def _cuda_kernel() -> Callable[..., Tensor] | None:
    """The library's function if it can be imported; which it is goes to the log, once."""
    try:
        import mamba_ssm
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError as error:
        _log.info("selective scan: chunked torch (mamba_ssm: %s)", error)
        return None
    _log.info("selective scan: mamba_ssm %s", mamba_ssm.__version__)
    kernel: Callable[..., Tensor] = selective_scan_fn
    return kernel
