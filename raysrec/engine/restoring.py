"""A saved state against what an engine has: everything must be there, of the same shape, and nothing else."""

from collections.abc import Iterable, Mapping

from torch import Tensor


class StateMismatch(ValueError):
    """A saved state that does not fit: another model's, or another optimizer's."""


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
