"""Engines: what turns micro-batches into one update of the weights, on all workers at once.

`TorchEngine` (DDP) is the reference; `DeepSpeedEngine` (ZeRO 0-3) is tested against it. Both divide the summed
loss by the number of targets over all workers and micro-batches, so that a target weighs the same wherever it is
learned from. This is the only file that knows DeepSpeed.
"""

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raysrec.command_line import overlay
from raysrec.config import EngineConfig, RunConfig, TrainConfig
from raysrec.history import Batch, empty_batch
from raysrec.objective import Objective
from raysrec.optimizers import build_optimizers, set_learning_rate

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class StepResult:
    """What one step saw, over all workers."""

    loss: float
    """Sum over targets."""
    targets: int
    """How many targets; 0 when no worker had any, and then nothing was updated."""
    tokens: int = 0
    """Real positions that were encoded."""
    positions: int = 0
    """Positions that were encoded, padding included."""

    def __add__(self, other: "StepResult") -> "StepResult":
        return StepResult(
            self.loss + other.loss,
            self.targets + other.targets,
            self.tokens + other.tokens,
            self.positions + other.positions,
        )


@runtime_checkable
class Engine(Protocol):
    """Learns from micro-batches; every method is called by all workers together."""

    def step(self, batches: Sequence[Batch], *, learning_rate: float) -> StepResult:
        """Learn from this worker's micro-batches (maybe none) and update once."""
        ...

    def weights(self) -> Weights:
        """The whole model, on the CPU."""
        ...

    def save(self, directory: Path) -> None:
        """Write what is needed to go on: weights and optimizer."""
        ...

    def load(self, directory: Path) -> None:
        """Go on from what `save` wrote."""
        ...


def build_engine(objective: Objective, config: RunConfig, device: torch.device) -> Engine:
    """The engine that the configuration names, around an objective that is already on the device.

    Raises:
        ValueError: DeepSpeed is asked for and not installed.
    """
    if not any(parameter.requires_grad for parameter in objective.parameters()):
        return FixedEngine(objective, device)
    if config.engine.name == "deepspeed":
        return DeepSpeedEngine(objective, config, device)
    return TorchEngine(objective, config, device)


def learning_rate(config: TrainConfig, *, step: int, progress: float) -> float:
    """The learning rate of a step: a linear warm-up in steps, then constant or a cosine to 0.

    Args:
        config: Peak, warm-up and schedule.
        step: Updates made before this one.
        progress: Share of the training that is done, 0 to 1 (`share_done`).
    """
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    decay = 0.5 * (1 + math.cos(math.pi * min(1.0, progress))) if config.schedule == "cosine" else 1.0
    return config.learning_rate * warm * decay


def share_done(config: TrainConfig, *, epochs: float, steps: int) -> float:
    """How much of the planned training is done, 0 to 1.

    Args:
        config: The planned epochs, and the steps after which they end early.
        epochs: Epochs done; counted in targets, so that it does not depend on how targets fall into steps.
        steps: Updates made.
    """
    return max(epochs / config.epochs, steps / config.max_steps if config.max_steps else 0.0)


