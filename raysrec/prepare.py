"""From raw interactions to a prepared data set: read, filter, number, order, write; `python -m raysrec.prepare`.

The steps are pure functions on arrays and run in one process. The folder is named by its fingerprint, appears whole or
not at all, and is reused by whoever asks for the same again.
"""

import logging
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysrec.command_line import config_parser, load, run_verb
from raysrec.config import DataConfig
from raysrec.data.catalog import Manifest, PreparedData, PreparedDataError
from raysrec.data.download import download
from raysrec.data.files import SourceError
from raysrec.data.filters import keep_intervals
from raysrec.data.fingerprint import fingerprint_of, hash_source, stamp_of
from raysrec.data.interactions import Interactions, time_rule
from raysrec.data.publishing import appearing_whole
from raysrec.data.sources import read
from raysrec.data.writing import Histories, write_catalog, write_histories
from raysrec.place import Place

ID_RULE = "users 1..M and items 1..N by first appearance among the interactions kept, in the order of the source"
TIE_RULE = "interactions of a user at the same time keep the order of the source"

log = logging.getLogger(__name__)


def prepare(config: DataConfig, *, progress: Callable[[str], None] = log.info) -> PreparedData:
    """The prepared data set that the config describes: found by its fingerprint, or made.

    Args:
        config: Source, rules, and the folder under which prepared data sets are kept.
        progress: Is told in one line what is done next.

    Raises:
        SourceError: The source cannot be read.
        PlaceError: What is prepared is to be kept in a store that fails, or has no such bucket.
        ValueError: Nothing is left after filtering.
    """
    stamp, source = stamp_of(config), hash_source(config)
    fingerprint = fingerprint_of(config, source)
    folder = Place.of(config.prepared) / fingerprint
    if found := _opened(folder):
        progress(f"reusing {folder}")
        return found
    progress(f"reading {config.source}")
    interactions = read(config)
    if stamp_of(config) != stamp:
        raise SourceError(f"data.source={config.source}: changed while it was read; prepare again when it is complete")
    progress(f"filtering {len(interactions.table)} interactions")
    histories, rounds = make_histories(interactions, config)
    progress(f"writing {len(histories.items)} interactions of {len(histories.user_ids)} users to {folder}")
    with appearing_whole(folder, is_whole=lambda there: _opened(there) is not None) as scratch:
        facts = {"name": config.name, "fingerprint": fingerprint, "source": source, "filter_rounds": rounds}
        _write(scratch, histories, interactions, config, facts)
    return PreparedData.open(folder)


def find_prepared(config: DataConfig) -> PreparedData | None:
    """The prepared data set that the config describes, if it was made before.

    Raises:
        SourceError: There is no such source.
    """
    return _opened(Place.of(config.prepared) / fingerprint_of(config, hash_source(config)))


def make_histories(interactions: Interactions, config: DataConfig) -> tuple[Histories, int]:
    """Filtered, numbered and ordered histories, and the number of filtering rounds.

    Raises:
        ValueError: Nothing is left after filtering.
    """
    users, user_ids = _codes(interactions.table, "user")
    items, item_ids = _codes(interactions.table, "item")
    kept, rounds = keep_intervals(users, items, users=config.user_interactions, items=config.item_interactions)
    if not kept.any():
        raise ValueError(
            f"data.user_interactions={config.user_interactions} and data.item_interactions={config.item_interactions}: "
            f"nothing is left of the {len(kept)} interactions of {config.source}; widen the intervals"
        )
    users, user_ids = number_by_appearance(users[kept], user_ids)
    items, item_ids = number_by_appearance(items[kept], item_ids)
    times = interactions.table.column("time").to_numpy()[kept]
    order = np.lexsort((times, users))  # stable: what is equal in both keeps its order
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(users)[1:])])
    return Histories(user_ids, item_ids, offsets, items[order], times[order], interactions.per_second), rounds


