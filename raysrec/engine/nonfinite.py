"""A loss or gradient that is NaN or infinite: where it happened, for whom, and in which parameters."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from raysrec.engine.exchange import everyones, this_worker
from raysrec.errors import LastingError
from raysrec.history import Batch

SHOWN = 12
"""Users and parameters that a message names at most; the rest are counted."""

GradientsOf = Callable[[Batch], Mapping[str, Tensor]]
"""The gradient of the loss of one micro-batch alone, by parameter."""


@dataclass(frozen=True)
class Fault:
    """One worker's micro-batch in which a loss or gradient was not finite."""

    worker: int
    micro_batch: int
    """Which of the worker's micro-batches, from 0."""
    loss: float
    """Sum over its targets."""
    users: list[int]
    """Who is in it, by number in the prepared data; a dozen at most, none where users are not known by number."""
    num_users: int
    not_finite: list[str]
    """Parameters whose gradients are NaN or infinite; a dozen at most."""
    num_not_finite: int
    largest: float
    """Largest absolute value in the gradients that are finite; 0 if none is."""
    largest_in: str
    """The parameter of that gradient; empty if there is none."""

    @property
    def is_one(self) -> bool:
        """Is anything not finite here?"""
        return not math.isfinite(self.loss) or self.num_not_finite > 0

    def __str__(self) -> str:
        users = f" ({_some([str(user) for user in self.users], self.num_users)})" if self.users else ""
        gradient = "finite"
        if self.num_not_finite:
            gradient = f"not finite in {_some(self.not_finite, self.num_not_finite)}"
        if self.largest_in:
            gradient += f", {'elsewhere ' if self.num_not_finite else ''}at most {self.largest:.3g} ({self.largest_in})"
        where = f"worker {self.worker}, micro-batch {self.micro_batch}"
        return f"{where}: loss {self.loss:.6g} of {self.num_users} users{users}; gradient {gradient}"


class NonFiniteLoss(LastingError):
    """A loss or gradient is NaN or infinite, and nothing was updated.

    Args:
        message: What happened, in words.
        faults: Where, at least one.
    """

    faults: tuple[Fault, ...]

    def __init__(self, message: str, faults: Sequence[Fault] = ()) -> None:
        super().__init__(message)
        self.faults = tuple(faults)


def explain(what: str, batches: Sequence[Batch], losses: Sequence[float], gradients_of: GradientsOf) -> NonFiniteLoss:
    """Compute this step's gradients again, one micro-batch at a time, and say where they are not finite.

    Every worker calls it with as many micro-batches as the others, and all get the same answer.

    Args:
        what: What was found not to be finite.
        batches: This worker's micro-batches.
        losses: What their losses were.
        gradients_of: Gives the gradient of one; all workers call it equally often.
    """
    seen = [
        _look(index, batch, loss, gradients_of(batch))
        for index, (batch, loss) in enumerate(zip(batches, losses, strict=True))
    ]
    own = next((fault for fault in seen if fault.is_one), None) or max(seen, key=lambda fault: fault.largest)
    everyone = [Fault(**found) for found in everyones(asdict(own))]
    faults = [fault for fault in everyone if fault.is_one]
    if not faults:  # each is finite, and their sum or its square is not
        faults = [max(everyone, key=lambda fault: fault.largest)]
    return NonFiniteLoss(f"{what}; {'; '.join(str(fault) for fault in faults)}", faults)


@dataclass
class _Gradients:
    """What there is to say of the gradients of one micro-batch."""

    not_finite: list[str] = field(default_factory=list)
    largest: float = 0.0
    largest_in: str = ""

    def add(self, name: str, gradient: Tensor) -> None:
        if not torch.isfinite(gradient).all():
            self.not_finite.append(name)
        elif gradient.numel() and (value := float(gradient.abs().max())) >= self.largest:
            self.largest, self.largest_in = value, name


def _look(index: int, batch: Batch, loss: float, gradients: Mapping[str, Tensor]) -> Fault:
    found = _Gradients()
    for name, gradient in gradients.items():
        found.add(name, gradient)
    rows = batch.history.users
    users = [] if rows is None else list(dict.fromkeys(rows.tolist()))
    return Fault(
        worker=this_worker(),
        micro_batch=index,
        loss=loss,
        users=users[:SHOWN],
        num_users=len(users) if rows is not None else len(batch.targets),
        not_finite=found.not_finite[:SHOWN],
        num_not_finite=len(found.not_finite),
        largest=found.largest,
        largest_in=found.largest_in,
    )


def _some(shown: Sequence[str], count: int) -> str:
    more = count - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