class TorchEngine:
    """Plain PyTorch; DDP where there is more than one worker."""

    def __init__(self, objective: Objective, config: RunConfig, device: torch.device) -> None:
        self._objective = objective
        self._device = device
        self._clip_norm = config.train.clip_norm
        self._optimizers = build_optimizers(objective.model, config.train)
        self._autocast = _precision(config.engine, device) == torch.bfloat16
        self._wrapped: nn.Module = DistributedDataParallel(objective) if _num_workers() > 1 else objective

    def step(self, batches: Sequence[Batch], *, learning_rate: float) -> StepResult:
        """Accumulate gradients without communication, exchange them with the last micro-batch, update."""
        batches, seen = _agree(batches)
        if seen.targets == 0:
            return seen
        loss = torch.zeros((), dtype=torch.float64)
        for index, batch in enumerate(batches):
            with self._quiet_unless(index == len(batches) - 1):
                with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
                    total = self._wrapped(batch.to(self._device))
                (total * (_num_workers() / seen.targets)).backward()  # DDP takes the mean over workers
            loss += total.detach().cpu()
        if self._clip_norm:
            torch.nn.utils.clip_grad_norm_(self._objective.parameters(), self._clip_norm)
        set_learning_rate(self._optimizers, learning_rate)
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return replace(seen, loss=_sum_over_workers(loss))

    def weights(self) -> Weights:
        """The whole model, on the CPU."""
        return _whole_model(self._objective)

    def save(self, directory: Path) -> None:
        """Worker 0 writes weights and optimizer; they are the same on all workers."""
        if not _is_first_worker():
            return
        save_file(self.weights(), directory / "weights.safetensors")
        torch.save([optimizer.state_dict() for optimizer in self._optimizers], directory / "optimizer.pt")

    def load(self, directory: Path) -> None:
        """Every worker reads the same files."""
        self._objective.model.load_state_dict(load_file(directory / "weights.safetensors"))
        states = torch.load(directory / "optimizer.pt", map_location=self._device, weights_only=True)
        for optimizer, state in zip(self._optimizers, states, strict=True):
            optimizer.load_state_dict(state)

    def _quiet_unless(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        if is_last or not isinstance(self._wrapped, DistributedDataParallel):
            return contextlib.nullcontext()
        return self._wrapped.no_sync()


class FixedEngine:
    """For a model without parameters: measures the loss of each step and has nothing to update."""

    def __init__(self, objective: Objective, device: torch.device) -> None:
        self._objective = objective
        self._device = device

    @torch.no_grad()
    def step(self, batches: Sequence[Batch], *, learning_rate: float) -> StepResult:
        """The loss of these micro-batches; no rate changes anything."""
        batches, seen = _agree(batches)
        loss = torch.zeros((), dtype=torch.float64)
        for batch in batches:
            loss += self._objective(batch.to(self._device)).cpu()
        return replace(seen, loss=_sum_over_workers(loss))

    def weights(self) -> Weights:
        """The model's buffers, on the CPU."""
        return _whole_model(self._objective)

    def save(self, directory: Path) -> None:
        """Worker 0 writes the buffers; they are the same on all workers."""
        if _is_first_worker():
            save_file(self.weights(), directory / "weights.safetensors")

    def load(self, directory: Path) -> None:
        """Every worker reads the same file."""
        self._objective.model.load_state_dict(load_file(directory / "weights.safetensors"))


class DeepSpeedEngine:
    """DeepSpeed with ZeRO 0-3; its configuration is derived by `deepspeed_config` and never written by hand."""

    def __init__(self, objective: Objective, config: RunConfig, device: torch.device) -> None:
        deepspeed = _import_deepspeed(device)
        self._objective = objective
        self._device = device
        self._stage = config.engine.zero_stage
        self._deepspeed = deepspeed
        (optimizer,) = build_optimizers(objective.model, config.train)  # Muon is refused when the config is loaded
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=objective, optimizer=optimizer, config=deepspeed_config(config, device)
        )

    def step(self, batches: Sequence[Batch], *, learning_rate: float) -> StepResult:
        """As TorchEngine; DeepSpeed is told which micro-batch is the last, since their number varies."""
        batches, seen = _agree(batches)
        if seen.targets == 0:
            return seen
        set_learning_rate([self._optimizer], learning_rate)
        loss = torch.zeros((), dtype=torch.float64)
        for index, batch in enumerate(batches):
            self._engine.set_gradient_accumulation_boundary(index == len(batches) - 1)
            total = self._engine(batch.to(self._device))
            self._engine.backward(total * (_num_workers() / seen.targets))
            self._engine.step()
            loss += total.detach().cpu()
        return replace(seen, loss=_sum_over_workers(loss))

    def weights(self) -> Weights:
        """The whole model, on the CPU; with stage 3 the shards are gathered first."""
        with self._gathered():
            return _whole_model(self._objective)

    def save(self, directory: Path) -> None:
        """Every worker writes its shard."""
        self._engine.save_checkpoint(str(directory), tag="engine")

    def load(self, directory: Path) -> None:
        """Every worker reads its shard; the number of workers must be the one that saved."""
        self._engine.load_checkpoint(str(directory), tag="engine")

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
            "enabled": _precision(config.engine, device) == torch.bfloat16,
            "dtype": "bfloat16",
        },
    }
    return overlay(derived, config.engine.extra)


def _import_deepspeed(device: torch.device) -> Any:
    if device.type == "cpu":
        # DeepSpeed would take a GPU that it sees, although this worker was not given one.
        os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        import deepspeed
    except ImportError:
        raise ValueError(
            "engine.name=deepspeed: DeepSpeed is not installed; pip install deepspeed or set engine.name=torch"
        ) from None
    if device.type == "cpu":
        # DeepSpeed would compile an all-reduce for inference (50 s) that training never calls.
        with contextlib.suppress(ImportError, AttributeError):
            import deepspeed.ops

            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _precision(config: EngineConfig, device: torch.device) -> torch.dtype:
    if config.precision == "auto":
        has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bfloat16 else torch.float32
    return torch.bfloat16 if config.precision == "bfloat16" else torch.float32


def _whole_model(objective: Objective) -> Weights:
    return {name: value.detach().cpu().clone() for name, value in objective.model.state_dict().items()}


def _is_first_worker() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _num_workers() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _agree(batches: Sequence[Batch]) -> tuple[Sequence[Batch], StepResult]:
    """Fill up with empty batches to the longest list of any worker, and count what all workers have."""
    own = torch.tensor(
        [
            len(batches),
            sum(batch.num_targets() for batch in batches),
            sum(int(batch.history.lengths.sum()) for batch in batches),
            sum(batch.targets.numel() for batch in batches),
        ]
    )
    everyone = [own]
    if _num_workers() > 1:
        everyone = [torch.empty_like(own) for _ in range(_num_workers())]
        dist.all_gather(everyone, own)
    table = torch.stack(everyone)
    missing = int(table[:, 0].max()) - len(batches)
    _, targets, tokens, positions = table.sum(0).tolist()
    return [*batches, *[empty_batch()] * missing], StepResult(0.0, targets, tokens, positions)


def _sum_over_workers(value: Tensor) -> float:
    if _num_workers() > 1:
        dist.all_reduce(value)
    return float(value)
