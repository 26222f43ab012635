"""Histories in memory, and how they are written: in row groups of a size to be dealt out, with the catalogue of items.

The layout of what is written stands in `catalog.py`; how it is read again in `reading.py`.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysrec.data.catalog import CATALOG_SCHEMA, HISTORY_SCHEMA, RowGroupSize, Shard
from raysrec.data.counts import Counts
from raysrec.data.splits import SplitRule, in_first

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

    def parts(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]]:
        """Offsets from 0, items and times of the users of each row group."""
        for first, last in itertools.pairwise(_cut_row_groups(self.offsets)):
            begin, end = self.offsets[first], self.offsets[last]
            yield self.offsets[first : last + 1] - begin, self.items[begin:end], self.times[begin:end]

    def seconds(self) -> Iterator[NDArray[np.int64]]:
        """Unix seconds of the interactions of each row group."""
        return (self.in_seconds(times) for _, _, times in self.parts())

    def in_seconds(self, times: NDArray[np.int64]) -> NDArray[np.int64]:
        """Some of the times as they are written."""
        return times if self.per_second == 1 else times // self.per_second


def write_histories(histories: Histories, rule: SplitRule, directory: Path) -> tuple[Shard, ...]:
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
        sizes = _write_file(histories, rule, directory / file, spans[start : start + ROW_GROUPS])
        shards.append(Shard(file=file, bytes=(directory / file).stat().st_size, row_groups=sizes))
    return tuple(shards)


def count_histories(histories: Histories, rule: SplitRule) -> Counts:
    """What the manifest says of these histories, split by this rule."""
    per_second = histories.per_second
    return sum((Counts.of(rule, *part, per_second=per_second) for part in histories.parts()), Counts())


def write_catalog(histories: Histories, rule: SplitRule, directory: Path) -> int:
    """Write `catalog.parquet` (each item's number, external id and counts), and return its size in bytes."""
    size = len(histories.item_ids) + 1
    counts, train_counts = np.zeros((2, size), np.int64)
    for offsets, items, times in histories.parts():
        train = rule.positions(offsets, histories.in_seconds(times)).train
        counts += np.bincount(items, minlength=size)
        train_counts += np.bincount(items[in_first(offsets, train)], minlength=size)
    columns = [np.arange(1, size, dtype=np.int32), histories.item_ids, counts[1:], train_counts[1:]]
    path = directory / "catalog.parquet"
    pq.write_table(pa.table(columns, schema=CATALOG_SCHEMA), path, compression="zstd")
    return path.stat().st_size


def _cut_row_groups(offsets: NDArray[np.int64]) -> list[int]:
    """The users at which row groups start, and the number of users."""
    share = min(max(math.ceil(offsets[-1] / ROW_GROUPS), SMALLEST_ROW_GROUP), LARGEST_ROW_GROUP)
    starts = np.flatnonzero(np.diff(offsets[:-1] // share, prepend=-1))
    return [*starts.tolist(), len(offsets) - 1]


def _write_file(
    histories: Histories, rule: SplitRule, path: Path, spans: list[tuple[int, int]]
) -> tuple[RowGroupSize, ...]:
    sizes = []
    with pq.ParquetWriter(path, HISTORY_SCHEMA, compression="zstd") as writer:
        for first, last in spans:
            begin, end = int(histories.offsets[first]), int(histories.offsets[last])
            offsets = histories.offsets[first : last + 1] - begin
            seconds = histories.in_seconds(histories.times[begin:end])
            starts = pa.array(offsets.astype(np.int32))
            columns = [
                pa.array(np.arange(first + 1, last + 1, dtype=np.int64)),
                histories.user_ids.slice(first, last - first),
                pa.ListArray.from_arrays(starts, pa.array(histories.items[begin:end])),
                pa.ListArray.from_arrays(starts, pa.array(seconds)),
            ]
            table = pa.table(columns, schema=HISTORY_SCHEMA)
            writer.write_table(table, row_group_size=len(table))
            learned = None if rule.name == "leave_one_out" else int(rule.positions(offsets, seconds).train.sum())
            sizes.append(RowGroupSize(users=last - first, interactions=end - begin, learned=learned))
    return tuple(sizes)
