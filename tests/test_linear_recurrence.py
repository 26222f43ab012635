import pytest
import torch
from torch import Tensor

from raysrec.ops import kernels
from raysrec.ops import linear_recurrence as module
from raysrec.ops.linear_recurrence import linear_recurrence, linear_recurrence_reference, linear_recurrence_step

CHANNELS = 3
REAL, COMPLEX = torch.float64, torch.complex128
# Lengths for one chunk, for whole chunks, and for chunks with a few positions left over.
LENGTHS = [1, 2, 15, 47, 48, 50, 131]


@pytest.fixture(params=["one chunk", "chunks"])
def _how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Position by position, or cut into as many chunks as the length is worth."""
    monkeypatch.setattr(module, "VALUES_AT_ONCE", {"cpu": 1 if request.param == "one chunk" else 2**20})


def inputs(batch: int, length: int, *, constant: bool, dtype: torch.dtype = REAL) -> list[Tensor]:
    """Decays with magnitudes up to one, and what enters."""
    shape = (CHANNELS,) if constant else (batch, length, CHANNELS)
    a = torch.rand(shape, dtype=dtype.to_real())
    if dtype.is_complex:
        a = torch.polar(a, 7 * torch.rand_like(a))
    return [a.requires_grad_(), torch.randn(batch, length, CHANNELS, dtype=dtype).requires_grad_()]


def assert_same(fast: Tensor, slow: Tensor, given: list[Tensor]) -> None:
    """Values and gradients of two computations of the same thing."""
    torch.testing.assert_close(fast, slow)
    weights = torch.randn_like(slow)
    ours, truth = (torch.autograd.grad((h * weights).sum().abs(), given) for h in (fast, slow))
    for one, other in zip(ours, truth, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * max(1.0, other.abs().max().item()))


@pytest.mark.usefixtures("_how")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("length", LENGTHS)
def test_it_is_the_recursion(length: int, constant: bool, dtype: torch.dtype) -> None:
    given = inputs(2, length, constant=constant, dtype=dtype)
    assert_same(linear_recurrence(*given), linear_recurrence_reference(*given), given)


def test_chunks_are_taken_where_rows_are_few_and_positions_many() -> None:
    shapes = [torch.empty(batch, length, 128) for batch, length in ((1, 5000), (4, 200), (64, 200))]
    assert [module._num_chunks(x, alike=True) for x in shapes] == [32, 8, 1]
    assert [module._num_chunks(x, alike=False) for x in shapes] == [32, 8, 1]


@pytest.mark.usefixtures("_how")
@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
def test_gradients_are_those_of_finite_differences(dtype: torch.dtype, constant: bool) -> None:
    torch.autograd.gradcheck(linear_recurrence, inputs(1, 17, constant=constant, dtype=dtype))


@pytest.mark.usefixtures("_how")
def test_the_first_decay_says_nothing_for_there_is_no_state_before_it() -> None:
    a, b = inputs(2, 50, constant=False)
    linear_recurrence(a, b).sum().backward()
    assert a.grad is not None
    assert (a.grad[:, 0] == 0).all()
    assert (a.grad[:, 1:] != 0).all()


@pytest.mark.usefixtures("_how")
@pytest.mark.parametrize("shape", [(CHANNELS,), (1, 5000, CHANNELS)])
def test_fast_decay_and_long_histories_neither_overflow_nor_poison(shape: tuple[int, ...]) -> None:
    # Products of these decays reach 1e-40000; whatever divides by one of them gives nan or inf.
    a, b = torch.full(shape, 1e-8), torch.randn(1, 5000, CHANNELS)
    a[..., 1], a[..., 2] = 0.0, 1.0
    a.requires_grad_()
    h = linear_recurrence(a, b)
    torch.testing.assert_close(h[..., :2], b[..., :2], rtol=0, atol=1e-6)
    torch.testing.assert_close(h[..., 2], b[..., 2].double().cumsum(1).float(), rtol=1e-4, atol=1e-3)
    h.sum().backward()
    assert a.grad is not None
    assert a.grad.isfinite().all()


@pytest.mark.usefixtures("_how")
def test_a_real_decay_of_complex_values_is_welcome() -> None:
    a, b = inputs(2, 60, constant=True)[0], inputs(2, 60, constant=True, dtype=COMPLEX)[1]
    assert_same(linear_recurrence(a, b), linear_recurrence_reference(a, b), [a, b])


@pytest.mark.usefixtures("_how")
def test_views_that_do_not_lie_in_one_piece_are_welcome() -> None:
    a, b = inputs(3, 60, constant=False)
    scattered = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (a, b)]
    torch.testing.assert_close(linear_recurrence(*scattered), linear_recurrence(a, b), rtol=0, atol=0)


def test_what_is_given_stays_as_it_is() -> None:
    given = inputs(2, 60, constant=False)
    before = [x.detach().clone() for x in given]
    linear_recurrence(*given).sum().backward()
    assert all(torch.equal(x, y) for x, y in zip(given, before, strict=True))


@pytest.mark.usefixtures("_how")
def test_decays_and_states_are_all_that_is_kept() -> None:
    given, kept = inputs(2, 500, constant=False), []

    def count(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        linear_recurrence(*given)
    assert kept == [2 * 500 * CHANNELS] * 2


def test_steps_are_the_recurrence() -> None:
    a, b = inputs(3, 13, constant=False, dtype=COMPLEX)
    state, whole = torch.zeros_like(b[:, 0]), linear_recurrence(a, b)
    for t in range(13):
        state = linear_recurrence_step(a[:, t], b[:, t], state)
        torch.testing.assert_close(state, whole[:, t])


def test_half_precision_counts_in_float32() -> None:
    a, b = (x.detach().bfloat16() for x in inputs(2, 60, constant=False))
    h = linear_recurrence(a, b)
    assert h.dtype == torch.bfloat16
    torch.testing.assert_close(h, linear_recurrence(a.float(), b.float()).bfloat16(), rtol=0, atol=0)
    assert linear_recurrence(a.float(), b).dtype == torch.float32


def test_autocast_does_not_reach_inside() -> None:
    given = inputs(2, 60, constant=False, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = linear_recurrence(*given)
    torch.testing.assert_close(cast, linear_recurrence(*given), rtol=0, atol=0)


def test_it_says_what_it_runs_on() -> None:
    assert kernels("cpu")["linear recurrence"] == "chunked torch"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
def test_it_is_the_recursion_on_a_gpu(dtype: torch.dtype) -> None:
    given = [x.detach().cuda().requires_grad_() for x in inputs(3, 131, constant=False, dtype=dtype)]
    assert_same(linear_recurrence(*given), linear_recurrence_reference(*given), given)
