"""Does a run that is struck again and again end as one that never was?

    python tools/soak.py --strikes 20 --folder /tmp/soak
    python tests/s3_server.py python tools/soak.py --strikes 20 --folder /tmp/soak --root s3://raysrec/soak

One training is left alone. Another, of the same settings, is struck at random moments: a worker is killed, asked to
leave or made to hang, or the command with all it started is killed, or asked to stop, and then typed again; and an S3
server that was started beside it says nothing for a minute. At the end the scores of both are compared, and every
strike is told with what it cost.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import yaml
from tabulate import tabulate

from raysrec.checkpoints import Checkpoints
from raysrec.config.settings import overlay
from raysrec.data.splits import HELD_OUT
from raysrec.place import Place
from raysrec.run_directory import RunDirectory

SETTINGS = {
    "data": {"synthetic": {"num_users": 3_000}, "num_streams": 4},
    "model": {"name": "mamba4rec", "max_length": 50},
    "train": {"epochs": 20, "batch_targets": 1024, "learning_rate": 0.003, "patience": 100, "validate_every": 5},
    "engine": {"name": "deepspeed", "zero_stage": 1},
    "scale": {"workers": 2, "threads_per_worker": 1, "stalled_after_s": 20, "max_failures": 20},
    "checkpoint": {"every_steps": 20},
}

EQUAL_TO = 1e-6

SILENT_S = 60.0
"""For how long a store that is struck does not answer."""


class Struck:
    """A run, the process of its command, and what may happen to them."""

    def __init__(self, config: Path, run: RunDirectory) -> None:
        self._command = [sys.executable, "-m", "raysrec.train", "--config", str(config)]
        self.run = run
        self._log = config.with_suffix(".log").open("a")
        self.type()

    def type(self) -> None:
        """Type the command, once more."""
        self._process = psutil.Popen(self._command, stderr=self._log, stdout=self._log, start_new_session=True)

    @property
    def is_over(self) -> bool:
        """Has the run ended by itself?"""
        return self._process.poll() is not None

    def step(self) -> int:
        """The step of the newest checkpoint."""
        names = Checkpoints(self.run.checkpoints).names()
        return int(names[0][5:13]) if names else 0

    def workers(self) -> list[psutil.Process]:
        """Its training workers."""
        found = []
        for process in self._process.children(recursive=True):
            try:
                if process.name().startswith("ray::RayTrainWo") and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def strike_worker(self, number: signal.Signals, rng: random.Random) -> None:
        """Send a signal to one of the workers."""
        rng.choice(self.workers()).send_signal(number)

    def strike_command(self, number: signal.Signals, rng: random.Random) -> None:
        """Send a signal to the command (and, if it is to kill, to all that it started), and type it again."""
        if number == signal.SIGKILL:
            os.killpg(self._process.pid, number)
        else:
            self._process.send_signal(number)
        self._process.wait()
        self.type()

    def strike_store(self, number: signal.Signals, rng: random.Random) -> None:
        """Stop the S3 server for a minute: it takes connections and answers nothing."""
        servers = store_servers()
        for server in servers:
            server.send_signal(number)
        time.sleep(SILENT_S)
        for server in servers:
            server.resume()

    def wait(self) -> int:
        """The exit code, at the end."""
        return int(self._process.wait())


STRIKES = {
    "a worker is killed": (Struck.strike_worker, signal.SIGKILL),
    "a worker is asked to leave": (Struck.strike_worker, signal.SIGTERM),
    "a worker hangs": (Struck.strike_worker, signal.SIGSTOP),
    "the command is killed": (Struck.strike_command, signal.SIGKILL),
    "the command is asked to stop": (Struck.strike_command, signal.SIGTERM),
    "the store is silent for a minute": (Struck.strike_store, signal.SIGSTOP),
}


def store_servers() -> list[psutil.Process]:
    """S3 servers that were started beside this process, by the same parent."""
    return [process for process in psutil.Process(os.getppid()).children() if process.name() == "radosgw"]


def settings_of(folder: Path, root: str, name: str) -> Path:
    """The configuration file of a run."""
    storage = {"storage": {"root": f"{root}/runs", "name": name}, "data": {"prepared": f"{root}/prepared"}}
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(overlay(SETTINGS, storage)))
    return file


def disturb(struck: Struck, strikes: int, rng: random.Random) -> list[list[str]]:
    """Strike so often, each time some steps after the last; a line for each."""
    lines: list[list[str]] = []
    possible = [(what, how) for what, how in STRIKES.items() if how[0] is not Struck.strike_store or store_servers()]
    for _ in range(strikes):
        before, wait_for = struck.step(), rng.randrange(1, 60)
        while struck.step() < before + wait_for or len(struck.workers()) < 2:
            if struck.is_over:
                return lines
            time.sleep(0.1)
        time.sleep(rng.random())
        what, (strike, number) = rng.choice(possible)
        at, began = struck.step(), time.monotonic()
        strike(struck, number, rng)
        while struck.step() <= at and not struck.is_over:
            time.sleep(0.1)
        lines.append([what, str(at), f"{time.monotonic() - began:.0f}"])
        print(f"{what} after step {at}: went on within {lines[-1][2]} s", file=sys.stderr, flush=True)
    return lines


def scores(run: RunDirectory) -> dict[str, float]:
    """All means of both splits."""
    record = run.ranked_record()
    return {f"{split} {name}": score.mean for split in HELD_OUT for name, score in record.of(split).model.items()}


def main(arguments: argparse.Namespace) -> int:
    """Train both, compare, and print what happened."""
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    root = arguments.root or str(folder)
    whole, struck = (RunDirectory(Place.of(root) / "runs" / name) for name in ("whole", "struck"))
    config = settings_of(folder, root, "whole")
    subprocess.run([sys.executable, "-m", "raysrec.train", "--fresh", "--config", str(config)], check=True)
    struck.path.delete()
    running = Struck(settings_of(folder, root, "struck"), struck)
    lines = disturb(running, arguments.strikes, random.Random(arguments.seed))  # noqa: S311  a moment is no secret
    code = running.wait()
    print(tabulate(lines, headers=["what happened", "after the checkpoint at step", "seconds until the next"]))
    if code:
        print(f"the run ended with exit code {code}; see {folder}/struck.log")
        return 1
    ours, others = scores(struck), scores(whole)
    worst = max(ours, key=lambda name: abs(ours[name] - others[name]))
    print(f"{len(lines)} strikes; largest difference {abs(ours[worst] - others[worst]):.2g}, of {worst}")
    return int(abs(ours[worst] - others[worst]) > EQUAL_TO)


def parser() -> argparse.ArgumentParser:
    """Reads the command line."""
    command_line = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command_line.add_argument("--strikes", type=int, default=20, help="how often the run is struck (default: 20)")
    command_line.add_argument("--seed", type=int, default=0, help="of when and how")
    command_line.add_argument("--folder", type=Path, required=True, help="where settings and logs are kept")
    command_line.add_argument(
        "--root", default="", help="path or URI where runs and data are kept; default: the folder"
    )
    return command_line


if __name__ == "__main__":
    sys.exit(main(parser().parse_args()))
