from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from raysrec.history import History
from raysrec.models.mamba4rec import Layer, Mamba4Rec, Mamba4RecConfig, MambaBlock

ML_1M_ITEMS = 3416


def size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def step_sizes(model: Mamba4Rec) -> Tensor:
    """Delta of every channel for an input of nothing."""
    return F.softplus(model.layers[0].mamba.step_size.bias).detach()


# Counted from the paper's equations, for MovieLens-1M.
@pytest.mark.parametrize(("num_layers", "expected"), [(1, 290_944), (2, 363_072)])
def test_it_has_the_papers_number_of_parameters(num_layers: int, expected: int) -> None:
    model = Mamba4Rec(Mamba4RecConfig(num_layers=num_layers), ML_1M_ITEMS)
    assert size(model) == expected
    assert size(model.layers[0].mamba) == 38_784


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
        layer = Layer(dim=8, d_state=4, d_conv=4, expand=2, dropout=0.0, residual=residual)
        torch.nn.init.zeros_(layer.mamba.out.weight)
        differs = (layer(x) - layer(-x)).abs().max() > 0.1
        assert bool(differs) == residual


def test_the_block_is_its_equations() -> None:
    # Position by position and channel by channel, as the paper writes them.
    torch.manual_seed(0)
    block = MambaBlock(dim=4, d_state=3, d_conv=2, expand=2).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    h = torch.zeros(8, 3, dtype=torch.float64)
    a_before = torch.zeros(8, dtype=torch.float64)
    expected = []
    for x_t in x:
        a, g = (block.into.weight @ x_t).split(8)
        u = F.silu(block.conv_weight[:, 0] * a_before + block.conv_weight[:, 1] * a + block.conv_bias)
        r, b, c = (block.select.weight @ u).split([1, 3, 3])
        delta = F.softplus(block.step_size.weight @ r + block.step_size.bias)
        h = torch.exp(-delta[:, None] * block.a_log.exp()) * h + torch.outer(delta * u, b)
        expected.append(block.out.weight @ ((h @ c + block.skip * u) * F.silu(g)))
        a_before = a
    torch.testing.assert_close(block(x[None])[0], torch.stack(expected))


def test_the_memory_is_4480_numbers_per_layer() -> None:
    state = Mamba4Rec(Mamba4RecConfig(), 50).initial_state(3)
    assert [(tuple(one.window.shape), tuple(one.scan.shape)) for one in state] == [((3, 3, 128), (3, 128, 32))]


@pytest.mark.parametrize("num_layers", [1, 2])
def test_stepping_through_a_long_history_is_encoding_it(num_layers: int) -> None:
    torch.manual_seed(0)
    model = Mamba4Rec(Mamba4RecConfig(num_layers=num_layers, mamba_init="library"), 50).eval()
    items = torch.randint(1, 51, (2, 100))
    with torch.no_grad():
        states = model.encode(History(items, torch.zeros_like(items), torch.tensor([100, 100])))
        memory = model.initial_state(2)
        for t in range(100):
            state, memory = model.step(items[:, t], memory)
            torch.testing.assert_close(state, states[:, t], rtol=1e-5, atol=1e-5)


def test_the_shipped_overlay_is_the_papers_model() -> None:
    text = (Path(__file__).parent.parent / "configs" / "models" / "mamba4rec.yaml").read_text()
    config = Mamba4RecConfig.model_validate(yaml.safe_load(text)["model"])
    assert config == Mamba4RecConfig()
