"""Softmax attention that keeps no matrix of weights, with dropout of the weights also on a CPU.

Per head, with E = D / H channels and M_ij = 0 where i may look at j and minus infinity where not:

    O = Drop(softmax(Q K^T / sqrt(E) + M)) V

torch's fused kernels do this everywhere, but those for a CPU know no dropout: torch then draws one random float for
each weight and keeps three matrices of L * L numbers per head until the gradient. Here the weights of a few heads at a
time are made in a buffer that stays in the processor's cache, dropped, and made again for the gradient; what is kept
of each is 16 random bits. `softmax_attention_reference` is the definition.

Source:
    Vaswani et al., "Attention Is All You Need", 2017; Dao et al., "FlashAttention", NeurIPS 2022: the recomputation,
    and the row sum of P * dP as that of O * dO.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from raysrec.ops.dropout import keep_or_drop, random_bits

_WEIGHTS_PER_CHUNK = 1 << 17
"""Weights that exist at once: half a MiB; a matter of speed only."""


def softmax_attention(
    query: Float[Tensor, "B Q D"],
    key: Float[Tensor, "B L D"],
    value: Float[Tensor, "B L D"],
    seen: Bool[Tensor, "B L"] | None,
    *,
    num_heads: int,
    dropout: float = 0.0,
) -> Float[Tensor, "B Q D"]:
    """What each query's position sees of the values: mixtures of those of `seen`, or of those up to its own.

    A row in which nothing may be seen gives zeros.

    Args:
        query: Of those who look.
        key: Of those who are looked at.
        value: What is mixed.
        seen: Which positions all may look at; None lets each look at those up to its own, and then Q is L.
        num_heads: Into how many parts D is split.
        dropout: Probability that a weight is zeroed, the others scaled up; 0 outside of training.
    """
    q, k, v = (_heads(x, num_heads) for x in (query, key, value))  # [B H L E]
    mask = None if seen is None else seen[:, None, None, :]
    if dropout == 0.0 or query.device.type != "cpu":
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, dropout_p=dropout)
    else:
        mixed = _dropped(q, k, v, mask, dropout)
    return mixed.transpose(1, 2).flatten(-2)


def softmax_attention_reference(
    query: Float[Tensor, "B Q D"],
    key: Float[Tensor, "B L D"],
    value: Float[Tensor, "B L D"],
    seen: Bool[Tensor, "B L"] | None,
    kept: Float[Tensor, "B H Q L"] | float = 1.0,
    *,
    num_heads: int,
) -> Float[Tensor, "B Q D"]:
    """The definition of `softmax_attention`; `kept` is what dropout multiplies the weights by."""
    q, k, v = (_heads(x, num_heads) for x in (query, key, value))
    scores = q @ k.mT / q.shape[-1] ** 0.5  # [B H Q L]
    if seen is None:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    else:
        allowed = seen[:, None, None, :]
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1).nan_to_num(0.0)
    mixed: Tensor = (weights * kept) @ v
    return mixed.transpose(1, 2).flatten(-2)


def _heads(x: Tensor, num_heads: int) -> Tensor:
    """[B L D] as [B H L E]."""
    return x.view(*x.shape[:-1], num_heads, -1).transpose(1, 2)


def _dropped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """What torch's fused kernel does, on a CPU and with dropout; counts in float32 at least."""
    wide = torch.promote_types(v.dtype, torch.float32)
    if mask is None:
        hidden = torch.ones(1, q.shape[2], k.shape[2], dtype=torch.bool).triu_(1)
    else:
        # Where nothing may be seen, all is weighed alike, and nothing comes of it.
        hidden, v = ~mask.expand(-1, q.shape[1], -1, -1).flatten(0, 1), v * mask.any(-1, keepdim=True)
    bias = torch.zeros(hidden.shape, dtype=wide).masked_fill_(hidden, torch.finfo(wide).min)
    bias = bias.expand(q.shape[:2].numel(), q.shape[2], -1)  # [B*H Q L]
    with torch.autocast("cpu", enabled=False):
        flat = (x.to(wide).flatten(0, 1) for x in (q * q.shape[-1] ** -0.5, k, v))  # [B*H L E]
        mixed: Tensor = _DroppedAttention.apply(*flat, bias, dropout)  # type: ignore[no-untyped-call]
    return mixed.view(*q.shape[:3], -1).to(v.dtype)


class _DroppedAttention(torch.autograd.Function):
    """Attention of [N Q E] to [N L E] and its gradient, a few of the N at a time."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout: float) -> Tensor:
        output = torch.empty_like(q, memory_format=torch.contiguous_format)
        bits = torch.empty(bias.shape, dtype=torch.int16)
        for chunk in _chunks(bias):
            bits[chunk] = random_bits(bits[chunk].shape)
            weights = _weights(q[chunk], k[chunk], bias[chunk])
            weights.mul_(keep_or_drop(bits[chunk], dropout, dtype=weights.dtype))
            torch.bmm(weights, v[chunk], out=output[chunk])
        ctx.save_for_backward(q, k, v, bias, bits, output)
        ctx.dropout = dropout
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, bits, output = ctx.saved_tensors
        grad_q, grad_k, grad_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
        for chunk in _chunks(bias):
            weights = _weights(q[chunk], k[chunk], bias[chunk])
            kept = keep_or_drop(bits[chunk], ctx.dropout, dtype=weights.dtype)
            slopes = torch.bmm(grad[chunk], v[chunk].mT).mul_(kept)  # of the weights
            torch.bmm(kept.mul_(weights).mT, grad[chunk], out=grad_v[chunk])
            slopes.sub_((grad[chunk] * output[chunk]).sum(-1, keepdim=True)).mul_(weights)  # of the scores
            torch.bmm(slopes, k[chunk], out=grad_q[chunk])
            torch.bmm(slopes.mT, q[chunk], out=grad_k[chunk])
        return grad_q, grad_k, grad_v, None, None


def _weights(q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
    scores = torch.baddbmm(bias, q, k.mT)
    return torch.softmax(scores, -1, out=scores)


def _chunks(bias: Tensor) -> Iterator[slice]:
    step = max(1, _WEIGHTS_PER_CHUNK // bias[0].numel())
    return (slice(start, start + step) for start in range(0, len(bias), step))
