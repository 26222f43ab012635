"""Which runs may be compared, and how they compare: intervals, paired tests, scores by group of users.

Runs stand on one board if they ranked the same targets by the same rule.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from raysrec.comparing.runs import Ranks, RunResults, other_rule
from raysrec.metrics import PairedTest, RankSums, holm, paired_test, shown_cutoff
from raysrec.run_record import Score, Who

PAIRS = 12
"""Runs of a board up to which every two are tested against each other; of more, each against the best alone."""

LENGTH_GROUPS = 6
"""Groups of users by the length of their history, of about the same size."""

POPULARITY_GROUPS = ((0.01, "top 1 %"), (0.05, "to 5 %"), (0.2, "to 20 %"), (0.5, "to 50 %"), (1.0, "the rest"))
"""Shares of the catalogue, most popular items first."""


@dataclass(frozen=True)
class Board:
    """Finished runs that ranked the same targets, best first, and those on the same data without scores."""

    title: str
    rule: str
    """How it was ranked, where that is not the usual way; empty otherwise."""
    runs: list[RunResults]
    unfinished: list[RunResults]
    split: str
    """Which held-out items, `test` or `validation`."""
    metric: str
    """What the runs are sorted by, such as `ndcg@10`."""

    @property
    def k(self) -> int:
        """The metrics' cut-off."""
        return int(self.metric.rpartition("@")[2])

    def ranks(self, run: RunResults) -> Ranks | None:
        """A run's ranks on this board's split."""
        return run.ranks.get(self.split)


@dataclass(frozen=True)
class Compared:
    """One run against another on the same users."""

    test: PairedTest
    p_holm: float
    """The p-value, made larger for the number of tests on the board (Holm)."""


@dataclass(frozen=True)
class Group:
    """Some of the users, and how well each run ranks their targets."""

    label: str
    users: int
    scores: dict[str, tuple[float, float, float]]
    """By run: mean, and the bounds of its 95 % interval."""


def shown_k(runs: Sequence[RunResults], split: str) -> int:
    """The cut-off at which runs are compared: 10 if one has scores there, else the largest that one has."""
    names = [name for run in runs if run.record for name in run.record.of(split).model]
    return shown_cutoff(name for name in names if not name.startswith("coverage"))


def boards(runs: Sequence[RunResults], *, split: str, metric: str) -> list[Board]:
    """The finished runs, put where they may be compared; the board of most runs first."""
    found: dict[tuple[str, str, str], list[RunResults]] = {}
    for run in runs:
        if run.record:
            ranks = run.ranks.get(split)
            targets = ranks.targets if ranks else ""
            found.setdefault((run.data, other_rule(run.record), targets), []).append(run)
    _without_ranks_join_the_others(found)
    titles = [key[:2] for key in found]
    unfinished = [run for run in runs if not run.record]
    made: list[Board] = []
    for index, ((data, rule, _), members) in enumerate(found.items()):
        again = titles[:index].count((data, rule))
        title = f"{data} ({again + 1}, with other held-out items)" if again else data
        mine = [run for run in unfinished if run.data == data] if not any(board.title == data for board in made) else []
        members.sort(key=lambda run: -(mean_of(run, split, metric) or 0.0))
        made.append(Board(title, rule.removeprefix(", "), members, mine, split, metric))
    return sorted(made, key=lambda board: -len(board.runs))


def score_of(run: RunResults, split: str, metric: str, who: Who = "model") -> Score | None:
    """One score of a run, as its record says; None where there is none."""
    return run.record.score(split, metric, who) if run.record else None


def mean_of(run: RunResults, split: str, metric: str) -> float | None:
    """The model's mean; None where there is none."""
    found = score_of(run, split, metric)
    return found.mean if found else None


def tests_against_best(board: Board) -> dict[str, Compared]:
    """Each run of a board against its first, on the same users; runs without ranks are left out."""
    ranked = [run for run in board.runs if board.ranks(run)]
    pairs = [(ranked[0], run) for run in ranked[1:]]
    return {second: test for (_, second), test in _tests(board, pairs).items()}


def tests_of_pairs(board: Board) -> dict[tuple[str, str], Compared]:
    """Every two runs of a board, as (better, worse); none where there are too many."""
    ranked = [run for run in board.runs if board.ranks(run)]
    if not 2 < len(ranked) <= PAIRS:
        return {}
    return _tests(board, [(a, b) for place, a in enumerate(ranked) for b in ranked[place + 1 :]])


def groups_by_length(board: Board) -> list[Group]:
    """Users by how long their history is, about as many in each group."""
    first = next((ranks for run in board.runs if (ranks := board.ranks(run))), None)
    if first is None:
        return []
    edges = np.unique(np.quantile(first.lengths, np.linspace(0, 1, LENGTH_GROUPS + 1)[1:], method="inverted_cdf"))
    which = np.searchsorted(edges, first.lengths)
    low = int(first.lengths.min())
    labels = []
    for edge in edges.astype(int).tolist():
        labels.append(str(low) if low == edge else f"{low}–{edge}")
        low = edge + 1
    return _groups(board, which, labels)


def groups_by_popularity(board: Board) -> list[Group]:
    """Users by how popular their target is; none where the size of the catalogue is not known."""
    first = next((run for run in board.runs if board.ranks(run) and run.num_items), None)
    ranks = board.ranks(first) if first else None
    if first is None or ranks is None or first.num_items is None:
        return []
    shares = ranks.popularity_ranks / first.num_items
    which = np.searchsorted([share for share, _ in POPULARITY_GROUPS[:-1]], shares)
    return _groups(board, which, [label for _, label in POPULARITY_GROUPS])


def _groups(board: Board, which: np.ndarray, labels: Sequence[str]) -> list[Group]:
    groups = []
    for index, label in enumerate(labels):
        mine = which == index
        if mine.any():
            scores = {run.name: _score(ranks.ranks[mine], board) for run in board.runs if (ranks := board.ranks(run))}
            groups.append(Group(label, int(mine.sum()), scores))
    return groups


def _score(ranks: np.ndarray, board: Board) -> tuple[float, float, float]:
    sums = RankSums.of(torch.from_numpy(ranks.copy()), [board.k])
    return (sums.means()[board.metric], *sums.intervals()[board.metric])


def _tests(board: Board, pairs: Sequence[tuple[RunResults, RunResults]]) -> dict[tuple[str, str], Compared]:
    found = []
    for a, b in pairs:
        ranks_a, ranks_b = board.ranks(a), board.ranks(b)
        assert ranks_a is not None
        assert ranks_b is not None
        if len(ranks_a.ranks) > 1:
            found.append(((a.name, b.name), paired_test(ranks_a.ranks, ranks_b.ranks, board.metric)))
    corrected = holm([test.p_value for _, test in found])
    return {names: Compared(test, p) for (names, test), p in zip(found, corrected, strict=True)}


def _without_ranks_join_the_others(found: dict[tuple[str, str, str], list[RunResults]]) -> None:
    """A run whose ranks are gone is shown with those on the same data, by the scores of its record."""
    for data, rule, targets in list(found):
        others = [key for key in found if key[:2] == (data, rule) and key[2]]
        if not targets and others:
            found[others[0]] += found.pop((data, rule, targets))
