"""The diagonal linear recurrence: each channel forgets a share of its state and takes in a value.

    h_t = a_t h_{t-1} + b_t         for each channel by itself; h_0 = 0 before the first position

`a` is constant (LRURec, complex) or depends on the item (RecBLR, real); a magnitude below one forgets.
`linear_recurrence_reference` is the definition, one `linear_recurrence_step` per position. `linear_recurrence` is the
same function, fast, for any length and at a cost linear in it: many rows go position by position, all at once; few
rows are cut into chunks of positions that run side by side, joined by a second recurrence over the chunks' ends. Where
`a` is constant its powers say what a chunk's positions keep of what came before it; otherwise the chunks run twice.
Nothing is ever divided by a product of decays, so fast decay is as exact as slow. The gradient keeps the decays and
the states, B * L * E values each. States count in float32 (complex64) at least, whatever comes in.

Padding is the caller's: on the right it reaches no real state; on the left, `b` must be 0 there.

Source:
    Martin and Cundy, "Parallelizing Linear Recurrent Neural Nets Over Sequence Length", ICLR 2018;
    Blelloch, "Prefix Sums and Their Applications", 1990, for the two levels.
"""

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any, Literal

import torch
from jaxtyping import Inexact
from torch import Tensor
from torch.autograd.function import once_differentiable

VALUES_AT_ONCE = {"cpu": 2**12, "cuda": 2**19}
"""Values that one operation should move: with fewer, starting it costs more than the work, and chunks run side by
side."""


Decay = Inexact[Tensor, "B L E"] | Inexact[Tensor, " E"]


def linear_recurrence(a: Decay, b: Inexact[Tensor, "B L E"]) -> Inexact[Tensor, "B L E"]:
    """All states of histories, from their first position to their last.

    Args:
        a: The share of a state that stays, per position and channel, or per channel only. Real or complex.
        b: What enters the state, real or complex.

    Returns:
        h, in the wider type of `a` and `b`.
    """
    given = torch.promote_types(a.dtype, b.dtype)
    precise = torch.promote_types(given, torch.float32)
    # Autocast would turn the products inside back into half precision.
    with torch.autocast(b.device.type, enabled=False):
        states: Tensor = _Recurrence.apply(a.to(precise), b.to(precise))  # type: ignore[no-untyped-call]
    return states.to(given)


def linear_recurrence_reference(a: Decay, b: Inexact[Tensor, "B L E"]) -> Inexact[Tensor, "B L E"]:
    """The definition, by a step per position."""
    state = torch.zeros_like(b[:, 0])
    states = []
    for t in range(b.shape[1]):
        state = linear_recurrence_step(a[:, t] if a.ndim == 3 else a, b[:, t], state)
        states.append(state)
    return torch.stack(states, dim=1)


def linear_recurrence_step(
    a: Inexact[Tensor, "B E"] | Inexact[Tensor, " E"], b: Inexact[Tensor, "B E"], state: Inexact[Tensor, "B E"]
) -> Inexact[Tensor, "B E"]:
    """One position: the state after it."""
    return a * state + b


