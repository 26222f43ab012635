"""Why workers save and end before training does: a machine is about to be taken away, or there will be more workers.

The first is told by a signal or by Ray, the second by what decides how many workers there are.

A training worker runs in a thread of its process, where Python accepts no signal handler; Ray's actor calls come in the
main thread, where it does.
"""

import contextlib
import signal
import threading
import time
from typing import Any

LOOK_EVERY_S = 1.0


class Leaving(RuntimeError):
    """Workers are to be started again, elsewhere or in another number; everything is saved."""


_ASKED = threading.Event()
_TO_REGROUP = threading.Event()


def regroup() -> None:
    """Have this worker save and end, to go on in a group of another size; called in its process."""
    _TO_REGROUP.set()


def asked_to_regroup() -> bool:
    """Is this worker to go on in a group of another size?"""
    return _TO_REGROUP.is_set()


def listen() -> None:
    """From now on SIGTERM does not end this process but is remembered; call in its main thread."""
    signal.signal(signal.SIGTERM, lambda *_: _ASKED.set())


def asked_to_leave() -> bool:
    """Is this worker's machine about to go?"""
    return _ASKED.is_set()


def watch_for_preemption() -> None:
    """Remember it, too, when Ray says that the node of some worker will be taken; call in every worker."""
    threading.Thread(target=_watch, daemon=True, name="raysrec-preemption").start()


def _watch() -> None:
    import ray.train

    while not _ASKED.is_set():
        told: Any = None
        with contextlib.suppress(Exception):  # it ends with the training, in whatever way that ends
            told = ray.train.get_preemption_info()
        if told is not None:
            _ASKED.set()
        time.sleep(LOOK_EVERY_S)
