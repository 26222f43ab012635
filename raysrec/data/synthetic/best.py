"""What can be reached on the embedded source: the score of ranking by the true probabilities."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from raysrec.config import SyntheticConfig
from raysrec.data.synthetic.walk import FOLLOW, REPEAT, REPEAT_LAG, Walk, blocks, likeliest, make_walk, season_of
from raysrec.data.synthetic.world import SUCCESSORS, make_world, sizes


def best_ndcg(config: SyntheticConfig, *, k: int = 10, window: int | None = None, users: int | None = None) -> float:
    """NDCG@k of ranking each user's last item by its true probability: what no model is expected to exceed.

    An upper bound, not quite in reach: it is told each user's taste, the season and the whole chain, which a model has
    to infer, and it sees histories before any filtering. With a `window` that keepsakes are out of, it is the bound for
    users never met: a model that learned from the same few users may know which groups go together among them. Takes
    users x items of time and little memory.

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
        if config.returns_after:
            yield _second_keepsake(walk, users, window)
            continue
        rows, step = np.arange(len(users)), walk.lengths[users] - 1
        own = np.where(world.taste == walk.tastes[users, None], world.weight, 0.0)
        if config.drift:
            season = season_of(walk.times[users, step])
            own = (1 - config.drift) * own + config.drift * np.where(world.season == season[:, None], seasonal, 0.0)
        repeated = walk.items[users, np.maximum(step - REPEAT_LAG, 0)]
        repeats = np.where(step >= REPEAT_LAG, REPEAT, 0.0)
        follows = np.where(step > 0, FOLLOW, 0.0)
        probabilities = own * (1 - repeats - follows)[:, None]
        probabilities[rows, repeated] += repeats
        shift = likeliest(walk, users, step, config.order)
        current = walk.items[users, np.maximum(step - 1, 0)]
        for nth, share in enumerate(SUCCESSORS):
            probabilities[rows, world.successors[current, (nth + shift) % len(SUCCESSORS)]] += follows * share
        yield probabilities


def _second_keepsake(walk: Walk, users: NDArray[np.int64], window: int) -> NDArray[np.float64]:
    """The probabilities [users, N] of the keepsake that ends each history, of a group that may be out of sight."""
    world, group = walk.world, walk.groups[users, 1, None]
    place, step = np.arange(walk.items.shape[1]), walk.lengths[users, None] - 1
    in_sight = (place < step) & (place >= step - window)
    known = (in_sight & (world.group[walk.items[users]] == group)).any(axis=1, keepdims=True)
    candidates = np.where(known, world.group == group, world.group >= world.num_groups // 2)
    probabilities: NDArray[np.float64] = candidates / candidates.sum(axis=1, keepdims=True)
    return probabilities
