import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raysrec.history import History
from raysrec.models.recblr import GatedRecurrence, RecBLR, RecBLRConfig

ML_1M_ITEMS = 3416


def block(zeros_before: int = 0) -> GatedRecurrence:
    return GatedRecurrence(dim=4, d_conv=3, expand=2, zeros_before=zeros_before).double()


def written_out(made: GatedRecurrence, x: Tensor, zeros_before: int) -> Tensor:
    """Position by position, as the paper writes it; after inputs of zero to the convolution."""
    window = [torch.zeros(8, dtype=torch.float64)] * 3
    h, outputs = torch.zeros(8, dtype=torch.float64), []
    for x_t in [None] * zeros_before + list(x):
        a, g = (torch.zeros(8), torch.zeros(8)) if x_t is None else (made.into.weight @ x_t).split(8)
        window = [*window[1:], a]
        u = F.silu(sum(made.conv_weight[:, j] * window[j] for j in range(3)) + made.conv_bias)
        r, i = (made.gates.weight @ u + made.gates.bias).split(8)
        alpha = torch.exp(-F.softplus(made.decay) * torch.sigmoid(r))
        h = alpha * h + torch.sqrt(1 - alpha**2 + 1e-8) * torch.sigmoid(i) * u
        if x_t is not None:
            outputs.append(made.out.weight @ (F.silu(g) * h))
    return torch.stack(outputs)


@pytest.mark.parametrize(("num_layers", "expected"), [(1, 310_528), (2, 402_240)])
def test_it_has_the_papers_number_of_parameters(num_layers: int, expected: int) -> None:
    model = RecBLR(RecBLRConfig(num_layers=num_layers), ML_1M_ITEMS)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize("zeros_before", [0, 1, 6])
def test_the_block_is_its_equations(zeros_before: int) -> None:
    made, x = block(zeros_before), torch.randn(7, 4, dtype=torch.float64)
    torch.testing.assert_close(made(x[None])[0], written_out(made, x, zeros_before))


def test_a_layer_is_its_equations() -> None:
    layer, x = RecBLR(RecBLRConfig(dim=4, num_layers=1), 20).double().eval().layers[0], torch.randn(2, 5, 4).double()
    z = F.layer_norm(layer.block(x) + x, (4,), eps=1e-12)
    inner = F.silu(z @ layer.feed_forward.expand.weight.T + layer.feed_forward.expand.bias)
    y = inner @ layer.feed_forward.contract.weight.T + layer.feed_forward.contract.bias
    torch.testing.assert_close(layer(x), F.layer_norm(y + z, (4,), eps=1e-12))


def memories(max_length: int, pad: bool) -> Tensor:
    """What the first layer remembers of a user without a history."""
    torch.manual_seed(0)
    model = RecBLR(RecBLRConfig(max_length=max_length, pad_to_power_of_two=pad), 50)
    return model.initial_state(2)[0].memory


def test_by_default_a_history_begins_with_nothing_remembered() -> None:
    assert all((memories(length, pad=False) == 0).all() for length in (50, 200, 256))


def test_with_the_authors_padding_it_begins_with_something_that_depends_on_the_longest_length() -> None:
    started = {length: memories(length, pad=True) for length in (50, 200, 256)}
    assert (started[256] == 0).all()  # already a power of two
    assert started[50].norm() > 0.1
    assert not torch.allclose(started[50], started[200], atol=1e-2)


@pytest.mark.parametrize("pad", [False, True])
def test_only_with_the_authors_padding_do_states_depend_on_the_longest_length(pad: bool) -> None:
    items, states = torch.randint(1, 51, (2, 9)), []
    for max_length in (200, 256):
        torch.manual_seed(0)
        model = RecBLR(RecBLRConfig(max_length=max_length, pad_to_power_of_two=pad), 50).eval()
        for layer in model.layers:
            torch.nn.init.normal_(layer.block.out.weight)
        states.append(model.encode(History(items, torch.zeros_like(items), torch.tensor([9, 9]))))
    assert torch.equal(*states) != pad
    assert torch.allclose(*states, atol=1e-2) != pad


def test_at_the_start_an_item_leaves_most_of_the_state() -> None:
    made = RecBLR(RecBLRConfig(), 50).layers[0].block
    stays, _ = made._stays_and_enters(torch.zeros(128))
    # Gates are half open: the roots of 0.9 and 0.999.
    assert stays[0].item() == pytest.approx(0.9**0.5, abs=1e-4)
    assert stays[-1].item() == pytest.approx(0.999**0.5, abs=1e-4)


def test_the_memory_is_512_numbers_per_layer() -> None:
    state = RecBLR(RecBLRConfig(), 50).initial_state(3)
    assert [(tuple(one.window.shape), tuple(one.memory.shape)) for one in state] == [((3, 3, 128), (3, 128))] * 2
