"""What values a parameter of a sweep may take, and how one is drawn."""

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
from pydantic import model_serializer, model_validator

from raysrec.errors import did_you_mean
from raysrec.schema import Section

Kind = Literal["grid", "choice", "uniform", "log_uniform", "integer", "log_integer"]
"""`grid`: every value, each with each of other grids; `choice`: any of the values alike; `uniform` and `log_uniform`:
a number between two ends; `integer` and `log_integer`: a whole number between two ends, both included."""

KINDS: tuple[str, ...] = get_args(Kind)

DIGITS = 4
"""Significant digits of a drawn number: enough for any parameter, and readable in a table."""


class Sampler(Section):
    """The values of one parameter; in YAML a kind and its values, such as `{uniform: [0.1, 0.5]}`."""

    kind: Kind
    """How a value is found."""
    values: tuple[Any, ...]
    """The values of `grid` and `choice`; both ends of the others."""

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and set(given) == {"kind", "values"}:
            return given
        if not isinstance(given, Mapping) or len(given) != 1:
            raise ValueError(
                f"{given!r} does not say how values are drawn; write for example {{choice: [1, 2]}} or "
                f"{{uniform: [0.1, 0.5]}} ({', '.join(KINDS)})"
            )
        ((kind, values),) = given.items()
        if kind not in KINDS:
            near = did_you_mean(str(kind), KINDS)
            raise ValueError(f"{kind!r} is no way to draw a value{near}; known: {', '.join(KINDS)}")
        if not isinstance(values, list | tuple):
            raise ValueError(f"{kind}: {values!r} is no list; write for example {kind}: [1, 2]")
        return {"kind": kind, "values": tuple(map(_number_if_it_looks_so, values))}

    @model_serializer
    def _to_yaml(self) -> dict[str, list[Any]]:
        return {self.kind: list(self.values)}

    @model_validator(mode="after")
    def _can_be_drawn_from(self) -> "Sampler":
        if self.kind in ("grid", "choice"):
            if not self.values:
                raise ValueError(f"{self.kind}: [] is empty; name at least one value")
            spelled = [repr(value) for value in self.values]  # 1 and True are equal
            twice = [value for i, value in enumerate(self.values) if spelled[i] in spelled[:i]]
            if twice:
                raise ValueError(f"{self.kind}: names {twice[0]!r} twice; name it once")
            return self
        whole = self.kind.endswith("integer")
        kinds: Any = int if whole else int | float
        numbers = [v for v in self.values if isinstance(v, kinds) and not isinstance(v, bool) and math.isfinite(v)]
        if len(self.values) != 2 or len(numbers) != 2:
            raise ValueError(
                f"{self.kind}: {list(self.values)} must be two {'whole ' * whole}numbers, the lowest and the highest"
            )
        low, high = numbers
        if low >= high:
            raise ValueError(f"{self.kind}: {list(self.values)} is empty; the first number must be below the second")
        if self.kind.startswith("log") and low <= 0:
            raise ValueError(f"{self.kind}: {list(self.values)} has no logarithm at {low}; begin above 0")
        return self

    def __str__(self) -> str:
        values = ", ".join(str(value) for value in self.values)
        if self.kind in ("grid", "choice"):
            return f"{self.kind} of {values}"
        return f"{self.kind} from {self.values[0]} to {self.values[1]}"

    @property
    def extremes(self) -> tuple[Any, ...]:
        """The values that are tried before anything starts: all of a list, both ends of a range."""
        return self.values

    @property
    def num_values(self) -> int | float:
        """How many different values there are; infinity for real numbers."""
        if self.kind in ("grid", "choice"):
            return len(self.values)
        return self.values[1] - self.values[0] + 1 if self.kind.endswith("integer") else math.inf

    @property
    def is_logarithmic(self) -> bool:
        """Are its values spread over orders of magnitude?"""
        return self.kind.startswith("log")

    def draw(self, random: np.random.Generator) -> Any:
        """A value; the same for the same state of the generator."""
        if self.kind in ("grid", "choice"):
            return self.values[int(random.integers(len(self.values)))]
        low, high = self.values
        if self.kind == "integer":
            return int(random.integers(low, high, endpoint=True))
        if self.kind == "uniform":
            return rounded(random.uniform(low, high), float(low), float(high))
        if self.kind == "log_uniform":
            return rounded(math.exp(random.uniform(math.log(low), math.log(high))), float(low), float(high))
        # Half a step below the lowest to half a step above the highest, so that both ends are drawn as the others.
        drawn = math.exp(random.uniform(math.log(low - 0.5), math.log(high + 0.5)))
        return min(high, max(low, round(drawn)))


def rounded(value: float, low: float, high: float) -> float:
    """A drawn number as it is used: with few digits, and still within its range."""
    return float(min(high, max(low, float(f"{value:.{DIGITS}g}"))))


def _number_if_it_looks_so(value: Any) -> Any:
    """YAML reads 1e-4 as text, for want of a point."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
