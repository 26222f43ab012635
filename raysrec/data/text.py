"""Delimited text as interactions, and errors that name the line.

Text is read by Arrow; only when that fails is the file read a second time, line by line, to say where and why.
"""

import csv
import io
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from raysrec.data.files import SourceError, in_words, open_file
from raysrec.data.interactions import ID, Interactions, fault_of_columns, floor_times

EXACT = pa.decimal128(38, 18)
"""Holds every int64 and 18 digits after the point; a float would make neighbours beyond 2**53 equal."""


@dataclass(frozen=True)
class Layout:
    """How the lines of a text format are cut, and where its three columns stand."""

    separator: str
    """What stands between two fields."""
    quoted: bool
    """May a field stand in double quotes?"""
    columns: tuple[str, str, str]
    """Names of the columns of users, items and times."""
    names: tuple[str, ...] = ()
    """Names of all columns where the file has no header line."""
    typed: bool = False
    """Does the header write `name:type`?"""

    def split(self, line: str) -> list[str]:
        """The fields of a line."""
        if self.quoted and len(self.separator) == 1:
            return next(csv.reader([line], delimiter=self.separator), [])
        return line.split(self.separator)


def read_text(source: str, layout: Layout) -> Interactions:
    """Every line of a text file that is not empty, in order.

    Raises:
        SourceError: The file is missing, empty, cut otherwise than its layout says, or holds an empty id or a time that
            is no number.
    """
    with in_words(source):
        names = layout.names or _header(source, layout)
    fault = fault_of_columns(layout.columns, names)
    if fault:
        raise SourceError(f"{source}: line 1: {fault}")
    try:
        with in_words(source):
            table, floored_times = _read_with_arrow(source, layout, names)
    except pa.ArrowInvalid as error:
        _raise_first_fault(source, layout, names)
        raise SourceError(f"{source}: {error}") from error
    if not len(table) or _faulty(table):
        _raise_first_fault(source, layout, names)
    return Interactions.of(table, floored_times)


def _read_with_arrow(source: str, layout: Layout, names: tuple[str, ...]) -> tuple[pa.Table, int]:
    """The three columns and how many times were rounded down; times are read as text only if one is no whole number."""
    try:
        return _arrow_table(source, layout, names, pa.int64()), 0
    except pa.ArrowInvalid:
        table = _arrow_table(source, layout, names, EXACT)
    times, floored_times = floor_times(table.column("time"))
    return table.set_column(2, "time", times), floored_times


def _arrow_table(source: str, layout: Layout, names: tuple[str, ...], time_type: pa.DataType) -> pa.Table:
    # Arrow cuts at one character. Between the two of `::` it finds a column more, which must be empty throughout.
    doubled = len(layout.separator) == 2
    gaps = [f"\0{place}" for place in range(len(names) - 1)] if doubled else []
    all_names = [name for pair in itertools.zip_longest(names, gaps) for name in pair if name is not None]
    types = dict(zip(layout.columns, (ID, ID, time_type), strict=True)) | dict.fromkeys(gaps, pa.null())
    with open_file(source) as stream:
        table = pacsv.read_csv(
            stream,
            read_options=pacsv.ReadOptions(column_names=all_names, skip_rows=0 if layout.names else 1),
            parse_options=pacsv.ParseOptions(delimiter=layout.separator[0], quote_char='"' if layout.quoted else False),
            convert_options=pacsv.ConvertOptions(
                column_types=types,
                include_columns=[*layout.columns, *gaps],
                null_values=[""],
                strings_can_be_null=False,
            ),
        )
    return table.select(list(layout.columns)).rename_columns(["user", "item", "time"])


def _header(source: str, layout: Layout) -> tuple[str, ...]:
    line = next(_lines(source), (1, b""))[1]
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SourceError(f"{source}: line 1: is not UTF-8; {_SAVE_AS_UTF8}") from None
    if not text:
        raise SourceError(f"{source}: line 1: is empty; expected a header with {', '.join(layout.columns)}")
    names = layout.split(text)
    return tuple(name.partition(":")[0] if layout.typed else name for name in names)


def _faulty(table: pa.Table) -> bool:
    """Is there an empty id or time? Looked up in the dictionaries, not in the rows."""
    empty = (
        pc.any(pc.equal(chunk.dictionary, "")).as_py() for name in ("user", "item") for chunk in table[name].chunks
    )
    return bool(table.column("time").null_count) or any(empty)


def _raise_first_fault(source: str, layout: Layout, names: tuple[str, ...]) -> None:
    """Raise about the first line that is wrong, or about there being none, if reading line by line finds that."""
    places = [names.index(column) for column in layout.columns]
    found = 0
    for number, line in itertools.islice(_lines(source), 0 if layout.names else 1, None):
        fault = _fault_of_line(line, layout, names, places) if line else None
        if fault:
            raise SourceError(f"{source}: line {number}: {fault}")
        found += bool(line)
    if not found:
        raise SourceError(f"{source}: has no interactions; expected one a line, separated by {layout.separator!r}")


def _fault_of_line(line: bytes, layout: Layout, names: tuple[str, ...], places: list[int]) -> str | None:
    try:
        fields = layout.split(line.decode())
    except UnicodeDecodeError:
        return f"is not UTF-8: {line[:80]!r}; {_SAVE_AS_UTF8}"
    if len(fields) != len(names):
        return (
            f"has {len(fields)} fields, expected {len(names)} ({', '.join(names)}) separated by {layout.separator!r}: "
            f"{line.decode()[:80]!r}; mend or delete the line"
        )
    for place in places[:2]:
        if not fields[place]:
            return f"column {names[place]} is empty, expected an id; fill it in or delete the line"
    fault = _fault_of_time(fields[places[2]].strip())
    return fault and f"column {names[places[2]]} is {fault}"


def _fault_of_time(text: str) -> str | None:
    advice = "expected a number such as 978300760; mend or delete the line"
    if not text:
        return f"empty, {advice}"
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?", text, re.ASCII):
        return f"{text[:40]!r}, {advice}"
    value = Decimal(text)
    if not -(2**63) <= value < 2**63:
        return f"{text[:40]}, which no 64-bit integer holds; expected Unix seconds"
    if value.as_tuple().exponent < -18:  # type: ignore[operator]  # finite, so no letter
        return f"{text[:40]}, with more than 18 digits after the point; expected Unix seconds"
    return None


def _lines(source: str) -> Iterator[tuple[int, bytes]]:
    """Numbered lines without their ends."""
    with open_file(source) as stream:
        for number, line in enumerate(io.BufferedReader(stream), start=1):
            yield number, line.rstrip(b"\r\n")


_SAVE_AS_UTF8 = "save the file as UTF-8"
