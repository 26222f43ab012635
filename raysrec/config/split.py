"""How histories are split: what is asked for."""

from typing import Literal

from pydantic import model_validator

from raysrec.schema import Moment, Section, Share


class SplitConfig(Section):
    """Which interactions are learned from, and which one of a user's validates and which tests."""

    name: Literal["leave_one_out", "temporal"] = "leave_one_out"
    """`leave_one_out`: a user's last interaction tests, the one before validates, the rest is learned from (the
    papers'); `temporal`: what happened before one moment is learned from, what follows validates up to another, and
    tests from there on, whoever's it is."""
    validation_share: Share = 0.1
    """`temporal`: share of the interactions kept that lies in the time to validate, at least."""
    test_share: Share = 0.1
    """`temporal`: share of the interactions kept that lies in the time to test, at least."""
    validate_from: Moment | None = None
    """`temporal`: where the time to validate begins, in place of shares; a date or Unix seconds."""
    test_from: Moment | None = None
    """`temporal`: where the time to test begins, in place of shares; a date or Unix seconds."""
    target: Literal["last", "first"] = "last"
    """`temporal`: which of a user's interactions in such a time is the one to rank. All that the user had before it is
    known to the model, also from within that time."""

    @model_validator(mode="after")
    def _one_way_to_split(self) -> "SplitConfig":
        fields = type(self).model_fields
        changed = [key for key in fields if key != "name" and getattr(self, key) != fields[key].default]
        if self.name != "temporal" and changed:
            raise ValueError(
                f"data.split.{changed[0]} is for data.split.name=temporal, and data.split.name={self.name} has no use "
                "for it; drop it or set data.split.name=temporal"
            )
        if (self.validate_from is None) != (self.test_from is None):
            given, missing = ("validate_from", "test_from") if self.validate_from else ("test_from", "validate_from")
            raise ValueError(
                f"data.split.{given}={getattr(self, given)} without data.split.{missing}; name both, or neither and "
                "have them found by data.split.validation_share and data.split.test_share"
            )
        if self.validate_from is None or self.test_from is None:
            if self.validation_share + self.test_share >= 1:
                raise ValueError(
                    f"data.split.validation_share={self.validation_share:g} and "
                    f"data.split.test_share={self.test_share:g} leave nothing to learn from; make their sum less than 1"
                )
            return self
        for share in ("validation_share", "test_share"):
            if share in changed:
                raise ValueError(
                    f"data.split.{share}={getattr(self, share):g} is not used where data.split.validate_from and "
                    "data.split.test_from are named; drop one or the other"
                )
        if self.validate_from.seconds >= self.test_from.seconds:
            raise ValueError(
                f"data.split.validate_from={self.validate_from} is not before data.split.test_from={self.test_from}; "
                "swap them or move one"
            )
        return self
