"""A run on an MLflow tracking server: settings, scores of each epoch, test scores, config.yaml (`storage.mlflow`).

The server is written to from a thread of its own. One that fails ends no training: it is said once, tried again, and
at the end it is said what is missing there; `log.jsonl` has all of it. Credentials come from MLflow's own environment
variables (`MLFLOW_TRACKING_USERNAME`, `MLFLOW_TRACKING_PASSWORD`, `MLFLOW_TRACKING_TOKEN`).
"""

import importlib.util
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from typing import Any

from raysrec.config.run import RunConfig
from raysrec.errors import LastingError
from raysrec.mailbox import Event
from raysrec.place import AnyPath, Place
from raysrec.run_directory import RunDirectory
from raysrec.run_record import RunRecord
from raysrec.tracking.hyperparameters import hyperparameters

FILE = "mlflow.json"
"""In the run's directory: which run of the server it is, so that it goes on there, too."""

SEND_EVERY_S = 5.0
"""Seconds between two messages to the server."""

LAST_TRY_S = 60.0
"""Seconds that the end of a training waits for a server that fails."""

AGAIN_S = 2.0
"""Seconds until a message that failed at the end is sent again."""

AT_ONCE = 1_000
"""Numbers in one message, which servers take."""

_SETTINGS = {
    # MLflow's own patience would be minutes.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    # It would print between the lines of a training.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

_STEP = ("loss", "learning_rate", "targets_per_s", "tokens_per_s", "data_wait_share", "padding_share")

_log = logging.getLogger(__name__)


class TrackingError(LastingError):
    """MLflow was asked for and is not installed."""


def require_mlflow(config: RunConfig) -> None:
    """See that MLflow is there if the configuration names a server.

    Raises:
        TrackingError: It is not.
    """
    if config.storage.mlflow and importlib.util.find_spec("mlflow") is None:
        raise TrackingError(
            f"storage.mlflow={config.storage.mlflow} needs MLflow, which is not installed; pip install "
            "'raysrec[mlflow]', or drop storage.mlflow"
        )


class MlflowRun:
    """Writes a training's events to a server while it goes on.

    Args:
        config: The run; `storage.mlflow` names the server.
        directory: The run's.
    """

    def __init__(self, config: RunConfig, directory: AnyPath) -> None:
        self._server = _Server(config, Place.of(directory))
        self._pending: list[Event] = []
        self._closing = threading.Event()
        self._warned = False
        self._thread = threading.Thread(target=self._send_until_closed, daemon=True, name="raysrec-mlflow")
        self._thread.start()

    def record(self, event: Event) -> None:
        """Take an event; it is sent soon."""
        if event["kind"] in ("step", "validation"):
            self._pending.append(event | {"at_ms": time.time_ns() // 1_000_000})

    def close(self) -> None:
        """Send what is left."""
        self._closing.set()
        self._thread.join()
        if self._pending:
            _log.warning(
                "MLflow at %s: the last %d events are not there; log.jsonl has them",
                self._server.uri,
                len(self._pending),
            )

    def _send_until_closed(self) -> None:
        while not self._closing.wait(SEND_EVERY_S):
            self._send()
        _again_and_again(self._send)

    def _send(self) -> bool:
        """Send what there is; did it arrive?"""
        events = list(self._pending)
        try:
            self._server.write(events)
        except Exception as error:  # whatever goes wrong with a server, training goes on
            if not self._warned:
                _warn(self._server.uri, error, "training goes on, and it is tried again")
            self._warned = True
            return False
        del self._pending[: len(events)]
        self._warned = False
        return True


def log_test_scores(config: RunConfig, directory: AnyPath, record: RunRecord) -> None:
    """Write a finished run's test scores to its server, if it has one, and end it there."""
    if not config.storage.mlflow:
        return
    server = _Server(config, Place.of(directory))
    problems: list[Exception] = []

    def send() -> bool:
        try:
            server.finish(record)
        except Exception as error:
            problems.append(error)
            return False
        return True

    if not _again_and_again(send):
        _warn(server.uri, problems[-1], "the test scores are not there; metrics.json has them")


def _again_and_again(send: Callable[[], bool]) -> bool:
    """Send until it has arrived, for LAST_TRY_S at most; has it?"""
    ends = time.monotonic() + LAST_TRY_S
    while not (arrived := send()) and time.monotonic() < ends:
        time.sleep(AGAIN_S)
    return arrived


class _Server:
    """One run of a tracking server; nothing is asked of it before something is written."""

    def __init__(self, config: RunConfig, directory: Place) -> None:
        self.uri = config.storage.mlflow
        self._config, self._directory = config, directory
        self._client: Any = None
        self._run = ""

    def write(self, events: list[Event]) -> None:
        """Write events' numbers."""
        self._open()
        from mlflow.entities import Metric

        metrics = [
            Metric(_name(name), float(value), event["at_ms"], event["step"])
            for event in events
            for name, value in event.items()
            if (name in _STEP or name.startswith("validation/")) and isinstance(value, int | float)
        ]
        for start in range(0, len(metrics), AT_ONCE):
            self._client.log_batch(self._run, metrics=metrics[start : start + AT_ONCE])

    def finish(self, record: RunRecord) -> None:
        """Write the scores of a finished run."""
        self._open()
        from mlflow.entities import Metric

        now, training = time.time_ns() // 1_000_000, record.training
        step = training.steps or 0
        scores = {f"test/{name}": score.mean for name, score in record.splits.test.model.items()}
        scores |= {f"training/{name}": getattr(training, name) for name in ("best_epoch", "seconds", "seconds_to_best")}
        self._client.log_batch(self._run, metrics=[Metric(_name(k), float(v), now, step) for k, v in scores.items()])
        self._client.set_terminated(self._run)

    def _open(self) -> None:
        """Find the run that an earlier start of the training has begun, or begin one."""
        if self._run:
            return
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.entities import Param

        client, file = MlflowClient(tracking_uri=self.uri), self._directory / FILE
        if file.is_file() and (begun := json.loads(file.read_text()))["server"] == self.uri:
            client.update_run(begun["run"], status="RUNNING")
            self._client, self._run = client, begun["run"]
            return
        name = self._config.data.name
        experiment = client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else client.create_experiment(name)
        directory = RunDirectory(self._directory)
        sweep, trial = directory.labels
        tags = {"sweep": sweep, "trial": trial} if trial else {}
        run = client.create_run(number, run_name=directory.name, tags=tags).info.run_id
        settings = [Param(_name(key), str(value)) for key, value in hyperparameters(self._config).items()]
        client.log_batch(run, params=settings)
        client.log_text(run, (self._directory / "config.yaml").read_text(), "config.yaml")
        file.write(json.dumps({"server": self.uri, "run": run}) + "\n")
        self._client, self._run = client, run


def _name(name: str) -> str:
    """A name that MLflow takes, such as `ndcg_at_10`."""
    return re.sub(r"[^\w.:/ -]", "_", name.replace("@", "_at_"))


def _warn(uri: str, error: Exception, then: str) -> None:
    _log.warning("MLflow at %s: %s; %s", uri, " ".join(str(error).split())[:300], then)
