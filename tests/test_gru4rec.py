import pytest
import torch

from raysrec.history import History
from raysrec.models.gru4rec import GRU4Rec, GRU4RecConfig

ML_1M_ITEMS = 3416


# Counted from the paper's equations, for MovieLens-1M.
@pytest.mark.parametrize(("num_layers", "expected"), [(1, 300_672), (2, 300_672 + 2 * 3 * 128 * 128)])
def test_it_has_the_papers_number_of_parameters(num_layers: int, expected: int) -> None:
    model = GRU4Rec(GRU4RecConfig(num_layers=num_layers), ML_1M_ITEMS)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_it_is_its_equations() -> None:
    # Position by position, as the paper writes them.
    model = GRU4Rec(GRU4RecConfig(dim=4, hidden_dim=6), 20).double().eval()
    items = torch.randint(1, 21, (1, 9))
    (w_ir, w_iz, w_in), (w_hr, w_hz, w_hn) = (w.chunk(3) for w in model.gru.parameters())
    h, expected = torch.zeros(6, dtype=torch.float64), []
    for x in model.table.weight[items[0]]:
        r, z = torch.sigmoid(w_ir @ x + w_hr @ h), torch.sigmoid(w_iz @ x + w_hz @ h)
        h = (1 - z) * torch.tanh(w_in @ x + r * (w_hn @ h)) + z * h
        expected.append(model.output.weight @ h + model.output.bias)
    states = model.encode(History(items, torch.zeros_like(items), torch.tensor([9])))
    torch.testing.assert_close(states[0], torch.stack(expected))


def test_it_starts_where_recbole_does() -> None:
    model = GRU4Rec(GRU4RecConfig(num_layers=2), ML_1M_ITEMS)
    assert model.table.weight.std().item() == pytest.approx((2 / (ML_1M_ITEMS + 1 + 64)) ** 0.5, rel=0.05)
    bounds = {name: weight.abs().max().item() for name, weight in model.gru.named_parameters()}
    expected = {
        "weight_ih_l0": (6 / (3 * 128 + 64)) ** 0.5,
        "weight_hh_l0": (6 / (3 * 128 + 128)) ** 0.5,
        "weight_ih_l1": 128**-0.5,
        "weight_hh_l1": 128**-0.5,
    }
    assert bounds == pytest.approx(expected, rel=0.01)


def test_the_memory_is_128_numbers() -> None:
    assert GRU4Rec(GRU4RecConfig(), 50).initial_state(3).shape == (3, 1, 128)
