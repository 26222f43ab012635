"""Row groups of Parquet, read in a stated order by pyarrow: in this process, or in a task of Ray Data.

Ray Data's tasks (`ray_reading.py`) give the same tables in the same order. What they import is here, and torch is not
in it: a process that only reads would need two seconds and 200 MB for it.

Each byte of a file leaves its store once in an epoch: of a row group only the columns that are needed are asked for,
and the footer, which says where they lie, is read once by a process and travels to the tasks that read for it. What was
read is what was written, by the checksum of each page and by the sizes in the manifest, or it is an error that names
the row group.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysrec.data.prepared import HISTORY_SCHEMA, PREPARE_AGAIN, PreparedDataError, RowGroup, whole
from raysrec.place import Place

COLUMNS = ["user", "items", "times"]

Reader = Callable[[Sequence[RowGroup]], Iterator[pa.Table]]
"""Reads row groups in the given order and yields one table for each."""


def read_directly(groups: Sequence[RowGroup], columns: Sequence[str] = COLUMNS) -> Iterator[pa.Table]:
    """One table per row group, read when it is asked for; these columns of it, which those of `COLUMNS` are among."""
    for group in groups:
        footer = footer_of(group.path)
        check(group, footer)
        yield _read(group.path, [group.index], footer, columns)


def read_ahead(groups: Sequence[RowGroup], columns: Sequence[str] = COLUMNS) -> Iterator[pa.Table]:
    """What `read_directly` reads; while one table is used, the next is read."""
    tables = read_directly(groups, columns)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, tables, None)
        while (table := coming.result()) is not None:
            coming = pool.submit(next, tables, None)
            yield table


@lru_cache(maxsize=1024)
def footer_of(file: Place) -> pq.FileMetaData:
    """What the end of a Parquet file says about it; asked for once by a process, since prepared files never change.

    Raises:
        PreparedDataError: The file is missing, or no whole Parquet file.
        PlaceError: The store fails.
    """
    with whole(file, "its footer"), pq.ParquetFile(file.path, filesystem=file.filesystem) as opened:
        return opened.metadata


def consecutive(groups: Sequence[RowGroup], interactions: int) -> list[list[int]]:
    """Row groups in a row that are handled together, each unit of at least so many interactions but the last.

    They are given by their places in the list.
    """
    units: list[list[int]] = []
    held = interactions
    for number, group in enumerate(groups):
        if held >= interactions:
            units.append([])
            held = 0
        units[-1].append(number)
        held += group.interactions
    return units


def read_unit(batch: dict[str, np.ndarray], footers_ref: Any) -> pa.Table:
    """A Ray Data task: the row groups of one unit, and beside each row its row group's place in the unit."""
    import ray

    footers, tables = ray.get(footers_ref), []
    for paths, indices in zip(batch["paths"].tolist(), batch["indices"].tolist(), strict=True):
        for place, table in enumerate(_read_together(paths, indices, footers)):
            tables.append(table.append_column("place", pa.array(np.full(len(table), place, dtype=np.int32))))
    return pa.concat_tables(tables).combine_chunks()


def _read_together(paths: Any, indices: Any, footers: Mapping[str, pq.FileMetaData]) -> list[pa.Table]:
    """One table per row group, in the order asked for; each file is opened once and its row groups read at once."""
    tables: dict[tuple[str, int], pa.Table] = {}
    asked_for = [(str(path), int(index)) for path, index in zip(paths, indices, strict=True)]
    for path, wanted in groupby(sorted(set(asked_for)), key=lambda pair: pair[0]):
        numbers = [number for _, number in wanted]
        table, start = _read(Place(path), numbers, footers[path]), 0
        for number in numbers:
            rows = footers[path].row_group(number).num_rows
            tables[path, number] = table.slice(start, rows)
            start += rows
    return [tables[one] for one in asked_for]


def check(group: RowGroup, footer: pq.FileMetaData) -> None:
    """Refuse a file that holds another number of users or interactions than the manifest says."""
    if group.index >= footer.num_row_groups:
        found = f"the file has {footer.num_row_groups} row groups"
    elif (held := _held(footer, group.index)) != (group.users, group.interactions):
        found = f"it holds {held[0]} users and {held[1]} interactions"
    else:
        return
    raise PreparedDataError(
        f"{group.path}: row group {group.index} should hold {group.users} users and {group.interactions} interactions "
        f"by the manifest, but {found}{PREPARE_AGAIN}"
    )


def _held(footer: pq.FileMetaData, index: int) -> tuple[int, int]:
    """Users and interactions of a row group."""
    group = footer.row_group(index)
    columns = [group.column(number) for number in range(group.num_columns)]
    items = next((column for column in columns if column.path_in_schema.split(".")[0] == "items"), None)
    return group.num_rows, items.num_values if items is not None else 0


def _read(file: Place, indices: Sequence[int], footer: pq.FileMetaData, columns: Sequence[str] = COLUMNS) -> pa.Table:
    try:
        return _read_row_groups(file, indices, footer, columns)
    except PreparedDataError as error:
        raise next(_faults(file, indices, footer, columns), error) from None


def _faults(
    file: Place, indices: Sequence[int], footer: pq.FileMetaData, columns: Sequence[str]
) -> Iterator[PreparedDataError]:
    """What is wrong with each of these row groups by itself."""
    for index in indices:
        try:
            _read_row_groups(file, [index], footer, columns)
        except PreparedDataError as error:
            yield error


def _read_row_groups(file: Place, indices: Sequence[int], footer: pq.FileMetaData, columns: Sequence[str]) -> pa.Table:
    settings = {"metadata": footer, "pre_buffer": True, "page_checksum_verification": True}
    part = f"row group {', '.join(map(str, indices))}"
    with whole(file, part), pq.ParquetFile(file.path, filesystem=file.filesystem, **settings) as opened:
        table = opened.read_row_groups(indices, columns=list(columns))
    users, interactions = np.sum([_held(footer, index) for index in indices], axis=0).tolist()
    if not table.schema.equals(pa.schema([HISTORY_SCHEMA.field(name) for name in columns])):
        raise PreparedDataError(f"{file}: {part} holds other columns than histories have{PREPARE_AGAIN}")
    read = [len(table), *(int(pc.sum(pc.list_value_length(table[name])).as_py() or 0) for name in COLUMNS[1:])]
    if read != [users, interactions, interactions]:
        raise PreparedDataError(f"{file}: {part} is damaged (its pages hold less than its footer says){PREPARE_AGAIN}")
    return table
