"""Graceful shutdown: SIGTERM and Ctrl-C leave time to save, and every verb then ends with the same exit status."""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

STOPPED = 143
"""Exit status of a command that was asked to end and can go on, as of a process that SIGTERM ended."""

INTERRUPTED = 130
"""The same of one that Ctrl-C ended."""

LOOK_S = 0.2
"""Seconds between two looks at work in a thread."""


class StopRequest:
    """Whether the end was asked for, and by which signal."""

    signal: str = ""

    def __bool__(self) -> bool:
        return bool(self.signal)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """While the block runs, SIGTERM and the first Ctrl-C are only noted; a second one ends the process as ever.

    Outside the main thread nothing is noted: Python gives signals to no other.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, frame: FrameType | None) -> None:
        request.signal = signal.Signals(number).name
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore()


class Watched:
    """Work in a thread of its own: Ray, in the main one, would take the signals that a process is asked to end by.

    Args:
        work: What is done, once `looks` begins.
        name: The thread's.
    """

    error: BaseException | None = None
    """What the work raised."""

    def __init__(self, work: Callable[[], object], name: str) -> None:
        self._work = work
        self._thread = threading.Thread(target=self._guarded, daemon=True, name=name)

    def looks(self, stop: StopRequest, within_s: float) -> Iterator[None]:
        """Yields several times a second until the work has ended; once the end is asked for, no longer than this."""
        self._thread.start()
        deadline = math.inf
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._thread.join(LOOK_S)
            if stop and deadline == math.inf:
                print(f"{stop.signal}: saving, then stopping", file=sys.stderr, flush=True)
                deadline = time.monotonic() + within_s
            yield

    def wait(self, at_most_s: float) -> None:
        """Until it has ended."""
        self._thread.join(at_most_s)

    def _guarded(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self.error = error


@contextmanager
def ends_when_terminated() -> Iterator[None]:
    """While the block runs, SIGTERM ends it as an error would, with one line and the status `STOPPED`."""
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is _end:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def handler_kept() -> Iterator[None]:
    """The block is the start of Ray, which would end the process with a status of its own from then on."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as ended:
        if before is _end and ended.code == signal.SIGTERM:
            _end()
        raise
    finally:
        if before is _end and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _end)


def _end(*_: object) -> NoReturn:
    # What is being printed now must not be entered again, as `print` would.
    with suppress(OSError):
        os.write(2, b"stopped by SIGTERM; the same command goes on\n")
    sys.exit(STOPPED)
