"""DeepSpeed as an engine, ZeRO 0 to 3; the only file that imports it."""

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from raysrec.config.run import RunConfig
from raysrec.config.settings import overlay
from raysrec.engine.exchange import agree, num_workers, sum_over_workers, this_worker
from raysrec.engine.forward import gradients_of, loss_of, precision
from raysrec.engine.interface import StepResult, Weights
from raysrec.engine.nonfinite import NonFiniteLoss, explain
from raysrec.engine.optimizers import build_optimizers, set_learning_rate
from raysrec.engine.replicated import replicated_fragments, restore_replicated, whole_model
from raysrec.engine.restoring import refused_by_all
from raysrec.engine.snapshot import Copies, Fragment, Snapshot
from raysrec.engine.zero import Partition
from raysrec.errors import LastingError
from raysrec.history import Batch
from raysrec.objective import Objective

GRADIENT = "the gradient is not finite although the loss is"


class DeepSpeedEngine:
    """DeepSpeed with ZeRO 0-3; its configuration is derived by `deepspeed_config` and never written by hand."""

    def __init__(self, objective: Objective, config: RunConfig, device: torch.device) -> None:
        deepspeed = _import_deepspeed(device)
        self._objective = objective
        self._copies = Copies()
        self._device = device
        self._stage = config.engine.zero_stage
        self._deepspeed = deepspeed
        (optimizer,) = build_optimizers(objective.model, config.train)  # Muon is refused when the config is loaded
        with _new_groups_wait(config.scale.stalled_after_s):
            self._engine, self._optimizer, _, _ = deepspeed.initialize(
                model=objective, optimizer=optimizer, config=deepspeed_config(config, device)
            )
        self._partition = Partition(self._optimizer, objective.model) if self._stage else None

    def step(self, batches: Sequence[Batch], *, learning_rate: float, wish: int = 0) -> StepResult:
        """As TorchEngine; DeepSpeed is told which micro-batch is the last, since their number varies."""
        batches, seen = agree(batches, wish)
        if seen.targets == 0:
            return seen
        set_learning_rate([self._optimizer], learning_rate)
        totals = []
        for index, batch in enumerate(batches):
            self._engine.set_gradient_accumulation_boundary(index == len(batches) - 1)
            total = loss_of(batch, self._engine, self._device)
            self._engine.backward(total * (num_workers() / seen.targets))
            totals.append(total.detach())
            if index < len(batches) - 1:
                self._engine.step()  # counts
        losses = torch.stack(totals).tolist()
        loss = sum_over_workers(sum(losses, 0.0))
        if not math.isfinite(loss):
            raise self._explained("the loss is not finite", batches, losses, seen)
        if self._stage == 0 and not self._norm().isfinite():  # ZeRO always looks at it
            raise self._explained(GRADIENT, batches, losses, seen)
        self._copies.wait()
        self._engine.step()
        if not self._engine.was_step_applied():
            raise self._explained(GRADIENT, batches, losses, seen)
        return replace(seen, loss=loss)

    def weights(self) -> Weights:
        """The whole model, on the CPU; with stage 3 the shards are gathered first."""
        with self._gathered():
            return whole_model(self._objective.model)

    def snapshot(self) -> Snapshot:
        """Each worker has what it updates, in full precision, and worker 0 the buffers; nothing is communicated."""
        return self._copies.of(self._fragments(), worker=this_worker(), num_workers=num_workers())

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Every worker takes what it updates, and the model's own copy of the weights."""
        self._copies.wait()
        with refused_by_all():
            if self._partition is None:
                restore_replicated(self._objective.model, [self._optimizer], state)
            else:
                self._partition.restore(state)
        if self._partition is not None:
            self._partition.settle()

    def _fragments(self) -> dict[str, Fragment]:
        model = self._objective.model
        if self._partition is None:
            return replicated_fragments(model, [self._optimizer])
        fragments = self._partition.fragments()
        if this_worker() == 0:
            for name in set(model.state_dict()) - {name for name, _ in model.named_parameters()}:
                fragments[f"weights/{name}"] = Fragment.whole(model.get_buffer(name))
        return fragments

    def _norm(self) -> Tensor:
        gradients = [parameter.grad for parameter in self._objective.parameters() if parameter.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)

    def _explained(
        self, what: str, batches: Sequence[Batch], losses: Sequence[float], seen: StepResult
    ) -> NonFiniteLoss:
        def gradients(batch: Batch) -> Mapping[str, Tensor]:
            return gradients_of(batch, self._forward_alone, self._objective, targets=seen.targets, device=self._device)

        found = explain(what, batches, losses, gradients)
        if self._partition is not None:
            self._partition.settle()
        return found

    def _forward_alone(self, batch: Batch) -> Tensor:
        from deepspeed.runtime.torch_autocast import autocast_if_enabled

        # Not through DeepSpeed's engine, whose backward pass exchanges gradients; weights are gathered all the same.
        with autocast_if_enabled(self._engine):
            total: Tensor = self._objective(batch)
        return total

    @contextlib.contextmanager
    def _gathered(self) -> Iterator[None]:
        if self._stage < 3:
            yield
            return
        with self._deepspeed.zero.GatheredParameters(list(self._objective.parameters())):
            yield


def deepspeed_config(config: RunConfig, device: torch.device) -> dict[str, Any]:
    """DeepSpeed's JSON, from ours: each number exists once; `engine.extra` is laid over it."""
    derived: dict[str, Any] = {
        # One micro-batch is one call; how many make an update is said at each step, not here.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "zero_optimization": {"stage": config.engine.zero_stage},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": config.train.clip_norm,
        "torch_autocast": {
            "enabled": precision(config.engine, device) == torch.bfloat16,
            "dtype": "bfloat16",
        },
    }
    return overlay(derived, config.engine.extra)


@contextlib.contextmanager
def _new_groups_wait(seconds: float) -> Iterator[None]:
    """Process groups that are made in the block give up a worker that says nothing after so long.

    DeepSpeed makes its own for gradients, and leaves them the 30 minutes that torch takes unless it is told.
    """
    made = dist.new_group
    dist.new_group = partial(made, timeout=timedelta(seconds=seconds))
    try:
        yield
    finally:
        dist.new_group = made


def _import_deepspeed(device: torch.device) -> Any:
    if device.type == "cpu":
        # DeepSpeed would take a GPU that it sees, although this worker was not given one.
        os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        import deepspeed
    except ImportError:
        raise LastingError(
            "engine.name=deepspeed: DeepSpeed is not installed; pip install deepspeed or set engine.name=torch"
        ) from None
    # DeepSpeed imports its Muon, which is not used here, and torch would load its whole compiler to decorate that.
    with _nothing_compiled(), contextlib.suppress(ImportError):
        import deepspeed.runtime.zero.muon.muon_optimizer
    if device.type == "cpu":
        # DeepSpeed would compile an all-reduce for inference (50 s) that training never calls.
        with contextlib.suppress(ImportError, AttributeError):
            import deepspeed.ops

            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


@contextlib.contextmanager
def _nothing_compiled() -> Iterator[None]:
    """What `torch.compile` is asked to compile within stays as it is."""
    name = "TORCHDYNAMO_DISABLE"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
