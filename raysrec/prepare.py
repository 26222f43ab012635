"""From raw interactions to a prepared data set: read, filter, number, order, write; `python -m raysrec.prepare`.

The steps (`data/preparing/`) run in the memory of this process, or for a large source part by part in tasks of a
cluster, which makes the same files. The folder is named by its fingerprint, appears whole or not at all, and is reused
by whoever asks for the same again.
"""

import logging
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable
from functools import partial

from raysrec.cluster.nodes import refuse_fleeting, wait_for_data_nodes
from raysrec.cluster.runtime import ray_session
from raysrec.command_line import config_parser, run_verb
from raysrec.config import DataConfig, ScaleConfig
from raysrec.config.loading import load
from raysrec.data.prepared import PreparedData, PreparedDataError
from raysrec.data.preparing.distributed import is_distributed, prepare_in_tasks
from raysrec.data.preparing.fingerprint import fingerprint_of, hash_source, prepared_folder, stamp_of
from raysrec.data.preparing.in_memory import prepare_in_memory
from raysrec.data.preparing.publishing import appearing_by_parts, appearing_whole
from raysrec.data.preparing.writing import write_manifest
from raysrec.data.sources.download import download
from raysrec.data.sources.files import SourceError
from raysrec.data.sources.read import source_places
from raysrec.data.splits import HELD_OUT
from raysrec.place import Place
from raysrec.schema import date_of
from raysrec.tasks import run_with_ray
from raysrec.tracking.progress import stage

log = logging.getLogger(__name__)

_ONE_WORKER = ScaleConfig()


def prepare(
    config: DataConfig, *, scale: ScaleConfig = _ONE_WORKER, progress: Callable[[str], None] = log.info
) -> PreparedData:
    """The prepared data set that the config describes: found by its fingerprint, or made.

    Args:
        config: Source, rules, and the folder under which prepared data sets are kept.
        scale: The Ray in which a large source is prepared, if none runs yet; on which of its machines, and for how
            long they are waited for.
        progress: Is told in one line what is done next.

    Raises:
        SourceError: The source cannot be read.
        PlaceError: What is prepared is to be kept in a store that fails, or has no such bucket.
        LastingError: Nothing is left after filtering, or nothing to learn from, to validate or to test on.
        ClusterError: The cluster came to have no room, or a machine cannot do its part.
    """
    stamp, source = stamp_of(config), hash_source(config)
    fingerprint = fingerprint_of(config, source)
    folder = Place.of(config.prepared) / fingerprint
    if found := _opened(folder):
        progress(f"reusing {folder}")
        return found

    def refuse_changed() -> None:
        if stamp_of(config) != stamp:
            raise SourceError(
                f"data.source={config.source}: changed while it was read; prepare again when it is complete"
            )

    def is_whole(there: Place) -> bool:
        return _opened(there) is not None

    facts = {"name": config.name, "fingerprint": fingerprint, "source": source}
    if is_distributed(config):
        progress(f"preparing {config.source} in tasks")
        cpus = len(os.sched_getaffinity(0))
        with ray_session(scale, cpus=cpus), appearing_by_parts(folder, is_whole=is_whole) as directory:
            options = wait_for_data_nodes([directory, *source_places(config)], scale)
            run = partial(run_with_ray, bar=partial(stage, say=progress), options=options)
            written = prepare_in_tasks(config, directory, run, after_reading=refuse_changed)
            write_manifest(written, config, facts, directory)
    else:
        write = prepare_in_memory(config, after_reading=refuse_changed, say=progress)
        with appearing_whole(folder, is_whole=is_whole) as scratch:
            directory = Place.of(scratch)
            write_manifest(write(directory), config, facts, directory)
    return PreparedData.open(folder)


def find_prepared(config: DataConfig) -> PreparedData | None:
    """The prepared data set that the config describes, if it was made before.

    Raises:
        SourceError: There is no such source.
    """
    return _opened(prepared_folder(config))


def parser() -> ArgumentParser:
    """Reads the command line of this verb."""
    command_line = config_parser("prepare", "Turn raw interactions into histories on disk.")
    command_line.add_argument(
        "--download", action="store_true", help="fetch data.source from data.url first, unless it is there"
    )
    return command_line


def main(arguments: Namespace) -> None:
    """Prepare what the config describes, and print what came out."""
    run = load(arguments.config, arguments.overrides)
    refuse_fleeting(run)
    config = run.data
    if arguments.download:
        print(f"fetched {', '.join(map(str, download(config)))}", flush=True)
    data = prepare(config, scale=run.scale, progress=lambda line: print(line, flush=True))
    print(summary(data))


def summary(data: PreparedData) -> str:
    """What a prepared data set holds, in a few lines."""
    manifest = data.manifest
    held_out = [manifest.held_out(split) for split in HELD_OUT]
    cold = _both((counts.cold_users for counts in held_out), "of them")
    leaked = _both((counts.leaked_targets for counts in held_out), "items")
    tied = _both((counts.tied_targets for counts in held_out), "items")
    span = f"{date_of(manifest.first_time)} to {date_of(manifest.last_time)}"
    rows = {
        "users": f"{manifest.num_users:,} of {manifest.source_users:,}",
        "items": f"{manifest.num_items:,} of {manifest.source_items:,}",
        "interactions": f"{manifest.num_interactions:,} of {manifest.source_interactions:,}, after "
        f"{manifest.filter_rounds} rounds of filtering; {manifest.num_targets:,} to learn from",
        "left out": f"{manifest.left_out_rows:,} rows by data.where",
        "longest": f"{manifest.longest_history:,} interactions",
        "times": f"{span} (UTC)",
        "split": str(manifest.split),
        "ranked": f"{_both((counts.users for counts in held_out), 'users')}; {cold} with nothing to learn from",
        "leakage": f"{leaked} lie before something that is learned from",
        "ties in time": f"{manifest.tied_interactions:,} interactions; they decide {tied}",
        "repeated": f"{manifest.repeated_interactions:,} interactions, the same item at the same time; they are kept",
        "folder": str(data.directory),
    }
    return "\n".join(f"{name:<12}  {text}" for name, text in rows.items())


def _both(counts: Iterable[int], what: str) -> str:
    validation, test = counts
    return f"{validation:,} validation and {test:,} test {what}"


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
