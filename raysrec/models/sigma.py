"""SIGMA: one Mamba block run over the history and over a partly flipped copy, both gated, beside a GRU.

    X = LN(Drop(E[ids]))
    per layer, with X~ = X whose older items stand in reverse order and whose newest stay where they are:
        M = Mamba(X)                       M~ = Mamba(X~)                      the same weights
        s = Drop(W_a SiLU(a) + b_a + W_s sigmoid(a) + b_s)                     a = X + W_1 X + b_1
        s~ = Drop(W_a SiLU(a~) + b_a + W_s sigmoid(s) + b_s)                   a~ = X~ + W_2 X~ + b_2
        R = GRU(Conv(X))                                                       three positions, the next one included
        Y = W_o (w_3 (M * s + M) + w_2 (M~ * s~ + M~) + w_1 R) + b_o           w begins as (.1, .1, .8)
        Z = LN(Drop(Y))          with one layer;  LN(Drop(Y) + X) with more
        X = LN(FeedForward(Z) + Z)

and the score of item j is X · E_j. The flip and the convolution see what follows a position, so the model learns from
one prefix per sample (`train.supervision=last_position`) and has no recurrent form.

Source:
    Liu, Liu, Wang et al., "SIGMA: Selective Gated Mamba for Sequential Recommendation", arXiv:2408.11451, 2024; the
    authors' code, ziwliu-cityu/SIMGA at 018d73a; the block is Gu and Dao, "Mamba", 2023.

Departures:
    * `masked` flips all real items but the newest `keep`, and sets padding to zero before the convolution. The
      authors' code, which `unmasked` repeats, flips the first 45 slots whatever the length of a history (all but 5 of
      their 50), so that in a short one the flipped copy ends in padding, and the convolution sees padding.
    * Padding is not among the candidates of the softmax in training, as it is in the authors' (`loss.padding_class`).
    * Kept as the code has them: M~ is not flipped back before the sum (`align` does that), the second gate takes
      sigmoid(s) where sigmoid(a~) was probably meant, and w is used as it is (its softmax is computed and dropped).
    * `mamba_init=library` gives Mamba's own initial values, which the authors' initialisation overwrites (as in
      Mamba4Rec).
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import model_validator
from torch import Tensor, nn

from raysrec.history import History, last_states
from raysrec.models.base import ModelConfig, SequenceModel
from raysrec.models.layers import (
    LAYER_NORM_EPS,
    Dropout,
    FeedForward,
    ItemEmbedding,
    flip_first,
)
from raysrec.models.mamba_block import Init02MambaModelConfig, MambaBlock, init_mamba_model_
from raysrec.schema import Count, CountOrZero, Probability


class SIGMAConfig(Init02MambaModelConfig):
    """Settings of SIGMA; the feed-forward network has 4 * `dim` inner channels, as in the paper."""

    name: Literal["sigma"] = "sigma"
    form: Literal["masked", "unmasked"] = "masked"
    """What flip and convolution see: real items only, or padding up to `max_length` too (the authors' code)."""
    keep: CountOrZero = 5
    """Newest items that the masked form's flip leaves in place."""
    reversed_slots: Count = 45
    """Slots that the unmasked form's flip reverses, padded or not."""
    align: bool = False
    """Flip the second Mamba's output back, so that it stands at its items' positions again."""
    num_layers: Count = 1
    """Layers, one on the other; with a single one there is no residual around its mixture, as in the authors' code."""
    dropout: Probability = 0.2
    """Dropout after the item embedding and inside the layers."""
    drop_gate: Probability = 0.2
    """Dropout of the gates s and s~."""

    @model_validator(mode="after")
    def _each_form_has_its_flip(self) -> "SIGMAConfig":
        unused = {"keep": self.form == "unmasked", "reversed_slots": self.form == "masked"}
        self.refuse_unused("model", unused, f"model.form={self.form}")
        return self


class SIGMA(SequenceModel):
    """Item embedding and layers of gated mixtures and feed-forward."""

    Config: ClassVar[type[ModelConfig]] = SIGMAConfig

    def __init__(self, config: SIGMAConfig, num_items: int) -> None:
        super().__init__()
        self.form, self.keep = config.form, config.keep
        self.max_length, self.reversed_slots = config.max_length, config.reversed_slots
        self.embedding = ItemEmbedding(num_items=num_items, dim=config.dim, dropout=config.dropout)
        self.layers: list[Layer] = nn.ModuleList(  # type: ignore[assignment]
            Layer(
                GatedMixture(MambaBlock.of(config), dim=config.dim, drop_gate=config.drop_gate, align=config.align),
                dim=config.dim,
                dropout=config.dropout,
                residual=config.num_layers > 1,
            )
            for _ in range(config.num_layers)
        )
        init_mamba_model_(self, config)

    @property
    def causal(self) -> bool:
        """The flip and the convolution see what follows."""
        return False

    @property
    def padding_leaks(self) -> bool:
        """Do padded positions change real states? They do in the form that repeats the authors' code."""
        return self.form == "unmasked"

    def encode(self, history: History) -> Float[Tensor, "B L D"]:
        """One state per position; what stands at padded positions means nothing."""
        seen, lengths, flipped = self._view(history)
        x: Tensor = self.embedding(seen.items)
        for layer in self.layers:
            x = layer(x, lengths, flipped)
        return x[:, : history.items.shape[1]]

    def read(self, history: History) -> Float[Tensor, "B D"]:
        """The state after each history's last item; the last layer computes no other past its scans."""
        seen, lengths, flipped = self._view(history)
        x: Tensor = self.embedding(seen.items)
        for layer in self.layers[:-1]:
            x = layer(x, lengths, flipped)
        return self.layers[-1].read(x, lengths, flipped, history)

    def item_vectors(self) -> Float[Tensor, "V D"]:
        """The item embedding's table."""
        return self.embedding.table.weight

    def _view(self, history: History) -> tuple[History, Int[Tensor, " B"], Int[Tensor, " B"]]:
        """What the layers see of a history, how many of its positions, and how many of them the flip reverses."""
        if self.form == "masked":
            return history, history.lengths, (history.lengths - self.keep).clamp(min=0)
        length = max(self.max_length, history.items.shape[1])
        every = torch.full_like(history.lengths, length)
        return history.padded(length), every, every.clamp(max=self.reversed_slots)


class Layer(nn.Module):
    """A gated mixture, then a feed-forward network, each followed by LayerNorm."""

    def __init__(self, mixture: "GatedMixture", *, dim: int, dropout: float, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.mixture = mixture
        self.dropout = Dropout(dropout)
        self.mixture_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.feed_forward = FeedForward(dim=dim, inner_dim=4 * dim, dropout=dropout)
        self.feed_forward_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)

    def forward(
        self, x: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"], flipped: Int[Tensor, " B"]
    ) -> Float[Tensor, "B L D"]:
        """The layer's output; the first `lengths` positions of a row are seen, and `flipped` of them reversed."""
        return self._after_mixture(x, self.mixture(x, lengths, flipped))

    def read(
        self, x: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"], flipped: Int[Tensor, " B"], history: History
    ) -> Float[Tensor, "B D"]:
        """The output at each history's last item only; other positions are computed only as far as it needs them."""
        return self._after_mixture(last_states(x, history), self.mixture.read(x, lengths, flipped, history))

    def _after_mixture(
        self, x: Float[Tensor, "*shape D"], mixed: Float[Tensor, "*shape D"]
    ) -> Float[Tensor, "*shape D"]:
        mixed = self.dropout(mixed)
        z: Tensor = self.mixture_norm(mixed + x if self.residual else mixed)
        y: Tensor = self.feed_forward_norm(self.feed_forward(z) + z)
        return y


class GatedMixture(nn.Module):
    """``W_o (w_3 (M * s + M) + w_2 (M~ * s~ + M~) + w_1 R) + b_o``, as at the top of this file."""

    def __init__(self, mamba: MambaBlock, *, dim: int, drop_gate: float, align: bool) -> None:
        super().__init__()
        self.align = align
        self.mamba = mamba
        self.straight = nn.Linear(dim, dim)  # W_1
        self.turned = nn.Linear(dim, dim)  # W_2
        self.gate_silu = nn.Linear(dim, dim)  # W_a
        self.gate_sigmoid = nn.Linear(dim, dim)  # W_s
        self.dropout = Dropout(drop_gate)
        self.conv = nn.Conv1d(dim, dim, kernel_size=3, padding=1)
        self.gru = nn.GRU(dim, dim, bias=False, batch_first=True)
        self.shares = nn.Parameter(torch.tensor([0.1, 0.1, 0.8]))  # of R, M~ and M
        self.output = nn.Linear(dim, dim)

    def forward(
        self, x: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"], flipped: Int[Tensor, " B"]
    ) -> Float[Tensor, "B L D"]:
        """The mixture; the first `lengths` positions of a row are seen, and `flipped` of them reversed."""
        turned = flip_first(x, flipped)
        mixed, mixed_turned = self.mamba(torch.cat([x, turned])).chunk(2)
        if self.align:
            mixed_turned = flip_first(mixed_turned, flipped)
        return self._mix(x, turned, mixed, mixed_turned, self._recent(x, lengths))

    def read(
        self, x: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"], flipped: Int[Tensor, " B"], history: History
    ) -> Float[Tensor, "B D"]:
        """The output at each history's last item only; other positions are computed only as far as it needs them."""
        if self.align:  # what stands there after the second flip may come from elsewhere
            return last_states(self(x, lengths, flipped), history)
        turned = flip_first(x, flipped)
        mixed, mixed_turned = (self.mamba.read(view, history) for view in (x, turned))
        x, turned, recent = (last_states(part, history) for part in (x, turned, self._recent(x, lengths)))
        return self._mix(x, turned, mixed, mixed_turned, recent)

    def _mix(
        self,
        x: Float[Tensor, "*shape D"],
        turned: Float[Tensor, "*shape D"],
        mixed: Float[Tensor, "*shape D"],
        mixed_turned: Float[Tensor, "*shape D"],
        recent: Float[Tensor, "*shape D"],
    ) -> Float[Tensor, "*shape D"]:
        """The gated sum of both scans and the GRU's states, position by position."""
        gate = self._gate(a := x + self.straight(x), a)
        gate_turned = self._gate(turned + self.turned(turned), gate)
        of_gru, of_turned, of_straight = self.shares
        both = of_straight * (mixed * gate + mixed) + of_turned * (mixed_turned * gate_turned + mixed_turned)
        y: Tensor = self.output(both + of_gru * recent)
        return y

    def _gate(self, a: Float[Tensor, "*shape D"], b: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        gate: Tensor = self.dropout(self.gate_silu(F.silu(a)) + self.gate_sigmoid(b.sigmoid()))
        return gate

    def _recent(self, x: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"]) -> Float[Tensor, "B L D"]:
        """The GRU's states over convolved positions."""
        real = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        convolved = self.conv((x * real[..., None]).mT).mT
        states: Tensor = self.gru(convolved)[0]
        return states
