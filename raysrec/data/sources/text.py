"""Delimited text as interactions, and errors that name the line.

Text is read by Arrow; only when that fails is the file read a second time, line by line, to say where and why.
"""

import csv
import io
import itertools
import re
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from raysrec.data.sources.files import NoInteractions, SourceError, SourceFile, file_in_words
from raysrec.data.sources.formats import Layout
from raysrec.data.sources.interactions import (
    ID,
    Part,
    dates_as_seconds,
    fault_of_columns,
    floor_times,
    has_empty,
    keep_rows,
)

BLOCK_BYTES = 1 << 23
"""What Arrow reads at once; each block has its own dictionary of ids, so small blocks cost memory."""

EXACT = pa.decimal128(38, 18)
"""Holds every int64 and 18 digits after the point; a float would make neighbours beyond 2**53 equal."""


def read_text(file: SourceFile, layout: Layout) -> Part:
    """Every line of a text file that is not empty and meets the layout's conditions, in order.

    Raises:
        SourceError: The file is missing, empty, cut otherwise than its layout says, or holds an empty id or a time that
            is no number (or no date, where the layout has dates).
    """
    with file_in_words(file):
        names = layout.names or _header(file.whole, layout)
    fault = fault_of_columns([*layout.columns, *dict(layout.where)], names)
    if fault:
        raise SourceError(f"{file}: line 1: {fault}")
    try:
        with file_in_words(file):
            part = _read_with_arrow(file, layout, names)
    except pa.ArrowInvalid as error:
        _raise_first_fault(file, layout, names)
        raise SourceError(f"{file}: {error}") from error
    table = part.table
    empty = table.column("time").null_count or any(has_empty(table.column(name)) for name in ("user", "item"))
    if empty or not (len(table) or layout.where):
        _raise_first_fault(file, layout, names)
    return part


def _read_with_arrow(file: SourceFile, layout: Layout, names: tuple[str, ...]) -> Part:
    """The three columns; times are read as text only if one is no whole number."""
    if layout.unit == "date":
        table, left_out = _arrow_table(file, layout, names, pa.string())
        times, floored_times = dates_as_seconds(table.column("time"))
    else:
        try:
            table, left_out = _arrow_table(file, layout, names, pa.int64())
            return Part(table, 0, left_out)
        except pa.ArrowInvalid:
            table, left_out = _arrow_table(file, layout, names, EXACT)
        times, floored_times = floor_times(table.column("time"))
    return Part(table.set_column(2, "time", times), floored_times, left_out)


def _arrow_table(
    file: SourceFile, layout: Layout, names: tuple[str, ...], time_type: pa.DataType
) -> tuple[pa.Table, int]:
    """The three columns, and how many rows the layout's conditions left out."""
    # Arrow cuts at one character. Between the two of `::` it finds a column more, which must be empty throughout.
    doubled = len(layout.separator) == 2
    gaps = [f"\0{place}" for place in range(len(names) - 1)] if doubled else []
    all_names = [name for pair in itertools.zip_longest(names, gaps) for name in pair if name is not None]
    where = dict(layout.where)
    types = dict.fromkeys(where, pa.string()) | dict(zip(layout.columns, (ID, ID, time_type), strict=True))
    types |= dict.fromkeys(gaps, pa.null())
    with file.open() as stream:
        counted = _CountedLines(stream)
        table = pacsv.read_csv(
            pa.PythonFile(counted, "r") if layout.quoted else stream,
            read_options=pacsv.ReadOptions(
                column_names=all_names, skip_rows=_header_lines(file, layout), block_size=BLOCK_BYTES
            ),
            parse_options=pacsv.ParseOptions(delimiter=layout.separator[0], quote_char='"' if layout.quoted else False),
            convert_options=pacsv.ConvertOptions(
                column_types=types,
                include_columns=list(dict.fromkeys([*layout.columns, *where, *gaps])),
                null_values=[""],
                strings_can_be_null=False,
            ),
        )
    if layout.quoted and len(table) != counted.lines - _header_lines(file, layout):
        raise pa.ArrowInvalid(_OPEN_QUOTE)
    kept = keep_rows(table.select(list(layout.columns)), {name: table.column(name) for name in where}, where)
    return kept.rename_columns(["user", "item", "time"]), len(table) - len(kept)


def _header_lines(file: SourceFile, layout: Layout) -> int:
    return 0 if layout.names or not file.is_beginning else 1


