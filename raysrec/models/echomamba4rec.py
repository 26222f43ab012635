"""EchoMamba4Rec: a filter in the frequency domain, Mamba in both directions, and a gated linear unit.

    X = LN(Drop(E[ids]))
    per layer:
        X = LN(Drop(iFFT(FFT(X) * W)) + X)                          along time; W complex, per frequency and channel
        as many times as there are layers:
            forward = LN(Drop(Mamba(X)) + X)
            backward = LN(Drop(flip(Mamba'(flip(X)))) + X)
            X = forward + backward
        X = LN(Drop(W_2 (value * sigmoid(gate)) + b_2 + X))         [value | gate] = W_1 X + b_1

and the score of item j is X · E_j. `num_layers` counts both loops, as in the authors' code: two layers hold four pairs
of Mamba blocks. Both the filter and the backward blocks see what follows a position, so the model learns from one
prefix per sample (`train.supervision=last_position`) and has no recurrent form.

What is read is the state after the last item, where the backward block of the last pair has taken a single item: its
decays and all taps of its convolution but the last get no gradient there, and stay as they began. With one layer that
is the only backward block, so nothing of the history but its last item is read backwards.

The filter has a weight per frequency of a history of exactly `max_length` positions: shorter ones are continued with
zeros, and longer ones are refused.

Source:
    Wang, He, Zhu, "EchoMamba4Rec: Harmonizing Bidirectional State Space Models with Spectral Filtering for Advanced
    Sequential Recommendation", arXiv:2406.02638, 2024; the authors' code, wyd0042/EchoMamba4Rec at 6916872; the block
    is Gu and Dao, "Mamba", 2023.

Departures:
    * `masked` sets padding to zero before each filter and flips the real positions of a history only. In the authors'
      code, which `unmasked` repeats, padding takes part in the transform, and the backward blocks scan all of it before
      the first item: the state that is read has seen padding and one item.
    * Padding is not among the candidates of the softmax in training, as it is in the authors' (`loss.padding_class`).
    * The authors build an attention block in each layer and never call it (125,184 parameters with two layers); it is
      left out.
    * `mamba_init=library` gives Mamba's own initial values, which the authors' initialisation overwrites (as in
      Mamba4Rec).
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from raysrec.history import History, last_states
from raysrec.models.base import ModelConfig, SequenceModel
from raysrec.models.layers import LAYER_NORM_EPS, Dropout, ItemEmbedding, flip_first
from raysrec.models.mamba_block import Init02MambaModelConfig, MambaBlock, init_mamba_model_
from raysrec.schema import Count, Probability


class EchoMamba4RecConfig(Init02MambaModelConfig):
    """Settings of EchoMamba4Rec."""

    name: Literal["echomamba4rec"] = "echomamba4rec"
    form: Literal["masked", "unmasked"] = "masked"
    """What filter and backward blocks see: real positions, or padding up to `max_length` too (the authors' code)."""
    num_layers: Count = 1
    """Layers, one on the other, and pairs of Mamba blocks in each."""
    dropout: Probability = 0.2
    """Dropout after the item embedding and inside the layers."""


class EchoMamba4Rec(SequenceModel):
    """Item embedding and layers of filter, Mamba in both directions, and gated linear unit."""

    Config: ClassVar[type[ModelConfig]] = EchoMamba4RecConfig

    def __init__(self, config: EchoMamba4RecConfig, num_items: int) -> None:
        super().__init__()
        self.form, self.max_length = config.form, config.max_length
        self.embedding = ItemEmbedding(num_items=num_items, dim=config.dim, dropout=config.dropout)
        self.layers: list[Layer] = nn.ModuleList(  # type: ignore[assignment]
            Layer(
                [
                    MambaPair(MambaBlock.of(config), MambaBlock.of(config), dim=config.dim, dropout=config.dropout)
                    for _ in range(config.num_layers)
                ],
                dim=config.dim,
                max_length=config.max_length,
                dropout=config.dropout,
            )
            for _ in range(config.num_layers)
        )
        init_mamba_model_(self, config)

    @property
    def causal(self) -> bool:
        """The filter and the backward blocks see what follows."""
        return False

    @property
    def padding_leaks(self) -> bool:
        """Do padded positions change real states? They do in the form that repeats the authors' code."""
        return self.form == "unmasked"

    def encode(self, history: History) -> Float[Tensor, "B L D"]:
        """One state per position; what stands at padded positions means nothing.

        Raises:
            ValueError: The history is longer than `max_length`.
        """
        items, lengths = history.items, history.lengths
        if self.form == "unmasked":
            items = history.padded(self.max_length).items
            lengths = torch.full_like(lengths, self.max_length)
        x: Tensor = self.embedding(items)
        for layer in self.layers:
            x = layer(x, lengths)
        return x[:, : history.items.shape[1]]

    def read(self, history: History) -> Float[Tensor, "B D"]:
        """The state after each history's last item; of the masked form's last layer, little else is computed.

        Raises:
            ValueError: The history is longer than `max_length`.
        """
        if self.form == "unmasked":  # padding comes before the last item on the way back
            return last_states(self.encode(history), history)
        x: Tensor = self.embedding(history.items)
        for layer in self.layers[:-1]:
            x = layer(x, history.lengths)
        return self.layers[-1].read(x, history)

    def item_vectors(self) -> Float[Tensor, "V D"]:
        """The item embedding's table."""
        return self.embedding.table.weight


class Layer(nn.Module):
    """A filter, pairs of Mamba blocks, and a gated linear unit."""

    def __init__(self, pairs: "list[MambaPair]", *, dim: int, max_length: int, dropout: float) -> None:
        super().__init__()
        self.filter = Filter(dim=dim, max_length=max_length, dropout=dropout)
        self.pairs: list[MambaPair] = nn.ModuleList(pairs)  # type: ignore[assignment]
        self.gated = GatedLinearUnit(dim=dim, dropout=dropout)

    def forward(self, x: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"]) -> Float[Tensor, "B L D"]:
        """The layer's output; each position sees the first `lengths` of its row."""
        x = self.filter(x, lengths)
        for pair in self.pairs:
            x = pair(x, lengths)
        y: Tensor = self.gated(x)
        return y

    def read(self, x: Float[Tensor, "B L D"], history: History) -> Float[Tensor, "B D"]:
        """The output at each history's last item only; other positions are computed only as far as it needs them."""
        x = self.filter(x, history.lengths)
        for pair in self.pairs[:-1]:
            x = pair(x, history.lengths)
        y: Tensor = self.gated(self.pairs[-1].read(x, history))
        return y


class Filter(nn.Module):
    """A circular convolution over `max_length` positions, by its spectrum: ``LN(Drop(iFFT(FFT(X) * W)) + X)``.

    The imaginary parts of W at frequency 0 and, for an even `max_length`, at the highest one change nothing.
    """

    def __init__(self, *, dim: int, max_length: int, dropout: float) -> None:
        super().__init__()
        self.max_length = max_length
        # Real and imaginary parts side by side, for neither bfloat16 nor safetensors knows complex numbers.
        self.spectrum = nn.Parameter(0.02 * torch.randn(max_length // 2 + 1, dim, 2))
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)

    def forward(self, x: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"]) -> Float[Tensor, "B L D"]:
        """The filtered history; what lies beyond `lengths` counts as zero.

        Raises:
            ValueError: The history is longer than `max_length`.
        """
        length = x.shape[1]
        if length > self.max_length:
            raise ValueError(
                f"a history of {length} positions does not fit the filter of model.max_length={self.max_length}; "
                "cut it to its newest items, or train with a larger model.max_length"
            )
        real = torch.arange(length, device=x.device) < lengths[:, None]
        with torch.autocast(x.device.type, enabled=False):
            wide = torch.promote_types(x.dtype, torch.float32)
            spectrum = torch.view_as_complex(self.spectrum.to(wide))
            seen = torch.fft.rfft(x.to(wide) * real[..., None], n=self.max_length, dim=1, norm="ortho")
            filtered = torch.fft.irfft(seen * spectrum, n=self.max_length, dim=1, norm="ortho")
        y: Tensor = self.norm(self.dropout(filtered[:, :length].to(x.dtype)) + x)
        return y


class MambaPair(nn.Module):
    """A Mamba block from the first item to the last and one from the last to the first, each with residual and LN."""

    def __init__(self, forwards: MambaBlock, backwards: MambaBlock, *, dim: int, dropout: float) -> None:
        super().__init__()
        self.forwards = forwards
        self.forwards_norm = nn.LayerNorm(dim)
        self.backwards = backwards
        self.backwards_norm = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"]) -> Float[Tensor, "B L D"]:
        """The sum of both; the second begins with the last of a row's first `lengths` positions."""
        back = flip_first(self.backwards(flip_first(x, lengths)), lengths)
        return self._sum(x, self.forwards(x), back)

    def read(self, x: Float[Tensor, "B L D"], history: History) -> Float[Tensor, "B D"]:
        """The same after each history's last item only, which is the first that the second block takes."""
        last = last_states(x, history)
        return self._sum(last, self.forwards.read(x, history), self.backwards(last[:, None])[:, 0])

    def _sum(
        self, x: Float[Tensor, "*shape D"], ahead: Float[Tensor, "*shape D"], back: Float[Tensor, "*shape D"]
    ) -> Float[Tensor, "*shape D"]:
        both: Tensor = self.forwards_norm(self.dropout(ahead) + x) + self.backwards_norm(self.dropout(back) + x)
        return both


class GatedLinearUnit(nn.Module):
    """``LN(Drop(W_2 (value * sigmoid(gate)) + b_2 + x))`` with ``[value | gate] = W_1 x + b_1``."""

    def __init__(self, *, dim: int, dropout: float) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, 2 * dim)
        self.contract = nn.Linear(dim, dim)
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)

    def forward(self, x: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        """The unit's output; dropout covers the residual too, as in the authors' code."""
        y: Tensor = self.norm(self.dropout(self.contract(nn.functional.glu(self.expand(x))) + x))
        return y
