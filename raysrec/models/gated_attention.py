"""RecGRELA's gated attention: linear attention with rotations and a short convolution beside it, under an output gate.

    G = act(W_g X + b_g)        U = W_i X + b_i        q = W_q U + b_q        k = W_k U + b_k        v = U
    Y = W_o ((LinearAttention(q, k, v) + SiLU(ShortConv(v))) * G) + b_o

What the paper takes away or changes is an argument. Source and departures stand in `recgrela.py`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from raysrec.history import History, last_states
from raysrec.ops.linear_attention import (
    LinearAttentionState,
    bidirectional_linear_attention,
    causal_linear_attention,
    initial_linear_attention_state,
    linear_attention_step,
)
from raysrec.ops.short_conv import short_conv, short_conv_step

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "relu": F.relu, "gelu": F.gelu}
"""What the gate and the MLP may have."""


class BlockState(NamedTuple):
    """What one block remembers of a history: dim²/heads + 4 dim + 1 numbers, however long it is."""

    window: Float[Tensor, "B K-1 D"]
    """The last inputs of the short convolution, oldest first; none without the shortcut."""
    attention: LinearAttentionState
    """The sums of the linear attention."""


class GatedAttention(nn.Module):
    """``W_o ((RELA(q, k, v) + SiLU(ShortConv(v))) * G) + b_o``; with `conv_kernel=0` there is no short convolution."""

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        conv_kernel: int,
        own_values: bool,
        input_gate: bool,
        gate: str,
        rotary: bool,
    ) -> None:
        super().__init__()
        self.activation = ACTIVATIONS.get(gate)
        self.gate = nn.Linear(dim, dim) if self.activation else None
        self.input = nn.Linear(dim, dim) if input_gate else nn.Identity()
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim) if own_values else nn.Identity()
        self.conv_weight: Tensor | None = None
        if conv_kernel:
            bound = conv_kernel**-0.5  # as torch starts a convolution with one input channel per group
            self.conv_weight = nn.Parameter(torch.empty(dim, conv_kernel).uniform_(-bound, bound))
            self.conv_bias = nn.Parameter(torch.empty(dim).uniform_(-bound, bound))
        self.output = nn.Linear(dim, dim)
        self.num_heads, self.rotary = num_heads, rotary

    def forward(self, x: Float[Tensor, "B L D"], seen: Bool[Tensor, "B L"] | None) -> Float[Tensor, "B L D"]:
        """Mixtures of what each position sees."""
        return self._gated(x, self._mixed(x, seen))

    def read(
        self, x: Float[Tensor, "B L D"], seen: Bool[Tensor, "B L"] | None, history: History
    ) -> Float[Tensor, "B D"]:
        """The output at each history's last item only; other positions are computed only as far as it needs them."""
        return self._gated(last_states(x, history), last_states(self._mixed(x, seen), history))

    def _mixed(self, x: Float[Tensor, "B L D"], seen: Bool[Tensor, "B L"] | None) -> Float[Tensor, "B L D"]:
        """Attention and shortcut, without gate and output."""
        query, key, value = self._projections(x)
        how: dict[str, Any] = {"num_heads": self.num_heads, "rotary": self.rotary}
        if seen is None:
            mixed = causal_linear_attention(query, key, value, **how)
        else:
            mixed = bidirectional_linear_attention(query, key, value, seen, **how)
        if self.conv_weight is not None:
            mixed = mixed + short_conv(value, self.conv_weight, self.conv_bias, activation="silu")
        return mixed

    def initial_state(self, batch_size: int) -> BlockState:
        """Nothing seen: zeros, on the parameters' device."""
        like = self.output.weight.new_empty(batch_size, len(self.output.weight))
        taps = 1 if self.conv_weight is None else self.conv_weight.shape[1]
        window = like.new_zeros(batch_size, taps - 1, like.shape[1])
        return BlockState(window, initial_linear_attention_state(like, num_heads=self.num_heads))

    def step(self, x: Float[Tensor, "B D"], state: BlockState) -> tuple[Float[Tensor, "B D"], BlockState]:
        """The mixture at one more position, and the new memory."""
        query, key, value = self._projections(x)
        mixed, attention = linear_attention_step(query, key, value, state.attention, rotary=self.rotary)
        window = state.window
        if self.conv_weight is not None:
            local, window = short_conv_step(value, self.conv_weight, self.conv_bias, window, activation="silu")
            mixed = mixed + local
        return self._gated(x, mixed), BlockState(window, attention)

    def _projections(self, x: Float[Tensor, "*shape D"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values."""
        u = self.input(x)
        return self.query(u), self.key(u), self.value(u)

    def _gated(self, x: Float[Tensor, "*shape D"], mixed: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        if self.gate is not None and self.activation is not None:
            mixed = mixed * self.activation(self.gate(x))
        y: Tensor = self.output(mixed)
        return y
