"""A run's directory, here or in a store: what is written where, so that a run can go on, be used, and be explained.

runs/<name>/
  config.yaml       the resolved configuration; runs again as it is
  provenance.json   versions, commit, machine, command, data fingerprint
  log.jsonl         every number that was shown while training
  tensorboard/      the same numbers
  checkpoints/      to resume (`checkpoints.py`)
  model/            to use (`saved_model.py`)
  ranks.parquet     one rank per user; metrics.json is computed from it
"""

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from json import JSONDecodeError
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from torch import Tensor

from raysrec.config.files import ConfigError, read
from raysrec.config.loading import validate
from raysrec.config.run import RunConfig
from raysrec.config.settings import differences, overlay
from raysrec.errors import LastingError
from raysrec.mailbox import Event
from raysrec.models import SequenceModel
from raysrec.place import AnyPath, Place
from raysrec.provenance import provenance
from raysrec.run_record import DamagedRecord, RunRecord
from raysrec.saved_model import WEIGHTS, is_saved, load_model, save_model

FREE = ("scale.", "checkpoint.", "storage.", "data.prepared", "data.distributed", "evaluate.device")
"""Settings that change no number, and may be others when a run goes on."""


_TRIAL = re.compile(r"([^/]+)/trials/(trial-\d{3,})$")
"""The end of the path of a run that a sweep has made."""


class RunError(LastingError):
    """A run directory that cannot be used as asked."""


class RunStopped(RunError):
    """A run that was asked to end before it was finished.

    Args:
        text: What it says.
        by: Who asked.
    """

    def __init__(self, text: str, by: str = "") -> None:
        super().__init__(text)
        self.by = by


