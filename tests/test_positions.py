import pytest
import torch

from raysrec.history import History
from raysrec.models import MODELS, build_model
from raysrec.models.positions import LearnedPositions, SinusoidalPositions


def test_learned_positions_are_rows_of_a_table() -> None:
    positions = LearnedPositions(max_length=6, dim=4)
    assert torch.equal(positions.first(6), positions.table.weight)
    assert torch.equal(positions.at(torch.tensor([5, 0])), positions.table.weight[[5, 0]])


def test_a_position_that_was_not_learned_is_refused_with_what_to_do() -> None:
    positions = LearnedPositions(max_length=6, dim=4)
    for ask in (lambda: positions.first(7), lambda: positions.at(torch.tensor([2, 6]))):
        with pytest.raises(ValueError, match=r"position 6 has no vector: model.max_length=6.*initial_state") as refused:
            ask()
        assert "\n" not in str(refused.value)


def test_sines_and_cosines_are_those_of_the_transformer() -> None:
    vectors = SinusoidalPositions(dim=8).first(50).double()
    for position in (0, 1, 49):
        for pair in range(4):
            angle = torch.tensor(position / 10_000 ** (2 * pair / 8), dtype=torch.float64)
            expected = torch.stack([angle.sin(), angle.cos()])
            torch.testing.assert_close(vectors[position, 2 * pair : 2 * pair + 2], expected, atol=1e-6, rtol=0)


def test_sines_and_cosines_have_no_end_no_weights_and_no_rounded_rates() -> None:
    positions = SinusoidalPositions(dim=8)
    far = positions.at(torch.tensor([100_000]))
    assert torch.equal(positions.to(torch.bfloat16).at(torch.tensor([100_000])), far)
    assert positions.state_dict() == {}


@pytest.mark.parametrize("name", ["sasrec", "bert4rec", "linrec", "eulerformer"])
def test_a_model_with_positions_refuses_a_longer_history(name: str) -> None:
    config = MODELS[name].Config.model_validate({"name": name, "dim": 8, "num_heads": 2, "max_length": 6})
    model = build_model(config, num_items=9)
    items = torch.ones(2, 7, dtype=torch.long)
    history = History(items, torch.zeros_like(items), torch.tensor([7, 2]))
    for ask in (model.encode, model.read):
        with pytest.raises(ValueError, match=r"position 6 has no vector: model\.max_length=6"):
            ask(history)
