"""Preparation in the memory of this process: pure functions on arrays that hold all interactions at once."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raysrec.config import DataConfig
from raysrec.data.arrays import offsets_of
from raysrec.data.preparing.counts import refuse_empty
from raysrec.data.preparing.filters import keep_intervals
from raysrec.data.preparing.histories import NumberedHistories, count_histories, nothing_left, number_by_appearance
from raysrec.data.preparing.writing import Written, write_catalog, write_histories
from raysrec.data.sources.interactions import Interactions
from raysrec.data.sources.read import read
from raysrec.data.splits import find_rule
from raysrec.place import Place


def prepare_in_memory(
    config: DataConfig, *, after_reading: Callable[[], None], say: Callable[[str], None]
) -> Callable[[Place], Written]:
    """Read, filter, number and order; what is returned writes all files of the data set but for the manifest.

    Args:
        config: Source and rules.
        after_reading: Called when the source will not be read any more.
        say: Is told in one line what is done next.

    Raises:
        SourceError: The source cannot be read.
        LastingError: Nothing is left after filtering, or nothing to learn from, to validate or to test on.
    """
    say(f"reading {config.source}")
    interactions = read(config)
    after_reading()
    say(f"filtering {len(interactions.table)} interactions")
    histories, item_ids, rounds = make_histories(interactions, config)
    rule = find_rule(config.split, histories.seconds)
    counts, of_items = count_histories(histories, rule, len(item_ids))
    refuse_empty(counts, rule, histories.per_second)

    def write(directory: Place) -> Written:
        say(f"writing {len(histories.items)} interactions of {len(histories.user_ids)} users")
        return Written(
            left_out_rows=interactions.left_out,
            source_users=_distinct(interactions.table, "user"),
            source_items=_distinct(interactions.table, "item"),
            source_interactions=len(interactions.table),
            floored_times=interactions.floored_times,
            per_second=interactions.per_second,
            filter_rounds=rounds,
            num_items=len(item_ids),
            split=rule,
            counts=counts,
            catalog_bytes=write_catalog(item_ids, of_items, directory),
            shards=write_histories(histories, rule, directory),
        )

    return write


def make_histories(interactions: Interactions, config: DataConfig) -> tuple[NumberedHistories, pa.Array, int]:
    """Filtered, numbered and ordered histories, their items' ids, and the number of filtering rounds.

    Raises:
        LastingError: Nothing is left after filtering.
    """
    users, user_ids = _codes(interactions.table, "user")
    items, item_ids = _codes(interactions.table, "item")
    kept, rounds = keep_intervals(users, items, users=config.user_interactions, items=config.item_interactions)
    if not kept.any():
        raise nothing_left(config, len(kept))
    users, user_ids = number_by_appearance(users[kept], user_ids)
    items, item_ids = number_by_appearance(items[kept], item_ids)
    times = interactions.table.column("time").to_numpy()[kept]
    order = np.lexsort((times, users))  # stable: what is equal in both keeps its order
    offsets = offsets_of(np.bincount(users)[1:])
    numbers = np.arange(1, len(user_ids) + 1)
    histories = NumberedHistories(numbers, user_ids, offsets, items[order], times[order], interactions.per_second)
    return histories, item_ids, rounds


def _codes(table: pa.Table, name: str) -> tuple[NDArray[np.int32], pa.Array]:
    """A code for each row and the ids that the codes stand for."""
    (column,) = table.column(name).chunks
    return column.indices.to_numpy(), column.dictionary


def _distinct(table: pa.Table, name: str) -> int:
    """How many ids there are; a dictionary may hold some that `data.where` left out."""
    (column,) = table.column(name).chunks
    return int(pc.count_distinct(column.indices).as_py())
