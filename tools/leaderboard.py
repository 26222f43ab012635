"""Train every model on every data set, several seeds where that is cheap, and print the table beside published figures.

    tools/leaderboard --data ml-100k amazon-beauty --data-folder ../shared/data --budget 7200

A run is `configs/<data>.yaml`, then `configs/models/<model>.yaml`, then where there is one `configs/recipes/` with
`<data>-<supervision>.yaml` and `<data>-<model>.yaml`, and stands under `--root`. Runs that are finished are not
repeated, and one that was interrupted goes on, so the same command, typed again, continues. The first seed of every
model comes before any second one.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from raysrec.command_line import load, run_verb
from raysrec.config import RunConfig
from raysrec.models import MODELS
from raysrec.place import Place
from raysrec.run_directory import RunDirectory, RunError

CONFIGS = Path(__file__).parent.parent / "configs"
METRICS = ("hr@10", "ndcg@10", "mrr@10")


@dataclass(frozen=True)
class Job:
    """One training."""

    data: str
    model: str
    seed: int
    arguments: argparse.Namespace

    @property
    def name(self) -> str:
        """The run's folder under the root."""
        return f"{self.data}-{self.model}-seed{self.seed}"

    @property
    def run(self) -> RunDirectory:
        """Where it is kept."""
        return RunDirectory(Place.of(self.arguments.root) / self.name)

    @property
    def record(self) -> dict[str, Any] | None:
        """What the finished run says of itself; None if it is not finished."""
        return self.run.metrics()

    def refuse_other_settings(self) -> None:
        """See that what stands in the run's folder is a run of this job.

        Raises:
            RunError: It has other settings.
        """
        if changes := self.run.other_settings(self.config()):
            raise RunError(f"{self.run.path} has other settings: {changes}; take another --root, or remove it")

    def files(self) -> list[Path]:
        """The configuration, layer over layer."""
        layers = [CONFIGS / f"{self.data}.yaml", CONFIGS / "models" / f"{self.model}.yaml"]
        supervision = load(layers).train.supervision
        recipes = (CONFIGS / "recipes" / f"{self.data}-{way}.yaml" for way in (supervision, self.model))
        return [*layers, *(recipe for recipe in recipes if recipe.is_file())]

    def settings(self) -> list[str]:
        """What is laid over the files."""
        settings = [f"train.seed={self.seed}", f"storage.root={self.arguments.root}", f"storage.name={self.name}"]
        if self.arguments.data_folder:
            source = Path(self.arguments.data_folder) / f"{self.data}.inter.gz"
            settings += [f"data.source={source}", "data.format=recbole"]
        return [*settings, *self.arguments.overrides]

    def config(self) -> RunConfig:
        """The whole configuration; raises if it cannot be."""
        return load(self.files(), self.settings())

    def command(self) -> list[str]:
        """What to type to train it."""
        files = [part for path in self.files() for part in ("--config", str(path))]
        return [sys.executable, "-m", "raysrec.train", *files, *self.settings()]


def jobs(arguments: argparse.Namespace) -> Iterator[Job]:
    """What is to be trained, in order; later seeds of a model only where its first took less than `--seeds-below`."""
    for seed in range(arguments.seeds):
        for data in arguments.data:
            for model in arguments.models:
                first = Job(data, model, 0, arguments).record
                if seed == 0 or (first and first["training"]["cpu_seconds"] < arguments.seeds_below):
                    yield Job(data, model, seed, arguments)


def train_all(arguments: argparse.Namespace) -> list[str]:
    """Train what is missing until all is there or the budget is spent; the names of the runs that failed."""
    failed = []
    ends = time.monotonic() + arguments.budget
    for job in jobs(arguments):
        if job.record is not None:
            continue
        left = ends - time.monotonic()
        if left <= 0:
            print("the budget is spent; the same command goes on", flush=True)
            break
        print(f"{time.strftime('%H:%M:%S')} {job.name}: {' '.join(job.command())}", flush=True)
        log = Place.of(arguments.root).local / f"{job.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        code = run_for(job.command(), left, log)
        if code and time.monotonic() < ends:
            print(f"{job.name} failed with {code}; its last words are in {log}", flush=True)
            failed.append(job.name)
    return failed


def run_for(command: Sequence[str], seconds: float, log: Path) -> int:
    """Run a command in a process group of its own, which ends with this call whatever ends it; the exit status."""
    with log.open("a") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return _stop(process)
        finally:
            _stop(process)


