"""The words in which tensors are spoken of: History, Batch, and the states that are read out of them.

| letter | means                              |
|--------|------------------------------------|
| B      | users (rows) in a batch            |
| L      | positions in a history             |
| D      | channels of a state                |
| V      | rows of the item table, N + 1      |
| P      | positions that have a target       |

A model sees a History and never a Batch, so it cannot read the answer. Padding is on the right: for a causal
model it cannot reach a real position, and a recurrent state starts clean.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

HIDDEN = -1
"""Stands in a History for an item that the model must guess from those around it (`train.supervision=cloze`)."""


@dataclass(frozen=True)
class History:
    """What a model may know: the past, oldest first, padded on the right."""

    items: Int[Tensor, "B L"]
    """Item ids 1..N; 0 where padded; HIDDEN where a model that fills gaps must guess."""
    times: Int[Tensor, "B L"]
    """Unix seconds (or whatever the source counts time in); 0 where padded."""
    lengths: Int[Tensor, " B"]
    """How many positions are real; at least 1."""
    users: Int[Tensor, " B"] | None = None
    """Whose histories: user numbers 1..M of the prepared data; None where nobody is known by number."""

    def mask(self) -> Bool[Tensor, "B L"]:
        """True at real positions."""
        positions = torch.arange(self.items.shape[1], device=self.items.device)
        return positions < self.lengths[:, None]

    def padded(self, length: int) -> "History":
        """The same history with padding up to `length` positions; as it is if it has them already."""
        missing = max(0, length - self.items.shape[1])
        return replace(self, items=F.pad(self.items, (0, missing)), times=F.pad(self.times, (0, missing)))

    def to(self, device: torch.device | str) -> "History":
        """The same history on a device."""
        users = None if self.users is None else self.users.to(device)
        return History(self.items.to(device), self.times.to(device), self.lengths.to(device), users)


@dataclass(frozen=True)
class Batch:
    """A History and what to learn from it."""

    history: History
    targets: Int[Tensor, "B L"]
    """The item to learn at each position, the one that follows it or the one hidden there; 0 where there is none."""
    seed: int = 0
    """Of what a loss draws for this batch: with the batch, so that it does not depend on the worker that has it."""
    seen: Int[Tensor, "E 2"] | None = None
    """Pairs (user, item) of everything that these users have in training, also beyond their rows; None if not asked
    for."""

    def num_targets(self) -> int:
        """How many positions have a target."""
        return int((self.targets != 0).sum())

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device."""
        seen = None if self.seen is None else self.seen.to(device)
        return Batch(self.history.to(device), self.targets.to(device), self.seed, seen)


def empty_batch() -> Batch:
    """A batch with nothing to learn, for a worker that must take part in a step although its data has ended."""
    one = torch.ones((1, 1), dtype=torch.long)
    history = History(items=one, times=torch.zeros_like(one), lengths=one[0], users=one[0])
    return Batch(history, targets=torch.zeros_like(one), seen=one.new_empty(0, 2))


def last_states(states: Float[Tensor, "B L D"], history: History) -> Float[Tensor, "B D"]:
    """The state after each user's last real item."""
    rows = torch.arange(states.shape[0], device=states.device)
    return states[rows, history.lengths.to(states.device) - 1]


def last_items(history: History, length: int, *, newest_last: bool) -> Int[Tensor, "B N"]:
    """The last `length` items of each history, oldest first; 0 before them, or after them if not `newest_last`."""
    rows = torch.arange(length, device=history.items.device)
    lengths = history.lengths.to(rows.device)[:, None]
    start = lengths - length if newest_last else (lengths - length).clamp_min(0)
    places = start + rows
    real = (places >= 0) & (places < lengths)
    width = history.items.shape[1]
    return torch.where(real, history.items.gather(1, places.clamp(0, width - 1)), 0)
