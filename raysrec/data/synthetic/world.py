"""What all users of the embedded source share: how many there are, the items, and what follows what."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysrec.config import GROUP, SyntheticConfig

SUCCESSORS = np.array([0.5, 0.25, 0.15, 0.1])
"""How likely each of an item's successors is, the likeliest first."""

ITEMS_PER_TASTE = 50

BAND = 32
"""An item's successors are among so many that are about as popular."""

SEASONS, SEASON_S = 12, 30 * 86_400
"""With drift: each item is in season for one of so many stretches of time, which come round again."""

VERSION = 3
"""Changes when the same settings make other interactions."""


@dataclass(frozen=True)
class Sizes:
    """How much is made."""

    num_users: int
    num_items: int
    num_interactions: int
    least: int
    """Interactions that every user has at least."""
    most: int
    """Interactions that a user may have at most."""
    least_per_item: int
    """Interactions that every item has at least, if users' first steps suffice for it."""

    @property
    def dealt(self) -> int:
        """Steps at a user's beginning that deal out the items in turn; the last three are never among them."""
        return max(0, min(math.ceil(self.least_per_item * self.num_items / self.num_users), self.least - 3))


SHAPES = {
    "ml-20m": Sizes(138_493, 18_345, 19_984_024, least=5, most=4_000, least_per_item=5),
    "netflix": Sizes(120_377, 16_086, 21_767_054, least=50, most=4_000, least_per_item=50),
    "lfm-1b": Sizes(78_112, 179_514, 15_628_182, least=50, most=500, least_per_item=1),
}
"""Data sets by their counts after filtering (RecGRELA, Table 1, without the padding it counts)."""


def sizes(config: SyntheticConfig) -> Sizes:
    """The sizes that the settings ask for."""
    shape = SHAPES.get(config.shape)
    if shape is not None:
        num_users = config.num_users or shape.num_users
        mean = config.mean_length or shape.num_interactions / shape.num_users
        least, most, least_per_item = shape.least, shape.most, shape.least_per_item
        num_items = config.num_items or shape.num_items
    else:
        num_users, num_items = config.num_users or 2_000, config.num_items or 500
        mean = config.mean_length or 40.0
        least, least_per_item = max(1, int(min(5.0, mean))), 5
        most = math.ceil(10 * mean) + least
    if config.returns_after:
        least, least_per_item = config.least_with_returns, 0
        most += least
    total = min(max(round(mean * num_users), least * num_users), most * num_users)
    return Sizes(num_users, num_items, total, least, most, least_per_item)


def settings_json(config: SyntheticConfig) -> str:
    """The settings that decide what is made: two configs with the same make the same interactions."""
    return config.model_dump_json(exclude_defaults=True)


@dataclass(frozen=True)
class World:
    """The items 0..N-1: those of the walk, then the sign and the keepsakes if something returns."""

    successors: NDArray[np.int64]
    """[items, 4] what follows each item."""
    taste: NDArray[np.int64]
    """Taste that each item of the walk belongs to; -1 for others."""
    weight: NDArray[np.float64]
    """Probability of each item within its taste; 0 for what is not of the walk."""
    season: NDArray[np.int64]
    """Season of each item of the walk; -1 for others."""
    dealt: NDArray[np.int64]
    """The walk's items in the order in which they are dealt out to beginners."""
    sign: int
    """The item that says that keepsakes follow; N if nothing returns."""
    group: NDArray[np.int64]
    """[items] group of each keepsake; -1 for all others."""

    @property
    def num_tastes(self) -> int:
        """Tastes there are."""
        return int(self.taste.max()) + 1

    @property
    def num_groups(self) -> int:
        """Groups of keepsakes there are, an even number: a user has one of the first half and one of the second."""
        return int(self.group.max()) + 1

    @property
    def seasonal_weight(self) -> NDArray[np.float64]:
        """Probability of each item in its season."""
        in_walk = self.season >= 0
        totals = np.bincount(self.season[in_walk], self.weight[in_walk], minlength=SEASONS)
        return np.where(in_walk, self.weight / totals[np.maximum(self.season, 0)], 0.0)


def make_world(config: SyntheticConfig) -> World:
    """The same for every block of users."""
    rng = np.random.default_rng([config.seed, 0])
    num_items = sizes(config).num_items
    groups = (num_items // 2 - 1) // GROUP // 2 * 2 if config.returns_after else 0
    walked = num_items - (1 + groups * GROUP if groups else 0)
    num_tastes = max(1, walked // ITEMS_PER_TASTE)
    rank = rng.permutation(walked)
    taste = rank % num_tastes
    weight = np.asarray((rank // num_tastes + 1.0) ** -config.skew, dtype=np.float64)
    weight /= np.bincount(taste, weight)[taste]
    by_rank = np.argsort(rank)
    bands = np.arange(walked) // BAND
    successors = np.empty((num_items, len(SUCCESSORS)), dtype=np.int64)
    for nth in range(len(SUCCESSORS)):
        # A permutation within each band: what is popular is as often followed as it follows.
        successors[by_rank, nth] = by_rank[np.argsort(bands + rng.random(walked))]
    others = num_items - walked
    if others:
        successors[walked:] = rng.integers(walked, size=(others, len(SUCCESSORS)))
    season = np.empty(walked, dtype=np.int64)
    season[rng.permutation(walked)] = np.arange(walked) % SEASONS
    return World(
        successors=successors,
        taste=np.pad(taste, (0, others), constant_values=-1),
        weight=np.pad(weight, (0, others)),
        season=np.pad(season, (0, others), constant_values=-1),
        dealt=rng.permutation(walked),
        sign=walked,
        group=np.concatenate([np.full(num_items - groups * GROUP, -1), np.repeat(np.arange(groups), GROUP)]),
    )
