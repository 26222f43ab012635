"""From raw interactions to a prepared data set: read, filter, number, order, write; `python -m raysrec.prepare`.

The steps are pure functions on arrays. They run in one process, or for a large source part by part in tasks of a
cluster (`data/distributed.py`), which makes the same files. The folder is named by its fingerprint, appears whole or
not at all, and is reused by whoever asks for the same again.
"""

import logging
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysrec.command_line import config_parser, load, run_verb
from raysrec.config import DataConfig, ScaleConfig
from raysrec.data.catalog import Manifest, PreparedData, PreparedDataError
from raysrec.data.distributed import is_distributed, prepare_in_tasks
from raysrec.data.download import download
from raysrec.data.files import SourceError
from raysrec.data.filters import keep_intervals
from raysrec.data.fingerprint import fingerprint_of, hash_source, stamp_of
from raysrec.data.histories import Counts, Histories, nothing_left, number_by_appearance
from raysrec.data.interactions import Interactions, time_rule
from raysrec.data.publishing import appearing_whole
from raysrec.data.sources import read
from raysrec.data.tasks import run_with_ray
from raysrec.data.writing import Written, write_catalog, write_histories
from raysrec.place import Place
from raysrec.progress import stage
from raysrec.runtime import ray_session

ID_RULE = "users 1..M and items 1..N by first appearance among the interactions kept, in the order of the source"
TIE_RULE = "interactions of a user at the same time keep the order of the source"

log = logging.getLogger(__name__)

_ONE_WORKER = ScaleConfig()


def prepare(
    config: DataConfig, *, scale: ScaleConfig = _ONE_WORKER, progress: Callable[[str], None] = log.info
) -> PreparedData:
    """The prepared data set that the config describes: found by its fingerprint, or made.

    Args:
        config: Source, rules, and the folder under which prepared data sets are kept.
        scale: The Ray in which a large source is prepared, if none runs yet.
        progress: Is told in one line what is done next.

    Raises:
        SourceError: The source cannot be read.
        ValueError: Nothing is left after filtering.
    """
    stamp, source = stamp_of(config), hash_source(config)
    fingerprint = fingerprint_of(config, source)
    folder = Path(config.prepared) / fingerprint
    if found := _opened(folder):
        progress(f"reusing {folder}")
        return found

    def refuse_changed() -> None:
        if stamp_of(config) != stamp:
            raise SourceError(
                f"data.source={config.source}: changed while it was read; prepare again when it is complete"
            )

    appears = appearing_whole(folder, is_whole=lambda there: _opened(there) is not None)
    facts = {"name": config.name, "fingerprint": fingerprint, "source": source}
    if is_distributed(config):
        progress(f"preparing {config.source} in tasks")
        with ray_session(scale, cpus=len(os.sched_getaffinity(0))), appears as scratch:
            run = partial(run_with_ray, bar=partial(stage, say=progress))
            written = prepare_in_tasks(config, Place.of(scratch.resolve()), run, after_reading=refuse_changed)
            _write_manifest(scratch, written, config, facts)
        return PreparedData.open(folder)
    progress(f"reading {config.source}")
    interactions = read(config)
    refuse_changed()
    progress(f"filtering {len(interactions.table)} interactions")
    histories, item_ids, rounds = make_histories(interactions, config)
    progress(f"writing {len(histories.items)} interactions of {len(histories.user_ids)} users to {folder}")
    with appears as scratch:
        _write_manifest(scratch, _write(scratch, interactions, histories, item_ids, rounds), config, facts)
    return PreparedData.open(folder)


def find_prepared(config: DataConfig) -> PreparedData | None:
    """The prepared data set that the config describes, if it was made before.

    Raises:
        SourceError: There is no such source.
    """
    return _opened(Path(config.prepared) / fingerprint_of(config, hash_source(config)))


def make_histories(interactions: Interactions, config: DataConfig) -> tuple[Histories, pa.Array, int]:
    """Filtered, numbered and ordered histories, their items' ids, and the number of filtering rounds.

    Raises:
        ValueError: Nothing is left after filtering.
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
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(users)[1:])])
    numbers = np.arange(1, len(user_ids) + 1)
    histories = Histories(numbers, user_ids, offsets, items[order], times[order], interactions.per_second)
    return histories, item_ids, rounds


def parser() -> ArgumentParser:
    """Reads the command line of this verb."""
    found = config_parser("prepare", "Turn raw interactions into histories on disk.")
    found.add_argument(
        "--download", action="store_true", help="fetch data.source from data.url first, unless it is there"
    )
    return found


def main(arguments: Namespace) -> None:
    """Prepare what the config describes, and print what came out."""
    run = load(arguments.config, arguments.overrides)
    config = run.data
    if arguments.download:
        print(f"fetched {', '.join(map(str, download(config)))}", flush=True)
    data = prepare(config, scale=run.scale, progress=lambda line: print(line, flush=True))
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


def _write(scratch: Path, interactions: Interactions, histories: Histories, item_ids: pa.Array, rounds: int) -> Written:
    """All files of a prepared data set but for the manifest."""
    directory = Place.of(scratch)
    counts = Counts.of(histories, len(item_ids))
    return Written(
        source_interactions=len(interactions.table),
        floored_times=interactions.floored_times,
        per_second=interactions.per_second,
        filter_rounds=rounds,
        num_items=len(item_ids),
        counts=counts,
        catalog_bytes=write_catalog(item_ids, counts, directory),
        shards=write_histories(histories, directory),
    )


def _write_manifest(scratch: Path, written: Written, config: DataConfig, facts: dict[str, Any]) -> None:
    """The last file: it says that the others are whole."""
    manifest = Manifest(
        source_interactions=written.source_interactions,
        num_items=written.num_items,
        user_interactions=config.user_interactions,
        item_interactions=config.item_interactions,
        filter_rounds=written.filter_rounds,
        id_rule=ID_RULE,
        time_rule=time_rule(written.per_second),
        tie_rule=TIE_RULE,
        floored_times=written.floored_times,
        catalog_bytes=written.catalog_bytes,
        shards=written.shards,
        **written.counts.for_manifest(),
        **facts,
    )
    (scratch / "manifest.json").write_text(manifest.model_dump_json(indent=2) + "\n")


def _opened(folder: Path) -> PreparedData | None:
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
