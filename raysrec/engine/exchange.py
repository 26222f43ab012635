"""What workers tell each other besides gradients: numbers in a step, JSON outside of one, never pickled objects."""

import json
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from raysrec.engine.interface import StepResult
from raysrec.history import Batch, empty_batch


def this_worker() -> int:
    """The number of this worker, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def num_workers() -> int:
    """How many workers train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def agree(batches: Sequence[Batch], wish: int) -> tuple[Sequence[Batch], StepResult]:
    """Fill up with empty batches to the longest list of any worker, and count what all workers have."""
    own = torch.tensor(
        [
            len(batches),
            sum(batch.num_targets() for batch in batches),
            sum(int(batch.history.lengths.sum()) for batch in batches),
            sum(batch.targets.numel() for batch in batches),
            wish,
        ]
    )
    table = torch.stack(_gathered(own))
    missing = int(table[:, 0].max()) - len(batches)
    _, targets, tokens, positions, _ = table.sum(0).tolist()
    seen = StepResult(0.0, targets, tokens, positions, int(table[:, 4].max()))
    return [*batches, *[empty_batch()] * missing], seen


def sum_over_workers(value: float) -> float:
    """The sum of every worker's number."""
    total = torch.tensor(value, dtype=torch.float64)
    if num_workers() > 1:
        dist.all_reduce(total)
    return float(total)


def everyones(own: Any, group: Any = None) -> list[Any]:
    """What every worker has to say, as JSON, in their order.

    Args:
        own: What this worker says.
        group: Torch's process group to say it in; that of all workers if not given.
    """
    text = json.dumps(own).encode()
    sizes = [int(size) for size in _gathered(torch.tensor(len(text)), group)]
    padded = torch.zeros(max(sizes), dtype=torch.uint8)
    padded[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    texts = _gathered(padded, group)
    return [json.loads(bytes(text[:size].tolist())) for text, size in zip(texts, sizes, strict=True)]


def _gathered(own: Tensor, group: Any = None) -> list[Tensor]:
    if num_workers() == 1:
        return [own]
    everyone = [torch.empty_like(own) for _ in range(num_workers())]
    dist.all_gather(everyone, own, group=group)
    return everyone
