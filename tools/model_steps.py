"""What `bench_models.py` and `bench_gpu.py` time: steps of a fresh model on random, full histories."""

import resource
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from raysrec.config import ClozeConfig, LossConfig
from raysrec.data.batching.cloze import draw_hidden, expected_targets
from raysrec.history import HIDDEN, Batch, History
from raysrec.models import ModelConfig, SequenceModel, build_model
from raysrec.objective import Objective

NUM_USERS = 6_040
"""Users that a model with user vectors has one for: those of ML-1M."""


def fresh_model(config: ModelConfig, *, items: int, device: str) -> SequenceModel:
    """A model with its first weights, over a catalogue of so many items."""
    model = build_model(config, items, NUM_USERS)
    model.set_item_counts(torch.arange(items + 1))
    return model.to(device)


def full_histories(rows: int, length: int, *, items: int, device: str) -> History:
    """Random items at times 1, 2, ...; each row is another user's, as long as there are others."""
    return History(
        torch.randint(1, items + 1, (rows, length), device=device),
        torch.arange(1, length + 1, device=device).repeat(rows, 1),
        torch.full((rows,), length, device=device),
        1 + torch.arange(rows, device=device) % NUM_USERS,
    )


def learns(model: SequenceModel) -> bool:
    """Has it anything to learn?"""
    return any(parameter.requires_grad for parameter in model.parameters())


def cheapest_supervision(model: SequenceModel) -> str:
    """The way to learn that costs the model least per target, of those that it may learn in."""
    return "every_position" if model.causal else "cloze" if model.fills_gaps else "last_position"


def with_targets(history: History, supervision: str) -> Batch:
    """The history with a target at every position, at the last one, or wherever an item is hidden."""
    items = history.items
    learned = torch.ones_like(items, dtype=torch.bool)
    if supervision == "last_position":
        learned[:, :-1] = False
    elif supervision == "cloze":
        hidden = draw_hidden(history.lengths.cpu().numpy(), ClozeConfig(), np.random.default_rng(0))
        learned = torch.from_numpy(hidden).to(items.device)
        history = replace(history, items=items.masked_fill(learned, HIDDEN))
    return Batch(history, items * learned)


def targets_of_a_step(batch: Batch, supervision: str) -> float:
    """How many targets such a batch has, on average over what may be hidden."""
    if supervision != "cloze":
        return batch.num_targets()
    return float(expected_targets(batch.history.lengths.cpu().numpy(), ClozeConfig()).sum())


def training_step(model: SequenceModel, batch: Batch, supervision: str, *, precision: str) -> Callable[[], None]:
    """Encoding, the exact softmax over the catalogue, the gradients and Adam, for what the batch has as targets."""
    device = batch.targets.device.type
    optimizer = torch.optim.Adam(model.parameters(), fused=device == "cuda")
    objective = Objective(model, LossConfig(name="softmax"), reads_last=supervision == "last_position")
    num_targets = batch.num_targets()

    def step() -> None:
        model.train()
        with autocast(device, precision):
            loss = objective(batch) / num_targets
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def autocast(device: str, precision: str) -> Any:
    """Computes in `precision` ("bfloat16" or "float32") where that is safe."""
    dtype = getattr(torch, precision)
    return torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32)


def seconds_per_call(
    call: Callable[[], Any],
    *,
    device: str,
    seconds: float,
    least: int,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """The fastest of the calls that `seconds` leave time for, after a first; `least` at least."""
    call()
    taken: list[float] = []
    while len(taken) < least or sum(taken) < seconds:
        _wait_for(device)
        started_at = clock()
        call()
        _wait_for(device)
        taken.append(clock() - started_at)
    return min(taken)


def peak_bytes(device: str) -> int:
    """The most that tensors took on the GPU since it was reset; on a CPU, that this process ever took."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
