"""Where every trial of a sweep stands while it runs, which one is next, and which ones are ended early.

It writes down each change before it counts, so that a sweep which is killed anywhere goes on from what lies in its
directory: trials that are done stay done, others keep their parameters.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from raysrec.config.files import ConfigError
from raysrec.config.run import RunConfig
from raysrec.mailbox import Event, now
from raysrec.place import PlaceError
from raysrec.sweep.loading import Sweep
from raysrec.sweep.proposals import proposals
from raysrec.sweep.record import CurvePoint, TrialRecord

logger = logging.getLogger(__name__)


@runtime_checkable
class StoppingRule(Protocol):
    """Decides which trials are not worth training on."""

    def judge(self, name: str, *, epoch: int, score: float, best: float) -> bool:
        """Take a trial's validation score and its best so far; is the trial to end?"""


Listener = Callable[[TrialRecord, Event], None]
"""Is told of each event of a trial, after it was taken into account."""


class TrialBook:
    """The trials of a sweep; may be called from several threads.

    Args:
        sweep: The sweep; what an earlier start of it has left is gone on with.
        rule: Which trials end early; it is told first what is known already.
    """

    def __init__(self, sweep: Sweep, rule: StoppingRule) -> None:
        self.sweep = sweep
        self._rule = rule
        self._lock = threading.RLock()
        self._listeners: list[Listener] = []
        self._live: dict[str, Event] = {}
        self._ended_early: set[str] = set()
        self._closed = False
        known = [_interrupted(trial) for trial in sweep.directory.trials]
        self._trials = {trial.name: trial for trial in known}
        self._unfinished = deque(trial.name for trial in known if not trial.is_done)
        self._proposals = proposals(sweep.settings, known)
        for trial in sorted(known, key=lambda trial: not trial.is_done):
            for point in range(len(trial.curve)):
                self._judge(trial.model_copy(update={"curve": trial.curve[: point + 1]}))

    @property
    def trials(self) -> list[TrialRecord]:
        """All trials that were begun, in order."""
        with self._lock:
            return list(self._trials.values())

    @property
    def running(self) -> list[TrialRecord]:
        """Those that are trained now."""
        return [trial for trial in self.trials if trial.state == "running"]

    @property
    def num_trials(self) -> int:
        """How many there will be."""
        return max(self.sweep.settings.num_trials, len(self._trials))

    @property
    def is_done(self) -> bool:
        """Is there no trial left to train?"""
        trials = self.trials
        return len(trials) >= self.num_trials and all(trial.is_done for trial in trials)

    def live(self, trial: TrialRecord) -> Event:
        """The last numbers of a trial's training; empty where there are none yet."""
        return self._live.get(trial.name, {})

    def listen(self, listener: Listener) -> None:
        """Tell this function of all that happens from now on."""
        self._listeners.append(listener)

    def close(self) -> None:
        """Begin no further trial."""
        self._closed = True

    def begin_next(self) -> tuple[TrialRecord, RunConfig] | None:
        """The trial that is trained next, written down as running; None if there is none left."""
        with self._lock:
            while not self._closed and (trial := self._next()) is not None:
                try:
                    config = self.sweep.config_of(trial.name, trial.parameters)
                except ConfigError as error:  # parameters that only together cannot be, proposed while it runs
                    self._put(trial, state="failed", why=str(error), ended_at=now())
                    self._proposals.told(self._trials[trial.name])
                    continue
                trial = self._put(trial, state="running", why="", started_at=trial.started_at or now(), ended_at=None)
                self._tell(trial, {"kind": "begin"})
                return trial, config
        return None

    def heard(self, name: str, event: Event) -> bool:
        """Take an event of a trial's training into account; is the trial to end early?

        Args:
            name: Of the trial.
            event: As of a run's log; or of the kind `end`, with its `state`, `why`, `seconds`, and the `best`
                validation as epoch, score and seconds.
        """
        with self._lock:
            trial, stop = self._trials[name], False
            if event["kind"] == "step":
                self._live[name] = event
            elif event["kind"] == "validation":
                score = event[f"validation/{self.sweep.settings.metric}"]
                one = CurvePoint(event["epoch"], score, event["elapsed_s"])
                trial = self._put(trial, curve=_with(trial.curve, one), seconds=one.seconds)
                stop = name in self._ended_early or self._judge(trial)
            elif event["kind"] == "end":
                trial = self._end(trial, event)
            self._tell(trial, event)
            return stop

    def lost(self, name: str, why: str) -> None:
        """A trial's own process ended again and again."""
        self.heard(name, {"kind": "end", "state": "failed", "why": why})

    def interrupt(self, trials: Sequence[TrialRecord]) -> None:
        """These trials are left as they are, and go on another time."""
        for trial in trials:
            self.heard(trial.name, {"kind": "end", "state": "interrupted"})

    def _next(self) -> TrialRecord | None:
        if self._unfinished:
            return self._trials[self._unfinished.popleft()]
        number = len(self._trials)
        if number >= self.sweep.settings.num_trials:
            return None
        return TrialRecord(number=number, name=f"trial-{number:03d}", parameters=self._proposals.propose(number))

    def _judge(self, trial: TrialRecord) -> bool:
        assert trial.score is not None
        stop = self._rule.judge(trial.name, epoch=trial.epoch, score=trial.curve[-1].score, best=trial.score)
        if stop:
            self._ended_early.add(trial.name)
        return stop

    def _end(self, trial: TrialRecord, event: Event) -> TrialRecord:
        self._live.pop(trial.name, None)
        state, why, curve = event["state"], event.get("why", ""), trial.curve
        if state == "stopped":
            why = f"ended early by {self.sweep.settings.scheduler.name}, after epoch {trial.epoch}"
        elif state == "interrupted":
            why = "the sweep was asked to end"
        if (best := event.get("best")) and best[0] not in [validation.epoch for validation in curve]:
            # It was validated when the sweep had been killed.
            curve = tuple(sorted([*curve, CurvePoint(*best)]))
            self._judge(trial.model_copy(update={"curve": curve}))
        trial = self._put(
            trial,
            state=state,
            why=why,
            curve=curve,
            seconds=event.get("seconds", trial.seconds),
            ended_at=now(),
        )
        if state != "interrupted":
            self._proposals.told(trial)
        return trial

    def _put(self, trial: TrialRecord, **changes: Any) -> TrialRecord:
        trial = TrialRecord.model_validate({**trial.model_dump(), **changes})
        self._trials[trial.name] = trial
        try:
            self.sweep.directory.save(self.trials)
        except (
            PlaceError,
            OSError,
        ) as error:  # a store that is down or a disk that is full is written to at the next change
            logger.warning("%s: %s", self.sweep.directory.path, error)
        return trial

    def _tell(self, trial: TrialRecord, event: Event) -> None:
        for listener in self._listeners:
            listener(trial, event)


def _interrupted(trial: TrialRecord) -> TrialRecord:
    """What a killed sweep left running."""
    return trial.model_copy(update={"state": "interrupted"}) if trial.state == "running" else trial


def _with(curve: tuple[CurvePoint, ...], one: CurvePoint) -> tuple[CurvePoint, ...]:
    """The curve with one more validation; later ones were lost with a checkpoint and are made again."""
    return (*(old for old in curve if old.epoch < one.epoch), one)
