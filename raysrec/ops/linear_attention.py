"""Linear attention with a rotary numerator: what RecGRELA puts in the place of softmax attention.

With phi(x) = ELU(x) + 1 > 0, features fq = phi(q) and fk = phi(k), and R_i the rotation of position i:

    o_i = sum_j <R_i fq_i, R_j fk_j> v_j / (sum_j <fq_i, fk_j> + n * 1e-6),   n = how many j there are

per head. The rotation stands in the numerator only, so the weights of a row may be negative and need not sum to
one. It turns pairs of neighbouring channels of the *whole* D before heads are split, so each head has its own
band of frequencies; only differences of positions matter. With `rotary=False` R_i is 1 everywhere: plain linear
attention, which tells no position from another.

`causal_linear_attention` sums over j <= i. `linear_attention_reference` is its definition, position by position,
by the `linear_attention_step` that serving uses too. `bidirectional_linear_attention` sums over every j that a
mask lets in. All of them count in float32 at least, whatever comes in.

Source:
    Hu et al., arXiv:2506.13315, 2025 (the rotary linear attention, and in the authors' code the 1e-6);
    Katharopoulos et al., "Transformers are RNNs", ICML 2020 (the recursion); Su et al., "RoFormer",
    arXiv:2104.09864, 2021, its section on linear attention (rotation in the numerator only).
"""

from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from raysrec.ops.precision import at_least_float32

EPS = 1e-6
"""Added to the mean of the weights, so to their sum once per key."""

_POSITIONS_PER_CHUNK = 40
"""Fastest on a CPU of 25 to 200; divides the usual lengths of 50 and 200 without padding (25 and 40 per chunk)."""


class LinearAttentionState(NamedTuple):
    """What a causal linear attention remembers of a whole history."""

    products: Float[Tensor, "B H E E"]
    """Sum of rotated keys times values, per head."""
    keys: Float[Tensor, "B D"]
    """Sum of keys."""
    position: Int[Tensor, " B"]
    """How many positions were taken, which is the index of the next."""


def causal_linear_attention(
    query: Float[Tensor, "B L D"],
    key: Float[Tensor, "B L D"],
    value: Float[Tensor, "B L D"],
    *,
    num_heads: int,
    rotary: bool = True,
    positions_per_chunk: int = _POSITIONS_PER_CHUNK,
) -> Float[Tensor, "B L D"]:
    """Each position's mixture of the values up to and including its own.

    Chunks of positions are multiplied out among themselves and meet the rest through the chunks' running sums,
    so memory is B * H * L * positions_per_chunk numbers, and the gradient keeps none of it.

    Args:
        query: Before phi.
        key: Before phi.
        value: What is mixed.
        num_heads: Into how many parts D is split; divides D, and leaves an even number of channels each.
        rotary: Do rotations tell positions apart?
        positions_per_chunk: The longest chunk; a matter of speed only.
    """
    with torch.autocast(query.device.type, enabled=False):
        wide = map(at_least_float32, (query, key, value))
        mixed: Tensor = _CausalLinearAttention.apply(*wide, num_heads, rotary, positions_per_chunk)  # type: ignore[no-untyped-call]
        return mixed.to(value.dtype)


def linear_attention_reference(
    query: Float[Tensor, "B L D"],
    key: Float[Tensor, "B L D"],
    value: Float[Tensor, "B L D"],
    *,
    num_heads: int,
    rotary: bool = True,
) -> Float[Tensor, "B L D"]:
    """The definition of `causal_linear_attention`, by a step per position."""
    state = initial_linear_attention_state(query[:, 0], num_heads=num_heads)
    outputs = []
    for position in range(query.shape[1]):
        at = (query[:, position], key[:, position], value[:, position])
        output, state = linear_attention_step(*at, state, rotary=rotary)
        outputs.append(output)
    return torch.stack(outputs, dim=1)


