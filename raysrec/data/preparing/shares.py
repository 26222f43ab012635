"""What the tasks of a distributed preparation do: read files of the scratch folder, call `grouping.py`, write others.

    pieces-<name>      a piece of the source, a bucket for each share of the users     (`deal_pieces`)
    items-<name>       what the piece's codes of items are in the whole                (the driver)
    share-<number>     a share's interactions, user by user, each in order of time     (`group_share`)
    histories-<number> a share's histories, a bucket for each row group                (`deal_histories`)

A task may run twice, so each writes the same whenever it runs.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysrec.config import DataConfig
from raysrec.data.arrays import BoolArray, IntArray
from raysrec.data.manifest import Shard
from raysrec.data.prepared import HISTORY_SCHEMA
from raysrec.data.preparing.counts import Counts
from raysrec.data.preparing.grouping import (
    GROUPED_SCHEMA,
    Appearance,
    Grouped,
    Kept,
    OfItems,
    appearance_of,
    filter_users,
    group_by_user,
    join,
    number_histories,
)
from raysrec.data.preparing.histories import count_histories
from raysrec.data.preparing.spill import read_bucket, write_buckets
from raysrec.data.preparing.writing import history_table, write_shard
from raysrec.data.sources.blocks import Block, read_pieces
from raysrec.data.splits import SplitRule
from raysrec.place import Place
from raysrec.schema import Interval

Span = tuple[int, int]
"""The users of a row group: from the first to before the last, counted from 0 in the order of their numbers."""


@dataclass(frozen=True)
class Dealt:
    """A piece of the source that was read and dealt into shares."""

    name: str
    """Part of the names of its files."""
    interactions: int
    floored_times: int
    left_out: int
    per_second: int
    item_ids: pa.Array
    """What its codes of items stand for."""


def deal_pieces(
    config: DataConfig, folder: str, scratch: Place, num_shares: int, number: int, blocks: Sequence[Block]
) -> Iterator[Dealt]:
    """Read blocks of the source, and deal each piece into shares of the users.

    Args:
        config: The source.
        folder: To which its paths are relative.
        scratch: Where to write.
        num_shares: How many shares there are.
        number: The place of these blocks in the source.
        blocks: What to read.

    Raises:
        SourceError: They cannot be read.
    """
    # The driver's folder may not be there on another machine, which then reads from a store.
    with contextlib.chdir(folder) if Place.of(folder).local.is_dir() else contextlib.nullcontext():
        pieces = read_pieces(config, blocks)
        for turn, piece in enumerate(pieces):
            name = f"{number:06d}-{turn:06d}"
            tables, item_ids = group_by_user(piece.table, num_shares)
            write_buckets(scratch / f"pieces-{name}", tables, GROUPED_SCHEMA)
            yield Dealt(name, len(piece.table), piece.floored_times, piece.left_out, piece.per_second, item_ids)


def write_item_codes(scratch: Place, name: str, codes: NDArray[np.int32]) -> None:
    """Leave for `group_share` what the codes of a piece are in the whole."""
    write_buckets(scratch / f"items-{name}", [pa.table([codes], schema=_CODES)], _CODES)


def group_share(scratch: Place, pieces: Sequence[tuple[str, int]], share: int) -> Iterator[int]:
    """Put together a share's interactions of all pieces, given by name and by the interactions before each.

    Yields how many users it has.
    """
    grouped = joined_share(scratch, pieces, share)
    write_buckets(scratch / f"share-{share}", [grouped.to_table()], GROUPED_SCHEMA)
    yield len(grouped.user_ids)


def joined_share(scratch: Place, pieces: Sequence[tuple[str, int]], share: int) -> Grouped:
    """A share's interactions of all pieces, given by name and by the interactions before each."""
    segments = []
    for name, start in pieces:
        segment = Grouped.of(read_bucket(scratch / f"pieces-{name}", share))
        codes = read_bucket(scratch / f"items-{name}").column(0).to_numpy()
        segments.append(
            Grouped(segment.user_ids, segment.offsets, codes[segment.items], segment.times, segment.positions + start)
        )
    return join(segments)


def filter_share(
    scratch: Place, items: BoolArray, allowed: Interval, share: int, users: BoolArray
) -> Iterator[tuple[BoolArray, OfItems, bool]]:
    """`grouping.filter_users` of a share."""
    yield filter_users(_share(scratch, share), Kept(users, items), allowed)


def find_appearance(scratch: Place, items: BoolArray, share: int, users: BoolArray) -> Iterator[Appearance]:
    """`grouping.appearance_of` a share."""
    yield appearance_of(_share(scratch, share), Kept(users, items))


def find_seconds(scratch: Place, items: BoolArray, per_second: int, share: int, users: BoolArray) -> Iterator[IntArray]:
    """Unix seconds of the interactions of a share that are kept."""
    grouped = _share(scratch, share)
    yield grouped.times[Kept(users, items).rows(grouped)] // per_second


def deal_histories(
    scratch: Place,
    items: BoolArray,
    item_numbers: NDArray[np.int32],
    per_second: int,
    rule: SplitRule,
    spans: Sequence[Span],
    share: int,
    users: BoolArray,
    user_numbers: NDArray[np.int32],
) -> Iterator[tuple[Counts, OfItems, OfItems]]:
    """Deal a share's histories into the row groups they will be written to.

    Yields what is counted of them, the interactions of each item, and those of them that are learned from.
    """
    histories = number_histories(_share(scratch, share), Kept(users, items), user_numbers, item_numbers, per_second)
    cuts = np.searchsorted(histories.users, [1 + spans[0][0], *(1 + last for _, last in spans)]).tolist()
    tables = (history_table(histories, *span) for span in pairwise(cuts))
    write_buckets(scratch / f"histories-{share}", tables, HISTORY_SCHEMA)
    counts, of_items = count_histories(histories, rule, int(item_numbers.max()))
    yield counts, OfItems.of(of_items.interactions), OfItems.of(of_items.learned)


def write_row_groups(
    scratch: Place, directory: Place, num_shares: int, rule: SplitRule, number: int, row_groups: range
) -> Iterator[Shard]:
    """Write the file of this number, of the row groups that it holds."""
    yield write_shard((_row_group(scratch, num_shares, bucket) for bucket in row_groups), rule, directory, number)


def _row_group(scratch: Place, num_shares: int, bucket: int) -> pa.Table:
    dealt = [read_bucket(scratch / f"histories-{share}", bucket) for share in range(num_shares)]
    table = pa.concat_tables(dealt).combine_chunks()
    return table.take(pa.array(np.argsort(table.column("user").to_numpy())))


def _share(scratch: Place, share: int) -> Grouped:
    return Grouped.of(read_bucket(scratch / f"share-{share}"))


_CODES = pa.schema({"code": pa.int32()})
