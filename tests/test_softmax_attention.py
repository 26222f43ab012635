import pytest
import torch
from torch import Tensor

from raysrec.ops import softmax_attention as module
from raysrec.ops.dropout import keep_or_drop, random_bits
from raysrec.ops.softmax_attention import softmax_attention, softmax_attention_reference

HEADS, CHANNELS = 2, 12


def queries_keys_values(batch: int, length: int) -> list[Tensor]:
    return [torch.randn(batch, length, CHANNELS, dtype=torch.float64, requires_grad=True) for _ in range(3)]


def some_seen(batch: int, length: int) -> Tensor:
    return torch.arange(length) < torch.arange(1, batch + 1)[:, None]


@pytest.mark.parametrize("causal", [True, False])
def test_it_is_its_reference_with_gradients(causal: bool) -> None:
    q, k, v = queries_keys_values(5, 7)
    seen = None if causal else some_seen(5, 7)
    fast = softmax_attention(q, k, v, seen, num_heads=HEADS)
    slow = softmax_attention_reference(q, k, v, seen, num_heads=HEADS)
    torch.testing.assert_close(fast, slow)
    weights = torch.randn_like(slow)
    pairs = zip(*(torch.autograd.grad((x * weights).sum(), [q, k, v]) for x in (fast, slow)), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("weights_per_chunk", [1, 100, 1 << 17])
@pytest.mark.parametrize("causal", [True, False])
def test_dropped_it_is_its_reference_with_what_was_kept(
    causal: bool, weights_per_chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WEIGHTS_PER_CHUNK", weights_per_chunk)
    q, k, v = queries_keys_values(3, 6)
    seen = None if causal else some_seen(3, 6)
    # Values that are rows of the identity show the weights, and so what was kept of them.
    torch.manual_seed(1)
    shown = torch.eye(6, dtype=torch.float64).repeat(1, 2)[None].expand(3, -1, -1)
    weights = softmax_attention_reference(q, k, shown, seen, num_heads=HEADS)
    kept = (softmax_attention(q, k, shown, seen, num_heads=HEADS, dropout=0.4) / weights).nan_to_num()
    kept = kept.view(3, 6, HEADS, 6).transpose(1, 2).detach()
    assert len(kept.round(decimals=6).unique()) == 2
    torch.manual_seed(1)
    fast = softmax_attention(q, k, v, seen, num_heads=HEADS, dropout=0.4)
    slow = softmax_attention_reference(q, k, v, seen, kept, num_heads=HEADS)
    torch.testing.assert_close(fast, slow)
    by = torch.randn_like(slow)
    pairs = zip(*(torch.autograd.grad((x * by).sum(), [q, k, v]) for x in (fast, slow)), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs)


def test_one_query_sees_what_the_last_position_does() -> None:
    q, k, v = queries_keys_values(4, 5)
    everything = torch.ones(4, 5, dtype=torch.bool)
    causal = softmax_attention(q, k, v, None, num_heads=HEADS)
    last = softmax_attention(q[:, -1:], k, v, everything, num_heads=HEADS)
    torch.testing.assert_close(last, causal[:, -1:])
    dropped = softmax_attention(q[:, -1:], k, v, everything, num_heads=HEADS, dropout=0.3)
    assert dropped.shape == last.shape


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_seeing_nothing_gives_zeros_and_finite_gradients(dropout: float) -> None:
    q, k, v = queries_keys_values(2, 4)
    seen = torch.tensor([[False] * 4, [True] * 4])
    mixed = softmax_attention(q, k, v, seen, num_heads=HEADS, dropout=dropout)
    assert (mixed[0] == 0).all()
    mixed.sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (q, k, v))


def test_dropped_attention_runs_in_half_precision() -> None:
    q, k, v = (x.detach().to(torch.bfloat16) for x in queries_keys_values(2, 4))
    assert softmax_attention(q, k, v, None, num_heads=HEADS, dropout=0.3).dtype == torch.bfloat16


def test_what_is_kept_has_the_asked_share_and_mean_one() -> None:
    kept = keep_or_drop(random_bits(torch.Size([300, 301])), 0.3)
    assert float((kept == 0).float().mean()) == pytest.approx(0.3, abs=0.01)
    assert float(kept.max()) == pytest.approx(1 / 0.7, rel=1e-4)
