"""What the training loop knows of an engine: learn from micro-batches, give and take the whole state."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from raysrec.engine.snapshot import Snapshot
from raysrec.history import Batch

Weights = dict[str, Tensor]
"""Parameters and buffers by their names in the model."""


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
    wish: int = 0
    """The largest wish of any worker."""

    def __add__(self, other: "StepResult") -> "StepResult":
        return StepResult(
            self.loss + other.loss,
            self.targets + other.targets,
            self.tokens + other.tokens,
            self.positions + other.positions,
            max(self.wish, other.wish),
        )


@runtime_checkable
class Engine(Protocol):
    """Learns from micro-batches; every method is called by all workers together."""

    def step(self, batches: Sequence[Batch], *, learning_rate: float, wish: int = 0) -> StepResult:
        """Learn from this worker's micro-batches (maybe none) and update once.

        Args:
            batches: Micro-batches.
            learning_rate: Of this update.
            wish: A number that all workers are to hear of, with no message of its own: the result has the largest.

        Raises:
            NonFiniteLoss: The loss or its gradient is NaN or infinite; on all workers alike. The weights and the
                optimizer are as before the step, and can still be asked for; no other step can be made.
        """
        ...

    def weights(self) -> Weights:
        """The whole model, copied to the CPU."""
        ...

    def snapshot(self) -> Snapshot:
        """What this worker must write so that all together can go on; a copy, so that training may go on at once."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved state (`saved_state`), whichever engine saved it and on however many workers.

        Raises:
            StateMismatch: It is another model's or another optimizer's; this engine is then of no use any more.
        """
        ...
