"""The checkpoints of a run: what it needs to go on, in files that hold numbers and no code.

checkpoints/
  step-00000420-epoch-00003.json    which files belong to it, with their sizes and hashes; written last
  step-00000420-epoch-00003/        what each worker saved: state-<worker>-of-<workers>.safetensors
  kept/epoch-00002.safetensors      the best weights so far, or some to be judged; while a checkpoint names them
  owner                             which start of the training may write here

Without its record a checkpoint does not exist, and a file that is not as its record says makes it no checkpoint, so a
kill at any byte leaves the one before. Nothing here knows how training goes, nor in how many processes.
"""

import hashlib
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from pydantic_core import to_json

from raysrec.errors import LastingError
from raysrec.place import AnyPath, Place
from raysrec.schema import CountOrZero, Section

logger = logging.getLogger(__name__)


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


class _SignedRecord(Section):
    """A record as it lies in its file: a number of it that changed there is noticed."""

    sha256: str
    """Hash of what follows."""
    checkpoint: dict[str, Any]
    """The record as it was written: one of an older version lacks what has been added since, and is whole."""

    @classmethod
    def of(cls, record: CheckpointRecord) -> "_SignedRecord":
        """A record and its hash."""
        said = record.model_dump(mode="json")
        return cls(sha256=_hash(said), checkpoint=said)

    @property
    def is_as_written(self) -> bool:
        """Is it what was saved?"""
        return _hash(self.checkpoint) == self.sha256


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A whole checkpoint, its files on this machine."""

    record: CheckpointRecord
    states: list[Path]
    """What each worker saved."""
    kept: dict[int, Path]
    """Weights that are needed besides, by epoch."""


class Checkpoints:
    """The folder of a run's checkpoints, here or in a store."""

    def __init__(self, place: AnyPath) -> None:
        self.place = Place.of(place)

    def claim(self, owner: str) -> None:
        """From now on this start of the training writes here; an earlier one that still runs is to find that out."""
        (self.place / "owner").write(owner)

    def is_owned_by(self, owner: str) -> bool:
        """Does nobody else write here since?"""
        try:
            return (self.place / "owner").read_text() == owner
        except FileNotFoundError:
            return False

    def names(self) -> list[str]:
        """The checkpoints that have a record, newest first."""
        found = (
            re.fullmatch(r"(step-\d{8,}-epoch-\d{5,})\.json", info.base_name)
            for info in self.place.below(recursive=False)
        )
        return sorted((match[1] for match in found if match), reverse=True)

    def save_file(self, name: str, write: Callable[[Path], object]) -> SavedFile:
        """Bring a file into the folder; it appears there whole.

        Args:
            name: Its path in the folder.
            write: Writes it under the name that it is given.

        Raises:
            OSError: The disk is full.
            PlaceError: The store refuses it, or fails for longer than is waited for.
        """
        with (self.place / name).replacing() as file:
            write(file)
            return SavedFile(name=name, bytes=file.stat().st_size, sha256=_sha256(file))

    def publish(self, record: CheckpointRecord) -> None:
        """Make a checkpoint of files that are there."""
        signed = _SignedRecord.of(record)
        (self.place / f"{record.state.name}.json").write(signed.model_dump_json(indent=1) + "\n")

    def last_record(self) -> CheckpointRecord | None:
        """What the newest record that can be read says; its files may be damaged, and are not looked at."""
        for name in self.names():
            try:
                return self._record(name)
            except CorruptCheckpoint as error:
                logger.warning("%s; passed over", error)
        return None

    @contextmanager
    def newest(self, say: Callable[[str], object] = logger.warning) -> Iterator[LoadedCheckpoint | None]:
        """The newest checkpoint that is whole, its files on this machine while the block runs; None if there is none.

        Args:
            say: Is told of one that is passed over, whose files are not as its record says.

        Raises:
            NoneIsWhole: There are checkpoints, and none of them is whole.
        """
        damaged: list[CorruptCheckpoint] = []
        with ExitStack() as stack:
            for name in self.names():
                try:
                    found = stack.enter_context(self.loaded(name))
                except CorruptCheckpoint as error:
                    damaged.append(error)
                else:
                    for fault in damaged:
                        say(f"{fault}; going back to the checkpoint before it")
                    yield found
                    return
            if damaged:
                raise NoneIsWhole(
                    f"{self.place}: none of its {len(damaged)} checkpoints can be used ({damaged[0]}); restore it, or "
                    "--fresh throws the run away and begins again"
                )
            yield None

    @contextmanager
    def loaded(self, name: str) -> Iterator[LoadedCheckpoint]:
        """A checkpoint's files on this machine, checked, while the block runs.

        Raises:
            CorruptCheckpoint: A file is missing, or not as the record says.
        """
        record = self._record(name)
        with ExitStack() as stack:
            states = [stack.enter_context(self.file(saved)) for saved in record.states]
            kept = {epoch: stack.enter_context(self.file(saved)) for epoch, saved in record.kept.items()}
            yield LoadedCheckpoint(record, states, kept)

    @contextmanager
    def file(self, saved: SavedFile) -> Iterator[Path]:
        """A file of a checkpoint on this machine, checked, while the block runs.

        Raises:
            CorruptCheckpoint: It is missing, or not as its record says.
        """
        place = self.place / saved.name
        with ExitStack() as stack:
            try:
                file = stack.enter_context(place.at_hand())
                size = file.stat().st_size
            except FileNotFoundError:
                raise CorruptCheckpoint(f"{place}: is missing, and a checkpoint needs it") from None
            if size != saved.bytes:
                raise CorruptCheckpoint(f"{place}: has {size} bytes, and had {saved.bytes} when it was saved")
            if _sha256(file) != saved.sha256:
                raise CorruptCheckpoint(f"{place}: its content is not what was saved")
            yield file

    def prune(self, keep: int) -> None:
        """Remove all but the newest so many checkpoints, and kept weights that none of these names."""
        names = self.names()
        for name in names[keep:]:
            self._remove(name)
        # A record that cannot be read keeps all: it may name what would be removed.
        needed = {saved.name for name in names[:keep] for saved in self._record(name).kept.values()}
        for info in (self.place / "kept").below():
            if f"kept/{info.base_name}" not in needed:
                (self.place / "kept" / info.base_name).delete()

    def remove_after(self, name: str) -> None:
        """Remove what is newer than this checkpoint, also what never became whole: training makes it anew."""
        for info in self.place.below(recursive=False):
            found = re.fullmatch(r"(step-\d{8,}-epoch-\d{5,})(\.json)?", info.base_name)
            if found and found[1] > name:
                self._remove(found[1])

    def _record(self, name: str) -> CheckpointRecord:
        file = self.place / f"{name}.json"
        try:
            signed = _SignedRecord.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            raise CorruptCheckpoint(f"{file}: is missing") from None
        except ValidationError as error:
            raise CorruptCheckpoint(f"{file}: {_first_fault(error)}") from None
        if not signed.is_as_written:
            raise CorruptCheckpoint(f"{file}: its content is not what was saved")
        try:
            record = CheckpointRecord.model_validate_json(to_json(signed.checkpoint))
        except ValidationError as error:
            raise CorruptCheckpoint(f"{file}: describes no checkpoint of this raysrec: {_first_fault(error)}") from None
        if record.state.name != name:
            raise CorruptCheckpoint(f"{file}: is that of {record.state.name}")
        return record

    def _remove(self, name: str) -> None:
        """Its record first: what is left by a kill in the middle is no checkpoint."""
        (self.place / f"{name}.json").delete()
        (self.place / name).delete()


class CorruptCheckpoint(ValueError):
    """A checkpoint that is not what was saved."""


class NoneIsWhole(LastingError):
    """A run that has checkpoints, and none to go on from: nobody wants that taken for a run that never began."""


def _first_fault(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _hash(said: dict[str, Any]) -> str:
    return hashlib.sha256(to_json(said)).hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
