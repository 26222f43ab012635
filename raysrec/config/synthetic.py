"""The embedded source: what is asked of it."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raysrec.schema import Count, CountOrZero, NonNegative, Positive, Probability, Section

FIRST_SESSION = 20
"""Interactions in which a user of the embedded source shows what the returns bring back."""

RETURN = 3
"""Interactions of one return."""

GROUP = 5
"""Items among which a return chooses."""

LEAST_ITEMS_WITH_RETURNS = 2 * (1 + 4 * GROUP)
"""Up to half of them are the sign and the groups, of which there are four at least."""


class SyntheticConfig(Section):
    """The embedded source: users who walk through a seeded Markov chain over items of skewed popularity."""

    shape: Literal["custom", "ml-20m", "netflix", "lfm-1b"] = "custom"
    """How many users, items and interactions, and how they are spread: as in a published data set after its filter, or
    as the next three say."""
    num_users: Count | None = None
    """Users to make; by default as many as the shape has, 2,000 for `custom`."""
    num_items: Count | None = None
    """Items to make; by default as many as the shape has, 500 for `custom`."""
    mean_length: Positive | None = None
    """Average interactions per user; by default that of the shape, 40 for `custom`."""
    seed: CountOrZero = 0
    """The same seed makes the same interactions, byte for byte."""
    skew: NonNegative = 0.8
    """Popularity among the items of one taste falls as the rank to this power; 0 makes all as popular."""
    order: Annotated[int, Field(ge=1, le=4)] = 1
    """Of how many items the chain has to know the last to foresee the next one."""
    drift: Probability = 0.0
    """Share of the free draws that go to items in season, of which each has one month a year."""
    returns_after: CountOrZero = 0
    """Interactions, or up to half as many more, after which users return at the end to what they began with: what only
    a model can foresee that remembers so many. Earlier returns come after shorter breaks, too; 0 has no returns."""

    @model_validator(mode="after")
    def _returns_have_room(self) -> "SyntheticConfig":
        if not self.returns_after:
            return self
        if self.shape != "custom":
            raise ValueError(
                f"data.synthetic.returns_after={self.returns_after} needs histories longer than those of "
                f"data.synthetic.shape={self.shape}; drop one of them"
            )
        if (self.mean_length or 0) < self.least_with_returns:
            raise ValueError(
                f"data.synthetic.mean_length={self.mean_length or 40:g} leaves no room for two returns, the "
                f"last after data.synthetic.returns_after={self.returns_after} interactions; make it at least "
                f"{self.least_with_returns}, or lower the second"
            )
        if self.num_items is not None and self.num_items < LEAST_ITEMS_WITH_RETURNS:
            raise ValueError(
                f"data.synthetic.num_items={self.num_items}, but up to half of the items are those that return, in "
                f"four groups at least; make it at least {LEAST_ITEMS_WITH_RETURNS}"
            )
        return self

    @property
    def least_with_returns(self) -> int:
        """Interactions that every user has at least, so that one return is learned from before the last one."""
        shortest, longest = self.breaks
        return FIRST_SESSION + shortest + longest + 2 * RETURN

    @property
    def breaks(self) -> tuple[int, int]:
        """Interactions between two returns at least and at most, but for the last break."""
        return max(1, self.returns_after // 100), self.returns_after + self.returns_after // 2
