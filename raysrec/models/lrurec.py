"""LRURec: a diagonal recurrence of complex numbers and a feed-forward network per layer.

    X = LN(Drop(E[ids]))
    per layer:
        h_t = lambda * h_{t-1} + gamma * (B x_t + b)        h_0 = 0; E = 2 D complex channels
        Y = LN(Drop(Re(C h_t + c)) + x_t)
        X = LN(FeedForward(Y) + Y)                          GELU, 4 D inner channels

with lambda = exp(-exp(nu) + i exp(theta)) and gamma = exp(g) learned per channel: magnitudes stay below one, so every
channel is a fading, turning memory that no item changes. The score of item j is X · E_j + bias_j; LN adds 1e-5.

Complex numbers are stored as what they are made of: a complex matrix is a real one with twice the rows (B) or columns
(C), real and imaginary parts side by side. So safetensors, optimizers, all-reduces and autocast need not know of them.

Source:
    Yue, Wang, He, Zeng, McAuley, Wang, "Linear Recurrent Units for Sequential Recommendation", WSDM 2024,
    arXiv:2310.02367; the authors' code, yueqirex/LRURec at e02a559; the unit is Orvieto et al., "Resurrecting
    Recurrent Neural Networks for Long Sequences", ICML 2023, whose ring initialisation this is.

Departures:
    * Padding stands on the right, where no state sees it; the authors pad on the left, to a power of two, and mask
      the padded positions out of the recurrence. The states are the same.
    * The columns of C that multiply imaginary parts have the opposite sign (their initial values are symmetric), and
      the imaginary part of c, which reaches nothing, is left out.
    * The authors' training also predicts a history's first item, from the padding before it, and ranks without the
      items already seen; here that is not part of the model.
"""

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor, nn

from raysrec.models.base import ModelConfig
from raysrec.models.layers import Dropout, FeedForward, ItemEmbedding
from raysrec.models.recurrent import RecurrentStack
from raysrec.ops.linear_recurrence import linear_recurrence, linear_recurrence_step
from raysrec.ops.precision import at_least_float32
from raysrec.schema import Count, Probability

NORM_EPS = 1e-5
"""torch's own value, and so the authors'."""

RING = (0.8, 0.99)
"""Between these magnitudes lambda starts, spread evenly over the ring's area: memories of 4 to 100 items."""


class LRURecConfig(ModelConfig):
    """Settings of LRURec; the feed-forward network has 4 * `dim` inner channels, as in the paper."""

    name: Literal["lrurec"] = "lrurec"
    num_layers: Count = 2
    """Layers, one on the other."""
    expand: Count = 2
    """Complex channels of the recurrence (E) per channel of a state."""
    dropout: Probability = 0.2
    """Dropout after the item embedding and inside the layers."""


class LRURec(RecurrentStack):
    """Item embedding, layers of linear recurrent unit and feed-forward, and a bias per item; causal and recurrent."""

    Config: ClassVar[type[ModelConfig]] = LRURecConfig

    def __init__(self, config: LRURecConfig, num_items: int) -> None:
        super().__init__()
        self.embedding = ItemEmbedding(num_items=num_items, dim=config.dim, dropout=config.dropout, norm_eps=NORM_EPS)
        self.layers = nn.ModuleList(  # type: ignore[assignment]
            Layer(dim=config.dim, expand=config.expand, dropout=config.dropout) for _ in range(config.num_layers)
        )
        self.bias = nn.Parameter(torch.empty(num_items + 1))
        _init_truncated_(self)

    def item_bias(self) -> Float[Tensor, " V"]:
        """How likely an item is whatever the history."""
        return self.bias


