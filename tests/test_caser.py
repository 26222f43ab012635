import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raysrec.history import History, last_items
from raysrec.models.caser import Caser, CaserConfig

LENGTH, DIM, ITEMS, USERS = 6, 4, 12, 5


def model_of(padding: str = "left", length: int = LENGTH, **settings: bool) -> Caser:
    """A small model in float64 with weights and biases large enough that each of them shows."""
    sizes = {"dim": DIM, "max_length": length, "num_vertical": 2, "num_horizontal": 3}
    model = Caser(CaserConfig.model_validate({"padding": padding, **sizes, **settings}), ITEMS, USERS).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def history(*rows: list[int], width: int | None = None) -> History:
    width = width or max(len(row) for row in rows)
    items = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return History(items, torch.zeros_like(items), lengths, users=1 + torch.arange(len(rows)) % USERS)


ROWS = ([3], [5, 2], [1, 2, 3, 4, 5], [6, 5, 4, 3, 2, 1], [9, 8, 7, 6, 5, 4, 3, 2, 1])


def written_out(model: Caser, row: list[int], user: int) -> Tensor:
    """One user's state, filter by filter and place by place."""
    row = row[-LENGTH:]
    vectors = model.items.weight[torch.tensor(row)]
    missing = LENGTH - len(row)
    if model.padding == "left":
        window, first_seen = torch.cat((torch.zeros(missing, DIM), vectors)), missing
    else:
        padding = model.items.weight[:1].detach()  # learns nothing where it stands
        window, first_seen = torch.cat((vectors, padding.expand(missing, DIM))), 0
    patterns = [
        sum(weights[line] * window[line] for line in range(LENGTH)) + bias
        for weights, bias in zip(model.vertical.weight, model.vertical.bias, strict=True)
    ]
    for height, filters in enumerate(model.horizontal.by_height(), start=1):
        for each in range(3):
            answers = [
                F.relu((filters[:, each] * window[at : at + height]).sum() + model.horizontal.bias[height - 1, each])
                for at in range(LENGTH - height + 1)
                if at + height > first_seen
            ]
            patterns.append(torch.stack(answers).max()[None])
    z = F.relu(model.first(torch.cat(patterns)))
    return F.relu(model.second(torch.cat((z, model.users.table.weight[user]))))


@pytest.mark.parametrize("padding", ["left", "right"])
def test_it_is_its_equations(padding: str) -> None:
    model, past = model_of(padding), history(*ROWS)
    assert past.users is not None
    expected = torch.stack([written_out(model, row, user) for row, user in zip(ROWS, past.users.tolist(), strict=True)])
    states = model.read(past)
    assert (states > 0).any(1).all()
    torch.testing.assert_close(states, expected, rtol=1e-10, atol=1e-10)
    ours = torch.autograd.grad(states.sin().sum(), list(model.parameters()))
    for one, other in zip(ours, torch.autograd.grad(expected.sin().sum(), list(model.parameters())), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_histories_may_pass_through_memory_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, past = model_of(), history(*ROWS)
    whole = model.read(past)
    monkeypatch.setattr("raysrec.models.caser._VALUES_AT_ONCE", 2 * 3 * LENGTH**2)
    torch.testing.assert_close(model.read(past), whole, rtol=1e-12, atol=1e-12)


def test_it_has_the_papers_number_of_parameters_on_ml_1m() -> None:
    model = Caser(CaserConfig(dim=64, max_length=200), num_items=3_416, num_users=6_040)
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_026_020


def test_200_heights_in_float32_are_still_their_equations() -> None:
    config = CaserConfig(dim=8, max_length=200)
    model = Caser(config, ITEMS, USERS).eval()
    past = history([1 + i % ITEMS for i in range(150)], [1 + i % 7 for i in range(230)])
    window = model.items(last_items(past, 200, newest_last=True))
    window = window * (torch.arange(200) >= torch.tensor([50, 0])[:, None])[:, :, None]
    answers = model.horizontal(window, torch.arange(200) >= torch.tensor([50, 0])[:, None])
    for height in (1, 7, 100, 199, 200):
        kernel = model.horizontal.by_height()[height - 1].permute(1, 2, 0)  # [n D height]
        everywhere = F.conv1d(window.transpose(1, 2), kernel, model.horizontal.bias[height - 1])
        first = [max(0, 50 - height + 1), 0]
        expected = torch.stack([F.relu(row[:, at:]).amax(1) for row, at in zip(everywhere, first, strict=True)])
        torch.testing.assert_close(answers[:, height - 1], expected, rtol=1e-4, atol=1e-5)


def test_the_newest_item_has_a_row_of_its_own_and_padding_is_zero() -> None:
    past = history([7, 8], [1, 2, 3, 4, 5], width=9)
    assert last_items(past, 4, newest_last=True).tolist() == [[0, 0, 7, 8], [2, 3, 4, 5]]
    assert last_items(past, 4, newest_last=False).tolist() == [[7, 8, 0, 0], [2, 3, 4, 5]]
    assert last_items(past, 12, newest_last=True)[0].tolist() == [0] * 10 + [7, 8]


def test_padding_takes_part_on_the_right_and_not_on_the_left() -> None:
    full, short = history([1, 2, 3, 4, 5, 6]), history([1, 2])
    for padding, leaks in (("left", False), ("right", True)):
        model = model_of(padding)
        before = model.read(full), model.read(short)
        with torch.no_grad():
            model.items.weight[0] += 3
        assert torch.equal(before[0], model.read(full))
        assert torch.equal(before[1], model.read(short)) != leaks
        assert model.padding_leaks == leaks


def test_what_is_older_than_the_window_is_forgotten() -> None:
    model = model_of()
    assert torch.equal(model.read(history([9, 9, 1, 2, 3, 4, 5, 6])), model.read(history([1, 2, 3, 4, 5, 6])))


def test_users_with_the_same_history_differ() -> None:
    states = model_of().read(history([1, 2, 3], [1, 2, 3]))
    assert (states[0] - states[1]).abs().max() > 1e-3


def test_every_position_has_the_state_after_the_last_item() -> None:
    model, past = model_of(), history(*ROWS)
    assert torch.equal(model.encode(past), model.read(past)[:, None].expand(-1, 9, -1))


def test_the_penalty_is_the_sum_of_unsquared_norms_without_biases() -> None:
    model = model_of()
    weights = [model.items.weight, model.users.table.weight, model.vertical.weight]
    weights += [model.first.weight, model.second.weight]
    start = 0
    for height in range(1, LENGTH + 1):
        weights.append(model.horizontal.weight[start : start + height])
        start += height
    expected = 1e-4 * sum(weight.square().sum().sqrt() for weight in weights)
    penalty = model.penalty()
    assert penalty is not None
    torch.testing.assert_close(penalty, expected)
    assert Caser(CaserConfig(regularisation=0.0, max_length=3), ITEMS, USERS).penalty() is None


def test_it_starts_as_the_authors_do() -> None:
    model = Caser(CaserConfig(dim=64, max_length=20), num_items=2_000, num_users=1_000)
    for table in (model.items, model.users.table):
        assert table.weight.std().item() == pytest.approx(1 / 64, rel=0.02)
    assert model.first.weight.std().item() == pytest.approx((2 / (64 + 4 * 64 + 8 * 20)) ** 0.5, rel=0.05)
    assert not model.first.bias.any()
    for height, weights in enumerate(model.horizontal.by_height(), start=1):
        bound = (64 * height) ** -0.5
        assert 0.95 * bound < weights.abs().max() <= bound
        assert model.horizontal.bias[height - 1].abs().max() <= bound