@dataclass(frozen=True, init=False)
class RunDirectory:
    """The files of one run."""

    path: Place

    def __init__(self, path: AnyPath) -> None:
        object.__setattr__(self, "path", Place.of(path))

    @classmethod
    def open(cls, path: AnyPath) -> "RunDirectory":
        """A run that exists.

        Raises:
            RunError: There is none at this path.
            PlaceError: It lies in a store that fails.
        """
        run = cls(path)
        if not run.config_file.is_file():
            raise RunError(f"{path}: is no run, it has no config.yaml; name a folder that raysrec.train has written")
        return run

    @property
    def labels(self) -> tuple[str, str]:
        """What it is known by: its sweep's folder and its own if it is a trial; else its folder, and nothing."""
        path = self.path.absolute().path.rstrip("/")
        if trial := _TRIAL.search(path):
            return trial[1], trial[2]
        return path.rpartition("/")[2], ""

    @property
    def name(self) -> str:
        """The same in one word, such as `ml-1m-recgrela` or `heads/trial-003`."""
        return "/".join(filter(None, self.labels))

    @property
    def config_file(self) -> Place:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def metrics_file(self) -> Place:
        """The scores of the finished run."""
        return self.path / "metrics.json"

    @property
    def ranks_file(self) -> Place:
        """One rank per user and split."""
        return self.path / "ranks.parquet"

    @property
    def checkpoints(self) -> Place:
        """What it goes on from."""
        return self.path / "checkpoints"

    @property
    def model_directory(self) -> Place:
        """The best weights, to use."""
        return self.path / "model"

    def config(self) -> RunConfig:
        """The configuration the run was started with.

        Raises:
            RunError: It is damaged, or of a version of raysrec with other settings.
        """
        refused = f"{self.config_file}: is no configuration of a run"
        try:
            settings = yaml.safe_load(self.config_file.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise RunError(f"{refused}: {' '.join(str(error).split())}") from None
        if not isinstance(settings, dict):
            raise RunError(f"{refused}: holds a {type(settings).__name__}, expected sections such as data: and model:")
        try:
            return validate(settings)
        except ConfigError as error:
            raise RunError(f"{refused} of this version of raysrec{self._made_by}:\n{error}") from None

    def config_with(self, overrides: Sequence[str], *, only: Sequence[str]) -> RunConfig:
        """The configuration with settings over it that change nothing of what was trained.

        Args:
            overrides: `section.key=value`.
            only: What their keys may begin with, such as "evaluate.".

        Raises:
            RunError: Another is to be changed, or the configuration cannot be read.
            ConfigError: A value is wrong.
        """
        trained = self.config()
        for override in overrides:
            if not override.startswith(tuple(only)):
                free = ", ".join(f"{key}*" if key.endswith(".") else key for key in only)
                raise RunError(f"{override}: the run is trained; what can be set now is {free}")
        return validate(overlay(trained.model_dump(mode="json"), read([], overrides)))

    def other_settings(self, config: RunConfig) -> str:
        """How the run's configuration differs from another in what decides its numbers, in words.

        Empty if it does not, or nothing is there yet.
        """
        if not self.config_file.is_file():
            return ""
        changes = differences(self.config().model_dump(mode="json"), config.model_dump(mode="json"))
        changes = [change for change in changes if not change[0].startswith(FREE)]
        return "; ".join(f"{key} was {old!r} and is now {new!r}" for key, old, new in changes)

    @property
    def _made_by(self) -> str:
        """Of what commit it is, as far as that is known, in words that follow others."""
        file = self.path / "provenance.json"
        commit = _parsed(file).get("commit") if file.is_file() else None
        return f", but of commit {commit}; use that, or begin again under another storage.name" if commit else ""

    def start(self, config: RunConfig, fingerprint: str, *, command: Sequence[str] | None = None) -> None:
        """Write what is known before training begins; a run that goes on keeps what it was begun with.

        Args:
            config: The run.
            fingerprint: Of its data.
            command: What was typed; that of this process if not said.

        Raises:
            RunError: The run was begun on other data.
        """
        file = self.path / "provenance.json"
        if file.is_file():
            begun_on = _parsed(file).get("data_fingerprint")
            if begun_on != fingerprint:
                raise RunError(
                    f"{self.path} was begun on data {begun_on}, but the source now gives {fingerprint}; restore the "
                    "source, or --fresh to throw the run away"
                )
        else:
            file.write(json.dumps(provenance(fingerprint, command or sys.argv), indent=2) + "\n")
        self.config_file.write(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))

    def save_model(
        self, config: RunConfig, num_items: int, weights: Mapping[str, Tensor], *, num_users: int = 0
    ) -> None:
        """Write the weights to use."""
        save_model(self.model_directory, config.model, num_items, weights, num_users=num_users)

    def has_model(self) -> bool:
        """Are there weights to use? They come when training is over; where it only stands still there are none."""
        return is_saved(self.model_directory)

    def record(self) -> RunRecord | None:
        """What `metrics.json` says; None while the run is not ranked.

        Raises:
            RunError: The file is damaged.
        """
        if not self.metrics_file.is_file():
            return None
        try:
            return RunRecord.parse(self.metrics_file.read_text())
        except (UnicodeDecodeError, DamagedRecord) as error:
            raise RunError(f"{self.metrics_file}: {error}") from None

    def is_finished(self) -> bool:
        """Was it trained to its end, and ranked?"""
        record = self.record()
        return record is not None and not record.training.ended_early

    def save_record(self, record: RunRecord) -> None:
        """Write the scores, last of all: they say that the run is finished."""
        self.metrics_file.write(record.text())

    def ranked_record(self) -> RunRecord:
        """What `metrics.json` says: the scores, and the data they were reached on.

        Raises:
            RunError: The run is not ranked, or the file is damaged.
        """
        if (found := self.record()) is None:
            raise RunError(f"{self.path}: has not finished training; run raysrec.train again to let it go on")
        return found

    def prepared(self) -> str:
        """The folder of the data on which the scores of `metrics.json` were reached.

        Raises:
            RunError: It does not say, or the run is not ranked.
        """
        if not (found := self.ranked_record().prepared):
            raise RunError(
                f"{self.metrics_file}: does not say `prepared`, the folder of its data; copy it again from where the "
                "run was made"
            )
        return found

    def remove(self) -> None:
        """Throw the run away, so that a kill in the middle leaves nothing that counts under other settings."""
        self.path.delete(first=self.metrics_file.name, last=self.config_file.name)

    def events(self) -> tuple[list[Event], int]:
        """What the log says, oldest first, and how many of its lines say nothing.

        A driver that was killed may have written half a line; the last one is not counted.

        Raises:
            FileNotFoundError: There is no log.
        """
        events, broken = list[Event](), 0
        lines = (self.path / "log.jsonl").read_text().splitlines()
        for number, line in enumerate(lines, 1):
            try:
                event = json.loads(line)
                event["kind"] += ""
            except (ValueError, TypeError, KeyError):
                broken += number < len(lines)
            else:
                events.append(event)
        return events, broken

    def restarts(self) -> list[Event]:
        """The log's events that say where training went on, on how many workers, and why it had to, oldest first."""
        try:
            return restarts_of(self.events()[0])
        except FileNotFoundError:
            return []

    def weights_stamp(self) -> str:
        """A text that changes when the weights do."""
        return str((self.model_directory / WEIGHTS).stamp())

    def save_ranks(self, ranks: pa.Table) -> None:
        """Write one rank per user and split."""
        with self.ranks_file.replacing() as temporary:
            pq.write_table(ranks, temporary)

    def load_model(self) -> SequenceModel:
        """The trained model, on the CPU, ready to encode.

        Raises:
            SavedModelError: The run has no model yet, or a damaged one.
        """
        return load_model(self.model_directory)


def restarts_of(events: Iterable[Event]) -> list[Event]:
    """Those that say where training went on, and why it had to; its first start is none."""
    return [event for event in events if event["kind"] in ("start", "failure")][1:]


def _parsed(file: Place) -> dict[str, Any]:
    """What a JSON file of a run says."""
    try:
        found = json.loads(file.read_text())
    except (UnicodeDecodeError, JSONDecodeError, RecursionError) as error:
        raise RunError(f"{file}: is damaged ({error}); copy it again from where the run was made") from None
    if not isinstance(found, dict):
        raise RunError(f"{file}: holds {type(found).__name__}, not what a run writes there")
    return found
