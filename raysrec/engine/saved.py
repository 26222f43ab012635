"""The state that workers saved, read as whole tensors, however it was divided among their files."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from raysrec.engine.snapshot import FORMAT, checksum


class BrokenState(ValueError):
    """Saved files that are no state any more: cut, garbled, or not all there."""


def saved_state(paths: Sequence[Path]) -> Mapping[str, Tensor]:
    """The whole tensors of a checkpoint, by name; each is read when it is asked for.

    Args:
        paths: The files of all workers that saved it (`Snapshot.save`), in any order.

    Raises:
        BrokenState: A file is no whole state file, one of a worker is missing, or together they lack values. Asking for
            a tensor raises it if its values are not those that were written.
    """
    pieces: dict[str, list[_Piece]] = {}
    workers, counts = set(), set()
    for path in paths:
        worker, num_workers, own = _read_header(path)
        workers.add(worker)
        counts.add(num_workers)
        for name, piece in own.items():
            pieces.setdefault(name, []).append(piece)
    if counts != {len(workers)} or min(workers) < 0 or max(workers) >= len(workers):
        raise BrokenState(
            f"{', '.join(str(path) for path in paths) or 'no file'}: a state needs the file of each of its workers; "
            f"these are of workers {sorted(workers)}, of {sorted(counts)}"
        )
    return _SavedState({name: _in_order(name, own) for name, own in pieces.items()})


@dataclass(frozen=True)
class _Piece:
    """Where some or all values of a tensor lie; the fields are those of `Snapshot.save`."""

    path: Path
    start: int
    size: int
    shape: tuple[int, ...]
    crc32: int

    @classmethod
    def of(cls, path: Path, facts: dict[str, Any]) -> "_Piece":
        """What a header says of one tensor; raises ValueError, TypeError or KeyError if it is nonsense."""
        start, size, crc32 = (int(facts[name]) for name in ("start", "size", "crc32"))
        return cls(path, start, size, tuple(int(each) for each in facts["shape"]), crc32)

    def read(self, name: str) -> Tensor:
        """The values, flat, as they were written."""
        try:
            with safe_open(self.path, "pt") as file:
                values: Tensor = file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise BrokenState(f"{self.path}: {name} cannot be read ({error})") from None
        if values.numel() != self.size or checksum(values) != self.crc32:
            raise BrokenState(f"{self.path}: the values of {name} are not those that were written")
        return values.flatten()


class _SavedState(Mapping[str, Tensor]):
    def __init__(self, pieces: Mapping[str, Sequence[_Piece]]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)

    def __contains__(self, name: object) -> bool:
        return name in self._pieces

    def __getitem__(self, name: str) -> Tensor:
        pieces = self._pieces[name]
        # Also one piece is copied: the file is mapped into memory and may be replaced.
        return torch.cat([piece.read(name) for piece in pieces]).view(pieces[0].shape)


def _in_order(name: str, pieces: Sequence[_Piece]) -> Sequence[_Piece]:
    """The pieces from the first value to the last, with none missing and none twice."""
    ordered = sorted(pieces, key=lambda piece: piece.start)
    size = prod(ordered[0].shape)
    done = 0
    for piece in ordered:
        if piece.start != done or piece.shape != ordered[0].shape:
            break
        done += piece.size
    if done != size:
        files = ", ".join(str(piece.path) for piece in ordered)
        raise BrokenState(f"{files}: of {name}, {size} values, those from {done} on are missing or there twice")
    return ordered


def _read_header(path: Path) -> tuple[int, int, dict[str, _Piece]]:
    """Which worker's file it is, of how many, and what it has."""
    try:
        with safe_open(path, "pt") as file:
            header: dict[str, str] = file.metadata() or {}
            names = set(file.keys())
    except (OSError, SafetensorError) as error:
        raise BrokenState(f"{path}: cannot be read as a state file ({error})") from None
    if header.get("format") != FORMAT:
        raise BrokenState(f"{path}: is no state file of this version, it says {header.get('format')!r}, not {FORMAT!r}")
    try:
        pieces = {name: _Piece.of(path, facts) for name, facts in json.loads(header["tensors"]).items()}
        if set(pieces) != names:
            raise ValueError("other tensors")
        return int(header["worker"]), int(header["num_workers"]), pieces
    except (KeyError, TypeError, ValueError, AttributeError):
        raise BrokenState(f"{path}: what its header says of its tensors is garbled") from None
