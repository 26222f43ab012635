"""Mamba4Rec: a Mamba block and a feed-forward network per layer; no attention and no positions.

    X = LN(Drop(E[ids]))
    per layer:
        Z = LN(Drop(Mamba(X)))          with one layer
        Z = LN(Drop(Mamba(X)) + X)      with more
        X = LN(FeedForward(Z) + Z)

and the score of item j is X · E_j. There is no final normalisation. Order needs no position vectors, for the Mamba
block is a recurrence: it looks back only, learns at every position at once, and serves with constant memory (4,480
numbers per layer at the papers' sizes).

Source:
    Liu, Lin, Wang, Liu, Caverlee, "Mamba4Rec: Towards Efficient Sequential Recommendation with Selective State Space
    Models", arXiv:2403.03900, 2024; the authors' code, chengkai-liu/Mamba4Rec at 44a0c84; the block is Gu and Dao,
    "Mamba", 2023, as in state-spaces/mamba at e9594ce.

Departures:
    * The model learns at every position of a history instead of on one prefix per sample (`train.supervision`);
      without dropout the two are the same loss.
    * The class of padding is not among the candidates of the softmax in training; the authors remove it only when
      they rank.
    * `mamba_init=library` gives Mamba's own initial values. The authors' code, and the default here, writes over
      them: their initialisation runs through the whole model and reaches the linear layers inside the block, which
      sets all step sizes near softplus(0) = 0.69. The published numbers start there.
    * The conv's weights, A and the step sizes' bias are named after what they are, not as in the library, and the
      taps have no middle dimension of size one.
"""

import math
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from raysrec.history import History
from raysrec.models.base import ModelConfig, SequenceModel
from raysrec.models.layers import LAYER_NORM_EPS, Dropout, FeedForward, ItemEmbedding, at_least_float32, init_weights_
from raysrec.ops.selective_scan import initial_scan_state, selective_scan, selective_scan_step
from raysrec.ops.short_conv import short_conv, short_conv_step
from raysrec.schema import Count


class Mamba4RecConfig(ModelConfig):
    """Settings of Mamba4Rec; the feed-forward network has 4 * `dim` inner channels, as in the paper."""

    name: Literal["mamba4rec"] = "mamba4rec"
    num_layers: Count = 1
    """Layers, one on the other; with a single one there is no residual around its Mamba block, as in the paper."""
    d_state: Count = 32
    """Numbers that each inner channel remembers of a history (S)."""
    d_conv: Count = 4
    """Positions that the short convolution sees, the current one included."""
    expand: Count = 2
    """Inner channels of the Mamba block (E) per channel of a state."""
    mamba_init: Literal["init02", "library"] = "init02"
    """Where the Mamba blocks start. `init02`, as in the papers' code: linear weights N(0, 0.02²) and biases 0, so every
    step size Delta is about 0.69 and the slowest memory halves with each item. `library`, Mamba's own: Delta is
    spread log-uniformly over 0.001 to 0.1, and memories begin tens to a thousand items long."""


class MambaState(NamedTuple):
    """What one Mamba block remembers of a history, however long it is."""

    window: Float[Tensor, "B K-1 E"]
    """The last inputs of the short convolution, oldest first."""
    scan: Float[Tensor, "B E S"]
    """The state of the selective scan."""


class Mamba4Rec(SequenceModel):
    """Item embedding and layers of Mamba and feed-forward; causal and recurrent."""

    Config: ClassVar[type[ModelConfig]] = Mamba4RecConfig

    def __init__(self, config: Mamba4RecConfig, num_items: int) -> None:
        super().__init__()
        self.embedding = ItemEmbedding(num_items=num_items, dim=config.dim, dropout=config.dropout)
        self.layers: list[Layer] = nn.ModuleList(  # type: ignore[assignment]
            Layer(
                dim=config.dim,
                d_state=config.d_state,
                d_conv=config.d_conv,
                expand=config.expand,
                dropout=config.dropout,
                residual=config.num_layers > 1,
            )
            for _ in range(config.num_layers)
        )
        init_weights_(self)
        if config.mamba_init == "library":
            for layer in self.layers:
                layer.mamba.reset_parameters()

    @property
    def causal(self) -> bool:
        """A recurrence looks back only."""
        return True

    def encode(self, history: History) -> Float[Tensor, "B L D"]:
        """One state per position; what stands at padded positions means nothing."""
        x: Tensor = self.embedding(history.items)
        for layer in self.layers:
            x = layer(x)
        return x

    def item_vectors(self) -> Float[Tensor, "V D"]:
        """The item embedding's table."""
        return self.embedding.table.weight

    @property
    def recurrent(self) -> bool:
        """A state takes one more item in constant time."""
        return True

    def initial_state(self, batch_size: int) -> list[MambaState]:
        """The memory of users who have no history yet, one per layer."""
        return [layer.mamba.initial_state(batch_size) for layer in self.layers]

    def step(self, items: Int[Tensor, " B"], state: list[MambaState]) -> tuple[Float[Tensor, "B D"], list[MambaState]]:
        """Take one more item per user."""
        x: Tensor = self.embedding(items)
        after = []
        for layer, before in zip(self.layers, state, strict=True):
            x, memory = layer.step(x, before)
            after.append(memory)
        return x, after


