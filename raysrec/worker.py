"""What every training worker does: the loop over epochs and steps, and nothing that the driver does.

The loop sees training batches and validation scores; it has no way to see a test score.
"""

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from raysrec.checkpoint import TrainingState, save_weights
from raysrec.config import RunConfig
from raysrec.data.catalog import PreparedData
from raysrec.data.loader import Prefetched, epoch_steps, targets_per_epoch
from raysrec.data.reading import read_with_ray
from raysrec.engine import (
    Engine,
    NonFiniteLoss,
    StepResult,
    Weights,
    build_engine,
    learning_rate,
    saved_state,
    share_done,
)
from raysrec.evaluate import validation_sums
from raysrec.metrics import RankSums
from raysrec.models import SequenceModel, build_model
from raysrec.objective import Objective, choose_loss
from raysrec.ops import kernels
from raysrec.place import Place
from raysrec.runtime import release_freed_memory, threads_per_worker, tune_allocator

RELEASE_EVERY_S = 300.0
"""Seconds after which memory that was freed is given back; more often would cost speed."""

LOG_EVERY_S = 1.0
"""Seconds between two step events; each costs worker 0 a message."""


def train_worker(arguments: dict[str, Any]) -> None:
    """What every worker does, from the first epoch or the last checkpoint to the end.

    Args:
        arguments: `config` (a RunConfig as JSON), `prepared` and `checkpoints` (places, of the data and to save in) and
            `mailbox` (name of an actor).
    """
    import ray.train.torch

    config = RunConfig.model_validate_json(arguments["config"])
    context = ray.train.get_context()
    worker, num_workers = context.get_world_rank(), context.get_world_size()
    tune_allocator()
    torch.set_num_threads(threads_per_worker(config.scale, workers_here=context.get_local_world_size()))
    torch.set_flush_denormal(True)  # states that have decayed to almost nothing would cost a hundred times as much
    device = ray.train.torch.get_device()
    data = PreparedData.open(arguments["prepared"])

    torch.manual_seed(config.train.seed)
    model = build_model(config.model, data.manifest.num_items, data.manifest.num_users)
    item_counts = torch.from_numpy(data.train_counts())
    model.set_item_counts(item_counts)
    loss = choose_loss(config.loss, model, device=device.type)
    reads_last = config.train.supervision == "last_position"
    objective = Objective(model, loss.config, reads_last=reads_last, item_counts=item_counts).to(device)
    replica = build_model(config.model, data.manifest.num_items, data.manifest.num_users).to(device).eval()
    engine = build_engine(objective, config, device)
    state, best = _restore(engine)
    num_targets = targets_per_epoch(data, config)
    log = _Log(arguments["mailbox"], worker, config, num_targets)
    log.note(f"kernels  {'; '.join(f'{name}: {choice}' for name, choice in kernels(device.type).items())}")
    log.note(f"loss  {loss.config.name}: {loss.reason}")
    elapsed_before_s, begun = state.elapsed_s, time.monotonic()
    released = begun

    def prefetch(epoch: int) -> Prefetched:
        return Prefetched(epoch_steps(data, config, read_with_ray, epoch=epoch, worker=worker, num_workers=num_workers))

    upcoming = None if state.finished else prefetch(state.epoch)
    while upcoming is not None:
        steps, step, done = upcoming, state.step, 0
        log.start_epoch(state)
        ready = iter(steps)
        while step != config.train.max_steps:
            batches = next(ready, [])
            progress = share_done(config.train, epochs=state.epoch + done / num_targets, steps=step)
            try:
                result = engine.step(batches, learning_rate=learning_rate(config.train, step=step, progress=progress))
            except NonFiniteLoss as fault:
                raise NonFiniteLoss(
                    f"step {step + 1}, in epoch {state.epoch + 1}: {fault}. Lower train.learning_rate, or set "
                    "train.clip_norm or a longer train.warmup_steps",
                    fault.faults,
                ) from None
            if result.targets == 0:  # every worker's data has ended
                break
            step, done = step + 1, done + result.targets
            log.after_step(result, step, done, steps.waited_s)
            if time.monotonic() > released + RELEASE_EVERY_S:
                release_freed_memory()
                released = time.monotonic()
        steps.close()
        log.end_epoch(step, done, steps.waited_s)

        scores = None
        is_last = _is_last(config, state.epoch + 1, step)
        # Reading for the next epoch starts while this one is validated.
        upcoming = None if is_last else prefetch(state.epoch + 1)
        if is_last or (state.epoch + 1) % config.train.validate_every == 0:
            replica.load_state_dict(engine.weights())
            scores = _validate(replica, data, config, worker, num_workers)
        previous, state = state, _advance(state, config, step, scores, elapsed_before_s + time.monotonic() - begun)
        if state.best_epoch > previous.best_epoch:
            best = {name: value.cpu().clone() for name, value in replica.state_dict().items()} if worker == 0 else {}
        log.after_validation(state, scores)
        _save(engine, state, best, worker, Place.of(arguments["checkpoints"]))
        if state.finished and upcoming is not None:
            upcoming.close()
            upcoming = None


