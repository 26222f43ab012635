"""What a training leaves of its events: every one in `log.jsonl`, and the numbers in TensorBoard's files."""

import contextlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raysrec.config.run import RunConfig
from raysrec.mailbox import Event
from raysrec.place import AnyPath, Place, PlaceError
from raysrec.tracking.hyperparameters import hyperparameters


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
            self._unwritten = b"\n"  # after half a line, of a driver that was killed while it wrote
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
