import pytest
import torch
from torch import Tensor

from raysrec.ops import additive_attention as module
from raysrec.ops.additive_attention import additive_attention_reference, causal_additive_attention


def inputs(batch: int, length: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """query, key, value and weight, in the order of the signature; values have fewer channels."""
    query, key = torch.randn(2, batch, length, 5, dtype=dtype)
    value, weight = torch.randn(batch, length, 3, dtype=dtype), torch.randn(5, dtype=dtype)
    return [x.clone().requires_grad_() for x in (query, key, value, weight)]


def assert_same(fast: Tensor, slow: Tensor, given: list[Tensor]) -> None:
    """Values and gradients of two computations of the same thing."""
    torch.testing.assert_close(fast, slow)
    weights = torch.randn_like(slow)
    ours, truth = (torch.autograd.grad((y * weights).sum(), given) for y in (fast, slow))
    for one, other in zip(ours, truth, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * other.abs().max().item())


def test_the_reference_is_the_definition() -> None:
    query, key, value, weight = (x.detach() for x in inputs(2, 6))
    got = additive_attention_reference(query, key, value, weight)
    for row in range(2):
        for t in range(6):
            alpha = [torch.sigmoid(key[row, j] + query[row, t]) @ weight for j in range(t + 1)]
            expected = sum(a * value[row, j] for j, a in enumerate(alpha))
            torch.testing.assert_close(got[row, t], expected)


# One pair of positions at a time; a few queries of one row; a few rows; everything.
@pytest.mark.parametrize("pairs", [1, 40, 300, 10_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 13), (7, 10)])
def test_pieces_are_the_whole(
    monkeypatch: pytest.MonkeyPatch, batch: int, length: int, dtype: torch.dtype, pairs: int
) -> None:
    monkeypatch.setattr(module, "VALUES_AT_ONCE", {"cpu": 5 * pairs})
    given = inputs(batch, length, dtype)
    assert_same(causal_additive_attention(*given), additive_attention_reference(*given), given)


def test_gradients_are_those_of_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VALUES_AT_ONCE", {"cpu": 5 * 12})
    torch.autograd.gradcheck(causal_additive_attention, inputs(2, 5))


def test_memory_is_bounded_whatever_the_length(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def noted(query: Tensor, key: Tensor, space: Tensor) -> Tensor:
        sizes.append(space.numel())
        return likeness(query, key, space)

    likeness = module._likeness
    monkeypatch.setattr(module, "_likeness", noted)
    monkeypatch.setattr(module, "VALUES_AT_ONCE", {"cpu": 5 * 1000})
    for length in (10, 100, 400):
        causal_additive_attention(*inputs(4, length)).sum().backward()
    assert max(sizes) <= 5 * 1000


def test_only_what_came_in_is_kept() -> None:
    given, kept = inputs(2, 50), []

    def count(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        causal_additive_attention(*given)
    assert kept == [x.numel() for x in given]


def test_half_precision_counts_in_float32() -> None:
    halves = [x.detach().bfloat16() for x in inputs(2, 30)]
    y = causal_additive_attention(*halves)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, causal_additive_attention(*(x.float() for x in halves)).bfloat16(), rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pieces_are_the_whole_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VALUES_AT_ONCE", {"cuda": 5 * 300})
    given = [x.detach().cuda().requires_grad_() for x in inputs(7, 10)]
    assert_same(causal_additive_attention(*given), additive_attention_reference(*given), given)
