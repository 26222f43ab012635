"""What can be reached on the embedded source: the score of ranking by the true probabilities."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from raysrec.config import FIRST_SESSION, SyntheticConfig
from raysrec.data.synthetic.walk import FOLLOW, REPEAT, REPEAT_LAG, Walk, blocks, likeliest, make_walk, season_of
from raysrec.data.synthetic.world import SUCCESSORS, make_world, sizes


def best_ndcg(config: SyntheticConfig, *, k: int = 10, window: int | None = None, users: int | None = None) -> float:
    """NDCG@k of ranking each user's last item by its true probability: what no model is expected to exceed.

    An upper bound, not quite in reach: it is told each user's taste, the season and the whole chain (and how many
    items are still to return), which a model has to infer, and it sees histories before any filtering. Takes users x
    items of time and little memory.

    Args:
        config: Which interactions.
        k: Cut-off of the metric.
        window: How many interactions before the last one may be seen, at least eight; None for all.
        users: How many users to look at, from the first; None for all.

    Raises:
        ValueError: The window does not reach back to what repeats after eight steps.
    """
    if window is not None and window < max(REPEAT_LAG, config.order):
        raise ValueError(f"window={window} is shorter than the {REPEAT_LAG} steps that a repeat looks back")
    size, world = sizes(config), make_world(config)
    wanted = min(size.num_users, users or size.num_users)
    gains = 1 / np.log2(np.arange(2, min(k, size.num_items) + 2))
    total = 0.0
    left = wanted
    for block in range(blocks(config)):
        walk = make_walk(config, block, world)
        for probabilities in last_step(walk, config, walk.items.shape[1] if window is None else window):
            best = np.partition(probabilities[:left], -len(gains), axis=1)[:, -len(gains) :]
            total += float((np.sort(best, axis=1)[:, ::-1] @ gains).sum())
            left -= len(best)
        if left <= 0:
            break
    return total / wanted


def last_step(
    walk: Walk, config: SyntheticConfig, window: int, users_at_once: int = 1024
) -> Iterator[NDArray[np.float64]]:
    """The probabilities [users, N] of every user's last item, for one who sees `window` interactions before it."""
    world, seasonal = walk.world, walk.world.seasonal_weight
    for start in range(0, len(walk.lengths), users_at_once):
        users = np.arange(start, min(start + users_at_once, len(walk.lengths)))
        rows, step = np.arange(len(users)), walk.lengths[users] - 1
        own = np.where(world.taste == walk.tastes[users, None], world.weight, 0.0)
        if config.drift:
            season = season_of(walk.times[users, step])
            own = (1 - config.drift) * own + config.drift * np.where(world.season == season[:, None], seasonal, 0.0)
        repeated = walk.items[users, np.maximum(step - REPEAT_LAG, 0)]
        repeats = np.where((step >= REPEAT_LAG) & (repeated < world.first_keepsake), REPEAT, 0.0)
        follows = np.where(step > 0, FOLLOW, 0.0)
        probabilities = own * (1 - repeats - follows)[:, None]
        probabilities[rows, repeated] += repeats
        shift = likeliest(walk, users, step, config.order)
        current = walk.items[users, np.maximum(step - 1, 0)]
        for nth, share in enumerate(SUCCESSORS):
            probabilities[rows, world.successors[current, (nth + shift) % len(SUCCESSORS)]] += follows * share
        if config.returns:
            returning = config.returns * _next_return(walk, users, window)
            probabilities = probabilities * (1 - returning.sum(axis=1, keepdims=True)) + returning
        yield probabilities


def _next_return(walk: Walk, users: NDArray[np.int64], window: int) -> NDArray[np.float64]:
    """Which item a return would bring [users, N], for one who sees `window` interactions; zeros if all have returned.

    Keepsakes that are seen once are in the first session and still to come; the others that are to come may be any
    that is not seen.
    """
    first_keepsake = walk.world.first_keepsake
    items, step = walk.items[users], walk.lengths[users, None] - 1
    places = np.arange(items.shape[1])
    keepsake = (items >= first_keepsake) & (places < step)
    left = 2 * FIRST_SESSION - keepsake.sum(axis=1)
    times_seen = np.zeros((len(users), len(walk.world.weight)), dtype=np.int64)
    row, place = np.nonzero(keepsake & (places >= step - window))
    np.add.at(times_seen, (row, items[row, place]), 1)
    returned_only = np.zeros_like(times_seen)
    row, place = np.nonzero(keepsake & (places >= np.maximum(step - window, FIRST_SESSION)))
    np.add.at(returned_only, (row, items[row, place]), 1)
    known = (times_seen > 0) & (returned_only == 0)
    unseen = times_seen == 0
    unseen[:, :first_keepsake] = False
    guessed = (left - known.sum(axis=1)) / np.maximum(unseen.sum(axis=1), 1)
    expected: NDArray[np.float64] = (known + unseen * guessed[:, None]) / np.maximum(left, 1)[:, None]
    return expected
