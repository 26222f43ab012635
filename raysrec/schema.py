"""The base of every configuration section, and the constrained values that sections share.

Nothing here knows what is configured; `config/` and the models' `Config` classes say that.
"""

import datetime
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema


class Section(BaseModel):
    """A frozen group of settings: unknown keys are refused, and the docstring under a field is its help text."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        hide_input_in_errors=True,  # a refused URI may hold credentials
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """A field that narrows its parent's and says no more about it keeps the parent's docstring."""
        parents = [parent for parent in cls.__mro__[1:] if issubclass(parent, Section)]
        for name, field in cls.model_fields.items():
            inherited = (p.model_fields[name].description for p in parents if name in p.model_fields)
            field.description = field.description or next(inherited, None)

    def refuse_unused(self, section: str, unused: Mapping[str, bool], because: str) -> None:
        """See that no field is set that its neighbours leave without effect.

        Args:
            section: What the section is called.
            unused: Whether each of these fields has no effect.
            because: Which settings leave them without one.

        Raises:
            ValueError: One has none, and another value than its default.
        """
        for key, is_unused in unused.items():
            if is_unused and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{section}.{key}={getattr(self, key)} is not used with {because}; drop it")


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

Share = Annotated[float, Field(gt=0, lt=1)]
"""A part of a whole: neither nothing nor all of it."""

Decay = Annotated[float, Field(ge=0, lt=1)]
"""The share of a running mean that stays at each step: 0 forgets at once, 1 (never) is refused."""


class Interval(str):
    """A range of counts as mathematics writes it: `[5,inf)` is five or more, `[50,15000]` includes both ends."""

    _FORM = re.compile(r"^\s*([\[(])\s*(\d+)\s*,\s*(\d+|inf)\s*([\])])\s*$")

    @property
    def low(self) -> int:
        """The smallest count inside."""
        bracket, number, _, _ = self._parts()
        return int(number) + (bracket == "(")

    @property
    def high(self) -> int | float:
        """The largest count inside; infinity where there is no upper bound."""
        _, _, number, bracket = self._parts()
        return math.inf if number == "inf" else float(int(number) - (bracket == ")"))

    def _parts(self) -> tuple[str, str, str, str]:
        match = self._FORM.match(self)
        if match is None:
            raise ValueError(f"{str(self)!r} is no interval; write for example [5,inf) or [50,15000]")
        opening, low, high, closing = match.groups()
        return opening, low, high, closing

    @classmethod
    def _parse(cls, value: object) -> "Interval":
        # YAML reads [50,15000] as a list of two numbers, which is the interval it looks like.
        text = f"[{value[0]},{value[1]}]" if isinstance(value, list) and len(value) == 2 else str(value)
        interval = cls(text)
        if interval.low > interval.high:
            raise ValueError(f"{text!r} is an empty interval; its lower end lies above its upper end")
        return interval

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._parse, serialization=core_schema.to_string_ser_schema()
        )


class Moment(str):
    """A point in time: `2005-09-06`, `2005-09-06 12:30:00` (UTC unless it names a zone), or Unix seconds."""

    @property
    def seconds(self) -> int:
        """Unix time."""
        if re.fullmatch(r"[+-]?\d+", self):
            return int(self)
        moment = datetime.datetime.fromisoformat(self)
        return int((moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp())

    @classmethod
    def _parse(cls, value: object) -> "Moment":
        # YAML reads 2005-09-06 as a date, which is the moment it looks like.
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        moment = cls(value.isoformat(sep=" ") if isinstance(value, datetime.datetime) else value)
        if is_whole or isinstance(value, (str, datetime.date)):
            try:
                if -(2**63) <= moment.seconds < 2**63 and "." not in moment:
                    return moment
            except ValueError:
                pass
        raise ValueError(
            f"{str(value)!r} is no moment; write a date such as 2005-09-06 or '2005-09-06 12:30:00', or Unix seconds"
        )

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._parse, serialization=core_schema.to_string_ser_schema()
        )


def date_of(seconds: int) -> str:
    """Unix seconds as a date and a time of day in UTC; as the number where no calendar reaches."""
    try:
        return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        return str(seconds)
