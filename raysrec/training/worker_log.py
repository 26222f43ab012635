"""What the workers tell the driver, and are told by it: numbers, notes, how saves went, and whether to stop."""

import time
from typing import Any

import torch

from raysrec.checkpoint_record import Candidate, TrainingState
from raysrec.config.run import RunConfig
from raysrec.engine import StepResult, learning_rate, share_done
from raysrec.mailbox import Event, now
from raysrec.training.saving import Saved

LOG_EVERY_S = 1.0
"""Seconds between two step events; each costs worker 0 a message."""


class WorkerLog:
    """Worker 0's account of speed and scores, sent to the driver; the other workers' says nothing.

    Targets and tokens are those of all workers; the wait for data is worker 0's own.
    """

    def __init__(self, mailbox: str, worker: int, config: RunConfig) -> None:
        import ray

        self._mailbox: Any = ray.get_actor(mailbox)
        self._speaks = worker == 0
        self._config = config
        self._answer: Any = None
        self._stop = False

    def started(self, state: TrainingState, num_workers: int, num_targets: int) -> None:
        """Say from where training goes on, on how many workers; an epoch has so many targets."""
        self._num_targets = num_targets
        text = f"going on after step {state.step:,} on {num_workers} workers" if state.step else ""
        event = {"kind": "start", "epoch": state.epoch + 1, "step": state.step, "workers": num_workers}
        self._put({**event, "at": now(), "text": text})

    def gave_up(self) -> bool:
        """Has the driver been told that there is no use in going on?"""
        import ray

        return bool(ray.get(self._mailbox.given_up.remote()))

    def give_up(self, why: str) -> None:
        """Tell the driver that there is no use in going on; any worker may."""
        import ray

        ray.get(self._mailbox.give_up.remote(why))

    def wants_stop(self) -> bool:
        """Has the driver asked for the end?"""
        import ray

        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            self._stop, self._answer = ray.get(self._answer), None
        return self._stop

    def note(self, text: str) -> None:
        """Send a line for people."""
        self._put({"kind": "note", "text": text})

    def start_epoch(self, state: TrainingState) -> None:
        """Begin to count."""
        self._state = state
        self._started = self._shown = time.monotonic()
        self._sums = StepResult(0.0, 0)
        self._waited_s = 0.0

    def after_step(self, result: StepResult, state: TrainingState, waited_s: float) -> None:
        """Add one step; now and then send what was seen since the last time."""
        self._sums += result
        if time.monotonic() - self._shown >= LOG_EVERY_S:
            self._send(state, waited_s)

    def end_epoch(self, state: TrainingState, waited_s: float) -> None:
        """Send what is left."""
        if self._sums.targets:
            self._send(state, waited_s)

    def after_validation(self, state: TrainingState, candidate: Candidate, scores: dict[str, float]) -> None:
        """Send the scores of an epoch."""
        self._put(
            {
                "kind": "validation",
                "epoch": candidate.epoch,
                "step": candidate.step,
                "elapsed_s": state.elapsed_s,
                "is_best": state.best_epoch == candidate.epoch,
                **{f"validation/{name}": value for name, value in scores.items()},
            }
        )

    def after_save(self, saved: Saved) -> None:
        """Send how a save went."""
        event = {
            "kind": "checkpoint",
            "epoch": saved.state.epoch + 1,
            "step": saved.state.step,
            "seconds": saved.seconds,
            "stalled_s": saved.stalled_s,
            "bytes": saved.bytes,
        }
        if saved.problem:
            event["text"] = f"no checkpoint at step {saved.state.step}: {saved.problem}; training goes on"
        self._put(event)

    def _put(self, event: Event) -> None:
        if self._speaks:
            answer = self._mailbox.put.remote(event)
            if self._answer is None:
                self._answer = answer

    def _send(self, state: TrainingState, waited_s: float) -> None:
        clock = time.monotonic()
        seconds, sums = clock - self._shown, self._sums
        elapsed_s = self._state.elapsed_s + clock - self._started
        progress = state.epoch + state.targets_in_epoch / self._num_targets
        share = share_done(self._config.train, epochs=progress, steps=state.step)
        waited, self._waited_s = waited_s - self._waited_s, waited_s
        self._shown, self._sums = clock, StepResult(0.0, 0)
        self._put(
            {
                "kind": "step",
                "epoch": state.epoch + 1,
                "step": state.step,
                "progress": progress,
                "share_done": share,
                "loss": sums.loss / sums.targets,
                "learning_rate": learning_rate(self._config.train, step=state.step - 1, progress=share),
                "targets_per_s": sums.targets / seconds,
                "tokens_per_s": sums.tokens / seconds,
                "padding_share": 1 - sums.tokens / sums.positions,
                "data_wait_share": waited / seconds,
                "elapsed_s": elapsed_s,
                "left_s": elapsed_s * (1 / share - 1),
                **({"gpu_memory_bytes": torch.cuda.max_memory_allocated()} if torch.cuda.is_available() else {}),
            }
        )
