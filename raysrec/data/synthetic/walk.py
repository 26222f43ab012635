"""Users of the embedded source, block by block: how long each stays, when, and over which items."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysrec.config import FIRST_SESSION, GROUP, RETURN, SyntheticConfig
from raysrec.data.synthetic.world import (
    SEASON_S,
    SEASONS,
    SUCCESSORS,
    Sizes,
    World,
    make_world,
    sizes,
)

FOLLOW, REPEAT = 0.6, 0.1
"""Shares of the steps that take a successor, and that repeat; the rest follow the taste or the season."""

REPEAT_LAG = 8

NO_RETURN, SIGN, FIRST, SECOND, EITHER = range(5)
"""Steps of the walk; the three of a return, which are the sign and a keepsake of each group; and the first session's,
which are of either group."""

USERS_PER_BLOCK = 4_096

FIRST_TIME = 1_000_000_000


@dataclass(frozen=True)
class Walk:
    """What the users of one block did."""

    world: World
    first_user: int
    """Number of the block's first user, from 0."""
    items: NDArray[np.int32]
    """[users, longest] items in order; -1 after the end."""
    lengths: NDArray[np.int64]
    """Interactions of each user."""
    times: NDArray[np.int64]
    """[users, longest] Unix seconds."""
    tastes: NDArray[np.int64]
    """Taste of each user."""
    groups: NDArray[np.int64]
    """[users, 2] each user's two groups of keepsakes; [users, 0] if nothing returns."""
    returns: NDArray[np.int8]
    """[users, longest] what a step has to do with keepsakes, as in `NO_RETURN` to `EITHER`; [users, 0] if nothing."""


