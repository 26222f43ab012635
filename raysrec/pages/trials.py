"""What a sweep tried, as a page of it needs to know: one record per trial, and nothing of how it was run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raysrec.place import AnyPath, Place
from raysrec.sweep import SweepDirectory, TrialRecord

GOES_ON = ("waiting", "running", "interrupted")
"""States of trials that are not over."""


@dataclass(frozen=True)
class Point:
    """A validation of a trial."""

    epoch: int
    seconds: float
    """Of training until then."""
    score: float


@dataclass(frozen=True)
class Trial:
    """One configuration that a sweep tried, or is about to."""

    name: str
    parameters: dict[str, Any]
    """What the sweep chose, by the key of the setting, such as `train.learning_rate`."""
    state: str
    """In a word or two: finished, stopped early, failed, running, waiting."""
    curve: tuple[Point, ...] = ()
    """Its validations, oldest first."""
    run: str = ""
    """Its run directory."""
    note: str = ""
    """Why it failed, or how often it had to start again."""

    @property
    def failed(self) -> bool:
        """Did it end otherwise than it was to? Then it is not the best, whatever it had reached."""
        return self.state == "failed"

    @property
    def best(self) -> Point | None:
        """Its best validation so far."""
        return max(self.curve, key=lambda point: point.score, default=None)

    @property
    def score(self) -> float | None:
        """The best validation score so far."""
        return self.best.score if self.best else None

    @property
    def seconds(self) -> float:
        """Of training, to its last validation."""
        return self.curve[-1].seconds if self.curve else 0.0


@dataclass(frozen=True)
class Sweep:
    """A sweep and its trials, as far as it has come."""

    name: str
    metric: str
    """The validation score that it looks for, such as `ndcg@10`; more is better."""
    trials: Sequence[Trial]
    finished: bool = True
    """Will no trial come, and none go on?"""
    how: str = ""
    """How it chose and stopped trials, in words."""
    best_config: str = ""
    """The best trial's settings, as YAML that is ready to train; empty to leave that out."""

    @property
    def ranked(self) -> list[Trial]:
        """Its trials, best first; those without a score and those that failed come last."""
        return sorted(self.trials, key=lambda trial: (trial.failed, trial.score is None, -(trial.score or 0.0)))

    @property
    def parameters(self) -> list[str]:
        """What it varies, in the order in which it is first met."""
        return list(dict.fromkeys(name for trial in self.trials for name in trial.parameters))


def pareto(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that no other one beats in score without taking longer to it, fastest first; none that failed."""
    scored = [(one.best.seconds, -one.best.score, one) for one in trials if one.best and not one.failed]
    front: list[Trial] = []
    for _, _, trial in sorted(scored, key=lambda entry: entry[:2]):
        if not front or (trial.score or 0.0) > (front[-1].score or 0.0):
            front.append(trial)
    return front


def read_sweep(path: AnyPath) -> Sweep:
    """The sweep that lies in a folder, as far as it has come.

    Raises:
        SweepError: It is no sweep, or its records do not read as such.
        PlaceError: A store fails.
    """
    directory = SweepDirectory.open(Place.of(path).absolute())
    settings, trials = directory.settings, directory.trials
    best = directory.best_file.read_text() if directory.best_file.is_file() else ""
    return Sweep(
        name=directory.path.name,
        metric=settings.metric,
        trials=[_trial(record, directory) for record in trials],
        finished=bool(best) and not any(trial.state in GOES_ON for trial in trials),
        how=_how(settings.model_dump(mode="json")),
        best_config=best,
    )


def _trial(record: TrialRecord, directory: SweepDirectory) -> Trial:
    return Trial(
        name=record.name,
        parameters=record.parameters,
        state=record.state,
        curve=tuple(Point(epoch, seconds, score) for epoch, score, seconds in record.curve),
        run=str(directory.run(record).path),
        note=record.why,
    )


def _how(settings: dict[str, Any]) -> str:
    """How trials were chosen and stopped, in words."""
    said = [(name, settings.get(name)) for name in ("search", "scheduler", "num_samples", "seed")]
    return ", ".join(f"{name.replace('_', ' ')} {_words(value)}" for name, value in said if value not in (None, ""))


def _words(value: object) -> str:
    if isinstance(value, dict):
        name = value.get("name", "")
        rest = ", ".join(f"{key.replace('_', ' ')} {other}" for key, other in value.items() if key != "name")
        return f"{name} ({rest})" if rest and name != "none" else str(name)
    return str(value)
