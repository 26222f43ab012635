"""Does a data set that is larger than the object store flow through training and ranking in flat memory?

    python tools/bench_streaming.py --config configs/netflix.yaml --object-store-mb 300 train.max_steps=200

It is one `raysrec.train` on a Ray of this machine whose object store is limited, prepared before it starts. Memory is
what its process and all below it hold together, shared pages counted once (PSS), the object store among them; that of a
store it reads from is not. Memory is flat where a stage has no more at its end than it had in its first quarter.
"""

import argparse
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil
from bench_prepare import memory_of_tree
from tabulate import tabulate

from raysrec.cluster import runtime
from raysrec.cluster.runtime import ray_session
from raysrec.command_line import config_parser, run_verb
from raysrec.config.loading import load
from raysrec.prepare import prepare
from raysrec.run_directory import RunDirectory
from raysrec.train import train

SAMPLE_EVERY_S = 1.0


@dataclass
class Sampler:
    """Memory over time."""

    samples: list[tuple[float, int]] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Take samples while the block runs."""
        stop = threading.Event()

        def sample() -> None:
            process = psutil.Process()
            while not stop.wait(SAMPLE_EVERY_S):
                self.samples.append((time.time(), memory_of_tree(process)))

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        yield
        stop.set()
        thread.join()

    def between(self, start: float, stop: float) -> list[int]:
        """The samples of a stretch of time."""
        return [size for at, size in self.samples if start <= at <= stop]


def line(stage: str, start: float, stop: float, sampler: Sampler) -> dict[str, str]:
    """A stage's row of the table."""
    sizes = sampler.between(start, stop)
    quarter = max(1, len(sizes) // 4)

    def most(part: list[int]) -> str:
        return f"{max(part) / 2**30:.2f}" if part else ""

    return {
        "stage": stage,
        "seconds": f"{stop - start:.0f}",
        "GiB, first quarter": most(sizes[:quarter]),
        "second": most(sizes[quarter : 2 * quarter]),
        "third": most(sizes[2 * quarter : 3 * quarter]),
        "last": most(sizes[3 * quarter :]),
    }


def data_wait(run: RunDirectory) -> tuple[float, float]:
    """Seconds of training, and those of them that worker 0 waited for data."""
    waited, last = 0.0, 0.0
    for text in (run.path / "log.jsonl").read_text().splitlines():
        event = json.loads(text)
        if event["kind"] == "step":
            waited += event["data_wait_share"] * (event["elapsed_s"] - last)
        last = event.get("elapsed_s", last)
    return last, waited


def main(arguments: argparse.Namespace) -> None:
    """Prepare, then train and rank under the limit, and print what it took."""
    config = load(arguments.config, arguments.overrides)
    data = prepare(config.data, scale=config.scale)
    stored = sum(shard.bytes for shard in data.manifest.shards)
    unpacked = 12 * data.manifest.num_interactions  # an item is 4 bytes, a time 8
    store = arguments.object_store_mb * 10**6
    print(
        f"{data.manifest.num_interactions:,} interactions in {stored / 1e6:,.0f} MB of files, {unpacked / 1e6:,.0f} MB "
        f"in memory: {unpacked / store:.1f} times the object store"
    )
    runtime.OBJECT_STORE_BYTES = store
    sampler = Sampler()
    with sampler.running(), ray_session(config.scale):
        started = time.time()
        run = train(config, fresh=arguments.fresh)
        ended = time.time()
    trained = (run.model_directory / "model.json").info().mtime.timestamp()
    rows = [line("training", started, trained, sampler), line("ranking", trained, ended, sampler)]
    print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))
    seconds, waited = data_wait(run)
    print(f"worker 0 waited {waited:.1f} of {seconds:.0f} s for data ({waited / seconds:.1%}), validation counted in")


def parser() -> argparse.ArgumentParser:
    """Reads the command line."""
    command_line = config_parser("bench_streaming", "Train and rank with a small object store.")
    command_line.add_argument(
        "--object-store-mb", type=int, default=300, help="size of Ray's object store in megabytes"
    )
    command_line.add_argument("--fresh", action="store_true", help="throw away what an earlier run of this name left")
    return command_line


if __name__ == "__main__":
    run_verb(main, parser())
