import pytest
import torch
from torch import nn

from raysrec.models.layers import Dropout, ItemEmbedding, flip_first, init_weights_


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dropout_drops_the_asked_share_and_keeps_the_mean(probability: float, dtype: torch.dtype) -> None:
    dropped = Dropout(probability).train()(torch.ones(333, 301, dtype=dtype))
    assert dropped.dtype == dtype
    assert set(dropped.unique().tolist()) == {0.0, float(dropped.max())}
    # Five standard errors of a share of 100,233 coins.
    assert float((dropped == 0).float().mean()) == pytest.approx(probability, abs=0.008)
    assert float(dropped.max()) == pytest.approx(1 / (1 - probability), rel=0.005)


def test_dropout_gives_the_gradient_to_what_it_kept() -> None:
    x = torch.randn(7, 5, requires_grad=True)
    dropped = Dropout(0.4).train()(x)
    (gradient,) = torch.autograd.grad(dropped.sum(), x)
    torch.testing.assert_close(gradient * x, dropped)


@pytest.mark.parametrize("probability", [0.0, 1 - 1e-9])
def test_dropout_at_the_ends_is_finite(probability: float) -> None:
    assert Dropout(probability).train()(torch.ones(50)).isfinite().all()


def test_dropout_follows_the_seed() -> None:
    draws = []
    for _ in range(2):
        torch.manual_seed(5)
        draws.append(Dropout(0.3).train()(torch.ones(9, 9)))
    assert torch.equal(*draws)


def test_dropout_keeps_nothing_of_a_view_s_layout() -> None:
    x = torch.arange(1.0, 13.0).view(3, 4).mT
    dropped = Dropout(0.5).train()(x)
    assert ((dropped == 0) | torch.isclose(dropped, 2 * x)).all()


def test_initial_weights_are_the_papers() -> None:
    parts = nn.ModuleDict({"embedding": ItemEmbedding(num_items=500, dim=64, dropout=0.0), "linear": nn.Linear(64, 64)})
    init_weights_(parts)
    for weight in (parts["embedding"].table.weight, parts["linear"].weight):  # type: ignore[union-attr]
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert (parts["linear"].bias == 0).all()  # type: ignore[operator]
    assert (parts["embedding"].norm.weight == 1).all()  # type: ignore[union-attr, operator]


def test_flipping_reverses_the_first_so_many_and_undoes_itself() -> None:
    x = torch.arange(15.0).view(3, 5, 1)
    counts = torch.tensor([0, 3, 5])
    flipped = flip_first(x, counts)
    assert flipped[..., 0].tolist() == [[0, 1, 2, 3, 4], [7, 6, 5, 8, 9], [14, 13, 12, 11, 10]]
    assert torch.equal(flip_first(flipped, counts), x)


def test_positions_are_added_to_items_before_the_normalisation() -> None:
    embedding = ItemEmbedding(num_items=3, dim=4, dropout=0.0)
    items, positions = torch.tensor([[1, 2]]), torch.randn(2, 4)
    expected = embedding.norm(embedding.table.weight[1:3] + positions)
    torch.testing.assert_close(embedding(items, positions)[0], expected)
    bare = ItemEmbedding(num_items=3, dim=4, dropout=0.0, norm=False)
    assert torch.equal(bare(items)[0], bare.table.weight[1:3])
