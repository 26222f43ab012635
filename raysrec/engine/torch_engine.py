"""The reference engine: plain PyTorch, with DDP where there is more than one worker."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from raysrec.config.run import RunConfig
from raysrec.engine.exchange import agree, num_workers, sum_over_workers, this_worker
from raysrec.engine.forward import gradients_of, loss_of, precision
from raysrec.engine.interface import StepResult, Weights
from raysrec.engine.nonfinite import NonFiniteLoss, explain
from raysrec.engine.optimizers import build_optimizers, set_learning_rate
from raysrec.engine.replicated import replicated_fragments, restore_replicated, whole_model
from raysrec.engine.restoring import refused_by_all
from raysrec.engine.snapshot import Copies, Snapshot
from raysrec.history import Batch
from raysrec.objective import Objective


class TorchEngine:
    """Plain PyTorch; DDP where there is more than one worker."""

    def __init__(self, objective: Objective, config: RunConfig, device: torch.device) -> None:
        self._objective = objective
        self._copies = Copies()
        self._device = device
        self._clip_norm = config.train.clip_norm
        self._optimizers = build_optimizers(objective.model, config.train)
        self._autocast = precision(config.engine, device) == torch.bfloat16
        self._wrapped: nn.Module = DistributedDataParallel(objective) if num_workers() > 1 else objective

    def step(self, batches: Sequence[Batch], *, learning_rate: float, wish: int = 0) -> StepResult:
        """Accumulate gradients without communication, exchange them with the last micro-batch, update."""
        batches, seen = agree(batches, wish)
        if seen.targets == 0:
            return seen
        totals = []
        for index, batch in enumerate(batches):
            with self._quiet_unless(index == len(batches) - 1):
                total = loss_of(batch, self._forward, self._device)
                torch.autograd.backward(total * (num_workers() / seen.targets))  # DDP takes the mean over workers
            totals.append(total.detach())
        losses = torch.stack(totals).tolist()
        loss = sum_over_workers(sum(losses, 0.0))
        if not math.isfinite(loss):
            raise self._explained("the loss is not finite", batches, losses, seen)
        parameters = list(self._objective.parameters())
        norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        if not norm.isfinite():
            raise self._explained("the gradient is not finite although the loss is", batches, losses, seen)
        if self._clip_norm:
            clip_grads_with_norm_(parameters, self._clip_norm, norm)
        set_learning_rate(self._optimizers, learning_rate)
        self._copies.wait()
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return replace(seen, loss=loss)

    def weights(self) -> Weights:
        """The whole model, on the CPU."""
        return whole_model(self._objective.model)

    def snapshot(self) -> Snapshot:
        """Worker 0 has everything; it is the same on all workers."""
        fragments = replicated_fragments(self._objective.model, self._optimizers)
        return self._copies.of(fragments, worker=this_worker(), num_workers=num_workers())

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Every worker takes everything."""
        self._copies.wait()
        with refused_by_all():
            restore_replicated(self._objective.model, self._optimizers, state)

    def _forward(self, batch: Batch) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            total: Tensor = self._wrapped(batch)
        return total

    def _forward_alone(self, batch: Batch) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            total: Tensor = self._objective(batch)
        return total

    def _quiet_unless(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        if is_last or not isinstance(self._wrapped, DistributedDataParallel):
            return contextlib.nullcontext()
        return self._wrapped.no_sync()

    def _explained(
        self, what: str, batches: Sequence[Batch], losses: Sequence[float], seen: StepResult
    ) -> NonFiniteLoss:
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        return explain(
            what,
            batches,
            losses,
            lambda batch: gradients_of(
                batch, self._forward_alone, self._objective, targets=seen.targets, device=self._device
            ),
        )