def _restore(engine: Engine) -> tuple[TrainingState, Weights]:
    """Go on from the last checkpoint that Ray Train knows of; the beginning where there is none."""
    import ray.train

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return TrainingState(), {}
    with checkpoint.as_directory() as folder:
        engine.restore(saved_state(list(Path(folder).glob("state-*.safetensors"))))
        state = TrainingState.model_validate_json((Path(folder) / "state.json").read_text())
        return state, load_file(Path(folder) / "best.safetensors")


def _save(engine: Engine, state: TrainingState, best: Weights, worker: int, checkpoints: Place) -> None:
    """Hand the state after an epoch to Ray Train, which uploads and registers it; every worker takes part."""
    import ray.train

    folder = Path(tempfile.mkdtemp(prefix="raysrec-"))
    snapshot = engine.snapshot()
    snapshot.save(folder / snapshot.file_name)
    if worker == 0:
        (folder / "state.json").write_text(state.model_dump_json())
        save_weights(best, folder / "best.safetensors")
    ray.train.report(
        {"epoch": state.epoch, "best_score": state.best_score},
        checkpoint=ray.train.Checkpoint.from_directory(str(folder)),
        checkpoint_dir_name=f"epoch_{state.epoch:05d}",
        delete_local_checkpoint_after_upload=True,
        checkpoint_upload_fn=None if checkpoints.is_local else partial(_upload, checkpoints),
    )


def _upload(checkpoints: Place, checkpoint: Any, name: str) -> Any:
    """Copy a checkpoint into a store; Ray Train's own way does not tell when the store refuses it."""
    import ray.train

    for file in Path(checkpoint.path).rglob("*"):
        if file.is_file():
            (checkpoints / name / file.relative_to(checkpoint.path).as_posix()).upload(file)
    return ray.train.Checkpoint((checkpoints / name).path, checkpoints.filesystem)


def _validate(
    model: SequenceModel, data: PreparedData, config: RunConfig, worker: int, num_workers: int
) -> dict[str, float]:
    """Validation scores over all users; the only scores that training ever sees."""
    own = validation_sums(model, data, config, read_with_ray, worker=worker, num_workers=num_workers)
    vector = own.to_vector()
    if num_workers > 1:
        dist.all_reduce(vector)
    sums = RankSums.from_vector(vector, config.evaluate.ks)
    if sums.count != (expected := data.manifest.num_ranked("validation")):
        raise RuntimeError(f"validation ranked {sums.count} users, but the data has {expected} to rank")
    return sums.means()


def _is_last(config: RunConfig, epoch: int, step: int) -> bool:
    """Does training end when so many epochs are done, or begun and so many steps made?"""
    return epoch == config.train.epochs or step == config.train.max_steps


