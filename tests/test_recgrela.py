import pytest
import torch
from pydantic import ValidationError

from raysrec.history import History
from raysrec.models.recgrela import DropPath, RecGRELA, RecGRELAConfig


def model_of(form: str, num_blocks: int, seed: int = 0) -> RecGRELA:
    """A small model in float64 with weights that make the attention matter; the same weights whatever the form."""
    torch.manual_seed(seed)
    sizes = {"num_blocks": num_blocks, "dim": 16, "mlp_dim": 32, "max_length": 50}
    config = RecGRELAConfig.model_validate({"form": form, **sizes})
    model = RecGRELA(config, num_items=30).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def history(*, length: int, padding: int) -> History:
    items = torch.randint(1, 31, (3, length + padding))
    items[:, length:] = 0
    return History(items, torch.zeros_like(items), torch.full((3,), length))


def last(model: RecGRELA, past: History) -> torch.Tensor:
    return model.encode(past)[:, int(past.lengths[0]) - 1]


def differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() > 1e-3)


def test_four_blocks_on_ml_1m_have_the_number_of_parameters_of_the_authors_log() -> None:
    model = RecGRELA(RecGRELAConfig(), num_items=3_416)
    assert sum(parameter.numel() for parameter in model.parameters()) == 436_672


def test_claim_1_with_one_block_causal_and_masked_agree_where_they_are_read() -> None:
    past = history(length=9, padding=4)
    causal, masked = model_of("causal", 1).encode(past), model_of("bidirectional", 1).encode(past)
    torch.testing.assert_close(causal[:, 8], masked[:, 8])
    assert differ(causal[:, 4], masked[:, 4])


def test_claim_2_with_more_blocks_they_are_different_models() -> None:
    past = history(length=9, padding=0)
    assert differ(last(model_of("causal", 2), past), last(model_of("bidirectional", 2), past))


def test_claim_2_only_the_last_block_may_look_both_ways_without_consequence() -> None:
    past = history(length=9, padding=4)
    model = model_of("causal", 3)
    expected, x = last(model, past), model.embedding(past.items)
    for block in model.blocks[:-1]:
        x = block(x, None)
    torch.testing.assert_close(model.blocks[-1](x, past.mask())[:, 8], expected)


def test_claim_3_the_authors_form_agrees_with_the_masked_one_only_without_padding() -> None:
    full, padded = history(length=9, padding=0), history(length=9, padding=4)
    unmasked, masked = model_of("unmasked", 2), model_of("bidirectional", 2)
    torch.testing.assert_close(unmasked.encode(full), masked.encode(full))
    assert differ(last(unmasked, padded), last(masked, padded))
    one = model_of("unmasked", 1)
    torch.testing.assert_close(last(one, full), last(model_of("causal", 1), full))
    assert differ(last(one, padded), last(model_of("causal", 1), padded))


def test_learning_at_every_position_is_learning_from_every_prefix() -> None:
    past, model = history(length=6, padding=0), model_of("causal", 2)
    prefixes = [
        last(model, History(past.items[:, :n], past.times[:, :n], torch.full_like(past.lengths, n)))
        for n in range(1, 7)
    ]
    torch.testing.assert_close(model.encode(past), torch.stack(prefixes, dim=1))


def test_one_block_has_no_residuals_unless_asked_for() -> None:
    def residual(num_blocks: int, rule: str) -> bool:
        config = RecGRELAConfig.model_validate({"num_blocks": num_blocks, "residual": rule})
        return RecGRELA(config, num_items=1).blocks[0].residual

    assert [residual(1, "auto"), residual(2, "auto"), residual(1, "always")] == [False, True, True]


def test_memory_is_1281_numbers_per_block() -> None:
    state = RecGRELA(RecGRELAConfig(), num_items=5).initial_state(1)
    sizes = [sum(leaf.numel() for leaf in torch.utils._pytree.tree_leaves(block)) for block in state]
    assert sizes == [1_281] * 4


def test_stepping_equals_encoding_over_a_history_longer_than_a_chunk_and_than_max_length() -> None:
    past, model = history(length=90, padding=0), model_of("causal", 2).float()
    state, states = model.initial_state(3), []
    for position in range(90):
        output, state = model.step(past.items[:, position], state)
        states.append(output)
    torch.testing.assert_close(torch.stack(states, dim=1), model.encode(past), atol=1e-5, rtol=1e-4)


def test_heads_that_do_not_hold_pairs_are_refused_in_one_line() -> None:
    with pytest.raises(
        ValidationError, match=r"model.dim=20 does not split into model.num_heads=4 heads.*multiple of 8"
    ):
        RecGRELAConfig(dim=20)


def test_drop_path_leaves_out_whole_histories_and_keeps_the_mean() -> None:
    dropped = DropPath(0.25).train()(torch.ones(4_000, 2, 3))
    per_row = dropped.flatten(1)
    assert ((per_row == 0).all(1) | (per_row == 1 / 0.75).all(1)).all()
    assert abs(float(dropped.mean()) - 1) < 0.05


def test_drop_path_outside_training_is_nothing() -> None:
    x = torch.randn(3, 2)
    assert DropPath(0.5).eval()(x) is x
