"""The embedded source: seeded interactions with a structure that an order-aware model can learn in minutes.

Each user walks over the items. The next item is, by a draw of its own at each step,

- a successor of the current item (60 %): each item has four, fixed, with probabilities 0.5, 0.25, 0.15 and 0.1;
- the item eight steps back (10 %): a repeat that only a memory longer than one item can foresee;
- an item of the user's taste (30 %): the items are divided among tastes, a user has one, and within a taste
  popularity falls as a power of the rank.

Popular items are also the more frequent successors, so popularity is skewed over the whole catalogue; but ranking by
it finds few of the next items, while who knows the chain finds most that can be found (`best_ndcg` says how many).
This is no model of people: it serves the first run on a new machine, and tests that learning happens.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysrec.config import SyntheticConfig

FOLLOW, REPEAT, TASTE = 0.6, 0.1, 0.3
SUCCESSORS = np.array([0.5, 0.25, 0.15, 0.1])
REPEAT_LAG = 8
ITEMS_PER_TASTE = 50
SKEW = 0.8
"""Popularity within a taste, and of successors, falls as (rank + 1) ** -SKEW."""

VERSION = 1
"""Changes when the same settings make other interactions."""


def synthesize(config: SyntheticConfig) -> pa.Table:
    """Interactions of all users, by time: columns `user` and `item` (text) and `time` (Unix seconds).

    The same config makes the same table, byte for byte. A user's interactions are at least one second apart.
    """
    walk = _walk(config)
    rng = np.random.default_rng([config.seed, 1])
    users = np.repeat(np.arange(config.num_users), walk.lengths)
    order = np.argsort(times := _times(rng, walk.lengths), kind="stable")
    items = walk.items[walk.items >= 0]
    return pa.table(
        {"user": _named("u", users[order]), "item": _named("i", items[order]), "time": times[order].astype(np.int64)}
    )


def best_ndcg(config: SyntheticConfig, *, k: int = 10) -> float:
    """NDCG@k of ranking each user's last item by its true probability: what no model is expected to exceed.

    An upper bound, not quite in reach: it is told each user's taste and the whole chain, which a model has to infer,
    and it sees histories before any filtering. Takes users x items of time and little memory.
    """
    walk = _walk(config)
    gains = 1 / np.log2(np.arange(2, min(k, config.num_items) + 2))
    total = 0.0
    for probabilities in _last_step(walk):
        total += float((-np.sort(-probabilities, axis=1)[:, : len(gains)] @ gains).sum())
    return total / config.num_users


@dataclass(frozen=True)
class _Walk:
    """What happened, and the world in which it did."""

    items: NDArray[np.int32]
    """[users, longest] items 0..N-1 in order; -1 after the end."""
    lengths: NDArray[np.int64]
    """Interactions of each user."""
    tastes: NDArray[np.int64]
    """Taste of each user."""
    successors: NDArray[np.int64]
    """[N, 4] the items that follow each item, likeliest first."""
    taste_of_item: NDArray[np.int64]
    """Taste that each item belongs to."""
    weights: NDArray[np.float64]
    """Probability of each item within its taste."""


def _walk(config: SyntheticConfig) -> _Walk:
    rng = np.random.default_rng([config.seed, 0])
    num_users, num_items = config.num_users, config.num_items
    num_tastes = max(1, num_items // ITEMS_PER_TASTE)
    rank = rng.permutation(num_items)
    taste_of_item = rank % num_tastes
    weights = np.asarray((rank // num_tastes + 1.0) ** -SKEW, dtype=np.float64)
    successors = rng.choice(num_items, size=(num_items, len(SUCCESSORS)), p=weights / weights.sum())
    weights /= np.bincount(taste_of_item, weights)[taste_of_item]
    lengths = _lengths(rng, config)
    tastes = rng.integers(num_tastes, size=num_users)
    walk = _Walk(np.full((num_users, lengths.max()), -1, np.int32), lengths, tastes, successors, taste_of_item, weights)
    _take_steps(rng, walk)
    return walk


def _take_steps(rng: np.random.Generator, walk: _Walk) -> None:
    """Fill in the items, one step of all users at a time."""
    by_taste = np.argsort(walk.taste_of_item, kind="stable")
    # Taste t owns the stretch (t, t + 1] of one long cumulative distribution.
    cumulative = np.cumsum(walk.weights[by_taste])
    for step in range(walk.items.shape[1]):
        users = np.flatnonzero(walk.lengths > step)
        draws, picks = rng.random((2, len(users)))
        places = np.searchsorted(cumulative, walk.tastes[users] + picks, side="right")
        chosen = by_taste[np.minimum(places, len(by_taste) - 1)]
        if step:
            nth = np.searchsorted(np.cumsum(SUCCESSORS)[:-1], picks, side="right")
            chosen = np.where(draws < FOLLOW, walk.successors[walk.items[users, step - 1], nth], chosen)
        if step >= REPEAT_LAG:
            chosen = np.where(draws >= 1 - REPEAT, walk.items[users, step - REPEAT_LAG], chosen)
        walk.items[users, step] = chosen


def _lengths(rng: np.random.Generator, config: SyntheticConfig) -> NDArray[np.int64]:
    """At least 5 where the mean allows it, spread like a gamma of shape 2, at most about ten times the mean."""
    least = min(5.0, config.mean_length)
    extra = np.minimum(rng.gamma(2.0, (config.mean_length - least) / 2, config.num_users), 10 * config.mean_length)
    return np.maximum(1, np.floor(least + extra + rng.random(config.num_users))).astype(np.int64)


def _times(rng: np.random.Generator, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each user starts within a year and then waits hours: user by user, in order."""
    gaps = 1 + rng.exponential(6 * 3600, lengths.sum()).astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    gaps[starts] = 1_000_000_000 + rng.integers(365 * 86_400, size=len(lengths))
    running = np.cumsum(gaps)
    times: NDArray[np.int64] = running - np.repeat(running[starts] - gaps[starts], lengths)
    return times


def _last_step(walk: _Walk, users_at_once: int = 1024) -> Iterator[NDArray[np.float64]]:
    """The true probabilities [users, N] of every user's last item."""
    for start in range(0, len(walk.lengths), users_at_once):
        users = np.arange(start, min(start + users_at_once, len(walk.lengths)))
        rows, step = np.arange(len(users)), walk.lengths[users] - 1
        own = np.where(walk.taste_of_item == walk.tastes[users, None], walk.weights, 0.0)
        repeats = np.where(step >= REPEAT_LAG, REPEAT, 0.0)
        follows = np.where(step > 0, FOLLOW, 0.0)
        probabilities = own * (1 - repeats - follows)[:, None]
        probabilities[rows, walk.items[users, np.maximum(step - REPEAT_LAG, 0)]] += repeats
        for nth, share in enumerate(SUCCESSORS):
            probabilities[rows, walk.successors[walk.items[users, np.maximum(step - 1, 0)], nth]] += follows * share
        yield probabilities


def _named(letter: str, numbers: NDArray[np.integer]) -> pa.Array:
    names = pa.array([f"{letter}{number}" for number in range(int(numbers.max()) + 1)])
    return pa.DictionaryArray.from_arrays(pa.array(numbers.astype(np.int32)), names)
