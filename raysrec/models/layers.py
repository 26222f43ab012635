"""Blocks that at least two models use verbatim: embeddings, feed-forward, dropout, and initial values.

A block that only one model has lives in that model's file, beside the equations it comes from; RecGRELA's attention is
long enough for a file of its own (`gated_attention.py`).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from raysrec.ops.dropout import keep_or_drop, random_bits

LAYER_NORM_EPS = 1e-12
"""RecBole's value, and so the papers': small enough that a constant vector is divided by almost nothing."""


class ItemEmbedding(nn.Module):
    """Item ids to vectors, with dropout and then layer normalisation: ``LN(Drop(E[ids] + P))``, or without P.

    `table` is also what states are scored against. Row 0 stands at padded positions and learns nothing there; it is no
    vector of zeros, so whoever reads positions must see that padded ones reach no real state.

    Source:
        Mamba4Rec and RecGRELA, "embedding layer"; dropout stands before the normalisation in both codes.
    """

    def __init__(
        self, *, num_items: int, dim: int, dropout: float, norm: bool = True, norm_eps: float = LAYER_NORM_EPS
    ) -> None:
        super().__init__()
        self.table = nn.Embedding(num_items + 1, dim, padding_idx=0)
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(dim, eps=norm_eps) if norm else nn.Identity()

    def forward(
        self, items: Int[Tensor, "*shape"], positions: Float[Tensor, "#*shape D"] | None = None
    ) -> Float[Tensor, "*shape D"]:
        """Vectors of items, one per id.

        Args:
            items: Ids.
            positions: What is added to them first, if anything (P).
        """
        vectors: Tensor = self.table(items)
        if positions is not None:
            vectors = vectors + positions.to(vectors.dtype)
        normed: Tensor = self.norm(self.dropout(vectors))
        return normed


class UserEmbedding(nn.Module):
    """User numbers to vectors; zeros for a user nobody learns from, and an error for one who is not in the data.

    Args:
        num_users: Users 1..num_users.
        dim: Channels of a vector.
    """

    def __init__(self, *, num_users: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(num_users + 1, dim)

    @torch.no_grad()
    def clear_unlearned(self, learned: Bool[Tensor, " U"]) -> None:
        """Set the vectors of users to zero whom no target belongs to.

        No gradient and no decay of weights ever moves them from there, so that a table says by itself whom it knows.

        Args:
            learned: Is there a target of this user? By number; nobody is user 0.
        """
        self.table.weight[~learned.to(self.table.weight.device)] = 0.0

    def forward(self, users: Int[Tensor, " B"] | None) -> Float[Tensor, "B D"]:
        """Vectors of users, one per number.

        Raises:
            ValueError: Users are not given, or one of them is not among 1..num_users.
        """
        known = len(self.table.weight) - 1
        if users is None:
            raise ValueError(f"the histories name no users, but this model has learned a vector for each of {known:,}")
        outside = (users < 1) | (users > known)
        # Looking waits for a GPU: too often for a training, whose users are those that the table was made for.
        if not (users.is_cuda and self.training) and bool(outside.any()):
            raise ValueError(
                f"user {int(users[outside][0])} is unknown: this model has vectors for users 1..{known} and for nobody "
                "else; train it again with that user, or take a model that reads histories only"
            )
        vectors: Tensor = self.table(users)
        return vectors


class FeedForward(nn.Module):
    """Two linear layers around a GELU, the same at every position: ``Drop(W2 Drop(GELU(W1 x + b1)) + b2)``.

    Residual and normalisation are the caller's, for the papers place them differently. `inner_dropout` is the
    first of the two, where it is not the same as the second; `activation` may be another.
    """

    def __init__(
        self,
        *,
        dim: int,
        inner_dim: int,
        dropout: float,
        inner_dropout: float | None = None,
        activation: Callable[[Tensor], Tensor] = F.gelu,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.expand = nn.Linear(dim, inner_dim)
        self.contract = nn.Linear(inner_dim, dim)
        self.inner_dropout = Dropout(dropout if inner_dropout is None else inner_dropout)
        self.dropout = Dropout(dropout)

    def forward(self, x: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        """The layer's output, without the residual."""
        inner = self.inner_dropout(self.activation(self.expand(x)))
        y: Tensor = self.dropout(self.contract(inner))
        return y


def flip_first(x: Float[Tensor, "B L D"], counts: Int[Tensor, " B"]) -> Float[Tensor, "B L D"]:
    """Each row with its first `counts` positions in reverse order and the others where they are."""
    positions = torch.arange(x.shape[1], device=x.device)
    last = counts[:, None] - 1
    source = torch.where(positions <= last, last - positions, positions)
    return x.gather(1, source[..., None].expand_as(x))


class Dropout(nn.Module):
    """`nn.Dropout` with cheap random numbers on a CPU, where drawing one float per value costs more than a model does.

    On a CPU each value spends 16 random bits, so the probability is rounded to a multiple of 1/65,536 (and the
    scale agrees with the rounded one: the expectation is exact). Elsewhere it is torch's own.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """`x` with values zeroed at random and the rest scaled up, in training; `x` itself otherwise."""
        if not self.training or self.probability == 0.0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.probability)
        return x * keep_or_drop(random_bits(x.shape), self.probability, dtype=x.dtype)


@torch.no_grad()
def init_weights_(module: nn.Module) -> None:
    """Give every linear layer and embedding in `module` weights N(0, 0.02²), biases 0, and norms weight 1, bias 0.

    Convolutions and raw parameters keep what their own constructors gave them.

    Source:
        RecBole's `_init_weights`, which both papers' models apply to all of their parts.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            part.weight.normal_(mean=0.0, std=0.02)
        if isinstance(part, nn.LayerNorm):
            part.weight.fill_(1.0)
        if isinstance(part, nn.Linear | nn.LayerNorm) and part.bias is not None:
            part.bias.zero_()
