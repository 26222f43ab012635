"""How fast raw interactions become a prepared data set, and how much memory that takes, by the size of the source.

    python tools/bench_prepare.py --interactions 1e6 1e7 1e8 --folder /tmp/bench data.item_interactions='[50,15000]'

The source is the embedded one in Netflix's proportions (209 ratings a user, 17,770 items), as Parquet files; they are
kept in the folder and made only once. Each row is one `python -m raysrec.prepare`, timed from its start to its end.
Memory is the most that its process and all below it held together at a time, pages that they share counted once (PSS).
"""

import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
from tabulate import tabulate

from raysrec.config import SyntheticConfig
from raysrec.data.prepared import PreparedData
from raysrec.data.synthetic import blocks
from raysrec.place import Place
from raysrec.synthesize import write_block

LENGTH, ITEMS = 209, 17_770
"""Ratings a user, and items, of the Netflix Prize before filtering."""

RULES = ("data.user_interactions=[5,inf)", "data.item_interactions=[5,inf)")

SAMPLE_EVERY_S = 0.2

CONFIG = "model: {name: popularity}\n"


@dataclass(frozen=True)
class Measured:
    """One preparation."""

    seconds: float
    peak_bytes: int
    prepared: PreparedData


def make_source(interactions: int, folder: Path) -> Path:
    """The folder of the source of about so many interactions, made unless it is there."""
    config = SyntheticConfig(
        shape="netflix", num_users=max(round(interactions / LENGTH), 1), num_items=ITEMS, mean_length=LENGTH
    )
    source = folder / f"source-{interactions}"
    source.mkdir(parents=True, exist_ok=True)
    for block in range(blocks(config)):
        write_block(config, block, Place.of(source))
        print(
            f"\rsource of {interactions:,}: {block + 1} of {blocks(config)} files", end="", file=sys.stderr, flush=True
        )
    print(file=sys.stderr)
    return source


def measure(source: Path, folder: Path, *, distributed: bool, keep: Path | None, overrides: list[str]) -> Measured:
    """Prepare the source in a process of its own; what it made is kept in a folder, or thrown away."""
    config = folder / "config.yaml"
    config.write_text(CONFIG)
    with ExitStack() as stack:
        prepared = str(keep) if keep else stack.enter_context(tempfile.TemporaryDirectory(dir=folder))
        settings = {
            "source": source,
            "format": "parquet",
            "prepared": prepared,
            "distributed": str(distributed).lower(),
        }
        given = [*RULES, *overrides, *(f"data.{name}={value}" for name, value in settings.items())]
        begun, started = time.time(), time.monotonic()
        process = psutil.Popen(
            [sys.executable, "-m", "raysrec.prepare", "--config", str(config), *given], stdout=sys.stderr
        )
        peak = 0
        while process.poll() is None:
            peak = max(peak, memory_of_tree(process))
            time.sleep(SAMPLE_EVERY_S)
        seconds = time.monotonic() - started
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args)
        (made,) = (path for path in Path(prepared).iterdir() if path.stat().st_mtime >= begun)
        return Measured(seconds, peak, PreparedData.open(made))


def memory_of_tree(process: psutil.Process) -> int:
    """Bytes that a process and all below it hold, shared pages counted once."""
    total = 0
    try:
        tree = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for member in tree:
        try:
            total += member.memory_full_info().pss
        except psutil.Error:
            continue  # it has ended
    return total


def main(arguments: argparse.Namespace) -> None:
    """Measure every size, in tasks and, up to a size, in one process."""
    rows = []
    for interactions in arguments.interactions:
        source = make_source(interactions, arguments.folder)
        seconds = {}
        for distributed in (False, True):
            if not distributed and interactions > arguments.in_memory_up_to:
                continue
            keep, overrides = arguments.keep, arguments.overrides
            found = measure(source, arguments.folder, distributed=distributed, keep=keep, overrides=overrides)
            seconds[distributed] = found.seconds
            manifest = found.prepared.manifest
            rows.append(
                {
                    "rows": f"{manifest.source_interactions:,}",
                    "prepared": "in tasks" if distributed else "in one process",
                    "seconds": f"{found.seconds:.1f}",
                    "rows/s": f"{manifest.source_interactions / found.seconds:,.0f}",
                    "times as long": f"{found.seconds / seconds[False]:.2f}" if False in seconds else "",
                    "peak GiB": f"{found.peak_bytes / 2**30:.2f}",
                    "kept": f"{manifest.num_interactions:,}",
                    "rounds": manifest.filter_rounds,
                }
            )
            print(tabulate(rows, headers="keys", tablefmt="github"), flush=True)


def parser() -> argparse.ArgumentParser:
    """Reads the command line."""
    command_line = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command_line.add_argument("overrides", nargs="*", help="settings such as data.item_interactions=[50,15000]")
    command_line.add_argument("--interactions", nargs="+", type=lambda text: int(float(text)), default=[10**6, 10**7])
    command_line.add_argument("--in-memory-up-to", type=lambda text: int(float(text)), default=2 * 10**7)
    command_line.add_argument("--keep", type=Path, help="where to leave what is prepared; must hold none of it yet")
    command_line.add_argument("--folder", type=Path, required=True, help="where sources and what is prepared lie")
    return command_line


if __name__ == "__main__":
    main(parser().parse_intermixed_args())
