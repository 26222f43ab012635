"""The prepared data set on disk: what lies in its folder, how that is written, and how it is opened again.

A folder holds `histories/*.parquet` (one row per user, oldest interaction first), `catalog.parquet` (external and
internal item ids, counts) and `manifest.json` (sizes, rules, source). The split is no file: a user's last item is the
test target, the second last the validation target, the rest is to learn from. How raw interactions become histories
is the business of `prepare.py`; how histories become batches that of `loader.py`.
"""

import itertools
import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field, ValidationError, field_validator, model_validator

from raysrec.schema import Count, CountOrZero, Interval, Section

FORMAT_VERSION = 1
"""Changes when a folder written before can no longer be read."""

HISTORY_SCHEMA = pa.schema(
    {"user": pa.int64(), "user_id": pa.string(), "items": pa.list_(pa.int32()), "times": pa.list_(pa.int64())}
)
CATALOG_SCHEMA = pa.schema({"item": pa.int32(), "item_id": pa.string(), "count": pa.int64(), "train_count": pa.int64()})

ROW_GROUPS = 64
"""Row groups that data of ordinary size are cut into, and at most so many lie in one file."""
SMALLEST_ROW_GROUP, LARGEST_ROW_GROUP = 1 << 10, 1 << 20
"""Interactions in a row group: a 64th of the data within these bounds, so that small data, too, can be dealt out."""


class PreparedDataError(ValueError):
    """A folder that is no whole prepared data set; the text says what is wrong and what to do."""


@dataclass(frozen=True)
class RowGroup:
    """The part of the histories that is read at once."""

    path: Path
    """The Parquet file it lies in."""
    index: int
    """Its place in that file, from 0."""
    users: int
    """Rows."""
    interactions: int
    """Items in all its rows together."""


class RowGroupSize(Section):
    """How much a row group holds."""

    users: Count
    """Rows."""
    interactions: Count
    """Items in all its rows together."""


class Shard(Section):
    """One Parquet file of histories."""

    file: str
    """Path inside the prepared folder, with forward slashes."""
    bytes: Count
    """Size of the file."""
    row_groups: Annotated[tuple[RowGroupSize, ...], Field(min_length=1)]
    """What its row groups hold, in order."""

    @field_validator("file")
    @classmethod
    def _inside(cls, file: str) -> str:
        if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts or "\\" in file:
            raise ValueError(f"{file!r} leads out of the prepared folder")
        return file


class Source(Section):
    """What a data set was prepared from."""

    path: str
    """As the config named it; `synthetic` for the embedded source."""
    bytes: CountOrZero
    """Size of all its files as they lie on disk; 0 for the embedded source."""
    sha256: str
    """Of all its files in order, as they lie on disk; of its settings for the embedded source."""


class Manifest(Section):
    """What a prepared data set holds and by which rules it was made."""

    format_version: int = FORMAT_VERSION
    """Layout of the folder."""
    name: str
    """What the config that prepared it called it."""
    fingerprint: str
    """Sixteen hexadecimal digits over the source and all rules; the same fingerprint means the same data."""
    source: Source
    """What it was prepared from."""
    source_interactions: Count
    """Interactions in the source, before filtering."""
    num_users: Count
    """Users kept."""
    num_items: Count
    """Items kept."""
    num_interactions: Count
    """Interactions kept."""
    num_targets: CountOrZero
    """Training targets: each item of a history but the first (nothing precedes it) and the last two (held out)."""
    longest_history: Count
    """Interactions of the user who has most."""
    user_interactions: Interval
    """How many interactions a user must have."""
    item_interactions: Interval
    """How many interactions an item must have."""
    filter_rounds: CountOrZero
    """Rounds of filtering that dropped something."""
    id_rule: str
    """How users and items are numbered, in words."""
    time_rule: str
    """How times are read, in words."""
    tie_rule: str
    """How interactions at the same time are ordered, in words."""
    floored_times: CountOrZero
    """Times of the source that had a fraction."""
    tied_interactions: CountOrZero
    """Interactions at the same time as the one before or after them in the user's history."""
    tied_validation_targets: CountOrZero
    """Users whose validation item would be another one under another rule for ties."""
    tied_test_targets: CountOrZero
    """Users whose test item would be another one under another rule for ties."""
    shards: Annotated[tuple[Shard, ...], Field(min_length=1)]
    """The files of histories, in order of users."""
    catalog_bytes: Count
    """Size of `catalog.parquet`."""

    @model_validator(mode="after")
    def _adds_up(self) -> "Manifest":
        groups = [group for shard in self.shards for group in shard.row_groups]
        for name, total in (("users", self.num_users), ("interactions", self.num_interactions)):
            held = sum(getattr(group, name) for group in groups)
            if held != total:
                raise ValueError(f"its row groups hold {held} {name} in all, but num_{name} is {total}")
        return self


