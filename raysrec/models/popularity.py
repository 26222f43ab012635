"""Popularity: everyone is recommended what occurs most often in training; the least that a model must beat.

    score of item j = log(1 + count_j)

There is nothing to learn: the counts are given before the first step (`set_item_counts`) and the states are zero.
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from raysrec.history import History
from raysrec.models.base import ModelConfig, SequenceModel


class PopularityConfig(ModelConfig):
    """Settings of popularity; no field changes a score."""

    name: Literal["popularity"] = "popularity"


class Popularity(SequenceModel):
    """Item counts, and no parameters."""

    Config: ClassVar[type[ModelConfig]] = PopularityConfig
    reads_items: ClassVar[bool] = False
    counts: Int[Tensor, " V"]

    def __init__(self, config: PopularityConfig, num_items: int) -> None:
        super().__init__()
        self.dim = config.dim
        # Whole numbers, so that a conversion to half precision makes no ties.
        self.register_buffer("counts", torch.zeros(num_items + 1, dtype=torch.int64))

    @property
    def causal(self) -> bool:
        """A state depends on nothing."""
        return True

    def encode(self, history: History) -> Float[Tensor, "B L D"]:
        """Zeros."""
        return self._zeros(*history.items.shape, self.dim)

    def item_vectors(self) -> Float[Tensor, "V D"]:
        """Zeros: items differ by their bias only."""
        return self._zeros(len(self.counts), self.dim)

    def item_bias(self) -> Float[Tensor, " V"]:
        """log(1 + count) of each item."""
        return self.counts.to(torch.float32).log1p()

    def set_item_counts(self, counts: Int[Tensor, " V"]) -> None:
        """Keep how often each item occurs in training, for as long as the model lives and is saved.

        Raises:
            ValueError: There is not one count for each item and padding.
        """
        if counts.shape != self.counts.shape:
            raise ValueError(f"{len(counts):,} counts for {len(self.counts):,} items (with padding)")
        self.counts.copy_(counts)

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, device=self.counts.device)
