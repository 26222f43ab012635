"""A folder that appears whole or not at all, whoever is killed and whoever else is writing the same.

It is written under a hidden name beside its own, locked meanwhile, brought to disk, and renamed. Nothing here knows
what is written.
"""

import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def appearing_whole(folder: Path, *, is_whole: Callable[[Path], bool]) -> Iterator[Path]:
    """A folder to write into, which gets its name only when all of it is on disk.

    A killed process leaves a hidden folder that the next one removes: it is locked for as long as its process lives.

    Args:
        folder: The name that is to appear; 16 hexadecimal digits, by which the leavings of others are known.
        is_whole: Can what lies under that name be used as it is? Then it stays, and what was written is thrown away.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep(folder.parent)
    scratch, lock = _locked_folder(folder)
    try:
        yield scratch
        for path in [*scratch.rglob("*"), scratch]:
            _sync(path)
        _rename(scratch, folder, is_whole)
        _sync(folder.parent)
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
        lock = os.open(scratch, os.O_RDONLY)
        _try_lock(lock, fcntl.LOCK_EX)
        if scratch.exists():  # else another process swept it away before it was locked
            return scratch, lock
        os.close(lock)


def _try_lock(folder: int, how: int) -> bool:
    try:
        fcntl.flock(folder, how)
    except OSError:
        return False  # held by another process, or by no one on a file system without locks: nothing is swept there
    return True


def _rename(scratch: Path, folder: Path, is_whole: Callable[[Path], bool]) -> None:
    """Give the finished folder its name, unless another process was first; a broken one in the way is moved aside."""
    while True:
        try:
            os.rename(scratch, folder)
            return
        except OSError:
            if not folder.is_dir():
                raise
        if is_whole(folder):
            return
        aside = _hidden_beside(folder)
        with suppress(FileNotFoundError):  # another process may be mending it, too
            os.rename(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)


def _hidden_beside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
