import pytest
import torch
from torch import Tensor

from raysrec.history import History
from raysrec.models.popularity import Popularity, PopularityConfig
from raysrec.ranking import rank_of_target, top_items

COUNTS = torch.tensor([0, 7, 2_000_000_000, 0, 300])


def counted() -> Popularity:
    model = Popularity(PopularityConfig(), num_items=4)
    model.set_item_counts(COUNTS)
    return model


def states(model: Popularity) -> Tensor:
    items = torch.tensor([[3, 1], [4, 0]])
    return model.read(History(items, torch.zeros_like(items), torch.tensor([2, 1])))


def test_there_is_nothing_to_learn() -> None:
    assert list(counted().parameters()) == []


def test_items_are_ranked_by_their_counts_for_everyone() -> None:
    model = counted()
    items, _ = top_items(states(model), model.item_vectors(), 4, model.item_bias())
    assert items.tolist() == [[2, 4, 1, 3]] * 2
    ranks = rank_of_target(states(model), model.item_vectors(), torch.tensor([4, 3]), model.item_bias())
    assert ranks.tolist() == [2, 4]


def test_scores_are_logarithms_so_that_their_softmax_is_the_share_of_items() -> None:
    torch.testing.assert_close(counted().item_bias(), torch.log(1 + COUNTS.float()))


def test_counts_are_kept_with_the_weights_whatever_the_precision() -> None:
    again = Popularity(PopularityConfig(), num_items=4).to(torch.bfloat16)
    again.load_state_dict(counted().to(torch.bfloat16).state_dict())
    assert torch.equal(again.item_bias(), counted().item_bias())


def test_before_it_is_told_the_counts_all_items_are_alike() -> None:
    assert torch.equal(Popularity(PopularityConfig(), num_items=4).item_bias(), torch.zeros(5))


def test_counts_of_another_catalogue_are_refused() -> None:
    with pytest.raises(ValueError, match="4 counts for 5 items"):
        counted().set_item_counts(COUNTS[:4])
