"""A folder that appears whole or not at all, whoever is killed and whoever else is writing the same.

On this machine it is written under a hidden name beside its own, locked meanwhile, brought to disk, and renamed. A
store cannot rename: there its files are uploaded one by one, and the file that says what the folder holds comes last.
Nothing here knows what is written.
"""

import fcntl
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from raysrec.place import AnyPath, Place, PlaceError, sync

SCRATCH = "scratch-"
"""How the names of folders begin that lie in a folder only while it is written."""
ABANDONED_AFTER = timedelta(days=1)
"""So long after its last change, a scratch folder in a store is a killed process's."""

LAST = "manifest.json"
"""The file that says what a folder holds: without it, nobody takes what lies there for whole."""


@contextmanager
def appearing_whole(folder: AnyPath, *, is_whole: Callable[[Place], bool]) -> Iterator[Path]:
    """A folder of this machine to write into, which gets its name, here or in a store, only when all of it is there.

    A killed process leaves a hidden folder that the next one removes: it is locked for as long as its process lives.
    What it leaves in a store is written over by the next one.

    Args:
        folder: The name that is to appear; 16 hexadecimal digits, by which the leavings of others are known.
        is_whole: Can what lies under that name be used as it is? Then it stays, and what was written is thrown away.

    Raises:
        PlaceError: The store fails, or holds something else than what it was sent.
    """
    place = Place.of(folder)
    if place.is_local:
        with _renamed(place.local, is_whole) as scratch:
            yield scratch
        return
    with tempfile.TemporaryDirectory(prefix="raysrec-") as scratch_folder:
        yield Path(scratch_folder)
        _upload(Path(scratch_folder), place, is_whole)


@contextmanager
def appearing_by_parts(folder: Place, *, is_whole: Callable[[Place], bool]) -> Iterator[Place]:
    """A folder that all machines of a cluster can write into, which counts as whole only when all of it is there.

    On this machine (or a disk that all share) it is a hidden one, as with `appearing_whole`. In a store it is the
    folder itself, into which `LAST` must be written last.
    """
    if folder.is_local:
        with _renamed(folder.local, is_whole) as scratch:
            yield Place.of(scratch.resolve())
        return
    if (folder / LAST).exists() and not is_whole(folder):
        (folder / LAST).delete()
    _sweep_store(folder)
    yield folder


def _sweep_store(folder: Place) -> None:
    """Remove the scratch folders of processes that were killed long ago; a store has no locks to tell it at once."""
    changed: dict[str, datetime] = {}
    for info in folder.below():
        name = info.path.removeprefix(f"{folder.path}/").partition("/")[0]
        if info.is_file and name.startswith(SCRATCH):
            changed[name] = max(changed.get(name, info.mtime), info.mtime)
    for name, last in changed.items():
        if datetime.now(UTC) - last > ABANDONED_AFTER:
            (folder / name).delete()


@contextmanager
def _renamed(folder: Path, is_whole: Callable[[Place], bool]) -> Iterator[Path]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep(folder.parent)
    scratch, lock = _locked_folder(folder)
    try:
        yield scratch
        for path in [*scratch.rglob("*"), scratch]:
            sync(path)
        _rename(scratch, folder, is_whole)
        sync(folder.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(lock)


def sweep(parent: Path) -> None:
    """Remove the hidden folders of processes that were killed; those of living ones are locked, and stay."""
    for path in parent.glob(".*.tmp"):
        if not re.fullmatch(r"\.[0-9a-f]{16}\.[0-9a-f]{32}\.tmp", path.name):
            continue
        try:
            lock = os.open(path, os.O_RDONLY)
        except OSError:
            continue  # gone meanwhile
        if _try_lock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
            shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _locked_folder(folder: Path) -> tuple[Path, int]:
    """A new hidden folder beside the one that is to appear, and its lock."""
    while True:
        scratch = _hidden_beside(folder)
        scratch.mkdir()
        try:
            lock = os.open(scratch, os.O_RDONLY)
        except FileNotFoundError:
            continue  # another process swept it away at once
        _try_lock(lock, fcntl.LOCK_EX)
        if scratch.exists():  # else it was swept away before it was locked
            return scratch, lock
        os.close(lock)


def _try_lock(folder: int, how: int) -> bool:
    try:
        fcntl.flock(folder, how)
    except OSError:
        return False  # held by another process, or by no one on a file system without locks: nothing is swept there
    return True


def _upload(scratch: Path, folder: Place, is_whole: Callable[[Place], bool]) -> None:
    """Send every file, `LAST` at the end.

    Two that send the same at the same time send the same bytes, and a store swaps a file at once; the slower one stops
    as soon as the faster one's folder is whole.
    """
    if (folder / LAST).exists() and not is_whole(folder):
        (folder / LAST).delete()
    sizes = {path.relative_to(scratch).as_posix(): path.stat().st_size for path in scratch.rglob("*") if path.is_file()}
    for name in sorted(sizes, key=lambda name: (name == LAST, name)):
        if (folder / LAST).exists() and is_whole(folder):
            return
        if name == LAST:
            _refuse_differences(folder, sizes)
        (folder / name).upload(scratch / name)


def _refuse_differences(folder: Place, sizes: dict[str, int]) -> None:
    there = {info.path: info.size for info in folder.below()}
    for name, size in sizes.items():
        if name != LAST and there.get((folder / name).path) != size:
            raise PlaceError(
                f"{folder / name}: has {there.get((folder / name).path)} bytes, but {size} were sent to it"
            )


def _rename(scratch: Path, folder: Path, is_whole: Callable[[Place], bool]) -> None:
    """Give the finished folder its name, unless another process was first; a broken one in the way is moved aside."""
    while True:
        try:
            os.rename(scratch, folder)
            return
        except OSError:
            if not folder.is_dir():
                raise
        if is_whole(Place.of(folder)):
            return
        aside = _hidden_beside(folder)
        with suppress(FileNotFoundError):  # another process may be repairing it, too
            os.rename(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)


def _hidden_beside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
