"""What `metrics.json` says of a run, once it is ranked: how it was trained, on what, by which rule, and its scores."""

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from raysrec.errors import LastingError
from raysrec.mailbox import Event

Who = Literal["model", "popularity"]
"""Whose ranking a score is of: the run's model's, or that by popularity."""


class DamagedRecord(LastingError):
    """A text that is no record of a run."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Score(_Part):
    """A mean over users."""

    mean: float
    low: float | None = None
    """Lower bound of its 95 % interval; None, as `high`, where it has none."""
    high: float | None = None

    @property
    def half(self) -> float | None:
        """Half of the interval's width."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


class SplitScores(_Part):
    """Those of one split's held-out items."""

    users: int
    """How many were ranked."""
    model: Mapping[str, Score]
    """By metric, such as `ndcg@10`."""
    popularity: Mapping[str, Score]
    """The same of ranking by popularity."""


class Splits(_Part):
    """Those of both."""

    validation: SplitScores
    test: SplitScores


class TrainingSummary(_Part):
    """How the training went; what has a default is not in every older run's."""

    supervision: str = ""
    loss: str = ""
    workers: int
    epochs: int | None = None
    steps: int | None = None
    best_epoch: int
    seconds: float
    """Of training and validation; restarts and what starts Ray are not counted."""
    seconds_to_best: float
    cpu_seconds: float | None = None
    """Processor time of the first worker."""
    cpu_seconds_to_best: float | None = None
    ended_early: bool = False
    """By a sweep's scheduler; it may be trained on."""
    restarts: tuple[Event, ...] = ()
    """The log's events that say where it went on, and why it had to."""


class RunRecord(_Part):
    """All of `metrics.json`; what has a default is not in every older run's."""

    data: str
    """Name of the data set."""
    model: str = ""
    prepared: str = ""
    """Folder of its prepared data."""
    split: Mapping[str, Any] = {}
    """How its data were split; see `SplitRule`."""
    evaluate: Mapping[str, Any] = {}
    """How it was ranked; see `EvaluateConfig`."""
    training: TrainingSummary
    splits: Splits

    @classmethod
    def parse(cls, text: str) -> "RunRecord":
        """Read a record.

        Raises:
            DamagedRecord: The text is none.
        """
        try:
            return cls.model_validate(json.loads(text))
        except ValidationError as error:
            first = error.errors()[0]
            fault = ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))
        except (ValueError, RecursionError) as error:
            fault = f"not JSON: {error}"
        raise DamagedRecord(f"is damaged ({fault}); without it raysrec.evaluate ranks the run again")

    def text(self) -> str:
        """What `parse` reads."""
        return json.dumps(self.model_dump(exclude_none=True), indent=2) + "\n"

    def of(self, split: str) -> SplitScores:
        """The scores of one split, `validation` or `test`."""
        found: SplitScores = getattr(self.splits, split)
        return found

    def score(self, split: str, metric: str, who: Who = "model") -> Score | None:
        """One score; None if it was not computed, as at another cut-off."""
        scores: Mapping[str, Score] = getattr(self.of(split), who)
        return scores.get(metric)
