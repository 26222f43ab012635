import torch
import torch.nn.functional as F
from torch import Tensor

from raysrec.models.lrurec import LinearRecurrentUnit, LRURec, LRURecConfig
from raysrec.ops.linear_recurrence import linear_recurrence_step

ML_1M_ITEMS = 3416


def unit(dim: int = 4) -> LinearRecurrentUnit:
    return LinearRecurrentUnit(dim=dim, expand=2).double()


def complex_weights(made: LinearRecurrentUnit) -> tuple[Tensor, Tensor, Tensor]:
    """B, b and C as the paper has them."""
    into_weight, into_bias = made.into.weight.detach(), made.into.bias.detach()
    out_weight = made.out.weight.detach()
    return (
        torch.complex(into_weight[0::2], into_weight[1::2]),
        torch.complex(into_bias[0::2], into_bias[1::2]),
        torch.complex(out_weight[:, 0::2], -out_weight[:, 1::2]),
    )


def test_it_has_the_papers_number_of_parameters() -> None:
    # The paper's count takes a complex number once. Here B, b and C are two real numbers each, and c is its real part.
    model = LRURec(LRURecConfig(), ML_1M_ITEMS)
    real = sum(parameter.numel() for parameter in model.parameters())
    twice = sum(
        layer.unit.into.weight.numel() + layer.unit.into.bias.numel() + layer.unit.out.weight.numel()
        for layer in model.layers
    )
    assert real - twice // 2 == 322_841
    assert not any(parameter.is_complex() for parameter in model.parameters())


def test_the_unit_is_its_equations() -> None:
    # Position by position, in complex numbers.
    made, x = unit(), torch.randn(7, 4, dtype=torch.float64)
    b_matrix, b, c_matrix = complex_weights(made)
    poles = torch.exp(torch.complex(-made.decay_log.exp(), made.angle_log.exp()))
    h, expected = torch.zeros(8, dtype=torch.complex128), []
    for x_t in x:
        h = poles * h + made.gain_log.exp() * (b_matrix @ x_t.to(h.dtype) + b)
        expected.append((c_matrix @ h).real + made.out.bias)
    torch.testing.assert_close(made(x[None])[0], torch.stack(expected))


def test_a_layer_is_its_equations() -> None:
    model = LRURec(LRURecConfig(dim=4, num_layers=1), 20).double().eval()
    layer, x = model.layers[0], torch.randn(2, 5, 4, dtype=torch.float64)
    y = F.layer_norm(layer.unit(x) + x, (4,), eps=1e-5)
    inner = F.gelu(y @ layer.feed_forward.expand.weight.T + layer.feed_forward.expand.bias)
    z = inner @ layer.feed_forward.contract.weight.T + layer.feed_forward.contract.bias
    torch.testing.assert_close(layer(x), F.layer_norm(z + y, (4,), eps=1e-5))


def left_padded(made: LinearRecurrentUnit, x: Tensor, padding: int, masked: bool) -> Tensor:
    """The authors' way: padding first, and what stands at padded positions kept out of the recurrence by a mask."""
    x = torch.cat([torch.randn(padding, 4, dtype=x.dtype), x])
    real = torch.arange(len(x)) >= padding
    enters = made._take_in(x)[:, None]
    h, states = torch.zeros_like(enters[0]), []
    for t in range(len(x)):
        carried = h * (real[t - 1] if masked and t else 1.0)
        h = linear_recurrence_step(made.poles(), enters[t], carried)
        states.append(h[0])
    return made._read_out(torch.stack(states), x)[padding:]


def test_padding_on_the_left_and_on_the_right_are_one() -> None:
    made, x = unit(), torch.randn(6, 4, dtype=torch.float64)
    right = made(F.pad(x, (0, 0, 0, 3))[None])[0, :6]
    torch.testing.assert_close(left_padded(made, x, 10, masked=True), right)
    assert not torch.allclose(left_padded(made, x, 10, masked=False), right, atol=1e-3)


def test_poles_start_evenly_on_the_area_of_a_ring() -> None:
    poles = LinearRecurrentUnit(dim=4096, expand=2).poles().detach()
    size = poles.abs()
    assert size.min() >= 0.8 - 1e-5
    assert size.max() <= 0.99 + 1e-5
    # The ring's middle by area, not by radius; and as many poles on each side of each axis.
    assert abs((size.square() < (0.8**2 + 0.99**2) / 2).float().mean().item() - 0.5) < 0.03
    assert all(abs((part > 0).float().mean().item() - 0.5) < 0.03 for part in (poles.real, poles.imag))


def test_gains_start_such_that_a_channel_varies_as_its_input_does() -> None:
    made = unit(64)
    torch.testing.assert_close(made.gain_log.exp().square(), 1 - made.poles().abs().square(), rtol=1e-4, atol=1e-6)


def test_everything_else_starts_small_biases_and_padding_too() -> None:
    model = LRURec(LRURecConfig(), ML_1M_ITEMS)
    starts = [
        model.bias,
        model.embedding.table.weight,
        model.embedding.table.weight[0],
        model.layers[0].unit.into.weight,
        model.layers[0].feed_forward.expand.bias,
    ]
    for values in starts:
        assert values.abs().max() <= 0.04
        assert abs(values.std().item() - 0.0176) < 0.004  # of a normal of 0.02, cut off at two deviations
    assert torch.equal(model.embedding.norm.weight, torch.ones(64))


def test_every_item_has_a_bias() -> None:
    model = LRURec(LRURecConfig(), 50)
    assert model.item_bias() is model.bias


def test_the_memory_is_128_complex_numbers_per_layer() -> None:
    state = LRURec(LRURecConfig(), 50).initial_state(3)
    assert [(tuple(one.shape), one.dtype) for one in state] == [((3, 128), torch.complex64)] * 2
