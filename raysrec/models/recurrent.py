"""A stack of recurrent layers over item vectors, which LRURec and RecBLR are: they differ in the layer."""

from collections.abc import Sequence
from typing import Any, Protocol

from jaxtyping import Float, Int
from torch import Tensor

from raysrec.history import History
from raysrec.models.base import SequenceModel, State
from raysrec.models.layers import ItemEmbedding


class RecurrentLayer(Protocol):
    """A layer that takes a history whole, or one position more."""

    def __call__(self, x: Float[Tensor, "B L D"]) -> Any:
        """The whole history at once [B L D]."""

    def initial_state(self, batch_size: int) -> State:
        """What the layer remembers of nothing."""

    def step(self, x: Float[Tensor, "B D"], state: State) -> tuple[Float[Tensor, "B D"], Any]:
        """One position, and the new memory."""


class RecurrentStack(SequenceModel):
    """Item embedding and layers, each of which looks back only and takes one more item in constant time."""

    embedding: ItemEmbedding
    layers: Sequence[RecurrentLayer]

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

    def initial_state(self, batch_size: int) -> list[State]:
        """The memory of users who have no history yet, one per layer."""
        return [layer.initial_state(batch_size) for layer in self.layers]

    def step(self, items: Int[Tensor, " B"], state: list[State]) -> tuple[Float[Tensor, "B D"], list[State]]:
        """Take one more item per user."""
        x: Tensor = self.embedding(items)
        after = []
        for layer, before in zip(self.layers, state, strict=True):
            x, memory = layer.step(x, before)
            after.append(memory)
        return x, after