def blocks(config: SyntheticConfig) -> int:
    """How many blocks of users there are."""
    return -(-sizes(config).num_users // USERS_PER_BLOCK)


def synthesize(config: SyntheticConfig) -> pa.Table:
    """Interactions of all users, block by block: columns `user` and `item` (text) and `time` (Unix seconds).

    The same config makes the same table, byte for byte. A user's interactions are at least one second apart.
    """
    world = make_world(config)
    return pa.concat_tables([synthesize_block(config, block, world) for block in range(blocks(config))])


def synthesize_block(config: SyntheticConfig, block: int, world: World | None = None) -> pa.Table:
    """Interactions of one block of users, by time.

    Args:
        config: Which interactions.
        block: Number of the block, from 0.
        world: What `make_world` gives for this config, if it is at hand.
    """
    walk = make_walk(config, block, world or make_world(config))
    there = walk.items >= 0
    users = np.repeat(np.arange(len(walk.lengths), dtype=np.int32), walk.lengths)
    items, times = walk.items[there], walk.times[there]
    order = np.argsort(times, kind="stable")
    met, codes = np.unique(items[order], return_inverse=True)
    names = pa.array([f"u{walk.first_user + user}" for user in range(len(walk.lengths))])
    return pa.table(
        {
            "user": pa.DictionaryArray.from_arrays(pa.array(users[order]), names),
            "item": pa.DictionaryArray.from_arrays(
                pa.array(codes.astype(np.int32)), pa.array([f"i{item}" for item in met.tolist()])
            ),
            "time": times[order],
        }
    )


def make_walk(config: SyntheticConfig, block: int, world: World) -> Walk:
    """All that the users of a block do."""
    size = sizes(config)
    rng = np.random.default_rng([config.seed, 1, block])
    users = range(block * USERS_PER_BLOCK, min((block + 1) * USERS_PER_BLOCK, size.num_users))
    lengths = _lengths(rng, users, size)
    shape = (len(users), int(lengths.max()))
    groups, returns = np.empty((len(users), 0), dtype=np.int64), np.empty((len(users), 0), dtype=np.int8)
    if config.returns_after:
        half = world.num_groups // 2
        groups = np.array([0, half]) + rng.integers(half, size=(len(users), 2))
        returns = _returns(rng, config, lengths)
    walk = Walk(
        world=world,
        first_user=users.start,
        items=np.full(shape, -1, np.int32),
        lengths=lengths,
        times=_times(rng, shape),
        tastes=rng.integers(world.num_tastes, size=len(users)),
        groups=groups,
        returns=returns,
    )
    _take_steps(rng, walk, config)
    return walk


def season_of(times: NDArray[np.int64]) -> NDArray[np.int64]:
    """The season in which each of these times lies."""
    seasons: NDArray[np.int64] = (times - FIRST_TIME) // SEASON_S % SEASONS
    return seasons


def likeliest(walk: Walk, users: NDArray[np.int64], step: NDArray[np.int64] | int, order: int) -> NDArray[np.int64]:
    """Which of the current item's successors is the likeliest, by the `order` - 1 items before it."""
    shift = np.zeros(len(users), dtype=np.int64)
    for back in range(2, order + 1):
        shift += np.maximum(walk.items[users, np.maximum(np.asarray(step) - back, 0)], 0)
    return shift % len(SUCCESSORS)


def _lengths(rng: np.random.Generator, users: range, size: Sizes) -> NDArray[np.int64]:
    """Between the least and the most, spread like a gamma of shape 2, with the block's share of the total exactly."""
    share = size.num_interactions * users.stop // size.num_users - size.num_interactions * users.start // size.num_users
    mean = share / len(users)
    lengths = size.least + rng.gamma(2.0, max(0.0, mean - size.least) / 2, len(users)).astype(np.int64)
    lengths = np.minimum(lengths, size.most)
    while missing := share - int(lengths.sum()):
        one = 1 if missing > 0 else -1
        free = np.flatnonzero(lengths < size.most if one > 0 else lengths > size.least)
        lengths[rng.permutation(free)[: abs(missing)]] += one
    return lengths


def _times(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.int64]:
    """Each user starts within a year and then waits hours."""
    gaps = 1 + rng.exponential(6 * 3600, shape).astype(np.int64)
    gaps[:, 0] = FIRST_TIME + rng.integers(365 * 86_400, size=shape[0])
    times: NDArray[np.int64] = np.cumsum(gaps, axis=1)
    return times


def _take_steps(rng: np.random.Generator, walk: Walk, config: SyntheticConfig) -> None:
    """Fill in the items, one step of all users at a time."""
    world, dealt = walk.world, sizes(config).dealt
    by_group = _Stretches(world.group, np.full(len(world.group), 1 / GROUP))
    by_taste, by_season = _Stretches(world.taste, world.weight), _Stretches(world.season, world.seasonal_weight)
    for step in range(walk.items.shape[1]):
        users = np.flatnonzero(walk.lengths > step)
        draws, picks = rng.random((2, len(users)))
        chosen = by_taste.pick(walk.tastes[users], picks)
        if config.drift:
            in_season = rng.random(len(users)) < config.drift
            chosen[in_season] = by_season.pick(season_of(walk.times[users[in_season], step]), picks[in_season])
        if step:
            nth = np.searchsorted(np.cumsum(SUCCESSORS)[:-1], picks, side="right")
            nth = (nth + likeliest(walk, users, step, config.order)) % len(SUCCESSORS)
            chosen = np.where(draws < FOLLOW, world.successors[walk.items[users, step - 1], nth], chosen)
        if step >= REPEAT_LAG:
            repeated = walk.items[users, step - REPEAT_LAG]
            # What returns does so in its time, and not because it has just been there.
            chosen = np.where((draws >= 1 - REPEAT) & (repeated < world.sign), repeated, chosen)
        if step < dealt:
            chosen = world.dealt[((walk.first_user + users) * dealt + step) % world.sign]
        if config.returns_after:
            part = walk.returns[users, step]
            chosen[part == SIGN] = world.sign
            of_group = np.where(part == EITHER, draws < 0.5, part == SECOND).astype(np.int64)
            keepsakes = by_group.pick(walk.groups[users, of_group], picks)
            chosen = np.where(part >= FIRST, keepsakes, chosen)
        walk.items[users, step] = chosen


def _returns(rng: np.random.Generator, config: SyntheticConfig, lengths: NDArray[np.int64]) -> NDArray[np.int8]:
    """Where the returns stand: one ends each history, and others stand before it as long as there is room."""
    returns = np.full((len(lengths), int(lengths.max())), NO_RETURN, dtype=np.int8)
    returns[:, :FIRST_SESSION] = EITHER
    shortest, longest = config.breaks
    start, least = lengths - RETURN, config.returns_after
    while len(users := np.flatnonzero(start >= FIRST_SESSION + shortest)):
        for nth, part in enumerate((SIGN, FIRST, SECOND)):
            returns[users, start[users] + nth] = part
        start -= RETURN + _breaks(rng.random(len(start)), least, longest)
        least = shortest
    return returns


def _breaks(picks: NDArray[np.float64], shortest: int, longest: int) -> NDArray[np.int64]:
    """Lengths from `shortest` to `longest`, as likely as 1 / length^1.5, by a number in [0, 1) each."""
    first, last = shortest**-0.5, (longest + 1) ** -0.5
    lengths: NDArray[np.int64] = ((first - picks * (first - last)) ** -2).astype(np.int64)
    return np.clip(lengths, shortest, longest)


class _Stretches:
    """Draws items of a kind (a taste, a season) by their weights: kind k owns the stretch (k, k + 1] of one line."""

    def __init__(self, kind: NDArray[np.int64], weight: NDArray[np.float64]) -> None:
        members = np.flatnonzero(kind >= 0)
        self.items = members[np.argsort(kind[members], kind="stable")]
        self.cumulative = np.cumsum(weight[self.items])

    def pick(self, kinds: NDArray[np.int64], picks: NDArray[np.float64]) -> NDArray[np.int64]:
        """An item of each of these kinds, by a number in [0, 1) each."""
        places = np.searchsorted(self.cumulative, kinds + picks, side="right")
        chosen: NDArray[np.int64] = self.items[np.minimum(places, len(self.items) - 1)]
        return chosen
