"""Numbers of a training for Ray's metrics, which Prometheus collects and Grafana draws (`cluster/grafana/`).

The driver hears all of them from its workers, so it alone gives them out, and workers lose no time. Each carries
`run`, the name of the run's directory; of a trial that of its sweep, and `trial`. They end soon after the training.
"""

import threading
from typing import Any

from raysrec.mailbox import Event

STEP = {
    "targets_per_s": ("raysrec_targets_per_second", "Targets learned from in a second, by all workers"),
    "tokens_per_s": ("raysrec_tokens_per_second", "Items read in a second, by all workers"),
    "data_wait_share": ("raysrec_data_wait_ratio", "Share of the time in which a step waits for data"),
    "padding_share": ("raysrec_padding_ratio", "Share of positions that are padding"),
    "loss": ("raysrec_loss", "Training loss per target"),
    "learning_rate": ("raysrec_learning_rate", "Learning rate of the last step"),
    "progress": ("raysrec_epoch", "Epochs done, with the part of the one that runs"),
    "share_done": ("raysrec_done_ratio", "Share of the training that is done"),
    "left_s": ("raysrec_left_seconds", "Seconds of training that are left"),
    "gpu_memory_bytes": ("raysrec_gpu_memory_bytes", "Most GPU memory that a worker has had; 0 without a GPU"),
}
"""By the name in a step's event: the metric, and what it is."""

CHECKPOINT = {
    "seconds": ("raysrec_checkpoint_seconds", "Seconds that the last checkpoint took to write"),
    "stalled_s": ("raysrec_checkpoint_stalled_seconds", "Seconds that training stood still for the last checkpoint"),
    "bytes": ("raysrec_checkpoint_bytes", "Size of the last checkpoint"),
}


SCORE = ("raysrec_validation_score", "Validation scores of the last epoch")
RESTARTS = ("raysrec_restarts", "How often this start of the run had to go on")

REPEAT_S = 5.0
"""Seconds between two times that a number is said: Ray forgets one that it has not heard of for a while."""


class RayMetrics:
    """Gives out one training's numbers, again and again while it goes on; call where Ray runs.

    Args:
        run: Name of the run's directory, or of its sweep's.
        trial: Which trial of the sweep it is; empty if it is none.
    """

    def __init__(self, run: str, trial: str = "") -> None:
        from ray.util.metrics import Gauge

        tags = {"run": run, "trial": trial}
        described = [*STEP.values(), *CHECKPOINT.values(), RESTARTS]
        self._gauges: dict[str, Any] = {name: Gauge(name, words, tuple(tags)) for name, words in described}
        self._gauges[SCORE[0]] = Gauge(*SCORE, (*tags, "metric"))
        for gauge in self._gauges.values():
            gauge.set_default_tags(tags)
        self._values: dict[tuple[str, str], float] = {(RESTARTS[0], ""): 0}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._repeat, daemon=True, name="raysrec-metrics")
        self._thread.start()

    def record(self, event: Event) -> None:
        """Give out what an event says."""
        kind = event["kind"]
        found: dict[tuple[str, str], Any] = {}
        if kind == "step":
            found = {
                (STEP[name][0], ""): value for name, value in ({"gpu_memory_bytes": 0} | event).items() if name in STEP
            }
        elif kind == "checkpoint":
            found = {(CHECKPOINT[name][0], ""): value for name, value in event.items() if name in CHECKPOINT}
        elif kind == "validation":
            scores = {name: value for name, value in event.items() if name.startswith("validation/")}
            found = {(SCORE[0], name.removeprefix("validation/")): value for name, value in scores.items()}
        elif kind == "failure":
            found = {(RESTARTS[0], ""): self._values[RESTARTS[0], ""] + 1}
        with self._lock:
            self._values |= {which: value for which, value in found.items() if isinstance(value, int | float)}

    def close(self) -> None:
        """Say the last numbers, and no more."""
        self._closing.set()
        self._thread.join()
        self._say()

    def _repeat(self) -> None:
        while not self._closing.wait(REPEAT_S):
            self._say()

    def _say(self) -> None:
        with self._lock:
            values = dict(self._values)
        for (name, metric), value in values.items():
            self._gauges[name].set(value, tags={"metric": metric} if metric else None)
