"""How many users a second one process recommends to, and how much memory that takes, by the number of users.

    python tools/bench_recommend.py --users 1e4 1e5 1e6 --folder /tmp/bench model.name=sasrec model.max_length=200

Each row is what one actor of `raysrec.recommend` does for all users of the embedded source, without Ray, in a process
of its own with one thread: row groups are read, histories encoded, the catalogue ranked, Parquet written. The weights
are random. Seconds are of its processor, memory is the most that it held in all. What is prepared is kept.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from raysrec.config.loading import load
from raysrec.config.run import RunConfig
from raysrec.data.prepared import PreparedData
from raysrec.models import build_model
from raysrec.prepare import prepare
from raysrec.recommending.asked import units_of
from raysrec.recommending.recommender import Recommender, Wanted
from raysrec.run_directory import RunDirectory

DEFAULTS = (
    "model.name=sasrec",
    "model.max_length=50",
    "data.synthetic.num_items=3416",
    "data.synthetic.mean_length=20",
)


def random_run(config: RunConfig, folder: str) -> Wanted:
    """Top 10 for all users of a run of these settings with random weights."""
    data = prepare(config.data)
    model = build_model(config.model, data.manifest.num_items, data.manifest.num_users)
    run = RunDirectory(config.run_directory)
    run.start(config, data.manifest.fingerprint)
    run.save_model(config, data.manifest.num_items, model.state_dict(), num_users=data.manifest.num_users)
    return Wanted(str(run.path), str(data.directory), config.model_dump_json(), k=10, folder=folder)


def recommend_alone(wanted: Wanted, results: Any) -> None:
    """What an actor does; puts users, seconds of its processor, and the most bytes of memory that it took."""
    torch.set_num_threads(1)
    groups = PreparedData.open(wanted.prepared).row_groups()
    recommender, begun = Recommender(wanted, torch.device("cpu")), time.process_time()
    users = sum(recommender(unit)[1].users for unit in enumerate(units_of(groups)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    results.put((users, time.process_time() - begun, peak))


def main(arguments: argparse.Namespace) -> None:
    """Measure every number of users."""
    rows, spawn = [], multiprocessing.get_context("spawn")
    for number in arguments.users:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            own = {"data.synthetic.num_users": number, "data.prepared": arguments.folder, "storage.root": folder}
            config = load([], [*DEFAULTS, *(f"{key}={value}" for key, value in own.items()), *arguments.overrides])
            results = spawn.Queue()
            process = spawn.Process(target=recommend_alone, args=(random_run(config, folder), results))
            process.start()
            users, seconds, peak = results.get()
            process.join()
        rows.append(
            {
                "users": f"{users:,}",
                "seconds": f"{seconds:.1f}",
                "users/s": f"{users / seconds:,.0f}",
                "peak MiB": f"{peak / 2**20:,.0f}",
            }
        )
        print(tabulate(rows, headers="keys", tablefmt="github"), flush=True)


def parser() -> argparse.ArgumentParser:
    """Reads the command line."""
    command_line = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command_line.add_argument("overrides", nargs="*", help="settings such as model.name=mamba4rec")
    command_line.add_argument("--users", nargs="+", type=lambda text: int(float(text)), default=[10**4, 10**5])
    command_line.add_argument("--folder", type=Path, required=True, help="where what is prepared lies")
    return command_line


if __name__ == "__main__":
    main(parser().parse_intermixed_args())
