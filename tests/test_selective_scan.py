from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from raysrec.ops import selective_scan as module
from raysrec.ops.selective_scan import (
    initial_scan_state,
    selective_scan,
    selective_scan_reference,
    selective_scan_step,
)

CHANNELS, STATES = 6, 5


def inputs(
    batch: int, length: int, dtype: torch.dtype = torch.float64, channels: int = CHANNELS, states: int = STATES
) -> list[Tensor]:
    """u, delta, a, b, c and skip, in the order of the signature."""
    u = torch.randn(batch, length, channels, dtype=dtype)
    delta = torch.rand(batch, length, channels, dtype=dtype)
    a = -4 * torch.rand(channels, states, dtype=dtype)
    b, c = torch.randn(2, batch, length, states, dtype=dtype)
    return [x.clone().requires_grad_() for x in (u, delta, a, b, c, torch.randn(channels, dtype=dtype))]


def gradients(y: Tensor, given: list[Tensor], seed: int = 0) -> tuple[Tensor, ...]:
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).to(y)
    return torch.autograd.grad((y * weights).sum(), given)


def assert_same(fast: Tensor, slow: Tensor, given: list[Tensor]) -> None:
    """Values and gradients of two computations of the same thing."""
    torch.testing.assert_close(fast, slow)
    for ours, truth in zip(gradients(fast, given), gradients(slow, given), strict=True):
        # Float32 sums over all positions, in another order: relative to the largest, not to the smallest.
        torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-5 * truth.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
# Lengths around the chunk: one, shorter, a whole number, one more, and a last chunk that is not full.
@pytest.mark.parametrize(("length", "chunk"), [(1, 4), (3, 4), (4, 4), (5, 4), (8, 4), (11, 4), (11, 1), (23, 8)])
def test_chunks_are_the_recursion(length: int, chunk: int, dtype: torch.dtype) -> None:
    given = inputs(3, length, dtype)
    assert_same(selective_scan(*given, positions_per_chunk=chunk), selective_scan_reference(*given), given)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 30), (5, 9)])
def test_groups_of_rows_are_the_recursion(monkeypatch: pytest.MonkeyPatch, batch: int, length: int) -> None:
    # Two rows fill a slab, so five make three groups and the last is not full.
    monkeypatch.setattr(module, "VALUES_PER_SLAB", {"cpu": 2 * CHANNELS * STATES // torch.get_num_threads()})
    given = inputs(batch, length)
    assert_same(selective_scan(*given), selective_scan_reference(*given), given)


def test_sizes_of_the_model_in_float32() -> None:
    given = inputs(2, 50, torch.float32, channels=128, states=32)
    assert_same(selective_scan(*given), selective_scan_reference(*given), given)


def test_gradients_are_those_of_finite_differences() -> None:
    given = inputs(2, 5)
    torch.autograd.gradcheck(lambda *tensors: selective_scan(*tensors, positions_per_chunk=2), given)


def test_views_that_do_not_lie_in_one_piece_are_welcome() -> None:
    u, delta, a, b, c, skip = inputs(3, 9)
    scattered = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (u, delta, b, c)]
    plain = selective_scan(u, delta, a, b, c, skip)
    torch.testing.assert_close(
        selective_scan(*scattered[:2], a.T.contiguous().T, *scattered[2:], skip), plain, rtol=0, atol=0
    )


def test_nothing_of_size_blse_is_kept_for_backward() -> None:
    batch, length, channels, states = 2, 64, 16, 32
    given = inputs(batch, length, channels=channels, states=states)
    kept: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        kept.append(tensor.untyped_storage().nbytes() // tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        selective_scan(*given, positions_per_chunk=8)
    whole = batch * length * channels * states
    assert max(kept) == whole // 8  # the states before the chunks
    assert sum(kept) < whole // 2


def test_few_rows_keep_no_more_than_many() -> None:
    channels, states = 16, 32
    per_position = {}
    for batch, length in ((1, 512), (64, 8)):  # a slab holds 64 rows of these
        kept: list[int] = []
        given = inputs(batch, length, channels=channels, states=states)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, kept=kept: kept.append(tensor.numel()) or tensor, lambda tensor: tensor
        ):
            selective_scan(*given)
        per_position[batch] = max(kept)
    assert per_position[1] <= per_position[64] == 512 * channels * states // 8


def test_without_gradients_no_state_is_kept() -> None:
    given = inputs(2, 20)
    kept: list[int] = []
    keep = torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t)
    with keep, torch.no_grad():
        silent = selective_scan(*given)
    assert not kept
    with keep:
        torch.testing.assert_close(silent, selective_scan(*given), rtol=0, atol=0)
    assert kept


