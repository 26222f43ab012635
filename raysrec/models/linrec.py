"""LinRec: SASRec's skeleton with softmax replaced by a product of normalised features, which is linear in the length.

    X = Drop(LN(E[ids] + P))
    per layer, in each head of C = D/H channels, with a = ELU(W_q X + b_q), b = ELU(W_k X + b_k), v = W_v X + b_v:
        norm=feature     o_i = a_i / |a_i| · sum_j (b_j / |b_j|) v_j^T / sqrt(C)
        norm=sequence    o_i = a_i / (sqrt(C) |a_i|) · sum_j (b_j / (sqrt(n) |b_:c|)) v_j^T
        Z = LN(X + Drop(W_o concat_h(o) + b_o))
        X = LN(Z + Drop(W2 GELU(W1 Z + b1) + b2))

and the score of item j is X · E_j. Norms are Euclidean: |b_j| over a head's channels, |b_:c| over the n positions. With
`feature` every item has a weight of its own and o grows with the length of the history; with `sequence` an item's
weight depends on all others, those that follow it included.

The attention has three forms. `bidirectional` lets every real position see every other, the paper's formula with
padding left out. `unmasked` is what the authors' code computes, padding up to `max_length` included (n is that), and is
there to explain differences from published numbers. `causal` looks back only, so it learns at every position at once;
with one layer and norm=feature it has the bidirectional form's state at the last position, with more layers it is
another model. A norm over the sequence has no causal form. The causal form serves with constant memory: the sums over
j, and how many items there were.

Source:
    Liu, Cai, Zhang et al., "LinRec: Linear Attention Mechanism for Long-term Sequential Recommender Systems", SIGIR
    2023 (norm=sequence); the authors' code, Applied-Machine-Learning-Lab/LinRec at 0a924d6 (norm=feature).

Departures:
    * `norm=feature` is the code's: it lays keys out the other way round, so what is meant to be the norm over the
      sequence is that over channels. RecGRELA's table was made with it. `norm=sequence` is the paper's.
    * `bidirectional` leaves padding out; the authors' code takes the attention mask and does not use it.
    * A vector of nothing is divided by 1e-12 and not by zero.
    * Padding is not among the candidates of the softmax in training, as it is in the authors' (`loss.padding_class`).
    * No dropout of the attention, whose code creates it and never calls it.
    * Positions end at `max_length`: a longer history is refused, in `step` as in `encode`, for no vector beyond was
      learned. Begin again from `initial_state` with the newest items.
"""

from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import model_validator
from torch import Tensor, nn

from raysrec.history import History
from raysrec.models.base import ModelConfig, SequenceModel
from raysrec.models.layers import init_weights_
from raysrec.models.transformer import PositionedEmbedding, TransformerConfig, TransformerLayer
from raysrec.ops.precision import at_least_float32
from raysrec.schema import Count

_POSITIONS_PER_CHUNK = 40
"""Of the causal form: its products among neighbours cost this many numbers per position and head."""


class LinRecConfig(TransformerConfig):
    """Settings of LinRec."""

    name: Literal["linrec"] = "linrec"
    form: Literal["causal", "bidirectional", "unmasked"] = "bidirectional"
    """Which positions attention sees: those up to its own, all real ones, or all with padding (the authors' code)."""
    norm: Literal["feature", "sequence"] = "feature"
    """What keys are divided by: their own norms (the authors' code), or each channel's over the history (the paper)."""
    num_heads: Count = 8

    @model_validator(mode="after")
    def _heads_have_a_direction(self) -> "LinRecConfig":
        if self.dim == self.num_heads:
            raise ValueError(
                f"model.dim={self.dim} gives each of model.num_heads={self.num_heads} heads one channel, and a number "
                "divided by its norm is its sign; lower model.num_heads"
            )
        return self

    @model_validator(mode="after")
    def _norm_looks_no_further_than_form(self) -> "LinRecConfig":
        if self.form == "causal" and self.norm == "sequence":
            raise ValueError(
                "model.form=causal cannot have model.norm=sequence, a norm over the whole history, what follows "
                "included; set model.norm=feature or model.form=bidirectional"
            )
        return self


