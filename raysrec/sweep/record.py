"""A sweep's directory, here or in a store: what was asked for, and where every trial stands.

runs/<sweep>/
  sweep.yaml      the sweep, the configuration that all trials start from, and the fingerprint of their data
  trials.jsonl    one line per trial: parameters, state, scores; written anew, as a whole, when anything changes
  trials/<name>/  a run directory each
  best.yaml       the configuration of the best trial, to be trained as it is
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import yaml
from pydantic import ValidationError

from raysrec.config.run import RunConfig
from raysrec.config.settings import differences
from raysrec.place import AnyPath, Place
from raysrec.run_directory import FREE, RunDirectory
from raysrec.schema import CountOrZero, Section
from raysrec.sweep.config import Parameters, SweepConfig, SweepError

FREE_OF_SWEEP = ("sweep.max_concurrent", "sweep.rank", *(f"config.{key}" for key in FREE))
"""Settings that change no trial's numbers, and may be others when a sweep goes on."""

State = Literal["waiting", "running", "interrupted", "finished", "stopped", "failed"]
"""`finished`: trained to its end; `stopped`: ended early by the scheduler; `interrupted`, `running` (when the sweep was
killed) and `failed`: goes on with the same command."""

DONE = ("finished", "stopped")

S = TypeVar("S", bound=Section)


class CurvePoint(NamedTuple):
    """A validation of a trial."""

    epoch: int
    score: float
    seconds: float
    """Of training until then."""


class TrialRecord(Section):
    """What is known of a trial."""

    number: CountOrZero
    """Its place in the order of trials, from 0."""
    name: str
    """Its run directory in the sweep's `trials/`."""
    parameters: Parameters
    """What it differs in from the others."""
    state: State = "waiting"
    """How far it is."""
    why: str = ""
    """Why it ended, where there is something to say."""
    curve: tuple[CurvePoint, ...] = ()
    """Its validations, oldest first."""
    seconds: float = 0.0
    """Seconds of training, validation included, over all restarts."""
    started_at: str | None = None
    """When it first started."""
    ended_at: str | None = None
    """When it ended."""

    @property
    def epoch(self) -> int:
        """Epochs trained until the last validation."""
        return self.curve[-1].epoch if self.curve else 0

    @property
    def best(self) -> CurvePoint | None:
        """The one with the best score, the first of several; None before the first."""
        return max(self.curve, key=lambda validation: validation.score, default=None)

    @property
    def score(self) -> float | None:
        """The best validation score; None before the first."""
        return self.best.score if self.best else None

    @property
    def best_epoch(self) -> int | None:
        """The epoch of the best validation score."""
        return self.best.epoch if self.best else None

    @property
    def failed(self) -> bool:
        """Did it end otherwise than it was to? Then it is not the best, whatever it had reached."""
        return self.state == "failed"

    @property
    def is_done(self) -> bool:
        """Is there nothing left to train?"""
        return self.state in DONE

    def line(self) -> str:
        """One line of `trials.jsonl`, with what follows from the curve spelled out."""
        record = self.model_dump(mode="json")
        curve = record.pop("curve")
        derived = {"epoch": self.epoch, "score": self.score, "best_epoch": self.best_epoch}
        return json.dumps({**record, **derived, "curve": curve})

    @classmethod
    def of_line(cls, line: str) -> "TrialRecord":
        """The trial of a line."""
        record = json.loads(line)
        if not isinstance(record, dict):
            raise ValueError(f"{line[:40]!r} is no record")
        return cls.model_validate({key: value for key, value in record.items() if key in cls.model_fields})