def initial_linear_attention_state(like: Float[Tensor, "B D"], *, num_heads: int) -> LinearAttentionState:
    """The state before the first position, on the device and (float32 at least) in the precision of `like`."""
    like = at_least_float32(like)
    batch_size, dim = like.shape
    products = like.new_zeros(batch_size, num_heads, dim // num_heads, dim // num_heads)
    return LinearAttentionState(products, torch.zeros_like(like), like.new_zeros(batch_size, dtype=torch.int64))


def linear_attention_step(
    query: Float[Tensor, "B D"],
    key: Float[Tensor, "B D"],
    value: Float[Tensor, "B D"],
    state: LinearAttentionState,
    *,
    rotary: bool = True,
) -> tuple[Float[Tensor, "B D"], LinearAttentionState]:
    """Take one more position in constant time and memory: its output and the new state."""
    q, k, v = map(at_least_float32, (query, key, value))
    fq, fk = positive(q), positive(k)
    num_heads = state.products.shape[1]
    turns = _turns(state.position, q.shape[-1], q.dtype) if rotary else None
    rq, rk, v = (_heads(x, num_heads) for x in (_rotate(fq, turns), _rotate(fk, turns), v))  # [B H E]
    products = state.products + rk[..., :, None] * v[..., None, :]
    keys, position = state.keys + fk, state.position + 1
    numerator = torch.einsum("bhe,bhef->bhf", rq, products)
    denominator = _heads(fq * keys, num_heads).sum(-1) + EPS * position[:, None]
    output = (numerator / denominator[..., None]).flatten(-2)
    return output.to(value.dtype), LinearAttentionState(products, keys, position)


def bidirectional_linear_attention(
    query: Float[Tensor, "B L D"],
    key: Float[Tensor, "B L D"],
    value: Float[Tensor, "B L D"],
    mask: Bool[Tensor, "B L"],
    *,
    num_heads: int,
    rotary: bool = True,
) -> Float[Tensor, "B L D"]:
    """Each position's mixture of the values at all positions where `mask` is true, before and after its own.

    A row in which nothing is true gives zeros.
    """
    with torch.autocast(query.device.type, enabled=False):
        q, k, v = map(at_least_float32, (query, key, value))
        fq, fk = positive(q), positive(k) * mask[..., None]
        turns = _turn_table(q) if rotary else None
        rq, rk, v = (_heads(x, num_heads) for x in (_rotate(fq, turns), _rotate(fk, turns), v))  # [B L H E]
        numerator = torch.einsum("blhe,bhef->blhf", rq, torch.einsum("blhe,blhf->bhef", rk, v))
        weights = _heads(fq * fk.sum(1, keepdim=True), num_heads).sum(-1)  # [B L H]
        denominator = weights + EPS * mask.sum(1).clamp(min=1)[:, None, None]
        mixed: Tensor = (numerator / denominator[..., None]).flatten(-2).to(value.dtype)
        return mixed


def positive(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """ELU(x) + 1, without losing small values to the addition of 1; its derivative is ``min(positive(x), 1)``."""
    return x.clamp(max=0).exp() + x.relu()


class _CausalLinearAttention(torch.autograd.Function):
    """The chunked form with its gradient; what is cheap to compute again is not kept.

    Between chunk boundaries the numerator is (Q K^T o M) V with M lower triangular, and its gradients with respect
    to Q, K and V are products of the same two triangular matrices, Q K^T o M and G V^T o M. Across boundaries Q meets
    the sum of K^T V over earlier chunks, and K and V meet the sum of Q^T G over later ones.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, num_heads: int, rotary: bool, most: int) -> Tensor:
        fq, fk = positive(query), positive(key)
        chunks = _Chunks(value.shape, num_heads, most)
        turns = _turn_table(value) if rotary else None
        q, k, v = chunks.split(_rotate(fq, turns)), chunks.split(_rotate(fk, turns)), chunks.split(value)
        numerator = torch.bmm(torch.bmm(q, k.mT).tril_(), v)
        numerator.baddbmm_(q, chunks.sum_of_earlier(torch.bmm(k.mT, v)))
        keys = fk.cumsum(1)
        count = torch.arange(1, value.shape[1] + 1, dtype=value.dtype, device=value.device)
        denominator = chunks.heads(fq * keys).sum(-1, keepdim=True).add_(EPS * count[:, None, None])  # [B L H 1]
        output = chunks.join(numerator)
        chunks.heads(output).div_(denominator)
        ctx.save_for_backward(fq, fk, value, keys, denominator, output)
        ctx.chunks, ctx.turns = chunks, turns
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        fq, fk, value, keys, denominator, output = ctx.saved_tensors
        chunks: _Chunks = ctx.chunks
        turns: Tensor | None = ctx.turns
        grad = (chunks.heads(grad) / denominator).flatten(-2)  # of the numerator
        grad_denominator = chunks.heads(grad * output).sum(-1, keepdim=True).neg_()  # [B L H 1]

        q, k, v = chunks.split(_rotate(fq, turns)), chunks.split(_rotate(fk, turns)), chunks.split(value)
        g = chunks.split(grad)
        scores, slopes = torch.bmm(k, q.mT).triu_(), torch.bmm(v, g.mT).triu_()  # [., key, query]
        earlier, later = chunks.sum_of_earlier(torch.bmm(k.mT, v)), chunks.sum_of_later(torch.bmm(q.mT, g))
        grad_q = torch.bmm(slopes.mT, k).baddbmm_(g, earlier.mT)
        grad_k = torch.bmm(slopes, q).baddbmm_(v, later.mT)
        grad_v = torch.bmm(scores, g).baddbmm_(k, later)

        back = None if turns is None else turns.conj()
        grad_fq, grad_fk = _rotate(chunks.join(grad_q), back), _rotate(chunks.join(grad_k), back)
        chunks.heads(grad_fq).addcmul_(grad_denominator, chunks.heads(keys))
        grad_keys = (grad_denominator * chunks.heads(fq)).flatten(-2)
        running = grad_keys.cumsum(1)
        grad_fk.add_(grad_keys).add_(running[:, -1:]).sub_(running)  # each key is in every later sum
        return grad_fq.mul_(fq.clamp(max=1)), grad_fk.mul_(fk.clamp(max=1)), chunks.join(grad_v), None, None, None


class _Chunks:
    """How B histories of L positions and D channels are laid out as one batch of small matrices, and back."""

    def __init__(self, shape: torch.Size, num_heads: int, most: int) -> None:
        self.batch, self.length, dim = shape
        self.num_heads, self.width = num_heads, dim // num_heads
        self.number = -(-self.length // most)
        self.size = -(-self.length // self.number)

    def split(self, x: Tensor) -> Tensor:
        """[B L D] to [B*N*H C E]: N chunks of C positions, H heads of E channels; zeros fill the last chunk."""
        x = F.pad(x, (0, 0, 0, self.number * self.size - self.length)) if self.number * self.size > self.length else x
        x = x.reshape(self.batch * self.number, self.size, self.num_heads, self.width)
        return x.transpose(1, 2).reshape(-1, self.size, self.width)

    def join(self, x: Tensor) -> Tensor:
        """What `split` took apart, in memory of its own."""
        x = x.view(self.batch * self.number, self.num_heads, self.size, self.width).transpose(1, 2)
        return x.reshape(self.batch, self.number * self.size, -1)[:, : self.length].contiguous()

    def heads(self, x: Tensor) -> Tensor:
        """[B L D] as [B L H E], the same memory."""
        return _heads(x, self.num_heads)

    def sum_of_earlier(self, x: Tensor) -> Tensor:
        """For each chunk's matrix in [B*N*H E E] the sum of those of the chunks before it."""
        x = x.view(self.batch, self.number, -1)
        return (x.cumsum(1) - x).view(-1, self.width, self.width)

    def sum_of_later(self, x: Tensor) -> Tensor:
        """The same over the chunks after it."""
        x = x.view(self.batch, self.number, -1)
        running = x.cumsum(1)
        return (running[:, -1:] - running).view(-1, self.width, self.width)


def _heads(x: Tensor, num_heads: int) -> Tensor:
    """[... D] as [... H E]."""
    return x.view(*x.shape[:-1], num_heads, -1)


def _rotate(x: Tensor, turns: Tensor | None) -> Tensor:
    """Turn each pair of neighbouring channels: a pair is one complex number, a turn another; None turns nothing."""
    if turns is None:
        return x
    pairs = torch.view_as_complex(x.view(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns).flatten(-2)


def _turn_table(like: Tensor) -> Tensor:
    """The rotations of all positions of [B L D], [L D/2]; made once for all lengths up to the next power of two."""
    length, dim = like.shape[1:]
    return _longest_turn_table(1 << (length - 1).bit_length(), dim, like.dtype, like.device)[:length]


@cache
def _longest_turn_table(length: int, dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    # A table first made while serving must still be good for training.
    with torch.inference_mode(False), torch.no_grad():
        return _turns(torch.arange(length, device=device), dim, dtype)


def _turns(positions: Int[Tensor, "*shape"], dim: int, dtype: torch.dtype) -> Tensor:
    """exp(i * position * 10000^(-2t / D)) for each pair t of channels; angles in float64, for long histories."""
    exponents = torch.arange(0, dim, 2, dtype=torch.float64, device=positions.device) / dim
    angles = positions[..., None] * 10_000.0**-exponents
    return torch.polar(torch.ones_like(angles), angles).to(dtype.to_complex())
