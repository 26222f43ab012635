import logging

import pytest
import torch

from raysrec.ops import short_conv as module
from raysrec.ops.short_conv import short_conv, short_conv_reference


def inputs(length: int, taps: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    shapes = [(3, length, 5), (5, taps), (5,)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize(("length", "taps"), [(1, 4), (2, 4), (3, 4), (9, 4), (9, 1), (9, 3)])
def test_fast_is_the_reference_in_values_and_gradients(length: int, taps: int, activation: str | None) -> None:
    tensors = inputs(length, taps)
    fast, slow = (f(*tensors, activation=activation) for f in (short_conv, short_conv_reference))
    torch.testing.assert_close(fast, slow)
    weights = torch.randn_like(fast)
    for ours, truth in zip(
        torch.autograd.grad((fast * weights).sum(), tensors),
        torch.autograd.grad((slow * weights).sum(), tensors),
        strict=True,
    ):
        torch.testing.assert_close(ours, truth)


def test_it_is_torchs_grouped_convolution_with_zeros_before_the_start() -> None:
    x, weight, bias = inputs(7, 4)
    padded = torch.nn.functional.pad(x.mT, (3, 0))
    theirs = torch.nn.functional.conv1d(padded, weight[:, None], bias, groups=5).mT
    torch.testing.assert_close(short_conv(x, weight, bias), theirs)


def test_last_tap_multiplies_the_current_position() -> None:
    x = torch.tensor([[[1.0], [10.0], [100.0]]])
    mixed = short_conv(x, torch.tensor([[2.0, 3.0]]), torch.zeros(1))
    assert mixed.flatten().tolist() == [3.0, 32.0, 320.0]


def test_half_precision_values_meet_float32_parameters() -> None:
    x, weight, bias = inputs(7, 4, torch.float32)
    half = short_conv(x.bfloat16(), weight, bias, activation="silu")
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), short_conv(x, weight, bias, activation="silu"), atol=0.05, rtol=0.05)


def test_what_stands_in_for_the_missing_library_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    module._cuda_kernel.cache_clear()
    with caplog.at_level(logging.INFO):
        found = [module._cuda_kernel() for _ in range(2)]
    module._cuda_kernel.cache_clear()
    assert found[0] is found[1]
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().startswith("short convolution: ")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("activation", [None, "silu"])
def test_on_a_gpu_it_is_the_same_function(activation: str | None) -> None:
    tensors = inputs(50, 4, torch.float32)
    on_gpu = [x.detach().cuda().requires_grad_() for x in tensors]
    fast, slow = short_conv(*on_gpu, activation=activation), short_conv_reference(*tensors, activation=activation)
    torch.testing.assert_close(fast.cpu(), slow, atol=1e-5, rtol=1e-5)
    gradients = torch.autograd.grad(fast.square().sum(), on_gpu)
    for ours, truth in zip(gradients, torch.autograd.grad(slow.square().sum(), tensors), strict=True):
        torch.testing.assert_close(ours.cpu(), truth, atol=1e-4, rtol=1e-4)