def _advance(
    state: TrainingState, config: RunConfig, step: int, scores: dict[str, float] | None, elapsed_s: float
) -> TrainingState:
    """The state after an epoch: one more epoch, perhaps a new best, perhaps the end."""
    epoch = state.epoch + 1
    best: dict[str, Any] = {}
    worse = state.worse_in_a_row
    if scores is not None and scores[config.evaluate.metric] > state.best_score:
        best = {"best_score": scores[config.evaluate.metric], "best_epoch": epoch, "best_elapsed_s": elapsed_s}
        worse = 0
    elif scores is not None:
        worse += 1
    return state.model_copy(
        update={
            "epoch": epoch,
            "step": step,
            "elapsed_s": elapsed_s,
            "worse_in_a_row": worse,
            "finished": _is_last(config, epoch, step) or worse >= config.train.patience,
            **best,
        }
    )


class _Log:
    """Worker 0's account of speed and scores, sent to the driver; the other workers' says nothing.

    Targets and tokens are those of all workers; the wait for data is worker 0's own.
    """

    def __init__(self, mailbox: str, worker: int, config: RunConfig, num_targets: int) -> None:
        import ray

        self._mailbox: Any = ray.get_actor(mailbox) if worker == 0 else None
        self._config = config
        self._num_targets = num_targets

    def note(self, text: str) -> None:
        """Send a line for people."""
        if self._mailbox is not None:
            self._mailbox.put.remote({"kind": "note", "text": text})

    def start_epoch(self, state: TrainingState) -> None:
        """Begin to count."""
        self._state = state
        self._started = self._shown = time.monotonic()
        self._sums = StepResult(0.0, 0)
        self._waited_s = 0.0

    def after_step(self, result: StepResult, step: int, done: int, waited_s: float) -> None:
        """Add one step; now and then send what was seen since the last time."""
        self._sums += result
        if time.monotonic() - self._shown >= LOG_EVERY_S:
            self._send(step, done, waited_s)

    def end_epoch(self, step: int, done: int, waited_s: float) -> None:
        """Send what is left."""
        if self._sums.targets:
            self._send(step, done, waited_s)

    def after_validation(self, state: TrainingState, scores: dict[str, float] | None) -> None:
        """Send the scores of an epoch."""
        if self._mailbox is None or scores is None:
            return
        event = {f"validation/{name}": value for name, value in scores.items()}
        is_best = state.best_epoch == state.epoch
        self._mailbox.put.remote(
            {
                "kind": "validation",
                "epoch": state.epoch,
                "step": state.step,
                "elapsed_s": state.elapsed_s,
                "is_best": is_best,
                **event,
            }
        )

    def _send(self, step: int, done: int, waited_s: float) -> None:
        now = time.monotonic()
        seconds, sums = now - self._shown, self._sums
        elapsed_s = self._state.elapsed_s + now - self._started
        progress = self._state.epoch + done / self._num_targets
        share = share_done(self._config.train, epochs=progress, steps=step)
        waited, self._waited_s = waited_s - self._waited_s, waited_s
        self._shown, self._sums = now, StepResult(0.0, 0)
        if self._mailbox is None:
            return
        self._mailbox.put.remote(
            {
                "kind": "step",
                "epoch": self._state.epoch + 1,
                "step": step,
                "progress": progress,
                "share_done": share,
                "loss": sums.loss / sums.targets,
                "learning_rate": learning_rate(self._config.train, step=step - 1, progress=share),
                "targets_per_s": sums.targets / seconds,
                "tokens_per_s": sums.tokens / seconds,
                "padding_share": 1 - sums.tokens / sums.positions,
                "data_wait_share": waited / seconds,
                "elapsed_s": elapsed_s,
                "left_s": elapsed_s * (1 / share - 1),
            }
        )
