"""A sweep as a whole, besides the records of its trials, read to compare them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raysrec.place import AnyPath, Place
from raysrec.sweep import SweepDirectory, TrialRecord, by_score


@dataclass(frozen=True)
class SweepResults:
    """A sweep and its trials, as far as it has come."""

    name: str
    metric: str
    """The validation score that it looks for, such as `ndcg@10`; more is better."""
    trials: Sequence[TrialRecord]
    finished: bool = True
    """Will no trial come, and none go on?"""
    how: str = ""
    """How it chose and stopped trials, in words."""
    best_config: str = ""
    """The best trial's settings, as YAML that is ready to train; empty to leave that out."""

    @property
    def ranked(self) -> list[TrialRecord]:
        """Its trials, best first; those without a score and those that failed come last."""
        return by_score(self.trials)

    @property
    def parameters(self) -> list[str]:
        """What it varies, in the order in which it is first met."""
        return list(dict.fromkeys(name for trial in self.trials for name in trial.parameters))


def pareto(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The trials that no other one beats in score without taking longer to it, fastest first; none that failed."""
    scored = [(one.best.seconds, -one.best.score, one) for one in trials if one.best and not one.failed]
    front: list[TrialRecord] = []
    for _, _, trial in sorted(scored, key=lambda entry: entry[:2]):
        if not front or (trial.score or 0.0) > (front[-1].score or 0.0):
            front.append(trial)
    return front


def read_sweep(path: AnyPath) -> SweepResults:
    """The sweep that lies in a folder, as far as it has come.

    Raises:
        SweepError: It is no sweep, or its records do not read as such.
        PlaceError: A store fails.
    """
    directory = SweepDirectory.open(Place.of(path).absolute())
    settings, trials = directory.settings, directory.trials
    best = directory.best_file.read_text() if directory.best_file.is_file() else ""
    return SweepResults(
        name=directory.path.name,
        metric=settings.metric,
        trials=trials,
        finished=bool(best) and all(trial.is_done or trial.failed for trial in trials),
        how=_how(settings.model_dump(mode="json")),
        best_config=best,
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
