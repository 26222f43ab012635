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

from pydantic import ValidationError
from pydantic_core import to_json

from raysrec.checkpoint_record import CheckpointRecord, SavedFile, SignedRecord
from raysrec.errors import LastingError
from raysrec.place import AnyPath, Place

logger = logging.getLogger(__name__)


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
        signed = SignedRecord.of(record)
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
            signed = SignedRecord.model_validate_json(file.read_bytes())
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


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
