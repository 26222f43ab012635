"""One table of any number of runs, with the popularity baseline beside every result; a page of them, or of a sweep."""

import argparse
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from pyarrow import fs
from tabulate import tabulate, tabulate_formats

from raysrec.command_line import run_verb
from raysrec.pages import runs_page, write_sweep_page
from raysrec.pages.published import DEFAULT
from raysrec.pages.runs import other_rule
from raysrec.place import AnyPath, Place
from raysrec.progress import shown_cutoff
from raysrec.run_directory import RunDirectory, RunError
from raysrec.sweep import SweepDirectory

Record = dict[str, Any]
"""What `metrics.json` of a finished run says."""


def print_runs(paths: Sequence[AnyPath], *, split: str = "test") -> None:
    """Print the table of these runs; the half-width of the 95 % interval stands beside each score."""
    print(table(paths, split=split))
    for line in restarts(paths):
        print(line)


def restarts(paths: Sequence[AnyPath]) -> list[str]:
    """A line for each time that a finished run had to go on, and why."""
    return [
        f"{Place.of(path).absolute().name}  {event['at']}  {event['text']}"
        for path in paths
        if (record := _record(path))
        for event in record["training"].get("restarts", [])
    ]


def table(paths: Sequence[AnyPath], *, split: str = "test", style: str = "simple") -> str:
    """The rows of these runs, best NDCG first, and one popularity row per data set.

    Scores are those at 10; at the largest cut-off there is, if none of the runs computed them at 10.

    Args:
        paths: Run directories; those that have not finished are listed as such.
        split: `test` or `validation`.
        style: A format of tabulate, for example `github`.
    """
    records = [(Place.of(path).absolute().name, _record(path)) for path in paths]
    finished = [(run, record) for run, record in records if record]
    names = [name for _, record in finished for name in record["splits"][split]["model"]]
    k = shown_cutoff(name for name in names if not name.startswith("coverage"))
    metrics = [f"hr@{k}", f"ndcg@{k}", f"mrr@{k}", "coverage@10"]
    finished.sort(key=lambda pair: (_ranked_on(pair[1]), -(_score(pair[1], split, f"ndcg@{k}") or 0.0)))
    rows: list[list[str]] = []
    for data, group in groupby(finished, key=lambda pair: _ranked_on(pair[1])):
        runs = list(group)
        for run, record in runs:
            name = run + other_rule(record)
            rows.append([*_row(name, record["splits"][split], "model", metrics), *_training_cells(record, f"ndcg@{k}")])
        rows.append(_row(f"popularity ({data})", runs[0][1]["splits"][split], "popularity", metrics))
    rows += [[run, "not finished"] for run, record in records if not record]
    headers = ["run", "users", *metrics, f"validation ndcg@{k}", "trained in", "best at"]
    return tabulate(rows, headers=headers, tablefmt=style, disable_numparse=True)


def _record(path: AnyPath) -> Record | None:
    return RunDirectory.open(path).metrics()


def _ranked_on(record: Record) -> str:
    """Which data and by which rule: only runs that agree on both are compared with one popularity row."""
    return str(record["data"]) + other_rule(record)


def _score(record: Record, split: str, metric: str) -> float | None:
    """The model's mean; None if it was not computed at this cut-off."""
    score = record["splits"][split]["model"].get(metric)
    return None if score is None else float(score["mean"])


def _row(name: str, scores: dict[str, Any], who: str, metrics: Sequence[str]) -> list[str]:
    return [name, f"{scores['users']:,}", *(_cell(scores[who].get(metric)) for metric in metrics)]


def _training_cells(record: Record, metric: str) -> list[str]:
    training, validation = record["training"], _score(record, "validation", metric)
    workers = "1 worker" if training["workers"] == 1 else f"{training['workers']} workers"
    return [
        "" if validation is None else f"{validation:.4f}",
        f"{training['seconds']:.0f} s, {workers}{_restarted(training)}",
        f"epoch {training['best_epoch']}, {training['seconds_to_best']:.0f} s",
    ]


def _restarted(training: dict[str, Any]) -> str:
    count = sum(event["kind"] == "start" for event in training.get("restarts", []))
    return f", {count} restart{'s' * (count > 1)}" if count else ""


def _cell(value: dict[str, float] | None) -> str:
    if value is None:
        return ""
    half = f" ±{(value['high'] - value['low']) / 2:.4f}" if "low" in value else ""
    return f"{value['mean']:.4f}{half}"


def main(arguments: argparse.Namespace) -> None:
    """Print the table of the runs that were named."""
    paths = [place for name in arguments.runs for place in _folders(name)]
    sweeps = [path for path in paths if SweepDirectory.is_sweep(path)]
    if sweeps and (len(paths) > 1 or not arguments.page):
        raise RunError(
            f"{sweeps[0]}: is a sweep; name it alone and with --page FILE, or its trials as {sweeps[0]}/trials/*"
        )
    if sweeps:
        print(write_sweep_page(sweeps[0], arguments.page))
        return
    if not paths:
        raise RunError(f"{' '.join(arguments.runs)}: holds no run directory; runs are made by raysrec.train")
    print(table(paths, split=arguments.split, style=arguments.format))
    for line in restarts(paths) if arguments.format == "simple" else []:
        print(line)
    if arguments.page:
        published = Path(arguments.published) if arguments.published else DEFAULT
        Place.of(arguments.page).write(runs_page(paths, split=arguments.split, published=published))
        print(f"page  {arguments.page}")


def _folders(name: str) -> list[Place]:
    """The folder of this name; in a store, where no shell does it, `…/*` stands for every folder in that one."""
    place = Place.of(name)
    if not place.is_local and place.name == "*":
        inside = place.at(place.path.removesuffix("/*")).below(recursive=False)
        return [place.at(info.path) for info in inside if info.type == fs.FileType.Directory]
    return [place] if place.info().type == fs.FileType.Directory else []


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m raysrec.report", description=__doc__)
    parser.add_argument("runs", nargs="+", help="run directories, for example runs/* or 's3://bucket/runs/*'")
    parser.add_argument(
        "--split", choices=("test", "validation"), default="test", help="which held-out items (default: test)"
    )
    parser.add_argument(
        "--format",
        choices=tabulate_formats,
        default="simple",
        metavar="FORMAT",
        help="simple, github, latex, tsv or another format of tabulate (default: simple)",
    )
    parser.add_argument("--page", metavar="FILE", help="also write an HTML page with plots, which opens offline")
    parser.add_argument(
        "--published",
        metavar="FOLDER",
        help="figures of papers, for the page (default: configs/published of a checkout)",
    )
    return parser


if __name__ == "__main__":
    run_verb(main, _parser())
