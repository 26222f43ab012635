"""Softmax over the target and a sample of the catalogue, each negative weighted by what it stands for."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from raysrec.losses.candidates import Candidates, sum_over_targets


def sampled_softmax_loss(
    states: Float[Tensor, "P D"],
    vectors: Float[Tensor, "V D"],
    targets: Int[Tensor, " P"],
    negatives: Int[Tensor, " C"] | Int[Tensor, "P C"],
    bias: Float[Tensor, " V"] | None = None,
    *,
    log_expected_counts: Float[Tensor, " C"] | Float[Tensor, "P C"] | None = None,
) -> Float[Tensor, ""]:
    """Minus the log-probability of each target among itself and its negatives, in nats, summed over the targets.

    With the scores s, the target + and the negatives c_1..c_C drawn with expected counts n (C times an item's
    probability), a target's loss is

        log(exp(s_+) + sum over c != + of exp(s_c - log n_c)) - s_+

    Without the target the sum has the expectation of the sum over all other items that can be drawn, so the loss
    estimates `softmax_loss` and comes to it as C grows (for few negatives it is lower: the logarithm of an estimate).
    The target is always there and was not drawn, so nothing is subtracted from its own score. Without
    `log_expected_counts` it is the plain softmax among the candidates: items that are drawn more often are pushed
    down more, at the optimum by the logarithm of their probability.

    Args:
        states: The state at each position that has a target.
        vectors: Row i is item i; row 0 (padding) is neither a class nor a negative.
        targets: Item ids, 1..N.
        negatives: Item ids shared by all targets, or a row of them for each; repetitions count as often as they
            occur. A negative that is 0 or the row's own target is left out.
        bias: A number added to each item's score.
        log_expected_counts: Log of how often each negative was expected among the draws.

    Raises:
        ValueError: A target is not an item 1..N, or a negative is not 0..N.

    Source:
        Khrylchenko et al., "Correcting the LogQ Correction", RecSys 2025, section 4, on why the target is not corrected
        as it is in Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations", RecSys
        2019, and TensorFlow's `sampled_softmax_loss`.
    """

    def cost(seen: Candidates) -> Tensor:
        candidates = torch.cat((seen.own[:, None], seen.negative.masked_fill(~seen.counts, -torch.inf)), dim=1)
        return (candidates.logsumexp(1) - seen.own).sum()

    return sum_over_targets(cost, states, vectors, targets, negatives, bias, discounts=log_expected_counts)
