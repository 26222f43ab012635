"""Losses with negatives: equal to sums written out by hand, in value and gradient."""

import math
from collections.abc import Callable

import pytest
import torch
from largest_tensor import LargestTensor
from torch import Tensor

from raysrec.losses import bce_loss, bpr_loss, gbce_loss, sampled_softmax_loss, softmax_loss

TARGETS, ROWS, DIM, NEGATIVES = 9, 8, 3, 5
LOSSES: dict[str, Callable[..., Tensor]] = {
    "sampled_softmax": sampled_softmax_loss,
    "bce": bce_loss,
    "gbce": gbce_loss,
    "bpr": bpr_loss,
}


def problem(*, bias: bool = False, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    states = torch.randn(TARGETS, DIM, dtype=dtype).requires_grad_()
    vectors = torch.randn(ROWS, DIM, dtype=dtype).requires_grad_()
    targets = torch.randint(1, ROWS, (TARGETS,))
    offsets = torch.randn(ROWS, dtype=dtype).requires_grad_() if bias else None
    return states, vectors, targets, offsets


def draw(shared: bool) -> Tensor:
    """Negatives with targets, repetitions and padding among them; one target has none at all but itself and 0."""
    if shared:
        return torch.tensor([3, 1, 3, 0, 6])
    negatives = torch.randint(0, ROWS, (TARGETS, NEGATIVES))
    negatives[4] = 0
    return negatives


def written_out(
    name: str,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor | None],
    negatives: Tensor,
    *,
    log_expected_counts: Tensor | None = None,
    calibration: float = 0.75,
) -> Tensor:
    """One target after the other, from the formulas; exponentials and logarithms as they stand there."""
    states, vectors, targets, bias = inputs
    total = states.sum() * 0 + vectors.sum() * 0 + (0 if bias is None else bias.sum() * 0)
    for row, (state, target) in enumerate(zip(states, targets.tolist(), strict=True)):
        scores = vectors @ state if bias is None else vectors @ state + bias
        own = scores[target]
        drawn = negatives if negatives.ndim == 1 else negatives[row]
        kept = [i for i, item in enumerate(drawn.tolist()) if item not in (0, target)]
        others = [scores[drawn[i]] for i in kept]
        sigma = torch.sigmoid
        if name == "sampled_softmax":
            if log_expected_counts is not None:
                q = log_expected_counts.expand(TARGETS, -1)[row]
                others = [score - q[i] for i, score in zip(kept, others, strict=True)]
            total = total - torch.log(own.exp() / (own.exp() + sum(score.exp() for score in others)))
        if name == "bce":
            total = total - sigma(own).log() - sum((1 - sigma(score)).log() for score in others)
        if name == "gbce":
            alpha = len(drawn) / (ROWS - 2)
            beta = alpha * (calibration * (1 - 1 / alpha) + 1 / alpha)
            terms = -(sigma(own) ** beta).log() - sum((1 - sigma(score)).log() for score in others)
            total = total + terms / (len(others) + 1)
        if name == "bpr" and others:
            total = total - sum(sigma(own - score).log() for score in others) / len(others)
    return total


