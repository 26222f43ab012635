"""What a sweep's file says, and its trials: each is the configuration with some parameters laid over it."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from raysrec.errors import LastingError
from raysrec.schema import Count, CountOrZero, Section
from raysrec.sweep.sampler import Sampler

Parameters = dict[str, Any]
"""What a trial differs in: keys as on the command line, such as `model.dropout`, and their values."""

NOT_SWEPT = {
    "data": "trials share one prepared data set, and scores on different data cannot be compared",
    "evaluate": "trials are compared by one rule of ranking",
    "storage": "each trial has its own folder in that of the sweep",
    "scale": "it changes no score",
    "checkpoint": "it changes no score",
}
"""Sections whose settings are those of all trials."""

SAME_AGAIN = 10_000
"""Draws of parameters that another trial has, after which there are taken to be no others."""


class SweepError(LastingError):
    """A sweep that cannot be made as asked."""


class SchedulerConfig(Section):
    """Which trials are ended early; by the validation score, at equal numbers of epochs."""

    name: Literal["none", "asha", "median"] = "none"
    """`none` trains every trial to its end; `asha` lets the best `1 / reduction_factor` of the trials go on after
    `grace_epochs`, and again each time they have trained `reduction_factor` times as long; `median` ends a trial whose
    best score is below the median of the other trials' mean scores up to the same epoch."""
    grace_epochs: Count = 1
    """Epochs that every trial is trained."""
    reduction_factor: Annotated[float, Field(gt=1)] = 3.0
    """`asha`: how much of the trials go on, and how far."""
    min_trials: Count = 3
    """`median`: trials that must have come as far before one is ended."""

    @model_validator(mode="after")
    def _what_is_set_is_used(self) -> "SchedulerConfig":
        owners = {"grace_epochs": ("asha", "median"), "reduction_factor": ("asha",), "min_trials": ("median",)}
        for key, names in owners.items():
            if self.name not in names and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(
                    f"scheduler.{key}={getattr(self, key)} is for scheduler.name={' or '.join(names)}, and "
                    f"scheduler.name={self.name} has no use for it; drop it"
                )
        return self


class SweepConfig(Section):
    """One search: over which parameters, how, and for how long."""

    name: str = ""
    """What to call it in the name of its folder; the file's name if empty."""
    space: dict[str, Sampler]
    """Parameters, as on the command line (`model.dropout`), and how each is drawn: `{grid: [1, 2]}`,
    `{choice: [1, 2]}`, `{uniform: [0.1, 0.5]}`, `{log_uniform: [1.0e-4, 1.0e-2]}`, `{integer: [1, 6]}` or
    `{log_integer: [8, 512]}`."""
    config: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies it
    """Settings of all trials, laid over those of `--config` and under those of the command line."""
    num_samples: Count | None = None
    """Trials to draw; where there are grids, draws for each of their points. A sweep of grids alone has none to draw.
    A higher number goes on with a sweep that is finished."""
    seed: CountOrZero = 0
    """Fixes what is drawn: trial 7 is the same however many there are."""
    search: Literal["random", "optuna"] = "random"
    """`random` draws each trial by itself; `optuna` learns from the scores of earlier trials where to look (TPE), and
    is installed by `pip install 'raysrec[optuna]'`."""
    metric: str = ""
    """The validation score that trials are compared by, such as `ndcg@10`; it also chooses each trial's best weights.
    `evaluate.metric` if empty."""
    scheduler: SchedulerConfig = SchedulerConfig()
    """Ending trials early."""
    max_concurrent: Count = 1
    """Trials that are trained at once, each on `scale.workers` workers."""
    rank: Literal["best", "all"] = "best"
    """Which trials' test items are ranked when training is over: the `best` one's, or those of `all` that were trained
    to the end. The search never sees such a score."""

    @model_validator(mode="after")
    def _can_be_searched(self) -> "SweepConfig":
        if not self.space:
            raise ValueError(
                "space: is empty; name at least one parameter, such as model.dropout: {uniform: [0.1, 0.5]}"
            )
        for key in self.space:
            if reason := NOT_SWEPT.get(key.partition(".")[0]):
                raise ValueError(f"space.{key}: cannot be swept, for {reason}; set it for all trials")
        drawn = [key for key, sampler in self.space.items() if sampler.kind != "grid"]
        if drawn and self.num_samples is None:
            raise ValueError(f"num_samples is missing: how many trials are drawn, for {drawn[0]} is no grid")
        if not drawn and (self.num_samples or 1) > 1:
            raise ValueError(
                f"num_samples={self.num_samples}: all parameters are grids, and each point would be trained "
                f"{self.num_samples} times alike; drop num_samples, or sweep train.seed too"
            )
        if self.search == "optuna" and len(drawn) < len(self.space):
            grid = next(key for key in self.space if key not in drawn)
            raise ValueError(f"space.{grid}: a grid leaves nothing to search=optuna; make it a choice")
        different = math.prod(self.space[key].num_values for key in drawn)
        if self.num_samples and self.num_samples > different:
            raise ValueError(
                f"num_samples={self.num_samples}, but there are only {different} different trials; lower it, or make "
                "every parameter a grid"
            )
        return self

    @property
    def num_trials(self) -> int:
        """How many trials there are."""
        grids = (len(sampler.values) for sampler in self.space.values() if sampler.kind == "grid")
        return (self.num_samples or 1) * math.prod(grids)

    def trials(self) -> Iterator[Parameters]:
        """The parameters of every trial in order, no two alike; those of a higher `num_samples` begin with the same.

        With `search=optuna` these are only what a random search would draw.
        """
        grids = {key: sampler.values for key, sampler in self.space.items() if sampler.kind == "grid"}
        seen: list[Parameters] = []
        for _ in range(self.num_samples or 1):
            for point in itertools.product(*grids.values()):
                seen.append(self.other_than(seen, dict(zip(grids, point, strict=True))))
                yield seen[-1]

    def other_than(self, seen: Sequence[Parameters], point: Parameters = {}) -> Parameters:  # noqa: B006 - not changed
        """Parameters at this point of the grids, drawn at random for the rest, that none of these are.

        Raises:
            SweepError: No others were found.
        """
        for again in range(SAME_AGAIN):
            random = np.random.default_rng([self.seed, len(seen), again])
            drawn = {key: point[key] if key in point else sampler.draw(random) for key, sampler in self.space.items()}
            if drawn not in seen:
                return drawn
        raise SweepError(f"num_samples={self.num_samples}: no other parameters than before could be drawn; lower it")
