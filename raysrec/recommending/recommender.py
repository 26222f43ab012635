"""What each actor of `recommend.py` does: users in, a part of the recommendations written.

The states, the scores and the candidates are those that the evaluator ranks by (`ranker.py`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from raysrec.allocator import release_freed_memory
from raysrec.config.run import RunConfig
from raysrec.data.arrays import IntArray
from raysrec.data.batching.batches import past_batches
from raysrec.data.histories import Histories
from raysrec.data.prepared import PreparedData
from raysrec.models import SequenceModel
from raysrec.place import Place
from raysrec.ranking import top_items
from raysrec.recommending.asked import Asked, DealtUsers, Some, dealt_users, prepared_users
from raysrec.recommending.recommendations import SCHEMA, PartCounts, write_part
from raysrec.run_directory import RunDirectory

ITEMS_AT_ONCE = 1 << 22
"""Recommended items that are held before they are written; some 200 MiB."""


@dataclass(frozen=True)
class Wanted:
    """What to recommend, and to whom; small enough to be sent to each actor."""

    run: str
    """The run's directory."""
    prepared: str
    """Folder of its data."""
    config_json: str
    """Its configuration; `evaluate` says how items are scored and whether seen ones are left out."""
    k: int
    """Length of a list."""
    folder: str
    """Where parts are written."""
    until: str = "all"
    """Users of the prepared data: one of `UNTIL` in `request.py`."""
    only: pa.Array | None = None
    """Users of the prepared data: these and no others."""
    dealt: DealtUsers | None = None
    """Users of a file of histories."""


Unit = tuple[int, Sequence[int]]
"""A part's number, and the row groups that it is made of; of a file of histories it is the share of that number."""


class Recommender:
    """What recommends in an actor: `recommender((3, [6, 7]))` writes part 3, of row groups 6 and 7 of the data.

    Args:
        wanted: Which recommendations, of which run.
        device: Where the model computes.
    """

    def __init__(self, wanted: Wanted, device: torch.device) -> None:
        self._wanted, self._config = wanted, RunConfig.model_validate_json(wanted.config_json)
        self._model = RunDirectory.open(wanted.run).load_model().to(device)
        self._data = PreparedData.open(wanted.prepared)
        self._groups, self._item_ids = self._data.row_groups(), self._data.item_ids()

    def __call__(self, unit: Unit) -> tuple[int, PartCounts]:
        """The part's number and what it holds."""
        number, groups = unit
        wanted = self._wanted
        if wanted.dealt:
            asked = dealt_users(wanted.dealt, number)
        else:
            asked = prepared_users(self._data, [self._groups[at] for at in groups], wanted.until, wanted.only)
        tables = recommended(self._model, self._config, asked, self._item_ids, k=wanted.k)
        counts = write_part(Place(wanted.folder), number, tables)
        release_freed_memory()  # batches of ever other sizes leave holes: a million users took 1.7 GiB, and now 1.0
        return number, counts


def recommended(
    model: SequenceModel, config: RunConfig, asked: Asked, item_ids: pa.Array, *, k: int
) -> Iterator[tuple[pa.Table, PartCounts]]:
    """Tables of `SCHEMA` with a row for each user of whom something is known, in their order, and what is counted.

    Args:
        model: Scores the items.
        config: The run.
        asked: Whom to recommend to.
        item_ids: External ids, at the index of the item's number.
        k: Length of a list.
    """
    at_once = max(1, ITEMS_AT_ONCE // k)
    for first in range(0, max(1, len(asked.user_ids)), at_once):
        part = slice(first, first + at_once)
        stops = asked.stops[part]
        items, scores, kept = _top(model, config, asked.histories.between(first, first + at_once), stops, k=k)
        user_ids = asked.user_ids.slice(first, at_once)
        lengths = np.count_nonzero(items[kept], axis=1)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        found = items[kept].ravel()
        flat_ids, flat_scores = item_ids.take(pa.array(found[found > 0])), pa.array(scores[kept].ravel()[found > 0])
        lists = [pa.ListArray.from_arrays(offsets, flat) for flat in (flat_ids, flat_scores)]
        yield (
            pa.table([user_ids.filter(pa.array(kept)), *lists], schema=SCHEMA),
            PartCounts(
                users=int(kept.sum()),
                shorter=int(np.count_nonzero(lengths < k)),
                left_out=Some.of(user_ids.filter(pa.array(~kept))),
                unknown=asked.unknown if first == 0 else 0,
            ),
        )


@torch.inference_mode()
def _top(
    model: SequenceModel, config: RunConfig, histories: Histories, stops: IntArray, *, k: int
) -> tuple[IntArray, NDArray[np.float32], NDArray[np.bool_]]:
    """Item numbers and scores, a row for each history, 0 where there is no item; and of whom something is known."""
    vectors, bias = model.item_vectors(), model.item_bias()
    items, scores = np.zeros((len(stops), k), np.int64), np.zeros((len(stops), k), np.float32)
    known = np.zeros(len(stops), np.bool_)
    for past in past_batches(
        histories,
        stops,
        max_length=config.model.max_length,
        batch_tokens=config.evaluate.batch_tokens,
        with_seen=config.evaluate.exclude_seen,
    ):
        states = model.read(past.history.to(vectors.device))
        # A state of zeros, as of a user whom nobody learned from, scores all items alike.
        known[past.rows] = bias is not None or states.any(1).cpu().numpy()
        found, best = top_items(
            states,
            vectors,
            k,
            bias=bias,
            seen=None if past.seen is None else past.seen.to(vectors.device),
            items_per_chunk=config.evaluate.items_per_chunk,
        )
        items[past.rows], scores[past.rows] = found.cpu().numpy(), best.cpu().numpy()
    return items, scores, known
