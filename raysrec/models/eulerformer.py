"""EulerFormer: SASRec whose vectors are read as complex numbers, so that meaning and position are angles and add.

Channels 2r and 2r + 1 are one complex number of length lam_r and angle th_r, before D is split into heads.

    X = Drop(LN(rotate(E[ids] + P by T)))                   T: a learned angle for each position and pair
    per layer, with t the position and f_r = 10000^(-2r/D):
        q = W_q X + b_q:   th_q <- delta th_q + t f + b     delta, b: learned numbers, which start at 1 and 0
        k = W_k X + b_k:   th_k <- delta th_k + t f
        and from there SASRec's: causal softmax of <q_h, k_h> / sqrt(D/H), residuals, LN, feed-forward network

The score of item j is X · E_j. Training adds a phase contrast to the mean loss: angles of one position should be like
themselves after dropout, and unlike those of the history's other positions:

    weight * sum over layers of [c(th_q) + c(th_k)]
    c(p) = mean_i -log(exp(S_ii) / (sum_j exp(S_ij) + 1e-5)),   S_ij = sum_r w_r cos(p_ir - p'_jr) / tau,   p' = Drop(p)

with delta = 1 and b = 0 the attention is RoPE's over all channels. Absolute positions end at `max_length`: no recurrent
form.

Source:
    Tian, Zhou, Zhao et al., "EulerFormer: Sequential User Behavior Modeling with Complex Vector Attention", SIGIR 2024;
    the authors' code, RUCAIBox/EulerFormer at 7cb5f65.

Departures:
    * The contrast is over real positions; the authors let padding in, as what is contrasted and as what it is
      contrasted with. It is a mean over each history, weighted by its targets, and theirs over all positions of a
      batch. It is computed in training only.
    * The model learns at every position of a history instead of on one prefix per sample (`train.supervision`).
    * Padding is not among the candidates of the softmax in training, as it is in the authors' (`loss.padding_class`).
    * Its logarithm is taken of sums of exponentials at once, which cannot overflow when w grows.
    * A vector counts as at least 1e-6 long, in its length and in the gradient of its angle, which in the authors' code
      is infinite at nothing. The input is turned by T without taking its angle at all, which is the same function.
    * The positions' angles t f are computed. The authors' code has them as parameters that get no gradient, D times
      `max_length` numbers per layer, 25,600 in all at its sizes.
"""

import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import model_validator
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from raysrec.history import History
from raysrec.models.base import ModelConfig, SequenceModel
from raysrec.models.layers import LAYER_NORM_EPS, Dropout, init_weights_
from raysrec.models.positions import first_rows
from raysrec.models.transformer import SoftmaxTransformerConfig, TransformerLayer
from raysrec.ops.softmax_attention import softmax_attention
from raysrec.schema import NonNegative, Positive, Probability

SHORTEST = 1e-6
"""The length that a vector has at least where the gradient of its angle is taken."""


class EulerFormerConfig(SoftmaxTransformerConfig):
    """Settings of EulerFormer."""

    name: Literal["eulerformer"] = "eulerformer"
    contrast_weight: NonNegative = 1e-5
    """Weight of the phase contrast beside the mean loss."""
    contrast_temperature: Positive = 1.0
    """What similarities of angles are divided by (tau)."""
    dropped_angles: Probability = 0.5
    """Share of the angles that are zeroed (and the others scaled up) in what a position is contrasted with."""

    @model_validator(mode="after")
    def _channels_pair_up(self) -> "EulerFormerConfig":
        if self.dim % 2:
            raise ValueError(f"model.dim={self.dim} is odd, but two channels make a complex number; choose an even one")
        return self


class EulerFormer(SequenceModel):
    """Embedding with turned positions, and layers of causal attention in polar coordinates."""

    Config: ClassVar[type[ModelConfig]] = EulerFormerConfig

    def __init__(self, config: EulerFormerConfig, num_items: int) -> None:
        super().__init__()
        self.contrast_weight = config.contrast_weight
        self.embedding = TurnedEmbedding(
            num_items=num_items, dim=config.dim, max_length=config.max_length, dropout=config.dropout
        )
        self.layers: list[TransformerLayer] = nn.ModuleList(  # type: ignore[assignment]
            TransformerLayer(
                PolarAttention(
                    dim=config.dim,
                    num_heads=config.num_heads,
                    dropout=config.weights_dropout,
                    dropped_angles=config.dropped_angles,
                    temperature=config.contrast_temperature,
                ),
                dim=config.dim,
                mlp_dim=config.mlp_dim,
                dropout=config.dropout,
            )
            for _ in range(config.num_layers)
        )
        init_weights_(self)
        nn.init.zeros_(self.embedding.turns.weight)

    @property
    def causal(self) -> bool:
        """A position sees those up to its own."""
        return True

    def encode(self, history: History) -> Float[Tensor, "B L D"]:
        """One state per position; what stands at padded positions means nothing."""
        x: Tensor = self.embedding(history.items)
        real = history.mask()
        for layer in self.layers:
            x = layer(x, real)
        return x

    def item_vectors(self) -> Float[Tensor, "V D"]:
        """The item embedding's table."""
        return self.embedding.table.weight

    def penalty(self) -> Float[Tensor, " B"] | None:
        """The weighted phase contrast of each history that was encoded in training mode since it was last asked for."""
        total: Tensor | None = None
        for layer in self.layers:
            attention: Any = layer.attention
            # It holds its graph, which is good for one gradient.
            contrast, attention.contrast = attention.contrast, None
            if contrast is not None:
                total = contrast if total is None else total + contrast
        if total is None or not self.training:
            return None
        return self.contrast_weight * total


