"""Parquet as interactions: ids of text or integers, times of any kind; an interaction or a user with lists a row."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysrec.data.files import SourceError, SourceFile, in_words
from raysrec.data.formats import Layout
from raysrec.data.interactions import PER_SECOND, dates_as_seconds, fault_of_columns, floor_times, keep_rows


def read_parquet(file: SourceFile, layout: Layout) -> tuple[pa.Table, int]:
    """Every row of a Parquet file that meets the layout's conditions, in order.

    Where items and times are lists, a row is a user with all their interactions.

    Returns:
        Columns `user`, `item` (dictionaries of text) and `time` (int64); how many times were rounded down.

    Raises:
        SourceError: The file is missing or no Parquet, a column is missing or of another kind, an id is empty, or a
            time is no number.
    """
    names = list(dict.fromkeys([*layout.columns, *dict(layout.where)]))
    with in_words(file):
        try:
            with pq.ParquetFile(file.path, filesystem=file.filesystem, pre_buffer=not file.place.is_local) as opened:
                fault = fault_of_columns(names, opened.schema_arrow.names)
                if fault:
                    raise SourceError(f"{file}: {fault}")
                raw = opened.read(columns=names)
        except pa.ArrowInvalid as error:
            raise SourceError(f"{file}: is no whole Parquet file ({error})") from error
    where = {name: raw.column(name) for name in dict(layout.where)}
    raw = _one_a_row(keep_rows(raw.select(list(layout.columns)), where, dict(layout.where)), file)
    users, items = (_text_ids(raw.column(place), f"{file}: column {layout.columns[place]}") for place in (0, 1))
    times, floored_times = _whole_times(raw.column(2), f"{file}: column {layout.columns[2]}", layout.unit)
    return pa.table({"user": users, "item": items, "time": times}), floored_times


def _one_a_row(raw: pa.Table, file: SourceFile) -> pa.Table:
    """Users, items and times with one interaction a row, where a row may hold lists of them."""
    user, item, time = raw.columns
    if not (_is_list(item.type) and _is_list(time.type)):
        return raw
    lengths = pc.fill_null(pc.list_value_length(item), 0).to_numpy()
    if not np.array_equal(lengths, pc.fill_null(pc.list_value_length(time), 0).to_numpy()):
        raise SourceError(f"{file}: a row has not as many {raw.column_names[2]} as {raw.column_names[1]}")
    rows = pa.array(np.repeat(np.arange(len(raw)), lengths))
    return pa.table([user.take(rows), pc.list_flatten(item), pc.list_flatten(time)], raw.column_names)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _text_ids(column: pa.ChunkedArray, what: str) -> pa.ChunkedArray:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise SourceError(f"{what} is {column.type}, expected text or integers; store ids as text")
    text = column.cast(kind).cast(pa.string())
    _refuse(pc.fill_null(pc.equal(text, ""), True), f"{what} is empty, expected an id; fill it in or delete the row")
    return text.dictionary_encode()


def _whole_times(column: pa.ChunkedArray, what: str, unit: str) -> tuple[pa.ChunkedArray, int]:
    """Times as whole numbers of this unit, and how many of them were rounded down."""
    kind = column.type
    _refuse(column.is_null(), f"{what} is empty, expected a number; fill it in or delete the row")
    if pa.types.is_timestamp(kind):
        per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[kind.unit]
        divisor = max(per_second // PER_SECOND[unit], 1)
        factor = max(PER_SECOND[unit] // per_second, 1)
        whole, rest = np.divmod(column.cast(pa.int64()).to_numpy() * factor, divisor)
        return pa.chunked_array([whole], pa.int64()), int(np.count_nonzero(rest))
    if pa.types.is_date(kind):
        days = column.cast(pa.date32()).cast(pa.int32()).to_numpy()
        return pa.chunked_array([days.astype(np.int64) * 86_400 * PER_SECOND[unit]], pa.int64()), 0
    if unit == "date":
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise SourceError(f"{what} is {kind}, expected dates, timestamps or text such as 2005-09-06")
        try:
            return dates_as_seconds(column.cast(pa.string()))
        except pa.ArrowInvalid as error:
            raise SourceError(f"{what} holds no date such as 2005-09-06 ({error}); mend or delete the row") from None
    if pa.types.is_floating(kind):
        _refuse(pc.invert(pc.is_finite(column)), f"{what} is not finite, expected a number; mend or delete the row")
    elif not pa.types.is_integer(kind) and not pa.types.is_decimal(kind):
        raise SourceError(f"{what} is {kind}, expected numbers or timestamps; store Unix seconds")
    try:
        return (column.cast(pa.int64()), 0) if pa.types.is_integer(kind) else floor_times(column)
    except pa.ArrowInvalid as error:
        raise SourceError(
            f"{what} holds a number which no 64-bit integer holds ({error}); expected Unix time"
        ) from None


def _refuse(faulty: pa.ChunkedArray, message: str) -> None:
    row = pc.index(faulty, True).as_py()
    if row >= 0:
        raise SourceError(f"{message} (row {row + 1})")
