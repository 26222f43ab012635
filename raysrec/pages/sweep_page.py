"""The page of a sweep: its trials by score, which parameters mattered, and the best that each time could buy."""

from collections.abc import Sequence

from raysrec.comparing.importance import LEAST_TRIALS, Importance, importances, is_number
from raysrec.comparing.sweeps import SweepResults, pareto, read_sweep
from raysrec.pages import figures, words
from raysrec.pages.html import Cell, Part, Plot, Section, Table, page
from raysrec.place import AnyPath, Place
from raysrec.sweep import TrialRecord

PAGE = "report.html"
"""Name of the page in the sweep's folder."""

LOG_FROM = 20.0
"""A parameter is drawn on a logarithmic axis if its largest value is so many times its smallest."""


def write_sweep_page(path: AnyPath, to: AnyPath | None = None) -> Place:
    """Write the page of the sweep in this folder, into it if no other place is named; the page's place.

    Raises:
        SweepError: It is no sweep.
        PlaceError: A store fails.
    """
    place = Place.of(to) if to else Place.of(path) / PAGE
    place.write(sweep_page(read_sweep(path)))
    return place


def sweep_page(sweep: SweepResults) -> str:
    """One HTML file on a sweep, finished or not."""
    scored = [trial for trial in sweep.ranked if trial.best]
    numbers = {trial.name: number for number, trial in enumerate(scored[: figures.COLOURS])}
    parts = [_best(sweep, scored), _trials(sweep, numbers)]
    if scored:
        found = importances(sweep.trials, sweep.parameters)
        parts += [_importance(sweep, found), _against(sweep, scored, found), _curves(sweep, scored, numbers)]
        parts.append(_time(sweep, scored))
    states = [trial.state for trial in sweep.trials]
    said = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    summary = {"trials": said or "none yet", "score": f"best validation {sweep.metric}"}
    if not sweep.finished:
        summary["state"] = "not finished: what follows can change"
    if sweep.how:
        summary["how"] = sweep.how
    return page(f"Sweep {sweep.name}", summary, [Section("Results", [], parts)])


def _best(sweep: SweepResults, scored: Sequence[TrialRecord]) -> Part:
    best = next((trial for trial in scored if not trial.failed), None)
    if best is None:
        said = "Every trial that was validated has failed." if scored else "No trial has been validated yet."
        return Part("Best trial", [said])
    assert best.best is not None
    settings = "  ".join(f"{name}={words.setting(value)}" for name, value in best.parameters.items())
    took = words.duration(best.best.seconds).text
    said = f"{best.name} reached {best.best.score:.4f} at epoch {best.best.epoch}, after {took}."
    warning = (
        "It is the best of these by the validation score, which is therefore too good; how good it is, its test score "
        "says."
    )
    code = sweep.best_config or settings
    words_of_code = (
        "Its configuration, ready for raysrec.train --config (best.yaml):" if sweep.best_config else "It had:"
    )
    return Part("Best trial", [said, words_of_code], code=code, after=[warning])


def _trials(sweep: SweepResults, numbers: dict[str, int]) -> Part:
    headers = ["trial", *sweep.parameters, f"validation {sweep.metric}", "at epoch", "epochs", "time", "state", "note"]
    rows = []
    for trial in sweep.ranked:
        values = [_value(trial.parameters.get(name)) for name in sweep.parameters]
        best = trial.best
        rows.append(
            [
                Cell(trial.name, series=numbers.get(trial.name)),
                *values,
                words.score(trial.score, strong=numbers.get(trial.name) == 0 and not trial.failed),
                words.number(best.epoch if best else None),
                words.number(trial.epoch or None),
                words.duration(trial.seconds or None),
                Cell(trial.state),
                Cell(trial.why),
            ]
        )
    return Part("Trials", tables=[Table(f"Best first by validation {sweep.metric}", headers, rows, sortable=True)])


def _value(value: object) -> Cell:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    return Cell(words.setting(value), sort=number)


