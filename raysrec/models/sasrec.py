"""SASRec: causal softmax attention, the sequential Transformer that others are compared with, in RecBole's form.

    X = Drop(LN(E[ids] + P))
    per layer:
        A = W_o concat_h(Drop(softmax(q_h k_h^T / sqrt(D/H)) over positions up to one's own) v_h) + b_o
        Z = LN(X + Drop(A))
        X = LN(Z + Drop(W2 GELU(W1 Z + b1) + b2))

and the score of item j is X · E_j. There is no final normalisation. P are learned vectors of the positions 0 (the
oldest item that is given) to `max_length` - 1, so a history that has outgrown `max_length` has its positions counted
anew with every item, and nothing of an earlier computation can be used again: there is no recurrent form.

Source:
    Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018, in the form of RecBole's `SASRec` (version
    1.2, read at 7b02be5), which the tables of Mamba4Rec and RecGRELA measure.

Departures:
    * From RecBole: the model may learn at every position of a history instead of on one prefix per sample; without
      dropout the two are the same loss. The class of padding is not among the candidates in training.
    * From the original paper, as RecBole: normalisation after each residual instead of before, embeddings not scaled by
      sqrt(D), a feed-forward network four times as wide with GELU, softmax over all items and no sampled negative.
"""

from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn

from raysrec.history import History
from raysrec.models.base import ModelConfig, SequenceModel
from raysrec.models.layers import init_weights_
from raysrec.models.transformer import PositionedEmbedding, SelfAttention, SoftmaxTransformerConfig, TransformerLayer


class SASRecConfig(SoftmaxTransformerConfig):
    """Settings of SASRec."""

    name: Literal["sasrec"] = "sasrec"


class SASRec(SequenceModel):
    """Embedding with positions, and layers of causal attention."""

    Config: ClassVar[type[ModelConfig]] = SASRecConfig

    def __init__(self, config: SASRecConfig, num_items: int) -> None:
        super().__init__()
        self.embedding = PositionedEmbedding(
            num_items=num_items, dim=config.dim, max_length=config.max_length, dropout=config.dropout
        )
        self.layers: list[TransformerLayer] = nn.ModuleList(  # type: ignore[assignment]
            TransformerLayer(
                SelfAttention(dim=config.dim, num_heads=config.num_heads, dropout=config.weights_dropout),
                dim=config.dim,
                mlp_dim=config.mlp_dim,
                dropout=config.dropout,
            )
            for _ in range(config.num_layers)
        )
        init_weights_(self)

    @property
    def causal(self) -> bool:
        """A position sees those up to its own."""
        return True

    def encode(self, history: History) -> Float[Tensor, "B L D"]:
        """One state per position; what stands at padded positions means nothing."""
        x: Tensor = self.embedding(history.items)
        for layer in self.layers:
            x = layer(x, None)
        return x

    def read(self, history: History) -> Float[Tensor, "B D"]:
        """The state after each history's last item; the last layer computes no other."""
        x: Tensor = self.embedding(history.items)
        for layer in self.layers[:-1]:
            x = layer(x, None)
        # What the last position sees are all real ones.
        return self.layers[-1].read(x, history.mask(), history)

    def item_vectors(self) -> Float[Tensor, "V D"]:
        """The item embedding's table."""
        return self.embedding.table.weight
