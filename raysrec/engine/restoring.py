"""A saved state against what an engine has: everything must be there, of the same shape, and nothing else."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from raysrec.engine.exchange import everyones
from raysrec.engine.saved import BrokenState
from raysrec.errors import LastingError


class StateMismatch(LastingError):
    """A saved state that does not fit: another model's, or another optimizer's."""


@contextmanager
def refused_by_all() -> Iterator[None]:
    """Raise on every worker what the block raised on one, which may have read other values than the others.

    Raises:
        StateMismatch: Or BrokenState, as the block did.
    """
    kinds = {kind.__name__: kind for kind in (StateMismatch, BrokenState)}
    own = ["", ""]
    try:
        yield
    except (StateMismatch, BrokenState) as error:
        own = [type(error).__name__, str(error)]
    for kind, message in everyones(own):
        if kind:
            raise kinds[kind](message)


def refuse_other_names(state: Mapping[str, Tensor], weights: Iterable[str], parameters: Iterable[str]) -> None:
    """Check that the state has these weights, and optimizer state of no other than these parameters.

    Raises:
        StateMismatch: It has fewer, or others.
    """
    needed = {f"weights/{name}" for name in weights}
    learned = set(parameters)
    if missing := sorted(needed - set(state)):
        raise StateMismatch(f"{_first(missing)}: not in the checkpoint, and the model needs it; is it another model's?")
    if unknown := sorted(name for name in set(state) - needed if _parameter_of(name) not in learned):
        raise StateMismatch(f"{_first(unknown)}: in the checkpoint, and nothing here has it; is it another model's?")


def saved_keys(state: Mapping[str, Tensor], name: str, expected: Iterable[str]) -> set[str]:
    """Names of what an optimizer had kept for a parameter: all that are expected, or none.

    Raises:
        StateMismatch: It is of another kind of optimizer.
    """
    prefix = f"optimizer/{name}/"
    found = {key.removeprefix(prefix) for key in state if key.startswith(prefix)}
    if found and found != set(expected):
        raise StateMismatch(
            f"optimizer/{name}: the checkpoint has {', '.join(sorted(found))}, and this optimizer keeps "
            f"{', '.join(sorted(expected)) or 'nothing'}; train.optimizer was another one"
        )
    return found


def saved_tensor(state: Mapping[str, Tensor], name: str, shape: Iterable[int]) -> Tensor:
    """A tensor of the saved state.

    Raises:
        StateMismatch: Its shape is another one.
    """
    values, shape = state[name], tuple(shape)
    if tuple(values.shape) != shape:
        found, wanted = (" x ".join(map(str, each)) or "one number" for each in (values.shape, shape))
        raise StateMismatch(f"{name}: {found} in the checkpoint, and {wanted} here")
    return values


def _parameter_of(name: str) -> str:
    """The parameter whose optimizer state has this name; empty if it is something else."""
    return name.removeprefix("optimizer/").rpartition("/")[0] if name.startswith("optimizer/") else ""


def _first(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