class Memory(NamedTuple):
    """What the causal form remembers of histories, however long they are."""

    position: Int[Tensor, " B"]
    """How many items were taken, which is the position of the next."""
    sums: Float[Tensor, "B layers H C C"]
    """Per layer and head, the sum of (b_j / |b_j|) v_j^T over the items j that were taken."""


class LinRec(SequenceModel):
    """Embedding with positions, and layers of normalised linear attention; recurrent in its causal form."""

    Config: ClassVar[type[ModelConfig]] = LinRecConfig

    def __init__(self, config: LinRecConfig, num_items: int) -> None:
        super().__init__()
        self.form, self.num_heads = config.form, config.num_heads
        self.max_length = config.max_length
        self.embedding = PositionedEmbedding(
            num_items=num_items, dim=config.dim, max_length=config.max_length, dropout=config.dropout
        )
        self.layers: list[TransformerLayer] = nn.ModuleList(  # type: ignore[assignment]
            TransformerLayer(
                NormalisedAttention(dim=config.dim, num_heads=config.num_heads, norm=config.norm),
                dim=config.dim,
                mlp_dim=config.mlp_dim,
                dropout=config.dropout,
            )
            for _ in range(config.num_layers)
        )
        init_weights_(self)

    @property
    def causal(self) -> bool:
        """Only the causal form looks back alone."""
        return self.form == "causal"

    @property
    def padding_leaks(self) -> bool:
        """Do padded positions change real states? They do in the authors' code, and in the form that repeats it."""
        return self.form == "unmasked"

    def encode(self, history: History) -> Float[Tensor, "B L D"]:
        """One state per position; what stands at padded positions means nothing."""
        width = history.items.shape[1]
        history = self._filled(history)
        x: Tensor = self.embedding(history.items)
        seen = None if self.causal else self._seen(history)
        for layer in self.layers:
            x = layer(x, seen)
        return x[:, :width]

    def read(self, history: History) -> Float[Tensor, "B D"]:
        """The state after each history's last item; the last layer computes no other."""
        history = self._filled(history)
        x: Tensor = self.embedding(history.items)
        last_sees = self._seen(history)
        for layer in self.layers[:-1]:
            x = layer(x, None if self.causal else last_sees)
        return self.layers[-1].read(x, last_sees, history)

    def item_vectors(self) -> Float[Tensor, "V D"]:
        """The item embedding's table."""
        return self.embedding.table.weight

    @property
    def recurrent(self) -> bool:
        """A state takes one more item in constant time where attention looks back only."""
        return self.causal

    def initial_state(self, batch_size: int) -> Memory:
        """The memory of users who have no history yet.

        Raises:
            NotImplementedError: Attention looks both ways.
        """
        self._require_recurrent()
        weight = at_least_float32(self.embedding.table.weight)
        channels = weight.shape[1] // self.num_heads
        sums = weight.new_zeros(batch_size, len(self.layers), self.num_heads, channels, channels)
        return Memory(sums.new_zeros(batch_size, dtype=torch.int64), sums)

    def step(self, items: Int[Tensor, " B"], state: Memory) -> tuple[Float[Tensor, "B D"], Memory]:
        """Take one more item per user.

        Raises:
            NotImplementedError: Attention looks both ways.
            ValueError: One of the users has had `max_length` items already.
        """
        self._require_recurrent()
        x, after = self.embedding.at(items, state.position), []
        for layer, sums in zip(self.layers, state.sums.unbind(1), strict=True):
            assert isinstance(layer.attention, NormalisedAttention)
            mixed, sums = layer.attention.step(x, sums)
            x = layer.after_attention(x, mixed)
            after.append(sums)
        return x, Memory(state.position + 1, torch.stack(after, dim=1))

    def _require_recurrent(self) -> None:
        if not self.recurrent:
            raise NotImplementedError(f"LinRec has no recurrent form with model.form={self.form}; use form=causal")

    def _filled(self, history: History) -> History:
        """The history; where padding is seen, as wide as the authors' batches, which are all of one width."""
        return history.padded(self.max_length) if self.form == "unmasked" else history

    def _seen(self, history: History) -> Bool[Tensor, "B L"]:
        """What the last position sees, and in the forms that look both ways every other, too."""
        mask = history.mask()
        return torch.ones_like(mask) if self.form == "unmasked" else mask


