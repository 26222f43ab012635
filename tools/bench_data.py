"""How fast do histories reach a worker, from this disk and from a store, beside pyarrow alone?

    python tools/bench_data.py --config configs/ml-1m.yaml
    python tools/bench_data.py --config configs/ml-1m.yaml --store s3://bucket/prepared

The same prepared data set is read four ways, an epoch each, in turns: by pyarrow alone (`dataset.to_batches` of the
columns, in any order), by `read_directly` and by `read_with_ray` (row groups in the order of an epoch), and by the last
with everything that training needs after it: windows, batches by length, tensors. With `--store` the data set is
prepared there, too, and read from there. MB are those of the files. The first epoch under Ray is not counted: it
starts the reading processes.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow.dataset as ds
from tabulate import tabulate

from raysrec.cluster.runtime import ray_session
from raysrec.command_line import config_parser, run_verb
from raysrec.config.loading import load, validate
from raysrec.config.run import RunConfig
from raysrec.config.settings import overlay
from raysrec.data.batching.loader import epoch_steps, row_groups_of_streams
from raysrec.data.batching.order import reading_order
from raysrec.data.batching.ray_reading import read_with_ray
from raysrec.data.batching.reading import COLUMNS, read_directly
from raysrec.data.prepared import PreparedData
from raysrec.place import Place
from raysrec.prepare import prepare


@dataclass
class Read:
    """What one epoch brought."""

    rows: int = 0
    targets: int = 0


def pyarrow_alone(data: PreparedData, config: RunConfig, epoch: int) -> Read:
    """The columns, and nothing else."""
    places = [data.directory / shard.file for shard in data.manifest.shards]
    files = ds.dataset([place.path for place in places], filesystem=places[0].filesystem, format="parquet")
    return Read(rows=sum(len(batch) for batch in files.to_batches(columns=COLUMNS)))


def row_groups(read: Callable[..., Iterator]) -> Callable[[PreparedData, RunConfig, int], Read]:
    """Tables in the order of an epoch."""

    def one_epoch(data: PreparedData, config: RunConfig, epoch: int) -> Read:
        groups = data.row_groups()
        order = reading_order(row_groups_of_streams(data, config, epoch=epoch))
        return Read(rows=sum(len(table) for table in read([groups[group] for _, group in order])))

    return one_epoch


def training(data: PreparedData, config: RunConfig, epoch: int) -> Read:
    """Batches of one worker that serves all streams."""
    found = Read(rows=data.manifest.num_users)
    for batches in epoch_steps(data, config, read_with_ray, epoch=epoch, worker=0, num_workers=1):
        found.targets += sum(int((batch.targets > 0).sum()) for batch in batches)
    return found


WAYS = {
    "pyarrow alone": pyarrow_alone,
    "read_directly": row_groups(read_directly),
    "read_with_ray": row_groups(read_with_ray),
    "batches for training": training,
}


def measure(data: PreparedData, config: RunConfig, rounds: int) -> list[list[str]]:
    """A line of the table for each way."""
    megabytes = sum(shard.bytes for shard in data.manifest.shards) / 1e6
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    found: dict[str, Read] = {}
    for turn in range(rounds + 1):
        for way, run in WAYS.items():
            started = time.perf_counter()
            found[way] = run(data, config, turn)
            if turn:
                seconds[way].append(time.perf_counter() - started)
    lines = []
    fastest = statistics.median(seconds["pyarrow alone"])
    for way in WAYS:
        took = statistics.median(seconds[way])
        targets = f"{found[way].targets / took:,.0f}" if found[way].targets else ""
        lines.append(
            [way, f"{found[way].rows / took:,.0f}", targets, f"{megabytes / took:,.1f}", f"{took / fastest:.2f}x"]
        )
    return lines


def main(arguments: argparse.Namespace) -> None:
    """Print one table for each place."""
    config = load(arguments.config, arguments.overrides)
    places = [config.data.prepared, *([arguments.store] if arguments.store else [])]
    with ray_session(config.scale):
        for place in places:
            there = validate(overlay(config.model_dump(mode="json"), {"data": {"prepared": str(place)}}))
            data = prepare(there.data)
            print(f"\n{Place.of(place)}: {data.manifest.num_users:,} users in {len(data.row_groups())} row groups")
            headers = ["way", "rows/s", "targets/s", "MB/s", "time"]
            print(tabulate(measure(data, there, arguments.rounds), headers=headers, tablefmt="github"))


def parser() -> argparse.ArgumentParser:
    """Reads the command line."""
    command_line = config_parser("bench_data", "Read an epoch in several ways.")
    command_line.add_argument("--store", help="URI under which the data set is prepared, too")
    command_line.add_argument("--rounds", type=int, default=3, help="epochs that are measured in each way")
    return command_line


if __name__ == "__main__":
    run_verb(main, parser())
