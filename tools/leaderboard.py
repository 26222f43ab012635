"""Train every model on every data set, several seeds where that is cheap, and print the table beside published figures.

    tools/leaderboard --data ml-100k amazon-beauty --data-folder ../shared/data --budget 7200

A run is `configs/<data>.yaml`, then `configs/models/<model>.yaml`, then where there is one `configs/recipes/` with
`<data>-<supervision>.yaml` and `<data>-<model>.yaml`, and stands under `--root`. Runs that are finished are not
repeated, and one that was interrupted goes on, so the same command, typed again, continues. The first seed of every
model comes before any second one.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from tabulate import tabulate

from raysrec.command_line import run_verb
from raysrec.comparing.published import read_published
from raysrec.config.loading import load
from raysrec.config.run import RunConfig
from raysrec.models import MODELS
from raysrec.place import Place
from raysrec.run_directory import RunDirectory, RunError
from raysrec.run_record import RunRecord

CONFIGS = Path(__file__).parent.parent / "configs"
METRICS = ("hr@10", "ndcg@10", "mrr@10")


@dataclass(frozen=True)
class Board:
    """Where the runs stand, and what is laid over every one of them."""

    root: str
    data_folder: str | None
    overrides: tuple[str, ...]

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "Board":
        """The one that the command line asks for."""
        return cls(str(arguments.root), arguments.data_folder, tuple(arguments.overrides))


@dataclass(frozen=True)
class Job:
    """One training."""

    board: Board
    data: str
    model: str
    seed: int

    @property
    def name(self) -> str:
        """The run's folder under the root."""
        return f"{self.data}-{self.model}-seed{self.seed}"

    @property
    def run(self) -> RunDirectory:
        """Where it is kept."""
        return RunDirectory(Place.of(self.board.root) / self.name)

    def refuse_other_settings(self) -> None:
        """See that what stands in the run's folder is a run of this job, and ranked as this job would be.

        Raises:
            RunError: It has other settings, or was ranked again with others.
        """
        if changes := self.run.other_settings(self.config()):
            raise RunError(f"{self.run.path} has other settings: {changes}; take another --root, or remove it")
        asked = self.config().evaluate.model_dump(mode="json")
        record = self.run.record()
        ranked = record.evaluate if record else asked
        for key in ("exclude_seen", "ks"):  # the others change no score
            if ranked.get(key, asked[key]) != asked[key]:
                raise RunError(
                    f"{self.run.path} was ranked with evaluate.{key}={json.dumps(ranked[key])}, which is not how the "
                    f"others are: python -m raysrec.evaluate {self.run.path} "
                    f"'evaluate.{key}={json.dumps(asked[key])}' ranks it again"
                )

    def files(self) -> list[Path]:
        """The configuration, layer over layer."""
        layers = [CONFIGS / f"{self.data}.yaml", CONFIGS / "models" / f"{self.model}.yaml"]
        supervision = load(layers).train.supervision
        recipes = (CONFIGS / "recipes" / f"{self.data}-{way}.yaml" for way in (supervision, self.model))
        return [*layers, *(recipe for recipe in recipes if recipe.is_file())]

    def settings(self) -> list[str]:
        """What is laid over the files."""
        settings = [f"train.seed={self.seed}", f"storage.root={self.board.root}", f"storage.name={self.name}"]
        if self.board.data_folder:
            source = Path(self.board.data_folder) / f"{self.data}.inter.gz"
            settings += [f"data.source={source}", "data.format=recbole"]
        return [*settings, *self.board.overrides]

    def config(self) -> RunConfig:
        """The whole configuration; raises if it cannot be."""
        return load(self.files(), self.settings())

    def command(self) -> list[str]:
        """What to type to train it."""
        files = [part for path in self.files() for part in ("--config", str(path))]
        return [sys.executable, "-m", "raysrec.train", *files, *self.settings()]


def jobs_of(arguments: argparse.Namespace, data: str, model: str) -> list[Job]:
    """One data set and model with every seed."""
    return [Job(Board.of(arguments), data, model, seed) for seed in range(arguments.seeds)]


def jobs_to_do(arguments: argparse.Namespace) -> Iterator[Job]:
    """What is not yet trained, in order; later seeds of a model where its first took less than `--seeds-below`."""
    for seed in range(arguments.seeds):
        for data in arguments.data:
            for model in arguments.models:
                first, *_ = jobs = jobs_of(arguments, data, model)
                if jobs[seed].run.record() is not None:
                    continue
                record = first.run.record()
                if seed == 0 or (record and (record.training.cpu_seconds or 0.0) < arguments.seeds_below):
                    yield jobs[seed]


