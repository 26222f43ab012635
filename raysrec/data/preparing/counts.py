"""What the manifest counts of histories: sizes, ties, repeats, and how far a split lets training see what comes later.

Counts of parts add up to the counts of the whole, in any order and grouping, so they can be taken where the parts are.
"""

from dataclasses import dataclass, field, fields
from operator import add

import numpy as np
from numpy.typing import NDArray

from raysrec.data.arrays import IntArray
from raysrec.data.splits import HELD_OUT, SplitRule, in_first
from raysrec.errors import LastingError
from raysrec.schema import date_of

_FIRST, _LAST = -(2**63), 2**63 - 1
"""The ends of all times: where nothing has been met yet."""


@dataclass(frozen=True, eq=False)
class TargetCounts:
    """Of the items that are held out to validate, or to test."""

    users: int = 0
    """How many there are; each is another user's."""
    cold_users: int = 0
    """Those of users none of whose interactions is learned from."""
    tied: int = 0
    """Those that would be another one under another rule for ties."""
    leaked: int = 0
    """Those that lie before some interaction that is learned from; it is another user's, as a user's own come first."""
    unseen: IntArray = field(default_factory=lambda: np.empty(0, np.int64))
    """Times of those that lie at or after all that is learned from, as far as it has been met: seldom many, and no more
    than there are users."""

    def plus(self, other: "TargetCounts", latest: int) -> "TargetCounts":
        """Both together, where the latest interaction to learn from is at `latest`."""
        unseen = np.concatenate([self.unseen, other.unseen])
        leaked = unseen < latest
        return TargetCounts(
            self.users + other.users,
            self.cold_users + other.cold_users,
            self.tied + other.tied,
            self.leaked + other.leaked + int(np.count_nonzero(leaked)),
            unseen[~leaked],
        )


