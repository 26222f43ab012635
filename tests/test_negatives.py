"""Draws: of the right distribution, without what is excluded, and corrected to the exact softmax."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raysrec.losses import sampled_softmax_loss, softmax_loss
from raysrec.negatives import ItemDistribution, _holes, in_batch, popularity, uniform

COUNTS = torch.tensor([99, 50, 20, 10, 5, 5, 3, 1, 1, 0])
"""Of items 1..9; the first entry is padding's, the last item never occurs."""


def chi_square(items: Tensor, probabilities: Tensor) -> float:
    """How far the counts of drawn items are from the expected; items of probability 0 must not occur."""
    found = items.flatten().bincount(minlength=len(probabilities)).double()
    assert (found[probabilities == 0] == 0).all()
    expected = probabilities[probabilities > 0] * items.numel()
    return float(((found[probabilities > 0] - expected) ** 2 / expected).sum())


def popular(power: float) -> Tensor:
    weights = COUNTS.double().clamp_min(1) ** power
    weights[0] = 0
    return weights / weights.sum()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(40_000,), (400, 100)])
def test_uniform_draws_every_item_alike(shape: tuple[int, ...]) -> None:
    drawn = uniform(9).draw(shape, generator=generator())
    assert drawn.items.shape == drawn.log_probabilities.shape == shape
    even = torch.tensor([0.0, *[1 / 9] * 9], dtype=torch.float64)
    assert chi_square(drawn.items, even) < 26.1  # 8 degrees of freedom: one in a thousand is above
    torch.testing.assert_close(drawn.log_probabilities.double(), even[drawn.items].log(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("power", [1.0, 0.75, 0.0])
def test_popularity_draws_a_power_of_the_counts(power: float) -> None:
    drawn = popularity(COUNTS, power).draw((40_000,), generator=generator())
    assert chi_square(drawn.items, popular(power)) < 26.1
    torch.testing.assert_close(drawn.log_probabilities.double(), popular(power)[drawn.items].log(), rtol=1e-5, atol=0)
    assert drawn.draws == 40_000


EXCLUDE = torch.tensor([[1, 2, 1, 0], [0, 0, 0, 0], [9, 5, 1, 3], [2, 2, 2, 2]])


def pairs(exclude: Tensor) -> Tensor:
    """Rows of items, 0 for none, as pairs (row, item)."""
    return torch.cat((exclude.nonzero()[:, :1], exclude[exclude > 0][:, None]), dim=1)


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
def test_exclusions_are_complete_and_leave_the_other_items_their_proportions(kind: str) -> None:
    distribution = uniform(9) if kind == "uniform" else popularity(COUNTS, 0.5)
    drawn = distribution.draw((4, 20_000), exclude=pairs(EXCLUDE), generator=generator())
    for row in range(4):
        left = torch.ones(10, dtype=torch.float64) if kind == "uniform" else popular(0.5)
        left[0], left[EXCLUDE[row]] = 0, 0
        left /= left.sum()
        assert chi_square(drawn.items[row], left) < 26.1
        torch.testing.assert_close(
            drawn.log_probabilities[row].double(), left[drawn.items[row]].log(), rtol=1e-5, atol=1e-6
        )


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_nothing_excluded_is_ever_drawn(data: st.DataObject) -> None:
    num_items = data.draw(st.integers(1, 12))
    counts = torch.tensor([0, *data.draw(st.lists(st.integers(0, 10**6), min_size=num_items, max_size=num_items))])
    rows = st.lists(st.integers(0, num_items), min_size=6, max_size=6)
    exclude = torch.tensor(data.draw(st.lists(rows, min_size=1, max_size=5)))
    drawn = popularity(counts, data.draw(st.sampled_from([0.0, 0.75, 2.0]))).draw(
        (len(exclude), 50), exclude=pairs(exclude), generator=generator(data.draw(st.integers(0, 99)))
    )
    for items, log_probabilities, excluded in zip(drawn.items, drawn.log_probabilities, exclude, strict=True):
        allowed = set(range(1, num_items + 1)) - set(excluded.tolist())
        assert set(items.tolist()) <= (allowed or {0})
        assert bool(log_probabilities.isfinite().all()) == bool(allowed)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_what_is_left_is_the_whole_without_the_holes_position_by_position(data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    pair = st.tuples(st.integers(0, 3), st.integers(0, len(weights)))
    exclude = data.draw(st.lists(pair, min_size=1, max_size=12))
    rows = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=5))
    holes = _holes(ItemDistribution(torch.tensor(weights)), torch.tensor(exclude), torch.tensor(rows))
    item_at = [item for item, weight in enumerate(weights, start=1) for _ in range(weight)]
    for target, row in enumerate(rows):
        left = [position for position, item in enumerate(item_at) if (row, item) not in exclude]
        assert int(holes.removed[target]) == len(item_at) - len(left)
        positions = torch.arange(len(left)).expand(len(rows), -1)
        assert holes.widen(positions)[target].tolist() == left


def test_several_targets_may_share_a_row_of_exclusions() -> None:
    rows = torch.tensor([2, 0, 0, 3, 1])
    far_apart = pairs(EXCLUDE) * torch.tensor([10**9, 1])  # as numbers of users may be
    drawn = uniform(9).draw((5, 300), exclude=far_apart, rows=rows * 10**9, generator=generator())
    expected = uniform(9).draw((5, 300), exclude=pairs(EXCLUDE[rows]), generator=generator())
    assert torch.equal(drawn.items, expected.items)
    assert torch.equal(drawn.log_probabilities, expected.log_probabilities)


def test_exclusions_need_a_sample_for_each_row() -> None:
    for shape in ((4,), (5, 7)):
        with pytest.raises(ValueError, match="has no row for each of 4 targets"):
            uniform(9).draw(shape, exclude=pairs(EXCLUDE), rows=torch.arange(4))


def test_the_same_generator_draws_the_same_and_none_takes_torchs_own() -> None:
    def items(seed: int | None) -> Tensor:
        return uniform(50).draw((30,), generator=None if seed is None else generator(seed)).items

    assert torch.equal(items(1), items(1))
    assert not torch.equal(items(1), items(2))
    torch.manual_seed(5)
    one = items(None)
    torch.manual_seed(5)
    assert torch.equal(one, items(None))


def test_the_last_item_of_a_long_catalogue_can_be_drawn_and_none_beyond() -> None:
    drawn = popularity(torch.ones(2_000_001, dtype=torch.int64)).draw((200_000,), generator=generator())
    assert int(drawn.items.min()) >= 1
    assert 1_999_900 < int(drawn.items.max()) <= 2_000_000


def test_the_batchs_targets_are_drawn_by_the_others() -> None:
    targets = torch.tensor([3, 1, 1, 7])
    drawn = in_batch(targets, popularity(COUNTS))
    assert torch.equal(drawn.items, targets)
    assert drawn.draws == 3
    expected = (3 * popular(1.0)[targets]).log()
    torch.testing.assert_close(drawn.log_expected_counts().double(), expected, rtol=1e-5, atol=1e-5)


def exact_problem(num_items: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    make = generator(3)
    states = torch.randn(4, 3, generator=make, dtype=torch.float64).requires_grad_()
    vectors = torch.randn(num_items + 1, 3, generator=make, dtype=torch.float64).requires_grad_()
    return states, vectors, torch.tensor([1, 8, 4, 1])


def slopes(loss: Tensor, *inputs: Tensor) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, inputs)])


