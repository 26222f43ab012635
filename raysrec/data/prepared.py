"""The prepared data set on disk: what lies in its folder, and how it is opened.

A folder holds `histories/*.parquet` (one row per user, oldest interaction first), `catalog.parquet` (external and
internal item ids, counts) and `manifest.json` (sizes, rules, source). The split is no file but a rule, in the manifest,
which `splits.py` applies to the times of a history. How raw interactions become histories is the business of
`preparing/`, how they become batches that of `batching/`.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from raysrec.data.manifest import FORMAT_VERSION, Manifest
from raysrec.errors import LastingError, ReadableError
from raysrec.place import AnyPath, Place, PlaceError, store_in_words

PREPARE_AGAIN = "; delete this folder and prepare the data again (python -m raysrec.prepare --config …)"
"""What to do about a prepared folder that is not whole."""

HISTORY_SCHEMA = pa.schema(
    {"user": pa.int64(), "user_id": pa.string(), "items": pa.list_(pa.int32()), "times": pa.list_(pa.int64())}
)
CATALOG_SCHEMA = pa.schema({"item": pa.int32(), "item_id": pa.string(), "count": pa.int64(), "train_count": pa.int64()})


class PreparedDataError(LastingError):
    """A folder that is no whole prepared data set; the text says what is wrong and what to do."""


@contextmanager
def whole(file: Place, part: str = "") -> Iterator[None]:
    """Turn what reading a prepared file fails with into words that name it.

    Args:
        file: What is read.
        part: Which part of it, for the message, such as `row group 3`.

    Raises:
        PreparedDataError: The file is missing, or what stands in it is not what was written.
        PlaceError: This machine or the store fails to read it.
    """
    where = f"{file}: {part} " if part else f"{file}: "
    try:
        with store_in_words(file):
            yield
    except FileNotFoundError:
        raise PreparedDataError(f"{file}: is missing{PREPARE_AGAIN}") from None
    except (ReadableError, MemoryError):
        raise
    # A ValueError is of a library that gives a column a type of its own and refuses what stands there for it.
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        if isinstance(error, OSError) and error.errno:
            raise PlaceError(f"{where}cannot be read: {reason}; fix this machine's storage and run again") from error
        raise PreparedDataError(f"{where}is damaged ({reason}){PREPARE_AGAIN}") from error


@dataclass(frozen=True)
class RowGroup:
    """The part of the histories that is read at once."""

    path: Place
    """The Parquet file it lies in."""
    index: int
    """Its place in that file, from 0."""
    users: int
    """Rows."""
    interactions: int
    """Items in all its rows together."""
    learned: int | None = None
    """Those that are learned from; None where that is all but two of each user."""

    @property
    def weight(self) -> int:
        """How much there is to learn from: by this an epoch is dealt out evenly."""
        return self.interactions if self.learned is None else self.learned


@dataclass(frozen=True)
class PreparedData:
    """A prepared data set whose folder was found whole."""

    directory: Place
    manifest: Manifest

    @classmethod
    def open(cls, directory: AnyPath) -> "PreparedData":
        """Read the manifest of a folder and check that its files are there.

        Raises:
            PreparedDataError: There is no manifest, it is of another version, or a file is missing or of another size.
            PlaceError: The folder lies in a store that fails.
        """
        directory = Place.of(directory)
        manifest = _read_manifest(directory)
        sizes = {info.path: info.size for info in directory.below()}
        _check_inside(directory, "histories")
        for file, size in (("catalog.parquet", manifest.catalog_bytes), *((s.file, s.bytes) for s in manifest.shards)):
            _check_file(directory, file, size, found=sizes.get((directory / file).path))
        return cls(directory, manifest)

    def row_groups(self) -> list[RowGroup]:
        """Every row group of the histories, in order of users."""
        return [
            RowGroup(file, index, size.users, size.interactions, size.learned)
            for shard, file in ((shard, self.directory / shard.file) for shard in self.manifest.shards)
            for index, size in enumerate(shard.row_groups)
        ]

    def counts(self) -> NDArray[np.int64]:
        """How many interactions each item has, at the index of its number; 0 for padding at index 0."""
        return self._catalog_column("count")

    def train_counts(self) -> NDArray[np.int64]:
        """How many of each item's interactions are learned from, at the index of its number."""
        return self._catalog_column("train_count")

    def item_ids(self) -> pa.Array:
        """External item ids as strings, at the index of the item's number; null for padding at index 0."""
        return pa.concat_arrays([pa.nulls(1, pa.string()), self._catalog.column("item_id").combine_chunks()])

    @cached_property
    def _catalog(self) -> pa.Table:
        file = self.directory / "catalog.parquet"
        settings = {"filesystem": file.filesystem, "page_checksum_verification": True}
        with whole(file), pq.ParquetFile(file.path, **settings) as opened:
            catalog = opened.read()
        if not catalog.schema.equals(CATALOG_SCHEMA):
            raise PreparedDataError(f"{file}: has other columns than a catalogue{PREPARE_AGAIN}")
        if len(catalog) != self.manifest.num_items:
            raise PreparedDataError(
                f"{self.directory}: catalog.parquet has {len(catalog)} items, "
                f"the manifest says {self.manifest.num_items}{PREPARE_AGAIN}"
            )
        return catalog

    def _catalog_column(self, name: str) -> NDArray[np.int64]:
        return np.concatenate([np.zeros(1, np.int64), self._catalog.column(name).to_numpy()])


def _read_manifest(directory: Place) -> Manifest:
    path = directory / "manifest.json"
    _check_inside(directory, path.name)
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise PreparedDataError(
            f"{directory}: no prepared data here (there is no manifest.json); make it with python -m raysrec.prepare"
        ) from None
    except PlaceError:
        raise
    except (ValueError, RecursionError) as error:
        raise PreparedDataError(f"{path}: is not JSON ({error}){PREPARE_AGAIN}") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise PreparedDataError(
            f"{path}: has format version {version}, this raysrec reads {FORMAT_VERSION}{PREPARE_AGAIN}"
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise PreparedDataError(f"{path}: {faults}{PREPARE_AGAIN}") from None


def _check_file(directory: Place, file: str, expected_bytes: int, *, found: int | None) -> None:
    _check_inside(directory, file)
    if found is None:
        raise PreparedDataError(f"{directory}: {file} is missing{PREPARE_AGAIN}")
    if found != expected_bytes:
        raise PreparedDataError(
            f"{directory}: {file} has {found} bytes, the manifest says {expected_bytes}{PREPARE_AGAIN}"
        )


def _check_inside(directory: Place, file: str) -> None:
    """Refuse a link out of the folder; in a store there are none."""
    path = directory / file
    if not path.is_local:
        return
    try:
        inside = path.local.resolve().is_relative_to(directory.local.resolve())
    except (OSError, RuntimeError):  # links that lead to each other
        inside = False
    if not inside:
        raise PreparedDataError(f"{path}: leads out of the prepared folder{PREPARE_AGAIN}")
