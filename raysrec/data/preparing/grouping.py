"""From interactions in the order of the source to histories, a share of the users at a time.

Every function here is pure and takes what fits into memory: one piece of the source, or one share of the users. Which
user belongs to which share is decided by the id alone, so a share's users are the same whoever asks; all that
happened between two users is in sums over the shares, which `distributed.py` takes.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysrec.data.arrays import BoolArray, IntArray, offsets_of
from raysrec.data.preparing.filters import outside
from raysrec.data.preparing.histories import NOWHERE, NumberedHistories, first_positions
from raysrec.schema import Interval

GROUPED_SCHEMA = pa.schema(
    {
        "user_id": pa.string(),
        "items": pa.list_(pa.int32()),
        "times": pa.list_(pa.int64()),
        "positions": pa.list_(pa.int64()),
    }
)


@dataclass(frozen=True, eq=False)
class Grouped:
    """Interactions of some users, user by user; every user has at least one."""

    user_ids: pa.Array
    """External ids."""
    offsets: IntArray
    """Where each user begins in the arrays below, from 0, and where the last one ends."""
    items: NDArray[np.int32]
    """Codes of items, from 0."""
    times: IntArray
    """As the source counts them."""
    positions: IntArray
    """Places in the source, from 0."""

    def to_table(self, first: int = 0, last: int | None = None) -> pa.Table:
        """One row per user, of the users `first` to `last` - 1."""
        offsets = self.offsets[first : None if last is None else last + 1]
        begin, end = offsets[0], offsets[-1]
        starts = pa.array((offsets - begin).astype(np.int32))
        values = (self.items, self.times, self.positions)
        lists = [pa.ListArray.from_arrays(starts, pa.array(column[begin:end])) for column in values]
        return pa.table([self.user_ids.slice(first, len(offsets) - 1), *lists], schema=GROUPED_SCHEMA)

    @classmethod
    def of(cls, table: pa.Table) -> "Grouped":
        """What `to_table` made, without copying it."""
        user_ids, items, times, positions = (column.chunk(0) for column in table.columns)
        offsets = items.offsets.to_numpy().astype(np.int64)
        flat = (column.flatten().to_numpy() for column in (items, times, positions))
        return cls(user_ids, offsets - offsets[0], *flat)


def group_by_user(interactions: pa.Table, num_shares: int) -> tuple[list[pa.Table], pa.Array]:
    """A piece of the source as one table of `Grouped` for each share of the users.

    Positions are rows of the piece, item codes are indices of the ids that are returned with them, those that occur.
    """
    users, items = (interactions.column(name).chunk(0) for name in ("user", "item"))
    codes, item_codes = users.indices.to_numpy(), items.indices.to_numpy()
    present = np.bincount(item_codes, minlength=len(items.dictionary)) > 0  # `data.where` may have left some out
    lengths = np.bincount(codes, minlength=len(users.dictionary))
    shares = np.where(lengths > 0, share_of_users(users.dictionary, num_shares), num_shares)
    by_share = np.argsort(shares, kind="stable")
    rank = np.empty(len(by_share), np.int32)
    rank[by_share] = np.arange(len(by_share), dtype=np.int32)
    order = np.argsort(rank[codes], kind="stable")
    grouped = Grouped(
        users.dictionary.take(pa.array(by_share)),
        offsets_of(lengths[by_share]),
        (np.cumsum(present, dtype=np.int32) - 1)[item_codes[order]],
        interactions.column("time").to_numpy()[order],
        order,
    )
    cuts = np.searchsorted(shares[by_share], np.arange(num_shares + 1)).tolist()
    return [grouped.to_table(*span) for span in pairwise(cuts)], items.dictionary.filter(pa.array(present))


def share_of_users(ids: pa.Array, num_shares: int) -> IntArray:
    """Which share each id belongs to: a function of its bytes."""
    hashes = [zlib.crc32(text) for text in ids.cast(pa.binary()).to_pylist()]
    return np.array(hashes, dtype=np.int64) % num_shares


def join(segments: Sequence[Grouped]) -> Grouped:
    """The same users' interactions from several pieces together, each user's by time; ties by position.

    Args:
        segments: In the order of the source, with codes and positions that mean the same in all of them; at least one.
    """
    ids = pa.chunked_array([segment.user_ids for segment in segments]).dictionary_encode()
    ids = ids.unify_dictionaries().combine_chunks()
    lengths = np.concatenate([np.diff(segment.offsets) for segment in segments])
    users = np.repeat(ids.indices.to_numpy(), lengths)
    times = np.concatenate([segment.times for segment in segments])
    order = np.lexsort((times, users))  # stable: what is equal in both keeps its order
    return Grouped(
        ids.dictionary,
        offsets_of(np.bincount(users, minlength=len(ids.dictionary))),
        np.concatenate([segment.items for segment in segments])[order],
        times[order],
        np.concatenate([segment.positions for segment in segments])[order],
    )


@dataclass(frozen=True, eq=False)
class Kept:
    """Which of a share's users and of all items are kept so far."""

    users: BoolArray
    items: BoolArray

    def rows(self, grouped: Grouped) -> BoolArray:
        """Which interactions of the share are kept: those of which both are."""
        return np.repeat(self.users, np.diff(grouped.offsets)) & self.items[grouped.items]


