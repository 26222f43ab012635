"""Row groups of Parquet, read ahead in a stated order by Ray Data's tasks, anywhere in a cluster."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysrec.cluster.bundles import reading_options
from raysrec.config import ScaleConfig
from raysrec.data.batching.reading import COLUMNS, check, consecutive, footer_of, read_unit
from raysrec.data.prepared import RowGroup
from raysrec.place import Place

READ_INTERACTIONS = 1_000_000
"""Interactions that one Ray task reads at least: below this, starting the task costs more than reading."""

FOOTERS_AT_ONCE = 16
"""Footers that are fetched at the same time: of many files, one after the other would take minutes in a store."""

_ANYWHERE = ScaleConfig()


def read_with_ray(groups: Sequence[RowGroup], *, scale: ScaleConfig = _ANYWHERE) -> Iterator[pa.Table]:
    """One table per row group, read ahead by Ray Data tasks anywhere in the cluster.

    Needs a Ray with CPUs to spare beyond the workers'; `cluster/runtime.py` sees to that.

    Args:
        groups: What to read.
        scale: On which machines, and how much at once.
    """
    import ray.data

    units = [[groups[number] for number in unit] for unit in consecutive(groups, READ_INTERACTIONS)]
    if not units:
        return
    footers = _footers({group.path for group in groups})
    for group in groups:
        check(group, footers[str(group.path)])
    work = [{"paths": [str(g.path) for g in unit], "indices": [g.index for g in unit]} for unit in units]
    tables = ray.data.from_items(work, override_num_blocks=len(work)).map_batches(
        read_unit,
        fn_args=(ray.put(footers),),
        batch_size=None,
        batch_format="numpy",
        **reading_options(scale),
    )
    # The order is part of the result: batches must not depend on which task ends first.
    tables.context.execution_options.preserve_order = True
    tables.context.enable_progress_bars = False
    for block in tables.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2):
        yield from _split(block)


def _footers(files: set[Place]) -> dict[str, pq.FileMetaData]:
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        return dict(zip(map(str, files), pool.map(footer_of, files), strict=True))


def _split(block: pa.Table) -> Iterator[pa.Table]:
    places = block.column("place").to_numpy()
    starts = [0, *(np.flatnonzero(np.diff(places)) + 1).tolist(), len(places)]
    for start, stop in pairwise(starts):
        yield block.slice(start, stop - start).select(COLUMNS)
