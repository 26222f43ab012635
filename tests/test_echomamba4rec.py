from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raysrec.history import History
from raysrec.models.echomamba4rec import EchoMamba4Rec, EchoMamba4RecConfig, Filter

ML_1M_ITEMS = 3_416


def small(**changes: Any) -> EchoMamba4Rec:
    """A small model in float64 with weights that make every part matter."""
    torch.manual_seed(0)
    sizes = {"dim": 4, "max_length": 8, "d_state": 3, "d_conv": 2, "num_layers": 1}
    model = EchoMamba4Rec(EchoMamba4RecConfig.model_validate({**sizes, **changes}), num_items=9).double().eval()
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


def circular(x: Tensor, spectrum: Tensor, length: int) -> Tensor:
    """The filter of [L D] written out with sines and cosines, frequency by frequency, over `length` positions."""
    y = torch.zeros(length, x.shape[1], dtype=torch.float64)
    turns = 2 * torch.pi * torch.arange(length, dtype=torch.float64) / length
    for k in range(length // 2 + 1):
        wave = torch.exp(-1j * k * turns)
        amplitude = torch.einsum("t,td->d", wave[: len(x)], x.to(torch.complex128))
        weighted = amplitude * torch.complex(spectrum[k, :, 0], spectrum[k, :, 1])
        twice = 1 if k == 0 or 2 * k == length else 2
        y += twice * torch.einsum("t,d->td", wave.conj(), weighted).real / length
    return y[: len(x)]


def written_out(model: EchoMamba4Rec, items: list[int]) -> Tensor:
    """The model's states for one history without padding, as the equations stand."""
    x = norm(model.embedding.table.weight[items], model.embedding.norm)  # type: ignore[arg-type]
    for layer in model.layers:
        filtered = circular(x, layer.filter.spectrum, model.max_length)
        x = norm(filtered + x, layer.filter.norm)
        for pair in layer.pairs:
            ahead = norm(pair.forwards(x[None])[0] + x, pair.forwards_norm)  # type: ignore[operator, arg-type]
            back = pair.backwards(x.flip(0)[None])[0].flip(0)  # type: ignore[operator]
            x = ahead + norm(back + x, pair.backwards_norm)  # type: ignore[arg-type]
        value, gate = (x @ layer.gated.expand.weight.T + layer.gated.expand.bias).chunk(2, dim=-1)
        x = norm(layer.gated.contract(value * torch.sigmoid(gate)) + x, layer.gated.norm)
    return x


@pytest.mark.parametrize("max_length", [7, 8])  # an even length has a highest frequency of its own
@pytest.mark.parametrize("num_layers", [1, 2])
def test_it_is_its_equations_whatever_the_padding(num_layers: int, max_length: int) -> None:
    model = small(num_layers=num_layers, max_length=max_length)
    states = model.encode(history_of([3, 1, 4, 1, 5], [9, 2], length=6))
    torch.testing.assert_close(states[0, :5], written_out(model, [3, 1, 4, 1, 5]))
    torch.testing.assert_close(states[1, :2], written_out(model, [9, 2]))


def test_unmasked_is_the_same_equations_over_padding_up_to_max_length() -> None:
    model = small(form="unmasked", num_layers=2)
    states = model.encode(history_of([3, 1, 4], length=5))
    assert states.shape == (1, 5, 4)
    torch.testing.assert_close(states[0, :3], written_out(model, [3, 1, 4, 0, 0, 0, 0, 0])[:3])


def test_the_authors_backward_block_begins_with_padding_and_ours_with_the_last_item() -> None:
    for form, told in (("unmasked", True), ("masked", False)):
        model = small(form=form)
        for parameter in (model.layers[0].filter.spectrum, *model.layers[0].pairs[0].forwards.parameters()):
            torch.nn.init.zeros_(parameter)  # so that only the backward block tells a position of another
        before = model.encode(history_of([3, 1, 4]))[0, 2]
        with torch.no_grad():
            model.embedding.table.weight[0] = torch.tensor([3.0, -1.0, 2.0, 0.0])
        changed = not torch.allclose(before, model.encode(history_of([3, 1, 4]))[0, 2])
        assert changed == told


def test_both_forms_agree_on_a_history_that_fills_max_length() -> None:
    full = history_of([3, 1, 4, 1, 5, 9, 2, 6])
    torch.testing.assert_close(small(form="masked").encode(full), small(form="unmasked").encode(full))


# 706,624 in the authors' code, of which 125,184 belong to an attention that is never called.
def test_it_has_the_authors_number_of_parameters_without_those_that_do_nothing() -> None:
    model = EchoMamba4Rec(EchoMamba4RecConfig(num_layers=2), ML_1M_ITEMS)
    assert sum(parameter.numel() for parameter in model.parameters()) == 706_624 - 125_184
    assert sum(len(layer.pairs) for layer in model.layers) == 4


def test_the_spectrum_is_kept_as_real_numbers_and_starts_small() -> None:
    spectrum = Filter(dim=64, max_length=200, dropout=0.0).spectrum
    assert (spectrum.dtype, tuple(spectrum.shape)) == (torch.float32, (101, 64, 2))
    assert spectrum.std().item() == pytest.approx(0.02, rel=0.05)


def test_library_starts_every_mamba_block_with_long_memories() -> None:
    for init, longest in (("init02", 0.7), ("library", 0.1001)):
        model = EchoMamba4Rec(EchoMamba4RecConfig.model_validate({"mamba_init": init, "num_layers": 2}), 9)
        biases = [p for name, p in model.named_parameters() if name.endswith("step_size.bias")]
        assert len(biases) == 8
        assert all((F.softplus(bias).max() < longest) for bias in biases)
        assert all((F.softplus(bias).min() > 0.69) == (init == "init02") for bias in biases)


@pytest.mark.parametrize("form", ["masked", "unmasked"])
def test_a_history_that_does_not_fit_the_filter_is_refused_in_one_line(form: str) -> None:
    model = small(form=form)
    for ask in (model.encode, model.read):
        with pytest.raises(ValueError, match=r"9 positions does not fit the filter of model.max_length=8") as refused:
            ask(history_of([1] * 9))
        assert "\n" not in str(refused.value)
