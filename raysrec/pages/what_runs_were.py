"""The parts of a page that say what runs were: settings, machines, speed, restarts, and how far the others came."""

from collections.abc import Sequence
from typing import Any

from raysrec.comparing.runs import RunResults, Settings
from raysrec.config.settings import flat
from raysrec.pages import curves, words
from raysrec.pages.html import Cell, Part, Table

LEFT_OUT = ("storage.", "data.prepared")
"""Settings that say where something lies."""

FEW = 12
"""Settings that differ up to which their table is open."""


def what_they_were(runs: Sequence[RunResults], numbers: dict[str, int]) -> list[Part]:
    """What the runs had in common, in what they differ, how they went, and where they had to start again."""
    differ = _settings(runs)
    few = all(len(table.rows) <= FEW for table in differ)
    tables, folded = [_facts(runs, numbers), *(differ if few else [])], [*([] if few else differ), _common(runs)]
    parts = [Part("What each run was", tables=tables, folded=folded)]
    restarts = [(run, event) for run in runs for event in run.restarts]
    if restarts:
        rows = [
            [Cell(run.name), Cell(str(event.get("at", ""))), Cell(str(event.get("text", "")))]
            for run, event in restarts
        ]
        table = Table("Where a run had to go on, and why", ["run", "when", "what"], rows)
        parts.append(Part("Restarts", tables=[table]))
    return parts


def unfinished_part(runs: Sequence[RunResults], metric: str) -> Part:
    """How far the runs without scores have come."""
    rows = []
    for run in runs:
        steps, scores = run.of_kind("step"), curves.validation(run, metric, by="epoch")[1]
        epochs = run.settings.get("train", {}).get("epochs")
        reached = f"{steps[-1]['progress']:.1f}" if steps else "0"
        rows.append(
            [
                Cell(run.name),
                Cell(run.state),
                Cell(run.data),
                Cell(run.model),
                Cell(f"{reached} of {epochs}" if epochs else reached),
                words.score(max(scores, default=None)),
                words.duration(steps[-1]["elapsed_s"] if steps else None),
                Cell(str(len([event for event in run.restarts if event["kind"] == "start"]))),
                Cell(run.last_written),
            ]
        )
    headers = ["run", "state", "data", "model", "epochs", f"best validation {metric}", "trained for", "restarts"]
    headers.append("log written")
    explained = (
        "These runs have no test scores. The same command goes on with one that is not finished; raysrec.evaluate "
        "ranks one that was trained and not ranked, as the trials of a sweep that are not its best."
    )
    return Part("How far they came", [explained], tables=[Table("Runs without scores", headers, rows)])


def problems_part(runs: Sequence[RunResults]) -> Part:
    """What of the runs could not be read."""
    rows = [[Cell(run.name), Cell(problem)] for run in runs for problem in run.problems]
    return Part("Runs with something missing", tables=[Table("What is left out of this page", ["run", "what"], rows)])


def _facts(runs: Sequence[RunResults], numbers: dict[str, int]) -> Table:
    headers = [
        "run",
        "learned from",
        "loss",
        "engine",
        "workers",
        "epochs",
        "steps",
        "targets/s",
        "data wait",
        "padding",
    ]
    headers += ["training", "restarts", "commit", "started"]
    return Table("How they were trained", headers, [_fact(run, numbers) for run in runs])


def _fact(run: RunResults, numbers: dict[str, int]) -> list[Cell]:
    training, steps = run.record.training if run.record else None, run.of_kind("step")
    settings = run.settings
    last: dict[str, Any] = steps[-1] if steps else {}
    starts = sum(event["kind"] == "start" for event in run.restarts)
    return [
        Cell(run.name, series=numbers.get(run.name)),
        Cell(str(settings.get("train", {}).get("supervision", ""))),
        Cell(str((training and training.loss) or settings.get("loss", {}).get("name", ""))),
        Cell(_engine(settings)),
        Cell(words.setting(training.workers if training else settings.get("scale", {}).get("workers"))),
        words.number(training.epochs if training else last.get("epoch")),
        words.number(training.steps if training else last.get("step")),
        words.number(curves.mean(steps, "targets_per_s")),
        words.number(curves.mean(steps, "data_wait_share"), ".1%"),
        words.number(curves.mean(steps, "padding_share"), ".1%"),
        words.duration(training.seconds if training else last.get("elapsed_s")),
        Cell(str(starts), sort=starts),
        Cell(str(run.provenance.get("commit") or "unknown")),
        Cell(str(run.provenance.get("started_at", "unknown")).replace("T", " ").removesuffix("+00:00")),
    ]


def _engine(settings: Settings) -> str:
    engine = settings.get("engine", {})
    stage = f", ZeRO {engine.get('zero_stage')}" if engine.get("name") == "deepspeed" else ""
    return f"{engine.get('name', '')}{stage}"


def _settings(runs: Sequence[RunResults]) -> list[Table]:
    settings = [_flat(run) for run in runs]
    keys = [key for key in _keys(settings) if len({words.setting(one.get(key)) for one in settings}) > 1]
    if not keys:
        return []
    rows = [[Cell(key), *(Cell(words.setting(one.get(key))) for one in settings)] for key in keys]
    caption = "Settings in which they differ" + (
        " (– is a setting that the model does not have)" if len(runs) > 1 else ""
    )
    return [Table(caption, ["setting", *(run.name for run in runs)], rows)]


def _common(runs: Sequence[RunResults]) -> Table:
    settings = [_flat(run) for run in runs]
    keys = [key for key in _keys(settings) if len({words.setting(one.get(key)) for one in settings}) == 1]
    rows = [[Cell(key), Cell(words.setting(settings[0].get(key)))] for key in keys]
    caption = "Settings that they have in common" if len(runs) > 1 else "All its settings"
    return Table(caption, ["setting", "value"], rows)


def _flat(run: RunResults) -> dict[str, Any]:
    return {key: value for key, value in flat(run.settings).items() if not key.startswith(LEFT_OUT)}


def _keys(settings: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for one in settings for key in one))
