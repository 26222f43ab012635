"""Histories of prepared data in memory, as their row groups hold them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raysrec.data.arrays import IntArray


@dataclass(frozen=True)
class Histories:
    """Whole histories, one after the other in flat arrays; history i is positions offsets[i]..offsets[i+1]-1."""

    users: IntArray
    offsets: IntArray
    items: IntArray
    times: IntArray

    @property
    def lengths(self) -> IntArray:
        """Interactions of each history."""
        return np.diff(self.offsets)

    def between(self, first: int, last: int) -> "Histories":
        """The histories at the places `first` to `last` - 1, or to the end if there are fewer."""
        offsets = self.offsets[first : last + 1]
        flat = slice(offsets[0], offsets[-1])
        return Histories(self.users[first:last], offsets - offsets[0], self.items[flat], self.times[flat])

    @classmethod
    def of(cls, tables: Sequence[pa.Table]) -> "Histories":
        """Take Arrow's offsets and values as they are; no Python object per row or item is made."""
        table = pa.concat_tables(tables).combine_chunks()
        items, times = (_one_chunk(table.column(name)) for name in ("items", "times"))
        offsets = np.asarray(items.offsets, dtype=np.int64)
        return cls(
            users=_one_chunk(table.column("user")).to_numpy(zero_copy_only=False).astype(np.int64),
            offsets=offsets - offsets[0],
            items=items.flatten().to_numpy(zero_copy_only=False).astype(np.int64),
            times=times.flatten().to_numpy(zero_copy_only=False).astype(np.int64),
        )


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
