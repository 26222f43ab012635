"""Histories in memory, and how they are written: in row groups of a size to be dealt out, with the catalogue of items.

The layout of what is written stands in `catalog.py`; how it is read again in `reading.py`.
"""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysrec.data.catalog import CATALOG_SCHEMA, HISTORY_SCHEMA, RowGroupSize, Shard

ROW_GROUPS = 64
"""Row groups that data of ordinary size are cut into, and at most so many lie in one file."""
SMALLEST_ROW_GROUP, LARGEST_ROW_GROUP = 1 << 10, 1 << 20
"""Interactions in a row group: a 64th of the data within these bounds, so that small data, too, can be dealt out."""


@dataclass(frozen=True)
class Histories:
    """All users' histories end to end, in memory, as they are written."""

    user_ids: pa.Array
    """External ids of users 1..M, in order."""
    item_ids: pa.Array
    """External ids of items 1..N, in order."""
    offsets: NDArray[np.int64]
    """Where each user's history starts in `items` and `times`, and where the last one ends: M + 1 numbers."""
    items: NDArray[np.int32]
    """Item numbers 1..N, oldest first within a user."""
    times: NDArray[np.int64]
    """Unix time of each of `items`, as the source counts it."""
    per_second: int = 1
    """How much of `times` is a second; seconds are written."""


def write_histories(histories: Histories, directory: Path) -> tuple[Shard, ...]:
    """Write `histories/*.parquet` under the directory, whole users in each row group.

    A row group is closed by the user who brings it over its share of interactions, a 64th of the data within
    `SMALLEST_ROW_GROUP` and `LARGEST_ROW_GROUP`; so it exceeds the share by less than one history.
    """
    (directory / "histories").mkdir()
    cuts = _cut_row_groups(histories.offsets)
    spans = list(itertools.pairwise(cuts))
    shards = []
    for number, start in enumerate(range(0, len(spans), ROW_GROUPS)):
        file = f"histories/part-{number:05d}.parquet"
        sizes = _write_file(histories, directory / file, spans[start : start + ROW_GROUPS])
        shards.append(Shard(file=file, bytes=(directory / file).stat().st_size, row_groups=sizes))
    return tuple(shards)


def write_catalog(histories: Histories, directory: Path) -> int:
    """Write `catalog.parquet` (each item's number, external id and counts), and return its size in bytes."""
    ends = histories.offsets[1:]
    size = len(histories.item_ids) + 1
    counts = np.bincount(histories.items, minlength=size)
    held_out = np.bincount(histories.items[np.concatenate([ends - 1, ends - 2])], minlength=size)
    columns = [np.arange(1, size, dtype=np.int32), histories.item_ids, counts[1:], (counts - held_out)[1:]]
    path = directory / "catalog.parquet"
    pq.write_table(pa.table(columns, schema=CATALOG_SCHEMA), path, compression="zstd")
    return path.stat().st_size


def _cut_row_groups(offsets: NDArray[np.int64]) -> list[int]:
    """The users at which row groups start, and the number of users."""
    share = min(max(math.ceil(offsets[-1] / ROW_GROUPS), SMALLEST_ROW_GROUP), LARGEST_ROW_GROUP)
    starts = np.flatnonzero(np.diff(offsets[:-1] // share, prepend=-1))
    return [*starts.tolist(), len(offsets) - 1]


def _write_file(histories: Histories, path: Path, spans: list[tuple[int, int]]) -> tuple[RowGroupSize, ...]:
    sizes = []
    with pq.ParquetWriter(path, HISTORY_SCHEMA, compression="zstd") as writer:
        for first, last in spans:
            begin, end = int(histories.offsets[first]), int(histories.offsets[last])
            starts = pa.array((histories.offsets[first : last + 1] - begin).astype(np.int32))
            columns = [
                pa.array(np.arange(first + 1, last + 1, dtype=np.int64)),
                histories.user_ids.slice(first, last - first),
                pa.ListArray.from_arrays(starts, pa.array(histories.items[begin:end])),
                pa.ListArray.from_arrays(starts, pa.array(histories.times[begin:end] // histories.per_second)),
            ]
            table = pa.table(columns, schema=HISTORY_SCHEMA)
            writer.write_table(table, row_group_size=len(table))
            sizes.append(RowGroupSize(users=last - first, interactions=end - begin))
    return tuple(sizes)
