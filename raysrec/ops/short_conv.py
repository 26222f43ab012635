"""The short convolution: each channel mixes its own last few values, and nothing of the future.

It is a correlation, as in Mamba and RecGRELA: the last tap multiplies the current position, and zeros stand
before the first. `short_conv_reference` is the definition; `short_conv` is the same function, fast: the library
`causal_conv1d` where it is installed and the tensors are on a GPU, shifted multiply-adds with a hand-written
gradient everywhere else. `short_conv_step` takes one position at a time.
"""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

Activation = Literal["silu"] | None

_log = logging.getLogger(__name__)


def short_conv(
    x: Float[Tensor, "B L D"],
    weight: Float[Tensor, "D K"],
    bias: Float[Tensor, " D"],
    *,
    activation: Activation = None,
) -> Float[Tensor, "B L D"]:
    """Mix each channel's last K values, the current one included, and apply `activation` to the sum.

    Source:
        Gu and Dao, "Mamba", 2023, §3.4; the library is Dao-AILab/causal-conv1d (BSD-3).
    """
    if x.is_cuda:
        kernel = _cuda_kernel()
        if kernel is not None and weight.shape[1] in (2, 3, 4):  # the widths that the library knows
            mixed: Tensor = kernel(x.mT, weight.to(x.dtype), bias.to(x.dtype), activation=activation)
            return mixed.mT
    # Autocast may hand over half-precision values beside float32 parameters.
    apply: Callable[..., Tensor] = _ShiftedSum.apply
    return apply(x, weight.to(x.dtype), bias.to(x.dtype), activation)


def short_conv_reference(
    x: Float[Tensor, "B L D"],
    weight: Float[Tensor, "D K"],
    bias: Float[Tensor, " D"],
    *,
    activation: Activation = None,
) -> Float[Tensor, "B L D"]:
    """The definition, by a step per position."""
    window = x.new_zeros(x.shape[0], weight.shape[1] - 1, x.shape[2])
    outputs = []
    for position in range(x.shape[1]):
        output, window = short_conv_step(x[:, position], weight, bias, window, activation=activation)
        outputs.append(output)
    return torch.stack(outputs, dim=1)


def short_conv_step(
    x: Float[Tensor, "B D"],
    weight: Float[Tensor, "D K"],
    bias: Float[Tensor, " D"],
    window: Float[Tensor, "B K-1 D"],
    *,
    activation: Activation = None,
) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B K-1 D"]]:
    """One position: the mixed values, and the window moved on by one.

    Args:
        x: Values at this position.
        weight: One row of taps per channel, the last for the current position.
        bias: Added to the sum before the activation.
        window: The K - 1 positions before this one, oldest first; zeros before the start.
        activation: None or "silu".
    """
    seen = torch.cat([window, x[:, None]], dim=1)  # [B K D]
    mixed = (seen * weight.T).sum(dim=1) + bias
    return F.silu(mixed) if activation == "silu" else mixed, seen[:, 1:]


class _ShiftedSum(torch.autograd.Function):
    """`short_conv` as K multiply-adds over shifted views.

    A grouped convolution on a CPU wants [B D L] in memory and copies there and back; its gradient does so again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, activation: Activation) -> Tensor:
        taps = weight.T.flip(0).contiguous()  # [K D], row j for what stands j positions back
        mixed = torch.addcmul(bias, x, taps[0])
        for lag in range(1, min(len(taps), x.shape[1])):
            mixed[:, lag:].addcmul_(x[:, :-lag], taps[lag])
        ctx.save_for_backward(x, taps, mixed)
        ctx.activation = activation
        return F.silu(mixed) if activation == "silu" else mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, taps, mixed = ctx.saved_tensors
        if ctx.activation == "silu":
            grad = torch.ops.aten.silu_backward(grad, mixed)
        products, grad_taps = grad * x, torch.zeros_like(taps)
        grad_taps[0] = products.sum(dim=(0, 1))
        grad_x = grad * taps[0]
        for lag in range(1, min(len(taps), x.shape[1])):
            grad_x[:, :-lag].addcmul_(grad[:, lag:], taps[lag])
            # Into memory already paid for: fresh pages cost more than the products do.
            torch.mul(grad[:, lag:], x[:, :-lag], out=products[:, lag:])
            grad_taps[lag] = products[:, lag:].sum(dim=(0, 1))
        return grad_x, grad_taps.flip(0).T, grad.sum(dim=(0, 1)), None


@cache
def _cuda_kernel() -> Callable[..., Tensor] | None:
    """The library's function if it can be imported; which it is goes to the log, once."""
    try:
        from causal_conv1d import causal_conv1d_fn
    except ImportError as error:
        _log.info("short convolution: torch (causal_conv1d: %s)", error)
        return None
    _log.info("short convolution: causal_conv1d")
    kernel: Callable[..., Tensor] = causal_conv1d_fn
    return kernel