def train_all(arguments: argparse.Namespace) -> list[str]:
    """Train what is missing until all is there or the budget is spent; the names of the runs that failed."""
    failed = []
    ends = time.monotonic() + arguments.budget
    for job in jobs_to_do(arguments):
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
        with suppress(subprocess.TimeoutExpired):
            try:
                return process.wait(timeout=seconds)
            finally:
                _stop(process)
        return process.wait()


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End a process, gently first, and then whatever it has left of its group, as one does that is killed."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)  # background jobs of a shell are deaf to SIGINT
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=60)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    model: str
    scores: Mapping[str, float]
    """By metric, means over seeds."""
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """By metric, the 95 % interval of one seed around it: users are the same for all, so seeds do not shorten it."""
    learned_from: str = ""
    seeds: str = ""
    spread: str = ""
    seconds: str = ""
    published: str = ""

    def cells(self) -> list[str]:
        """What it reads."""
        scores = [f"{score:.4f} {self._interval(metric)}".strip() for metric, score in self.scores.items()]
        return [self.model, self.learned_from, self.seeds, *scores, self.spread, self.seconds, self.published]

    def _interval(self, metric: str) -> str:
        return "[{:.4f}, {:.4f}]".format(*self.intervals[metric]) if metric in self.intervals else ""


def table(arguments: argparse.Namespace, data: str) -> str:
    """One data set's finished runs, best first: means over seeds beside what was published."""
    published = _published(data)
    rows: list[Row] = []
    popularity: Row | None = None
    for model in arguments.models:
        finished = [
            (job, record) for job in jobs_of(arguments, data, model) if (record := job.run.record()) is not None
        ]
        if finished:
            records = [record for _, record in finished]
            row = _row(model, finished[0][0].run.config(), records)
            rows.append(replace(row, published=" · ".join(published.get(model, ()))))
            popularity = popularity or _popularity(records[0])
    rows.sort(key=lambda row: -row.scores["ndcg@10"])
    headers = ["model", "learned from", "seeds", *METRICS, "sd of ndcg@10", "s to best (CPU s)"]
    cells = [row.cells() for row in (*rows, *((popularity,) if popularity else ()))]
    return tabulate(cells, [*headers, "published hr / ndcg / mrr"], tablefmt="github", disable_numparse=True)


def _row(model: str, config: RunConfig, records: Sequence[RunRecord]) -> Row:
    """What the seeds of one model reached."""
    scores = {name: [record.splits.test.model[name] for record in records] for name in METRICS}
    ndcgs = [score.mean for score in scores["ndcg@10"]]
    training = [record.training for record in records]
    seconds = statistics.mean(one.seconds_to_best for one in training)
    cpu_seconds = statistics.mean(one.cpu_seconds_to_best or 0.0 for one in training)
    prefixes = config.train.prefixes_per_user
    drawn = "" if prefixes == "all" else f", {prefixes} prefixes a user"
    return Row(
        model,
        scores={name: statistics.mean(one.mean for one in found) for name, found in scores.items()},
        intervals={
            name: (statistics.mean(one.low or 0.0 for one in found), statistics.mean(one.high or 0.0 for one in found))
            for name, found in scores.items()
        },
        learned_from=f"{config.train.supervision}{drawn}, {training[0].loss}",
        seeds=str(len(records)),
        spread=f"{statistics.stdev(ndcgs):.4f}" if len(ndcgs) > 1 else "",
        seconds=f"{seconds:.0f} ({cpu_seconds:.0f})",
    )


def _popularity(record: RunRecord) -> Row:
    return Row("popularity (counted)", scores={name: record.splits.test.popularity[name].mean for name in METRICS})


def _published(data: str) -> dict[str, list[str]]:
    """What papers print for this data set, by model."""
    found: dict[str, list[str]] = {}
    for figure in read_published(CONFIGS / "published"):
        if figure.data == data:
            scores = " / ".join(f"{score:.4f}" for score in figure.scores.values())
            found.setdefault(figure.model, []).append(f"{scores} ({figure.source})")
    return found


def main(arguments: argparse.Namespace) -> None:
    """Check every configuration, train, print."""
    for data in arguments.data:
        for model in arguments.models:
            for job in jobs_of(arguments, data, model):
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


def parser() -> argparse.ArgumentParser:
    """Reads the command line."""
    command_line = argparse.ArgumentParser(
        prog="tools/leaderboard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command_line.add_argument("overrides", nargs="*", metavar="key=value", help="laid over every run")
    data_sets = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    command_line.add_argument(
        "--data",
        nargs="+",
        type=_name("data set", data_sets),
        metavar="DATA",
        default=["ml-100k", "amazon-beauty", "ml-1m"],
        help="names of configs/*.yaml",
    )
    command_line.add_argument(
        "--models", nargs="+", type=_name("model", MODELS), metavar="MODEL", default=list(MODELS), help="default: all"
    )
    command_line.add_argument("--data-folder", help="where <data>.inter.gz lie; default: what the configs say")
    command_line.add_argument("--root", default="runs/leaderboard", help="where the runs stand")
    command_line.add_argument("--seeds", type=int, default=3, help="seeds of each model (default: 3)")
    command_line.add_argument(
        "--seeds-below",
        type=float,
        default=900,
        help="seconds of processor time (of its first worker) that a run may take to be repeated",
    )
    command_line.add_argument("--budget", type=float, default=float("inf"), help="seconds to train for at most")
    command_line.add_argument("--table-only", action="store_true", help="train nothing, print what there is")
    return command_line


if __name__ == "__main__":
    run_verb(main, parser())
