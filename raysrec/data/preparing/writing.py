"""How histories are written: in row groups of a size to be dealt out, with the catalogue of items and the manifest.

The layout of what is written stands in `prepared.py`; how it is read again in `batching/reading.py`.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysrec.config import DataConfig
from raysrec.data.arrays import IntArray
from raysrec.data.manifest import Manifest, RowGroupSize, Shard
from raysrec.data.prepared import CATALOG_SCHEMA, HISTORY_SCHEMA
from raysrec.data.preparing.counts import Counts, ItemCounts
from raysrec.data.preparing.histories import NumberedHistories, cut_users
from raysrec.data.sources.interactions import time_rule
from raysrec.data.splits import SplitRule
from raysrec.place import Place

ROW_GROUPS = 64
"""Row groups that data of ordinary size are cut into, and at most so many lie in one file."""
SMALLEST_ROW_GROUP, LARGEST_ROW_GROUP = 1 << 10, 1 << 20
"""Interactions in a row group: a 64th of the data within these bounds, so that small data, too, can be dealt out."""

PAGES: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}
"""How pages are written. Checking them costs 7 % of what reading costs; without, a flipped bit may be another item."""

ID_RULE = "users 1..M and items 1..N by first appearance among the interactions kept, in the order of the source"
TIE_RULE = "interactions of a user at the same time keep the order of the source"


@dataclass(frozen=True)
class Written:
    """What was read, what was made of it, and the files that were written: what is new in a manifest."""

    left_out_rows: int
    source_users: int
    source_items: int
    source_interactions: int
    floored_times: int
    per_second: int
    """How much of a time of the source is a second."""
    filter_rounds: int
    num_items: int
    split: SplitRule
    counts: Counts
    shards: tuple[Shard, ...]
    catalog_bytes: int


def write_histories(histories: NumberedHistories, rule: SplitRule, directory: Place) -> tuple[Shard, ...]:
    """Write `histories/*.parquet` under the directory, whole users in each row group."""
    make_room(directory)
    return tuple(
        write_shard((history_table(histories, *span) for span in spans), rule, directory, number)
        for number, spans in enumerate(spans_of_shards(histories.offsets))
    )


def make_room(directory: Place) -> None:
    """Make the folder in which `write_shard` writes."""
    histories = directory / "histories"
    histories.filesystem.create_dir(histories.path)


def spans_of_shards(offsets: IntArray) -> list[list[tuple[int, int]]]:
    """For each file its row groups, each the users `first` to `last` - 1, counted from 0.

    A row group is closed by the user who brings it over its share of interactions, a 64th of the data within
    `SMALLEST_ROW_GROUP` and `LARGEST_ROW_GROUP`; so it exceeds the share by less than one history.

    Args:
        offsets: Where each user's history starts among all interactions, and where the last one ends.
    """
    share = min(max(math.ceil(offsets[-1] / ROW_GROUPS), SMALLEST_ROW_GROUP), LARGEST_ROW_GROUP)
    spans = cut_users(offsets, share)
    return [spans[start : start + ROW_GROUPS] for start in range(0, len(spans), ROW_GROUPS)]


def history_table(histories: NumberedHistories, first: int, last: int) -> pa.Table:
    """The rows of the histories from index `first` to `last` - 1."""
    begin, end = int(histories.offsets[first]), int(histories.offsets[last])
    starts = pa.array((histories.offsets[first : last + 1] - begin).astype(np.int32))
    columns = [
        pa.array(histories.users[first:last]),
        histories.user_ids.slice(first, last - first),
        pa.ListArray.from_arrays(starts, pa.array(histories.items[begin:end])),
        pa.ListArray.from_arrays(starts, pa.array(histories.in_seconds(histories.times[begin:end]))),
    ]
    return pa.table(columns, schema=HISTORY_SCHEMA)


def write_shard(tables: Iterable[pa.Table], rule: SplitRule, directory: Place, number: int) -> Shard:
    """Write one file of histories under the directory, a row group for each table of `history_table`."""
    file = f"histories/part-{number:05d}.parquet"
    place = directory / file
    sizes = []
    with pq.ParquetWriter(place.path, HISTORY_SCHEMA, filesystem=place.filesystem, **PAGES) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=len(table))
            sizes.append(_size_of(table, rule))
    return Shard(file=file, bytes=place.info().size or 0, row_groups=tuple(sizes))


def write_catalog(item_ids: pa.Array, counts: ItemCounts, directory: Place) -> int:
    """Write `catalog.parquet` (each item's number, external id and counts), and return its size in bytes."""
    numbers = np.arange(1, len(item_ids) + 1, dtype=np.int32)
    table = pa.table([numbers, item_ids, counts.interactions[1:], counts.learned[1:]], schema=CATALOG_SCHEMA)
    place = directory / "catalog.parquet"
    pq.write_table(table, place.path, filesystem=place.filesystem, **PAGES)
    return place.info().size or 0


def write_manifest(written: Written, config: DataConfig, facts: dict[str, Any], directory: Place) -> None:
    """Write `manifest.json`, the last file: it says that the others are whole."""
    given = {name: value for name, value in vars(written).items() if name not in ("per_second", "counts")}
    manifest = Manifest(
        user_interactions=config.user_interactions,
        item_interactions=config.item_interactions,
        id_rule=ID_RULE,
        time_rule=time_rule(written.per_second, config.time_precision),
        tie_rule=TIE_RULE,
        **written.counts.for_manifest(written.per_second),
        **given,
        **facts,
    )
    (directory / "manifest.json").write((manifest.model_dump_json(indent=2) + "\n").encode())


def _size_of(table: pa.Table, rule: SplitRule) -> RowGroupSize:
    (times,) = table.column("times").chunks
    offsets = times.offsets.to_numpy().astype(np.int64)
    size = RowGroupSize(users=len(table), interactions=int(offsets[-1] - offsets[0]))
    if rule.name == "leave_one_out":
        return size
    train = rule.positions(offsets - offsets[0], times.flatten().to_numpy()).train
    return size.model_copy(update={"learned": int(train.sum())})