def by_score(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The best first, the earlier of two that are alike; then those without a score, and those that failed.

    Whatever a trial reached before its loss was NaN, nobody wants its parameters.
    """
    return sorted(
        trials,
        key=lambda trial: (trial.failed, trial.score is None, -(trial.score or 0.0), trial.number),
    )


def best_trial(trials: Sequence[TrialRecord]) -> TrialRecord | None:
    """The one with the highest validation score of those that have not failed; None if there is none."""
    usable = (trial for trial in by_score(trials) if trial.score is not None and not trial.failed)
    return next(usable, None)


@dataclass(frozen=True, init=False)
class SweepDirectory:
    """The files of one sweep."""

    path: Place

    def __init__(self, path: AnyPath) -> None:
        object.__setattr__(self, "path", Place.of(path))

    @classmethod
    def open(cls, path: AnyPath) -> "SweepDirectory":
        """A sweep that exists.

        Raises:
            SweepError: There is none at this path.
        """
        sweep = cls(path)
        if not sweep.settings_file.is_file():
            raise SweepError(f"{path}: is no sweep, it has no sweep.yaml; name a folder that raysrec.tune has written")
        return sweep

    @classmethod
    def is_sweep(cls, path: AnyPath) -> bool:
        """Is this folder a sweep's?"""
        return cls(path).settings_file.is_file()

    @property
    def settings_file(self) -> Place:
        """The resolved sweep and configuration."""
        return self.path / "sweep.yaml"

    @property
    def best_file(self) -> Place:
        """The configuration of the best trial."""
        return self.path / "best.yaml"

    @property
    def runs(self) -> Place:
        """The folder of the trials' run directories."""
        return self.path / "trials"

    @property
    def settings(self) -> SweepConfig:
        """The sweep, as it was begun."""
        return self._read(SweepConfig, "sweep")

    @property
    def config(self) -> RunConfig:
        """The configuration that all trials start from."""
        return self._read(RunConfig, "config")

    @property
    def trials(self) -> list[TrialRecord]:
        """All trials that were begun, in order."""
        try:
            lines = (self.path / "trials.jsonl").read_text().splitlines()
            return [TrialRecord.of_line(line) for line in lines]
        except FileNotFoundError:
            return []
        except ValueError as error:
            reason = " ".join(str(error).split())
            file = self.path / "trials.jsonl"
            raise SweepError(f"{file}: is no record of trials ({reason}); restore it, or --fresh") from None

    def run(self, trial: TrialRecord) -> RunDirectory:
        """The run directory of a trial."""
        return RunDirectory(self.runs / trial.name)

    def save(self, trials: Sequence[TrialRecord]) -> None:
        """Write where every trial stands."""
        (self.path / "trials.jsonl").write("".join(f"{trial.line()}\n" for trial in trials))

    def begin(self, settings: SweepConfig, config: RunConfig, fingerprint: str) -> None:
        """Write what the sweep is.

        Raises:
            SweepError: Another sweep lies here, or it was begun on other data.
        """
        new = _described(settings, config, fingerprint)
        if self.settings_file.is_file():
            self._refuse_other(new)
        self.settings_file.write(yaml.safe_dump(new, sort_keys=False))

    def _refuse_other(self, new: Mapping[str, Any]) -> None:
        old = self._content()
        changes = [change for change in differences(old, new) if not change[0].startswith(FREE_OF_SWEEP)]
        changes = [change for change in changes if not _is_growth(*change)]
        if changes:
            listed = "; ".join(f"{key} was {before!r} and is now {now!r}" for key, before, now in changes)
            raise SweepError(
                f"{self.path} holds another sweep: {listed}; set storage.name to keep both, or --fresh to throw the "
                "old one away"
            )

    def _content(self) -> dict[str, Any]:
        try:
            content = yaml.safe_load(self.settings_file.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise self._describes_none(error) from None
        return content if isinstance(content, dict) else {}

    def _read(self, kind: type[S], section: str) -> S:
        content = self._content()
        try:
            return kind.model_validate(content[section])
        except (KeyError, ValidationError) as error:
            raise self._describes_none(error) from None

    def _describes_none(self, error: Exception) -> SweepError:
        reason = " ".join(str(error).split())
        return SweepError(f"{self.settings_file}: describes no sweep: {reason}; restore it, or delete the folder")

    def remove(self) -> None:
        """Throw the sweep away with all its trials; what says that it is one goes last."""
        self.path.delete(last=self.settings_file.name)


def _is_growth(key: str, old: object, new: object) -> bool:
    """More trials of the same sweep: those it has are the first of them."""
    return key == "sweep.num_samples" and isinstance(old, int) and isinstance(new, int) and new > old


def _described(settings: SweepConfig, config: RunConfig, fingerprint: str) -> dict[str, Any]:
    return {
        "sweep": settings.model_dump(mode="json"),
        "config": config.model_dump(mode="json"),
        "fingerprint": fingerprint,
    }