def _stop(process: "subprocess.Popen[bytes]") -> int:
    """End a process and its group, gently first; its exit status."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)  # background jobs of a shell are deaf to SIGINT
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def table(arguments: argparse.Namespace, data: str) -> str:
    """One data set's finished runs, best first: means over seeds beside what was published."""
    rows = []
    for model in arguments.models:
        finished = [job for job in (Job(data, model, seed, arguments) for seed in range(arguments.seeds)) if job.record]
        if finished:
            rows.append(_row(finished))
    rows.sort(key=lambda row: -row["ndcg@10"])
    if rows:
        rows.append(_popularity(next(job for job in _all(arguments, data) if job.record)))
    published = {model: " · ".join(texts) for model, texts in _published(data).items()}
    cells = [
        [
            row["model"],
            row["learned from"],
            row["seeds"],
            *(f"{row[metric]:.4f} {row.get(f'{metric} interval', '')}".strip() for metric in METRICS),
            row["spread"],
            row["seconds"],
            published.get(row["model"], ""),
        ]
        for row in rows
    ]
    headers = [
        "model",
        "learned from",
        "seeds",
        *METRICS,
        "sd of ndcg@10",
        "s to best (CPU s)",
        "published hr / ndcg / mrr",
    ]
    return tabulate(cells, headers=headers, tablefmt="github", disable_numparse=True)


def _all(arguments: argparse.Namespace, data: str) -> Iterator[Job]:
    return (Job(data, model, seed, arguments) for seed in range(arguments.seeds) for model in arguments.models)


def _row(finished: Sequence[Job]) -> dict[str, Any]:
    records = [job.record for job in finished if job.record]
    config = finished[0].run.config()
    scores = [record["splits"]["test"]["model"] for record in records]
    row: dict[str, Any] = {"model": finished[0].model, "seeds": str(len(finished))}
    for metric in METRICS:
        means = [score[metric]["mean"] for score in scores]
        # Users are the same for all seeds: their interval does not shrink with seeds, it is that of one run.
        half = statistics.mean((score[metric]["high"] - score[metric]["low"]) / 2 for score in scores)
        mean = statistics.mean(means)
        row |= {metric: mean, f"{metric} interval": f"[{mean - half:.4f}, {mean + half:.4f}]"}
    ndcgs = [score["ndcg@10"]["mean"] for score in scores]
    row["spread"] = f"{statistics.stdev(ndcgs):.4f}" if len(ndcgs) > 1 else ""
    took = (
        statistics.mean(record["training"][f"{kind}seconds_to_best"] for record in records) for kind in ("", "cpu_")
    )
    row["seconds"] = "{:.0f} ({:.0f})".format(*took)
    train = config.train
    prefixes = "" if train.prefixes_per_user == "all" else f", {train.prefixes_per_user} prefixes a user"
    row["learned from"] = f"{train.supervision}{prefixes}, {records[0]['training']['loss']}"
    return row


def _popularity(job: Job) -> dict[str, Any]:
    record: Any = job.record
    scores = record["splits"]["test"]["popularity"]
    means = {metric: scores[metric]["mean"] for metric in METRICS}
    return {"model": "popularity (counted)", "learned from": "", "seeds": "", "spread": "", "seconds": "", **means}


def _published(data: str) -> dict[str, list[str]]:
    """What papers print for this data set, by model."""
    found: dict[str, list[str]] = {}
    for path in sorted((CONFIGS / "published").glob("*.yaml")):
        paper = yaml.safe_load(path.read_text())
        for model, scores in paper["results"].get(data, {}).items():
            found.setdefault(model, []).append(" / ".join(f"{score:.4f}" for score in scores) + f" ({paper['source']})")
    return found


def main(arguments: argparse.Namespace) -> None:
    """Check every configuration, train, print."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a run that is under way is stopped too
    for data in arguments.data:
        for job in _all(arguments, data):
            job.refuse_other_settings()
    failed = [] if arguments.table_only else train_all(arguments)
    for data in arguments.data:
        print(f"\n{data}\n\n{table(arguments, data)}")
    if failed:
        raise RunError(f"failed: {', '.join(failed)}")


def _name(kind: str, names: Collection[str]) -> Callable[[str], str]:
    """What checks a name on the command line; argparse takes all words after an option for its names."""

    def check(word: str) -> str:
        if word not in names:
            hint = "settings stand before it or after another option" if "=" in word else ", ".join(names)
            raise argparse.ArgumentTypeError(f"{word} is no {kind}: {hint}")
        return word

    return check


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/leaderboard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="laid over every run")
    data_sets = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    parser.add_argument(
        "--data",
        nargs="+",
        type=_name("data set", data_sets),
        metavar="DATA",
        default=["ml-100k", "amazon-beauty", "ml-1m"],
        help="names of configs/*.yaml",
    )
    parser.add_argument(
        "--models", nargs="+", type=_name("model", MODELS), metavar="MODEL", default=list(MODELS), help="default: all"
    )
    parser.add_argument("--data-folder", help="where <data>.inter.gz lie; default: what the configs say")
    parser.add_argument("--root", default="runs/leaderboard", help="where the runs stand")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each model (default: 3)")
    parser.add_argument(
        "--seeds-below",
        type=float,
        default=900,
        help="seconds of processor time (of its first worker) that a run may take to be repeated",
    )
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds to train for at most")
    parser.add_argument("--table-only", action="store_true", help="train nothing, print what there is")
    return parser


if __name__ == "__main__":
    run_verb(main, _parser())
