"""Binary cross-entropy: each target is a yes, each negative a no, and every answer is judged by itself."""

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from raysrec.losses.candidates import Candidates, sum_over_targets


def bce_loss(
    states: Float[Tensor, "P D"],
    vectors: Float[Tensor, "V D"],
    targets: Int[Tensor, " P"],
    negatives: Int[Tensor, " C"] | Int[Tensor, "P C"],
    bias: Float[Tensor, " V"] | None = None,
) -> Float[Tensor, ""]:
    """-log sigma(s_+) - sum over negatives of log(1 - sigma(s_c)), in nats, summed over the targets.

    With one negative it is SASRec's. With more their terms add up (as in a sum over all items of which some are
    drawn), so that no's weigh C times as much as the yes; `gbce_loss` divides by all C + 1.

    Args:
        states: The state at each position that has a target.
        vectors: Row i is item i; row 0 (padding) is never a negative.
        targets: Item ids, 1..N.
        negatives: Item ids shared by all targets, or a row of them for each. A negative that is 0 or the row's own
            target is left out.
        bias: A number added to each item's score.

    Raises:
        ValueError: A target is not an item 1..N, or a negative is not 0..N.

    Source:
        Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018, equation 6.
    """

    def cost(seen: Candidates) -> Tensor:
        return functional.softplus(-seen.own).sum() + (functional.softplus(seen.negative) * seen.counts).sum()

    return sum_over_targets(cost, states, vectors, targets, negatives, bias)


def gbce_loss(
    states: Float[Tensor, "P D"],
    vectors: Float[Tensor, "V D"],
    targets: Int[Tensor, " P"],
    negatives: Int[Tensor, " C"] | Int[Tensor, "P C"],
    bias: Float[Tensor, " V"] | None = None,
    *,
    calibration: float = 0.75,
) -> Float[Tensor, ""]:
    """(-beta log sigma(s_+) - sum over C negatives of log(1 - sigma(s_c))) / (C + 1), in nats, summed over the targets.

    Few negatives teach a model to be too sure of its targets; the exponent beta of sigma(s_+) takes that back. With
    the share alpha = C / (N - 1) of other items that are drawn and the calibration t,

        beta = alpha (t (1 - 1/alpha) + 1/alpha) = 1 - t (1 - alpha)

    so t = 0 is binary cross-entropy (`bce_loss` divided by C + 1), and t = 1 gives the probabilities that all N - 1
    negatives would have given. The power of sigma is a factor of its logarithm here, which no score can overflow.

    Args:
        states: The state at each position that has a target.
        vectors: Row i is item i; row 0 (padding) is never a negative.
        targets: Item ids, 1..N.
        negatives: Item ids shared by all targets, or a row of them for each, drawn uniformly. A negative that is 0
            or the row's own target is left out, and the mean is over the others.
        bias: A number added to each item's score.
        calibration: t, 0 to 1.

    Raises:
        ValueError: A target is not an item 1..N, a negative is not 0..N, or the calibration is not 0 to 1.

    Source:
        Petrov and Macdonald, "gSASRec: Reducing Overconfidence in Sequential Recommendation Trained with Negative
        Sampling", RecSys 2023, section 5.
    """
    if not 0.0 <= calibration <= 1.0:
        raise ValueError(f"calibration={calibration}: it goes from 0 (binary cross-entropy) to 1 (fully calibrated)")
    share = min(1.0, negatives.shape[-1] / max(1, len(vectors) - 2))
    beta = 1.0 - calibration * (1.0 - share)

    def cost(seen: Candidates) -> Tensor:
        terms = beta * functional.softplus(-seen.own) + (functional.softplus(seen.negative) * seen.counts).sum(1)
        return (terms / (1 + seen.counts.sum(1))).sum()

    return sum_over_targets(cost, states, vectors, targets, negatives, bias)
