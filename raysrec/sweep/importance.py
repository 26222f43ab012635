"""How much of the differences between trials each parameter explains by itself."""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from raysrec.sweep.record import TrialRecord

FEWEST = 4
"""Trials with a score below which nothing is said."""


def parameter_importance(trials: Sequence[TrialRecord]) -> dict[str, float]:
    """Each parameter's share of what all of them explain, largest first; empty if that is nothing, or trials are few.

    For one parameter, trials are put into groups of like values (numbers with many values into ranges of about as many
    trials), and what it explains is the share of the scores' variance that lies between the groups, less what as many
    groups would explain by chance (epsilon squared). It is a share of main effects: what only a combination of
    parameters does is nobody's.

    Args:
        trials: Those with a score count.
    """
    scored = [trial for trial in trials if trial.score is not None]
    if len(scored) < FEWEST:
        return {}
    scores = np.array([trial.score for trial in scored], dtype=np.float64)
    explained = {
        key: _explained(_groups([trial.parameters[key] for trial in scored]), scores) for key in scored[0].parameters
    }
    total = sum(explained.values())
    if not total:
        return {}
    return dict(sorted(((key, value / total) for key, value in explained.items()), key=lambda pair: -pair[1]))


def _groups(values: Sequence[Any]) -> list[Hashable]:
    """Which group each trial is in."""
    as_numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    most = math.isqrt(len(values))
    if not as_numbers or len(set(values)) <= most:
        return [str(value) for value in values]
    # By rank, so that a logarithmic range is cut as evenly as another; equal values stay together.
    edges = np.quantile(np.array(values, dtype=np.float64), np.linspace(0, 1, most + 1)[1:-1])
    return [int(group) for group in np.searchsorted(edges, values, side="right")]


def _explained(groups: Sequence[Hashable], scores: np.ndarray) -> float:
    """Epsilon squared, not below 0."""
    members = {group: scores[[other == group for other in groups]] for group in set(groups)}
    total = float(((scores - scores.mean()) ** 2).sum())
    left, freedom = len(scores) - len(members), len(members) - 1
    if not total or not freedom:
        return 0.0
    if left <= 0:  # a grid of one parameter: all there is to explain is its own
        return 1.0
    within = sum(float(((part - part.mean()) ** 2).sum()) for part in members.values())
    return max(0.0, (total - within - freedom * within / left) / total)
