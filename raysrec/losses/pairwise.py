"""Bayesian personalised ranking: a target should score higher than a negative, by whatever margin."""

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from raysrec.losses.candidates import Candidates, sum_over_targets


def bpr_loss(
    states: Float[Tensor, "P D"],
    vectors: Float[Tensor, "V D"],
    targets: Int[Tensor, " P"],
    negatives: Int[Tensor, " C"] | Int[Tensor, "P C"],
    bias: Float[Tensor, " V"] | None = None,
) -> Float[Tensor, ""]:
    """-log sigma(s_+ - s_c), its mean over each target's negatives, in nats, summed over the targets.

    Args:
        states: The state at each position that has a target.
        vectors: Row i is item i; row 0 (padding) is never a negative.
        targets: Item ids, 1..N.
        negatives: Item ids shared by all targets, or a row of them for each. A negative that is 0 or the row's own
            target is left out, and the mean is over the others; a target without any costs nothing.
        bias: A number added to each item's score.

    Raises:
        ValueError: A target is not an item 1..N, or a negative is not 0..N.

    Source:
        Rendle, Freudenthaler, Gantner, Schmidt-Thieme, "BPR: Bayesian Personalized Ranking from Implicit Feedback",
        UAI 2009, with one negative.
    """

    def cost(seen: Candidates) -> Tensor:
        terms = functional.softplus(seen.negative - seen.own[:, None]) * seen.counts
        return (terms.sum(1) / seen.counts.sum(1).clamp_min(1)).sum()

    return sum_over_targets(cost, states, vectors, targets, negatives, bias)
