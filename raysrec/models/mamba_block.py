"""The Mamba block, as four models use it: a short convolution, a selective scan, and a gate; causal and recurrent.

Source:
    Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, as in state-spaces/mamba at
    e9594ce.

Departures:
    * The conv's weights, A and the step sizes' bias are named after what they are, not as in the library, and the
      taps have no middle dimension of size one.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from raysrec.history import History, last_states
from raysrec.models.base import ModelConfig
from raysrec.models.layers import init_weights_
from raysrec.ops.precision import at_least_float32
from raysrec.ops.selective_scan import initial_scan_state, selective_scan, selective_scan_step
from raysrec.ops.short_conv import short_conv, short_conv_step
from raysrec.schema import Count


class MambaModelConfig(ModelConfig):
    """Settings of a model that has Mamba blocks."""

    d_state: Count = 32
    """Numbers that each inner channel of a Mamba block remembers of a history (S)."""
    d_conv: Count = 4
    """Positions that a Mamba block's short convolution sees, the current one included."""
    expand: Count = 2
    """Inner channels of a Mamba block (E) per channel of a state."""


class Init02MambaModelConfig(MambaModelConfig):
    """Settings of a model whose authors initialise all of it alike, the linear layers inside its Mamba blocks too."""

    mamba_init: Literal["init02", "library"] = "init02"
    """Where the Mamba blocks start. `init02`, as in the authors' code: linear weights N(0, 0.02²) and biases 0, so
    every step size Delta is about 0.69 and the slowest memory halves with each item. `library`, Mamba's own: Delta is
    spread log-uniformly over 0.001 to 0.1, and memories begin tens to a thousand items long."""


class MambaState(NamedTuple):
    """What one Mamba block remembers of a history, however long it is."""

    window: Float[Tensor, "B K-1 E"]
    """The last inputs of the short convolution, oldest first."""
    scan: Float[Tensor, "B E S"]
    """The state of the selective scan."""


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

    @classmethod
    def of(cls, config: MambaModelConfig) -> "MambaBlock":
        """A block of a model's sizes."""
        return cls(dim=config.dim, d_state=config.d_state, d_conv=config.d_conv, expand=config.expand)

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
        y, gate = self._scan(x)
        out: Tensor = self.out(y * F.silu(gate))
        return out

    def read(self, x: Float[Tensor, "B L D"], history: History) -> Float[Tensor, "B D"]:
        """The output at each history's last item only; other positions are computed only as far as it needs them."""
        y, gate = (last_states(part, history) for part in self._scan(x))
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

    def _scan(self, x: Float[Tensor, "B L D"]) -> tuple[Float[Tensor, "B L E"], Float[Tensor, "B L E"]]:
        """What the scan reads out, and what gates it."""
        a, gate = self.into(x).chunk(2, dim=-1)
        u = short_conv(a, self.conv_weight, self.conv_bias, activation="silu")
        return selective_scan(u, *self._selection(u), self.skip), gate

    def _selection(self, u: Float[Tensor, "*shape E"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Delta, A, B and C: what the scan forgets, takes in and reads out."""
        r, b, c = self.select(u).split(self.sizes, dim=-1)
        # Decays are exponentials of these two, so they leave half precision here already.
        delta = F.softplus(at_least_float32(self.step_size(r)))
        return delta, -torch.exp(at_least_float32(self.a_log)), b, c


def init_mamba_model_(model: nn.Module, config: Init02MambaModelConfig) -> None:
    """Give a whole model the initial values of `init_weights_`, and its Mamba blocks their own if those are wanted."""
    init_weights_(model)
    if config.mamba_init == "library":
        for part in model.modules():
            if isinstance(part, MambaBlock):
                part.reset_parameters()