class TurnedEmbedding(nn.Module):
    """Item ids and their positions to vectors: ``Drop(LN(rotate(E[ids] + P by T)))``."""

    def __init__(self, *, num_items: int, dim: int, max_length: int, dropout: float) -> None:
        super().__init__()
        self.table = nn.Embedding(num_items + 1, dim)
        self.positions = nn.Embedding(max_length, dim)
        self.turns = nn.Embedding(max_length, dim // 2)
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.dropout = Dropout(dropout)

    def forward(self, items: Int[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        """Vectors of items where they stand.

        Raises:
            ValueError: They are more than `max_length`.
        """
        x, y = _pairs(self.table(items) + first_rows(self.positions, items.shape[1]))
        turns = first_rows(self.turns, items.shape[1])
        turned = _joined(x * turns.cos() - y * turns.sin(), x * turns.sin() + y * turns.cos())
        vectors: Tensor = self.dropout(self.norm(turned))
        return vectors


class PolarAttention(nn.Module):
    """Causal softmax attention of queries and keys whose angles were scaled and moved by their positions.

    In training mode a forward leaves the phase contrast of its queries and keys in `contrast`.
    """

    def __init__(self, *, dim: int, num_heads: int, dropout: float, dropped_angles: float, temperature: float) -> None:
        super().__init__()
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)
        self.angle_scale = nn.Parameter(torch.ones(1))  # delta
        self.query_angle = nn.Parameter(torch.zeros(1))  # b
        self.contrast_weights = nn.Parameter(torch.ones(dim // 2))  # w
        self.num_heads = num_heads
        self.dropout = dropout
        self.drop_angles = Dropout(dropped_angles)
        self.temperature = temperature
        self.contrast: Tensor | None = None

    def forward(
        self, at: Float[Tensor, "B L D"], x: Float[Tensor, "B L D"], real: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B L D"]:
        """What each position of `at`, which is `x`, sees up to its own; `real` matters to the contrast only."""
        query, key, value = self.query(at), self.key(x), self.value(x)
        with torch.autocast(x.device.type, enabled=False):
            moved = _position_angles(x.shape[1], x.shape[2], x.device)
            q_length, q_angle = _polar(query)
            k_length, k_angle = _polar(key)
            q_angle = self.angle_scale * q_angle + moved + self.query_angle
            k_angle = self.angle_scale * k_angle + moved
            if self.training:
                self.contrast = self._contrast(q_angle, real) + self._contrast(k_angle, real)
            query = _joined(q_length * q_angle.cos(), q_length * q_angle.sin()).to(value.dtype)
            key = _joined(k_length * k_angle.cos(), k_length * k_angle.sin()).to(value.dtype)
        dropout = self.dropout if self.training else 0.0
        y: Tensor = self.output(softmax_attention(query, key, value, None, num_heads=self.num_heads, dropout=dropout))
        return y

    def _contrast(self, angle: Float[Tensor, "B L R"], real: Bool[Tensor, "B L"]) -> Float[Tensor, " B"]:
        """Mean over a history's positions of how badly an angle's dropped copy is told from the history's others."""
        other = self.drop_angles(angle)
        weights = self.contrast_weights / self.temperature
        # cos(p - p') = cos p cos p' + sin p sin p'
        one = torch.cat([angle.cos() * weights, angle.sin() * weights], dim=-1)
        similarity = one @ torch.cat([other.cos(), other.sin()], dim=-1).mT  # [B L L]
        similarity = similarity.masked_fill(~real[:, None, :], -math.inf)
        # One more column whose exponential is the 1e-5 of the sum.
        chosen = F.log_softmax(F.pad(similarity, (0, 1), value=math.log(1e-5)), dim=-1).diagonal(dim1=1, dim2=2)
        return -chosen.masked_fill(~real, 0.0).sum(dim=1) / real.sum(dim=1).clamp(min=1)


class _Angle(torch.autograd.Function):
    """atan2(y, x) with a gradient that stays finite where both are zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        return torch.atan2(y, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, y = ctx.saved_tensors
        grad = grad / (x * x + y * y).clamp(min=SHORTEST**2)
        return -y * grad, x * grad


def _polar(x: Float[Tensor, "B L D"]) -> tuple[Float[Tensor, "B L R"], Float[Tensor, "B L R"]]:
    """Lengths and angles of the pairs of channels, in float32 at least."""
    one, other = _pairs(x.to(torch.promote_types(x.dtype, torch.float32)))
    square = one * one + other * other
    length = square.clamp(min=SHORTEST**2).sqrt()
    angle: Tensor = _Angle.apply(one, other)  # type: ignore[no-untyped-call]
    return length, angle


def _pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    """The even channels and the odd ones, each in memory of its own, where a processor takes many at a time."""
    return x[..., 0::2].contiguous(), x[..., 1::2].contiguous()


def _joined(x: Tensor, y: Tensor) -> Tensor:
    """What `_pairs` took apart."""
    return torch.stack([x, y], dim=-1).flatten(-2)


def _position_angles(length: int, dim: int, device: torch.device) -> Float[Tensor, "L R"]:
    """Angles t * 10000^(-2r / D) for each position t and pair r; made in float64, for long histories."""
    frequencies = 10_000.0 ** -(torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim)
    return (torch.arange(length, device=device)[:, None] * frequencies).float()
