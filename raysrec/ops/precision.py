"""Out of half precision: decays are exponentials, and sums along a history lose what is small beside them."""

import torch
from jaxtyping import Inexact
from torch import Tensor


def at_least_float32(x: Inexact[Tensor, "*shape"]) -> Inexact[Tensor, "*shape"]:
    """`x` in float32 (complex64), or in the wider type that it has."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