class Layer(nn.Module):
    """A linear recurrent unit, then a feed-forward network, each with a residual and followed by LayerNorm."""

    def __init__(self, *, dim: int, expand: int, dropout: float) -> None:
        super().__init__()
        self.unit = LinearRecurrentUnit(dim=dim, expand=expand)
        self.dropout = Dropout(dropout)
        self.unit_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.feed_forward = FeedForward(dim=dim, inner_dim=4 * dim, dropout=dropout)
        self.feed_forward_norm = nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """The whole history at once."""
        return self._after_unit(self.unit(x), x)

    def initial_state(self, batch_size: int) -> Complex[Tensor, "B E"]:
        """Nothing seen."""
        return self.unit.initial_state(batch_size)

    def step(
        self, x: Float[Tensor, "B D"], state: Complex[Tensor, "B E"]
    ) -> tuple[Float[Tensor, "B D"], Complex[Tensor, "B E"]]:
        """One position."""
        y, state = self.unit.step(x, state)
        return self._after_unit(y, x), state

    def _after_unit(self, y: Float[Tensor, "*shape D"], x: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        y = self.unit_norm(self.dropout(y) + x)
        z: Tensor = self.feed_forward_norm(self.feed_forward(y) + y)
        return z


class LinearRecurrentUnit(nn.Module):
    """``Re(C h_t + c)`` with ``h_t = lambda * h_{t-1} + gamma * (B x_t + b)``."""

    def __init__(self, *, dim: int, expand: int) -> None:
        super().__init__()
        channels = expand * dim
        self.into = nn.Linear(dim, 2 * channels)  # B and b: real and imaginary part of each channel in turn
        self.out = nn.Linear(2 * channels, dim)  # C with the imaginary columns negated, and the real part of c
        self.decay_log = nn.Parameter(torch.empty(channels))  # nu
        self.angle_log = nn.Parameter(torch.empty(channels))  # theta
        self.gain_log = nn.Parameter(torch.empty(channels))  # g
        self.reset_poles()

    @torch.no_grad()
    def reset_poles(self) -> None:
        """Lambda evenly over the area of a ring, gamma such that a channel's variance is that of what enters."""
        inner, outer = RING
        squared = torch.empty_like(self.decay_log).uniform_(inner**2, outer**2)
        self.decay_log.copy_((-0.5 * squared.log()).log())
        # Not from 0, whose logarithm does not exist.
        self.angle_log.uniform_(1e-6, 1.0).mul_(2 * math.pi).log_()
        self.gain_log.copy_(0.5 * torch.log1p(-squared))

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """The whole history at once."""
        return self._read_out(linear_recurrence(self.poles(), self._take_in(x)), x)

    def initial_state(self, batch_size: int) -> Complex[Tensor, "B E"]:
        """Zeros: nothing was seen."""
        return self.poles().new_zeros(batch_size, len(self.decay_log))

    def step(
        self, x: Float[Tensor, "B D"], state: Complex[Tensor, "B E"]
    ) -> tuple[Float[Tensor, "B D"], Complex[Tensor, "B E"]]:
        """One position."""
        state = linear_recurrence_step(self.poles(), self._take_in(x), state)
        return self._read_out(state, x), state

    def poles(self) -> Complex[Tensor, " E"]:
        """Lambda: what a step leaves of each channel, and how far it turns it."""
        decay, angle = at_least_float32(self.decay_log), at_least_float32(self.angle_log)
        return torch.polar(torch.exp(-decay.exp()), angle.exp())

    def _take_in(self, x: Float[Tensor, "*shape D"]) -> Complex[Tensor, "*shape E"]:
        # Times the parameters, not times every position; each gain is for two rows, real and imaginary.
        gain = at_least_float32(self.gain_log).exp().repeat_interleave(2)
        weight, bias = self.into.weight * gain[:, None], self.into.bias * gain
        values = at_least_float32(F.linear(x, weight.to(x.dtype), bias.to(x.dtype)))
        return torch.view_as_complex(values.view(*x.shape[:-1], -1, 2))

    def _read_out(self, h: Complex[Tensor, "*shape E"], x: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        y: Tensor = self.out(torch.view_as_real(h).flatten(-2).to(x.dtype))
        return y


@torch.no_grad()
def _init_truncated_(model: LRURec) -> None:
    """Everything but norms and poles from N(0, 0.02²), cut off at two deviations: biases and padding's row too."""
    poles = ("decay_log", "angle_log", "gain_log")
    for name, parameter in model.named_parameters():
        if "norm" not in name and not name.endswith(poles):
            nn.init.trunc_normal_(parameter, std=0.02, a=-0.04, b=0.04)
