"""The section `loss`: what is minimised."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raysrec.schema import CountOrZero, NonNegative, Section


class LossConfig(Section):
    """What is minimised."""

    name: Literal["auto", "softmax", "sampled_softmax", "bce", "gbce", "bpr"] = "auto"
    """`softmax`: exact cross-entropy over the whole catalogue; `sampled_softmax`: over a sample of it, corrected for
    how likely each item was to be drawn; `bce`, `gbce`, `bpr`: the target against a few negatives. `auto` takes
    `softmax` while the catalogue is short enough beside what is encoded for each target, and `sampled_softmax` beyond.
    """
    negatives: CountOrZero = 0
    """Items drawn against each target; 0 takes 4,096 (shared by a micro-batch) for `sampled_softmax`, 256 for `gbce`, 1
    for `bce` and `bpr`. `in_batch` has the micro-batch's own targets instead."""
    sampling: Literal["uniform", "popularity", "in_batch"] = "uniform"
    """Which items are drawn: any alike, in proportion to `count ** popularity_power`, or the micro-batch's targets
    (`sampled_softmax` only). The latter are corrected as if each were drawn by itself in proportion to its count; where
    a micro-batch is the targets of few users, as of `every_position`, they are less varied than that."""
    popularity_power: NonNegative = 0.75
    """How far popular items are preferred: 1 is in proportion to their count, 0 not at all."""
    exclude_history: bool = False
    """Draw no item that the user has in training, also outside the row (`bce`, `bpr`)."""
    calibration: Annotated[float, Field(ge=0, le=1)] = 0.75
    """`gbce`: 0 is `bce` divided by how many items it looks at, 1 makes scores calibrated as those of `softmax` (t)."""

    padding_class: bool = False
    """`softmax`: let padding be a candidate that is never right, as in RecBole's models, and so in the papers' runs of
    Mamba4Rec, RecGRELA and what they compare with."""

    @model_validator(mode="after")
    def _what_is_drawn_is_used(self) -> "LossConfig":
        for key in ("negatives", "sampling") if self.name == "auto" else ():
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(
                    f"loss.{key}={getattr(self, key)} says how to sample, but loss.name=auto may take the exact "
                    "softmax, which samples nothing; set loss.name=sampled_softmax (or bce, gbce, bpr), or drop it"
                )
        unused = {
            "negatives": self.name == "softmax" or self.sampling == "in_batch",
            "sampling": self.name == "softmax",
            "popularity_power": self.sampling != "popularity",
            "calibration": self.name != "gbce",
        }
        self.refuse_unused("loss", unused, f"loss.name={self.name} and loss.sampling={self.sampling}")
        if self.sampling == "in_batch" and self.name != "sampled_softmax":
            raise ValueError(f"loss.sampling=in_batch goes with loss.name=sampled_softmax, not with {self.name}")
        if self.name == "gbce" and self.sampling != "uniform":
            raise ValueError(f"loss.name=gbce is calibrated for uniform draws, not for loss.sampling={self.sampling}")
        if self.name == "gbce" and self.exclude_history:
            raise ValueError(
                "loss.name=gbce is calibrated for draws from the whole catalogue, not for loss.exclude_history=True; "
                "drop it or take bce"
            )
        if self.padding_class and self.name != "softmax":
            raise ValueError(
                f"loss.padding_class=True is for loss.name=softmax, and loss.name={self.name} draws its candidates or "
                "may come to; set loss.name=softmax or drop it"
            )
        if self.exclude_history and self.name not in ("bce", "bpr"):
            raise ValueError(
                f"loss.exclude_history is for negatives of one target, but loss.name={self.name} shares its negatives "
                "or has none; drop it or take bce or bpr"
            )
        return self
