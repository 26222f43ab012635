"""Ranks and top-k: equal to brute force, whatever the order of users, the chunks and the partition."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from largest_tensor import LargestTensor
from torch import Tensor

from raysrec import ranking
from raysrec.ranking import rank_of_target, top_items

seeds = st.integers(0, 10_000)


def problem(seed: int, *, whole: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Users, items, targets, bias and seen pairs of random sizes; whole numbers make many ties, and exact scores."""
    make = torch.Generator().manual_seed(seed)
    num_users, num_rows, dim, num_seen = (int(torch.randint(low, 25, (), generator=make)) for low in (1, 2, 1, 0))
    states, vectors = (torch.randn(n, dim, generator=make) for n in (num_users, num_rows))
    bias = torch.randn(num_rows, generator=make)
    if whole:
        states, vectors, bias = states.round(), vectors.round(), bias.round()
    targets = torch.randint(1, num_rows, (num_users,), generator=make)
    rows = torch.randint(0, num_users, (num_seen,), generator=make)
    seen = torch.stack((rows, torch.randint(1, num_rows, (num_seen,), generator=make)), dim=1)
    return states, vectors, targets, bias, seen


def scores_by_hand(states: Tensor, vectors: Tensor, bias: Tensor) -> np.ndarray:
    scores = states.double().numpy() @ vectors.double().numpy().T + bias.double().numpy()
    return np.asarray(scores)


@settings(deadline=None)
@given(seeds, st.integers(1, 30))
def test_ranks_are_those_of_brute_force(seed: int, items_per_chunk: int) -> None:
    states, vectors, targets, bias, seen = problem(seed)
    scores = scores_by_hand(states, vectors, bias)
    pairs = set(map(tuple, seen.tolist()))
    expected = [
        1
        + sum(
            scores[user, item] >= scores[user, target]
            for item in range(1, len(vectors))
            if item != target and (user, item) not in pairs
        )
        for user, target in enumerate(targets.tolist())
    ]
    ranks = rank_of_target(states, vectors, targets, bias, seen, items_per_chunk=items_per_chunk)
    assert ranks.tolist() == expected


@settings(deadline=None)
@given(seeds, st.integers(1, 30))
def test_top_items_are_those_of_brute_force(seed: int, items_per_chunk: int) -> None:
    states, vectors, _, bias, seen = problem(seed)
    scores = scores_by_hand(states, vectors, bias)
    pairs = set(map(tuple, seen.tolist()))
    items, best = top_items(states, vectors, 4, bias, seen, items_per_chunk=items_per_chunk)
    for user in range(len(states)):
        candidates = [item for item in range(1, len(vectors)) if (user, item) not in pairs]
        expected = sorted(candidates, key=lambda item: (-scores[user, item], item))[:4]
        missing = 4 - len(expected)
        assert items[user].tolist() == expected + [0] * missing
        assert best[user].tolist() == [scores[user, item] for item in expected] + [-math.inf] * missing


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 30), st.integers(1, 60))
def test_chunks_order_and_partition_of_users_do_not_matter(seed: int, items_per_chunk: int, at_once: int) -> None:
    states, vectors, targets, bias, seen = problem(seed, whole=False)
    ranks = rank_of_target(states, vectors, targets, bias, seen)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "_SCORES_AT_ONCE", at_once)
        again = rank_of_target(states, vectors, targets, bias, seen, items_per_chunk=items_per_chunk)
    assert torch.equal(again, ranks)
    order = torch.randperm(len(states))
    where = order.argsort()
    moved = torch.stack((where[seen[:, 0]], seen[:, 1]), dim=1)[torch.randperm(len(seen))]
    assert torch.equal(rank_of_target(states[order], vectors, targets[order], bias, moved), ranks[order])
    for user in range(len(states)):
        alone = seen[seen[:, 0] == user] * torch.tensor([0, 1])
        part = slice(user, user + 1)
        assert torch.equal(rank_of_target(states[part], vectors, targets[part], bias, alone), ranks[part])


@pytest.mark.parametrize(("num_users", "num_items"), [(40, 900), (900, 40)])
def test_no_more_scores_exist_at_once_than_are_meant_to(num_users: int, num_items: int) -> None:
    states, vectors = torch.randn(num_users, 2), torch.randn(num_items + 1, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "_SCORES_AT_ONCE", 3_000)
        for rank in (
            lambda: rank_of_target(states, vectors, torch.ones(num_users, dtype=torch.int64), items_per_chunk=100),
            lambda: top_items(states, vectors, 3, items_per_chunk=100),
        ):
            with LargestTensor() as largest:
                rank()
            assert 2_000 <= largest.values <= 3_000


