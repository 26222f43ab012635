"""How much of the differences between trials each parameter explains by itself."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from raysrec.sweep.record import TrialRecord

FEWEST = 4
"""Trials with a score below which nothing is said."""


def parameter_importance(trials: Sequence[TrialRecord]) -> dict[str, float]:
    """Each parameter's share of what all of them explain, largest first; empty if that is nothing, or trials are few.

    For one parameter, trials are put into groups of like values (numbers with many values into ranges of about as many
    trials). What it explains is the sum of squares between the groups, less what as many groups would have by chance,
    as seen in what all parameters together leave unexplained. It is a share of main effects: what only a combination
    of parameters does is nobody's.

    Args:
        trials: Those with a score count.
    """
    scored = [trial for trial in trials if trial.score is not None]
    if len(scored) < FEWEST:
        return {}
    scores = np.array([trial.score for trial in scored], dtype=np.float64)
    scores -= scores.mean()
    members = {key: _members([trial.parameters[key] for trial in scored]) for key in scored[0].parameters}
    noise = _unexplained(list(members.values()), scores)
    explained = {key: max(0.0, _between(one, scores) - (one.shape[1] - 1) * noise) for key, one in members.items()}
    total = sum(explained.values())
    if total <= np.finfo(np.float64).eps:
        return {}
    return dict(sorted(((key, value / total) for key, value in explained.items()), key=lambda pair: -pair[1]))


def _members(values: Sequence[Any]) -> np.ndarray:
    """Which trial is in which group: one column per group, 1 where it is."""
    _, group = np.unique(np.array(_groups(values)), return_inverse=True)
    return np.eye(int(group.max()) + 1)[group]


def _groups(values: Sequence[Any]) -> list[str]:
    as_numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    most = math.isqrt(len(values))
    if not as_numbers or len(set(values)) <= most:
        return [str(value) for value in values]
    # By rank, so that a logarithmic range is cut as evenly as another; equal values stay together.
    edges = np.quantile(np.array(values, dtype=np.float64), np.linspace(0, 1, most + 1)[1:-1])
    return [str(group) for group in np.searchsorted(edges, values, side="right")]


def _between(members: np.ndarray, scores: np.ndarray) -> float:
    """Sum of squares of the groups' means; scores have a mean of 0."""
    return float(((members.T @ scores) ** 2 / members.sum(axis=0)).sum())


def _unexplained(members: Sequence[np.ndarray], scores: np.ndarray) -> float:
    """Mean square of what the groups of all parameters leave over; 0 where there are no more trials than groups."""
    design = np.concatenate(members, axis=1)
    fitted, _, rank, _ = np.linalg.lstsq(design, scores, rcond=None)
    left = len(scores) - int(rank)
    return float(((scores - design @ fitted) ** 2).sum()) / left if left > 0 else 0.0
