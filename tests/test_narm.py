import pytest
import torch

from raysrec.history import History
from raysrec.models.narm import NARM, NARMConfig

ML_1M_ITEMS = 3416


def test_it_has_the_papers_number_of_parameters() -> None:
    assert sum(parameter.numel() for parameter in NARM(NARMConfig(), ML_1M_ITEMS).parameters()) == 341_696


def history(lengths: list[int], width: int) -> History:
    items = torch.randint(1, 21, (len(lengths), width))
    items *= torch.arange(width) < torch.tensor(lengths)[:, None]
    return History(items, torch.zeros_like(items), torch.tensor(lengths))


def test_it_is_its_equations_at_every_position() -> None:
    model = NARM(NARMConfig(dim=4, hidden_dim=6), 20).double().eval()
    given = history([9], 9)
    hidden = model.gru(model.table(given.items))[0][0]
    for t, state in enumerate(model.encode(given)[0]):
        last = hidden[t]
        alpha = [
            model.weigh.weight[0] @ torch.sigmoid(model.key.weight @ h + model.query.weight @ last)
            for h in hidden[: t + 1]
        ]
        found = sum(a * h for a, h in zip(alpha, hidden, strict=False))
        torch.testing.assert_close(state, model.output.weight @ torch.cat([found, last]))


def test_reading_asks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("every position was asked")

    monkeypatch.setattr("raysrec.models.narm.causal_additive_attention", forbidden)
    model, given = NARM(NARMConfig(), 20), history([9, 1, 4], 12)
    model.read(given).sum().backward()
    with pytest.raises(AssertionError, match="every position"):
        model.encode(given)


def test_weights_are_not_normalised() -> None:
    # All h alike: normalised weights would give the same sum however many there are.
    model, given = NARM(NARMConfig(), 20).eval(), history([8], 8)
    alike = torch.ones(1, 8, 128)
    model.gru.forward = lambda _: (alike, None)  # type: ignore[method-assign]
    with torch.no_grad():
        model.output.weight[:, 128:] = 0
        states = model.encode(given)[0]
    for t in range(8):
        torch.testing.assert_close(states[t], (t + 1) * states[0])


def test_it_starts_where_recbole_does() -> None:
    model = NARM(NARMConfig(), ML_1M_ITEMS)
    for weight in (model.table.weight, model.key.weight, model.query.weight, model.output.weight):
        assert weight.std().item() == pytest.approx((2 / sum(weight.shape)) ** 0.5, rel=0.05)
    assert model.gru.weight_ih_l0.abs().max().item() == pytest.approx(128**-0.5, rel=0.01)
