"""Saving a checkpoint while training goes on: all workers write at once, and the first one says that it is whole."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import torch.distributed as dist

from raysrec.checkpoint_record import CheckpointRecord, SavedFile, TrainingState
from raysrec.checkpoints import Checkpoints, CorruptCheckpoint
from raysrec.engine import Snapshot, Weights, everyones
from raysrec.errors import LastingError
from raysrec.place import PlaceError
from raysrec.saved_model import save_weights

TOGETHER_WITHIN = timedelta(hours=2)
"""So long a worker waits for what the others write."""


@dataclass(frozen=True)
class Saved:
    """How a save went."""

    state: TrainingState
    seconds: float
    """From its beginning to its end, in the background."""
    stalled_s: float
    """Those of these seconds during which training stood still."""
    bytes: int
    """Of all files."""
    problem: str
    """Why there is no such checkpoint; empty if there is."""


class Superseded(LastingError):
    """Another start of the same training has taken over."""


class Saver:
    """Saves in a thread, one checkpoint after the other; every worker has one, and they are called together.

    A save that fails ends no training: the next one may succeed, and until then the checkpoint before it stands. Only
    where another start of the training has taken over is there nothing left to do: workers live on for a while when the
    command that started them is killed, and what they would write is that of the next start to write.

    Args:
        checkpoints: Where they are saved.
        owner: The start of the training that this worker belongs to.
        fingerprint: Of the prepared data.
        keep: So many checkpoints stay.
        worker: This worker's number.
        num_workers: How many there are.
        done: Told of every save, in the thread, on the first worker.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        *,
        owner: str,
        fingerprint: str,
        keep: int,
        worker: int,
        num_workers: int,
        done: Callable[[Saved], None],
    ) -> None:
        self._checkpoints = checkpoints
        self._owner = owner
        self._fingerprint = fingerprint
        self._keep = keep
        self._worker = worker
        self._done = done
        # The thread speaks to those of other workers while training speaks, too; each needs a channel of its own.
        self._group = dist.new_group(backend="gloo", timeout=TOGETHER_WITHIN) if num_workers > 1 else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="raysrec-saving")
        self._running: Future[Saved] | None = None
        self._kept: dict[int, SavedFile | Weights] = {}

    def went_on_from(self, record: CheckpointRecord) -> None:
        """Training goes on from this checkpoint: the weights that are kept with it need not be saved again."""
        self._kept = dict(record.kept)

    def keep(self, epoch: int, weights: Weights) -> None:
        """These are the weights after so many epochs; they are saved for as long as checkpoints need them."""
        self._kept.setdefault(epoch, weights)

    @property
    def busy(self) -> bool:
        """Is the last save still going on?"""
        return self._running is not None and not self._running.done()

    def begin(self, state: TrainingState, snapshot: Callable[[], Snapshot]) -> None:
        """Save what `snapshot` copies now; waits for a save that is still going on."""
        started = time.monotonic()
        self.wait()
        self._kept = {epoch: kept for epoch, kept in self._kept.items() if epoch in state.kept_epochs}
        copied = snapshot()
        self._running = self._thread.submit(self._save, state, copied, started, time.monotonic() - started)

    def wait(self) -> Saved | None:
        """How the last save went, when it is done; None if there was none."""
        return self._running.result() if self._running else None

    def _save(self, state: TrainingState, snapshot: Snapshot, started: float, stalled_s: float) -> Saved:
        own, kept, problem = [], {}, ""
        try:
            self._refuse_others()
            name = f"{state.name}/{snapshot.file_name}"
            own.append(self._checkpoints.save_file(name, snapshot.save).model_dump())
            kept = {epoch: self._save_kept(epoch) for epoch in sorted(state.kept_epochs & self._kept.keys())}
        except (OSError, PlaceError) as error:
            problem = str(error)
        everyone = everyones([own, problem], self._group)
        states = tuple(SavedFile(**saved) for files, _ in everyone for saved in files)
        record = CheckpointRecord(state=state, fingerprint=self._fingerprint, states=states, kept=kept)
        problem = "; ".join(said for _, said in everyone if said)
        if self._worker == 0:
            problem = problem or self._publish(record)
        # All learn how it went: what they do next, they must do together.
        problem = everyones(problem, self._group)[0]
        total = sum(saved.bytes for saved in record.files)
        saved = Saved(state, time.monotonic() - started, stalled_s, total, problem)
        if self._worker == 0:
            self._done(saved)
        return saved

    def _save_kept(self, epoch: int) -> SavedFile:
        kept = self._kept[epoch]
        if not isinstance(kept, SavedFile):
            name = f"kept/epoch-{epoch:05d}.safetensors"
            kept = self._kept[epoch] = self._checkpoints.save_file(name, partial(save_weights, kept))
        return kept

    def _publish(self, record: CheckpointRecord) -> str:
        """Say that a checkpoint is whole, and remove those that it replaces; what failed, if it did."""
        try:
            self._refuse_others()
            self._checkpoints.publish(record)
        except (OSError, PlaceError) as error:
            return str(error)
        with suppress(OSError, PlaceError, CorruptCheckpoint):  # what could not be removed now is removed next time
            self._checkpoints.prune(self._keep)
        return ""

    def _refuse_others(self) -> None:
        if not self._checkpoints.is_owned_by(self._owner):
            raise Superseded(f"{self._checkpoints.place}: another start of this training has taken over")
