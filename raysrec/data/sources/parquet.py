"""Parquet as interactions: ids of text or integers, times of any kind; an interaction or a user with lists a row."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysrec.data.arrays import IntArray
from raysrec.data.sources.files import SourceError, SourceFile, file_in_words
from raysrec.data.sources.formats import Layout
from raysrec.data.sources.interactions import (
    PER_SECOND,
    Part,
    dates_as_seconds,
    fault_of_columns,
    floor_times,
    keep_rows,
)
from raysrec.errors import ReadableError


def read_parquet(file: SourceFile, layout: Layout) -> Part:
    """Every row of a Parquet file that meets the layout's conditions, in order.

    Where items and times are lists, a row is a user with all their interactions.

    Raises:
        SourceError: The file is missing or no Parquet, a column is missing or of another kind, an id is empty, or a
            time is no number.
    """
    raw = _columns(file, list(dict.fromkeys([*layout.columns, *dict(layout.where)])))
    where = {name: raw.column(name) for name in dict(layout.where)}
    kept = keep_rows(raw.select(list(layout.columns)), where, dict(layout.where))
    lengths = None
    try:
        lengths = _lengths(kept)
        flat = kept if lengths is None else _one_a_row(kept, lengths)
        users, items = (_text_ids(flat.column(name), f"column {name}") for name in layout.columns[:2])
        time = layout.columns[2]
        times, floored_times = _whole_times(flat.column(time), f"column {time}", layout.unit)
    except _Fault as fault:
        if fault.position is None:
            raise SourceError(f"{file}: {fault}") from None
        numbers = pa.table({"row": np.arange(1, len(raw) + 1)})
        rows = keep_rows(numbers, where, dict(layout.where)).column("row").to_numpy()
        row = _rows_before(file) + (rows if lengths is None else np.repeat(rows, lengths))[fault.position]
        raise SourceError(f"{file}: {fault} (row {row})") from None
    except pa.ArrowException as error:
        raise SourceError(f"{file}: {error}") from error
    return Part(pa.table({"user": users, "item": items, "time": times}), floored_times, len(raw) - len(kept))


class _Fault(Exception):
    """What is wrong with a column, in words, and the place at which it is, if it is one value."""

    def __init__(self, words: str, position: int | None = None) -> None:
        super().__init__(words)
        self.position = position


def _columns(file: SourceFile, names: list[str]) -> pa.Table:
    with file_in_words(file):
        try:
            remote = not file.place.is_local
            opened = pq.ParquetFile(file.path, filesystem=file.filesystem, pre_buffer=remote)
            present = opened.schema_arrow.names
            fault = fault_of_columns(names, present)
            if fault:
                raise SourceError(f"{file}: {fault}")
            twice = next((name for name in names if present.count(name) > 1), None)
            if twice:
                raise SourceError(f"{file}: there are several columns {twice}; rename all but one")
            return opened.read_row_groups(file.row_groups or range(opened.num_row_groups), columns=names).select(names)
        except ReadableError:
            raise
        # A ValueError is of a library that gives a column a type of its own and refuses what stands there for it.
        except (pa.ArrowException, ValueError) as error:
            raise SourceError(f"{file}: is no whole Parquet file ({error})") from error


def _rows_before(file: SourceFile) -> int:
    """Rows of the file above those of this block of it."""
    groups = range(file.row_groups.start if file.row_groups else 0)
    footer = pq.read_metadata(file.path, filesystem=file.filesystem)
    return sum(footer.row_group(group).num_rows for group in groups)


def _lengths(raw: pa.Table) -> IntArray | None:
    """How many interactions each row holds, where it holds lists of them."""
    _, item, time = raw.columns
    if not (_is_list(item.type) and _is_list(time.type)):
        return None
    for name, column in zip(raw.column_names, raw.columns, strict=True):
        _refuse(column.is_null(), f"column {name} is empty; fill it in or delete the row")
    lengths: IntArray = pc.list_value_length(item).to_numpy().astype(np.int64)
    unequal = pa.chunked_array([lengths != pc.list_value_length(time).to_numpy()])
    _refuse(unequal, f"column {raw.column_names[2]} has not as many values as column {raw.column_names[1]}")
    return lengths


def _one_a_row(raw: pa.Table, lengths: IntArray) -> pa.Table:
    """Users, items and times with one interaction a row, where a row holds lists of them."""
    user, item, time = raw.columns
    rows = pa.array(np.repeat(np.arange(len(raw)), lengths))
    return pa.table([user.take(rows), pc.list_flatten(item), pc.list_flatten(time)], raw.column_names)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _text_ids(column: pa.ChunkedArray, what: str) -> pa.ChunkedArray:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise _Fault(f"{what} is {column.type}, expected text or integers; store ids as text")
    text = column.cast(kind).cast(pa.string())
    _refuse(pc.fill_null(pc.equal(text, ""), True), f"{what} is empty, expected an id; fill it in or delete the row")
    ids = text.dictionary_encode()
    for chunk in ids.chunks:
        chunk.dictionary.validate(full=True)  # is it UTF-8?
    return ids


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
            raise _Fault(f"{what} is {kind}, expected dates, timestamps or text such as 2005-09-06")
        try:
            return dates_as_seconds(column.cast(pa.string()))
        except pa.ArrowInvalid as error:
            raise _Fault(f"{what} holds no date such as 2005-09-06 ({error}); fix or delete the row") from None
    if pa.types.is_floating(kind):
        _refuse(pc.invert(pc.is_finite(column)), f"{what} is not finite, expected a number; fix or delete the row")
    elif not pa.types.is_integer(kind) and not pa.types.is_decimal(kind):
        raise _Fault(f"{what} is {kind}, expected numbers or timestamps; store Unix seconds")
    try:
        return (column.cast(pa.int64()), 0) if pa.types.is_integer(kind) else floor_times(column)
    except pa.ArrowInvalid as error:
        raise _Fault(f"{what} holds a number which no 64-bit integer holds ({error}); expected Unix time") from None


def _refuse(faulty: pa.ChunkedArray, words: str) -> None:
    position = pc.index(faulty, True).as_py()
    if position >= 0:
        raise _Fault(words, position)
