"""The embedded source: seeded interactions with a structure that an order-aware model can learn in minutes.

Each user walks over the items. The next item is, by a draw of its own at each step,

- a successor of the current item (60 %): each item has four, fixed, with probabilities 0.5, 0.25, 0.15 and 0.1;
- the item eight steps back (10 %): a repeat that only a memory longer than one item can foresee;
- an item of the user's taste (30 %): the items are divided among tastes, a user has one, and within a taste
  popularity falls as a power of the rank.

With `returns` there is something for a long memory to learn. Half of the items are then keepsakes, which the walk
never meets. Each user begins with twenty of them, all different and each as likely as any other, and after
`returns_after` interactions a share `returns` of the steps brings one back that has not come back yet. Which ones are
still to come stands nowhere but in the first twenty interactions: who sees the end of a history alone can rule out the
keepsakes that have come back, and must guess among all others.

Popular items are also the more frequent successors, so popularity is skewed over the whole catalogue; but ranking by
it finds few of the next items, while who knows the chain finds most that can be found (`best_ndcg` says how many).
This is no model of people: it serves the first run on a new machine, and tests that learning happens.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysrec.config import FIRST_SESSION, SyntheticConfig

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


def settings_json(config: SyntheticConfig) -> str:
    """The settings that decide what is made: two configs with the same make the same interactions."""
    return config.model_dump_json(exclude=None if config.returns else {"returns", "returns_after"})


def best_ndcg(config: SyntheticConfig, *, k: int = 10, window: int | None = None) -> float:
    """NDCG@k of ranking each user's last item by its true probability: what no model is expected to exceed.

    An upper bound, not quite in reach: it is told each user's taste and the whole chain (and how many items are still
    to return), which a model has to infer, and it sees histories before any filtering. Takes users x items of time
    and little memory.

    Args:
        config: Which interactions.
        k: Cut-off of the metric.
        window: How many interactions before the last one may be seen, at least eight; None for all.

    Raises:
        ValueError: The window does not reach back to what repeats after eight steps.
    """
    if window is not None and window < REPEAT_LAG:
        raise ValueError(f"window={window} is shorter than the {REPEAT_LAG} steps that a repeat looks back")
    walk = _walk(config)
    gains = 1 / np.log2(np.arange(2, min(k, config.num_items) + 2))
    total = 0.0
    for probabilities in _last_step(walk, config, walk.items.shape[1] if window is None else window):
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
    first: NDArray[np.int64]
    """[users, FIRST_SESSION] the keepsakes with which each user begins; [users, 0] if none ever return."""
    first_keepsake: int
    """Items from this one on are keepsakes; N if there are none."""


def _walk(config: SyntheticConfig) -> _Walk:
    rng = np.random.default_rng([config.seed, 0])
    num_users, num_keepsakes = config.num_users, config.num_items // 2 if config.returns else 0
    num_items = config.num_items - num_keepsakes
    num_tastes = max(1, num_items // ITEMS_PER_TASTE)
    rank = rng.permutation(num_items)
    taste_of_item = rank % num_tastes
    weights = np.asarray((rank // num_tastes + 1.0) ** -SKEW, dtype=np.float64)
    successors = rng.choice(num_items, size=(num_items, len(SUCCESSORS)), p=weights / weights.sum())
    weights /= np.bincount(taste_of_item, weights)[taste_of_item]
    lengths = _lengths(rng, num_users, config.mean_length - (config.returns_after if config.returns else 0))
    tastes = rng.integers(num_tastes, size=num_users)
    # What returns is drawn apart, so that without returns every other draw is what it always was.
    rng_of_returns = np.random.default_rng([config.seed, 2])
    first = np.empty((num_users, 0), dtype=np.int64)
    if config.returns:
        lengths += config.returns_after
        successors = np.concatenate([successors, rng_of_returns.integers(num_items, size=(num_keepsakes, 4))])
        taste_of_item = np.pad(taste_of_item, (0, num_keepsakes), constant_values=-1)
        weights = np.pad(weights, (0, num_keepsakes))
        keepsakes = np.broadcast_to(np.arange(num_items, config.num_items), (num_users, num_keepsakes))
        first = rng_of_returns.permuted(keepsakes, axis=1)[:, :FIRST_SESSION]
    items = np.full((num_users, lengths.max()), -1, np.int32)
    walk = _Walk(items, lengths, tastes, successors, taste_of_item, weights, first, num_items)
    _take_steps(rng, rng_of_returns, walk, config)
    return walk


def _take_steps(
    rng: np.random.Generator, rng_of_returns: np.random.Generator, walk: _Walk, config: SyntheticConfig
) -> None:
    """Fill in the items, one step of all users at a time."""
    to_return = rng_of_returns.permuted(walk.first, axis=1)
    returned = np.zeros(config.num_users, dtype=np.int64)
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
            repeated = walk.items[users, step - REPEAT_LAG]
            # A keepsake comes back once only, and not because it has just been there.
            chosen = np.where((draws >= 1 - REPEAT) & (repeated < walk.first_keepsake), repeated, chosen)
        if step < walk.first.shape[1]:
            chosen = walk.first[:, step]
        elif config.returns and step >= config.returns_after:
            comes_back = rng_of_returns.random(len(users)) < config.returns
            back = comes_back & (returned[users] < FIRST_SESSION)
            chosen[back] = to_return[users[back], returned[users[back]]]
            returned[users[back]] += 1
        walk.items[users, step] = chosen


def _lengths(rng: np.random.Generator, num_users: int, mean: float) -> NDArray[np.int64]:
    """At least 5 where the mean allows it, spread like a gamma of shape 2, at most about ten times the mean."""
    least = min(5.0, mean)
    extra = np.minimum(rng.gamma(2.0, (mean - least) / 2, num_users), 10 * mean)
    return np.maximum(1, np.floor(least + extra + rng.random(num_users))).astype(np.int64)


def _times(rng: np.random.Generator, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each user starts within a year and then waits hours: user by user, in order."""
    gaps = 1 + rng.exponential(6 * 3600, lengths.sum()).astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    gaps[starts] = 1_000_000_000 + rng.integers(365 * 86_400, size=len(lengths))
    running = np.cumsum(gaps)
    times: NDArray[np.int64] = running - np.repeat(running[starts] - gaps[starts], lengths)
    return times