class NormalisedAttention(nn.Module):
    """``W_o concat_h(o) + b_o`` with o as in the module's equations; counts in float32 at least."""

    def __init__(self, *, dim: int, num_heads: int, norm: Literal["feature", "sequence"]) -> None:
        super().__init__()
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)
        self.num_heads = num_heads
        self.over_features = norm == "feature"

    def forward(
        self, at: Float[Tensor, "B Q D"], x: Float[Tensor, "B L D"], seen: Bool[Tensor, "B L"] | None
    ) -> Float[Tensor, "B Q D"]:
        """What the positions `at` see of `x`: those of `seen`, or (`at` being `x`) those up to their own if None."""
        query, key, value = self.query(at), self.key(x), self.value(x)
        with torch.autocast(x.device.type, enabled=False):
            a = F.normalize(self._heads(F.elu(at_least_float32(query))), dim=-1)
            b = self._normalised_keys(self._heads(F.elu(at_least_float32(key))), seen)
            v = self._heads(at_least_float32(value))
            products = _products_up_to_own(a, b, v) if seen is None else a @ (b.mT @ v)
            mixed = (products / a.shape[-1] ** 0.5).transpose(1, 2).flatten(-2).to(value.dtype)
        y: Tensor = self.output(mixed)
        return y

    def step(
        self, x: Float[Tensor, "B D"], sums: Float[Tensor, "B H C C"]
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B H C C"]]:
        """What one more position sees of those up to its own, whose sums those before it left behind."""
        query, key, value = (part(x)[:, None] for part in (self.query, self.key, self.value))
        with torch.autocast(x.device.type, enabled=False):
            a = F.normalize(self._heads(F.elu(at_least_float32(query))), dim=-1)
            b = F.normalize(self._heads(F.elu(at_least_float32(key))), dim=-1)
            sums = sums + b.mT @ self._heads(at_least_float32(value))
            mixed = (a @ sums / a.shape[-1] ** 0.5).flatten(1).to(value.dtype)
        y: Tensor = self.output(mixed)
        return y, sums

    def _normalised_keys(
        self, b: Float[Tensor, "B H L C"], seen: Bool[Tensor, "B L"] | None
    ) -> Float[Tensor, "B H L C"]:
        """Keys divided by their norms; zeros where they are not seen."""
        if seen is None:
            return F.normalize(b, dim=-1)
        mask = seen[:, None, :, None]
        if self.over_features:
            return F.normalize(b, dim=-1) * mask
        return F.normalize(b * mask, dim=-2) / mask.sum(-2, keepdim=True).clamp(min=1).sqrt()

    def _heads(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B H L C"]:
        return x.view(*x.shape[:-1], self.num_heads, -1).transpose(1, 2)


def _products_up_to_own(
    a: Float[Tensor, "B H L C"], b: Float[Tensor, "B H L C"], v: Float[Tensor, "B H L C"]
) -> Float[Tensor, "B H L C"]:
    """Sum over j <= i of (a_i · b_j) v_j: products within chunks of positions, and sums over earlier chunks."""
    length = a.shape[2]
    number = -(-length // _POSITIONS_PER_CHUNK)
    size = -(-length // number)
    a, b, v = (F.pad(x, (0, 0, 0, number * size - length)).reshape(*x.shape[:2], number, size, -1) for x in (a, b, v))
    sums = b.mT @ v  # [B H N C C]
    products = (a @ b.mT).tril() @ v + a @ (sums.cumsum(2) - sums)
    return products.flatten(2, 3)[:, :, :length]
