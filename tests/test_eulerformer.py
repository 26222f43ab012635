import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raysrec.history import History
from raysrec.models.eulerformer import EulerFormer, EulerFormerConfig, PolarAttention

ML_1M_ITEMS = 3416
AUTHORS_DEAD = 2 * 200 * 64
"""Parameters of the authors' code that never get a gradient: a table of the positions' angles in each layer."""


def history_of(*rows: list[int], width: int) -> History:
    items = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return History(items, torch.zeros_like(items), torch.tensor([len(row) for row in rows]))


def test_it_has_the_authors_number_of_parameters_less_the_dead_ones() -> None:
    model = EulerFormer(EulerFormerConfig(), ML_1M_ITEMS)
    assert sum(parameter.numel() for parameter in model.parameters()) == 363_652 - AUTHORS_DEAD


def complex_pairs(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())


def real_pairs(z: Tensor) -> Tensor:
    return torch.view_as_real(z).flatten(-2)


def polar(angle: Tensor, length: Tensor) -> Tensor:
    return torch.polar(length, angle)


def test_it_is_its_equations() -> None:
    torch.manual_seed(0)
    model = EulerFormer(EulerFormerConfig(dim=8, max_length=6, mlp_dim=12), 20).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    items, e = torch.tensor([4, 9, 4, 17, 2]), model.embedding
    z = complex_pairs(e.table.weight[items] + e.positions.weight[:5])
    x = e.norm(real_pairs(polar(z.angle() + e.turns.weight[:5], z.abs())))
    moved = torch.arange(5.0)[:, None] * 10_000.0 ** -(torch.arange(0.0, 8, 2) / 8)
    for layer in model.layers:
        a = layer.attention
        q, k = complex_pairs(a.query(x)), complex_pairs(a.key(x))
        q = real_pairs(polar(a.angle_scale * q.angle() + moved + a.query_angle, q.abs()))
        k = real_pairs(polar(a.angle_scale * k.angle() + moved, k.abs()))
        q, k, v = (part.view(5, 2, 4).transpose(0, 1) for part in (q, k, a.value(x)))  # [H L E]
        scores = (q @ k.mT / 2).masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), -torch.inf)
        mixed = (F.softmax(scores, dim=-1) @ v).transpose(0, 1).reshape(5, 8)
        z = layer.attention_norm(x + a.output(mixed))
        x = layer.feed_forward_norm(z + layer.feed_forward.contract(F.gelu(layer.feed_forward.expand(z))))
    torch.testing.assert_close(model.encode(history_of(items.tolist(), width=5))[0], x, rtol=1e-5, atol=1e-5)


def contrast_by_hand(angles: Tensor, others: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Of one history, angle by angle, as the paper writes it."""
    terms = []
    for i in range(len(angles)):
        alike = torch.stack([(weights * (angles[i] - other).cos()).sum() / temperature for other in others])
        terms.append(-torch.log(alike[i].exp() / (alike.exp().sum() + 1e-5)))
    return torch.stack(terms)


def test_the_contrast_is_its_equation_over_real_positions() -> None:
    torch.manual_seed(0)
    attention = PolarAttention(dim=8, num_heads=2, dropout=0.0, dropped_angles=0.0, temperature=1.7).double()
    with torch.no_grad():
        attention.contrast_weights.copy_(torch.randn(4))
    angles = torch.randn(2, 5, 4, dtype=torch.float64)
    real = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    weights = attention.contrast_weights
    by_hand = [contrast_by_hand(row[:n], row[:n], weights, 1.7) for row, n in zip(angles, (5, 2), strict=True)]
    torch.testing.assert_close(attention._contrast(angles, real), torch.stack([terms.mean() for terms in by_hand]))


def test_dropped_angles_are_nothing_or_doubled() -> None:
    attention = PolarAttention(dim=8, num_heads=2, dropout=0.0, dropped_angles=0.5, temperature=1.0).train()
    assert set(attention.drop_angles(torch.ones(9, 9)).unique().tolist()) == {0.0, 2.0}


def test_the_penalty_is_the_weighted_contrast_of_what_was_encoded_in_training() -> None:
    model = EulerFormer(EulerFormerConfig(dim=8, contrast_weight=0.25), 20)
    history = history_of([1, 2, 3], [4], width=4)
    assert model.eval().penalty() is None
    model.encode(history)
    assert model.penalty() is None
    model.train().encode(history)
    total = sum(layer.attention.contrast.detach() for layer in model.layers)  # type: ignore[union-attr, operator]
    penalty = model.penalty()
    assert penalty is not None
    assert penalty.shape == (2,)
    torch.testing.assert_close(penalty.detach(), 0.25 * total)
    penalty.sum().backward()  # type: ignore[no-untyped-call]
    assert model.layers[0].attention.contrast_weights.grad.abs().min() > 0  # type: ignore[union-attr, operator]


def test_padding_changes_no_contrast() -> None:
    model = EulerFormer(EulerFormerConfig(dim=8, dropout=0.0, dropped_angles=0.0), 20).train()
    penalties = []
    for width in (3, 9):
        model.read(history_of([1, 2, 3], [4], width=width))
        penalties.append(model.penalty())
    torch.testing.assert_close(penalties[0], penalties[1])


def test_the_contrast_of_a_history_does_not_depend_on_its_neighbours() -> None:
    model = EulerFormer(EulerFormerConfig(dim=8, dropout=0.0, dropped_angles=0.0), 20).train()
    penalties = []
    for rows in ([[1, 2, 3], [4]], [[1, 2, 3]], [[4]]):
        model.encode(history_of(*rows, width=3))
        penalties.append(model.penalty())
    torch.testing.assert_close(penalties[0], torch.cat(penalties[1:]))  # type: ignore[arg-type]


def test_large_weights_do_not_overflow() -> None:
    attention = PolarAttention(dim=8, num_heads=2, dropout=0.0, dropped_angles=0.0, temperature=1.0)
    with torch.no_grad():
        attention.contrast_weights.fill_(1e3)
    angles = torch.randn(1, 5, 4)
    assert math.isfinite(attention._contrast(angles, torch.ones(1, 5, dtype=torch.bool)).item())


def test_gradients_are_finite_where_queries_and_keys_are_nothing() -> None:
    model = EulerFormer(EulerFormerConfig(dim=8), 20).train()
    with torch.no_grad():
        for layer in model.layers:
            for linear in (layer.attention.query, layer.attention.key):
                linear.weight.zero_()
    states = model.read(history_of([1, 2, 3], [4], width=4))
    penalty = model.penalty()
    assert penalty is not None
    (states.sum() + penalty.sum()).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_an_odd_number_of_channels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model.dim=9 is odd"):
        EulerFormerConfig(dim=9, num_heads=1)


def test_the_contrast_is_asked_for_once_and_only_in_training() -> None:
    model = EulerFormer(EulerFormerConfig(dim=8, contrast_weight=1.0), 20).train()
    history = History(torch.tensor([[3, 1, 4]]), torch.zeros(1, 3, dtype=torch.long), torch.tensor([3]))
    model.encode(history)
    copy.deepcopy(model.state_dict())
    first = model.penalty()
    assert first is not None
    assert (first > 0).all()
    assert model.penalty() is None
    copy.deepcopy(model)
    model.encode(history)
    model.eval().encode(history)
    assert model.penalty() is None