def _last_step(
    walk: _Walk, config: SyntheticConfig, window: int, users_at_once: int = 1024
) -> Iterator[NDArray[np.float64]]:
    """The probabilities [users, N] of every user's last item, for one who sees `window` interactions before it."""
    for start in range(0, len(walk.lengths), users_at_once):
        users = np.arange(start, min(start + users_at_once, len(walk.lengths)))
        rows, step = np.arange(len(users)), walk.lengths[users] - 1
        own = np.where(walk.taste_of_item == walk.tastes[users, None], walk.weights, 0.0)
        repeated = walk.items[users, np.maximum(step - REPEAT_LAG, 0)]
        repeats = np.where((step >= REPEAT_LAG) & (repeated < walk.first_keepsake), REPEAT, 0.0)
        follows = np.where(step > 0, FOLLOW, 0.0)
        probabilities = own * (1 - repeats - follows)[:, None]
        probabilities[rows, repeated] += repeats
        for nth, share in enumerate(SUCCESSORS):
            probabilities[rows, walk.successors[walk.items[users, np.maximum(step - 1, 0)], nth]] += follows * share
        if config.returns:
            returning = config.returns * _next_return(walk, users, window)
            probabilities = probabilities * (1 - returning.sum(axis=1, keepdims=True)) + returning
        yield probabilities


def _next_return(walk: _Walk, users: NDArray[np.int64], window: int) -> NDArray[np.float64]:
    """Which item a return would bring [users, N], for one who sees `window` interactions; zeros if all have returned.

    Keepsakes that are seen once are in the first session and still to come; the others that are to come may be any
    that is not seen.
    """
    items, step = walk.items[users], walk.lengths[users, None] - 1
    places = np.arange(items.shape[1])
    keepsake = (items >= walk.first_keepsake) & (places < step)
    left = 2 * FIRST_SESSION - keepsake.sum(axis=1)
    times_seen = np.zeros((len(users), len(walk.weights)), dtype=np.int64)
    row, place = np.nonzero(keepsake & (places >= step - window))
    np.add.at(times_seen, (row, items[row, place]), 1)
    returned_only = np.zeros_like(times_seen)
    row, place = np.nonzero(keepsake & (places >= np.maximum(step - window, FIRST_SESSION)))
    np.add.at(returned_only, (row, items[row, place]), 1)
    known = (times_seen > 0) & (returned_only == 0)
    unseen = times_seen == 0
    unseen[:, : walk.first_keepsake] = False
    guessed = (left - known.sum(axis=1)) / np.maximum(unseen.sum(axis=1), 1)
    expected: NDArray[np.float64] = (known + unseen * guessed[:, None]) / np.maximum(left, 1)[:, None]
    return expected


def _named(letter: str, numbers: NDArray[np.integer]) -> pa.Array:
    names = pa.array([f"{letter}{number}" for number in range(int(numbers.max()) + 1)])
    return pa.DictionaryArray.from_arrays(pa.array(numbers.astype(np.int32)), names)
