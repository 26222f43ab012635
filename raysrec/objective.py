"""A Batch in, a loss total and a number of targets out: the module that an engine wraps.

The loss and the item table are used inside `forward`, where ZeRO-3 has gathered the parameters.
"""

from jaxtyping import Float
from torch import Tensor, nn

from raysrec.config import LossConfig
from raysrec.history import Batch
from raysrec.losses import softmax_loss
from raysrec.models import SequenceModel


class Objective(nn.Module):
    """The loss of a model over the targets of a batch, as a sum.

    Args:
        model: What is trained.
        config: Which loss.
    """

    def __init__(self, model: SequenceModel, config: LossConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        """Sum over all positions that have a target; divide by `batch.num_targets()` for the mean."""
        states = self.model.encode(batch.history)
        learns = batch.targets != 0
        return softmax_loss(states[learns], self.model.item_vectors(), batch.targets[learns], self.model.item_bias())
