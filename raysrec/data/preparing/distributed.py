"""Preparation in a cluster, out of core: the same files as from one process, byte for byte.

What belongs together meets twice. First each user's interactions: pieces of the source are dealt into shares of the
users by a hash of the id, so that a share fits into memory however long the source is; there users are filtered,
ordered and counted. Then the users of a row group: each share deals its histories out by their numbers. In between,
data lies in a scratch folder that all machines of the cluster must reach, as the tasks leave it there (`shares.py`);
only masks, counts and numbers move through the driver. It holds the ids of all items and some tens of bytes for each
user and item; nothing there grows with the number of interactions.

Ray Data runs the tasks (`tasks.py`), but its shuffle is not used: it moves rows through the object store, of which a
task here maps the bucket that it needs.
"""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysrec.config import DataConfig
from raysrec.data.arrays import BoolArray, IntArray, offsets_of
from raysrec.data.manifest import Shard
from raysrec.data.preparing.counts import Counts, ItemCounts, refuse_empty
from raysrec.data.preparing.dealing import DealtSource, about_interactions, deal_source
from raysrec.data.preparing.filters import outside
from raysrec.data.preparing.histories import NOWHERE, nothing_left, number_by_position
from raysrec.data.preparing.publishing import SCRATCH
from raysrec.data.preparing.shares import (
    Span,
    deal_histories,
    filter_share,
    find_appearance,
    find_seconds,
    group_share,
    write_row_groups,
)
from raysrec.data.preparing.spill import remove_files
from raysrec.data.preparing.writing import Written, make_room, spans_of_shards, write_catalog
from raysrec.data.splits import SplitRule, find_rule
from raysrec.place import Place
from raysrec.tasks import Run

SHARE_INTERACTIONS = 1 << 21
"""Interactions of a share of the users, about; a task takes some 150 bytes for each."""
MOST_SHARES = 1 << 12
"""Each piece of the source is a file with a bucket for every share."""
LARGE_INTERACTIONS = 30_000_000
"""From about here on, `data.distributed: auto` prepares in tasks: in one process it would take some 4 GB."""


def is_distributed(config: DataConfig) -> bool:
    """Is this source to be prepared in tasks?

    Raises:
        SourceError: There is no such source.
    """
    if config.distributed != "auto":
        return config.distributed
    return about_interactions(config) >= LARGE_INTERACTIONS


