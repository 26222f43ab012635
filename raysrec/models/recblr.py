"""RecBLR: Mamba's block around a gated diagonal recurrence, and a feed-forward network per layer.

    X = LN(Drop(E[ids]))
    per layer:
        [a | g] = X W_in                                    no bias
        u = SiLU(conv(a) + b_conv)                          causal, each channel by itself
        [r | i] = u W_gates + b_gates
        alpha = exp(-softplus(Lambda) * sigmoid(r))         what of the state stays depends on the item
        h_t = alpha_t * h_{t-1} + sqrt(1 - alpha_t² + 1e-8) * sigmoid(i_t) * u_t        h_0 = 0
        Z = LN(Drop((SiLU(g) * h) W_out) + X)               no bias
        X = LN(FeedForward(Z) + Z)                          SiLU, 4 D inner channels

and the score of item j is X · E_j. There is no final normalisation and no position. The state is one number per inner
channel and the conv's window: 512 per layer at the paper's sizes, a ninth of Mamba's.

Source:
    Liu, Lin, Liu, Wang, Caverlee, "Behavior-Dependent Linear Recurrent Units for Efficient Sequential
    Recommendation", CIKM 2024, arXiv:2406.12580; the authors' code, chengkai-liu/RecBLR at d01e5c9; the recurrence is
    the RG-LRU of De et al., "Griffin", arXiv:2402.19427, 2024, with softplus(Lambda) not scaled by 8.

Departures:
    * The state before the first item is zero. The authors' scan wants a power of two of positions, and they put
      zeros in front, *before* the conv: its bias then drives the state, by an amount that `max_length` decides.
      `pad_to_power_of_two` repeats it.
    * The model learns at every position of a history instead of on one prefix per sample (`train.supervision`).
    * Padding is not among the candidates of the softmax in training.
"""

import math
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from raysrec.models.base import ModelConfig
from raysrec.models.layers import LAYER_NORM_EPS, Dropout, FeedForward, ItemEmbedding, init_weights_
from raysrec.models.recurrent import RecurrentStack
from raysrec.ops.linear_recurrence import linear_recurrence, linear_recurrence_step
from raysrec.ops.precision import at_least_float32
from raysrec.ops.short_conv import short_conv, short_conv_step
from raysrec.schema import Count, Probability

FASTEST, SLOWEST = 0.9, 0.999
"""What of a state stays per item at the start where sigmoid(r) = 1; channels lie between (and at its root, for
sigmoid(r) starts at one half)."""


class RecBLRConfig(ModelConfig):
    """Settings of RecBLR; the feed-forward network has 4 * `dim` inner channels, as in the paper."""

    name: Literal["recblr"] = "recblr"
    num_layers: Count = 2
    """Layers, one on the other; all have residuals, a single one too."""
    d_conv: Count = 4
    """Positions that the short convolution sees, the current one included."""
    expand: Count = 2
    """Inner channels of the block (E) per channel of a state."""
    dropout: Probability = 0.2
    """Dropout after the item embedding and inside the layers."""
    pad_to_power_of_two: bool = False
    """Let every history begin with the zeros that fill `max_length` up to a power of two, as in the authors' code;
    what they leave in the state is no one's history. Off: the state begins at zero."""


class RecBLRState(NamedTuple):
    """What one block remembers of a history, however long it is."""

    window: Float[Tensor, "B K-1 E"]
    """The last inputs of the short convolution, oldest first."""
    memory: Float[Tensor, "B E"]
    """The state of the recurrence."""


class RecBLR(RecurrentStack):
    """Item embedding and layers of gated recurrence and feed-forward; causal and recurrent."""

    Config: ClassVar[type[ModelConfig]] = RecBLRConfig

    def __init__(self, config: RecBLRConfig, num_items: int) -> None:
        super().__init__()
        zeros_before = _to_power_of_two(config.max_length) if config.pad_to_power_of_two else 0
        self.embedding = ItemEmbedding(num_items=num_items, dim=config.dim, dropout=config.dropout)
        self.layers = nn.ModuleList(  # type: ignore[assignment]
            Layer(
                dim=config.dim,
                d_conv=config.d_conv,
                expand=config.expand,
                dropout=config.dropout,
                zeros_before=zeros_before,
            )
            for _ in range(config.num_layers)
        )
        init_weights_(self)