class Layer(nn.Module):
    """A Mamba block, then a feed-forward network, each followed by LayerNorm."""

    def __init__(self, *, dim: int, d_state: int, d_conv: int, expand: int, dropout: float, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.mamba = MambaBlock(dim=dim, d_state=d_state, d_conv=d_conv, expand=expand)
        self.dropout = Dropout(dropout)
        self.mamba_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.feed_forward = FeedForward(dim=dim, inner_dim=4 * dim, dropout=dropout)
        self.feed_forward_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """The whole history at once."""
        return self._after_mamba(self.mamba(x), x)

    def step(self, x: Float[Tensor, "B D"], state: MambaState) -> tuple[Float[Tensor, "B D"], MambaState]:
        """One position."""
        mixed, state = self.mamba.step(x, state)
        return self._after_mamba(mixed, x), state

    def _after_mamba(self, mixed: Float[Tensor, "*shape D"], x: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        mixed = self.dropout(mixed)
        z = self.mamba_norm(mixed + x if self.residual else mixed)
        y: Tensor = self.feed_forward_norm(self.feed_forward(z) + z)
        return y


class MambaBlock(nn.Module):
    """Short convolution and selective scan over inner channels, gated by a second half of them.

    [a | g] = x W_in                        no biases but where they are written
    u = SiLU(conv(a) + b_conv)              causal, each channel by itself
    [r | B | C] = u W_x                     what the scan does depends on the item
    Delta = softplus(r W_Delta + b_Delta)   of rank ceil(D / 16)
    y = selective scan of u with Delta, A = -exp(a_log), B, C, skip
    out = (y * SiLU(g)) W_out
    """

    def __init__(self, *, dim: int, d_state: int, d_conv: int, expand: int) -> None:
        super().__init__()
        inner, rank = expand * dim, math.ceil(dim / 16)
        self.sizes = (rank, d_state, d_state)  # of r, B and C
        self.into = nn.Linear(dim, 2 * inner, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(inner, d_conv))
        self.conv_bias = nn.Parameter(torch.empty(inner))
        self.select = nn.Linear(inner, sum(self.sizes), bias=False)
        self.step_size = nn.Linear(rank, inner)
        self.a_log = nn.Parameter(torch.empty(inner, d_state))
        self.skip = nn.Parameter(torch.empty(inner))
        self.out = nn.Linear(inner, dim, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Mamba's own initial values: A = -1, -2, …, -S in every channel, and Delta between 0.001 and 0.1."""
        for linear in (self.into, self.select, self.out):
            linear.reset_parameters()
        for taps in (self.conv_weight, self.conv_bias):
            taps.uniform_(-(self.conv_weight.shape[1] ** -0.5), self.conv_weight.shape[1] ** -0.5)
        self.a_log.copy_(torch.arange(1, self.a_log.shape[1] + 1).log().expand_as(self.a_log))
        self.skip.fill_(1.0)
        self.step_size.weight.uniform_(-(self.sizes[0] ** -0.5), self.sizes[0] ** -0.5)
        delta = torch.empty_like(self.step_size.bias).uniform_(math.log(1e-3), math.log(0.1)).exp()
        self.step_size.bias.copy_(delta + torch.log(-torch.expm1(-delta)))  # softplus of this is delta

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """The whole history at once."""
        a, gate = self.into(x).chunk(2, dim=-1)
        u = short_conv(a, self.conv_weight, self.conv_bias, activation="silu")
        y = selective_scan(u, *self._selection(u), self.skip)
        out: Tensor = self.out(y * F.silu(gate))
        return out

    def initial_state(self, batch_size: int) -> MambaState:
        """Zeros: nothing was seen."""
        channels, taps = self.conv_weight.shape
        window = self.conv_weight.new_zeros(batch_size, taps - 1, channels)
        return MambaState(window, initial_scan_state(batch_size, self.a_log))

    def step(self, x: Float[Tensor, "B D"], state: MambaState) -> tuple[Float[Tensor, "B D"], MambaState]:
        """One position."""
        a, gate = self.into(x).chunk(2, dim=-1)
        u, window = short_conv_step(a, self.conv_weight, self.conv_bias, state.window, activation="silu")
        y, scan = selective_scan_step(u, *self._selection(u), self.skip, state.scan)
        return self.out(y * F.silu(gate)), MambaState(window, scan)

    def _selection(self, u: Float[Tensor, "*shape E"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Delta, A, B and C: what the scan forgets, takes in and reads out."""
        r, b, c = self.select(u).split(self.sizes, dim=-1)
        # Decays are exponentials of these two, so they leave half precision here already.
        delta = F.softplus(at_least_float32(self.step_size(r)))
        return delta, -torch.exp(at_least_float32(self.a_log)), b, c
