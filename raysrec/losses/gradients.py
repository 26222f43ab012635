"""Losses that make their gradients with their value: what both come from is too large to be kept for a second pass."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


class Gradients(NamedTuple):
    """Where a loss adds its gradients; all zeros at first."""

    states: Float[Tensor, "P D"]
    vectors: Float[Tensor, "V D"]
    bias: Float[Tensor, " V"] | None
    """None if there is no bias."""

    def without_first(self, rows: int) -> "Gradients":
        """The same without the first rows of vectors and bias."""
        return Gradients(self.states, self.vectors[rows:], None if self.bias is None else self.bias[rows:])


Loss = Callable[
    [Float[Tensor, "P D"], Float[Tensor, "V D"], Float[Tensor, " V"] | None, Gradients | None], Float[Tensor, ""]
]
"""The value for states, vectors and bias, whose gradients it adds to the last argument unless that is None."""


def with_gradients(
    loss: Loss,
    states: Float[Tensor, "P D"],
    vectors: Float[Tensor, "V D"],
    bias: Float[Tensor, " V"] | None,
) -> Float[Tensor, ""]:
    """The value of a loss, for autograd.

    The loss computes in float32 (float64 for float64 inputs) whatever the inputs' precision and autocast, outside of
    autograd; backward only scales what it made. The gradients come back in the inputs' precision. Without grad mode
    they are not made.
    """
    # Inside a Function's forward grad mode is always off, so the caller's is looked up here.
    value: Tensor = _WithGradients.apply(loss, torch.is_grad_enabled(), states, vectors, bias)  # type: ignore[no-untyped-call]
    return value


class _WithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Loss, learning: bool, states: Tensor, vectors: Tensor, bias: Tensor | None) -> Tensor:
        dtype = torch.promote_types(torch.promote_types(states.dtype, vectors.dtype), torch.float32)
        ctx.dtypes = [None if each is None else each.dtype for each in (states, vectors, bias)]
        states, vectors, bias = states.to(dtype), vectors.to(dtype), None if bias is None else bias.to(dtype)
        zeros = (None if each is None else torch.zeros_like(each) for each in (states, vectors, bias))
        gradients = Gradients(*zeros) if learning else None  # type: ignore[arg-type]
        # Autocast would turn the float32 products back into bfloat16.
        with torch.autocast(states.device.type, enabled=False):
            value = loss(states, vectors, bias, gradients)
        ctx.save_for_backward(*(gradients or (None, None, None)))
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        # On a GPU the comparison would wait for the device, and the product costs less than that.
        unscaled = not grad_output.is_cuda and bool(grad_output == 1)
        scaled = (
            None if gradient is None else (gradient if unscaled else gradient * grad_output).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return None, None, *scaled