class Layer(nn.Module):
    """A gated recurrence, then a feed-forward network, each with a residual and followed by LayerNorm."""

    def __init__(self, *, dim: int, d_conv: int, expand: int, dropout: float, zeros_before: int) -> None:
        super().__init__()
        self.block = GatedRecurrence(dim=dim, d_conv=d_conv, expand=expand, zeros_before=zeros_before)
        self.dropout = Dropout(dropout)
        self.block_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.feed_forward = FeedForward(dim=dim, inner_dim=4 * dim, dropout=dropout, activation=F.silu)
        self.feed_forward_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """The whole history at once."""
        return self._after_block(self.block(x), x)

    def initial_state(self, batch_size: int) -> RecBLRState:
        """Nothing seen."""
        return self.block.initial_state(batch_size)

    def step(self, x: Float[Tensor, "B D"], state: RecBLRState) -> tuple[Float[Tensor, "B D"], RecBLRState]:
        """One position."""
        mixed, state = self.block.step(x, state)
        return self._after_block(mixed, x), state

    def _after_block(self, mixed: Float[Tensor, "*shape D"], x: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        z = self.block_norm(self.dropout(mixed) + x)
        y: Tensor = self.feed_forward_norm(self.feed_forward(z) + z)
        return y


class GatedRecurrence(nn.Module):
    """Short convolution and a recurrence whose decay and input depend on the item, gated by a second half of channels.

    Args:
        dim: Channels outside.
        d_conv: Positions that the convolution sees.
        expand: Inner channels per channel outside.
        zeros_before: Positions of nothing before the first; see `RecBLRConfig.pad_to_power_of_two`.
    """

    def __init__(self, *, dim: int, d_conv: int, expand: int, zeros_before: int) -> None:
        super().__init__()
        inner, bound = expand * dim, d_conv**-0.5
        self.zeros_before = zeros_before
        self.into = nn.Linear(dim, 2 * inner, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(inner, d_conv).uniform_(-bound, bound))
        self.conv_bias = nn.Parameter(torch.empty(inner).uniform_(-bound, bound))
        self.gates = nn.Linear(inner, 2 * inner)
        # softplus of this is -log of what stays
        fastest, slowest = (math.log(math.expm1(-math.log(stays))) for stays in (FASTEST, SLOWEST))
        self.decay = nn.Parameter(torch.linspace(fastest, slowest, inner))  # Lambda
        self.out = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """The whole history at once."""
        a, gate = self.into(x).chunk(2, dim=-1)
        a = F.pad(a, (0, 0, self.zeros_before, 0))
        u = short_conv(a, self.conv_weight, self.conv_bias, activation="silu")
        h = linear_recurrence(*self._stays_and_enters(u))[:, self.zeros_before :]
        return self._read_out(h, gate)

    @torch.no_grad()
    def initial_state(self, batch_size: int) -> RecBLRState:
        """What the positions before the first leave; zeros if there are none."""
        channels, taps = self.conv_weight.shape
        window = self.conv_weight.new_zeros(batch_size, taps - 1, channels)
        memory = window.new_zeros(batch_size, channels, dtype=torch.promote_types(window.dtype, torch.float32))
        nothing = self.conv_bias.new_zeros(batch_size, channels)
        for _ in range(self.zeros_before):
            memory, window = self._advance(nothing, RecBLRState(window, memory))
        return RecBLRState(window, memory)

    def step(self, x: Float[Tensor, "B D"], state: RecBLRState) -> tuple[Float[Tensor, "B D"], RecBLRState]:
        """One position."""
        a, gate = self.into(x).chunk(2, dim=-1)
        memory, window = self._advance(a, state)
        return self._read_out(memory, gate), RecBLRState(window, memory)

    def _advance(self, a: Float[Tensor, "B E"], state: RecBLRState) -> tuple[Tensor, Tensor]:
        """The memory and the window after one more input."""
        u, window = short_conv_step(a, self.conv_weight, self.conv_bias, state.window, activation="silu")
        return linear_recurrence_step(*self._stays_and_enters(u), state.memory), window

    def _stays_and_enters(self, u: Float[Tensor, "*shape E"]) -> tuple[Tensor, Tensor]:
        """Alpha, and what is added to the state."""
        # Rounded to half precision, a decay of 0.999 is 1: nothing would ever be forgotten.
        recurrence, entrance = at_least_float32(self.gates(u)).sigmoid().chunk(2, dim=-1)
        exponent = -F.softplus(at_least_float32(self.decay)) * recurrence
        # The same as 1 - alpha², without subtracting two numbers that are almost one.
        scale = torch.sqrt(1e-8 - torch.expm1(2 * exponent))
        return exponent.exp(), scale * entrance * u

    def _read_out(self, h: Float[Tensor, "*shape E"], gate: Float[Tensor, "*shape E"]) -> Float[Tensor, "*shape D"]:
        y: Tensor = self.out(F.silu(gate) * h.to(gate.dtype))
        return y


def _to_power_of_two(length: int) -> int:
    """How much the next power of two is above a length."""
    return (1 << (length - 1).bit_length()) - length
