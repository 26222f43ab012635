"""Interactions: what every reader of a source gives, whatever its format; one table of (user, item, time).

Ids are text exactly as it stands in the source, times are whole seconds, and rows stay in the order of the source.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

ID = pa.dictionary(pa.int32(), pa.string())
INTERACTIONS_SCHEMA = pa.schema({"user": ID, "item": ID, "time": pa.int64()})

TIME_RULE = "seconds as int64; fractions are rounded down"


@dataclass(frozen=True)
class Interactions:
    """Who had what when, in the order of the source."""

    table: pa.Table
    """Columns `user` and `item` (dictionaries of text, one chunk), and `time` (int64)."""
    floored_times: int
    """Times that had a fraction, which was dropped (towards the past)."""

    @classmethod
    def of(cls, table: pa.Table, floored_times: int) -> "Interactions":
        """Of a table in any chunks; ids are encoded in one chunk each, so that equal ids have equal codes."""
        columns = {
            name: _one_dictionary(table.column(name)) if name != "time" else table.column(name).combine_chunks()
            for name in INTERACTIONS_SCHEMA.names
        }
        return cls(pa.table(columns), floored_times)


def floor_times(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, int]:
    """Times as whole seconds, and how many of them were rounded down."""
    whole = pc.floor(column)
    floored = pc.sum(pc.not_equal(whole, column)).as_py() or 0
    return whole.cast(pa.int64()), floored


def fault_of_columns(wanted: Iterable[str], present: Iterable[str]) -> str | None:
    """Which of the wanted columns a source does not have, in words; None if it has them all."""
    present = list(present)
    missing = [name for name in wanted if name not in present]
    if not missing:
        return None
    near = difflib.get_close_matches(missing[0], present, 1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"there is no column {missing[0]}, only {', '.join(present)}{hint}"


def _one_dictionary(column: pa.ChunkedArray) -> pa.Array:
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    return column.unify_dictionaries().combine_chunks()
