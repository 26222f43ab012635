"""Vectors that tell positions apart, added to item vectors by models whose blocks do not know order (and by ablations).

A position is a slot of the padded history: 0 is the oldest item that is still there. Counting from the newest item
instead would change every earlier state with each new item, so a causal model could neither learn at every position
nor take one more item at a time.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class LearnedPositions(nn.Module):
    """One learned vector per position; there are `max_length` of them, and none for a position beyond.

    Args:
        max_length: Positions 0..max_length - 1.
        dim: Channels of a vector.
    """

    def __init__(self, *, max_length: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(max_length, dim)

    def first(self, length: int) -> Float[Tensor, "L D"]:
        """The vectors of positions 0..length - 1.

        Raises:
            ValueError: There are not so many.
        """
        return first_rows(self.table, length)

    def at(self, positions: Int[Tensor, " B"]) -> Float[Tensor, "B D"]:
        """The vector of one position per row.

        Raises:
            ValueError: One of the positions has none.
        """
        require_rows(self.table, int(positions.max()) + 1)
        vectors: Tensor = self.table(positions)
        return vectors


def first_rows(table: nn.Embedding, length: int) -> Float[Tensor, "L D"]:
    """What was learned for positions 0..length - 1.

    Raises:
        ValueError: The table ends before.
    """
    require_rows(table, length)
    vectors: Tensor = table(torch.arange(length, device=table.weight.device))
    return vectors


def require_rows(table: nn.Embedding, length: int) -> None:
    """Refuse a history for whose last position nothing was learned.

    Raises:
        ValueError: The table has less than `length` rows.
    """
    known = table.num_embeddings
    if length > known:
        raise ValueError(
            f"position {length - 1} has no vector: model.max_length={known} positions were learned; give the newest "
            f"{known} items and no more (where there is `step`, begin again from initial_state with them), or train "
            "with a larger model.max_length"
        )


class SinusoidalPositions(nn.Module):
    """Sines (even channels) and cosines (odd ones) of wavelengths from 2 pi to 20,000 pi; any position has a vector.

    Source:
        Vaswani et al., "Attention Is All You Need", NeurIPS 2017, §3.5.
    """

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        self.dim = dim
        # Whole numbers, for `to(bfloat16)` would round rates until neighbouring positions have one angle.
        self.register_buffer("channels", torch.arange(0, dim, 2), persistent=False)
        self.channels: Tensor

    def first(self, length: int) -> Float[Tensor, "L D"]:
        """The vectors of positions 0..length - 1."""
        return self.at(torch.arange(length, device=self.channels.device))

    def at(self, positions: Int[Tensor, " B"]) -> Float[Tensor, "B D"]:
        """The vector of one position per row."""
        angles = positions[:, None] * 10_000.0 ** -(self.channels.double() / self.dim)
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2).float()
