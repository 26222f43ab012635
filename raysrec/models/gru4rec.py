"""GRU4Rec: a gated recurrent unit reads the history, and its state is projected to the items' space.

    x = Drop(E[ids])
    per layer, with the layer below (or x) as input:
        r = sigmoid(W_ir x + W_hr h)            what of the state enters the candidate
        z = sigmoid(W_iz x + W_hz h)            what of the state stays
        c = tanh(W_in x + r * (W_hn h))
        h = (1 - z) * c + z * h                 h_0 = 0; no biases
    s = W h + b

and the score of item j is s · E_j. There is no normalisation and no position; a history's memory is one h per layer.

Source:
    Hidasi, Karatzoglou, Baltrunas, Tikk, "Session-based Recommendations with Recurrent Neural Networks", ICLR 2016,
    in the form of Tan, Xu, Liu, "Improved Recurrent Neural Networks for Session-based Recommendations", DLRS 2016,
    and of RecBole's code, RUCAIBox/RecBole at 7b02be5, against which the later papers compare: batches of histories
    in place of parallel sessions, cross-entropy over all items in place of ranking losses.

Departures:
    * The model learns at every position of a history instead of on one prefix per sample (`train.supervision`).
    * Padding is not among the candidates of the softmax in training.
"""

from typing import ClassVar, Literal

from jaxtyping import Float, Int
from torch import Tensor, nn

from raysrec.history import History
from raysrec.models.base import ModelConfig, SequenceModel
from raysrec.models.layers import Dropout
from raysrec.schema import Count, Probability


class GRU4RecConfig(ModelConfig):
    """Settings of GRU4Rec."""

    name: Literal["gru4rec"] = "gru4rec"
    num_layers: Count = 1
    """Recurrent layers, one on the other."""
    hidden_dim: Count = 128
    """Numbers that each layer remembers of a history (H)."""
    dropout: Probability = 0.3
    """Dropout of the item vectors."""


class GRU4Rec(SequenceModel):
    """Item vectors, recurrent layers and a projection; causal and recurrent."""

    Config: ClassVar[type[ModelConfig]] = GRU4RecConfig

    def __init__(self, config: GRU4RecConfig, num_items: int) -> None:
        super().__init__()
        self.table = nn.Embedding(num_items + 1, config.dim)
        self.dropout = Dropout(config.dropout)
        self.gru = nn.GRU(config.dim, config.hidden_dim, config.num_layers, bias=False, batch_first=True)
        self.output = nn.Linear(config.hidden_dim, config.dim)
        nn.init.xavier_normal_(self.table.weight)
        # The layers above the first and the projection keep torch's own initial values, as in the source.
        for name, weight in self.gru.named_parameters():
            if name.endswith("_l0"):
                nn.init.xavier_uniform_(weight)

    @property
    def causal(self) -> bool:
        """A recurrence looks back only."""
        return True

    def encode(self, history: History) -> Float[Tensor, "B L D"]:
        """One state per position; what stands at padded positions means nothing."""
        hidden, _ = self.gru(self.dropout(self.table(history.items)))
        states: Tensor = self.output(hidden)
        return states

    def item_vectors(self) -> Float[Tensor, "V D"]:
        """The item embedding's table."""
        return self.table.weight

    @property
    def recurrent(self) -> bool:
        """A state takes one more item in constant time."""
        return True

    def initial_state(self, batch_size: int) -> Float[Tensor, "B layers H"]:
        """Zeros: nothing was seen."""
        return self.output.weight.new_zeros(batch_size, self.gru.num_layers, self.gru.hidden_size)

    def step(
        self, items: Int[Tensor, " B"], state: Float[Tensor, "B layers H"]
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B layers H"]]:
        """Take one more item per user."""
        x = self.dropout(self.table(items))[:, None]
        hidden, after = self.gru(x, state.transpose(0, 1).contiguous())
        return self.output(hidden[:, 0]), after.transpose(0, 1)
