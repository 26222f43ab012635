from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raysrec.history import History
from raysrec.models.mamba4rec import Layer, Mamba4Rec, Mamba4RecConfig
from raysrec.models.mamba_block import MambaBlock

ML_1M_ITEMS = 3416


def size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def step_sizes(model: Mamba4Rec) -> Tensor:
    """Delta of every channel for an input of nothing."""
    return F.softplus(model.layers[0].mamba.step_size.bias).detach()


def test_init02_starts_with_a_memory_that_halves_per_item() -> None:
    model = Mamba4Rec(Mamba4RecConfig(mamba_init="init02"), 50)
    torch.testing.assert_close(step_sizes(model), torch.full((128,), 0.6931), rtol=1e-4, atol=0)
    for linear in (model.layers[0].mamba.into, model.layers[0].mamba.step_size):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.15)


def test_library_starts_with_memories_from_tens_to_a_thousand_items() -> None:
    delta = step_sizes(Mamba4Rec(Mamba4RecConfig(mamba_init="library"), 50))
    assert delta.min() >= 0.999e-3
    assert delta.max() <= 0.1001
    # Log-uniform: the middle one is the geometric mean of the ends, give or take what 128 draws allow.
    assert delta.log().mean().exp().item() == pytest.approx(0.01, rel=0.5)


@pytest.mark.parametrize("init", ["init02", "library"])
def test_decays_and_skips_start_as_in_mamba(init: str) -> None:
    block = Mamba4Rec(Mamba4RecConfig.model_validate({"mamba_init": init}), 50).layers[0].mamba
    torch.testing.assert_close(block.a_log.exp(), torch.arange(1.0, 33.0).expand(128, 32))
    torch.testing.assert_close(block.skip, torch.ones(128))
    assert block.conv_weight.abs().max() <= 0.5


def test_only_a_single_layer_has_no_residual() -> None:
    assert [layer.residual for layer in Mamba4Rec(Mamba4RecConfig(num_layers=1), 50).layers] == [False]
    assert [layer.residual for layer in Mamba4Rec(Mamba4RecConfig(num_layers=2), 50).layers] == [True, True]


def test_the_residual_carries_the_input_past_a_silent_block() -> None:
    x = torch.randn(2, 5, 8)
    for residual in (False, True):
        layer = Layer(MambaBlock(dim=8, d_state=4, d_conv=4, expand=2), dim=8, dropout=0.0, residual=residual)
        torch.nn.init.zeros_(layer.mamba.out.weight)
        differs = (layer(x) - layer(-x)).abs().max() > 0.1
        assert bool(differs) == residual


def small(**changes: Any) -> Mamba4Rec:
    """A small model in float64 with weights that make every part matter."""
    torch.manual_seed(0)
    sizes = {"dim": 8, "max_length": 6, "d_state": 4}
    model = Mamba4Rec(Mamba4RecConfig.model_validate({**sizes, **changes}), 50).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def history_of(*items: int) -> History:
    row = torch.tensor([items])
    return History(row, torch.zeros_like(row), torch.tensor([len(items)]))


# Table 4 of the paper, counted from its equations for MovieLens-1M.
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 290_944),
        ({"parts": "block_only"}, 257_600),
        ({"parts": "no_feed_forward"}, 257_728),
        ({"positions": "learned"}, 303_744),
        ({"parts": "no_layer_norm"}, 290_560),
        ({"num_layers": 2}, 363_072),
    ],
    ids=str,
)
def test_ablations_have_the_papers_numbers_of_parameters(changes: dict[str, Any], expected: int) -> None:
    assert size(Mamba4Rec(Mamba4RecConfig.model_validate(changes), ML_1M_ITEMS)) == expected


def test_block_only_is_the_mamba_block_of_the_embedding() -> None:
    model, past = small(parts="block_only"), history_of(3, 1, 4)
    expected = model.layers[0].mamba(model.embedding(past.items))
    torch.testing.assert_close(model.encode(past), expected)
    assert isinstance(model.embedding.norm, torch.nn.LayerNorm)


def test_without_feed_forward_the_normalised_block_is_the_output() -> None:
    model, past = small(parts="no_feed_forward"), history_of(3, 1, 4)
    layer = model.layers[0]
    expected = layer.mamba_norm(layer.mamba(model.embedding(past.items)))
    torch.testing.assert_close(model.encode(past), expected)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_without_layer_norm_nothing_is_normalised_and_the_residuals_stay(num_layers: int) -> None:
    model, past = small(parts="no_layer_norm", num_layers=num_layers), history_of(3, 1, 4)
    x = model.embedding.table.weight[past.items]
    for layer in model.layers:
        z = layer.mamba(x) + (x if num_layers > 1 else 0)
        assert layer.feed_forward is not None
        x = layer.feed_forward(z) + z
    torch.testing.assert_close(model.encode(past), x)
    assert not any(isinstance(part, torch.nn.LayerNorm) for part in model.modules())


def test_learned_positions_are_added_before_the_embeddings_normalisation() -> None:
    model, past = small(positions="learned"), history_of(3, 1, 4)
    assert model.positions is not None
    x = model.embedding.norm(model.embedding.table.weight[past.items] + model.positions.table.weight[:3])
    torch.testing.assert_close(model.encode(past), model.layers[0](x))


def test_with_positions_a_history_ends_at_max_length_and_without_it_does_not() -> None:
    for positions in ("none", "learned"):
        model = small(positions=positions)
        state = model.initial_state(1)
        for _ in range(6):
            _, state = model.step(torch.tensor([7]), state)
        if positions == "none":
            model.step(torch.tensor([7]), state)
            assert model.encode(history_of(*[7] * 7)).shape == (1, 7, 8)
            continue
        for ask in (lambda: model.step(torch.tensor([7]), state), lambda: model.encode(history_of(*[7] * 7))):  # noqa: B023
            with pytest.raises(ValueError, match="position 6 has no vector"):
                ask()
