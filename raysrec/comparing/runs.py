"""What a run has left in its directory, read to compare it: scores, ranks, curves, settings, and what is missing.

Whatever there is is taken. What cannot be read is said in the run's `problems` and left out; it never stops the
comparison of the others.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from raysrec.mailbox import Event
from raysrec.place import AnyPath, Place
from raysrec.run_directory import RunDirectory, RunError, restarts_of
from raysrec.run_record import DamagedRecord, RunRecord
from raysrec.saved_model import DESCRIPTION
from raysrec.schema import date_of

Settings = dict[str, Any]
"""A configuration as nested plain values."""


@dataclass(frozen=True)
class Ranks:
    """The ranks of one split of a run, in order of users; 1 is best."""

    users: np.ndarray
    """User numbers, ascending."""
    ranks: np.ndarray
    """By the model."""
    popularity_ranks: np.ndarray
    """By how often an item was learned from: which place the target has among all items."""
    lengths: np.ndarray
    """Interactions before the target."""

    @cached_property
    def targets(self) -> str:
        """A text that is the same for two runs only if they ranked the same users' same targets."""
        columns = (self.users, self.lengths, self.popularity_ranks)
        return hashlib.sha256(b"".join(np.ascontiguousarray(column).tobytes() for column in columns)).hexdigest()[:16]


@dataclass(frozen=True)
class RunResults:
    """One run directory, as far as it could be read."""

    name: str
    path: str
    settings: Settings
    """Its configuration, with the defaults of this raysrec where it says nothing."""
    record: RunRecord | None
    """What `metrics.json` says; None where it says nothing that can be used."""
    state: str
    """`finished`; `not ranked` after a training, as most trials of a sweep; `not finished`; or `damaged`."""
    events: list[Event]
    """What counts of its log: of steps that were repeated after a restart, the last time."""
    restarts: list[Event]
    """Where it had to go on, and why."""
    last_written: str
    """When its log was last written to, in UTC."""
    provenance: dict[str, Any]
    num_items: int | None
    """Size of the catalogue; None where no model was saved yet."""
    ranks: dict[str, Ranks] = field(default_factory=dict)
    """By split."""
    problems: list[str] = field(default_factory=list)
    """What could not be read, in words."""

    @property
    def data(self) -> str:
        """The name of its data set."""
        return str(self.settings.get("data", {}).get("name", "unknown data"))

    @property
    def model(self) -> str:
        """The name of its model."""
        return str(self.settings.get("model", {}).get("name", "unknown model"))

    def of_kind(self, kind: str) -> list[Event]:
        """Its events of one kind, oldest first."""
        return [event for event in self.events if event["kind"] == kind]


def read_record(run: RunDirectory, problems: list[str]) -> RunRecord | None:
    """What `metrics.json` says; None if there is none, or if it is not what a run writes, which is a problem."""
    try:
        return RunRecord.parse(run.metrics_file.read_text())
    except FileNotFoundError:
        return None
    except (UnicodeDecodeError, DamagedRecord) as error:
        problems.append(f"its metrics.json {error}")
        return None


def state_of(run: RunDirectory, record: RunRecord | None) -> str:
    """How far a run is, by its files; see `RunResults.state`."""
    if record:
        return "finished"
    if run.metrics_file.is_file():
        return "damaged"
    return "not ranked" if run.has_model() else "not finished"


def named(paths: Iterable[AnyPath]) -> list[tuple[str, RunDirectory]]:
    """Run directories in the order given, each with its name; of two that are called alike the folder above says which.

    Raises:
        RunError: A folder is no run.
        PlaceError: A store fails.
    """
    runs = [RunDirectory.open(Place.of(path).absolute()) for path in paths]
    names = [run.name for run in runs]
    return [(name if names.count(name) == 1 else _longer(run), run) for name, run in zip(names, runs, strict=True)]


