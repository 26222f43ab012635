"""What a person sees of a training or a preparation, and what is kept of it: a bar, `log.jsonl` and TensorBoard files.

Worker 0 sends events to a mailbox (a Ray actor); the driver takes them out, shows them and writes them down. The
workers need no file system in common with the driver, and one bar stands for all of them. What lies in the mailbox
when the driver is killed is lost from the log (half a second of it), and from nothing else.
"""

import contextlib
import json
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from raysrec.config.run import RunConfig
from raysrec.hyperparameters import hyperparameters
from raysrec.mailbox import Event
from raysrec.mlflow_tracking import MlflowRun
from raysrec.place import AnyPath, Place, PlaceError
from raysrec.ray_metrics import RayMetrics
from raysrec.run_directory import RunDirectory

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


class Recorder:
    """Appends every event to `log.jsonl` and its numbers to TensorBoard, with the settings for its table of runs.

    A store's files cannot be appended to: there both are kept on this machine and sent after each epoch and at the end.
    """

    def __init__(self, directory: AnyPath, config: RunConfig | None = None) -> None:
        self._place = Place.of(directory)
        self._config = config
        self._epoch: object = None
        self._unwritten = b""
        self._told = False

    def __enter__(self) -> "Recorder":
        self._directory = self._place.local if self._place.is_local else self._begun()
        # TensorBoard's writer logs about TensorFlow when it is imported, which nobody here uses.
        logging.getLogger("tensorboard").setLevel(logging.ERROR)
        from torch.utils.tensorboard import SummaryWriter

        # Without a buffer of Python's, which forgets what it could not write.
        self._log = (self._directory / "log.jsonl").open("ab+", buffering=0)
        if self._log.tell() and os.pread(self._log.fileno(), 1, self._log.tell() - 1) != b"\n":
            self._log.write(b"\n")  # half a line, of a driver that was killed while it wrote
        self._board: Any = SummaryWriter(str(self._directory / "tensorboard"))
        if self._config is not None:
            self._describe(self._config)
        return self

    def record(self, event: Event) -> None:
        """Keep one event. Where the disk is full it is kept in memory, and written with the next that can be."""
        self._unwritten += f"{json.dumps(event)}\n".encode()
        with self._told_once():
            while self._unwritten:
                self._unwritten = self._unwritten[self._log.write(self._unwritten) :]
        with self._told_once():
            self._draw(event)
        if event["kind"] == "validation" or event.get("epoch", self._epoch) != self._epoch:
            self._epoch = event["epoch"]
            self._send()

    def __exit__(self, *error: object) -> None:
        for kept in (self._log, self._board):
            with self._told_once():
                kept.close()
        self._send()
        if not self._place.is_local:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _draw(self, event: Event) -> None:
        for name, value in event.items():
            if name not in ("kind", "step") and "step" in event and isinstance(value, int | float):
                tag = name if "/" in name else f"{event['kind']}/{name}"
                self._board.add_scalar(tag, value, event["step"])

    @contextmanager
    def _told_once(self) -> Iterator[None]:
        """What cannot be written for a full disk is said once, and ends no training."""
        try:
            yield
        except OSError as error:
            if not self._told:
                logging.getLogger(__name__).warning("%s: %s; training goes on", self._directory, error)
            self._told = True

    def _describe(self, config: RunConfig) -> None:
        """Write the settings for TensorBoard's HParams tab.

        No Experiment is written, which would fix the columns for all runs beside it: without one TensorBoard shows
        the settings of every run and takes all scalars for metrics.
        """
        from torch.utils.tensorboard.summary import hparams

        _, session, _ = hparams(hyperparameters(config), {})  # type: ignore[no-untyped-call]
        self._board.file_writer.add_summary(session)

    def _begun(self) -> Path:
        """A folder of this machine with the log that an earlier start of the run has left."""
        folder = Path(tempfile.mkdtemp(prefix="raysrec-"))
        with contextlib.suppress(FileNotFoundError):
            (folder / "log.jsonl").write_bytes((self._place / "log.jsonl").read_bytes())
        return folder

    def _send(self) -> None:
        """Upload what there is; a log that cannot be sent now is sent next time, and ends no training."""
        if self._place.is_local:
            return
        self._board.flush()
        try:
            for file in self._directory.rglob("*"):
                if file.is_file():
                    (self._place / file.relative_to(self._directory).as_posix()).upload(file)
        except PlaceError as error:
            logging.getLogger(__name__).warning("%s", error)


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
            say(f"{name}: {done} of {total} tasks  left {duration((said - started) * (total - done) / done)}")

    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(name, total=total)
        yield advance
    say(f"{name}: {total} tasks in {duration(time.monotonic() - started)}")


def shown_cutoff(names: Iterable[str]) -> int:
    """The cut-off whose metrics are shown where there is room for one: 10, or the largest if 10 was not computed."""
    cutoffs = {int(name.rpartition("@")[2]) for name in names if "@" in name}
    return 10 if 10 in cutoffs else max(cutoffs, default=10)


def duration(seconds: float) -> str:
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
        return f"{_numbers(event)}  left {duration(event['left_s'])}"
    if event["kind"] == "validation":
        cutoff = f"@{shown_cutoff(event)}"
        scores = "  ".join(f"{name.split('/')[-1]} {event[name]:.4f}" for name in event if name.endswith(cutoff))
        best = "  best so far" if event["is_best"] else ""
        return f"epoch {event['epoch']}  validation {scores}  ({duration(event['elapsed_s'])}){best}"
    return str(event.get("text", ""))


def _numbers(event: Event) -> str:
    return (
        f"epoch {event['epoch']}  loss {event['loss']:.4f}  {event['targets_per_s']:,.0f} targets/s  "
        f"{event['tokens_per_s']:,.0f} tokens/s  padding {event['padding_share']:.0%}  "
        f"data wait {event['data_wait_share']:.1%}"
    )
