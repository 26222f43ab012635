"""Our hooks into Ray Tune: which trial is next, what trials tell, and its rules for ending some early.

Tune starts trials and starts them again where their process is lost. What it writes for itself is thrown away: a sweep
goes on from its own record, and a trial from its own checkpoints.
"""

import json
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher

from raysrec.config.run import RunConfig
from raysrec.errors import readable
from raysrec.mailbox import Event
from raysrec.sweep.book import TrialBook
from raysrec.sweep.config import SchedulerConfig
from raysrec.sweep.record import TrialRecord
from raysrec.tuning.trial import train_trial

QUIET = {
    # Its files for TensorBoard and others, of every report of a trial; a run has its own.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Reports are told one by one, when they come.
    "TUNE_RESULT_BUFFER_LENGTH": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    # A Tune that is left behind when a sweep is told to end must not start a Ray of its own.
    "RAY_ENABLE_AUTO_CONNECT": "0",
}
"""Settings of Tune in the process that runs a sweep."""


class EarlyStopping:
    """Tune's rule of this name, asked for its judgement alone: who ends a trial lets it save first.

    Args:
        scheduler: The rule.
        max_epochs: The most that any trial is trained.
    """

    def __init__(self, scheduler: SchedulerConfig, max_epochs: int) -> None:
        self._rule = _rule(scheduler, max_epochs)
        self._trials: dict[str, Any] = {}
        self._ended: set[str] = set()

    def judge(self, name: str, *, epoch: int, score: float, best: float) -> bool:
        """Take a validation score and the best so far of a trial; is it to end? Said once, that stays."""
        if self._rule is None or name in self._ended:
            return name in self._ended
        if name not in self._trials:
            self._trials[name] = _Named(trial_id=name)
            self._rule.on_trial_add(_NOBODY_WAITS, self._trials[name])
        result = {"epoch": epoch, "score": score, "best": best}
        if self._rule.on_trial_result(_NOBODY_WAITS, self._trials[name], result) == TrialScheduler.STOP:
            self._ended.add(name)
        return name in self._ended


@dataclass(frozen=True)
class _Named:
    """All that Tune's rules look at in a trial."""

    trial_id: str


_NOBODY_WAITS = SimpleNamespace(get_live_trials=list)
"""All that they look at in Tune's controller: which trials they could let run in place of one."""


def _rule(scheduler: SchedulerConfig, max_epochs: int) -> Any:
    if scheduler.name == "asha":
        return ASHAScheduler(
            time_attr="epoch",
            metric="best",
            mode="max",
            max_t=max_epochs,
            grace_period=scheduler.grace_epochs,
            reduction_factor=scheduler.reduction_factor,
            stop_last_trials=False,
        )
    if scheduler.name == "median":
        return MedianStoppingRule(
            time_attr="epoch",
            metric="score",
            mode="max",
            grace_period=scheduler.grace_epochs,
            min_samples_required=scheduler.min_trials,
        )
    return None


def run_trials(
    book: TrialBook,
    prepared: str,
    *,
    end_early: Callable[[TrialRecord], None],
    fitted: Callable[[RunConfig], RunConfig],
    give_up: threading.Event,
    command: Sequence[str],
) -> None:
    """Train all trials that the book has left; call inside `ray_session`.

    Args:
        book: Gives the trials and hears of them.
        prepared: Place of the data.
        end_early: Is called with a trial that is to save and end.
        fitted: Fits a trial's settings to where it is trained.
        give_up: Is set when trials that still run are to be ended as they are.
        command: What was typed.
    """
    settings = book.sweep.settings

    def begin() -> dict[str, Any] | None:
        if (found := book.begin_next()) is None:
            return None
        trial, config = found
        return {
            "name": trial.name,
            "config": fitted(config).model_dump_json(),
            "prepared": prepared,
            "command": list(command),
            "rank": settings.rank == "all",
        }

    def hear(name: str, event: Event) -> None:
        if book.heard(name, event):
            end_early(next(trial for trial in book.trials if trial.name == name))

    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    # Trials are led from this process's node, where the places are what they are here.
    here = {"CPU": 0, f"node:{ray.util.get_node_ip_address()}": 0.001}
    with tempfile.TemporaryDirectory(prefix="raysrec-tune-") as records:
        tune.Tuner(
            tune.with_resources(train_trial, here),
            tune_config=tune.TuneConfig(
                search_alg=_Begin(begin),
                scheduler=_Hear(hear),
                num_samples=-1,
                max_concurrent_trials=settings.max_concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=records,
                verbose=0,
                callbacks=[_Lost(book.lost)],
                stop=_GiveUp(give_up.is_set),
                failure_config=tune.FailureConfig(max_failures=book.sweep.config.scale.max_failures),
            ),
        ).fit()


class _Unsaved:
    """Tune would save it with its records; it holds what belongs to this process."""

    def __reduce__(self) -> Any:
        return SimpleNamespace, ()


class _Begin(_Unsaved, Searcher):
    """Gives Tune the next trial."""

    def __init__(self, begin: Callable[[], dict[str, Any] | None]) -> None:
        super().__init__()
        self._begin = begin

    def suggest(self, trial_id: str) -> Any:
        return self._begin() or Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Nothing is left to do: the book has heard of its end from the trial."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing goes on from it."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing goes on from it."""


class _Hear(_Unsaved, FIFOScheduler):
    """Hears each report of a trial, and lets it go on: to end early, a trial is asked to save first."""

    def __init__(self, hear: Callable[[str, Event], None]) -> None:
        super().__init__()
        self._hear = hear

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if "event" in result:
            self._hear(trial.config["name"], json.loads(result["event"]))
        return str(TrialScheduler.CONTINUE)


class _GiveUp(_Unsaved, tune.Stopper):
    """Ends all trials when there is no more time."""

    def __init__(self, is_time: Callable[[], bool]) -> None:
        self._is_time = is_time

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._is_time()


class _Lost(_Unsaved, tune.Callback):
    """Hears of trials that Tune gives up."""

    def __init__(self, lost: Callable[[str, str], None]) -> None:
        self._lost = lost

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        error = trial.get_pickled_error()
        said = readable(error) or " ".join(str(error).split())[-300:]
        self._lost(trial.config["name"], f"its process ended again and again: {said}")
