"""How histories are written: in row groups of a size to be dealt out, with the catalogue of items.

The layout of what is written stands in `catalog.py`; how it is read again in `reading.py`.
"""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysrec.data.catalog import CATALOG_SCHEMA, HISTORY_SCHEMA, RowGroupSize, Shard
from raysrec.data.histories import Counts, Histories
from raysrec.place import Place

ROW_GROUPS = 64
"""Row groups that data of ordinary size are cut into, and at most so many lie in one file."""
SMALLEST_ROW_GROUP, LARGEST_ROW_GROUP = 1 << 10, 1 << 20
"""Interactions in a row group: a 64th of the data within these bounds, so that small data, too, can be dealt out."""


@dataclass(frozen=True)
class Written:
    """What was read, what was made of it, and the files that were written: all that a manifest counts."""

    source_interactions: int
    floored_times: int
    per_second: int
    filter_rounds: int
    num_items: int
    counts: Counts
    shards: tuple[Shard, ...]
    catalog_bytes: int


def write_histories(histories: Histories, directory: Place) -> tuple[Shard, ...]:
    """Write `histories/*.parquet` under the directory, whole users in each row group."""
    make_room(directory)
    return tuple(
        write_shard((history_table(histories, *span) for span in spans), directory, number)
        for number, spans in enumerate(spans_of_shards(histories.offsets))
    )


def make_room(directory: Place) -> None:
    """Make the folder in which `write_shard` writes."""
    histories = directory / "histories"
    histories.filesystem.create_dir(histories.path)


def spans_of_shards(offsets: NDArray[np.int64]) -> list[list[tuple[int, int]]]:
    """For each file its row groups, each the users `first` to `last` - 1, counted from 0.

    A row group is closed by the user who brings it over its share of interactions, a 64th of the data within
    `SMALLEST_ROW_GROUP` and `LARGEST_ROW_GROUP`; so it exceeds the share by less than one history.

    Args:
        offsets: Where each user's history starts among all interactions, and where the last one ends.
    """
    share = min(max(math.ceil(offsets[-1] / ROW_GROUPS), SMALLEST_ROW_GROUP), LARGEST_ROW_GROUP)
    starts = np.flatnonzero(np.diff(offsets[:-1] // share, prepend=-1))
    spans = list(itertools.pairwise([*starts.tolist(), len(offsets) - 1]))
    return [spans[start : start + ROW_GROUPS] for start in range(0, len(spans), ROW_GROUPS)]


def history_table(histories: Histories, first: int, last: int) -> pa.Table:
    """The rows of the histories from index `first` to `last` - 1."""
    begin, end = int(histories.offsets[first]), int(histories.offsets[last])
    starts = pa.array((histories.offsets[first : last + 1] - begin).astype(np.int32))
    columns = [
        pa.array(histories.users[first:last]),
        histories.user_ids.slice(first, last - first),
        pa.ListArray.from_arrays(starts, pa.array(histories.items[begin:end])),
        pa.ListArray.from_arrays(starts, pa.array(histories.times[begin:end] // histories.per_second)),
    ]
    return pa.table(columns, schema=HISTORY_SCHEMA)


def write_shard(tables: Iterable[pa.Table], directory: Place, number: int) -> Shard:
    """Write one file of histories under the directory, a row group for each table."""
    file = f"histories/part-{number:05d}.parquet"
    place = directory / file
    sizes = []
    with pq.ParquetWriter(place.path, HISTORY_SCHEMA, filesystem=place.filesystem, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table, row_group_size=len(table))
            interactions = sum(len(chunk.flatten()) for chunk in table.column("items").chunks)
            sizes.append(RowGroupSize(users=len(table), interactions=interactions))
    return Shard(file=file, bytes=place.size or 0, row_groups=tuple(sizes))


def write_catalog(item_ids: pa.Array, counts: Counts, directory: Place) -> int:
    """Write `catalog.parquet` (each item's number, external id and counts), and return its size in bytes."""
    numbers = np.arange(1, len(item_ids) + 1, dtype=np.int32)
    columns = [numbers, item_ids, counts.of_items[1:], (counts.of_items - counts.held_out)[1:]]
    place = directory / "catalog.parquet"
    table = pa.table(columns, schema=CATALOG_SCHEMA)
    pq.write_table(table, place.path, filesystem=place.filesystem, compression="zstd")
    return place.size or 0
