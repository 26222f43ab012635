"""The engine of a model without parameters: it measures the loss of each step and has nothing to update."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from raysrec.engine.exchange import agree, num_workers, sum_over_workers, this_worker
from raysrec.engine.forward import loss_of
from raysrec.engine.interface import StepResult, Weights
from raysrec.engine.nonfinite import explain
from raysrec.engine.replicated import replicated_fragments, restore_replicated, whole_model
from raysrec.engine.restoring import refused_by_all
from raysrec.engine.snapshot import Copies, Snapshot
from raysrec.history import Batch
from raysrec.objective import Objective


class FixedEngine:
    """For a model without parameters."""

    def __init__(self, objective: Objective, device: torch.device) -> None:
        self._objective = objective
        self._copies = Copies()
        self._device = device

    @torch.no_grad()
    def step(self, batches: Sequence[Batch], *, learning_rate: float, wish: int = 0) -> StepResult:
        """The loss of these micro-batches; no rate changes anything."""
        batches, seen = agree(batches, wish)
        losses = [float(loss_of(batch, self._objective, self._device)) for batch in batches]
        loss = sum_over_workers(sum(losses, 0.0))
        if not math.isfinite(loss):
            raise explain("the loss is not finite", batches, losses, lambda batch: {})
        return replace(seen, loss=loss)

    def weights(self) -> Weights:
        """The model's buffers, on the CPU."""
        return whole_model(self._objective.model)

    def snapshot(self) -> Snapshot:
        """Worker 0 has the buffers; they are the same on all workers."""
        fragments = replicated_fragments(self._objective.model, [])
        return self._copies.of(fragments, worker=this_worker(), num_workers=num_workers())

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Every worker takes the buffers."""
        with refused_by_all():
            restore_replicated(self._objective.model, [], state)
