"""Rows of Parquet become batches: gather histories, cut windows, draw batches, pad on the right.

Everything here is a pure function of its arguments; reading ahead and threads live in `loader.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch

from raysrec.config import TrainConfig
from raysrec.data.arrays import BoolArray, IntArray
from raysrec.data.batching.cloze import draw_hidden, share_of_targets
from raysrec.data.batching.order import even_cuts
from raysrec.data.batching.windows import Samples, Windows, training_samples
from raysrec.data.histories import Histories
from raysrec.data.splits import Positions
from raysrec.history import HIDDEN, Batch, History

CUT_AT_ONCE = 64
"""Batches of a stream that are cut at once, out of rows that are sorted by length: more pads less, fewer takes less
memory."""

STRATA = {"every_position": 1, "last_position": 4, "cloze": 4}
"""From how many strata of lengths a batch has rows, by supervision. A row that learns at every position has pasts of
all lengths up to its own; where it is a single past, a batch of one length teaches less than one of several
(`configs/README.md`, Caser)."""

A_PART = 32
"""How many parts cost as much as a whole `micro_batch_tokens` of positions, however small they are."""


@dataclass(frozen=True)
class Past:
    """What some users had."""

    rows: IntArray
    """Which of the histories it is read from."""
    history: History
    seen: torch.Tensor | None
    """Pairs (row of `history`, item) of everything the users had, also beyond `max_length` [E 2]; None if not asked
    for."""


@dataclass(frozen=True)
class HeldOut:
    """Users to rank: what came before, and the item that followed."""

    users: IntArray
    history: History
    targets: torch.Tensor
    """Item ids [B]."""
    seen: torch.Tensor | None
    """Pairs (row, item) of everything the user had before, also beyond `max_length` [E 2]; None if not asked for."""
    lengths: IntArray
    """Interactions before the target, not cut to `max_length` [B]."""

    def to(self, device: torch.device) -> "HeldOut":
        """The same users, their tensors on a device."""
        seen = None if self.seen is None else self.seen.to(device)
        return replace(self, history=self.history.to(device), targets=self.targets.to(device), seen=seen)


def training_batches(
    histories: Histories,
    positions: Positions,
    config: TrainConfig,
    *,
    max_length: int,
    batch_targets: int,
    rng: np.random.Generator,
    skip: int = 0,
    with_seen: bool = False,
) -> Iterator[list[Batch]]:
    """Shuffle and cut a pool of histories: one list of micro-batches for each step of its stream.

    Args:
        histories: The pool.
        positions: What its histories are used for.
        config: Supervision, windows and the size of a micro-batch.
        max_length: Longest row (L).
        batch_targets: Targets of one step of this stream.
        rng: Fixes offsets and order.
        skip: The first so many steps come empty; those after them are what they would have been.
        with_seen: Say also what the users of a batch have in training; it changes nothing else.
    """
    samples = training_samples(positions, config, max_length=max_length, rng=rng)
    if len(samples) == 0:
        return
    (seeds,) = rng.spawn(1)  # of what losses draw; it takes nothing from the order's own randomness
    if config.supervision == "cloze":
        batch_targets = max(1, round(batch_targets / share_of_targets(samples, config.cloze)))
    strata = STRATA[config.supervision]
    for step, windows in enumerate(stratified(samples, batch_targets=batch_targets, strata=strata, rng=rng)):
        hidden = draw_hidden(windows.lengths, config.cloze, rng) if config.supervision == "cloze" else None
        batches = []
        for part in micro_batches(windows.lengths, config.micro_batch_tokens):
            seed = int(seeds.integers(2**63))
            if step < skip:
                continue
            rows = windows.take(part)
            if hidden is None:
                batch = collate(histories, rows)
            else:
                batch = collate_cloze(histories, rows, hidden[part, : int(rows.lengths.max())])
            seen = _seen_by_users(histories, rows, positions) if with_seen else None
            batches.append(replace(batch, seed=seed, seen=seen))
        yield batches


def stratified(samples: Samples, *, batch_targets: int, strata: int, rng: np.random.Generator) -> Iterator[Windows]:
    """Every sample once, in batches of about `batch_targets` targets with as many from each stratum.

    Sorted by length, the rows are cut into strata of equally many targets. What a batch takes of a stratum is of
    similar length, so that it pads little.

    Args:
        samples: To be cut.
        batch_targets: Targets of one batch.
        strata: With 1 a batch has rows of one length, with more it has short ones and long ones. Where batches have so
            few rows that some would get none of a stratum, there are fewer strata.
        rng: Fixes the order.
    """
    order = rng.permutation(len(samples))
    targets_per_sample = samples.take(order[:4096]).num_targets.mean()
    section = max(1, round(CUT_AT_ONCE * batch_targets / targets_per_sample))
    for start in range(0, len(order), section):
        windows = samples.take(order[start : start + section])
        windows = windows.take(np.argsort(windows.lengths, kind="stable"))
        targets = windows.num_targets
        pieces = _pieces(targets, strata=strata, count=max(1, round(targets.sum() / batch_targets)))
        shuffled = ([of_stratum[piece] for piece in rng.permutation(len(of_stratum))] for of_stratum in pieces)
        for batch in zip(*shuffled, strict=True):
            yield windows.take(np.concatenate(batch))


def _pieces(targets: IntArray, *, strata: int, count: int) -> list[list[IntArray]]:
    """Indices of rows that have so many targets, by stratum and by batch: every stratum has a piece for each batch."""
    for fewer in range(strata, 0, -1):
        cut = [
            [stratum.start + np.arange(piece.start, piece.stop) for piece in even_cuts(targets[stratum], count)]
            for stratum in even_cuts(targets, fewer)
        ]
        if all(len(of_stratum) == count for of_stratum in cut):
            break
    return cut  # of a single stratum there may be fewer pieces, where rows have more targets than a batch


def micro_batches(lengths: IntArray, tokens: int) -> Iterator[IntArray]:
    """Indices of rows, shortest first, in parts whose padded size stays within `tokens` (one row always fits).

    Of all ways to cut the sorted rows where lengths change this is the cheapest: a part costs its padded size, and
    `tokens / A_PART` besides, since to encode one takes a while however small it is.
    """
    order = np.argsort(lengths, kind="stable")
    values, counts = np.unique(lengths, return_counts=True)
    ends = np.concatenate([[0], np.cumsum(counts)])
    least, begins = np.zeros(len(ends)), np.zeros(len(ends), np.int64)
    for last, length in enumerate(values, 1):
        padded = (ends[last] - ends[:last]) * length
        costs = least[:last] + padded + np.ceil(padded / tokens) * (tokens / A_PART)
        begins[last] = costs.argmin()
        least[last] = costs[begins[last]]
    cuts = [len(values)]
    while cuts[-1] > 0:
        cuts.append(int(begins[cuts[-1]]))
    for first, last in pairwise(reversed(cuts)):
        rows, at_once = order[ends[first] : ends[last]], max(1, tokens // int(values[last - 1]))
        yield from np.array_split(rows, -(-len(rows) // at_once))


def collate(histories: Histories, windows: Windows) -> Batch:
    """One row per window, padded on the right with zeros to the longest."""
    positions, real = _positions(histories, windows)
    learns = real & (positions >= (histories.offsets[windows.rows] + windows.learn_from)[:, None])
    following = histories.items[np.minimum(positions + 1, len(histories.items) - 1)]
    return Batch(_history(histories, windows, positions, real), torch.from_numpy(np.where(learns, following, 0)))


def collate_cloze(histories: Histories, windows: Windows, hidden: BoolArray) -> Batch:
    """One row per window, in which the items at `hidden` [B L] are replaced by HIDDEN and are the targets."""
    positions, real = _positions(histories, windows)
    history = _history(histories, windows, positions, real)
    where = torch.from_numpy(hidden)
    targets = history.items.where(where, 0)
    return Batch(replace(history, items=history.items.masked_fill(where, HIDDEN)), targets)


def past_batches(
    histories: Histories, stops: IntArray, *, max_length: int, batch_tokens: int, with_seen: bool
) -> Iterator[Past]:
    """The first `stops` interactions of each history, once, where there are any.

    The batches depend on the histories alone, so that a score does not depend on who computes it.

    Args:
        histories: Of some users.
        stops: How many of each history's interactions are read; its users with less than one are left out.
        max_length: Longest row (L).
        batch_tokens: Positions (padding included) of a batch; one row always fits.
        with_seen: Say also which items the users had.
    """
    users = np.flatnonzero(stops >= 1)
    starts = np.maximum(stops - max_length, 0)
    for part in micro_batches((stops - starts)[users], batch_tokens):
        rows = users[part]
        windows = Windows(rows, starts[rows], stops[rows], stops[rows])
        positions, real = _positions(histories, windows)
        yield Past(
            rows=rows,
            history=_history(histories, windows, positions, real),
            seen=_seen(histories, rows, stops[rows]) if with_seen else None,
        )


def held_out_batches(
    histories: Histories, targets: IntArray, *, max_length: int, batch_tokens: int, with_seen: bool
) -> Iterator[HeldOut]:
    """Each user who has a target once, the item at that position to be ranked given everything before it.

    Args:
        histories: Of some users.
        targets: Position of the item to rank in each history; -1 where there is none.
        max_length: Longest row (L).
        batch_tokens: Positions (padding included) of a batch; one row always fits.
        with_seen: Say also which items the users had.
    """
    for past in past_batches(histories, targets, max_length=max_length, batch_tokens=batch_tokens, with_seen=with_seen):
        rows = past.rows
        yield HeldOut(
            users=histories.users[rows],
            history=past.history,
            targets=torch.from_numpy(histories.items[histories.offsets[rows] + targets[rows]]),
            seen=past.seen,
            lengths=targets[rows],
        )


def _positions(histories: Histories, windows: Windows) -> tuple[IntArray, np.ndarray]:
    """Flat positions [B L] of every window's items, and where they are real."""
    across = np.arange(int(windows.lengths.max()))
    real = across < windows.lengths[:, None]
    flat = (histories.offsets[windows.rows] + windows.starts)[:, None] + across
    return np.where(real, flat, 0), real


def _history(histories: Histories, windows: Windows, positions: IntArray, real: np.ndarray) -> History:
    return History(
        items=torch.from_numpy(np.where(real, histories.items[positions], 0)),
        times=torch.from_numpy(np.where(real, histories.times[positions], 0)),
        lengths=torch.from_numpy(windows.lengths.copy()),
        users=torch.from_numpy(histories.users[windows.rows]),
    )


def _seen(histories: Histories, rows: IntArray, stops: IntArray) -> torch.Tensor:
    users = np.repeat(np.arange(len(rows)), stops)
    within = np.arange(len(users)) - np.repeat(np.cumsum(stops) - stops, stops)
    items = histories.items[histories.offsets[rows][users] + within]
    return torch.from_numpy(np.stack([users, items], axis=1))


def _seen_by_users(histories: Histories, windows: Windows, positions: Positions) -> torch.Tensor:
    """Once for each user, however many windows of them there are."""
    rows = np.unique(windows.rows)
    seen = _seen(histories, rows, positions.train[rows])
    seen[:, 0] = torch.from_numpy(histories.users[rows])[seen[:, 0]]
    return seen
