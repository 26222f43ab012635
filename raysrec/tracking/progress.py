"""What a person sees of a training or a preparation; what is kept of a training, `recorder.py` writes.

Worker 0 sends events to a mailbox (a Ray actor); the driver takes them out, shows them and writes them down. The
workers need no file system in common with the driver, and one bar stands for all of them. What lies in the mailbox
when the driver is killed is lost from the log (half a second of it), and from nothing else.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from raysrec.config.run import RunConfig
from raysrec.mailbox import Event
from raysrec.metrics import shown_cutoff
from raysrec.place import AnyPath
from raysrec.run_directory import RunDirectory
from raysrec.tracking.mlflow_run import MlflowRun
from raysrec.tracking.ray_metrics import RayMetrics
from raysrec.tracking.recorder import Recorder

POLL_S = 0.5
"""Seconds between two looks into the mailbox."""

PLAIN_EVERY_S = 15.0
"""Seconds between two lines where there is no terminal to draw a bar in."""


@contextmanager
def shown(
    mailbox: Any, directory: AnyPath, config: RunConfig | None = None, show: Callable[[Event], None] | None = None
) -> Iterator[None]:
    """While the block runs, show and record what arrives in the mailbox.

    Args:
        mailbox: An actor's handle.
        directory: Of the run.
        config: Of the run, where its settings are recorded, too, and told to Ray's metrics and an MLflow server.
        show: Is given each event, in place of a bar or of lines.
    """
    import ray
    from ray.exceptions import RayError

    stop = threading.Event()
    with (
        Recorder(directory, config) as recorder,
        _listeners(directory, config) as listeners,
        contextlib.nullcontext(show) if show else _screen() as screen,
    ):

        def deliver() -> None:
            for event in ray.get(mailbox.take.remote()):
                recorder.record(event)
                screen(event)
                for listener in listeners:
                    listener.record(event)

        def watch() -> None:
            while not stop.wait(POLL_S):
                deliver()

        thread = threading.Thread(target=watch, daemon=True, name="raysrec-progress")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            with contextlib.suppress(RayError):  # what ended the training must not be hidden by what ended with it
                deliver()


@contextmanager
def _listeners(directory: AnyPath, config: RunConfig | None) -> Iterator[list[RayMetrics | MlflowRun]]:
    """Who else is told of a run."""
    listeners: list[RayMetrics | MlflowRun] = []
    if config is not None:
        listeners.append(RayMetrics(*RunDirectory(directory).labels))
        if config.storage.mlflow:
            listeners.append(MlflowRun(config, directory))
    try:
        yield listeners
    finally:
        for listener in listeners:
            listener.close()


@dataclass
class _Bar:
    """A live bar on a terminal."""

    bar: Progress
    task: Any

    def show(self, event: Event) -> None:
        if event["kind"] == "step":
            self.bar.update(self.task, completed=event["share_done"], numbers=_numbers(event))
        elif line := _line(event):
            self.bar.console.print(line, highlight=False)


@dataclass
class _Lines:
    """Plain lines where nobody watches: a validation each, and now and then a step."""

    last_s: float = -PLAIN_EVERY_S

    def show(self, event: Event) -> None:
        if event["kind"] == "step" and event["elapsed_s"] < self.last_s + PLAIN_EVERY_S:
            return
        self.last_s = event.get("elapsed_s", self.last_s)
        if line := _line(event):
            print(line, file=sys.stderr, flush=True)


@contextmanager
def stage(name: str, total: int, *, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Show a stage of so many tasks while the block runs; what it gives is called when one is done.

    Args:
        name: Of the stage.
        total: Its tasks.
        say: Is told how far it is now and then, and at the end how long it took.
    """
    console = Console(stderr=True)
    columns = (TextColumn(name), BarColumn(bar_width=20), TaskProgressColumn(), TimeRemainingColumn(compact=True))
    started = said = time.monotonic()
    done = 0

    def advance() -> None:
        nonlocal done, said
        done += 1
        bar.advance(task)
        if not console.is_terminal and done < total and time.monotonic() > said + PLAIN_EVERY_S:
            said = time.monotonic()
            say(f"{name}: {done} of {total} tasks  left {as_clock((said - started) * (total - done) / done)}")

    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(name, total=total)
        yield advance
    say(f"{name}: {total} tasks in {as_clock(time.monotonic() - started)}")


def as_clock(seconds: float) -> str:
    """Seconds as a clock shows them: 2:05, or 1:02:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def _screen() -> Iterator[Callable[[Event], None]]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines().show
        return
    columns = (
        TextColumn("training"),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TextColumn("{task.fields[numbers]}"),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console) as bar:
        yield _Bar(bar, bar.add_task("training", total=1.0, numbers="starting workers")).show


def _line(event: Event) -> str:
    """What a person is shown of an event; empty for what only the log keeps."""
    if event["kind"] == "step":
        return f"{_numbers(event)}  left {as_clock(event['left_s'])}"
    if event["kind"] == "validation":
        cutoff = f"@{shown_cutoff(event)}"
        scores = "  ".join(f"{name.split('/')[-1]} {event[name]:.4f}" for name in event if name.endswith(cutoff))
        best = "  best so far" if event["is_best"] else ""
        return f"epoch {event['epoch']}  validation {scores}  ({as_clock(event['elapsed_s'])}){best}"
    return str(event.get("text", ""))


def _numbers(event: Event) -> str:
    return (
        f"epoch {event['epoch']}  loss {event['loss']:.4f}  {event['targets_per_s']:,.0f} targets/s  "
        f"{event['tokens_per_s']:,.0f} tokens/s  padding {event['padding_share']:.0%}  "
        f"data wait {event['data_wait_share']:.1%}"
    )