@dataclass(frozen=True)
class PreparedData:
    """A prepared data set whose folder was found whole."""

    directory: Path
    manifest: Manifest

    @classmethod
    def open(cls, directory: str | Path) -> "PreparedData":
        """Read the manifest of a folder and check that its files are there.

        Raises:
            PreparedDataError: There is no manifest, it is of another version, or a file is missing or of another size.
        """
        directory = Path(directory)
        manifest = _read_manifest(directory)
        _check_file(directory, "catalog.parquet", manifest.catalog_bytes)
        for shard in manifest.shards:
            _check_file(directory, shard.file, shard.bytes)
        return cls(directory, manifest)

    def row_groups(self) -> list[RowGroup]:
        """Every row group of the histories, in order of users."""
        return [
            RowGroup(self.directory / shard.file, index, size.users, size.interactions)
            for shard in self.manifest.shards
            for index, size in enumerate(shard.row_groups)
        ]

    def counts(self) -> NDArray[np.int64]:
        """How many interactions each item has, at the index of its number; 0 for padding at index 0."""
        return self._catalog_column("count")

    def train_counts(self) -> NDArray[np.int64]:
        """How many interactions to learn from each item has (users' last two left out), at the index of its number."""
        return self._catalog_column("train_count")

    def item_ids(self) -> pa.Array:
        """External item ids as strings, at the index of the item's number; null for padding at index 0."""
        return pa.concat_arrays([pa.nulls(1, pa.string()), self._catalog.column("item_id").combine_chunks()])

    @cached_property
    def _catalog(self) -> pa.Table:
        catalog = pq.read_table(self.directory / "catalog.parquet", schema=CATALOG_SCHEMA)
        if len(catalog) != self.manifest.num_items:
            raise PreparedDataError(
                f"{self.directory}: catalog.parquet has {len(catalog)} items, "
                f"the manifest says {self.manifest.num_items}{_AGAIN}"
            )
        return catalog

    def _catalog_column(self, name: str) -> NDArray[np.int64]:
        return np.concatenate([np.zeros(1, np.int64), self._catalog.column(name).to_numpy()])


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
    """Unix seconds, of each of `items`."""


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


_AGAIN = "; delete this folder and prepare the data again"


def _read_manifest(directory: Path) -> Manifest:
    path = directory / "manifest.json"
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise PreparedDataError(
            f"{directory}: no prepared data here (there is no manifest.json); make it with python -m raysrec.prepare"
        ) from None
    except ValueError as error:
        raise PreparedDataError(f"{path}: is not JSON ({error}){_AGAIN}") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise PreparedDataError(f"{path}: has format version {version}, this raysrec reads {FORMAT_VERSION}{_AGAIN}")
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise PreparedDataError(f"{path}: {faults}{_AGAIN}") from None


def _check_file(directory: Path, file: str, expected_bytes: int) -> None:
    path = directory / file
    if not path.resolve().is_relative_to(directory.resolve()):
        raise PreparedDataError(f"{path}: leads out of the prepared folder{_AGAIN}")
    if not path.is_file():
        raise PreparedDataError(f"{directory}: {file} is missing{_AGAIN}")
    size = path.stat().st_size
    if size != expected_bytes:
        raise PreparedDataError(f"{directory}: {file} has {size} bytes, the manifest says {expected_bytes}{_AGAIN}")


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
                pa.ListArray.from_arrays(starts, pa.array(histories.times[begin:end])),
            ]
            table = pa.table(columns, schema=HISTORY_SCHEMA)
            writer.write_table(table, row_group_size=len(table))
            sizes.append(RowGroupSize(users=last - first, interactions=end - begin))
    return tuple(sizes)
