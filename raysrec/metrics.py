"""Metrics of ranks, their confidence intervals, and the comparison of two runs.

Every metric is a function of one number per user, the rank of the user's target (`ranking.py`). `RankSums` is what
workers add up: sums and counts, never means of means.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

KS = (5, 10, 20)
"""The lengths of recommendation lists that metrics are given for, unless others are asked for."""


def values_of_ranks(ranks: Int[Tensor, " B"], ks: Sequence[int] = KS) -> dict[str, Float[Tensor, " B"]]:
    """Each user's metrics in float64, from the rank r of the one relevant item, 1 being best.

    hr@k is [r <= k], ndcg@k is [r <= k] / log2(r + 1), mrr@k is [r <= k] / r.

    Raises:
        ValueError: A rank is below 1.
    """
    if len(ranks) and int(ranks.min()) < 1:
        raise ValueError(f"a rank is {int(ranks.min())}; the best rank is 1")
    exact = ranks.double()
    values: dict[str, Tensor] = {}
    for k in ks:
        hit = (ranks <= k).double()
        values |= {f"hr@{k}": hit, f"ndcg@{k}": hit / torch.log2(exact + 1), f"mrr@{k}": hit / exact}
    return values


@dataclass(frozen=True)
class RankSums:
    """What is left of many ranks when their metrics are wanted; adding two gives that of all users together."""

    count: int
    """How many users."""
    sums: dict[str, float]
    """Per metric, the sum of its value over users."""
    squares: dict[str, float]
    """Per metric, the sum of its squared value over users, from which the intervals follow."""

    @classmethod
    def of(cls, ranks: Int[Tensor, " B"], ks: Sequence[int] = KS) -> "RankSums":
        """The sums over these ranks; no ranks give zeros, which add nothing."""
        values = values_of_ranks(ranks, ks)
        sums = {name: float(value.sum()) for name, value in values.items()}
        return cls(len(ranks), sums, {name: float(value.square().sum()) for name, value in values.items()})

    @classmethod
    def from_vector(cls, vector: Float[Tensor, " M"], ks: Sequence[int] = KS) -> "RankSums":
        """What `to_vector` took apart, or the sum of several of those."""
        count, *rest = vector.tolist()
        names = list(values_of_ranks(torch.zeros(0, dtype=torch.int64), ks))
        sums, squares = rest[: len(names)], rest[len(names) :]
        return cls(round(count), dict(zip(names, sums, strict=True)), dict(zip(names, squares, strict=True)))

    def to_vector(self) -> Float[Tensor, " M"]:
        """All numbers in one float64 tensor, which workers can sum."""
        return torch.tensor([self.count, *self.sums.values(), *self.squares.values()], dtype=torch.float64)

    def __add__(self, other: "RankSums") -> "RankSums":
        if self.sums.keys() != other.sums.keys():
            raise ValueError(f"different metrics: {list(self.sums)} and {list(other.sums)}")
        sums = {name: value + other.sums[name] for name, value in self.sums.items()}
        squares = {name: value + other.squares[name] for name, value in self.squares.items()}
        return RankSums(self.count + other.count, sums, squares)

    def means(self) -> dict[str, float]:
        """Each metric's mean over users.

        Raises:
            ValueError: There are no users.
        """
        if self.count == 0:
            raise ValueError("no user was ranked, so there are no metrics")
        return {name: value / self.count for name, value in self.sums.items()}

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Each metric's 95 % confidence interval for the mean over users like these.

        Normal approximation, mean ± 1.96 standard errors, cut to [0, 1]: good from some tens of hits on. It holds
        the model fixed, so it says nothing of what another seed would train. A single user gives (0, 1).

        Raises:
            ValueError: There are no users.
        """
        return {name: self._interval(name, mean) for name, mean in self.means().items()}

    def _interval(self, name: str, mean: float) -> tuple[float, float]:
        if self.count == 1:
            return 0.0, 1.0
        variance = max(0.0, self.squares[name] - self.count * mean**2) / (self.count - 1)
        margin = _NORMAL_95 * math.sqrt(variance / self.count)
        return max(0.0, mean - margin), min(1.0, mean + margin)


@dataclass(frozen=True)
class PairedTest:
    """How two runs differ on the same users."""

    difference: float
    """Mean over users of the second run's value minus the first's."""
    interval: tuple[float, float]
    """The difference's 95 % confidence interval."""
    p_value: float
    """Two-sided: how often a difference at least as large would appear if the runs were equally good."""


def paired_test(ranks_a: Int[np.ndarray, " B"], ranks_b: Int[np.ndarray, " B"], metric: str = "ndcg@10") -> PairedTest:
    """Is run b better than run a? A z-test on the users' differences (normal approximation, for many users).

    Args:
        ranks_a: Rank of each user's target in one run.
        ranks_b: The same users in the same order in the other run.
        metric: A name such as `ndcg@10`.

    Raises:
        ValueError: The metric is unknown, or there are fewer than two users.
    """
    differences = _values(ranks_b, metric) - _values(ranks_a, metric)
    if len(differences) < 2:
        raise ValueError(f"{len(differences)} users are too few to compare two runs")
    mean = float(differences.mean())
    error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    if error == 0:
        return PairedTest(mean, (mean, mean), 1.0 if mean == 0 else 0.0)
    p_value = math.erfc(abs(mean) / error / math.sqrt(2))
    return PairedTest(mean, (mean - _NORMAL_95 * error, mean + _NORMAL_95 * error), p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of several tests, made larger so that one false finding in all has the probability they say.

    Holm's step-down form of Bonferroni's correction, in the order given.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected


def shown_cutoff(names: Iterable[str]) -> int:
    """The cut-off whose metrics are shown where there is room for one: 10, or the largest if 10 was not computed."""
    cutoffs = {int(name.rpartition("@")[2]) for name in names if "@" in name}
    return 10 if 10 in cutoffs else max(cutoffs, default=10)


_NORMAL_95 = 1.959963984540054  # 95 % of a normal distribution lie within so many standard deviations


def _values(ranks: Int[np.ndarray, " B"], metric: str) -> Float[np.ndarray, " B"]:
    name, _, k = metric.partition("@")
    if name not in ("hr", "ndcg", "mrr") or not k.isdecimal():
        raise ValueError(f"unknown metric {metric!r}; known are hr@k, ndcg@k and mrr@k, for example ndcg@10")
    values = values_of_ranks(torch.from_numpy(np.ascontiguousarray(ranks)), [int(k)])[metric]
    return np.asarray(values.numpy())