@pytest.mark.parametrize("own", [False, True])
def test_with_the_correction_many_negatives_give_the_exact_softmax_and_without_they_do_not(own: bool) -> None:
    states, vectors, targets = exact_problem()
    exact = softmax_loss(states, vectors, targets)
    exact_slopes = slopes(exact, states, vectors)
    drawn = popularity(COUNTS).draw((4, 200_000) if own else (200_000,), generator=generator())
    corrected = sampled_softmax_loss(
        states, vectors, targets, drawn.items, log_expected_counts=drawn.log_expected_counts()
    )
    # The rarest item is drawn 2,000 times: a few percent of what it adds.
    assert corrected.item() == pytest.approx(exact.item(), rel=0.01)
    assert (slopes(corrected, states, vectors) - exact_slopes).abs().max() < 0.02
    # As if they were uniform: the best one can do without knowing how they were drawn.
    shares = torch.full(drawn.items.shape, drawn.draws / 9, dtype=torch.float64).log()
    uncorrected = sampled_softmax_loss(states, vectors, targets, drawn.items, log_expected_counts=shares)
    assert abs(uncorrected.item() - exact.item()) > 0.1 * exact.item()
    assert (slopes(uncorrected, states, vectors) - exact_slopes).abs().max() > 0.1


def test_the_sum_over_the_other_items_is_estimated_without_bias_by_few_negatives() -> None:
    states, vectors, targets = (each.detach() for each in exact_problem())
    scores = states[0] @ vectors.T
    exact = scores[1:].exp().sum() - scores[targets[0]].exp()
    estimates = []
    make = generator()
    for _ in range(600):
        drawn = popularity(COUNTS, 0.5).draw((3,), generator=make)
        loss = sampled_softmax_loss(
            states[:1], vectors, targets[:1], drawn.items, log_expected_counts=drawn.log_expected_counts()
        )
        # exp(loss) = (own + estimate) / own
        estimates.append(loss.expm1() * scores[targets[0]].exp())
    found = torch.stack(estimates)
    assert abs(found.mean() - exact) < 4 * found.std() / len(found) ** 0.5
    assert found.std() / len(found) ** 0.5 < 0.1 * exact