def prepare_in_tasks(config: DataConfig, directory: Place, run: Run, *, after_reading: Callable[[], None]) -> Written:
    """Write all files of a prepared data set but for the manifest.

    Args:
        config: Source and rules.
        directory: Where to write; all machines of the cluster must reach it.
        run: Who does a stage.
        after_reading: Called when the source will not be read any more.

    Raises:
        SourceError: The source cannot be read.
        LastingError: Nothing is left after filtering.
    """
    scratch = directory / f"{SCRATCH}{uuid.uuid4().hex}"  # others may be writing the same
    scratch.filesystem.create_dir(scratch.path)
    num_shares = min(max(-(-about_interactions(config) // SHARE_INTERACTIONS), 1), MOST_SHARES)
    source = _read(config, scratch, num_shares, run)
    after_reading()
    kept = _group_and_filter(config, scratch, num_shares, source, run)
    numbers = _number(config, scratch, source, kept, run)
    rule = find_rule(config.split, partial(_read_seconds, scratch, source, kept, run))
    counts, of_items = _order(scratch, source, kept, numbers, rule, run)
    refuse_empty(counts, rule, source.per_second)
    written = Written(
        left_out_rows=source.left_out,
        source_users=sum(map(len, kept.users)),
        source_items=len(source.item_ids),
        source_interactions=source.interactions,
        floored_times=source.floored_times,
        per_second=source.per_second,
        filter_rounds=kept.rounds,
        num_items=len(numbers.item_ids),
        split=rule,
        counts=counts,
        catalog_bytes=write_catalog(numbers.item_ids, of_items, directory),
        shards=_write(scratch, directory, num_shares, numbers, rule, run),
    )
    scratch.delete()
    return written


@dataclass(frozen=True, eq=False)
class _Source(DealtSource):
    """What was read."""

    item_ids: pa.Array
    """At the index of the item's code."""


@dataclass(frozen=True, eq=False)
class _Kept:
    """What filtering keeps."""

    users: list[BoolArray]
    """Which users of each share."""
    items: BoolArray
    """Which items."""
    rounds: int
    """Rounds that dropped something."""


@dataclass(frozen=True, eq=False)
class _Numbers:
    """How users and items are numbered, and which users are written together."""

    users: list[NDArray[np.int32]]
    """Of each share's users."""
    items: NDArray[np.int32]
    item_ids: pa.Array
    """Of items 1..N, in order."""
    shards: list[list[Span]]
    """The row groups of each file."""


def _read(config: DataConfig, scratch: Place, num_shares: int, run: Run) -> _Source:
    codes: dict[bytes, int] = {}

    def code(item_ids: pa.Array) -> NDArray[np.int32]:
        ids = item_ids.cast(pa.binary()).to_pylist()
        return np.array([codes.setdefault(item, len(codes)) for item in ids], np.int32)

    dealt = deal_source(config, scratch, num_shares, run, stage="reading", number_items=code)
    return _Source(**vars(dealt), item_ids=pa.array(codes, pa.binary()).cast(pa.string()))


def _group_and_filter(config: DataConfig, scratch: Place, num_shares: int, source: _Source, run: Run) -> _Kept:
    """Rounds as in `filters.keep_intervals`: users are counted in their share, items over all shares."""
    work = [(share,) for share in range(num_shares)]
    sizes = run("grouping by user", partial(group_share, scratch, source.pieces), work)
    users = [np.ones(size, np.bool_) for size in sizes]
    remove_files(scratch, "pieces-")
    items = np.ones(len(source.item_ids), np.bool_)
    rounds = 0
    while True:
        task = partial(filter_share, scratch, items, config.user_interactions)
        found = run(f"filtering, round {rounds + 1}", task, list(enumerate(users)))
        counts, staying, user_dropped = np.zeros(len(items), np.int64), [], False
        for stay, item_counts, dropped in found:
            staying.append(stay)
            counts[item_counts.items] += item_counts.values
            user_dropped |= dropped
        gone = items & outside(counts, config.item_interactions)
        if not (user_dropped or counts[gone].any()):
            return _Kept(users, items, rounds)
        users, items, rounds = staying, items & ~gone, rounds + 1


def _number(config: DataConfig, scratch: Place, source: _Source, kept: _Kept, run: Run) -> _Numbers:
    found = run("numbering", partial(find_appearance, scratch, kept.items), list(enumerate(kept.users)))
    first_of_items = np.full(len(kept.items), NOWHERE)
    first_of_users, lengths = [], []
    for appearance in found:
        here = appearance.items
        first_of_items[here.items] = np.minimum(first_of_items[here.items], here.values)
        first_of_users.append(appearance.users)
        lengths.append(appearance.lengths)
    users, order = number_by_position(np.concatenate(first_of_users))
    if not len(order):
        raise nothing_left(config, source.interactions)
    items, item_order = number_by_position(first_of_items)
    offsets = offsets_of(np.concatenate(lengths)[order])
    of_shares = np.split(users, np.cumsum([len(share) for share in kept.users])[:-1])
    return _Numbers(of_shares, items, source.item_ids.take(pa.array(item_order)), spans_of_shards(offsets))


def _read_seconds(scratch: Place, source: _Source, kept: _Kept, run: Run) -> Iterator[IntArray]:
    """Unix seconds of the interactions kept, share by share."""
    task = partial(find_seconds, scratch, kept.items, source.per_second)
    return run("finding where to split", task, list(enumerate(kept.users)))


def _order(
    scratch: Place, source: _Source, kept: _Kept, numbers: _Numbers, rule: SplitRule, run: Run
) -> tuple[Counts, ItemCounts]:
    spans = [span for shard in numbers.shards for span in shard]
    task = partial(deal_histories, scratch, kept.items, numbers.items, source.per_second, rule, spans)
    work = list(zip(range(len(kept.users)), kept.users, numbers.users, strict=True))
    counts, of_items = Counts(), ItemCounts.none(len(numbers.item_ids))
    for more, interactions, learned in run("ordering", task, work):
        counts += more
        of_items.interactions[interactions.items] += interactions.values
        of_items.learned[learned.items] += learned.values
    remove_files(scratch, "share-")
    return counts, of_items


def _write(
    scratch: Place, directory: Place, num_shares: int, numbers: _Numbers, rule: SplitRule, run: Run
) -> tuple[Shard, ...]:
    make_room(directory)
    ends = np.cumsum([0, *map(len, numbers.shards)]).tolist()
    work = [(number, range(ends[number], ends[number + 1])) for number in range(len(numbers.shards))]
    return tuple(run("writing", partial(write_row_groups, scratch, directory, num_shares, rule), work))