def _longer(run: RunDirectory) -> str:
    """Its name with the folder above it, or above its sweep."""
    _, trial = run.labels
    above = run.path.path.rstrip("/").split("/")[: -3 if trial else -1]
    return "/".join([*above[-1:], run.name])


def read_runs(paths: Iterable[AnyPath]) -> list[RunResults]:
    """Read run directories, in the order given.

    Raises:
        RunError: A folder is no run.
        PlaceError: A store fails.
    """
    return [_read(run, name) for name, run in named(paths)]


def _read(run: RunDirectory, name: str) -> RunResults:
    problems, place = list[str](), run.path
    settings = _settings(run, problems)
    record = read_record(run, problems)
    events = read_events(run, problems)
    return RunResults(
        name=name,
        path=str(place),
        settings=settings,
        record=record,
        state=state_of(run, record),
        events=kept_events(events),
        restarts=restarts_of(events),
        last_written=_time_of(place / "log.jsonl"),
        provenance=_json(place / "provenance.json", problems) or {},
        num_items=(_json(run.model_directory / DESCRIPTION, problems) or {}).get("num_items"),
        ranks=_ranks(run, problems) if record else {},
        problems=problems,
    )


def read_events(run: RunDirectory, problems: list[str]) -> list[Event]:
    """The events of a run's log; of lines that are none, it is said how many there are."""
    try:
        events, broken = run.events()
    except FileNotFoundError:
        problems.append("there is no log.jsonl, so there are no curves")
        return []
    if broken:
        problems.append(f"{broken} lines of log.jsonl are no events and are left out")
    return events


def kept_events(events: Iterable[Event]) -> list[Event]:
    """The events without those of steps that were lost when training went on from an earlier checkpoint."""
    kept: list[Event] = []
    for event in events:
        if event["kind"] == "start":
            kept = [old for old in kept if old.get("step", -1) <= event.get("step", 0)]
        kept.append(event)
    return kept


def _settings(run: RunDirectory, problems: list[str]) -> Settings:
    try:
        return run.config().model_dump(mode="json")
    except RunError:
        problems.append("its config.yaml is of another version of raysrec and is shown as it stands")
    try:
        found = yaml.safe_load(run.config_file.read_text())
    except yaml.YAMLError:
        found = None
    return found if isinstance(found, dict) else {}


def _time_of(file: Place) -> str:
    changed = file.info().mtime
    return f"{changed.astimezone(UTC):%Y-%m-%d %H:%M}" if changed else "never"


def _json(file: Place, problems: list[str]) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        problems.append(f"{file.name} is not JSON ({error})")
        return None
    return found if isinstance(found, dict) else None


def _ranks(run: RunDirectory, problems: list[str]) -> dict[str, Ranks]:
    try:
        with run.ranks_file.at_hand() as file:
            table = pq.read_table(file)
        return {split: _split(table, split) for split in pc.unique(table["split"]).to_pylist()}
    except FileNotFoundError:
        problems.append("there is no ranks.parquet, so it is in no test and in no score by group of users")
    except (pa.ArrowException, OSError, KeyError) as error:
        problems.append(f"its ranks.parquet cannot be read ({' '.join(str(error).split())[:200]})")
    return {}


def _split(table: pa.Table, split: str) -> Ranks:
    rows = table.filter(pc.equal(table["split"], split)).sort_by("user")
    return Ranks(*(rows[name].to_numpy().copy() for name in ("user", "rank", "popularity_rank", "history_length")))


def other_rule(record: RunRecord) -> str:
    """How a finished run was ranked, where that is not the usual way, to be put behind a name; empty otherwise."""
    split, words = record.split, ""  # runs of before there was a choice say nothing of it
    if split.get("name") == "temporal":
        words = f", learned before {date_of(split['validate_from'])}, tested on {split['target']} items from "
        words += date_of(split["test_from"])
    return words + (", seen items left out" if record.evaluate.get("exclude_seen") else "")
