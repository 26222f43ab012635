"""BERT4Rec: attention that looks both ways, trained to guess hidden items and read at a hidden one after the last.

    X = Drop(LN(E[ids] + P))                        HIDDEN stands for a row of E of its own, the mask
    per layer: SASRec's, but each position sees all real ones
    S = LN(GELU(W_h X + b_h))

and the score of item j is S · E_j + c_j. A position sees its own item, so the model can neither learn nor predict where
an item stands: it learns at hidden positions (`train.supervision=cloze`, or `last_position`), and to predict what comes
next it is given the history with one hidden item after it, whose state is read. That item takes a place among the
`max_length` positions, so the oldest item of a full history makes room for it.

Source:
    Sun et al., "BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations from Transformer",
    CIKM 2019, in the form of RecBole's `BERT4Rec` (version 1.2, read at 7b02be5).

Departures:
    * The oldest item makes room only in a full history. RecBole drops it from every history, so a user with one item
      is predicted from nothing: `oldest_makes_room=always`.
    * Training sees the last training item of each user, hides as many items as are drawn, at any position, and takes
      one sequence per user. RecBole learns within the inputs of its prefix samples only, so that item is never used;
      `train.windows=prefixes` takes these samples, and that item as well. Nor does RecBole ever learn the first item
      of a history, or more than a fifth of `max_length` of one.
    * Whether the last item alone is hidden is drawn for each history, and a history of which nothing was drawn hides
      its last. RecBole draws once for a batch, and learns nothing from such a history.
    * Neither padding nor the mask is among the candidates; they have no bias that is ever used.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from raysrec.history import HIDDEN, History
from raysrec.models.base import ModelConfig, SequenceModel
from raysrec.models.layers import LAYER_NORM_EPS, init_weights_
from raysrec.models.positions import require_rows
from raysrec.models.transformer import PositionedEmbedding, SelfAttention, SoftmaxTransformerConfig, TransformerLayer


class BERT4RecConfig(SoftmaxTransformerConfig):
    """Settings of BERT4Rec."""

    name: Literal["bert4rec"] = "bert4rec"
    oldest_makes_room: Literal["if_full", "always"] = "if_full"
    """Which histories lose their oldest item to the hidden one that is read: full ones, or all of them (RecBole)."""


class BERT4Rec(SequenceModel):
    """Embedding with positions, layers of attention to all real positions, and a head."""

    Config: ClassVar[type[ModelConfig]] = BERT4RecConfig

    def __init__(self, config: BERT4RecConfig, num_items: int) -> None:
        super().__init__()
        self.max_length = config.max_length
        self.oldest_always_goes = config.oldest_makes_room == "always"
        self.num_rows = num_items + 1
        self.embedding = PositionedEmbedding(  # the mask is one more item
            num_items=num_items + 1, dim=config.dim, max_length=config.max_length, dropout=config.dropout
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
        self.head = nn.Linear(config.dim, config.dim)
        self.head_norm = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)
        self.bias = nn.Parameter(torch.zeros(self.num_rows))
        init_weights_(self)

    @property
    def causal(self) -> bool:
        """A position sees what follows it."""
        return False

    @property
    def fills_gaps(self) -> bool:
        """HIDDEN has a vector, and the state at its position guesses what it hides."""
        return True

    def encode(self, history: History) -> Float[Tensor, "B L D"]:
        """One state per position; it guesses the item where HIDDEN stands, and means nothing where padding does."""
        x, seen = self._embed(history), history.mask()
        for layer in self.layers:
            x = layer(x, seen)
        return self._head(x)

    def read(self, history: History) -> Float[Tensor, "B D"]:
        """The state at a hidden item after each history's last."""
        history = self.with_next_hidden(history)
        x, seen = self._embed(history), history.mask()
        for layer in self.layers[:-1]:
            x = layer(x, seen)
        return self._head(self.layers[-1].read(x, seen, history))

    def with_next_hidden(self, history: History) -> History:
        """Each history with HIDDEN after its last item, and without its oldest where that has to make room.

        It has no times and no users, which this model does not read.

        Raises:
            ValueError: They are longer than `max_length`.
        """
        require_rows(self.embedding.positions, history.items.shape[1])
        width = history.items.shape[1]
        makes_room = history.lengths >= (0 if self.oldest_always_goes else self.max_length)
        kept = (history.lengths - makes_room.long())[:, None]
        places = torch.arange(min(width + 1, self.max_length), device=history.items.device)
        items = history.items.gather(1, (places + makes_room[:, None].long()).clamp(max=width - 1))
        items = torch.where(places < kept, items, torch.where(places == kept, HIDDEN, 0))
        return History(items, times=torch.zeros_like(items), lengths=kept[:, 0] + 1)

    def item_vectors(self) -> Float[Tensor, "V D"]:
        """The item embedding's table without the mask's row."""
        return self.embedding.table.weight[: self.num_rows]

    def item_bias(self) -> Float[Tensor, " V"]:
        """How likely an item is whatever the history."""
        return self.bias

    def _embed(self, history: History) -> Float[Tensor, "B L D"]:
        mask_row = self.num_rows
        x: Tensor = self.embedding(torch.where(history.items == HIDDEN, mask_row, history.items))
        return x

    def _head(self, x: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        y: Tensor = self.head_norm(F.gelu(self.head(x)))
        return y
