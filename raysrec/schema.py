"""The base of every configuration section and the constrained numbers that sections share.

Nothing here knows what is configured; `config.py` and the models' `Config` classes say that.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A frozen group of settings: unknown keys are refused, and the docstring under a field is its help text."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)


Count = Annotated[int, Field(ge=1)]
"""A whole number of things, at least one."""

CountOrZero = Annotated[int, Field(ge=0)]
"""A whole number of things, possibly none."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A finite number above zero."""

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A finite number, zero or above."""

Probability = Annotated[float, Field(ge=0, lt=1)]
"""The probability that something is dropped: 0 is never, 1 (always) is refused."""

Fraction = Annotated[float, Field(ge=0, le=1)]
"""A share of a whole, both ends included."""
