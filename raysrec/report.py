"""One table of any number of runs, with the popularity baseline beside every result, and a page of them.

A sweep stands for its trials; named alone, it has a page of its own.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pyarrow import fs
from tabulate import tabulate, tabulate_formats

from raysrec.command_line import run_verb
from raysrec.comparing.boards import boards, shown_k
from raysrec.comparing.published import DEFAULT
from raysrec.comparing.runs import RunResults, read_runs
from raysrec.pages import runs_page, write_sweep_page
from raysrec.place import AnyPath, Place, PlaceError
from raysrec.run_directory import RunDirectory, RunError
from raysrec.run_record import RunRecord, Score, TrainingSummary, Who
from raysrec.sweep import SweepDirectory

PAGE = "report.html"
"""Where the page is written, in the folder one works in, if no other place is named."""


def print_runs(paths: Sequence[AnyPath]) -> None:
    """Print the table of these runs; the half-width of the 95 % interval stands beside each score."""
    runs = read_runs(paths)
    print(table(runs))
    for line in remarks(runs):
        print(line)


def remarks(runs: Sequence[RunResults]) -> list[str]:
    """A line for each time that a finished run had to go on, and why, and for scores that cannot be read."""
    lines = []
    for run in runs:
        lines += [f"{run.name}  {problem}" for problem in run.problems if run.state == "damaged"]
        restarts = run.record.training.restarts if run.record else ()
        lines += [f"{run.name}  {event['at']}  {event['text']}" for event in restarts]
    return lines


def table(runs: Sequence[RunResults], *, split: str = "test", style: str = "simple") -> str:
    """The rows of these runs, best NDCG first, and a popularity row below those that ranked the same targets.

    Scores are those at 10; at the largest cut-off there is, if none of the runs computed them at 10.

    Args:
        runs: Those without scores are listed, and why.
        split: `test` or `validation`.
        style: A format of tabulate, for example `github`.
    """
    k = shown_k(runs, split)
    metrics = [f"hr@{k}", f"ndcg@{k}", f"mrr@{k}", "coverage@10"]
    rows: list[list[str]] = []
    for board in sorted(boards(runs, split=split, metric=f"ndcg@{k}"), key=lambda board: board.title + board.rule):
        rule = f", {board.rule}" if board.rule else ""
        records = [(run.name + rule, run.record) for run in board.runs if run.record]
        for name, record in records:
            rows.append([*_row(name, record, split, "model", metrics), *_training_cells(record, f"ndcg@{k}")])
        rows.append(_row(f"popularity ({board.title}{rule})", records[0][1], split, "popularity", metrics))
    rows += [[run.name, run.state] for run in runs if not run.record]
    headers = ["run", "users", *metrics, f"validation ndcg@{k}", "trained in", "best at"]
    return tabulate(rows, headers=headers, tablefmt=style, disable_numparse=True)


def _row(name: str, record: RunRecord, split: str, who: Who, metrics: Sequence[str]) -> list[str]:
    return [name, f"{record.of(split).users:,}", *(_cell(record.score(split, metric, who)) for metric in metrics)]


def _training_cells(record: RunRecord, metric: str) -> list[str]:
    training, validation = record.training, record.score("validation", metric)
    workers = "1 worker" if training.workers == 1 else f"{training.workers} workers"
    return [
        f"{validation.mean:.4f}" if validation else "",
        f"{training.seconds:.0f} s, {workers}{_how_it_went(training)}",
        f"epoch {training.best_epoch}, {training.seconds_to_best:.0f} s",
    ]


def _how_it_went(training: TrainingSummary) -> str:
    count = sum(event["kind"] == "start" for event in training.restarts)
    restarted = f", {count} restart{'s' * (count > 1)}" if count else ""
    return restarted + ", ended early" * training.ended_early


def _cell(score: Score | None) -> str:
    if score is None:
        return ""
    return f"{score.mean:.4f}" + ("" if score.half is None else f" ±{score.half:.4f}")


def main(arguments: argparse.Namespace) -> None:
    """Print the table of the runs that were named, and write their page."""
    folders = [place for name in arguments.runs for place in _folders(name)]
    if not folders:
        raise RunError(f"{' '.join(arguments.runs)}: holds no run directory; runs are made by raysrec.train")
    sweeps = [folder for folder in folders if SweepDirectory.is_sweep(folder)]
    paths = [path for folder in folders for path in (_trials(folder) if folder in sweeps else [folder])]
    runs = read_runs(paths)
    print(table(runs, split=arguments.split, style=arguments.format))
    for line in remarks(runs) if arguments.format == "simple" else []:
        print(line)
    try:
        page = _write_page(folders, sweeps, runs, arguments)
    except (OSError, PlaceError) as error:
        if arguments.page:
            raise
        print(f"the page cannot be written: {error}; name another place with --page FILE", file=sys.stderr)
    else:
        print(f"page  {page}", file=sys.stderr)


def _write_page(
    folders: Sequence[Place], sweeps: Sequence[Place], runs: Sequence[RunResults], arguments: argparse.Namespace
) -> Place:
    """Write the page of one sweep, or of the runs; where it is."""
    if sweeps == folders and len(sweeps) == 1:
        return write_sweep_page(sweeps[0], arguments.page)
    place = Place.of(arguments.page or PAGE)
    published = Path(arguments.published) if arguments.published else DEFAULT
    place.write(runs_page(runs, split=arguments.split, published=published))
    return place


def _trials(sweep: Place) -> list[Place]:
    """The runs of a sweep that were begun, in order."""
    inside = SweepDirectory(sweep).runs.below(recursive=False)
    folders = [sweep.at(info.path) for info in sorted(inside, key=lambda info: info.path)]
    return [folder for folder in folders if RunDirectory(folder).config_file.is_file()]


def _folders(name: str) -> list[Place]:
    """The folder of this name; in a store, where no shell does it, `…/*` stands for every folder in that one."""
    place = Place.of(name)
    if not place.is_local and place.name == "*":
        inside = place.at(place.path.removesuffix("/*")).below(recursive=False)
        return [place.at(info.path) for info in inside if info.type == fs.FileType.Directory]
    return [place] if place.info().type == fs.FileType.Directory else []


def parser() -> argparse.ArgumentParser:
    """Reads the command line."""
    command_line = argparse.ArgumentParser(prog="python -m raysrec.report", description=__doc__)
    command_line.add_argument(
        "runs", nargs="+", help="directories of runs and sweeps, for example runs/* or 's3://bucket/runs/*'"
    )
    command_line.add_argument(
        "--split", choices=("test", "validation"), default="test", help="which held-out items (default: test)"
    )
    command_line.add_argument(
        "--format",
        choices=tabulate_formats,
        default="simple",
        metavar="FORMAT",
        help="simple, github, latex, tsv or another format of tabulate (default: simple)",
    )
    command_line.add_argument(
        "--page",
        metavar="FILE",
        help=f"where the page goes, HTML with plots which opens offline (default: {PAGE}; a sweep's, in its folder)",
    )
    command_line.add_argument(
        "--published",
        metavar="FOLDER",
        help="figures of papers, for the page (default: configs/published of a checkout)",
    )
    return command_line


if __name__ == "__main__":
    run_verb(main, parser())
