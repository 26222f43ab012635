"""How much of what a sweep reached lies with each parameter.

For each parameter alone: the trials are put in groups by its value (numbers into quarters), and what is given is the
share of the variance of the scores' ranks that lies between the groups (Kruskal and Wallis' test; its effect size,
corrected for what chance would give), with a p-value by permutation. Ranks bear outliers and trials that were stopped
early. What two parameters do only together is not seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raysrec.sweep import TrialRecord

LEAST_TRIALS = 8
"""Trials with a score below which nothing is said."""

LEAST_IN_GROUP = 2
"""Trials that a group needs."""

GROUPS = 4
"""Groups that numbers are put in, if they have so many values."""

PERMUTATIONS = 2_000


@dataclass(frozen=True)
class Importance:
    """One parameter's share in the scores."""

    parameter: str
    share: float | None
    """Of the variance of ranks, 0 to 1; None where nothing can be said."""
    p_value: float | None
    """How often chance alone would give as much."""
    reason: str = ""
    """Why nothing can be said."""


def importances(trials: Sequence[TrialRecord], parameters: Sequence[str]) -> list[Importance]:
    """The importance of each parameter, most important first; those of which nothing can be said come last."""
    scored = [trial for trial in trials if trial.score is not None]
    found = [_importance(scored, name) for name in parameters]
    return sorted(found, key=lambda one: -1.0 if one.share is None else one.share, reverse=True)


def _importance(trials: Sequence[TrialRecord], name: str) -> Importance:
    trials = [trial for trial in trials if name in trial.parameters]
    if len(trials) < LEAST_TRIALS:
        return Importance(name, None, None, f"too few trials have a score: {len(trials)}, of at least {LEAST_TRIALS}")
    groups = _groups([trial.parameters[name] for trial in trials])
    sizes = np.bincount(groups)
    enough = sizes >= LEAST_IN_GROUP
    kept = enough[groups]
    if enough.sum() < 2 or kept.sum() < LEAST_TRIALS:
        return Importance(name, None, None, f"fewer than two of its values were tried {LEAST_IN_GROUP} times or more")
    groups = np.unique(groups[kept], return_inverse=True)[1]
    ranks = _ranks(np.array([trial.score for trial in trials], dtype=float)[kept])
    if np.ptp(ranks) == 0:
        return Importance(name, None, None, "all scores are the same")
    between = _between(ranks[None], groups)[0]
    rng = np.random.default_rng(0)
    by_chance = _between(rng.permuted(np.tile(ranks, (PERMUTATIONS, 1)), axis=1), groups)
    n, k = len(ranks), int(groups.max()) + 1
    share = max(0.0, 1 - (1 - between) * (n - 1) / (n - k)) if n > k else 0.0
    p_value = (1 + int((by_chance >= between - 1e-12).sum())) / (1 + PERMUTATIONS)
    return Importance(name, float(share), float(p_value))


def is_number(values: Sequence[Any]) -> bool:
    """Are all of these numbers (truth values are none)?"""
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _groups(values: Sequence[Any]) -> np.ndarray:
    """Which group each value is in, from 0."""
    if is_number(values) and len(set(values)) > GROUPS:
        edges = np.quantile(np.array(values, dtype=float), np.linspace(0, 1, GROUPS + 1)[1:-1])
        return np.searchsorted(np.unique(edges), np.array(values, dtype=float))
    known = list(dict.fromkeys(map(repr, values)))
    return np.array([known.index(repr(value)) for value in values])


def _ranks(scores: np.ndarray) -> np.ndarray:
    """1 for the least; equal scores share the mean of their places."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: np.ndarray = (last - (counts - 1) / 2)[inverse]
    return ranks


def _between(ranks: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The share of each row's variance that lies between groups."""
    members = np.eye(int(groups.max()) + 1)[groups]
    sizes = members.sum(axis=0)
    mean = ranks.mean(axis=1, keepdims=True)
    means = ranks @ members / sizes
    share: np.ndarray = ((means - mean) ** 2 * sizes).sum(axis=1) / ((ranks - mean) ** 2).sum(axis=1)
    return share
