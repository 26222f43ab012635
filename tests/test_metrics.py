"""Metrics of ranks: by hand, equal to torchmetrics', and the same however users are parted among workers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional import retrieval

from raysrec.metrics import RankSums, holm, paired_test, values_of_ranks
from raysrec.ranking import rank_of_target


def test_metrics_by_hand() -> None:
    means = RankSums.of(torch.tensor([1, 3, 11]), ks=(2, 10)).means()
    assert means == pytest.approx(
        {
            "hr@2": 1 / 3,
            "ndcg@2": 1 / 3,
            "mrr@2": 1 / 3,
            "hr@10": 2 / 3,
            "ndcg@10": (1 + 1 / 2) / 3,
            "mrr@10": (1 + 1 / 3) / 3,
        }
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_metrics_are_those_of_torchmetrics(seed: int) -> None:
    # Positive, since torchmetrics' reciprocal rank takes items of score zero and below for irrelevant.
    scores = torch.randn(20, generator=torch.Generator().manual_seed(seed)).exp()
    relevant = torch.arange(20) == seed % 20
    vectors = torch.cat((torch.zeros(1), scores))[:, None]
    rank = rank_of_target(torch.ones(1, 1), vectors, torch.tensor([seed % 20 + 1]))
    for k in (1, 5, 10):
        means = RankSums.of(rank, ks=(k,)).means()
        assert means[f"hr@{k}"] == pytest.approx(retrieval.retrieval_hit_rate(scores, relevant, top_k=k).item())
        assert means[f"ndcg@{k}"] == pytest.approx(retrieval.retrieval_normalized_dcg(scores, relevant, top_k=k).item())
        assert means[f"mrr@{k}"] == pytest.approx(retrieval.retrieval_reciprocal_rank(scores, relevant, top_k=k).item())


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 50)), min_size=1, max_size=5))
def test_sums_do_not_depend_on_the_partition(parts: list[list[int]]) -> None:
    tensors = [torch.tensor(part, dtype=torch.int64) for part in parts]
    whole = RankSums.of(torch.cat(tensors))
    added = RankSums.from_vector(torch.stack([RankSums.of(part).to_vector() for part in tensors]).sum(0))
    assert added.count == whole.count == sum(map(len, parts))
    assert added.sums == pytest.approx(whole.sums)
    assert added.squares == pytest.approx(whole.squares)
    assert RankSums.from_vector(whole.to_vector()) == whole


def test_sums_add() -> None:
    left, right = torch.tensor([1, 4]), torch.tensor([9, 100, 2])
    added = RankSums.of(left) + RankSums.of(right)
    assert added.means() == pytest.approx(RankSums.of(torch.cat((left, right))).means())
    with pytest.raises(ValueError, match="different metrics"):
        RankSums.of(left) + RankSums.of(right, ks=(3,))


def test_intervals_are_1_96_standard_errors_wide() -> None:
    ranks = torch.arange(1, 41)
    values = values_of_ranks(ranks, (20,))["ndcg@20"].numpy()
    low, high = RankSums.of(ranks, (20,)).intervals()["ndcg@20"]
    error = values.std(ddof=1) / math.sqrt(40)
    assert (low, high) == pytest.approx((values.mean() - 1.959964 * error, values.mean() + 1.959964 * error))
    assert RankSums.of(ranks[:1], (20,)).intervals()["hr@20"] == (0, 1)
    one_of_many = torch.tensor([1] + [99] * 9)
    assert RankSums.of(one_of_many, (20,)).intervals()["hr@20"][0] == 0
    assert RankSums.of(torch.tensor([99] + [1] * 9), (20,)).intervals()["hr@20"][1] == 1


def test_no_users_have_no_metrics() -> None:
    with pytest.raises(ValueError, match="no user was ranked"):
        RankSums.of(torch.zeros(0, dtype=torch.int64)).means()
    with pytest.raises(ValueError, match="the best rank is 1"):
        RankSums.of(torch.tensor([0]))


def test_paired_test_by_hand() -> None:
    worse, better = np.array([1, 20, 20, 20, 1, 20]), np.array([1, 1, 1, 20, 1, 20])
    test = paired_test(worse, better, "hr@10")
    error = np.std([0, 1, 1, 0, 0, 0], ddof=1) / math.sqrt(6)
    assert test.difference == pytest.approx(1 / 3)
    assert test.interval == pytest.approx((1 / 3 - 1.959964 * error, 1 / 3 + 1.959964 * error))
    assert test.p_value == pytest.approx(math.erfc(1 / 3 / error / math.sqrt(2)))
    assert paired_test(worse, worse).p_value == 1


def test_paired_test_finds_differences_as_often_as_it_says() -> None:
    make = np.random.default_rng(0)
    found = [
        paired_test(make.integers(1, 40, 300), make.integers(1, 40, 300), "mrr@20").p_value < 0.05 for _ in range(400)
    ]
    # 400 draws of probability 0.05 stay within 4 standard deviations (0.011 each).
    assert 0.006 < np.mean(found) < 0.094


def test_paired_test_refuses_what_it_cannot_answer() -> None:
    ranks = np.array([1, 2])
    with pytest.raises(ValueError, match="unknown metric 'recall@10'"):
        paired_test(ranks, ranks, "recall@10")
    with pytest.raises(ValueError, match="unknown metric 'hr'"):
        paired_test(ranks, ranks, "hr")
    with pytest.raises(ValueError, match="too few"):
        paired_test(ranks[:1], ranks[:1])


def test_the_correction_for_many_tests_is_holms() -> None:
    assert holm([0.01, 0.04, 0.03]) == [0.03, 0.06, 0.06]
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
