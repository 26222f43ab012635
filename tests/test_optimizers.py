import pytest
import torch
from torch import nn

from raysrec.config import TrainConfig
from raysrec.engine.optimizers import build_optimizers, orthogonalised, set_learning_rate
from raysrec.models import MODELS, build_model


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_every_parameter_is_updated_by_exactly_one_optimizer(name, optimizer):
    model = build_model(MODELS[name].Config(name=name, dim=16), num_items=5)
    optimizers = build_optimizers(model, TrainConfig(optimizer=optimizer))
    held = [id(p) for each in optimizers for group in each.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


def test_item_table_and_raw_parameters_are_not_decayed():
    model = build_model(MODELS["mamba4rec"].Config(name="mamba4rec", dim=8), num_items=5)
    (adam,) = build_optimizers(model, TrainConfig(weight_decay=0.1))
    decayed = {id(p) for group in adam.param_groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    assert id(model.item_vectors()) not in decayed


@pytest.mark.parametrize("shape", [(16, 16), (8, 32), (32, 8)])
def test_orthogonalised_keeps_directions_and_evens_out_their_lengths(shape):
    torch.manual_seed(0)
    matrix = torch.randn(2, *shape, dtype=torch.float64)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    found = torch.linalg.svdvals(orthogonalised(matrix))
    assert (found > 0.6).all()
    assert (found < 1.3).all()
    inner = left.mT @ orthogonalised(matrix) @ right.mT
    torch.testing.assert_close(inner, torch.diag_embed(torch.diagonal(inner, dim1=-2, dim2=-1)), atol=1e-9, rtol=0)


def test_muon_scales_with_the_schedule():
    layer = nn.Linear(4, 4, bias=False)
    optimizers = build_optimizers(layer, TrainConfig(optimizer="muon", learning_rate=0.1, muon_learning_rate=0.2))
    set_learning_rate(optimizers, 0.05)
    assert [group["lr"] for each in optimizers for group in each.param_groups] == [0.1, 0.05]
    before = layer.weight.detach().clone()
    layer(torch.randn(3, 4)).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    moved = torch.linalg.svdvals(before - layer.weight.detach())
    assert moved[0] == pytest.approx(0.1, rel=0.35)