@dataclass(frozen=True, eq=False)
class Counts:
    """Of some histories, or of all."""

    users: int = 0
    interactions: int = 0
    longest: int = 0
    """Interactions of the user who has most."""
    first_time: int = _LAST
    last_time: int = _FIRST
    """Of the earliest and the latest interaction, in the source's unit."""
    tied: int = 0
    """Interactions at the same time as the one before or after them in the user's history."""
    repeated: int = 0
    """Interactions of a user with the same item at the same time as another one that is counted already."""
    learned: int = 0
    """Interactions that are learned from."""
    targets: int = 0
    """Training targets."""
    latest_learned: int = _FIRST
    """Time of the latest interaction that is learned from, in the source's unit."""
    validation: TargetCounts = TargetCounts()
    test: TargetCounts = TargetCounts()

    @classmethod
    def of(
        cls,
        rule: SplitRule,
        offsets: IntArray,
        items: NDArray[np.integer],
        times: IntArray,
        per_second: int = 1,
    ) -> "Counts":
        """Of whole histories.

        Args:
            rule: How they are split.
            offsets: Where each history starts in `items` and `times`, from 0, and where the last one ends; no history
                is empty.
            items: Items of all histories.
            times: Their times, oldest first within a history.
            per_second: How much of `times` is a second.
        """
        positions = rule.positions(offsets, times // per_second if per_second > 1 else times)
        same = _same_as_before(offsets, times)
        last_learned = (offsets[:-1] + positions.train - 1)[positions.train > 0]
        latest = int(times[last_learned].max(initial=_FIRST))
        # Under a temporal split nothing is learned from that late, so such times need not be kept.
        end = rule.validate_from * per_second if rule.name == "temporal" else None
        held_out = {
            name: _count_targets(offsets, times, same, positions.train, positions.held_out[name], latest, end)
            for name in HELD_OUT
        }
        return cls(
            users=len(offsets) - 1,
            interactions=len(times),
            longest=int(np.diff(offsets).max(initial=0)),
            first_time=int(times.min(initial=_LAST)),
            last_time=int(times.max(initial=_FIRST)),
            tied=int(np.count_nonzero(same[1:] | same[:-1])),
            repeated=_count_repeated(same, items),
            learned=int(positions.train.sum()),
            targets=int(positions.num_targets.sum()),
            latest_learned=latest,
            **held_out,
        )

    def __add__(self, other: "Counts") -> "Counts":
        latest = max(self.latest_learned, other.latest_learned)
        joined = {"longest": max, "first_time": min, "last_time": max, "latest_learned": max}
        return Counts(
            **{
                name: joined.get(name, add)(getattr(self, name), getattr(other, name))
                for name in (field.name for field in fields(self))
                if name not in HELD_OUT
            },
            **{name: getattr(self, name).plus(getattr(other, name), latest) for name in HELD_OUT},
        )

    def for_manifest(self, per_second: int = 1) -> dict[str, int]:
        """The manifest's fields of these names."""
        found = {
            "num_users": self.users,
            "num_interactions": self.interactions,
            "num_targets": self.targets,
            "longest_history": self.longest,
            "first_time": self.first_time // per_second,
            "last_time": self.last_time // per_second,
            "tied_interactions": self.tied,
            "repeated_interactions": self.repeated,
        }
        for name in HELD_OUT:
            counts: TargetCounts = getattr(self, name)
            found |= {
                f"num_{name}_users": counts.users,
                f"cold_{name}_users": counts.cold_users,
                f"tied_{name}_targets": counts.tied,
                f"leaked_{name}_targets": counts.leaked,
            }
        return found


@dataclass(frozen=True, eq=False)
class ItemCounts:
    """Of each item, at the index of its number; 0 for padding at index 0."""

    interactions: IntArray
    learned: IntArray
    """Interactions that are learned from."""

    @classmethod
    def none(cls, num_items: int) -> "ItemCounts":
        """Of no histories."""
        return cls(*np.zeros((2, num_items + 1), np.int64))

    @classmethod
    def of(
        cls, rule: SplitRule, offsets: IntArray, items: NDArray[np.integer], seconds: IntArray, num_items: int
    ) -> "ItemCounts":
        """Of whole histories; arguments as those of `Counts.of`, but for times in Unix seconds."""
        learned = items[in_first(offsets, rule.positions(offsets, seconds).train)]
        return cls(*(np.bincount(found, minlength=num_items + 1) for found in (items, learned)))

    def __add__(self, other: "ItemCounts") -> "ItemCounts":
        return ItemCounts(self.interactions + other.interactions, self.learned + other.learned)


def refuse_empty(counts: Counts, rule: SplitRule, per_second: int) -> None:
    """Data that cannot be learned from, validated on and tested on are no use under this split.

    Raises:
        LastingError: It is such data.
    """
    span = " to ".join(date_of(time // per_second) for time in (counts.first_time, counts.last_time))
    for what, found in (
        ("to learn from", counts.targets),
        ("to validate on", counts.validation.users),
        ("to test on", counts.test.users),
    ):
        if not found and rule.name == "temporal":
            raise LastingError(
                f"data.split: there is nothing {what} ({rule}); the interactions are of {span}, and a user's first is "
                "never a target; move the moments, or raise the shares"
            )


def _same_as_before(offsets: IntArray, times: IntArray) -> NDArray[np.bool_]:
    """Is interaction i at the same time as i - 1 and of the same user? One more at the end, which is of no one."""
    same = np.zeros(len(times) + 1, dtype=np.bool_)
    same[1:-1] = times[1:] == times[:-1]
    same[offsets] = False
    return same


def _count_targets(
    offsets: IntArray,
    times: IntArray,
    same: NDArray[np.bool_],
    train: IntArray,
    positions: IntArray,
    latest: int,
    end: int | None,
) -> TargetCounts:
    users = np.flatnonzero(positions >= 0)
    at = offsets[users] + positions[users]
    unseen = times[at] if end is None else times[at][times[at] < end]
    counts = TargetCounts(
        users=len(users),
        cold_users=int(np.count_nonzero(train[users] == 0)),
        tied=int(np.count_nonzero(same[at] | same[at + 1])),
        unseen=unseen,
    )
    return counts.plus(TargetCounts(), latest)


def _count_repeated(same: NDArray[np.bool_], items: NDArray[np.integer]) -> int:
    at = np.flatnonzero(same[1:] | same[:-1])
    moment = np.cumsum(~same[:-1])[at]  # one number for all that a user had at one time
    pairs = moment * (int(items.max(initial=0)) + 1) + items[at]
    return len(pairs) - len(np.unique(pairs))
