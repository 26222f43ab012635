"""RecMamba: one Mamba block over items and positions, for histories of thousands of items; nothing else.

    x_t = Drop(sqrt(D) E[i_t] + P_t)
    H = Mamba(x)

and the score of item j is H · E_j: no normalisation, residual or feed-forward network. It is trained with one uniform
negative per position that the user has nowhere in training (`loss: {name: bce, negatives: 1, exclude_history: true}`),
looks back only, learns at every position at once, and serves with constant memory: 4,480 numbers at 64 channels, and
how many items there were.

Source:
    Yang, Li, Zhao et al., "Uncovering Selective State Space Model's Capabilities in Lifelong Sequential
    Recommendation", arXiv:2403.16371, 2024; the authors' code, nancheng58/RecMamba at 4ff9452; the block is Gu and Dao,
    "Mamba", 2023.

Departures:
    * Padding stands on the right, where a causal model cannot see it. The authors pad on the left and commented their
      mask out, so the vectors P_t + sqrt(D) E[0] of all empty slots are scanned before the first item:
      `padding=left`.
    * P is indexed by the slot counted from the oldest item of the window. In the authors' left-padded window, and with
      `padding=left`, the newest item always has the last slot; the two agree where a history fills the window, as in
      the paper's experiments. In shorter ones each new item then moves all others and changes their states: the form
      is not causal, so it learns from prefixes (`train.supervision=last_position`), and there is no `step`.
    * Positions end at `max_length`: a longer history is refused, in `step` as in `encode`, for no vector beyond was
      learned. Begin again from `initial_state` with the newest items.
    * `mamba_init=xavier` repeats the authors' initialisation, Xavier-normal for everything with two dimensions. It
      reaches A, whose spectrum -1, …, -S becomes about -1 throughout. The default leaves the block as Mamba starts it.
    * `dim` is free; the authors' block works with 64 only.
"""

from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from raysrec.history import History, last_items, last_states
from raysrec.models.base import ModelConfig, SequenceModel
from raysrec.models.layers import Dropout
from raysrec.models.mamba_block import MambaBlock, MambaModelConfig, MambaState
from raysrec.models.positions import LearnedPositions
from raysrec.schema import Probability


class RecMambaConfig(MambaModelConfig):
    """Settings of RecMamba; the paper's `max_length` is 2,000 or 5,000."""

    name: Literal["recmamba"] = "recmamba"
    dropout: Probability = 0.2
    """Dropout of what enters the Mamba block."""
    padding: Literal["right", "left"] = "right"
    """`right`: histories begin in the first slot and nothing comes before them. `left`: they end in the last of
    `max_length` slots, and the empty ones before them are scanned like items, as in the authors' code."""
    mamba_init: Literal["library", "xavier"] = "library"
    """Where the Mamba block starts. `library`, Mamba's own: decays of 1 to S in units of the step size. `xavier`, as in
    the authors' code: every matrix of the block Xavier-normal, A among them, so that all decays are about 1."""


class Memory(NamedTuple):
    """What the model remembers of histories, however long they are."""

    position: Int[Tensor, " B"]
    """How many items were taken, which is the position of the next."""
    mamba: MambaState
    """The state of the Mamba block."""


class RecMamba(SequenceModel):
    """Item and position vectors and one Mamba block; causal and recurrent."""

    Config: ClassVar[type[ModelConfig]] = RecMambaConfig

    def __init__(self, config: RecMambaConfig, num_items: int) -> None:
        super().__init__()
        self.max_length, self.padding = config.max_length, config.padding
        self.table = nn.Embedding(num_items + 1, config.dim, padding_idx=0)
        self.positions = LearnedPositions(max_length=config.max_length, dim=config.dim)
        self.dropout = Dropout(config.dropout)
        self.mamba = MambaBlock.of(config)
        for table in (self.table, self.positions.table):
            nn.init.xavier_normal_(table.weight)
        if config.mamba_init == "xavier":
            init_xavier_(self.mamba)

    @property
    def causal(self) -> bool:
        """A recurrence looks back only, but padded on the left a state knows how many items follow."""
        return self.padding == "right"

    @property
    def padding_leaks(self) -> bool:
        """On the left it is scanned before the first item."""
        return self.padding == "left"

    def encode(self, history: History) -> Float[Tensor, "B L D"]:
        """One state per position; what stands at padded positions means nothing.

        Raises:
            ValueError: The history is longer than `max_length`.
        """
        width = history.items.shape[1]
        positions = self.positions.first(max(width, self.max_length) if self.padding == "left" else width)
        if self.padding == "right":
            return self._scan(history.items, positions)
        states = self._scan(last_items(history, self.max_length, newest_last=True), positions)
        slots = self.max_length - history.lengths[:, None] + torch.arange(width, device=states.device)
        return states.gather(1, slots.clamp_max(self.max_length - 1)[..., None].expand(-1, -1, states.shape[-1]))

    def read(self, history: History) -> Float[Tensor, "B D"]:
        """The state after each history's last item; nothing else is computed past the scan.

        Raises:
            ValueError: The history is longer than `max_length`.
        """
        if self.padding == "left":
            return last_states(self.encode(history), history)
        positions = self.positions.first(history.items.shape[1])
        return self.mamba.read(self._vectors(history.items, positions), history)

    def item_vectors(self) -> Float[Tensor, "V D"]:
        """The item embedding's table."""
        return self.table.weight

    @property
    def recurrent(self) -> bool:
        """A state takes one more item in constant time, unless one more item moves all others."""
        return self.padding == "right"

    def initial_state(self, batch_size: int) -> Memory:
        """The memory of users who have no history yet.

        Raises:
            NotImplementedError: Padding stands on the left.
        """
        self._require_recurrent()
        state = self.mamba.initial_state(batch_size)
        return Memory(state.scan.new_zeros(batch_size, dtype=torch.int64), state)

    def step(self, items: Int[Tensor, " B"], state: Memory) -> tuple[Float[Tensor, "B D"], Memory]:
        """Take one more item per user.

        Raises:
            NotImplementedError: Padding stands on the left.
            ValueError: One of the users has had `max_length` items already.
        """
        self._require_recurrent()
        x = self._vectors(items, self.positions.at(state.position))
        mixed, mamba = self.mamba.step(x, state.mamba)
        return mixed, Memory(state.position + 1, mamba)

    def _scan(self, items: Int[Tensor, "B L"], positions: Float[Tensor, "L D"]) -> Float[Tensor, "B L D"]:
        states: Tensor = self.mamba(self._vectors(items, positions))
        return states

    def _require_recurrent(self) -> None:
        if not self.recurrent:
            raise NotImplementedError(
                f"RecMamba has no recurrent form with model.padding={self.padding}; use padding=right"
            )

    def _vectors(
        self, items: Int[Tensor, "*shape"], positions: Float[Tensor, "#*shape D"]
    ) -> Float[Tensor, "*shape D"]:
        scaled = self.table(items) * self.table.embedding_dim**0.5
        vectors: Tensor = self.dropout(scaled + positions)
        return vectors


@torch.no_grad()
def init_xavier_(mamba: MambaBlock) -> None:
    """Give every matrix of the block Xavier-normal values, A's logarithms included; biases and `skip` stay."""
    for parameter in mamba.parameters():
        if parameter.ndim < 2:
            continue
        # The library's convolution has a middle dimension of one, and its taps count as fan-out too.
        nn.init.xavier_normal_(parameter[:, None] if parameter is mamba.conv_weight else parameter)
