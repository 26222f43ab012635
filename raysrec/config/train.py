"""The section `train`: what is learned from, for how long, and how fast."""

from typing import Annotated, Literal

from pydantic import Field

from raysrec.schema import Count, CountOrZero, Decay, NonNegative, Positive, Section


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
