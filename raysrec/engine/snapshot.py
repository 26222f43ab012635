"""What one worker writes of the training state, under names that every engine knows.

`weights/<name>` is a parameter or buffer by its name in the model, `optimizer/<parameter>/<key>` what the optimizer
keeps for a parameter. A worker has whole tensors or fragments, runs of a flattened tensor; together they have all.
"""

import json
import os
import weakref
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from raysrec.tensor_file import save_tensors

FORMAT = "raysrec-state-1"
"""Written into every file; another number for what can no longer be read the same way."""


@dataclass(frozen=True)
class Fragment:
    """Some or all values of a tensor."""

    values: Tensor
    """All of the tensor as it is, or a run of it when flattened."""
    start: int
    """Where the run begins in the flattened tensor."""
    shape: tuple[int, ...]
    """Of the whole tensor."""

    @classmethod
    def whole(cls, tensor: Tensor) -> "Fragment":
        """All of a tensor."""
        return cls(tensor.detach(), 0, tuple(tensor.shape))


@dataclass(frozen=True)
class Snapshot:
    """The part of the training state that one worker has to write.

    Its values change no more while something refers to the snapshot; then their memory may be used again.
    """

    worker: int
    num_workers: int
    parts: Mapping[str, Fragment]
    copied: Callable[[], object] = lambda: None
    """Returns when the values are those that were asked for."""

    @property
    def fragments(self) -> Mapping[str, Fragment]:
        """What there is to write, copied."""
        self.copied()
        return self.parts

    @property
    def file_name(self) -> str:
        """How its file is called beside those of the other workers."""
        return f"state-{self.worker}-of-{self.num_workers}.safetensors"

    def save(self, path: Path) -> None:
        """Write one safetensors file and wait until the disk has it; other threads may compute meanwhile."""
        fragments = self.fragments
        facts = {
            name: {
                "start": fragment.start,
                "size": fragment.values.numel(),
                "shape": fragment.shape,
                "crc32": checksum(fragment.values),
            }
            for name, fragment in fragments.items()
        }
        metadata = {
            "format": FORMAT,
            "worker": str(self.worker),
            "num_workers": str(self.num_workers),
            "tensors": json.dumps(facts),
        }
        save_tensors({name: fragment.values for name, fragment in fragments.items()}, path, metadata)
        with path.open("rb") as file:
            os.fsync(file.fileno())


class Copies:
    """Makes the snapshots of one engine, each in the memory of one that nothing refers to any more.

    New memory would take three times as long as copying does. Copying goes on in a thread: an engine changes what is
    copied only with its next update, and waits for it then.
    """

    def __init__(self) -> None:
        self._spare: list[dict[str, Tensor]] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="raysrec-copying")
        self._copying: Future[None] | None = None

    def of(self, fragments: Mapping[str, Fragment], *, worker: int, num_workers: int) -> Snapshot:
        """Copy the values to the CPU; call `wait` before those that were given are changed."""
        self.wait()
        room = self._spare.pop() if self._spare else {}
        copies = {name: _room_for(fragment.values, room.get(name)) for name, fragment in fragments.items()}
        parts = {name: replace(fragment, values=copies[name]) for name, fragment in fragments.items()}
        on_gpu = any(fragment.values.is_cuda for fragment in fragments.values())
        self._copying = self._thread.submit(_copy, {name: part.values for name, part in fragments.items()}, copies)
        if on_gpu:
            self.wait()  # what the GPU copies and what it computes take turns anyway
        snapshot = Snapshot(worker, num_workers, parts, self._copying.result if self._copying else lambda: None)
        weakref.finalize(snapshot, self._keep, copies).atexit = False
        return snapshot

    def wait(self) -> None:
        """Return when the last snapshot is copied."""
        if self._copying is not None:
            self._copying.result()
            self._copying = None

    def _keep(self, copies: dict[str, Tensor]) -> None:
        if not self._spare:
            self._spare.append(copies)


def checksum(values: Tensor) -> int:
    """CRC-32 of a contiguous tensor's bytes: safetensors itself would not notice a changed one."""
    return zlib.crc32(values.flatten().view(torch.uint8).numpy().data)


def _room_for(values: Tensor, room: Tensor | None) -> Tensor:
    if room is not None and room.shape == values.shape and room.dtype == values.dtype:
        return room
    # A GPU writes to pinned memory directly, and ten times as fast.
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=values.is_cuda)


def _copy(values: Mapping[str, Tensor], copies: Mapping[str, Tensor]) -> None:
    for name, copy in copies.items():
        copy.copy_(values[name].detach(), non_blocking=True)
    if any(tensor.is_cuda for tensor in values.values()):
        torch.cuda.synchronize()
