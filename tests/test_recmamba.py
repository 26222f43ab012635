import pytest
import torch

from raysrec.history import History
from raysrec.models.recmamba import RecMamba, RecMambaConfig

ML_1M_ITEMS = 3_416


def small(**changes: object) -> RecMamba:
    """A small model in float64, without dropout."""
    torch.manual_seed(0)
    sizes = {"dim": 4, "max_length": 8, "d_state": 3, "d_conv": 2}
    return RecMamba(RecMambaConfig.model_validate({**sizes, **changes}), num_items=9).double().eval()


def history_of(*items: int) -> History:
    row = torch.tensor([items])
    return History(row, torch.zeros_like(row), torch.tensor([len(items)]))


def test_it_is_its_equations() -> None:
    model = small()
    items = [3, 1, 4, 1]
    table, positions = model.table.weight, model.positions.table.weight
    vectors = torch.stack([2.0 * table[item] + positions[slot] for slot, item in enumerate(items)])  # sqrt(4) = 2
    torch.testing.assert_close(model.encode(history_of(*items))[0], model.mamba(vectors[None])[0])


# Items 3,417 x 64, positions 200 x 64, and one Mamba block.
def test_its_number_of_parameters_follows_from_the_equations() -> None:
    model = RecMamba(RecMambaConfig(), ML_1M_ITEMS)
    assert sum(parameter.numel() for parameter in model.parameters()) == 218_688 + 12_800 + 38_784


def test_padding_on_the_left_as_in_the_authors_code_reaches_the_states_and_ours_does_not() -> None:
    model = small()
    torch.nn.init.zeros_(model.positions.table.weight)  # so that only what is scanned differs, not the slots
    alone = model.encode(history_of(3, 1, 4))[0]
    on_the_left = model.encode(history_of(0, 0, 0, 3, 1, 4))[0, 3:]
    on_the_right = model.encode(history_of(3, 1, 4, 0, 0, 0))[0, :3]
    assert (on_the_left[0] - alone[0]).norm() > 0.1 * alone[0].norm()
    torch.testing.assert_close(on_the_right, alone)


def test_xavier_as_in_the_authors_code_makes_all_decays_one_and_library_keeps_them_apart() -> None:
    for init, spread in (("xavier", False), ("library", True)):
        torch.manual_seed(0)
        block = RecMamba(RecMambaConfig.model_validate({"mamba_init": init}), 9).mamba
        decays = block.a_log.exp().mean(0)  # one per state
        assert (decays[-1] > 30) == spread
        assert (decays[-1] < 1.1) != spread
        delta = torch.nn.functional.softplus(block.step_size.bias)
        assert 0.99e-3 < delta.min() < delta.max() < 0.1001  # vectors keep what the library gave them


def test_xavier_counts_the_taps_of_the_convolution_as_the_library_lays_them_out() -> None:
    torch.manual_seed(0)
    block = RecMamba(RecMambaConfig(mamba_init="xavier"), 9).mamba
    # [128, 1, 4]: 4 values come in, 512 go out.
    assert block.conv_weight.std().item() == pytest.approx((2 / (4 + 512)) ** 0.5, rel=0.1)
    assert block.a_log.std().item() == pytest.approx((2 / (32 + 128)) ** 0.5, rel=0.1)


def test_the_tables_start_xavier_normal() -> None:
    model = RecMamba(RecMambaConfig(), ML_1M_ITEMS)
    assert model.table.weight.std().item() == pytest.approx((2 / (3_417 + 64)) ** 0.5, rel=0.05)
    assert model.positions.table.weight.std().item() == pytest.approx((2 / (200 + 64)) ** 0.5, rel=0.05)


def test_a_position_beyond_max_length_is_refused_alike_in_encode_and_in_step() -> None:
    model = small(max_length=3)
    with pytest.raises(ValueError, match="position 3 has no vector"):
        model.encode(history_of(1, 2, 3, 4))
    state = model.initial_state(1)
    for item in (1, 2, 3):
        _, state = model.step(torch.tensor([item]), state)
    with pytest.raises(ValueError, match="position 3 has no vector"):
        model.step(torch.tensor([4]), state)
    after_new_start, _ = model.step(torch.tensor([4]), model.initial_state(1))
    torch.testing.assert_close(after_new_start, model.encode(history_of(4))[:, 0])


def test_users_may_be_at_different_positions() -> None:
    model = small()
    _, ahead = model.step(torch.tensor([3]), model.initial_state(1))
    fresh = model.initial_state(1)
    both = torch.utils._pytree.tree_map(lambda *leaves: torch.cat(leaves), ahead, fresh)
    states, _ = model.step(torch.tensor([5, 5]), both)
    torch.testing.assert_close(states[0], model.encode(history_of(3, 5))[0, 1])
    torch.testing.assert_close(states[1], model.encode(history_of(5))[0, 0])
