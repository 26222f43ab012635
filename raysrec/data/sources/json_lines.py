"""JSON lines as interactions: one object a line, of which three fields are read.

Lines are read by Arrow, a block at a time; only when that fails are they read again, one by one, to say where and why.
"""

import json
from typing import Any

import pyarrow as pa
import pyarrow.json as pajson

from raysrec.data.sources.files import NoInteractions, SourceError, SourceFile, file_in_words
from raysrec.data.sources.formats import Layout
from raysrec.data.sources.interactions import (
    INTERACTIONS_SCHEMA,
    Part,
    dates_as_seconds,
    fault_of_columns,
    floor_times,
    has_empty,
    keep_rows,
)
from raysrec.data.sources.text import EXACT, fault_of_time, numbered_lines

BLOCK_BYTES = 1 << 24
"""What Arrow reads at once; no line may be longer."""


def read_json_lines(file: SourceFile, layout: Layout) -> Part:
    """Every line of a file of JSON lines that meets the layout's conditions, in order.

    An id is text or a whole number, a time a number or text, and each of them the same kind in all lines.

    Raises:
        SourceError: The file is missing or empty, a line is no JSON object (Python's notation of some old files is
            none), or one lacks a field or holds an empty id or a time that is no number.
    """
    with file_in_words(file):
        kinds = _kinds_of_first_line(file.whole, layout)
    try:
        with file_in_words(file):
            try:
                return _read_with_arrow(file, layout, kinds)
            except pa.ArrowInvalid:
                if kinds[layout.columns[2]] != pa.int64():
                    raise
                return _read_with_arrow(file, layout, kinds | {layout.columns[2]: pa.float64()})
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        with file_in_words(file):
            _raise_first_fault(file, layout, kinds)
        raise SourceError(f"{file}: {error}") from error


def _read_with_arrow(file: SourceFile, layout: Layout, kinds: dict[str, pa.DataType]) -> Part:
    options = {
        "read_options": pajson.ReadOptions(block_size=BLOCK_BYTES),
        "parse_options": pajson.ParseOptions(
            explicit_schema=pa.schema(list(kinds.items())), unexpected_field_behavior="ignore"
        ),
    }
    parts, floored_times, rows = [], 0, 0
    with file.open() as stream:
        for batch in pajson.open_json(stream, **options):
            table = pa.Table.from_batches([batch])
            where = {name: table.column(name) for name, _ in layout.where}
            table = keep_rows(table.select(list(layout.columns)), where, dict(layout.where))
            user, item = (_ids(table.column(place)) for place in (0, 1))
            times, floored = _times(table.column(2), layout.unit)
            parts.append(pa.table([user, item, times], INTERACTIONS_SCHEMA))
            floored_times, rows = floored_times + floored, rows + len(batch)
    table = pa.concat_tables(parts)
    return Part(table, floored_times, rows - len(table))


def _ids(column: pa.ChunkedArray) -> pa.ChunkedArray:
    ids = column.cast(pa.string()).dictionary_encode()
    for chunk in ids.chunks:
        chunk.dictionary.validate(full=True)  # is it UTF-8?
    if ids.null_count or has_empty(ids):
        raise pa.ArrowInvalid("an id is empty")
    return ids


def _times(column: pa.ChunkedArray, unit: str) -> tuple[pa.ChunkedArray, int]:
    if column.null_count:
        raise pa.ArrowInvalid("a time is empty")
    if unit == "date":
        return dates_as_seconds(column.cast(pa.string()))
    if not pa.types.is_string(column.type):
        return (column, 0) if pa.types.is_integer(column.type) else floor_times(column)
    try:
        return column.cast(pa.int64()), 0
    except pa.ArrowInvalid:
        return floor_times(column.cast(EXACT))


def _kinds_of_first_line(file: SourceFile, layout: Layout) -> dict[str, pa.DataType]:
    """What kind of value each field is that is read, by the first line that is not empty."""
    for number, line in numbered_lines(file):
        if line.strip():
            row = _object(file, number, line)
            fault = fault_of_columns([*layout.columns, *dict(layout.where)], row)
            if fault:
                raise SourceError(f"{file}: line {number}: {fault}")
            return {name: _kind(row[name]) for name in (*layout.columns, *dict(layout.where))}
    raise NoInteractions(f"{file}: has no interactions; expected a JSON object a line")


def _kind(value: Any) -> pa.DataType:
    if isinstance(value, bool):
        return pa.bool_()
    return {int: pa.int64(), float: pa.float64()}.get(type(value), pa.string())


def _raise_first_fault(file: SourceFile, layout: Layout, kinds: dict[str, pa.DataType]) -> None:
    for number, line in numbered_lines(file):
        if len(line) > BLOCK_BYTES:
            raise SourceError(f"{file}: line {number}: is longer than {BLOCK_BYTES:,} bytes")
        fault = _fault_of_object(_object(file, number, line), layout, kinds) if line.strip() else None
        if fault:
            raise SourceError(f"{file}: line {number}: {fault}")


def _fault_of_object(row: dict[str, Any], layout: Layout, kinds: dict[str, pa.DataType]) -> str | None:
    missing = fault_of_columns(layout.columns, row)
    if missing:
        return missing
    for name in layout.columns[:2]:
        value, kind = row[name], kinds[name]
        if value is None or value == "":
            return f"column {name} is empty, expected an id; fill it in or delete the line"
        expected = {str: pa.string(), int: pa.int64()}.get(type(value))
        if expected is None:
            return f"column {name} is {json.dumps(value)[:40]}, expected text or a whole number"
        if kind != expected:
            return f"column {name} is {json.dumps(value)[:40]}, but the first line has {kind}; make all of one kind"
    time = row[layout.columns[2]]
    if isinstance(time, (bool, list, dict)):
        return f"column {layout.columns[2]} is {json.dumps(time)[:40]}, expected a number such as 978300760"
    fault = fault_of_time("" if time is None else str(time).strip(), layout.unit)
    if not fault and isinstance(time, str) and kinds[layout.columns[2]] != pa.string():
        fault = f"text ({time[:40]!r}), but the first line has a number; make all of one kind"
    return fault and f"column {layout.columns[2]} is {fault}"


def _object(file: SourceFile, number: int, line: bytes) -> dict[str, Any]:
    """A line as an object."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SourceError(
            f"{file}: line {number}: is no JSON ({str(error)[:80]}): {line[:80]!r}; expected an object a line"
        ) from None
    if not isinstance(row, dict):
        raise SourceError(f"{file}: line {number}: is no JSON object: {line[:80]!r}; expected an object a line")
    return row
