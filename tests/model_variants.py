"""Every model there is, and every alternative that its `Config` offers, at a tiny size; and histories to read."""

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from torch import Tensor

from raysrec.history import History
from raysrec.models import MODELS, ModelConfig, SequenceModel, build_model

NUM_ITEMS = 20
NUM_USERS = 6
TINY: dict[str, Any] = {"dim": 16, "max_length": 12}


def variants() -> Iterator[Any]:
    """Each model's default at a tiny size, and the same with one setting changed to each alternative there is."""
    for name, model in MODELS.items():
        default = {"name": name, **TINY}
        yield pytest.param(model.Config.model_validate(default), id=name)
        for key, field in model.Config.model_fields.items():
            for choice in alternatives(key, field.annotation):
                if choice != field.default:
                    changed = model.Config.model_validate({**default, key: choice})
                    yield pytest.param(changed, id=f"{name}-{key}={choice}")


def alternatives(key: str, kind: Any) -> tuple[Any, ...]:
    """Every value of a Literal, both of a bool, and one and two of what a model has a number of."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    if kind is bool:
        return (True, False)
    return (1, 2) if key.startswith("num_") else ()


def model_of(config: ModelConfig) -> SequenceModel:
    """Ready to be asked, with weights large enough that a difference would show."""
    made = build_model(config, NUM_ITEMS, NUM_USERS).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
    return made


def history_of(*rows: list[int], length: int | None = None) -> History:
    """Item ids as a History, padded to the longest row or to `length`; an item comes a day after another."""
    lengths = torch.tensor([len(row) for row in rows])
    width = length or int(lengths.max())
    items = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    times = torch.where(items > 0, 86_400 * (1 + torch.arange(width)), 0)
    users = 1 + torch.arange(len(rows)) % NUM_USERS
    return History(items, times, lengths, users)


ROWS = ([3, 1, 4, 1, 5, 9, 2], [6, 5], [8], [9, 7, 9, 3, 2])


def real(states: Tensor, history: History) -> list[Tensor]:
    """The states at each row's real positions."""
    return [row[:length] for row, length in zip(states, history.lengths.tolist(), strict=True)]


def assert_same_states(one: list[Tensor], other: list[Tensor], atol: float = 1e-5) -> None:
    # Float32 sums over other shapes differ in the last bits.
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=1e-4)
