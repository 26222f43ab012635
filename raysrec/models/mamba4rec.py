"""Mamba4Rec: a Mamba block and a feed-forward network per layer; no attention and no positions.

    X = LN(Drop(E[ids]))
    per layer:
        Z = LN(Drop(Mamba(X)))          with one layer
        Z = LN(Drop(Mamba(X)) + X)      with more
        X = LN(FeedForward(Z) + Z)

and the score of item j is X · E_j. There is no final normalisation. Order needs no position vectors, for the Mamba
block is a recurrence: it looks back only, learns at every position at once, and serves with constant memory (4,480
numbers per layer at the papers' sizes, and how many items there were).

The paper's ablations are settings: `num_layers`, `positions`, and `parts`.

Source:
    Liu, Lin, Wang, Liu, Caverlee, "Mamba4Rec: Towards Efficient Sequential Recommendation with Selective State Space
    Models", arXiv:2403.03900, 2024; the authors' code, chengkai-liu/Mamba4Rec at 44a0c84.

Departures:
    * The model learns at every position of a history instead of on one prefix per sample (`train.supervision`);
      without dropout the two are the same loss.
    * The class of padding is not among the candidates of the softmax in training; the authors remove it only when
      they rank.
    * `mamba_init=library` gives Mamba's own initial values. The authors' code, and the default here, writes over
      them: their initialisation runs through the whole model and reaches the linear layers inside the block, which
      sets all step sizes near softplus(0) = 0.69. The published numbers start there.
    * The text leaves open where two ablations end. Here `block_only` keeps the embedding's dropout and normalisation,
      and `no_layer_norm` removes all three normalisations, the embedding's with them.
    * Learned positions end at `max_length`; a longer history is refused, in `step` as in `encode`.
"""

from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from raysrec.history import History, last_states
from raysrec.models.base import ModelConfig, SequenceModel
from raysrec.models.layers import LAYER_NORM_EPS, Dropout, FeedForward, ItemEmbedding
from raysrec.models.mamba_block import Init02MambaModelConfig, MambaBlock, MambaState, init_mamba_model_
from raysrec.models.positions import LearnedPositions
from raysrec.schema import Count, Probability


class Mamba4RecConfig(Init02MambaModelConfig):
    """Settings of Mamba4Rec; the feed-forward network has 4 * `dim` inner channels, as in the paper."""

    name: Literal["mamba4rec"] = "mamba4rec"
    num_layers: Count = 1
    """Layers, one on the other; with a single one there is no residual around its Mamba block, as in the paper."""
    dropout: Probability = 0.2
    """Dropout after the item embedding and inside the layers; the paper's for MovieLens, and 0.4 for Amazon."""
    positions: Literal["none", "learned"] = "none"
    """Vectors added to the items': none, or one per position, learned (the paper's "w/ PE")."""
    parts: Literal["all", "no_feed_forward", "no_layer_norm", "block_only"] = "all"
    """What there is of the model, for the paper's ablations: everything, no feed-forward network (nor its
    normalisation), no LayerNorm anywhere, or layers of a bare Mamba block: no dropout, residual or normalisation."""


class Memory(NamedTuple):
    """What the model remembers of histories, however long they are."""

    position: Int[Tensor, " B"]
    """How many items were taken, which is the position of the next."""
    layers: list[MambaState]
    """One state per Mamba block."""