@dataclass(frozen=True, eq=False)
class OfItems:
    """A number for each item that some users have: all items are too many to be sent for each share."""

    items: NDArray[np.int32]
    """Codes or numbers of items, each once."""
    values: IntArray

    @classmethod
    def of(cls, values: IntArray, nothing: int = 0) -> "OfItems":
        """Of numbers for all items, which are `nothing` where the users do not have the item."""
        items = np.flatnonzero(values != nothing)
        return cls(items.astype(np.int32), values[items])


def filter_users(grouped: Grouped, kept: Kept, allowed: Interval) -> tuple[BoolArray, OfItems, bool]:
    """One round of `filters.keep_intervals`, as far as it concerns one share of the users.

    Returns:
        The users who stay, the number of interactions of each item before anyone was dropped, and whether a user was.
    """
    rows = kept.rows(grouped)
    counts = _sums(rows, grouped.offsets)
    dropped = kept.users & outside(counts, allowed)
    item_counts = np.bincount(grouped.items[rows], minlength=len(kept.items))
    return kept.users & ~dropped, OfItems.of(item_counts), bool(counts[dropped].any())


@dataclass(frozen=True, eq=False)
class Appearance:
    """Where the users of a share and all items first appear among the interactions kept; `NOWHERE` for none."""

    users: IntArray
    items: OfItems
    lengths: IntArray
    """Interactions kept of each user."""


def appearance_of(grouped: Grouped, kept: Kept) -> Appearance:
    """Of one share of the users."""
    rows = kept.rows(grouped)
    users = np.repeat(np.arange(len(grouped.user_ids)), np.diff(grouped.offsets))[rows]
    positions = grouped.positions[rows]
    return Appearance(
        first_positions(users, positions, len(grouped.user_ids)),
        OfItems.of(first_positions(grouped.items[rows], positions, len(kept.items)), NOWHERE),
        _sums(rows, grouped.offsets),
    )


def number_histories(
    grouped: Grouped, kept: Kept, users: NDArray[np.int32], items: NDArray[np.int32], per_second: int
) -> NumberedHistories:
    """A share's histories under the numbers of its users and of all items, in order of the users.

    Args:
        grouped: Each user's interactions in order of time.
        kept: What is kept of them.
        users: The number of each user; 0 for one of whom nothing is kept.
        items: The number of each item; 0 for one of which nothing is kept.
        per_second: How much of a time is a second.
    """
    rows = np.flatnonzero(kept.rows(grouped))
    lengths = _sums(kept.rows(grouped), grouped.offsets)
    order = np.argsort(users, kind="stable")[np.count_nonzero(users == 0) :]
    starts, offsets = offsets_of(lengths)[order], offsets_of(lengths[order])
    rows = rows[np.repeat(starts - offsets[:-1], lengths[order]) + np.arange(offsets[-1])]
    return NumberedHistories(
        users[order].astype(np.int64),
        grouped.user_ids.take(pa.array(order)),
        offsets,
        items[grouped.items[rows]],
        grouped.times[rows],
        per_second,
    )


def _sums(rows: BoolArray, offsets: IntArray) -> IntArray:
    """How many are true in each stretch."""
    running = offsets_of(rows)
    return running[offsets[1:]] - running[offsets[:-1]]