@pytest.mark.parametrize("items_per_chunk", [1, 7, 64, 499, 65_536])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_scores_all_items_alike_ranks_last(items_per_chunk: int, dtype: torch.dtype) -> None:
    make = torch.Generator().manual_seed(0)
    states = torch.randn(50, 64, generator=make).to(dtype)
    vectors = torch.randn(1, 64, generator=make).to(dtype).expand(500, 64).contiguous()
    targets = torch.randint(1, 500, (50,), generator=make)
    assert (rank_of_target(states, vectors, targets, items_per_chunk=items_per_chunk) == 499).all()
    items, _ = top_items(states, vectors, 3, items_per_chunk=items_per_chunk)
    assert (items == torch.tensor([1, 2, 3])).all()


def test_scores_that_float32_cannot_tell_apart_are_ties() -> None:
    vectors = torch.ones(4, 8)
    vectors[2:] += torch.tensor(2.0**-23)
    assert rank_of_target(torch.ones(1, 8), vectors, torch.tensor([2])).tolist() == [3]
    vectors[2:] += torch.tensor(2.0**-20)
    assert rank_of_target(torch.ones(1, 8), vectors, torch.tensor([2])).tolist() == [2]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_not_finite_counts_against_the_model(bad: float) -> None:
    states, vectors = torch.ones(2, 1), torch.tensor([[9.0], [3.0], [2.0], [bad]])
    assert rank_of_target(states, vectors, torch.tensor([1, 3])).tolist() == [2, 3]


def test_an_item_without_a_score_is_not_recommended() -> None:
    vectors = torch.tensor([[9.0], [math.nan], [2.0], [-math.inf], [3.0]])
    items, scores = top_items(torch.ones(1, 1), vectors, 4)
    assert items.tolist() == [[4, 2, 0, 0]]
    assert scores.tolist() == [[3.0, 2.0, -math.inf, -math.inf]]


def test_minus_zero_ties_with_zero() -> None:
    items, _ = top_items(torch.ones(1, 1), torch.tensor([[9.0], [-0.0], [0.0], [-0.0]]), 3)
    assert items.tolist() == [[1, 2, 3]]


def test_padding_is_never_a_candidate() -> None:
    states, vectors, targets = torch.ones(2, 1), torch.tensor([[9.0], [3.0], [2.0]]), torch.tensor([1, 2])
    assert rank_of_target(states, vectors, targets).tolist() == [1, 2]
    assert top_items(states, vectors, 3)[0].tolist() == [[1, 2, 0]] * 2


def test_a_target_seen_before_stays_a_candidate() -> None:
    states, vectors = torch.ones(1, 1), torch.tensor([[0.0], [3.0], [2.0], [1.0]])
    seen = torch.tensor([[0, 1], [0, 2], [0, 2], [0, 0]])
    assert rank_of_target(states, vectors, torch.tensor([2]), seen=seen).tolist() == [1]
    assert rank_of_target(states, vectors, torch.tensor([3]), seen=seen).tolist() == [1]


def test_no_users_have_no_ranks() -> None:
    states, vectors = torch.zeros(0, 3), torch.ones(4, 3)
    assert rank_of_target(states, vectors, torch.zeros(0, dtype=torch.int64)).tolist() == []
    assert top_items(states, vectors, 2)[0].shape == (0, 2)


def test_what_does_not_exist_is_refused() -> None:
    states, vectors, targets = torch.ones(2, 1), torch.ones(4, 1), torch.tensor([1, 2])
    with pytest.raises(ValueError, match=r"targets are 0\.\.2, but must be 1\.\.3"):
        rank_of_target(states, vectors, torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"targets are 1\.\.4, but must be 1\.\.3"):
        rank_of_target(states, vectors, torch.tensor([1, 4]))
    with pytest.raises(ValueError, match="items of seen"):
        rank_of_target(states, vectors, targets, seen=torch.tensor([[0, 4]]))
    with pytest.raises(ValueError, match="rows of seen"):
        top_items(states, vectors, 1, seen=torch.tensor([[2, 1]]))
    with pytest.raises(ValueError, match="items_per_chunk=0"):
        rank_of_target(states, vectors, targets, items_per_chunk=0)
    with pytest.raises(ValueError, match="k=0"):
        top_items(states, vectors, 0)
