"""One table of any number of runs, with the popularity baseline beside every result."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from raysrec.checkpoint import RunDirectory, RunError
from raysrec.command_line import run_verb

HEADERS = ["run", "users", "hr@10", "ndcg@10", "mrr@10", "coverage@10", "validation ndcg@10", "trained in", "best at"]


def print_runs(paths: Sequence[Path], *, split: str = "test") -> None:
    """Print the table of these runs; the half-width of the 95 % interval stands beside each score."""
    print(table(paths, split=split))


def table(paths: Sequence[Path], *, split: str = "test", style: str = "simple") -> str:
    """The rows of these runs, best NDCG@10 first, and one popularity row per data set.

    Args:
        paths: Run directories; those that have not finished are listed as such.
        split: `test` or `validation`.
        style: A format of tabulate, for example `github`.
    """
    records = [(path, _record(path)) for path in paths]
    finished = [(path, record) for path, record in records if record]
    finished.sort(key=lambda pair: (pair[1]["data"], -_score(pair[1], split, "ndcg@10")))
    rows: list[list[str]] = []
    for index, (path, record) in enumerate(finished):
        rows.append(_row(path.name, record["splits"][split], "model", record))
        is_last_of_data = index + 1 == len(finished) or finished[index + 1][1]["data"] != record["data"]
        if is_last_of_data:
            rows.append(_row(f"popularity ({record['data']})", record["splits"][split], "popularity", None))
    rows += [[path.name, "not finished"] for path, record in records if not record]
    return tabulate(rows, headers=HEADERS, tablefmt=style, disable_numparse=True)


def _record(path: Path) -> dict[str, Any] | None:
    run = RunDirectory.open(path)
    return json.loads(run.metrics_file.read_text()) if run.metrics_file.is_file() else None  # type: ignore[no-any-return]


def _score(record: dict[str, Any], split: str, name: str) -> float:
    return float(record["splits"][split]["model"][name]["mean"])


def _row(name: str, scores: dict[str, Any], who: str, record: dict[str, Any] | None) -> list[str]:
    cells = [name, f"{scores['users']:,}"]
    cells += [_cell(scores[who].get(metric)) for metric in ("hr@10", "ndcg@10", "mrr@10", "coverage@10")]
    if record is None:
        return cells
    training = record["training"]
    return [
        *cells,
        f"{_score(record, 'validation', 'ndcg@10'):.4f}",
        f"{training['seconds']:.0f} s, {training['workers']} workers",
        f"epoch {training['best_epoch']}, {training['seconds_to_best']:.0f} s",
    ]


def _cell(value: dict[str, float] | None) -> str:
    if value is None:
        return ""
    half = f" ±{(value['high'] - value['low']) / 2:.4f}" if "low" in value else ""
    return f"{value['mean']:.4f}{half}"


def main(arguments: argparse.Namespace) -> None:
    """Print the table of the runs that were named."""
    paths = [Path(path) for path in arguments.runs if Path(path).is_dir()]
    if not paths:
        raise RunError(f"{' '.join(arguments.runs)}: holds no run directory; runs are made by raysrec.train")
    print(table(paths, split=arguments.split, style=arguments.format))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m raysrec.report", description=__doc__)
    parser.add_argument("runs", nargs="+", help="run directories, for example runs/*")
    parser.add_argument("--split", choices=("test", "validation"), default="test", help="which held-out items (default: test)")
    parser.add_argument("--format", default="simple", help="simple, github, latex, tsv or another format of tabulate")
    return parser


if __name__ == "__main__":
    run_verb(main, _parser())
