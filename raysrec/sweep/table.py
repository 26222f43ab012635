"""What a person sees of a sweep: one table that is kept up to date while it runs, and a sorted one after it."""

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from tabulate import tabulate

from raysrec.mailbox import Event
from raysrec.sweep.book import TrialBook
from raysrec.sweep.config import SweepConfig
from raysrec.sweep.record import TrialRecord, best_trial, by_score
from raysrec.tracking.progress import as_clock

REFRESHES_PER_S = 1.0

ROWS_BESIDE = 8
"""Lines of a terminal that the table's frame and what was typed need."""


@contextmanager
def sweep_shown(book: TrialBook) -> Iterator[None]:
    """While the block runs, keep a table on the terminal; where there is none, a line for what happens."""
    console = Console(stderr=True)
    if not console.is_terminal:
        book.listen(_Lines(book).show)
        yield
        return
    with Live(
        console=console, get_renderable=lambda: live_table(book, console.height), refresh_per_second=REFRESHES_PER_S
    ):
        yield


def live_table(book: TrialBook, height: int) -> Table:
    """The trials as they stand; those that run and the best of the others, where the terminal has no room for all.

    Args:
        book: The trials.
        height: Lines of the terminal.
    """
    settings, trials = book.sweep.settings, book.trials
    table = Table(title=_headline(book), title_justify="left", title_style="bold")
    for name in ("trial", *settings.space, "epoch", f"validation {settings.metric}", "state", "left"):
        table.add_column(name, overflow="fold")
    rows = sorted(trials, key=lambda trial: (trial.state != "running", -(trial.score or 0.0)))[
        : max(3, height - ROWS_BESIDE)
    ]
    best = best_trial(trials)
    for trial in sorted(rows, key=lambda trial: trial.number):
        live = book.live(trial)
        left = as_clock(live["left_s"]) if live else ""
        style = "bold green" if trial is best else "" if trial.state == "running" else "dim"
        table.add_row(*_cells(trial, settings), _epoch(trial, live), _score(trial), trial.state, left, style=style)
    if hidden := len(trials) - len(rows):
        table.caption = f"{hidden} more that are not running"
    return table


def final_table(settings: SweepConfig, trials: Sequence[TrialRecord], *, style: str = "simple") -> str:
    """All trials, the best first; those without a score and those that failed last.

    Args:
        settings: The sweep.
        trials: Its trials.
        style: A format of tabulate.
    """
    rows = [
        [*_cells(trial, settings), _score(trial), _best_at(trial), trial.epoch, as_clock(trial.seconds), _state(trial)]
        for trial in by_score(trials)
    ]
    headers = ["trial", *settings.space, f"validation {settings.metric}", "best at", "epochs", "trained in", "state"]
    return tabulate(rows, headers=headers, tablefmt=style, disable_numparse=True)


class _Lines:
    """Plain lines where nobody watches: one when a trial begins, is validated, fails or ends."""

    def __init__(self, book: TrialBook) -> None:
        self._book = book
        self._lock = threading.Lock()

    def show(self, trial: TrialRecord, event: Event) -> None:
        metric = self._book.sweep.settings.metric
        if event["kind"] == "begin":
            again = "goes on" if trial.curve else "begins"
            line = f"{again}: {parameters_in_words(trial)}"
        elif event["kind"] == "validation":
            live = self._book.live(trial)
            left = f"  left {as_clock(live['left_s'])}" if live else ""
            best = "  best so far" if trial.best_epoch == trial.epoch else f"  best {trial.score:.4f}"
            line = f"epoch {trial.epoch}  validation {metric} {trial.curve[-1].score:.4f}{best}{left}"
        elif event["kind"] == "end":
            score = f": {metric} {trial.score:.4f} at epoch {trial.best_epoch}" if trial.score is not None else ""
            why = f" ({trial.why})" if trial.state == "failed" else ""
            line = f"{trial.state} after {as_clock(trial.seconds)}{score}{why}; {_headline(self._book)}"
        elif event["kind"] == "failure":
            line = str(event["text"])
        else:
            return
        with self._lock:
            print(f"{trial.name}  {line}", file=sys.stderr, flush=True)


def parameters_in_words(trial: TrialRecord) -> str:
    """The parameters of a trial, as on the command line."""
    return " ".join(f"{key}={_text(value)}" for key, value in trial.parameters.items())


def _headline(book: TrialBook) -> str:
    trials = book.trials
    done = [trial for trial in trials if trial.is_done]
    best = best_trial(trials)
    words = f"{len(done)} of {book.num_trials} trials done"
    if best is not None:
        words += f", the best is {best.name} with {best.score:.4f}"
    return words + _left(book, done)


def _left(book: TrialBook, done: Sequence[TrialRecord]) -> str:
    """How long all of it will take, if what is left is like what was."""
    if not done:
        return ""
    mean_s = sum(trial.seconds for trial in done) / len(done)
    running = book.running
    running_s = sum(book.live(trial).get("left_s", mean_s) for trial in running)
    left_s = (running_s + mean_s * (book.num_trials - len(done) - len(running))) / book.sweep.settings.max_concurrent
    return f", left about {as_clock(left_s)}" if left_s else ""


def _cells(trial: TrialRecord, settings: SweepConfig) -> list[str]:
    return [trial.name, *(_text(trial.parameters.get(key)) for key in settings.space)]


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _epoch(trial: TrialRecord, live: Event) -> str:
    return f"{live['progress']:.1f}" if live else str(trial.epoch)


def _score(trial: TrialRecord) -> str:
    return "" if trial.score is None else f"{trial.score:.4f}"


def _best_at(trial: TrialRecord) -> str:
    return "" if trial.best_epoch is None else f"epoch {trial.best_epoch}"


def _state(trial: TrialRecord) -> str:
    return f"failed: {trial.why}" if trial.state == "failed" else trial.state
