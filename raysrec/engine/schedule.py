"""The learning rate of a step, and how much of a training is done."""

import math

from raysrec.config import TrainConfig


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
