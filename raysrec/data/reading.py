"""Row groups of Parquet, read ahead in a stated order: by Ray Data in a cluster, or directly by pyarrow.

Both readers give the same tables in the same order; the direct one serves tests, benchmarks and debuggers.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysrec.data.catalog import RowGroup

COLUMNS = ["user", "items", "times"]
READ_INTERACTIONS = 1_000_000
"""Interactions that one Ray task reads at least: below this, starting the task costs more than reading."""

READING_CPUS = 0.5
"""What such a task asks Ray for: it mostly waits for storage."""

Reader = Callable[[Sequence[RowGroup]], Iterator[pa.Table]]
"""Reads row groups in the given order and yields one table for each."""


def read_directly(groups: Sequence[RowGroup]) -> Iterator[pa.Table]:
    """One table per row group, read when it is asked for."""
    for group in groups:
        yield _read(str(group.path), group.index)


def read_with_ray(groups: Sequence[RowGroup]) -> Iterator[pa.Table]:
    """One table per row group, read ahead by Ray Data tasks anywhere in the cluster.

    Needs a Ray with CPUs to spare beyond the workers'; `runtime.py` sees to that.
    """
    import ray.data

    units = _units(groups)
    if not units:
        return
    work = [{"paths": [str(g.path) for g in unit], "indices": [g.index for g in unit]} for unit in units]
    tables = ray.data.from_items(work, override_num_blocks=len(work)).map_batches(
        _read_unit, batch_size=None, batch_format="numpy", num_cpus=READING_CPUS
    )
    # The order is part of the result: batches must not depend on which task ends first.
    tables.context.execution_options.preserve_order = True
    tables.context.enable_progress_bars = False
    for block in tables.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2):
        yield from _split(block)


def _units(groups: Sequence[RowGroup]) -> list[list[RowGroup]]:
    """Consecutive row groups that one task reads together."""
    units: list[list[RowGroup]] = []
    held = READ_INTERACTIONS
    for group in groups:
        if held >= READ_INTERACTIONS:
            units.append([])
            held = 0
        units[-1].append(group)
        held += group.interactions
    return units


def _read_unit(batch: dict[str, np.ndarray]) -> pa.Table:
    tables = []
    for paths, indices in zip(batch["paths"], batch["indices"], strict=True):
        for place, (path, index) in enumerate(zip(paths, indices, strict=True)):
            table = _read(str(path), int(index))
            tables.append(table.append_column("place", pa.array(np.full(len(table), place, dtype=np.int32))))
    return pa.concat_tables(tables).combine_chunks()


def _split(block: pa.Table) -> Iterator[pa.Table]:
    places = block.column("place").to_numpy()
    starts = [0, *(np.flatnonzero(np.diff(places)) + 1).tolist(), len(places)]
    for start, stop in pairwise(starts):
        yield block.slice(start, stop - start).select(COLUMNS)


def _read(path: str, index: int) -> pa.Table:
    with pq.ParquetFile(path) as file:
        return file.read_row_group(index, columns=COLUMNS)
