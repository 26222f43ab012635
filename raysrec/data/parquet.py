"""Parquet as interactions: ids of text or integers, times of any kind that counts seconds."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from raysrec.data.files import SourceError, in_words
from raysrec.data.interactions import Interactions, fault_of_columns, floor_times


def read_parquet(
    source: str, filesystem: fs.FileSystem, paths: list[str], columns: tuple[str, str, str]
) -> Interactions:
    """Every row of these files in order.

    Args:
        source: What they are together, as a message calls it.
        filesystem: Where they lie.
        paths: Each file.
        columns: Names of the columns of users, items and times.

    Raises:
        SourceError: A file is missing or no Parquet, a column is missing or of another kind, an id is empty, a time is
            no number, or there are no rows.
    """
    parts = [_read_file(filesystem, path, columns) for path in paths]
    table = pa.concat_tables([table for table, _ in parts])
    if not len(table):
        raise SourceError(f"{source}: has no interactions")
    return Interactions.of(table, sum(floored for _, floored in parts))


def _read_file(filesystem: fs.FileSystem, path: str, columns: tuple[str, str, str]) -> tuple[pa.Table, int]:
    names = list(columns)
    with in_words(path):
        try:
            present = pq.read_schema(path, filesystem=filesystem).names
            fault = fault_of_columns(names, present)
            if fault:
                raise SourceError(f"{path}: {fault}")
            raw = pq.ParquetFile(path, filesystem=filesystem).read(columns=names).select(names)
        except pa.ArrowInvalid as error:
            raise SourceError(f"{path}: is no whole Parquet file ({error})") from error
    users, items = (_text_ids(raw.column(name), f"{path}: column {name}") for name in names[:2])
    times, floored_times = _whole_times(raw.column(names[2]), f"{path}: column {names[2]}")
    return pa.table({"user": users, "item": items, "time": times}), floored_times


def _text_ids(column: pa.ChunkedArray, what: str) -> pa.ChunkedArray:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise SourceError(f"{what} is {column.type}, expected text or integers; store ids as text")
    text = column.cast(kind).cast(pa.string())
    _refuse(pc.fill_null(pc.equal(text, ""), True), f"{what} is empty, expected an id; fill it in or delete the row")
    return text.dictionary_encode()


def _whole_times(column: pa.ChunkedArray, what: str) -> tuple[pa.ChunkedArray, int]:
    """Times as whole seconds, and how many of them were rounded down."""
    kind = column.type
    _refuse(column.is_null(), f"{what} is empty, expected a number; fill it in or delete the row")
    if pa.types.is_timestamp(kind):
        whole, rest = np.divmod(
            column.cast(pa.int64()).to_numpy(), {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[kind.unit]
        )
        return pa.chunked_array([whole], pa.int64()), int(np.count_nonzero(rest))
    if pa.types.is_floating(kind):
        _refuse(pc.invert(pc.is_finite(column)), f"{what} is not finite, expected a number; mend or delete the row")
    elif not pa.types.is_integer(kind) and not pa.types.is_decimal(kind):
        raise SourceError(f"{what} is {kind}, expected numbers or timestamps; store Unix seconds")
    try:
        return (column.cast(pa.int64()), 0) if pa.types.is_integer(kind) else floor_times(column)
    except pa.ArrowInvalid as error:
        raise SourceError(
            f"{what} holds a number which no 64-bit integer holds ({error}); expected Unix seconds"
        ) from None


def _refuse(faulty: pa.ChunkedArray, message: str) -> None:
    row = pc.index(faulty, True).as_py()
    if row >= 0:
        raise SourceError(f"{message} (row {row + 1})")