class Mamba4Rec(SequenceModel):
    """Item embedding and layers of Mamba and feed-forward; causal and recurrent."""

    Config: ClassVar[type[ModelConfig]] = Mamba4RecConfig

    def __init__(self, config: Mamba4RecConfig, num_items: int) -> None:
        super().__init__()
        self.embedding = ItemEmbedding(
            num_items=num_items, dim=config.dim, dropout=config.dropout, norm=config.parts != "no_layer_norm"
        )
        self.positions = (
            LearnedPositions(max_length=config.max_length, dim=config.dim) if config.positions == "learned" else None
        )
        self.layers: list[Layer] = nn.ModuleList(  # type: ignore[assignment]
            Layer(
                MambaBlock.of(config),
                dim=config.dim,
                dropout=config.dropout,
                residual=config.num_layers > 1,
                parts=config.parts,
            )
            for _ in range(config.num_layers)
        )
        init_mamba_model_(self, config)

    @property
    def causal(self) -> bool:
        """A recurrence looks back only."""
        return True

    def encode(self, history: History) -> Float[Tensor, "B L D"]:
        """One state per position; what stands at padded positions means nothing."""
        x = self._embed(history)
        for layer in self.layers:
            x = layer(x)
        return x

    def read(self, history: History) -> Float[Tensor, "B D"]:
        """The state after each history's last item; the last layer computes no other past its scan."""
        x = self._embed(history)
        for layer in self.layers[:-1]:
            x = layer(x)
        return self.layers[-1].read(x, history)

    def item_vectors(self) -> Float[Tensor, "V D"]:
        """The item embedding's table."""
        return self.embedding.table.weight

    @property
    def recurrent(self) -> bool:
        """A state takes one more item in constant time."""
        return True

    def initial_state(self, batch_size: int) -> Memory:
        """The memory of users who have no history yet."""
        layers = [layer.mamba.initial_state(batch_size) for layer in self.layers]
        return Memory(layers[0].scan.new_zeros(batch_size, dtype=torch.int64), layers)

    def step(self, items: Int[Tensor, " B"], state: Memory) -> tuple[Float[Tensor, "B D"], Memory]:
        """Take one more item per user.

        Raises:
            ValueError: Positions are learned, and one of the users has had `max_length` items already.
        """
        positions = self.positions.at(state.position) if self.positions else None
        x: Tensor = self.embedding(items, positions)
        after = []
        for layer, before in zip(self.layers, state.layers, strict=True):
            x, memory = layer.step(x, before)
            after.append(memory)
        return x, Memory(state.position + 1, after)

    def _embed(self, history: History) -> Float[Tensor, "B L D"]:
        positions = self.positions.first(history.items.shape[1]) if self.positions else None
        x: Tensor = self.embedding(history.items, positions)
        return x


class Layer(nn.Module):
    """A Mamba block, then a feed-forward network, each followed by LayerNorm; `parts` as in the config."""

    def __init__(self, mamba: MambaBlock, *, dim: int, dropout: float, residual: bool, parts: str = "all") -> None:
        super().__init__()
        self.bare = parts == "block_only"
        self.residual = residual
        self.mamba = mamba
        if self.bare:
            return

        def norm() -> nn.Module:
            return nn.Identity() if parts == "no_layer_norm" else nn.LayerNorm(dim, eps=LAYER_NORM_EPS)

        self.dropout = Dropout(dropout)
        self.mamba_norm = norm()
        self.feed_forward = None
        if parts != "no_feed_forward":
            self.feed_forward = FeedForward(dim=dim, inner_dim=4 * dim, dropout=dropout)
            self.feed_forward_norm = norm()

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """The whole history at once."""
        return self._after_mamba(self.mamba(x), x)

    def read(self, x: Float[Tensor, "B L D"], history: History) -> Float[Tensor, "B D"]:
        """The output at each history's last item only; other positions are computed only as far as it needs them."""
        return self._after_mamba(self.mamba.read(x, history), last_states(x, history))

    def step(self, x: Float[Tensor, "B D"], state: MambaState) -> tuple[Float[Tensor, "B D"], MambaState]:
        """One position."""
        mixed, state = self.mamba.step(x, state)
        return self._after_mamba(mixed, x), state

    def _after_mamba(self, mixed: Float[Tensor, "*shape D"], x: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        if self.bare:
            return mixed
        mixed = self.dropout(mixed)
        z: Tensor = self.mamba_norm(mixed + x if self.residual else mixed)
        if self.feed_forward is None:
            return z
        y: Tensor = self.feed_forward_norm(self.feed_forward(z) + z)
        return y