def _header(file: SourceFile, layout: Layout) -> tuple[str, ...]:
    line = next(numbered_lines(file), (1, b""))[1]
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SourceError(f"{file}: line 1: is not UTF-8; {_SAVE_AS_UTF8}") from None
    if not text:
        raise SourceError(f"{file}: line 1: is empty; expected a header with {', '.join(layout.columns)}")
    try:
        names = layout.split(text)
    except csv.Error as error:
        raise SourceError(f"{file}: line 1: is no header ({error}): {text[:80]!r}") from None
    return tuple(name.partition(":")[0] if layout.typed else name for name in names)


def _raise_first_fault(file: SourceFile, layout: Layout, names: tuple[str, ...]) -> None:
    """Raise about the first line that is wrong, or about there being none, if reading line by line finds that."""
    places = [names.index(column) for column in layout.columns]
    found = 0
    for number, line in itertools.islice(numbered_lines(file), _header_lines(file, layout), None):
        fault = _fault_of_line(line, layout, names, places) if line else None
        if fault:
            raise SourceError(f"{file}: line {number}: {fault}")
        found += bool(line)
    if not found:
        raise NoInteractions(f"{file}: has no interactions; expected one a line, separated by {layout.separator!r}")


def _fault_of_line(line: bytes, layout: Layout, names: tuple[str, ...], places: list[int]) -> str | None:
    try:
        fields = layout.split(line.decode() + "\n")
    except UnicodeDecodeError:
        return f"is not UTF-8: {line[:80]!r}; {_SAVE_AS_UTF8}"
    except csv.Error as error:
        return f"cannot be cut into fields ({error}): {line.decode()[:80]!r}; fix or delete the line"
    if layout.quoted and fields[-1].endswith("\n"):
        return f"{_OPEN_QUOTE}: {line.decode()[:80]!r}; fix or delete the line"
    fields[-1] = fields[-1].removesuffix("\n")
    if len(fields) != len(names):
        return (
            f"has {len(fields)} fields, expected {len(names)} ({', '.join(names)}) separated by {layout.separator!r}: "
            f"{line.decode()[:80]!r}; fix or delete the line"
        )
    for place in places[:2]:
        if not fields[place]:
            return f"column {names[place]} is empty, expected an id; fill it in or delete the line"
    fault = fault_of_time(fields[places[2]].strip(), layout.unit)
    return fault and f"column {names[places[2]]} is {fault}"


def fault_of_time(text: str, unit: str) -> str | None:
    """What is wrong with a time as it stands in the source, in words; None if nothing is."""
    if unit == "date":
        return _fault_of_date(text)
    advice = "expected a number such as 978300760; fix or delete the line"
    if not text:
        return f"empty, {advice}"
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?", text, re.ASCII):
        return f"{text[:40]!r}, {advice}"
    value = Decimal(text)
    if not -(2**63) <= value < 2**63:
        return f"{text[:40]}, which no 64-bit integer holds; expected Unix time"
    if value.as_tuple().exponent < -18:  # type: ignore[operator]  # finite, so no letter
        return f"{text[:40]}, with more than 18 digits after the point; expected Unix time"
    return None


def _fault_of_date(text: str) -> str | None:
    advice = "expected a date such as 2005-09-06 or 2005-09-06 12:30:00; fix or delete the line"
    if not text:
        return f"empty, {advice}"
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return f"{text[:40]!r}, {advice}"
    return None if re.match(r"\d{4}-\d\d-\d\d($|[ T])", text) else f"{text[:40]!r}, {advice}"


class _CountedLines:
    """A stream whose lines are counted while they are read: Arrow takes two for one where a quote is left open."""

    def __init__(self, stream: pa.NativeFile) -> None:
        self.lines = 0
        """Lines met that are not empty."""
        self.closed = False
        self._stream = stream
        self._at_start = True

    def read(self, size: int) -> bytes:
        """The next bytes."""
        block: bytes = self._stream.read(size)
        characters = np.frombuffer(block, np.uint8)
        ends = (characters == ord("\n")) | (characters == ord("\r"))
        if len(ends):
            self.lines += int(np.count_nonzero(~ends[1:] & ends[:-1])) + int(self._at_start and not ends[0])
            self._at_start = bool(ends[-1])
        return block

    def close(self) -> None:
        """What is read is closed by who opened it."""
        self.closed = True


def numbered_lines(file: SourceFile) -> Iterator[tuple[int, bytes]]:
    """Numbered lines without their ends."""
    with file.open() as stream:
        for number, line in enumerate(io.BufferedReader(stream), start=file.lines_before + 1):
            yield number, line.rstrip(b"\r\n")


_OPEN_QUOTE = "a quote is opened and not closed on the line"
_SAVE_AS_UTF8 = "save the file as UTF-8"
