import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raysrec.history import History, last_states
from raysrec.models.linrec import LinRec, LinRecConfig, NormalisedAttention

ML_1M_ITEMS = 3416


def histories(lengths: list[int], width: int) -> History:
    items = torch.randint(1, 31, (len(lengths), width))
    items[torch.arange(width) >= torch.tensor(lengths)[:, None]] = 0
    return History(items, torch.zeros_like(items), torch.tensor(lengths))


def model_of(**settings: object) -> LinRec:
    sizes = {"dim": 16, "num_heads": 4, "max_length": 90}
    return LinRec(LinRecConfig.model_validate({**sizes, **settings}), 30).double().eval()


@pytest.mark.parametrize(("dim", "expected"), [(64, 331_584), (128, 728_192)])
def test_it_has_the_authors_number_of_parameters(dim: int, expected: int) -> None:
    model = LinRec(LinRecConfig(dim=dim), ML_1M_ITEMS)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_a_position_beyond_max_length_is_refused_alike_in_encode_and_in_step() -> None:
    model = model_of(form="causal", max_length=4)
    items = torch.randint(1, 31, (2, 5))
    with pytest.raises(ValueError, match="position 4 has no vector"):
        model.encode(histories([5, 2], 5))
    state = model.initial_state(2)
    for position in range(4):
        _, state = model.step(items[:, position], state)
    with pytest.raises(ValueError, match="position 4 has no vector"):
        model.step(items[:, 4], state)


def test_a_form_that_looks_both_ways_takes_no_step() -> None:
    state = model_of(form="causal").initial_state(1)
    with pytest.raises(NotImplementedError, match="no recurrent form"):
        model_of().step(torch.tensor([1]), state)


def by_hand(attention: NormalisedAttention, x: Tensor, seen: list[list[int]], over_features: bool) -> Tensor:
    """Position by position and head by head, as the code and the paper write them; `seen` has a list per position."""
    size = x.shape[-1] // attention.num_heads
    a, b, v = F.elu(attention.query(x)), F.elu(attention.key(x)), attention.value(x)
    outputs = []
    for i, sees in enumerate(seen):
        heads = []
        for part in (slice(h * size, (h + 1) * size) for h in range(attention.num_heads)):
            query, keys = a[i, part] / a[i, part].norm(), b[sees, part]
            if over_features:
                keys = torch.stack([key / key.norm() for key in keys])
            else:
                keys = torch.stack([column / column.norm() / len(sees) ** 0.5 for column in keys.T], dim=1)
            heads.append((keys @ query) @ v[sees, part] / size**0.5)
        outputs.append(torch.cat(heads))
    return attention.output(torch.stack(outputs))


@pytest.mark.parametrize("norm", ["feature", "sequence"])
def test_attention_is_its_equations(norm: str) -> None:
    torch.manual_seed(0)
    over_features = norm == "feature"
    attention = NormalisedAttention(dim=8, num_heads=2, norm="feature" if over_features else "sequence").double()
    x = torch.randn(1, 6, 8, dtype=torch.float64)
    seen = torch.tensor([[True] * 4 + [False] * 2])
    expected = by_hand(attention, x[0], [list(range(4))] * 6, over_features)
    torch.testing.assert_close(attention(x, x, seen)[0], expected)


@pytest.mark.parametrize("length", [1, 6, 40, 85])
def test_causal_attention_is_its_equations(length: int) -> None:
    torch.manual_seed(0)
    attention = NormalisedAttention(dim=8, num_heads=2, norm="feature").double()
    x = torch.randn(1, length, 8, dtype=torch.float64)
    expected = by_hand(attention, x[0], [list(range(i + 1)) for i in range(length)], over_features=True)
    torch.testing.assert_close(attention(x, x, None)[0], expected)


@pytest.mark.parametrize(
    "settings", [{"form": "causal"}, {"form": "unmasked"}, {"norm": "sequence"}, {"num_layers": 1}, {}]
)
def test_reading_is_encoding_and_taking_the_last(settings: dict[str, object]) -> None:
    model, history = model_of(**settings), histories([1, 85, 40], 85)
    torch.testing.assert_close(model.read(history), last_states(model.encode(history), history))


@pytest.mark.parametrize(("num_layers", "same"), [(1, True), (2, False)])
def test_causal_is_bidirectional_at_the_last_position_of_a_single_layer(num_layers: int, same: bool) -> None:
    causal, both = model_of(form="causal", num_layers=num_layers), model_of(num_layers=num_layers)
    both.load_state_dict(causal.state_dict())
    history = histories([3, 9], 9)
    assert torch.allclose(causal.read(history), both.read(history)) == same


def test_padding_reaches_states_in_the_authors_form_only() -> None:
    history = histories([5], 9)
    for form, leaks in (("bidirectional", False), ("causal", False), ("unmasked", True)):
        model = model_of(form=form)
        before = model.read(history)
        with torch.no_grad():
            model.item_vectors()[0].normal_()
        assert torch.allclose(before, model.read(history)) != leaks


def test_a_long_history_grows_with_the_code_s_norm_and_not_with_the_paper_s() -> None:
    x = torch.randn(1, 4, 16, dtype=torch.float64)
    repeated, everything = x.repeat(1, 9, 1), torch.ones(1, 36, dtype=torch.bool)
    for norm, grows in (("feature", 9.0), ("sequence", 1.0)):
        attention = NormalisedAttention(dim=16, num_heads=4, norm=norm).double()  # type: ignore[arg-type]
        once, often = attention(x, x, everything[:, :4]), attention(x, repeated, everything)
        torch.testing.assert_close(often - attention.output.bias, grows * (once - attention.output.bias))


def test_a_norm_over_the_history_cannot_look_back_only() -> None:
    with pytest.raises(ValueError, match=r"model.form=causal cannot have model.norm=sequence") as caught:
        LinRecConfig(form="causal", norm="sequence")
    assert "set model.norm=feature or model.form=bidirectional" in str(caught.value)


def test_gradients_are_finite_where_queries_and_keys_are_nothing() -> None:
    model = model_of()
    with torch.no_grad():
        for layer in model.layers:
            for linear in (layer.attention.query, layer.attention.key):
                linear.weight.zero_()
    model.read(histories([1, 4], 6)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
