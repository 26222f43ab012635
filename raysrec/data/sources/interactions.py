"""Interactions: what every reader of a source gives, whatever its format; one table of (user, item, time).

Ids are text exactly as it stands in the source, times are whole seconds (or the thousandths or millionths that the
source counts), and rows stay in the order of the source.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysrec.errors import did_you_mean

ID = pa.dictionary(pa.int32(), pa.string())
INTERACTIONS_SCHEMA = pa.schema({"user": ID, "item": ID, "time": pa.int64()})

PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "date": 1}
"""What a source's times count, by `data.time_unit`: so many of them are a second."""


Precision = Literal["whole", "float32"]
"""How exactly times are known, as `data.time_precision`."""


def time_rule(per_second: int, precision: Precision = "whole") -> str:
    """How times are read, in words, where the source counts so many to a second."""
    finer = f"; ordered by the source's 1/{per_second:,} of a second" if per_second > 1 else ""
    coarser = "; known as a float32 of what the source counts" if precision == "float32" else ""
    return f"seconds as int64; fractions are rounded down{finer}{coarser}"


@dataclass(frozen=True)
class Part:
    """What a reader makes of one file."""

    table: pa.Table
    """Columns `user` and `item` (dictionaries of text) and `time` (int64); rows in the order of the file."""
    floored_times: int
    """Times that had a fraction, which was dropped (towards the past)."""
    left_out: int = 0
    """Rows that do not read as `data.where` wants."""


@dataclass(frozen=True)
class Interactions:
    """Who had what when, in the order of the source."""

    table: pa.Table
    """Columns `user` and `item` (dictionaries of text, one chunk), and `time` (int64)."""
    floored_times: int
    """Times that had a fraction, which was dropped (towards the past)."""
    per_second: int = 1
    """How much of `time` is a second."""
    left_out: int = 0
    """Rows of the source that do not read as `data.where` wants."""

    @classmethod
    def of(cls, table: pa.Table, floored_times: int, per_second: int = 1, left_out: int = 0) -> "Interactions":
        """Of a table in any chunks; ids are encoded in one chunk each, so that equal ids have equal codes."""
        columns = {
            name: _one_dictionary(table.column(name)) if name != "time" else table.column(name).combine_chunks()
            for name in INTERACTIONS_SCHEMA.names
        }
        return cls(pa.table(columns), floored_times, per_second, left_out)


def floor_times(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, int]:
    """Times as whole numbers, and how many of them were rounded down."""
    whole = pc.floor(column)
    floored = pc.sum(pc.not_equal(whole, column)).as_py() or 0
    return whole.cast(pa.int64()), floored


def known_to(precision: Precision, table: pa.Table) -> pa.Table:
    """Interactions with their times as exact as that."""
    if precision == "whole":
        return table
    times = pc.cast(pc.cast(table.column("time"), pa.float32(), safe=False), pa.int64())
    return table.set_column(table.column_names.index("time"), "time", times)


def dates_as_seconds(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, int]:
    """Unix seconds of dates as text, in UTC unless they name a zone, and how many had a fraction of a second.

    Raises:
        pa.ArrowInvalid: One is no date such as `2005-09-06`, `2005-09-06 12:30:00` or `2005-09-06T12:30:00.5Z`.
    """
    try:
        return column.cast(pa.timestamp("s")).cast(pa.int64()), 0
    except pa.ArrowInvalid:
        zoned = pc.match_substring_regex(column, r":.*(Z|[+-]\d\d:?\d\d)$")
        nothing = pa.scalar(None, pa.string())
        with_zone = pc.if_else(zoned, column, nothing).cast(pa.timestamp("us", "UTC")).cast(pa.int64())
        without = pc.if_else(zoned, nothing, column).cast(pa.timestamp("us")).cast(pa.int64())
    whole, rest = np.divmod(pc.coalesce(with_zone, without).to_numpy(), 10**6)
    return pa.chunked_array([whole], pa.int64()), int(np.count_nonzero(rest))


def keep_rows(table: pa.Table, where: Mapping[str, pa.ChunkedArray | pa.Array], wanted: Mapping[str, str]) -> pa.Table:
    """The rows in which each column of `where` reads as `wanted` says, once it is written as text."""
    mask = None
    for name, column in where.items():
        here = pc.fill_null(_reads(column, wanted[name]), False)
        mask = here if mask is None else pc.and_(mask, here)
    return table if mask is None else table.filter(mask)


def has_empty(ids: pa.ChunkedArray) -> bool:
    """Is there an empty id? Looked up in the dictionaries, not in the rows."""
    return any(pc.index(chunk.dictionary, "").as_py() >= 0 for chunk in ids.chunks)


def _reads(column: pa.ChunkedArray, text: str) -> pa.ChunkedArray:
    if pa.types.is_floating(column.type):  # 3 and 3.0 are one number
        number = re.fullmatch(r"[+-]?\d+(\.\d*)?", text)
        return pc.equal(column, float(text) if number else None)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return pc.equal(column.cast(pa.string()), text)


def fault_of_columns(wanted: Iterable[str], present: Iterable[str]) -> str | None:
    """Which of the wanted columns a source does not have, in words; None if it has them all."""
    present = list(present)
    missing = [name for name in wanted if name not in present]
    if not missing:
        return None
    return f"there is no column {missing[0]}, only {', '.join(present)}{did_you_mean(missing[0], present)}"


def _one_dictionary(column: pa.ChunkedArray) -> pa.Array:
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    return column.unify_dictionaries().combine_chunks()
