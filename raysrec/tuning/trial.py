"""What a trial of a sweep does in its own process: train one run, and tell the sweep how it goes.

A trial is a run like any other, trained by the same functions; it goes on from its own checkpoints.
"""

import json
import math
import time
from typing import Any

from raysrec.checkpoints import Checkpoints
from raysrec.cluster.bundles import need_to_train, scale_to_train
from raysrec.cluster.resources import wait_for_room
from raysrec.cluster.runtime import ray_session
from raysrec.config.run import RunConfig
from raysrec.data.prepared import PreparedData
from raysrec.errors import ReadableError
from raysrec.evaluate import rank, training_summary
from raysrec.mailbox import Event
from raysrec.run_directory import RunDirectory, RunError, RunStopped
from raysrec.training.driver import best_so_far, is_trained_now, learn

TELL_EVERY_S = 2.0
"""Seconds between two step events that the sweep is told."""

SCHEDULER = "the sweep's scheduler"
"""Who asks a trial to end early: it is over then, where others let it go on another time."""

LEFT_BEHIND_S = 60.0
"""Seconds in which what a lost process of this trial has left must be gone."""


def train_trial(given: dict[str, Any]) -> None:
    """Train one trial, from the beginning or its last checkpoint; Ray Tune calls this in a process of the trial.

    Args:
        given: `config` (a RunConfig as JSON), `prepared` (the place of its data), `command` (what was typed) and
            `rank` (are its test items ranked when it is trained to the end?).
    """
    told_at = -math.inf

    def show(event: Event) -> None:
        nonlocal told_at
        if event["kind"] == "step" and time.monotonic() < told_at + TELL_EVERY_S:
            return
        told_at = time.monotonic()
        _tell(event)

    config, data = RunConfig.model_validate_json(given["config"]), PreparedData.open(given["prepared"])
    run = RunDirectory(config.run_directory)
    try:
        with ray_session(config.scale):
            end = _train(run, config, data, show, given)
    except (ReadableError, OSError) as error:
        end = {"state": "failed", "why": str(error)}
    _tell({"kind": "end", **end, **_so_far(run)})


def _tell(event: Event) -> None:
    from ray import tune

    # As text, since Tune makes flat what is nested, and looks for numbers in it.
    tune.report({"event": json.dumps(event)})


def _train(run: RunDirectory, config: RunConfig, data: PreparedData, show: Any, given: dict[str, Any]) -> Event:
    """How it ended; the weights to use are those of the best epoch, also where it was ended early."""
    if changes := run.other_settings(config):
        raise RunError(f"{run.path} holds a run with other settings: {changes}; --fresh throws the sweep away")
    run.start(config, data.manifest.fingerprint, command=given["command"])
    _wait_for_the_last_one(run)
    # The sweep has seen that there can be room; how long others of its trials take is no reason to give up.
    scale = scale_to_train(config).model_copy(update={"wait_s": math.inf})
    wait_for_room(need_to_train(scale), say=lambda _: None)
    try:
        state = learn(run, data, config, show=show)
    except RunStopped as stopped:
        if stopped.by != SCHEDULER:
            return {"state": "interrupted"}
        if found := best_so_far(run):
            run.save_model(config, data.manifest.num_items, found[1], num_users=data.manifest.num_users)
        return {"state": "stopped"}
    if given["rank"]:
        rank(run, data, config, training_summary(run, state))
    return {"state": "finished"}


def _wait_for_the_last_one(run: RunDirectory) -> None:
    deadline = time.monotonic() + LEFT_BEHIND_S
    while is_trained_now(run) and time.monotonic() < deadline:
        time.sleep(0.5)


def _so_far(run: RunDirectory) -> Event:
    """What the last checkpoint says of the whole training; nothing before the first validation."""
    record = Checkpoints(run.checkpoints).last_record()
    if record is None or not record.state.best_epoch:
        return {}
    state = record.state
    best = [state.best_epoch, state.best_score, state.best_elapsed_s]
    return {"best": best, "seconds": state.elapsed_s}
