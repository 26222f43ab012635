"""Cheap random numbers for dropout on a CPU, where drawing one float per value costs more than a model does."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def random_bits(shape: torch.Size) -> Int[Tensor, "*shape"]:
    """Sixteen random bits per value, as int16, on a CPU."""
    words = torch.empty(-(-shape.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    return words.view(torch.int16)[: shape.numel()].view(shape)


def keep_or_drop(
    bits: Int[Tensor, "*shape"], probability: float, *, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*shape"]:
    """What dropout multiplies by: 0 where a value is dropped, 1 / (share kept) where it is kept.

    The probability is rounded to a multiple of 1/65,536, and the scale agrees with the rounded one: the expectation
    of what comes out is exactly 1.

    Args:
        bits: What `random_bits` gave.
        probability: That a value is dropped; below 1.
        dtype: Precision of what comes out.
    """
    dropped = min(round(65_536 * probability), 65_535)
    kept = torch.ge(bits, dropped - 32_768, out=torch.empty(bits.shape, dtype=dtype))
    return kept.mul_(65_536 / (65_536 - dropped))