@pytest.mark.parametrize("scan", [selective_scan, selective_scan_reference])
def test_fast_decay_neither_overflows_nor_poisons(scan: Callable[..., Tensor]) -> None:
    # A state that is forgotten within one item, 300 times: the sum of log decays reaches -3e7.
    u, delta, a, b, c, skip = (x.detach() for x in inputs(2, 300, torch.float32))
    given = [x.requires_grad_() for x in (u, delta + 100.0, a - 1000.0, b, c, skip)]
    y = scan(*given)
    torch.testing.assert_close(y, delta_times_read_out(*given), rtol=1e-5, atol=1e-3)  # values reach a thousand
    assert all(torch.isfinite(gradient).all() for gradient in gradients(y, given))


def delta_times_read_out(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor) -> Tensor:
    """What is left of the scan when nothing is remembered."""
    return delta * u * (b * c).sum(-1, keepdim=True) + skip * u


def test_without_decay_it_is_a_cumulative_sum() -> None:
    u, delta, _, b, c, skip = inputs(2, 40)
    never = torch.zeros(CHANNELS, STATES, dtype=torch.float64)
    sums = torch.einsum("ble,bls->bles", delta * u, b).cumsum(1)
    torch.testing.assert_close(
        selective_scan(u, delta, never, b, c, skip), torch.einsum("bles,bls->ble", sums, c) + skip * u
    )


def test_steps_are_the_scan() -> None:
    u, delta, a, b, c, skip = inputs(3, 13)
    state = initial_scan_state(3, a)
    whole = selective_scan(u, delta, a, b, c, skip)
    for t in range(13):
        y, state = selective_scan_step(u[:, t], delta[:, t], a, b[:, t], c[:, t], skip, state)
        torch.testing.assert_close(y, whole[:, t])


def test_half_precision_counts_in_float32() -> None:
    given = [x.detach() for x in inputs(2, 60, torch.float32)]
    halves = [x.bfloat16() for x in given]
    y = selective_scan(*halves)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, selective_scan(*(x.float() for x in halves)).bfloat16(), rtol=0, atol=0)


def test_autocast_does_not_reach_inside() -> None:
    given = inputs(2, 20, torch.float32)
    plain = selective_scan(*given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = selective_scan(*given)
        inside = gradients(cast, given)
    torch.testing.assert_close(cast, plain, rtol=0, atol=0)
    for ours, truth in zip(inside, gradients(plain, given), strict=True):
        torch.testing.assert_close(ours, truth, rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_mamba_ssm_is_the_recursion() -> None:
    pytest.importorskip("mamba_ssm", reason="mamba_ssm is not installed")
    given = [x.detach().cuda().requires_grad_() for x in inputs(3, 200, torch.float32, channels=128, states=32)]
    fast, slow = selective_scan(*given), selective_scan_reference(*given)
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)
    for ours, truth in zip(gradients(fast, given), gradients(slow, given), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-3, atol=1e-3 * truth.abs().max().item())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_chunks_are_the_recursion_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_cuda_kernel", lambda: None)
    given = [x.detach().cuda().requires_grad_() for x in inputs(3, 30)]
    assert_same(selective_scan(*given), selective_scan_reference(*given), given)
