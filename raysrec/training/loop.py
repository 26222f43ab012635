"""The loop over epochs and steps of one training worker.

It sees training batches and validation scores, and has no way to see a test score.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from enum import IntEnum

import torch
from safetensors.torch import load_file

from raysrec.allocator import release_freed_memory
from raysrec.checkpoint_record import Candidate, TrainingState
from raysrec.checkpoints import Checkpoints
from raysrec.config.run import RunConfig
from raysrec.data.batching.facts import facts_of
from raysrec.data.batching.loader import Prefetched, epoch_steps
from raysrec.data.batching.reading import Reader
from raysrec.data.prepared import PreparedData
from raysrec.engine import (
    Engine,
    NonFiniteLoss,
    StateMismatch,
    StepResult,
    Weights,
    build_engine,
    everyones,
    learning_rate,
    saved_state,
    share_done,
)
from raysrec.history import Batch
from raysrec.models import build_model
from raysrec.objective import build_objective
from raysrec.ops import kernels
from raysrec.training.leaving import Leaving, asked_to_leave, asked_to_regroup
from raysrec.training.saving import Saver
from raysrec.training.validation import Beside, Validation
from raysrec.training.worker_log import WorkerLog

RELEASE_EVERY_S = 300.0
"""Seconds after which memory that was freed is given back; more often would cost speed."""


class Wish(IntEnum):
    """What a worker wants to happen after a step; all do what the largest wish of any asks for."""

    NOTHING = 0
    SAVE = 1
    REGROUP = 2
    """Save, and go on in a group of another size: nodes have come."""
    LEAVE = 3
    """Save, and go on elsewhere: a machine is about to be taken away."""
    STOP = 4
    """Save, and end: somebody asked for it."""


WHY_LEAVE = {
    Wish.REGROUP: "there is room for another number of workers; training goes on with those",
    Wish.LEAVE: "a worker's machine is about to be taken away; training goes on elsewhere",
}


class Training:
    """One worker's training, from the last checkpoint to the end; it does not know Ray.

    Args:
        config: The run.
        data: What is learned from.
        checkpoints: Where it is saved and goes on from.
        log: Hears how it goes, and says when to stop.
        read: Reads row groups.
        num_targets: Of an epoch.
        device: Where this worker computes.
        worker: Number of this worker, from 0.
        num_workers: How many there are, in torch's process group if more than one.
        owner: The start of the training that it belongs to; a later start takes over.
        beside: Ranks validation users while the next epoch is learned; the workers do it themselves if nobody does.
    """

    def __init__(
        self,
        config: RunConfig,
        data: PreparedData,
        checkpoints: Checkpoints,
        log: WorkerLog,
        read: Reader,
        *,
        num_targets: int,
        device: torch.device,
        worker: int,
        num_workers: int,
        owner: str = "",
        beside: Beside | None = None,
    ) -> None:
        manifest = data.manifest
        self._config, self._data, self._log, self._read = config, data, log, read
        self._worker, self._num_workers = worker, num_workers
        self._num_targets = num_targets
        torch.manual_seed(config.train.seed)
        objective, loss = build_objective(config, facts_of(data, config), device, settled=_settled(checkpoints, worker))
        replica = build_model(config.model, manifest.num_items, manifest.num_users).to(device).eval()
        self._validation = Validation(
            replica, data, config, read, worker=worker, num_workers=num_workers, beside=beside
        )
        self._engine = build_engine(objective, config, device)
        self._saver = Saver(
            checkpoints,
            owner=owner,
            fingerprint=manifest.fingerprint,
            keep=config.checkpoint.keep,
            worker=worker,
            num_workers=num_workers,
            done=log.after_save,
        )
        if worker == 0:
            checkpoints.claim(owner)
        restored, candidate = _restored(
            self._engine, self._saver, checkpoints, manifest.fingerprint, worker, say=log.note
        )
        self._state = restored.model_copy(update={"loss": loss.config.name})
        if candidate:
            self._validation.begin(candidate)
        self._saved = self._released = time.monotonic()
        self._elapsed_since = time.monotonic() - self._state.elapsed_s
        self._cpu_since = time.process_time() - self._state.cpu_s
        log.started(self._state, num_workers, num_targets)
        log.note(f"kernels  {'; '.join(f'{name}: {choice}' for name, choice in kernels(device.type).items())}")
        log.note(f"loss  {loss.config.name}: {loss.reason}")

    def run(self) -> None:
        """Train until training is finished, or until it is told to stop.

        Raises:
            Leaving: A worker's machine is about to go, or there is to be another number of workers; all is saved.
        """
        upcoming = None if self._state.finished else self._prefetch()
        while upcoming is not None:
            wish = self._epoch(upcoming)
            if wish >= Wish.REGROUP:
                self._saver.wait()
                if wish in WHY_LEAVE:
                    raise Leaving(WHY_LEAVE[wish])
                return
            upcoming = self._after_epoch()
        self._last_save()

    def _prefetch(self) -> Prefetched:
        state = self._state
        return Prefetched(
            epoch_steps(
                self._data,
                self._config,
                self._read,
                epoch=state.epoch,
                first_step=state.steps_in_epoch,
                worker=self._worker,
                num_workers=self._num_workers,
            )
        )

    def _epoch(self, steps: Prefetched) -> Wish:
        """Learn from what is left of an epoch; the wish that ended it before its end, if one did."""
        log = self._log
        log.start_epoch(self._state)
        ready = iter(steps)
        wish = Wish.NOTHING
        while wish < Wish.REGROUP and self._state.step != self._config.train.max_steps:
            result = self._step(next(ready, []))
            if result.targets == 0:  # every worker's data has ended
                break
            self._state = self._state.after_step(result.targets)
            log.after_step(result, self._state, steps.waited_s)
            wish = Wish(result.wish)
            if wish >= Wish.SAVE:
                self._save()
            self._release_memory()
        steps.close()
        log.end_epoch(self._state, steps.waited_s)
        return wish if wish >= Wish.REGROUP else Wish.NOTHING

    def _step(self, batches: list[Batch]) -> StepResult:
        """One update, at the learning rate of where training stands."""
        train, state = self._config.train, self._state
        epochs = state.epoch + state.targets_in_epoch / self._num_targets
        rate = learning_rate(train, step=state.step, progress=share_done(train, epochs=epochs, steps=state.step))
        try:
            return self._engine.step(batches, learning_rate=rate, wish=self._own_wish())
        except NonFiniteLoss as fault:
            raise NonFiniteLoss(
                f"step {state.step + 1}, in epoch {state.epoch + 1}: {fault}. Lower train.learning_rate, or set "
                "train.clip_norm or a longer train.warmup_steps",
                fault.faults,
            ) from None

    def _own_wish(self) -> Wish:
        """What this worker wants after the step that comes."""
        if asked_to_leave():
            return Wish.LEAVE
        if asked_to_regroup():
            return Wish.REGROUP
        if self._worker:
            return Wish.NOTHING
        if self._log.wants_stop():
            return Wish.STOP
        every = self._config.checkpoint
        is_due = every.every_steps and (self._state.step + 1) % every.every_steps == 0
        is_late = time.monotonic() > self._saved + every.every_s and not self._saver.busy
        return Wish.SAVE if is_due or is_late else Wish.NOTHING

    def _after_epoch(self) -> Prefetched | None:
        """Validate if it is time to, save, and begin to read the next epoch; None if there is none."""
        config = self._config
        is_last = _is_last(config, self._state.epoch + 1, self._state.step)
        self._state = self._state.after_epoch()
        # Reading for the next epoch starts while this one is validated.
        upcoming = None if is_last else self._prefetch()
        self._judge()
        if not self._state.finished and (is_last or self._state.epoch % config.train.validate_every == 0):
            self._nominate()
            if is_last or not self._validation.is_beside:
                self._judge()
        self._state = self._state.model_copy(update={"finished": is_last or self._state.finished})
        self._save()
        if self._state.finished and upcoming is not None:
            upcoming.close()
            return None
        return upcoming

    def _nominate(self) -> None:
        """The weights as they are now are to be judged."""
        state, weights = self._state, self._engine.weights()
        self._validation.begin(weights)
        if self._worker == 0:
            self._saver.keep(state.epoch, weights)
        self._state = state.model_copy(update={"candidate": Candidate(epoch=state.epoch, step=state.step)})

    def _judge(self) -> None:
        """Judge the candidate, if there is one, by its validation scores: the only ones that training ever sees."""
        if self._state.candidate is None:
            return
        candidate, scores = self._state.candidate, self._validation.scores()
        self._state = _judged(self._timed(), self._config, scores)
        self._log.after_validation(self._state, candidate, scores)

    def _save(self) -> None:
        self._state = self._timed()
        self._saver.begin(self._state, self._engine.snapshot)
        self._saved = time.monotonic()

    def _last_save(self) -> None:
        """What was trained counts when it is kept; here a save that failed is tried once more, and then an error."""
        saved = self._saver.wait()
        if saved is not None and saved.problem:
            self._saver.begin(self._state, self._engine.snapshot)
            saved = self._saver.wait()
        if saved is not None and saved.problem:
            raise RuntimeError(f"training is finished but cannot be saved: {saved.problem}")

    def _timed(self) -> TrainingState:
        """The state, with the time that it has taken until now."""
        elapsed_s, cpu_s = time.monotonic() - self._elapsed_since, time.process_time() - self._cpu_since
        return self._state.model_copy(update={"elapsed_s": elapsed_s, "cpu_s": cpu_s})

    def _release_memory(self) -> None:
        if time.monotonic() > self._released + RELEASE_EVERY_S:
            release_freed_memory()
            self._released = time.monotonic()


def _settled(checkpoints: Checkpoints, worker: int) -> str:
    """The loss that was settled when training began, the same on every worker; empty where it begins now."""
    record = checkpoints.last_record() if worker == 0 else None
    return str(everyones(record.state.loss if record else "")[0])


def _restored(
    engine: Engine,
    saver: Saver,
    checkpoints: Checkpoints,
    fingerprint: str,
    worker: int,
    *,
    say: Callable[[str], None],
) -> tuple[TrainingState, Weights | None]:
    """Go on from the newest whole checkpoint, the same one on every worker; the beginning where there is none.

    Returns:
        Where training stands, and the weights that were still to be judged.

    Raises:
        NoneIsWhole: There are checkpoints, and all are damaged.
    """
    with ExitStack() as stack:
        found = stack.enter_context(checkpoints.newest(say)) if worker == 0 else None
        name = everyones(found.record.state.name if found else "")[0]
        if worker == 0:
            checkpoints.remove_after(name)
        if not name:
            return TrainingState(), None
        checkpoint = found or stack.enter_context(checkpoints.loaded(name))
        record = checkpoint.record
        if record.fingerprint != fingerprint:
            raise StateMismatch(
                f"{checkpoints.place}: was trained on data {record.fingerprint}, but the prepared data is "
                f"{fingerprint}; restore the source, or --fresh to throw the run away"
            )
        engine.restore(saved_state(checkpoint.states))
        saver.went_on_from(record)
        candidate = record.state.candidate
        return record.state, load_file(checkpoint.kept[candidate.epoch]) if candidate else None


def _is_last(config: RunConfig, epoch: int, step: int) -> bool:
    """Does training end when so many epochs are done, or begun and so many steps made?"""
    return epoch == config.train.epochs or step == config.train.max_steps


def _judged(state: TrainingState, config: RunConfig, scores: dict[str, float]) -> TrainingState:
    """The state when its candidate has these scores: perhaps a new best, perhaps the end."""
    assert state.candidate
    if not scores[config.evaluate.metric] > state.best_score:
        worse = state.worse_in_a_row + 1
        ends = worse >= config.train.patience
        return state.model_copy(update={"candidate": None, "worse_in_a_row": worse, "finished": ends})
    best = {
        "best_score": scores[config.evaluate.metric],
        "best_epoch": state.candidate.epoch,
        "best_elapsed_s": state.elapsed_s,
        "best_cpu_s": state.cpu_s,
    }
    return state.model_copy(update={"candidate": None, "worse_in_a_row": 0, **best})
