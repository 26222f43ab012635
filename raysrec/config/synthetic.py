"""The embedded source: what is asked of it."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raysrec.schema import Count, CountOrZero, NonNegative, Positive, Probability, Section

FIRST_SESSION = 20
"""Interactions with which a user of the embedded source begins, if they return later."""


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
    returns: Probability = 0.0
    """Share of steps, after the first `returns_after`, that bring back one of a user's first 20 items, each once: what
    only a model can foresee whose `max_length` reaches back to them; 0 brings none back."""
    returns_after: Annotated[int, Field(ge=FIRST_SESSION)] = 1_000
    """Interactions before the first return; all users have more than these (with `returns` only)."""

    @model_validator(mode="after")
    def _returns_have_room(self) -> "SyntheticConfig":
        if not self.returns:
            return self
        if self.shape != "custom":
            raise ValueError(
                f"data.synthetic.returns={self.returns:g} needs histories longer than those of "
                f"data.synthetic.shape={self.shape}; drop one of them"
            )
        if self.mean_length is None or self.mean_length <= self.returns_after:
            raise ValueError(
                f"data.synthetic.mean_length={self.mean_length or 40:g} leaves no room for returns after "
                f"data.synthetic.returns_after={self.returns_after} interactions; raise the first or lower the second"
            )
        if self.num_items is not None and self.num_items < 2 * FIRST_SESSION:
            raise ValueError(
                f"data.synthetic.num_items={self.num_items}, but half of the items are those that can return, and a "
                f"user begins with {FIRST_SESSION} of them; make it at least {2 * FIRST_SESSION}"
            )
        return self
