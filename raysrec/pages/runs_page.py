"""The page of any number of runs: how they compare, how they learned, what they were, and what is missing."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from raysrec.comparing.boards import (
    Board,
    Compared,
    Group,
    boards,
    groups_by_length,
    groups_by_popularity,
    mean_of,
    score_of,
    shown_k,
    tests_against_best,
    tests_of_pairs,
)
from raysrec.comparing.published import DEFAULT, Published, read_published
from raysrec.comparing.runs import RunResults
from raysrec.pages import curves, figures, words
from raysrec.pages.html import Cell, Part, Plot, Section, Table, page
from raysrec.pages.what_runs_were import problems_part, unfinished_part, what_they_were
from raysrec.run_record import TrainingSummary, Who

DRAWN = figures.COLOURS
"""Runs of a data set that are drawn, best first; the tables have all."""

INTERVALS = (
    "± is half of a 95 % interval for the mean over users like these, the model held fixed: it says nothing of what "
    "another seed would train. The difference is to the best run on the same users, with its 95 % interval and the "
    "p-value of a paired test, made larger for the number of tests (Holm)."
)


def runs_page(runs: Sequence[RunResults], *, split: str = "test", published: Path = DEFAULT, title: str = "") -> str:
    """One HTML file on these runs.

    Args:
        runs: Finished or not.
        split: `test` or `validation`.
        published: Folder of what papers print; a folder that is not there gives none.
        title: Of the page.
    """
    finished = [run for run in runs if run.record]
    k = shown_k(runs, split)
    found = boards(runs, split=split, metric=f"ndcg@{k}")
    printed = read_published(published)
    sections = [_section(board, printed) for board in found]
    unfinished = [run for run in runs if not run.record]
    if unfinished:
        sections.append(Section("Without scores", [], [unfinished_part(unfinished, f"ndcg@{k}")]))
    if any(run.problems for run in runs):
        sections.append(Section("What could not be read", [], [problems_part(runs)]))
    states = Counter(run.state for run in unfinished)
    left = "".join(f", {count} {state}" for state, count in states.items())
    summary = {"runs": f"{len(finished)} finished{left}", "ranked": f"{split} items of every user, among all items"}
    return page(title or "Sequential recommenders compared", summary, sections)


def _section(board: Board, printed: Sequence[Published]) -> Section:
    usual = board.split == "test" and not board.rule
    mine = [one for one in printed if one.data == board.title and board.metric in one.scores] if usual else []
    numbers = {run.name: number for number, run in enumerate([*board.runs, *board.unfinished]) if number < DRAWN}
    parts = [_leaderboard(board, mine, numbers), *_published_part(board, mine), *_curves(board, numbers)]
    parts += _slices(board, numbers)
    parts += what_they_were(board.runs + board.unfinished, numbers)
    return Section(board.title, [_about(board)], parts)


def _about(board: Board) -> str:
    record = board.runs[0].record
    users = record.of(board.split).users if record else 0
    items = next((run.num_items for run in board.runs if run.num_items), None)
    among = f" against {items:,} items" if items else ""
    left = f"; {words.count(len(board.unfinished), 'other')} without scores" if board.unfinished else ""
    rule = f" {board.rule.capitalize()}." if board.rule else ""
    return f"{words.count(len(board.runs), 'finished run')}{left}. {users:,} users ranked{among}.{rule}"


def _leaderboard(board: Board, printed: Sequence[Published], numbers: dict[str, int]) -> Part:
    metrics = [f"{name}@{board.k}" for name in ("hr", "ndcg", "mrr")]
    tests = tests_against_best(board)
    headers = ["run", "model", *metrics, "difference", "p", "coverage@10", f"validation {board.metric}", "best epoch"]
    headers += ["time to it", "training"]
    rows = [_row(run, board, metrics, tests.get(run.name), numbers.get(run.name)) for run in board.runs]
    baseline = [Cell("popularity"), Cell(""), *_scores(board.runs[0], board.split, metrics, "popularity")]
    baseline += [Cell("")] * (len(headers) - len(baseline))
    table = Table(f"Best first by {board.metric}", headers, rows, [baseline], sortable=True)
    shown = [run for run in board.runs if run.name in numbers]
    scores = {run.name: interval for run in shown if (interval := _interval(run, board.split, board.metric))}
    sources = list(dict.fromkeys(one.source for one in printed))
    by_source = {
        source: {
            run.name: one.scores[board.metric]
            for run in shown
            for one in printed
            if one.source == source and one.model == run.model
        }
        for source in sources
    }
    plots = []
    if len(scores) > 1 or printed:
        beside = {source: runs for source, runs in by_source.items() if runs}
        title = f"{board.metric} with 95 % intervals" + (", and what papers print for the model" if beside else "")
        plots = [Plot(title, figures.forest(scores, numbers, beside, x=board.metric), wide=True)]
    not_drawn = len(board.runs) - len(shown)
    after = [INTERVALS] if tests else [INTERVALS.partition(" The difference")[0]]
    if not_drawn > 0:
        after.append(f"Plots show the {len(shown)} best runs; {words.count(not_drawn, 'other')} stand in the tables.")
    return Part("Leaderboard", tables=[table], plots=plots, after=after, folded=_pairs(board))


def _row(
    run: RunResults, board: Board, metrics: Sequence[str], test: Compared | None, number: int | None
) -> list[Cell]:
    training = run.record.training if run.record else None
    difference = p = Cell("")
    if run is board.runs[0]:
        difference = Cell("best", sort=0.0)
    elif test:
        low, high = test.test.interval
        between = f"[{words.signed(low)}, {words.signed(high)}]"
        difference = Cell(words.signed(test.test.difference), note=between, sort=test.test.difference)
        p = Cell(words.p_value(test.p_holm), sort=test.p_holm)
    coverage = mean_of(run, board.split, "coverage@10")
    return [
        Cell(run.name, series=number),
        Cell(run.model),
        *_scores(run, board.split, metrics, "model"),
        difference,
        p,
        words.number(coverage, ".3f"),
        words.score(mean_of(run, "validation", board.metric)),
        *(_took(training) if training else []),
    ]


def _took(training: TrainingSummary) -> list[Cell]:
    ended_early = "ended early" if training.ended_early else ""
    return [
        words.number(training.best_epoch),
        words.duration(training.seconds_to_best),
        replace(words.duration(training.seconds), note=ended_early),
    ]


def _scores(run: RunResults, split: str, metrics: Sequence[str], who: Who) -> list[Cell]:
    return [words.score(*(_interval(run, split, metric, who) or (None,))) for metric in metrics]


def _interval(run: RunResults, split: str, metric: str, who: Who = "model") -> figures.Interval | None:
    if (found := score_of(run, split, metric, who)) is None:
        return None
    low, high = (found.mean if bound is None else bound for bound in (found.low, found.high))
    return found.mean, low, high


def _pairs(board: Board) -> list[Table]:
    tests = tests_of_pairs(board)
    if not tests:
        return []
    rows = []
    for (better, worse), test in tests.items():
        low, high = (words.signed(bound) for bound in test.test.interval)
        difference = Cell(words.signed(test.test.difference), note=f"[{low}, {high}]", sort=test.test.difference)
        rows.append([Cell(worse), Cell(better), difference, Cell(words.p_value(test.p_holm), sort=test.p_holm)])
    headers = ["run", "against", f"difference in {board.metric}", "p (Holm)"]
    return [Table("Every two runs, on the same users", headers, rows, sortable=True)]


def _published_part(board: Board, printed: Sequence[Published]) -> list[Part]:
    if not printed:
        return []
    metrics = [
        metric for metric in (f"{name}@{board.k}" for name in ("hr", "ndcg", "mrr")) if metric in printed[0].scores
    ]
    best = {run.model: run for run in reversed(board.runs)}
    rows, missing = [], dict[str, list[str]]()
    for one in printed:
        run = best.get(one.model)
        if run is None:
            missing.setdefault(one.source, []).append(one.model)
            continue
        own = mean_of(run, board.split, board.metric)
        gap = (own or 0.0) / one.scores[board.metric] - 1
        rows.append(
            [
                Cell(one.model),
                Cell(one.source),
                *(words.score(one.scores.get(metric)) for metric in metrics),
                *_scores(run, board.split, metrics, "model"),
                Cell(f"{gap:+.1%}".replace("-", "−").replace("%", " %"), sort=gap),
                Cell(run.name),
            ]
        )
    headers = [
        "model",
        "printed in",
        *(f"{metric} printed" for metric in metrics),
        *(f"{metric} ours" for metric in metrics),
    ]
    headers += [f"{board.metric}, ours to theirs", "run"]
    caption = "The best run of each model here beside what papers print"
    tables = [Table(caption, headers, rows, sortable=True)] if rows else []
    after = [
        "Papers differ from these runs, and from each other, in the copy of the data, how ties in time are broken, "
        "what is learned from and how long: their figures are neighbours, not targets to the digit."
    ]
    after += [f"Printed in {source}, and no run of it here: {', '.join(models)}." for source, models in missing.items()]
    return [Part("Beside published figures", tables=tables, after=after)]


def _curves(board: Board, numbers: dict[str, int]) -> list[Part]:
    runs = [run for run in board.runs + board.unfinished if run.name in numbers]
    by_epoch = {run.name: curves.validation(run, board.metric, by="epoch") for run in runs}
    by_minutes = {run.name: curves.validation(run, board.metric, by="minutes") for run in runs}
    losses = {run.name: curves.loss(run) for run in runs}
    plots = []
    for title, found, x, y in (
        (f"Validation {board.metric} by epoch", by_epoch, "epoch", board.metric),
        (f"Validation {board.metric} by time", by_minutes, "minutes of training", board.metric),
        ("Training loss by epoch", losses, "epoch", "loss"),
    ):
        drawn = {name: line for name, line in found.items() if line[0]}
        if drawn:
            figure = figures.lines(drawn, numbers, x=x, y=y, marked=y != "loss")
            plots.append(Plot(title, figure, _last_values(title, drawn, x, y)))
    if not plots:
        return []
    after = ["Losses of different kinds, or of other numbers of negatives, are not comparable with each other."]
    return [Part("Learning curves", plots=plots, key=_key(runs, numbers), after=after)]


def _last_values(title: str, found: dict[str, figures.Line], x: str, y: str) -> Table:
    best = min if y == "loss" else max
    rows = []
    for name, (xs, ys) in found.items():
        at = ys.index(best(ys)) if isinstance(ys, list) else 0
        rows.append([Cell(name), Cell(f"{xs[at]:.1f}"), words.score(ys[at]), words.score(ys[-1])])
    return Table(f"{title}: best and last", ["run", f"best at {x}", f"best {y}", f"last {y}"], rows)


def _slices(board: Board, numbers: dict[str, int]) -> list[Part]:
    shown = [run for run in board.runs if run.name in numbers and board.ranks(run)]
    plots = []
    for title, x, groups in (
        (f"{board.metric} by history length", "interactions before the target", groups_by_length(board)),
        (
            f"{board.metric} by the target's popularity",
            "target's place among items by popularity",
            groups_by_popularity(board),
        ),
    ):
        if len(groups) > 1:
            drawn = {f"{group.label}": {run.name: group.scores[run.name] for run in shown} for group in groups}
            figure = figures.intervals(drawn, numbers, x=x, y=board.metric)
            plots.append(Plot(title, figure, _numbers_of_groups(title, groups)))
    if not plots:
        return []
    after = ["Bars are 95 % intervals. Popularity counts what was learned from; a group without users is left out."]
    return [Part("Where the score comes from", plots=plots, key=_key(shown, numbers), after=after)]


def _numbers_of_groups(title: str, groups: Sequence[Group]) -> Table:
    names = list(groups[0].scores)
    rows = [
        [Cell(group.label), words.number(group.users), *(words.score(*group.scores[name]) for name in names)]
        for group in groups
    ]
    return Table(title, ["group", "users", *names], rows)


def _key(runs: Sequence[RunResults], numbers: dict[str, int]) -> list[Cell]:
    return [Cell(run.name + ("" if run.record else f" ({run.state})"), series=numbers[run.name]) for run in runs]