def assert_equal_with_gradients(loss: Tensor, expected: Tensor, inputs: tuple[Tensor | None, ...]) -> None:
    learned = [each for each in inputs if each is not None and each.requires_grad]
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=1e-11)
    ours = torch.autograd.grad(loss * 0.3, learned)
    for one, other in zip(ours, torch.autograd.grad(expected * 0.3, learned), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_value_and_gradients_are_those_written_out(name: str, shared: bool, bias: bool) -> None:
    inputs, negatives = problem(bias=bias), draw(shared)
    states, vectors, targets, offsets = inputs
    loss = LOSSES[name](states, vectors, targets, negatives, offsets)
    assert_equal_with_gradients(loss, written_out(name, inputs, negatives), inputs)


@pytest.mark.parametrize("shared", [True, False])
def test_expected_counts_are_subtracted_from_negatives_and_not_from_targets(shared: bool) -> None:
    inputs, negatives = problem(bias=True), draw(shared)
    counts = torch.randn(negatives.shape, dtype=torch.float64)
    loss = sampled_softmax_loss(*inputs[:3], negatives, inputs[3], log_expected_counts=counts)
    expected = written_out("sampled_softmax", inputs, negatives, log_expected_counts=counts)
    assert_equal_with_gradients(loss, expected, inputs)


@pytest.mark.parametrize("name", LOSSES)
def test_own_negatives_that_are_all_the_same_are_shared_ones(name: str) -> None:
    inputs, negatives = problem(bias=True), draw(shared=True)
    states, vectors, targets, offsets = inputs
    together = LOSSES[name](states, vectors, targets, negatives, offsets)
    apart = LOSSES[name](states, vectors, targets, negatives.repeat(TARGETS, 1), offsets)
    assert_equal_with_gradients(together, apart, inputs)


@pytest.mark.parametrize("gathered", [True, False])
def test_own_negatives_may_be_gathered_or_not_and_pass_through_memory_in_parts(
    gathered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, negatives = problem(bias=True), draw(shared=False)
    expected = written_out("bpr", inputs, negatives)
    monkeypatch.setattr("raysrec.losses.candidates.picking_is_cheaper", lambda *_: not gathered)
    monkeypatch.setattr("raysrec.losses.candidates.VALUES_AT_ONCE", {"cpu": 2 * NEGATIVES * DIM})
    assert_equal_with_gradients(bpr_loss(*inputs[:3], negatives, inputs[3]), expected, inputs)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("shared", "num_negatives"), [(True, 300), (False, 40), (False, 2)])
def test_scores_pass_through_memory_a_few_targets_at_a_time(
    name: str, shared: bool, num_negatives: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raysrec.losses.candidates.VALUES_AT_ONCE", {"cpu": 3_000})
    states, vectors = torch.randn(400, 4).requires_grad_(), torch.randn(900, 4).requires_grad_()
    negatives = torch.randint(1, 900, (num_negatives,) if shared else (400, num_negatives))
    with LargestTensor() as largest:
        LOSSES[name](states, vectors, torch.arange(1, 401), negatives).backward()
    assert largest.values == vectors.numel()  # its gradient


def test_with_every_other_item_once_the_sampled_softmax_is_the_exact_one() -> None:
    inputs = problem(bias=True)
    loss = sampled_softmax_loss(*inputs[:3], torch.arange(ROWS), inputs[3])
    assert_equal_with_gradients(loss, softmax_loss(*inputs), inputs)


@pytest.mark.parametrize("calibration", [0.0, 0.5, 1.0])
def test_gbce_between_binary_cross_entropy_and_full_calibration(calibration: float) -> None:
    inputs, negatives = problem(), torch.tensor([2, 5, 6])
    loss = gbce_loss(*inputs[:3], negatives, calibration=calibration)
    assert_equal_with_gradients(loss, written_out("gbce", inputs, negatives, calibration=calibration), inputs)
    if calibration == 0.0:
        own = torch.full((TARGETS, 3), 7)
        inputs[2][inputs[2] == 7] = 1
        torch.testing.assert_close(
            gbce_loss(*inputs[:3], own, calibration=0.0), bce_loss(*inputs[:3], own) / 4, rtol=1e-12, atol=0
        )


@pytest.mark.parametrize(("calibration", "calibrated"), [(1.0, True), (0.0, False)])
def test_full_calibration_is_at_rest_at_the_probability_and_binary_cross_entropy_is_not(
    calibration: float, calibrated: bool
) -> None:
    # Of 40 items, item 1 is the target with probability p; otherwise another is, and 1 in 39 times its negative.
    p, num_items, state = 0.2, 40, torch.ones(1, 1, dtype=torch.float64)
    vectors = torch.zeros(num_items + 1, 1, dtype=torch.float64)
    vectors[1] = math.log(p / (1 - p))
    vectors.requires_grad_()
    as_target = gbce_loss(state, vectors, torch.tensor([1]), torch.tensor([2]), calibration=calibration)
    as_negative = gbce_loss(state, vectors, torch.tensor([2]), torch.tensor([1]), calibration=calibration)
    (p * as_target + (1 - p) / (num_items - 1) * as_negative).backward()
    assert vectors.grad is not None
    assert (vectors.grad[1].abs().item() < 1e-12) == calibrated


@pytest.mark.parametrize("calibration", [-0.1, 1.1])
def test_a_calibration_outside_its_range_is_refused(calibration: float) -> None:
    with pytest.raises(ValueError, match=r"calibration=.* goes from 0"):
        gbce_loss(*problem()[:3], draw(True), calibration=calibration)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shared", [True, False])
def test_padding_is_never_a_class(name: str, shared: bool) -> None:
    states, vectors, targets, bias = problem(bias=True)
    assert bias is not None
    negatives = draw(shared)
    loss = LOSSES[name](states, vectors, targets, negatives, bias)
    loud, louder = vectors.detach().clone(), bias.detach().clone()
    loud[0], louder[0] = 1e3, 1e3
    assert LOSSES[name](states, loud, targets, negatives, louder) == loss
    grad_vectors, grad_bias = torch.autograd.grad(loss, (vectors, bias))
    assert (grad_vectors[0] == 0).all()
    assert grad_bias[0] == 0


@pytest.mark.parametrize("name", LOSSES)
def test_scores_beyond_the_range_of_exp_are_finite(name: str) -> None:
    states, vectors, targets, _ = problem(dtype=torch.float32)
    loss = LOSSES[name](states * 1e4, vectors, targets, draw(False))
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, (states, vectors)))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(NEGATIVES,), (0, NEGATIVES)])
def test_no_targets_give_zero_and_gradients_that_arrive(name: str, shape: tuple[int, ...]) -> None:
    states, vectors, targets, bias = problem(bias=True)
    assert bias is not None
    loss = LOSSES[name](states[:0], vectors, targets[:0], torch.ones(shape, dtype=torch.int64), bias)
    loss.backward()
    assert loss == 0
    for given in (states, vectors, bias):
        assert given.grad is not None
        assert (given.grad == 0).all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shared", [True, False])
