from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raysrec.history import History
from raysrec.models.sigma import SIGMA, GatedMixture, SIGMAConfig

ML_1M_ITEMS = 3_416


def small(**changes: Any) -> SIGMA:
    """A small model in float64 with weights that make every part matter."""
    torch.manual_seed(0)
    sizes = {"dim": 4, "max_length": 8, "d_state": 3, "d_conv": 2, "num_layers": 1}
    sizes |= {"reversed_slots": 6} if changes.get("form") == "unmasked" else {"keep": 2}
    model = SIGMA(SIGMAConfig.model_validate({**sizes, **changes}), num_items=9).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def history_of(*rows: list[int], length: int | None = None) -> History:
    width = length or max(len(row) for row in rows)
    items = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return History(items, torch.zeros_like(items), torch.tensor([len(row) for row in rows]))


def norm(x: Tensor, by: torch.nn.LayerNorm) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], by.weight, by.bias, by.eps)


def gru(x: Tensor, layer: torch.nn.GRU) -> Tensor:
    """A GRU without biases over [L D], position by position."""
    h, states = torch.zeros(x.shape[1], dtype=x.dtype), []
    for x_t in x:
        r_x, z_x, n_x = (layer.weight_ih_l0 @ x_t).chunk(3)
        r_h, z_h, n_h = (layer.weight_hh_l0 @ h).chunk(3)
        r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
        h = z * h + (1 - z) * torch.tanh(n_x + r * n_h)
        states.append(h)
    return torch.stack(states)


def mixture(part: GatedMixture, x: Tensor, flipped: int) -> Tensor:
    """``Y`` of one history without padding [L D], as the equations stand."""
    turned = torch.cat([x[:flipped].flip(0), x[flipped:]])
    m, m_turned = part.mamba(x[None])[0], part.mamba(turned[None])[0]
    if part.align:
        m_turned = torch.cat([m_turned[:flipped].flip(0), m_turned[flipped:]])
    a, a_turned = x + part.straight(x), turned + part.turned(turned)
    s = part.gate_silu(a * torch.sigmoid(a)) + part.gate_sigmoid(torch.sigmoid(a))
    s_turned = part.gate_silu(a_turned * torch.sigmoid(a_turned)) + part.gate_sigmoid(torch.sigmoid(s))
    around = F.pad(x, (0, 0, 1, 1))
    taps = part.conv.weight
    g = sum(around[j : j + len(x)] @ taps[:, :, j].T for j in range(3)) + part.conv.bias
    w1, w2, w3 = part.shares
    y: Tensor = part.output(w3 * (m * s + m) + w2 * (m_turned * s_turned + m_turned) + w1 * gru(g, part.gru))
    return y


def written_out(model: SIGMA, items: list[int], flipped: int) -> Tensor:
    x = norm(model.embedding.table.weight[items], model.embedding.norm)  # type: ignore[arg-type]
    for layer in model.layers:
        y = mixture(layer.mixture, x, flipped)
        z = norm(y + x if layer.residual else y, layer.mixture_norm)
        inner = layer.feed_forward.contract(F.gelu(layer.feed_forward.expand(z)))
        x = norm(inner + z, layer.feed_forward_norm)
    return x


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_it_is_its_equations_whatever_the_padding(num_layers: int, align: bool) -> None:
    model = small(num_layers=num_layers, align=align)
    states = model.encode(history_of([3, 1, 4, 1, 5], [9, 2, 6], [5], length=7))
    torch.testing.assert_close(states[0, :5], written_out(model, [3, 1, 4, 1, 5], flipped=3))
    torch.testing.assert_close(states[1, :3], written_out(model, [9, 2, 6], flipped=1))
    torch.testing.assert_close(states[2, :1], written_out(model, [5], flipped=0))


@pytest.mark.parametrize("num_layers", [1, 2])
def test_unmasked_is_the_same_equations_over_padding_up_to_max_length(num_layers: int) -> None:
    model = small(form="unmasked", num_layers=num_layers)
    states = model.encode(history_of([3, 1, 4], length=4))
    assert states.shape == (1, 4, 4)
    torch.testing.assert_close(states[0, :3], written_out(model, [3, 1, 4, 0, 0, 0, 0, 0], flipped=6)[:3])


@pytest.mark.parametrize(("form", "told"), [("unmasked", False), ("masked", True)])
def test_in_a_short_history_the_authors_flipped_copy_ends_in_padding_and_ours_in_the_history(
    form: str, told: bool
) -> None:
    model = small(form=form)
    part = model.layers[0].mixture
    with torch.no_grad():
        part.shares.copy_(torch.tensor([0.0, 1.0, 0.0]))  # the flipped copy alone
        part.gate_sigmoid.weight.zero_()  # and its gate without the other one's
    # Of three items the authors' flip puts the first into the slot 5, behind the one that is read.
    one, other = (model.read(history_of([first, 1, 4])) for first in (3, 7))
    assert torch.equal(one, other) != told


def test_both_forms_agree_on_a_history_that_fills_max_length() -> None:
    full = history_of([3, 1, 4, 1, 5, 9, 2, 6])
    torch.testing.assert_close(small(form="masked").encode(full), small(form="unmasked").encode(full))


@pytest.mark.parametrize(("num_layers", "expected"), [(1, 348_675), (2, 478_534)])
def test_it_has_the_authors_number_of_parameters(num_layers: int, expected: int) -> None:
    model = SIGMA(SIGMAConfig(num_layers=num_layers), ML_1M_ITEMS)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
    assert [layer.residual for layer in model.layers] == [num_layers > 1] * num_layers


def test_the_parts_begin_with_the_authors_shares() -> None:
    shares = SIGMA(SIGMAConfig(), 9).layers[0].mixture.shares
    torch.testing.assert_close(shares.detach(), torch.tensor([0.1, 0.1, 0.8]))


def test_library_starts_the_mamba_block_with_long_memories() -> None:
    for init in ("init02", "library"):
        part = SIGMA(SIGMAConfig.model_validate({"mamba_init": init}), 9).layers[0].mixture
        delta = F.softplus(part.mamba.step_size.bias)
        assert bool((delta < 0.1001).all()) == (init == "library")
        assert bool((delta > 0.69).all()) == (init == "init02")
