"""Learning curves out of a run's log: validation scores and the training loss."""

from collections.abc import Iterable

from raysrec.comparing.runs import RunResults
from raysrec.mailbox import Event
from raysrec.pages.figures import Line

LOSS_POINTS = 150
"""Points of a curve of the loss; each is the mean over a stretch of training."""


def validation(run: RunResults, metric: str, *, by: str) -> Line:
    """Its validation scores.

    Args:
        run: Finished or not.
        metric: Such as `ndcg@10`.
        by: `epoch`, or `minutes` of training.
    """
    found = [event for event in run.of_kind("validation") if f"validation/{metric}" in event]
    places = [event["epoch"] if by == "epoch" else event["elapsed_s"] / 60 for event in found]
    return places, [event[f"validation/{metric}"] for event in found]


def loss(run: RunResults) -> Line:
    """Its training loss by epoch, averaged over stretches."""
    steps = run.of_kind("step")
    size = max(1, -(-len(steps) // LOSS_POINTS))
    parts = [steps[start : start + size] for start in range(0, len(steps), size)]
    return [mean(part, "progress") for part in parts], [mean(part, "loss") for part in parts]


def mean(events: Iterable[Event], name: str) -> float:
    """The mean of a number over events that have it; NaN if none does."""
    values = [float(event[name]) for event in events if isinstance(event.get(name), int | float)]
    return sum(values) / len(values) if values else float("nan")
