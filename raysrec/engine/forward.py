"""How one micro-batch goes through the objective: dropout's seed, the precision, and its gradient alone."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from raysrec.config import EngineConfig
from raysrec.history import Batch
from raysrec.objective import Objective

DROPOUT_STREAM = 1
"""Dropout's seed differs from the loss's in this bit, so that the two do not draw the same numbers."""


def loss_of(batch: Batch, forward: Callable[[Batch], Tensor], device: torch.device) -> Tensor:
    """The loss total of a micro-batch, whose dropout depends on its seed and not on the worker or on what came before.

    Args:
        batch: The micro-batch.
        forward: The objective, or what wraps it.
        device: Where that is.
    """
    torch.manual_seed(batch.seed ^ DROPOUT_STREAM)  # of the CPU and of every GPU
    return forward(batch.to(device))


def gradients_of(
    batch: Batch, forward: Callable[[Batch], Tensor], objective: Objective, *, targets: int, device: torch.device
) -> Mapping[str, Tensor]:
    """What a micro-batch adds to the gradient of the mean loss, by parameter; no parameter's `grad` is touched.

    Args:
        batch: The micro-batch.
        forward: What gives the loss total, without anything that exchanges gradients.
        objective: Whose parameters.
        targets: Of all workers and micro-batches.
        device: Where it is.
    """
    learned = {name: parameter for name, parameter in objective.model.named_parameters() if parameter.requires_grad}
    mean = loss_of(batch, forward, device) / targets
    gradients = torch.autograd.grad(mean, list(learned.values()), allow_unused=True)
    return {name: each for name, each in zip(learned, gradients, strict=True) if each is not None}


def precision(config: EngineConfig, device: torch.device) -> torch.dtype:
    """The type that matrix products are computed in."""
    if config.precision == "auto":
        has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bfloat16 else torch.float32
    return torch.bfloat16 if config.precision == "bfloat16" else torch.float32
