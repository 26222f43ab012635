"""BPR-MF: a vector per user, a vector per item, and nothing of the history.

    state = p_u at every position,   score of item j = p_u · q_j

What makes it BPR is the loss: `loss.name=bpr`, -log sigma(p_u · q_i - p_u · q_j) with one negative j that the user has
nowhere in training (`loss.exclude_history`). Of users who are not in the data it has no vector, and refuses them. Of
those in the data whom nobody learns from, as there are under a temporal split, it has zeros: all items score alike, so
their targets are ranked last, and nothing is recommended to them.

Source:
    Rendle, Freudenthaler, Gantner, Schmidt-Thieme, "BPR: Bayesian Personalized Ranking from Implicit Feedback",
    UAI 2009; RecBole's `BPR` at 7b02be5 for the initial values.

Departures:
    * A user's first interaction is history here and never a target, as for every other model.
    * log(sigma(x)) is computed as such; RecBole adds 1e-10 to sigma, whose gradient then vanishes for pairs that are
      far the wrong way round.
    * RecBole ranks this model, and no sequential one, without the items that a user has seen. Here the rule is the
      evaluation's (`evaluate.exclude_seen`), the same for all models.
"""

from typing import ClassVar, Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn

from raysrec.history import History
from raysrec.models.base import ModelConfig, SequenceModel
from raysrec.models.layers import UserEmbedding


class BPRMFConfig(ModelConfig):
    """Settings of BPR-MF; of a history it needs to know whose it is, so `max_length` and `dropout` change no score."""

    name: Literal["bprmf"] = "bprmf"


class BPRMF(SequenceModel):
    """Two tables."""

    Config: ClassVar[type[ModelConfig]] = BPRMFConfig
    has_user_vectors: ClassVar[bool] = True
    reads_items: ClassVar[bool] = False

    def __init__(self, config: BPRMFConfig, num_items: int, num_users: int) -> None:
        super().__init__()
        self.users = UserEmbedding(num_users=num_users, dim=config.dim)
        self.items = nn.Embedding(num_items + 1, config.dim)
        for table in (self.users.table, self.items):
            nn.init.xavier_normal_(table.weight)

    @property
    def causal(self) -> bool:
        """A state depends on no item, so on none that comes later."""
        return True

    def encode(self, history: History) -> Float[Tensor, "B L D"]:
        """The user's vector, at every position."""
        return self.read(history)[:, None].expand(-1, history.items.shape[1], -1)

    def read(self, history: History) -> Float[Tensor, "B D"]:
        """The user's vector.

        Raises:
            ValueError: Users are not given, or one is not in the data.
        """
        vectors: Tensor = self.users(history.users)
        return vectors

    def set_learned_users(self, learned: Bool[Tensor, " U"]) -> None:
        """Know nothing of the others."""
        self.users.clear_unlearned(learned)

    def item_vectors(self) -> Float[Tensor, "V D"]:
        """The table of item vectors."""
        return self.items.weight
