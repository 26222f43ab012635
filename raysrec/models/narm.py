"""NARM: a recurrent state as what a history is about, and an attention over all states as what it is after.

    x = Drop(E[ids])
    h_t = GRU(x_t, h_{t-1})                                 h_0 = 0; no biases; equations in gru4rec.py
    alpha_tj = <v, sigmoid(A1 h_j + A2 h_t)>                j <= t; not normalised
    s_t = W Drop([sum over j of alpha_tj h_j ; h_t])        no bias

and the score of item j is s · E_j. The paper asks once, at the end of a history; asking at every position with what
lies before it is the same function of each prefix, so the model is causal and learns at every position. That costs
O(L²) per history; `read`, which asks once, costs O(L). What it must remember grows with the history: it has no step.

Source:
    Li, Ren, Chen, Ren, Lian, Ma, "Neural Attentive Session-based Recommendation", CIKM 2017, in the form of RecBole's
    code, RUCAIBox/RecBole at 7b02be5, against which the later papers compare: scores are products with E itself.

Departures:
    * The model learns at every position of a history instead of on one prefix per sample (`train.supervision`).
    * Padding is not among the candidates of the softmax in training.
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from raysrec.history import History, last_states
from raysrec.models.base import ModelConfig, SequenceModel
from raysrec.models.layers import Dropout
from raysrec.ops.additive_attention import causal_additive_attention
from raysrec.schema import Count, Probability


class NARMConfig(ModelConfig):
    """Settings of NARM."""

    name: Literal["narm"] = "narm"
    num_layers: Count = 1
    """Recurrent layers, one on the other."""
    hidden_dim: Count = 128
    """Channels of the recurrent state and of the attention (H)."""
    dropout: Probability = 0.25
    """Dropout of the item vectors."""
    drop_read_out: Probability = 0.5
    """Dropout of what attention and recurrence found, before the last projection."""


class NARM(SequenceModel):
    """Item vectors, a recurrent encoder and an attention over its states; causal, but not recurrent as a whole."""

    Config: ClassVar[type[ModelConfig]] = NARMConfig

    def __init__(self, config: NARMConfig, num_items: int) -> None:
        super().__init__()
        hidden = config.hidden_dim
        self.table = nn.Embedding(num_items + 1, config.dim)
        self.dropout = Dropout(config.dropout)
        # The GRU keeps torch's own initial values, as in the source.
        self.gru = nn.GRU(config.dim, hidden, config.num_layers, bias=False, batch_first=True)
        self.key = nn.Linear(hidden, hidden, bias=False)  # A1
        self.query = nn.Linear(hidden, hidden, bias=False)  # A2
        self.weigh = nn.Linear(hidden, 1, bias=False)  # v
        self.read_out_dropout = Dropout(config.drop_read_out)
        self.output = nn.Linear(2 * hidden, config.dim, bias=False)  # W
        for part in (self.table, self.key, self.query, self.weigh, self.output):
            nn.init.xavier_normal_(part.weight)

    @property
    def causal(self) -> bool:
        """Each position asks what lies before it."""
        return True

    def encode(self, history: History) -> Float[Tensor, "B L D"]:
        """One state per position; what stands at padded positions means nothing."""
        hidden = self._hidden(history)
        found = causal_additive_attention(self.query(hidden), self.key(hidden), hidden, self.weigh.weight[0])
        return self._project(found, hidden)

    def read(self, history: History) -> Float[Tensor, "B D"]:
        """The state after each history's last item, at the cost of one question."""
        hidden = self._hidden(history)
        last = last_states(hidden, history)
        alpha = self.weigh(torch.sigmoid(self.key(hidden) + self.query(last)[:, None]))  # [B L 1]
        alpha = alpha * history.mask()[..., None]
        return self._project((alpha * hidden).sum(dim=1), last)

    def item_vectors(self) -> Float[Tensor, "V D"]:
        """The item embedding's table."""
        return self.table.weight

    def _hidden(self, history: History) -> Float[Tensor, "B L H"]:
        hidden: Tensor = self.gru(self.dropout(self.table(history.items)))[0]
        return hidden

    def _project(
        self, found: Float[Tensor, "*shape H"], hidden: Float[Tensor, "*shape H"]
    ) -> Float[Tensor, "*shape D"]:
        states: Tensor = self.output(self.read_out_dropout(torch.cat([found, hidden], dim=-1)))
        return states
