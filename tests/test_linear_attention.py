import pytest
import torch
import torch.nn.functional as F

from raysrec.ops import linear_attention as module
from raysrec.ops.linear_attention import (
    bidirectional_linear_attention,
    causal_linear_attention,
    linear_attention_reference,
    positive,
)

HEADS = 2
DIM = 8


def inputs(length: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    return [torch.randn(3, length, DIM, dtype=dtype, requires_grad=True) for _ in range(3)]


def by_all_pairs(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor, *, rotary: bool = True
) -> torch.Tensor:
    """The formula as it is printed: every pair of positions, with sines and cosines, masked by `seen` [B L L]."""
    fq, fk = F.elu(q) + 1, F.elu(k) + 1
    length = q.shape[1]
    pair = torch.arange(DIM // 2, dtype=torch.float64)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * 10_000.0 ** (-pair / (DIM / 2))
    cos, sin = angles.cos().to(q.dtype), angles.sin().to(q.dtype)

    def rotated(x: torch.Tensor) -> torch.Tensor:
        even, odd = x[..., 0::2], x[..., 1::2]
        if not rotary:
            return x
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    numerator = (heads(rotated(fq)) @ heads(rotated(fk)).mT * seen[:, None]) @ heads(v)
    denominator = (heads(fq) @ heads(fk).mT * seen[:, None]).sum(-1) + 1e-6 * seen.sum(-1)[:, None]
    return (numerator / denominator[..., None]).transpose(1, 2).flatten(-2)


def assert_same(fast: torch.Tensor, slow: torch.Tensor, tensors: list[torch.Tensor]) -> None:
    """Values and gradients of two computations of the same thing."""
    torch.testing.assert_close(fast, slow)
    weights = torch.randn_like(fast)
    for ours, truth in zip(
        torch.autograd.grad((fast * weights).sum(), tensors),
        torch.autograd.grad((slow * weights).sum(), tensors),
        strict=True,
    ):
        torch.testing.assert_close(ours, truth)


# Lengths around the chunk: shorter, one, a whole number, one more, and a last chunk that needs zeros.
@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize(("length", "chunk"), [(1, 4), (3, 4), (4, 4), (5, 4), (8, 4), (11, 4), (11, 1), (50, 40)])
def test_chunks_are_the_recursion(length: int, chunk: int, rotary: bool) -> None:
    tensors = inputs(length)
    fast = causal_linear_attention(*tensors, num_heads=HEADS, rotary=rotary, positions_per_chunk=chunk)
    assert_same(fast, linear_attention_reference(*tensors, num_heads=HEADS, rotary=rotary), tensors)


def test_one_head_in_one_chunk_without_rotations_copies_nothing_and_spoils_nothing() -> None:
    tensors = inputs(5)
    fast = causal_linear_attention(*tensors, num_heads=1, rotary=False)
    assert_same(fast, linear_attention_reference(*tensors, num_heads=1, rotary=False), tensors)


@pytest.mark.parametrize("rotary", [True, False])
def test_the_recursion_is_the_masked_product_of_all_pairs(rotary: bool) -> None:
    tensors = inputs(11)
    seen = torch.ones(3, 11, 11, dtype=torch.bool).tril()
    slow = by_all_pairs(*tensors, seen, rotary=rotary)
    assert_same(linear_attention_reference(*tensors, num_heads=HEADS, rotary=rotary), slow, tensors)


@pytest.mark.parametrize("rotary", [True, False])
def test_bidirectional_is_the_product_of_all_pairs_that_the_mask_lets_in(rotary: bool) -> None:
    tensors = inputs(7)
    mask = torch.rand(3, 7) < 0.6
    mask[:, 0] = True
    fast = bidirectional_linear_attention(*tensors, mask, num_heads=HEADS, rotary=rotary)
    assert_same(fast, by_all_pairs(*tensors, mask[:, None, :].expand(3, 7, 7), rotary=rotary), tensors)


def test_a_row_that_sees_nothing_gives_zeros_and_finite_gradients() -> None:
    tensors = inputs(5)
    mask = torch.tensor([[True] * 5, [False] * 5, [True] * 5])
    mixed = bidirectional_linear_attention(*tensors, mask, num_heads=HEADS)
    assert (mixed[1] == 0).all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(mixed.sum(), tensors))


def test_only_differences_of_positions_matter() -> None:
    q, k, v = inputs(6)
    ahead = [F.pad(x, (0, 0, 4, 0)) for x in (q, k, v)]
    mask = torch.tensor([[False] * 4 + [True] * 6] * 3)
    shifted = bidirectional_linear_attention(*ahead, mask, num_heads=HEADS)[:, 4:]
    here = bidirectional_linear_attention(q, k, v, mask[:, 4:], num_heads=HEADS)
    torch.testing.assert_close(shifted, here)


def test_positive_is_elu_plus_one_and_keeps_what_the_addition_would_round_away() -> None:
    x = torch.linspace(-8, 8, 101, dtype=torch.float64)
    torch.testing.assert_close(positive(x), F.elu(x) + 1)
    assert positive(torch.tensor(-30.0)) > 0
    assert F.elu(torch.tensor(-30.0)) + 1 == 0


def test_float32_stays_close_over_a_long_history() -> None:
    tensors = inputs(500, torch.float32)
    exact = causal_linear_attention(*(x.double() for x in tensors), num_heads=HEADS)
    fast = causal_linear_attention(*tensors, num_heads=HEADS)
    torch.testing.assert_close(fast.double(), exact, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("attend", [causal_linear_attention, linear_attention_reference])
def test_half_precision_is_summed_in_float32(attend: object) -> None:
    halves = [x.detach().bfloat16() for x in inputs(64, torch.float32)]
    exact = causal_linear_attention(*(x.float() for x in halves), num_heads=HEADS)
    mixed = attend(*halves, num_heads=HEADS)  # type: ignore[operator]
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), exact, atol=0, rtol=2**-8)  # rounded once, at the end


def test_autocast_does_not_reach_the_sums() -> None:
    tensors = inputs(64, torch.float32)
    exact = causal_linear_attention(*tensors, num_heads=HEADS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(causal_linear_attention(*tensors, num_heads=HEADS), exact)


def test_a_table_first_made_while_serving_is_good_for_training() -> None:
    module._longest_turn_table.cache_clear()
    tensors = inputs(9)
    with torch.inference_mode():
        causal_linear_attention(*(x.detach() for x in tensors), num_heads=HEADS)
    for mixed in (
        causal_linear_attention(*tensors, num_heads=HEADS),
        bidirectional_linear_attention(*tensors, torch.ones(3, 9, dtype=torch.bool), num_heads=HEADS),
    ):
        mixed.sum().backward()
