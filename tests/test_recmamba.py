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


def test_padded_on_the_left_all_empty_slots_are_scanned_before_the_first_item_as_in_the_authors_code() -> None:
    model, right = small(padding="left"), small()
    window = torch.tensor([0, 0, 0, 0, 0, 3, 1, 4])
    scanned = model.mamba((2.0 * model.table.weight[window] + model.positions.table.weight)[None])[0]
    items = torch.tensor([[3, 1, 4, 0], [5, 6, 7, 8]])
    both = History(items, torch.zeros_like(items), torch.tensor([3, 4]))
    torch.testing.assert_close(model.encode(both)[0, :3], scanned[5:])
    torch.testing.assert_close(model.read(both)[0], scanned[-1])
    alone = right.read(both)[0]
    assert (scanned[-1] - alone).norm() > 0.1 * alone.norm()


def test_either_padding_is_the_same_for_a_history_without_any() -> None:
    full = history_of(3, 1, 4, 1, 5, 9, 2, 6)
    torch.testing.assert_close(small(padding="left").encode(full), small().encode(full))
    with pytest.raises(ValueError, match="position 8 has no vector"):
        small(padding="left").encode(history_of(*[1] * 9))


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
    for ask in (model.encode, model.read, small(max_length=3, padding="left").read):
        with pytest.raises(ValueError, match="position 3 has no vector"):
            ask(history_of(1, 2, 3, 4))
    state = model.initial_state(1)
    for item in (1, 2, 3):
        _, state = model.step(torch.tensor([item]), state)
    with pytest.raises(ValueError, match="position 3 has no vector"):
        model.step(torch.tensor([4]), state)
    after_new_start, _ = model.step(torch.tensor([4]), model.initial_state(1))
    torch.testing.assert_close(after_new_start, model.encode(history_of(4))[:, 0])


def test_padded_on_the_left_it_takes_no_step() -> None:
    with pytest.raises(NotImplementedError, match="no recurrent form"):
        small(padding="left").step(torch.tensor([1]), small().initial_state(1))


def test_users_may_be_at_different_positions() -> None:
    model = small()
    _, ahead = model.step(torch.tensor([3]), model.initial_state(1))
    fresh = model.initial_state(1)
    both = torch.utils._pytree.tree_map(lambda *leaves: torch.cat(leaves), ahead, fresh)
    states, _ = model.step(torch.tensor([5, 5]), both)
    torch.testing.assert_close(states[0], model.encode(history_of(3, 5))[0, 1])
    torch.testing.assert_close(states[1], model.encode(history_of(5))[0, 0])
