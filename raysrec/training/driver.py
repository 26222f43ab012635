"""What the driver does while workers train: it starts them, shows what they say, and tells them when to stop."""

import logging
import uuid
from collections.abc import Callable
from typing import Any

from safetensors.torch import load_file

from raysrec.checkpoint_record import TrainingState
from raysrec.checkpoints import Checkpoints, CorruptCheckpoint
from raysrec.cluster.bundles import scale_to_train, worker_bundle
from raysrec.cluster.resources import give_back
from raysrec.cluster.runtime import wants_gpu
from raysrec.cluster.versions import versions_here
from raysrec.config import ScaleConfig
from raysrec.config.run import RunConfig
from raysrec.data.prepared import PreparedData
from raysrec.engine import Weights
from raysrec.mailbox import Event, Mailbox
from raysrec.run_directory import RunDirectory, RunError, RunStopped
from raysrec.stopping import Watched, stop_requests
from raysrec.tracking.progress import shown
from raysrec.training.worker import train_worker

logger = logging.getLogger(__name__)

RAY_RECORDS = "ray"
"""Folder of a run in which Ray Train keeps its own records while training goes on."""

RESIZE_CHECK_S = 60.0
"""Seconds between two looks whether there is room for more workers, where their number may change."""


def learn(
    run: RunDirectory,
    data: PreparedData,
    config: RunConfig,
    *,
    show: Callable[[Event], None] | None = None,
    room: Any = None,
) -> TrainingState:
    """Train on Ray workers, from the last checkpoint if there is one, and write the best weights; how it ended.

    Call inside `ray_session`, for a run that was started.

    Args:
        run: Where it is kept.
        data: What is learned from.
        config: The run.
        show: Is given what happens, in place of a bar.
        room: What is kept for the workers, if it is; is given back.

    Raises:
        RunError: Training cannot be finished.
        RunStopped: It was asked to end before it was finished.
    """
    try:
        state, weights, signal = _train_on_workers(run, data, config, show, room)
    finally:
        give_back(room)
    run.save_model(config, data.manifest.num_items, weights, num_users=data.manifest.num_users)
    if signal:
        raise RunStopped(f"{run.path}: stopped by {signal}, after training; the same command ranks it", signal)
    return state


def best_so_far(run: RunDirectory) -> tuple[TrainingState, Weights] | None:
    """Where a training stands, and its best weights; None before the first validation that was saved."""
    checkpoints = Checkpoints(run.checkpoints)
    record = checkpoints.last_record()
    if record is None or record.best is None:
        return None
    try:
        with checkpoints.file(record.best) as file:
            return record.state, load_file(file)
    except CorruptCheckpoint as error:
        logger.warning("%s; training goes on from the checkpoint before it", error)
        return None


def ask_to_stop(run: RunDirectory, asked_by: str) -> None:
    """Ask the training of this run, in whatever process of this job, to save and end; nothing if there is none."""
    if (mailbox := _found_mailbox(run)) is not None:
        mailbox.stop.remote(asked_by)


def is_trained_now(run: RunDirectory) -> bool:
    """Does a process of this job train this run?"""
    return _found_mailbox(run) is not None


def _found_mailbox(run: RunDirectory) -> Any:
    import ray

    try:
        return ray.get_actor(_mailbox_name(run))
    except ValueError:
        return None


def _train_on_workers(
    run: RunDirectory, data: PreparedData, config: RunConfig, show: Callable[[Event], None] | None, room: Any
) -> tuple[TrainingState, Weights, str]:
    """Run `train_worker` on every worker while the driver shows its progress.

    Returns:
        The state and best weights at the end, and by which signal the process was asked to end meanwhile, if it was.

    Raises:
        RunError: Training cannot be finished.
        RunStopped: It was asked to end before it was finished.
    """
    import ray

    if finished := _finished(run):
        return *finished, ""
    mailbox_name = _mailbox_name(run)
    mailbox = _mailbox(mailbox_name, config.scale)
    trainer = _trainer(run, data, config, mailbox_name, room)
    with shown(mailbox, run.path, config, show), stop_requests() as stop:
        fit = Watched(trainer.fit, "raysrec-fit")
        for _ in fit.looks(stop, config.checkpoint.stop_within_s):
            if stop:
                mailbox.stop.remote(stop.signal)
        given_up = ray.get(mailbox.given_up.remote())
        stopped_by = stop.signal or ray.get(mailbox.stop_asked_by.remote())
    (run.path / RAY_RECORDS).delete()
    if finished := _finished(run):
        return *finished, stop.signal
    if stopped_by:
        kept = Checkpoints(run.checkpoints).last_record()
        saved = f"saved after step {kept.state.step:,}" if kept else "before anything was saved"
        raise RunStopped(f"{run.path}: stopped by {stopped_by}, {saved}; the same command goes on", stopped_by)
    raise RunError(f"{run.path}: {given_up or fit.error or 'training ended before it was finished'}") from fit.error


def _finished(run: RunDirectory) -> tuple[TrainingState, Weights] | None:
    """How a training ended, and its best weights; None while it has not."""
    record = Checkpoints(run.checkpoints).last_record()
    if record is None or not record.state.finished:
        return None
    if record.best is None:
        raise RunError(f"{run.checkpoints}: {record.state.name} is finished, and has no best weights")
    return best_so_far(run)


def _mailbox_name(run: RunDirectory) -> str:
    return f"raysrec-mailbox-{run.path.absolute()}"


def _mailbox(name: str, scale: ScaleConfig) -> Any:
    """The actor that workers and driver speak through, on the driver's node: nothing is left to say without that."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    try:
        return ray.remote(num_cpus=0)(Mailbox).options(name=name, scheduling_strategy=here).remote(scale.max_failures)
    except ValueError:
        raise RunError(
            f"{name.removeprefix('raysrec-mailbox-')}: another process trains this run; wait for it"
        ) from None


def _trainer(run: RunDirectory, data: PreparedData, config: RunConfig, mailbox_name: str, room: Any) -> Any:
    import ray.train

    from raysrec.training.ray_train import failures_told, torch_config
    from raysrec.training.scaling_policy import Trainer

    place, scale = run.path.absolute(), scale_to_train(config)
    use_gpu = wants_gpu(scale)
    described = {"config": config.model_dump_json(), "prepared": str(data.directory.absolute())}
    elastic = scale.min_workers < scale.max_workers
    return Trainer(
        train_worker,
        scale=scale,
        mailbox=mailbox_name,
        use_gpu=use_gpu,
        room=room,
        train_loop_config={
            **described,
            "checkpoints": str(place / "checkpoints"),
            "mailbox": mailbox_name,
            "owner": uuid.uuid4().hex,
            "versions": versions_here(),
        },
        torch_config=torch_config(use_gpu=use_gpu, stalled_after_s=scale.stalled_after_s),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(scale.min_workers, scale.max_workers) if elastic else scale.max_workers,
            use_gpu=use_gpu,
            elastic_resize_monitor_interval_s=RESIZE_CHECK_S,
            resources_per_worker=worker_bundle(scale, use_gpu=use_gpu),
            placement_strategy=scale.placement.upper(),
        ),
        run_config=ray.train.RunConfig(
            # Ray Train's own records, which nothing is read from: a run goes on from its own checkpoints.
            name=uuid.uuid4().hex,
            storage_path=(place / RAY_RECORDS).path,
            storage_filesystem=None if place.is_local else place.filesystem,
            # How often in a row is counted by the mailbox.
            failure_config=ray.train.FailureConfig(max_failures=-1),
            callbacks=[failures_told(mailbox_name, **described, on_gpu=use_gpu)],
        ),
    )
