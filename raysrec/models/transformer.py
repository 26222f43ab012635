"""The Transformer in RecBole's form, which SASRec and its successors share: positioned embedding, attention, layers.

What makes each of them another model, whom a position may look at and how, stands in its own file.
"""

from jaxtyping import Bool, Float, Int
from pydantic import model_validator
from torch import Tensor, nn

from raysrec.history import History, last_states
from raysrec.models.base import ModelConfig
from raysrec.models.layers import LAYER_NORM_EPS, Dropout, FeedForward
from raysrec.models.positions import first_rows, require_rows
from raysrec.ops.softmax_attention import softmax_attention
from raysrec.schema import Count, Probability


class TransformerConfig(ModelConfig):
    """Settings that models of the SASRec kind share; a model's own `Config` adds its name and the rest."""

    dropout: Probability = 0.2
    num_layers: Count = 2
    """Layers of attention and feed-forward network, one on the other."""
    num_heads: Count = 2
    """Heads of the attention (H); divides `dim`."""
    mlp_dim: Count = 256
    """Inner channels of the feed-forward network."""

    @model_validator(mode="after")
    def _heads_divide_channels(self) -> "TransformerConfig":
        if self.dim % self.num_heads:
            raise ValueError(
                f"model.dim={self.dim} does not split into model.num_heads={self.num_heads} equal heads; choose a "
                f"multiple of {self.num_heads}"
            )
        return self


class SoftmaxTransformerConfig(TransformerConfig):
    """The same for models whose attention has weights that can be dropped."""

    attention_dropout: Probability | None = None
    """Dropout of the attention's weights; None is the same as `dropout`."""

    @property
    def weights_dropout(self) -> float:
        """What `attention_dropout` comes to."""
        return self.dropout if self.attention_dropout is None else self.attention_dropout


class PositionedEmbedding(nn.Module):
    """Item ids and their positions to vectors, normalised and then dropped: ``Drop(LN(E[ids] + P))``.

    Position 0 is the oldest item of what is given, so a history that is cut at its old end has all its positions
    counted anew. `table` is also what states are scored against; row 0 stands at padded positions and learns nothing
    there.

    Source:
        SASRec and its successors as RecBole has them: layer normalisation stands before dropout.
    """

    def __init__(self, *, num_items: int, dim: int, max_length: int, dropout: float) -> None:
        super().__init__()
        self.table = nn.Embedding(num_items + 1, dim, padding_idx=0)
        self.positions = nn.Embedding(max_length, dim)
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.dropout = Dropout(dropout)

    def forward(self, items: Int[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        """Vectors of items where they stand.

        Raises:
            ValueError: They are more than `max_length`.
        """
        return self._together(items, first_rows(self.positions, items.shape[1]))

    def at(self, items: Int[Tensor, " B"], positions: Int[Tensor, " B"]) -> Float[Tensor, "B D"]:
        """Vectors of one item per row, where they stand.

        Raises:
            ValueError: One stands beyond `max_length`.
        """
        require_rows(self.positions, int(positions.max()) + 1)
        return self._together(items, self.positions(positions))

    def _together(
        self, items: Int[Tensor, "*shape"], positions: Float[Tensor, "#*shape D"]
    ) -> Float[Tensor, "*shape D"]:
        vectors: Tensor = self.dropout(self.norm(self.table(items) + positions))
        return vectors


class TransformerLayer(nn.Module):
    """Attention, then a feed-forward network, each with dropout, a residual and LayerNorm after it (post-norm).

        Z = LN(X + Drop(Attention(X)))
        X = LN(Z + Drop(W2 GELU(W1 Z + b1) + b2))

    Args:
        attention: Called with (who looks [B Q D], whom they may look at [B L D], the positions `seen` [B L]).
        dim: Channels.
        mlp_dim: Inner channels of the feed-forward network.
        dropout: Of both outputs.
    """

    def __init__(self, attention: nn.Module, *, dim: int, mlp_dim: int, dropout: float) -> None:
        super().__init__()
        self.attention = attention
        self.dropout = Dropout(dropout)
        self.attention_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.feed_forward = FeedForward(dim=dim, inner_dim=mlp_dim, dropout=dropout, inner_dropout=0.0)
        self.feed_forward_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)

    def forward(self, x: Float[Tensor, "B L D"], seen: Bool[Tensor, "B L"] | None) -> Float[Tensor, "B L D"]:
        """Each position after it has looked at those of `seen`, or at those up to its own if that is None."""
        return self.after_attention(x, self.attention(x, x, seen))

    def read(self, x: Float[Tensor, "B L D"], seen: Bool[Tensor, "B L"], history: History) -> Float[Tensor, "B D"]:
        """The same at each history's last position only, which is all that is needed of the last layer."""
        last = last_states(x, history)[:, None]
        return self.after_attention(last, self.attention(last, x, seen))[:, 0]

    def after_attention(
        self, x: Float[Tensor, "*shape D"], mixed: Float[Tensor, "*shape D"]
    ) -> Float[Tensor, "*shape D"]:
        """What the layer makes of positions and of what their attention found: all that comes after it."""
        z = self.attention_norm(x + self.dropout(mixed))
        y: Tensor = self.feed_forward_norm(z + self.feed_forward(z))
        return y


class SelfAttention(nn.Module):
    """Softmax attention of a history to itself: ``W_o concat_h(Drop(softmax(q_h k_h^T / sqrt(D/H))) v_h) + b_o``.

    Source:
        Vaswani et al., "Attention Is All You Need", 2017, with biases everywhere, as BERT and RecBole have them.
    """

    def __init__(self, *, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)
        self.num_heads = num_heads
        self.dropout = dropout

    def forward(
        self, at: Float[Tensor, "B Q D"], x: Float[Tensor, "B L D"], seen: Bool[Tensor, "B L"] | None
    ) -> Float[Tensor, "B Q D"]:
        """What the positions `at` see of `x`: those of `seen`, or (`at` being `x`) those up to their own if None."""
        mixed = softmax_attention(
            self.query(at),
            self.key(x),
            self.value(x),
            seen,
            num_heads=self.num_heads,
            dropout=self.dropout if self.training else 0.0,
        )
        y: Tensor = self.output(mixed)
        return y
