from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from raysrec.history import History
from raysrec.models.gated_attention import GatedAttention
from raysrec.models.recgrela import DropPath, RecGRELA, RecGRELAConfig


def model_of(form: str, num_blocks: int, seed: int = 0, **changes: Any) -> RecGRELA:
    """A small model in float64 with weights that make the attention matter; the same weights whatever the form."""
    torch.manual_seed(seed)
    sizes = {"num_blocks": num_blocks, "dim": 16, "mlp_dim": 32, "max_length": 50}
    config = RecGRELAConfig.model_validate({"form": form, **sizes, **changes})
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
    full, padded = history(length=9, padding=0), history(length=5, padding=4)
    unmasked, masked = model_of("unmasked", 2, max_length=9), model_of("bidirectional", 2)
    torch.testing.assert_close(unmasked.encode(full), masked.encode(full))
    assert differ(last(unmasked, padded), last(masked, padded))
    one = model_of("unmasked", 1, max_length=9)
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


def test_a_form_that_looks_both_ways_takes_no_step() -> None:
    state = model_of("causal", 1).initial_state(1)
    with pytest.raises(NotImplementedError, match="no recurrent form"):
        model_of("bidirectional", 1).step(torch.tensor([1]), state)


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


def written_out(part: GatedAttention, x: torch.Tensor, changes: dict[str, Any]) -> torch.Tensor:
    """Causal gated attention of one history [L D] as its equations stand, pair by pair, with what was changed."""
    length, dim = x.shape
    u = part.input(x) if changes.get("input_gate", True) else x
    q, k = F.elu(part.query(u)) + 1, F.elu(part.key(u)) + 1
    v = part.value(u) if changes.get("values") == "projection" else u
    rates = 10_000.0 ** -(torch.arange(0, dim, 2, dtype=x.dtype) / dim)
    turns = torch.polar(torch.ones(length, dim // 2, dtype=x.dtype), torch.arange(length)[:, None] * rates)
    rotary = changes.get("positions", "rotary") == "rotary"

    def rotated(y: torch.Tensor) -> torch.Tensor:
        return torch.view_as_real(torch.view_as_complex(y.view(length, -1, 2)) * turns).flatten(-2) if rotary else y

    out = torch.zeros_like(x)
    for head in torch.arange(dim).chunk(4):
        over = (rotated(q)[:, head] @ rotated(k)[:, head].T).tril() @ v[:, head]
        under = (q[:, head] @ k[:, head].T).tril().sum(-1) + 1e-6 * torch.arange(1, length + 1)
        out[:, head] = over / under[:, None]
    if changes.get("local_shortcut", True):
        assert part.conv_weight is not None
        taps = F.pad(v, (0, 0, 3, 0)).unfold(0, 4, 1)  # [L D 4]
        out = out + F.silu((taps * part.conv_weight).sum(-1) + part.conv_bias)
    activation = {"silu": F.silu, "relu": F.relu, "gelu": F.gelu}.get(changes.get("gate", "silu"))
    if activation:
        assert part.gate is not None
        out = out * activation(part.gate(x))
    y: torch.Tensor = part.output(out)
    return y


# Each ablation of the paper's table and figures, and how many parameters the default's four blocks lose or win with it.
LINEAR, CONV = 64 * 64 + 64, 64 * 4 + 64
ABLATIONS = [
    ({}, 0),
    ({"values": "projection", "input_gate": False}, 0),
    ({"values": "projection", "gate": "none"}, 0),
    ({"values": "projection"}, 4 * LINEAR),
    ({"input_gate": False}, -4 * LINEAR),
    ({"gate": "none"}, -4 * LINEAR),
    ({"gate": "relu"}, 0),
    ({"gate": "gelu"}, 0),
    ({"positions": "none"}, 0),
    ({"positions": "learned"}, 200 * 64),
    ({"positions": "sinusoidal"}, 0),
    ({"local_shortcut": False}, -4 * CONV),
    ({"drop_path": 0.0}, 0),
]


@pytest.mark.parametrize(("changes", "more"), ABLATIONS, ids=str)
def test_an_ablation_changes_what_it_says(changes: dict[str, Any], more: int) -> None:
    part, x = model_of("causal", 1, **changes).blocks[0].attention, torch.randn(7, 16, dtype=torch.float64)
    torch.testing.assert_close(part(x[None], None)[0], written_out(part, x, changes))
    model = RecGRELA(RecGRELAConfig.model_validate(changes), num_items=3_416)
    # Of four blocks on ML-1M the authors' log says 436,672.
    assert sum(parameter.numel() for parameter in model.parameters()) == 436_672 + more


@pytest.mark.parametrize(("name", "activation"), [("gelu", F.gelu), ("silu", F.silu), ("relu", F.relu)])
def test_the_mlp_has_its_own_activation_whatever_the_gates(name: str, activation: Any) -> None:
    block, x = model_of("causal", 2, mlp_activation=name, gate="relu").blocks[0], torch.randn(7, 16).double()
    inner = activation(x @ block.mlp.expand.weight.T + block.mlp.expand.bias)
    torch.testing.assert_close(block.mlp(x), inner @ block.mlp.contract.weight.T + block.mlp.contract.bias)
    assert block.attention.activation is F.relu


@pytest.mark.parametrize("changes", [changes for changes, _ in ABLATIONS], ids=str)
def test_an_ablation_steps_as_it_encodes(changes: dict[str, Any]) -> None:
    past, model = history(length=9, padding=0), model_of("causal", 2, **changes)
    state, states = model.initial_state(3), []
    for position in range(9):
        output, state = model.step(past.items[:, position], state)
        states.append(output)
    torch.testing.assert_close(torch.stack(states, dim=1), model.encode(past))


@pytest.mark.parametrize("local_shortcut", [True, False])
@pytest.mark.parametrize("positions", ["rotary", "none"])
def test_only_rotations_and_the_shortcut_tell_the_order_of_items(positions: str, local_shortcut: bool) -> None:
    model = model_of("causal", 1, positions=positions, local_shortcut=local_shortcut)
    # What lies beyond the shortcut's four positions is told apart by rotations alone, the rest by either.
    near, far = ([5, 4, 3, 2, 1, 7], [5, 4, 3, 1, 2, 7]), ([5, 4, 3, 2, 1, 7], [4, 5, 3, 2, 1, 7])
    for pair, expected in ((near, positions == "rotary" or local_shortcut), (far, positions == "rotary")):
        one, other = (
            model.read(History(torch.tensor([row]), torch.zeros(1, 6, dtype=torch.long), torch.tensor([6])))
            for row in pair
        )
        assert torch.allclose(one, other, atol=1e-9) != expected


def test_the_embedding_takes_positions_before_dropout_and_normalisation() -> None:
    past = history(length=5, padding=0)
    for kind in ("learned", "sinusoidal"):
        model = model_of("causal", 1, positions=kind)
        assert model.positions is not None
        vectors = model.embedding.norm(model.embedding.table.weight[past.items] + model.positions.first(5))
        torch.testing.assert_close(model.encode(past), model.blocks[0](vectors, None))


def test_learned_positions_end_at_max_length_and_sines_do_not() -> None:
    past = history(length=51, padding=0)
    assert model_of("causal", 1, positions="sinusoidal").encode(past).shape == (3, 51, 16)
    model = model_of("causal", 1, positions="learned")
    with pytest.raises(ValueError, match="position 50 has no vector"):
        model.encode(past)
    state = model.initial_state(3)
    for position in range(50):
        _, state = model.step(past.items[:, position], state)
    with pytest.raises(ValueError, match="position 50 has no vector"):
        model.step(past.items[:, 50], state)


def test_without_the_shortcut_the_memory_has_no_window() -> None:
    (block,) = RecGRELA(RecGRELAConfig(num_blocks=1, local_shortcut=False), num_items=5).initial_state(2)
    assert block.window.shape == (2, 0, 64)