def number_by_appearance(codes: NDArray[np.int32], ids: pa.Array) -> tuple[NDArray[np.int32], pa.Array]:
    """Codes renumbered 1, 2, … in the order in which they first appear, and the ids in that order.

    Ids whose code does not appear are left out.
    """
    first = np.full(len(ids), len(codes), dtype=np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]  # of several assignments the last stays: the first appearance
    appearing = np.flatnonzero(first < len(codes))
    appearing = appearing[np.argsort(first[appearing])]
    numbers = np.zeros(len(ids), dtype=np.int32)
    numbers[appearing] = np.arange(1, len(appearing) + 1)
    return numbers[codes], ids.take(pa.array(appearing))


def count_ties(histories: Histories) -> dict[str, int]:
    """How much of the order is decided by the rule for ties: the manifest's three counts of it."""
    ends = histories.offsets[1:]
    same = np.zeros(len(histories.times) + 1, dtype=np.bool_)  # same[i]: i - 1 and i are one user's at the same time
    same[1:-1] = histories.times[1:] == histories.times[:-1]
    same[histories.offsets] = False
    return {
        "tied_interactions": int(np.count_nonzero(same[1:] | same[:-1])),
        "tied_validation_targets": int(np.count_nonzero(same[ends - 1] | same[ends - 2])),
        "tied_test_targets": int(np.count_nonzero(same[ends - 1])),
    }


def parser() -> ArgumentParser:
    """Reads the command line of this verb."""
    found = config_parser("prepare", "Turn raw interactions into histories on disk.")
    found.add_argument(
        "--download", action="store_true", help="fetch data.source from data.url first, unless it is there"
    )
    return found


def main(arguments: Namespace) -> None:
    """Prepare what the config describes, and print what came out."""
    config = load(arguments.config, arguments.overrides).data
    if arguments.download:
        print(f"fetched {', '.join(map(str, download(config)))}", flush=True)
    data = prepare(config, progress=lambda line: print(line, flush=True))
    print(summary(data))


def summary(data: PreparedData) -> str:
    """What a prepared data set holds, in a few lines."""
    manifest = data.manifest
    held_out = f"{manifest.tied_validation_targets:,} validation and {manifest.tied_test_targets:,} test items"
    return "\n".join(
        (
            f"users         {manifest.num_users:,}",
            f"items         {manifest.num_items:,}",
            f"interactions  {manifest.num_interactions:,} of {manifest.source_interactions:,}, "
            f"after {manifest.filter_rounds} rounds of filtering; {manifest.num_targets:,} to learn from",
            f"longest       {manifest.longest_history:,} interactions",
            f"ties in time  {manifest.tied_interactions:,} interactions; they decide {held_out}",
            f"folder        {data.directory}",
        )
    )


def _codes(table: pa.Table, name: str) -> tuple[NDArray[np.int32], pa.Array]:
    """A code for each row and the ids that the codes stand for."""
    (column,) = table.column(name).chunks
    return column.indices.to_numpy(), column.dictionary


def _write(
    scratch: Path, histories: Histories, interactions: Interactions, config: DataConfig, facts: dict[str, Any]
) -> None:
    """All files of a prepared data set, the manifest last."""
    lengths = np.diff(histories.offsets)
    manifest = Manifest(
        source_interactions=len(interactions.table),
        num_users=len(histories.user_ids),
        num_items=len(histories.item_ids),
        num_interactions=len(histories.items),
        num_targets=int(np.maximum(lengths - 3, 0).sum()),
        longest_history=int(lengths.max()),
        user_interactions=config.user_interactions,
        item_interactions=config.item_interactions,
        id_rule=ID_RULE,
        time_rule=time_rule(interactions.per_second),
        tie_rule=TIE_RULE,
        floored_times=interactions.floored_times,
        catalog_bytes=write_catalog(histories, scratch),
        shards=write_histories(histories, scratch),
        **count_ties(histories),
        **facts,
    )
    (scratch / "manifest.json").write_text(manifest.model_dump_json(indent=2) + "\n")


def _opened(folder: Place) -> PreparedData | None:
    """The data set in this folder, if it is there and can be used as it is."""
    if not folder.exists():
        return None
    try:
        return PreparedData.open(folder)
    except PreparedDataError as error:
        log.warning("%s", error)
        return None


if __name__ == "__main__":
    run_verb(main, parser())