class _Recurrence(torch.autograd.Function):
    """The recurrence forwards; its gradient is the same recurrence from the last position to the first."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        h = b.clone(memory_format=torch.contiguous_format)
        _run(a, h, 1)
        ctx.save_for_backward(a, h)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_h: Tensor) -> tuple[Tensor, Tensor]:
        a, h = ctx.saved_tensors
        # Written back at once: a lazy conjugate would be taken anew at every position.
        kept, before = a.conj().resolve_conj(), h.conj()
        grad_b = grad_h.clone(memory_format=torch.contiguous_format)
        _run(kept, grad_b, -1)
        if a.ndim == 1:
            return _sum_over_positions(grad_b[:, 1:] * before[:, :-1]), grad_b
        grad_a = torch.zeros_like(h)
        torch.mul(grad_b[:, 1:], before[:, :-1], out=grad_a[:, 1:])
        return grad_a, grad_b


def _run(decay: Tensor, x: Tensor, direction: Literal[1, -1]) -> None:
    """Turn what enters, [B L E], into states in place.

    `decay` is [E], or [B L E]: then `decay[:, t]` stands between the positions t - 1 and t, whichever of them comes
    first in the direction.
    """
    length, alike = x.shape[1], decay.ndim == 1
    chunks = _num_chunks(x, alike=alike)
    if chunks == 1:
        _walk(x.unbind(1)[::direction], _links(decay, direction))
        return
    covered = chunks * (length // chunks)
    rest = length - covered
    cut, left = (slice(covered), slice(covered - 1, None)) if direction == 1 else (slice(rest, None), slice(rest + 1))
    if alike:
        _run_chunks_alike(decay, _cut(x[:, cut], chunks), direction)
    else:
        _run_chunks(_cut(decay[:, cut], chunks), _cut(x[:, cut], chunks), direction)
    _walk(x[:, left].unbind(1)[::direction], _links(decay if alike else decay[:, left], direction))


def _sum_over_positions(x: Tensor) -> Tensor:
    """[B L E] to [E]; torch sums complex numbers one by one, and real ones many at a time."""
    if x.is_complex():
        return torch.view_as_complex(torch.view_as_real(x).sum(dim=(0, 1)))
    return x.sum(dim=(0, 1))


def _cut(x: Tensor, chunks: int) -> Tensor:
    """[B L E] as [B C K E], the same memory."""
    return x.unflatten(1, (chunks, -1))  # type: ignore[no-untyped-call, no-any-return]


def _links(decay: Tensor, direction: Literal[1, -1]) -> Iterable[Tensor]:
    """What stands between the positions of [B L E], in their order; the same again and again for [E]."""
    return repeat(decay) if decay.ndim == 1 else decay.unbind(1)[1:][::direction]


def _run_chunks_alike(decay: Tensor, x: Tensor, direction: Literal[1, -1]) -> None:
    """The same for [B C K E], C chunks of K positions and one decay [E]: chunks by themselves, then what came before.

    What a position keeps of the state before its chunk is a power of the decay, and one operation adds it everywhere.
    """
    slabs, kept = x.unbind(2)[::direction], _powers(decay, x.shape[2])
    _walk(slabs, repeat(decay))
    ends = slabs[-1].clone()
    _walk(ends.unbind(1)[::direction], repeat(kept[-1]))
    earlier, later = (slice(None, -1), slice(1, None))[::direction]
    x[:, later].addcmul_(kept if direction == 1 else kept.flip(0), ends[:, earlier, None])


def _powers(decay: Tensor, count: int) -> Tensor:
    """The powers 1..count of [E], as [count E]; by doubling, so that few roundings add up."""
    powers = decay[None]
    while len(powers) < count:
        powers = torch.cat((powers, powers * powers[-1]))
    return powers[:count]


def _run_chunks(decay: Tensor, x: Tensor, direction: Literal[1, -1]) -> None:
    """The same with decays [B C K E] of their own: the chunks' ends first, then all states between."""
    slabs, inner = x.unbind(2)[::direction], decay.unbind(2)[1:][::direction]
    ends, through = slabs[0].clone(), torch.ones_like(slabs[0])  # of chunks that begin with nothing
    for slab, link in zip(slabs[1:], inner, strict=True):
        torch.addcmul(slab, link, ends, out=ends)
        through.mul_(link)
    earlier, later = (slice(None, -1), slice(1, None))[::direction]
    entry = decay[:, 1:, 0]  # stands between two chunks
    _walk(ends.unbind(1)[::direction], (entry * through[:, later]).unbind(1)[::direction])
    slabs[0][:, later].addcmul_(entry, ends[:, earlier])
    _walk(slabs, inner)


def _walk(states: Sequence[Tensor], links: Iterable[Tensor]) -> None:
    """One after the other, each takes in the one before it times the link between them."""
    for before, after, link in zip(states, states[1:], links, strict=False):
        after.addcmul_(link, before)


def _num_chunks(x: Tensor, *, alike: bool) -> int:
    """How many chunks run side by side: few enough that operations stay small, and at most what saves operations."""
    batch, length, channels = x.shape
    room = VALUES_AT_ONCE.get(x.device.type, 2**19) // max(1, batch * channels)
    # One operation per position of a chunk if all decays are alike, or three, and one per chunk: fewest at the root.
    best = int((length if alike else 3 * length) ** 0.5)
    chunks = min(room, best)
    return chunks if chunks >= 4 and length >= 4 * chunks else 1
