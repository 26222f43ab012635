"""What the record of a checkpoint says: where training stood, and which files belong to it; how it is signed."""

import hashlib
from typing import Any, Literal

from pydantic import Field
from pydantic_core import to_json

from raysrec.schema import CountOrZero, Section


class Candidate(Section):
    """Weights whose validation score is not known yet; they are judged after the next epoch."""

    epoch: CountOrZero
    """Epochs that they have learned from."""
    step: CountOrZero
    """Updates until then."""


class TrainingState(Section):
    """Where training stands; with weights and optimizer it is all that is needed to go on."""

    epoch: CountOrZero = 0
    """Epochs done."""
    step: CountOrZero = 0
    """Updates made."""
    steps_in_epoch: CountOrZero = 0
    """Updates made in the epoch that was begun and is not done."""
    targets_in_epoch: CountOrZero = 0
    """Targets learned from in it."""
    best_score: float = -1.0
    """Best validation score so far."""
    best_epoch: CountOrZero = 0
    """Epoch after which it was reached, counted from 1."""
    best_elapsed_s: float = 0.0
    """Seconds of training until that was known, validation included."""
    best_cpu_s: float = 0.0
    """Seconds of processor time of the first worker until that was known."""
    elapsed_s: float = 0.0
    """Seconds of training, over all restarts."""
    cpu_s: float = 0.0
    """Seconds of processor time that the first worker has had, over all restarts: on a machine that others use, too,
    the fairer measure."""
    worse_in_a_row: CountOrZero = 0
    """Validations since the best."""
    candidate: Candidate | None = None
    """What is still to be judged (`evaluate.concurrent`)."""
    loss: str = ""
    """Which loss is learned; where the config says `auto`, what was settled when training began."""
    finished: bool = False
    """No epoch is left, or patience has run out."""

    @property
    def kept_epochs(self) -> set[int]:
        """The epochs whose weights are needed besides those that are trained."""
        candidate = self.candidate.epoch if self.candidate else 0
        return {self.best_epoch, candidate} - {0}

    @property
    def name(self) -> str:
        """What a checkpoint at this point is called; names sort by how far training was."""
        return f"step-{self.step:08d}-epoch-{self.epoch:05d}"

    def after_step(self, targets: int) -> "TrainingState":
        """One more update, from so many targets."""
        return self.model_copy(
            update={
                "step": self.step + 1,
                "steps_in_epoch": self.steps_in_epoch + 1,
                "targets_in_epoch": self.targets_in_epoch + targets,
            }
        )

    def after_epoch(self) -> "TrainingState":
        """One more epoch done."""
        return self.model_copy(update={"epoch": self.epoch + 1, "steps_in_epoch": 0, "targets_in_epoch": 0})


class SavedFile(Section):
    """One file of a checkpoint."""

    name: str = Field(pattern=r"^[a-z]+[\w-]*/[a-z]+[\w-]*\.safetensors$")
    """Its path in the folder of all checkpoints; never one that leaves it."""
    bytes: CountOrZero
    """Its size."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Hash of its content."""


class CheckpointRecord(Section):
    """What a checkpoint consists of."""

    format: Literal[3] = 3
    """Of this record; another number for what can no longer be read the same way."""
    state: TrainingState
    """Where training stood."""
    fingerprint: str
    """Of the prepared data."""
    states: tuple[SavedFile, ...]
    """What each worker saved."""
    kept: dict[int, SavedFile]
    """By epoch, weights that are needed besides: the best so far, and those still to be judged."""

    @property
    def best(self) -> SavedFile | None:
        """The best weights so far; None before the first were judged."""
        return self.kept.get(self.state.best_epoch)

    @property
    def files(self) -> list[SavedFile]:
        """All files it needs."""
        return [*self.states, *self.kept.values()]


class SignedRecord(Section):
    """A record as it lies in its file: a number of it that changed there is noticed."""

    sha256: str
    """Hash of what follows."""
    checkpoint: dict[str, Any]
    """The record as it was written: one of an older version lacks what has been added since, and is whole."""

    @classmethod
    def of(cls, record: CheckpointRecord) -> "SignedRecord":
        """A record and its hash."""
        said = record.model_dump(mode="json")
        return cls(sha256=_hash(said), checkpoint=said)

    @property
    def is_as_written(self) -> bool:
        """Is it what was saved?"""
        return _hash(self.checkpoint) == self.sha256


def _hash(said: dict[str, Any]) -> str:
    return hashlib.sha256(to_json(said)).hexdigest()