def _importance(sweep: SweepResults, found: Sequence[Importance]) -> Part:
    said = {one.parameter: one for one in found if one.share is not None}
    unsaid = [f"{one.parameter} ({one.reason})" for one in found if one.share is None]
    how = (
        "For each parameter alone: the share of the variance of the scores' ranks that lies between groups of its "
        "values (numbers in quarters; Kruskal-Wallis, what chance gives taken off), and how often shuffled scores give "
        "as much. It does not see what two parameters do only together, and trials that were stopped early count with "
        "the best they had."
    )
    left = [f"Nothing can be said of {', '.join(unsaid)}."] if unsaid else []
    if not said:
        why = f"Nothing can be said of any parameter before {LEAST_TRIALS} trials have a score and values repeat."
        return Part("Which parameters mattered", [why], after=left)
    rows = [
        [
            Cell(name),
            Cell(f"{one.share:.0%}", sort=one.share),
            Cell(words.p_value(one.p_value or 0.0), sort=one.p_value),
        ]
        for name, one in said.items()
        if one.share is not None
    ]
    table = Table("Importance", ["parameter", "share", "p by permutation"], rows)
    figure = figures.bars({name: one.share or 0.0 for name, one in said.items()}, x="share of the variance of ranks")
    plot = Plot("Share of the scores' variance that goes with each parameter", figure)
    return Part("Which parameters mattered", tables=[table], plots=[plot], after=[how, *left])


def _against(sweep: SweepResults, scored: Sequence[TrialRecord], found: Sequence[Importance]) -> Part:
    plots = []
    for name in (one.parameter for one in found):
        having = [trial for trial in scored if name in trial.parameters]
        values = [trial.parameters[name] for trial in having]
        numeric = is_number(values)
        log = numeric and min(values) > 0 and max(values) >= LOG_FROM * min(values)
        shown = values if numeric else [words.setting(value) for value in values]
        names, scores = [trial.name for trial in having], [trial.score or 0.0 for trial in having]
        figure = figures.points(names, shown, scores, x=name, y=sweep.metric, log=log)
        plots.append(Plot(f"{sweep.metric} by {name}", figure))
    return Part(
        "Score against each parameter",
        plots=plots,
        after=["A mark is a trial; its values stand in the table of trials."],
    )


def _curves(sweep: SweepResults, scored: Sequence[TrialRecord], numbers: dict[str, int]) -> Part:
    lines = {trial.name: ([p.epoch for p in trial.curve], [p.score for p in trial.curve]) for trial in reversed(scored)}
    key = [Cell(name, series=number) for name, number in numbers.items()]
    plot = Plot(
        f"Validation {sweep.metric} by epoch", figures.lines(lines, numbers, x="epoch", y=sweep.metric), wide=True
    )
    after = [f"The {len(numbers)} best are in colour."] if len(scored) > len(numbers) else []
    return Part("Learning curves", plots=[plot], key=key, after=after)


def _time(sweep: SweepResults, scored: Sequence[TrialRecord]) -> Part:
    having = [(trial, trial.best) for trial in scored if trial.best]
    minutes = [best.seconds / 60 for _, best in having]
    front = [(trial, trial.best) for trial in pareto(scored) if trial.best]
    names = [trial.name for trial, _ in having]
    figure = figures.points(
        names, minutes, [best.score for _, best in having], x="minutes to the best epoch", y=sweep.metric
    )
    figure = figures.front(figure, [best.seconds / 60 for _, best in front], [best.score for _, best in front])
    rows = [[Cell(trial.name), words.duration(best.seconds), words.score(best.score)] for trial, best in front]
    table = Table("Trials that none beats in less time", ["trial", "time to its best epoch", sweep.metric], rows)
    after = ["Times are comparable only if trials had the same machines and as many neighbours on them."]
    return Part(
        "Score and time", plots=[Plot("Score and time, and the best for each time", figure, table)], after=after
    )
