"""What a model is to everything outside `models/`: an encoder of histories and a table of item vectors."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from raysrec.history import History, last_states
from raysrec.schema import Count, Probability, Section


class ModelConfig(Section):
    """Settings that every model has; a model's own `Config` adds the rest."""

    name: str
    """Which model, a key of `MODELS`."""
    dim: Count = 64
    """Channels of a state and of an item vector (D)."""
    max_length: Count = 200
    """Longest history that is encoded at once; older items are cut off (L)."""
    dropout: Probability = 0.1
    """Dropout after the item embedding and inside the blocks."""


State = Any
"""A recurrent model's memory of a history: a pytree of tensors whose first dimension is B."""


class SequenceModel(nn.Module, ABC):
    """Reads histories and writes one state per position; the score of an item is state · item vector (+ bias).

    Trainer, evaluator, tuner and recommender use this class and no other. A model is built from its typed
    `Config` and the number of items (and of users, if it `has_user_vectors`), so that it can be built again from JSON.
    """

    Config: ClassVar[type[ModelConfig]]

    has_user_vectors: ClassVar[bool] = False
    """Does it learn a vector for each user? Then it takes `num_users` too, can score no user beyond them, and knows
    nothing of those it did not learn from."""
    reads_items: ClassVar[bool] = True
    """Does a state depend on the history's items? False for baselines that know users or nothing."""

    @property
    @abstractmethod
    def causal(self) -> bool:
        """Does a state depend on nothing after its position? May follow from the config."""

    @abstractmethod
    def encode(self, history: History) -> Float[Tensor, "B L D"]:
        """One state per position; what stands at padded positions means nothing."""

    def read(self, history: History) -> Float[Tensor, "B D"]:
        """The state after each history's last item, which candidates are scored against.

        A model that needs less for it than `encode` does, or something else, says so here.
        """
        return last_states(self.encode(history), history)

    @abstractmethod
    def item_vectors(self) -> Float[Tensor, "V D"]:
        """The table that states are scored against; row i is item i, row 0 is padding and is never a candidate."""

    def item_bias(self) -> Float[Tensor, " V"] | None:
        """A number added to each item's score, or None."""
        return None

    @property
    def fills_gaps(self) -> bool:
        """Does it take HIDDEN items and give, at their positions, states to guess them from (`cloze`)?"""
        return False

    def penalty(self) -> Float[Tensor, ""] | Float[Tensor, " B"] | None:
        """What training adds to the mean loss: a model's own regularisation, or None.

        One number if it depends on the parameters alone; one per history if it depends on the last `encode` or `read`
        in training mode too, where each history counts as often as it has targets: so that it does not matter which
        histories are encoded together.
        """
        return None

    def set_item_counts(self, counts: Int[Tensor, " V"]) -> None:
        """Take what is known before the first step: how often each item occurs in training (0 for padding)."""

    def set_learned_users(self, learned: Bool[Tensor, " U"]) -> None:
        """Take what is known before the first step: whether there is a target of each user (number 0 is nobody's)."""

    @property
    def padding_leaks(self) -> bool:
        """Do padded positions change real states? Only in forms that repeat such code of the authors."""
        return False

    @property
    def recurrent(self) -> bool:
        """Can a state take one more item in constant time (`initial_state` and `step`)?"""
        return False

    def initial_state(self, batch_size: int) -> State:
        """The state of users who have no history yet.

        Raises:
            NotImplementedError: The model is not recurrent.
        """
        raise NotImplementedError(f"{type(self).__name__} has no recurrent form; use encode")

    def step(self, items: Int[Tensor, " B"], state: State) -> tuple[Float[Tensor, "B D"], State]:
        """Take one more item per user: the state that `encode` would give at that position, and the new memory.

        Raises:
            NotImplementedError: The model is not recurrent.
        """
        raise NotImplementedError(f"{type(self).__name__} has no recurrent form; use encode")