def test_half_precision_is_computed_in_float32(name: str, shared: bool) -> None:
    states, vectors, targets, bias = problem(bias=True, dtype=torch.bfloat16)
    assert bias is not None
    negatives = draw(shared)
    with torch.autocast("cpu", torch.bfloat16):
        loss = LOSSES[name](states, vectors, targets, negatives, bias)
    assert loss.dtype == torch.float32
    exact = LOSSES[name](states.double(), vectors.double(), targets, negatives, bias.double())
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-5)
    inputs = states, vectors, bias
    for rounded, full in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(exact, inputs), strict=True):
        torch.testing.assert_close(rounded, full, rtol=2**-7, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_ids_that_are_no_items_are_refused(name: str) -> None:
    states, vectors, targets, _ = problem()
    with pytest.raises(ValueError, match=r"negatives are .* but must be items 0\.\.7"):
        LOSSES[name](states, vectors, targets, torch.tensor([1, 8]))
    targets[0] = 0
    with pytest.raises(ValueError, match=r"targets are .* but must be items 1\.\.7"):
        LOSSES[name](states, vectors, targets, torch.tensor([1, 7]))


def test_only_differences_matter_to_bpr() -> None:
    states, vectors, targets, _ = problem()
    shifted = torch.full((ROWS,), 5.0, dtype=torch.float64)
    torch.testing.assert_close(
        bpr_loss(states, vectors, targets, draw(True), shifted), bpr_loss(states, vectors, targets, draw(True))
    )


def test_indifferent_scores_cost_what_a_guess_costs() -> None:
    states, vectors = torch.zeros(2, 3), torch.randn(6, 3)
    arguments = (states, vectors, torch.tensor([1, 2]), torch.tensor([3, 4, 5]))
    assert sampled_softmax_loss(*arguments).item() == pytest.approx(2 * math.log(4))
    assert bce_loss(*arguments).item() == pytest.approx(2 * 4 * math.log(2))
    assert gbce_loss(*arguments, calibration=0.0).item() == pytest.approx(2 * math.log(2))
    assert bpr_loss(*arguments).item() == pytest.approx(2 * math.log(2))
