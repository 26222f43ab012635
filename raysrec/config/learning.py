"""The sections `loss`, `train` and `engine`: what is learned, how, and by what."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from raysrec.schema import Count, CountOrZero, Decay, NonNegative, Positive, Section


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
    (`sampled_softmax` only)."""
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


class ClozeConfig(Section):
    """Which items of a row are hidden and learned, drawn afresh each epoch."""

    hidden_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Probability that an item is hidden; if none is, the last one is."""
    only_last_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of rows in which the last item alone is hidden, as when the next item is asked for."""


class TrainConfig(Section):
    """What is learned from, in which steps, and for how long."""

    supervision: Literal["every_position", "last_position", "cloze"] = "every_position"
    """`every_position`: one forward pass learns at each position (causal models only); `last_position`: one sample per
    prefix; `cloze`: items hidden among the others (models that fill gaps)."""
    prefixes_per_user: Literal["all"] | Count = "all"
    """Where a row is a prefix (`last_position`, `windows: prefixes`): how many of a user an epoch learns from, drawn
    afresh each time."""
    cloze: ClozeConfig = ClozeConfig()
    """Which items `cloze` hides."""
    windows: Literal["tile", "overlap", "last", "prefixes"] = "tile"
    """How a history longer than `model.max_length` is cut: side by side at an offset drawn each epoch, overlapping by
    half, or only the last window. `prefixes` (`cloze`): one row per item, up to it, as RecBole's BERT4Rec learns."""
    epochs: Count = 50
    """Passes over all targets, at most."""
    max_steps: Count | None = None
    """Updates after which training ends at the latest, also in the middle of an epoch; the schedule ends there."""
    batch_targets: Count = 2_048
    """Targets per update, over all workers; a batch may exceed it by part of one history."""
    micro_batch_tokens: Count = 32_768
    """Positions (padding included) that one worker encodes at once; bounds memory. Negatives are drawn for each
    micro-batch; nothing else changes with it."""
    optimizer: Literal["adam", "muon"] = "adam"
    """`adam` for everything (the papers'), or `muon` for the matrices and Adam for the rest."""
    learning_rate: Positive = 1e-3
    """Peak learning rate of Adam."""
    muon_learning_rate: Positive = 0.02
    """Peak learning rate of Muon; follows the same warm-up and schedule."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of Adam's running mean and variance."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay of matrices other than the item table."""
    warmup_steps: CountOrZero = 0
    """Steps over which the learning rate rises from 0 to its peak."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or a cosine that reaches 0 at the end."""
    clip_norm: NonNegative = 0.0
    """Largest norm of the gradient; 0 does not clip."""
    validate_every: Count = 1
    """Epochs between two rankings of the validation items."""
    patience: Count = 10
    """Validations without a better score after which training stops."""
    seed: CountOrZero = 0
    """Fixes initial weights, dropout and the order of the data."""


class EngineConfig(Section):
    """What turns a loss into an update."""

    name: Literal["torch", "deepspeed"] = "torch"
    """`torch`: plain PyTorch with DDP; `deepspeed`: ZeRO."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    """What DeepSpeed shards over workers: 1 optimizer state, 2 also gradients, 3 also weights; 0 nothing."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of matrix products; `auto` takes bfloat16 on GPUs that have it and float32 elsewhere."""
    extra: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies it
    """Laid over the DeepSpeed configuration that is derived from this file; logged."""
