"""The softmax loss: equal to cross-entropy in value and gradient, for any chunks, in bounded memory."""

import itertools
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from raysrec.losses import chunk_sizes, softmax_loss, softmax_loss_reference


def problem(
    num_targets: int,
    num_rows: int,
    dim: int = 3,
    *,
    bias: bool = False,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """States, vectors, targets and perhaps a bias, all but the targets waiting for a gradient."""
    make = torch.Generator().manual_seed(seed)
    states = torch.randn(num_targets, dim, generator=make, dtype=torch.float64).to(dtype).requires_grad_()
    vectors = torch.randn(num_rows, dim, generator=make, dtype=torch.float64).to(dtype).requires_grad_()
    targets = torch.randint(1, num_rows, (num_targets,), generator=make)
    offsets = torch.randn(num_rows, generator=make, dtype=torch.float64).to(dtype).requires_grad_() if bias else None
    return states, vectors, targets, offsets


def gradients(loss: Tensor, *inputs: Tensor | None) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, [given for given in inputs if given is not None])


SIZES = [(1, 2), (1, 5), (7, 11), (16, 8), (33, 130)]
CHUNKS = [(None, None), (1, 1), (3, 4), (5, 1000), (1000, 7), (8, 4)]


@pytest.mark.parametrize("padding_class", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("sizes", "chunks"), list(itertools.product(SIZES, CHUNKS)))
def test_value_and_gradients_are_those_of_cross_entropy(
    sizes: tuple[int, int], chunks: tuple[int | None, int | None], bias: bool, padding_class: bool
) -> None:
    states, vectors, targets, offsets = problem(*sizes, bias=bias)
    how = {"targets_per_chunk": chunks[0], "items_per_chunk": chunks[1], "padding_class": padding_class}
    loss = softmax_loss(states, vectors, targets, offsets, **how)  # type: ignore[arg-type]
    expected = softmax_loss_reference(states, vectors, targets, offsets, padding_class=padding_class)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(
        gradients(loss * 0.3, states, vectors, offsets),
        gradients(expected * 0.3, states, vectors, offsets),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 12), st.integers(2, 12), st.integers(1, 15), st.integers(1, 15), st.integers(0, 99))
def test_chunks_do_not_matter(
    num_targets: int, num_rows: int, targets_at_once: int, items_at_once: int, seed: int
) -> None:
    states, vectors, targets, bias = problem(num_targets, num_rows, bias=True, seed=seed)
    whole = softmax_loss(states, vectors, targets, bias)
    parts = softmax_loss(
        states, vectors, targets, bias, targets_per_chunk=targets_at_once, items_per_chunk=items_at_once
    )
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(
        gradients(parts, states, vectors, bias), gradients(whole, states, vectors, bias), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("items_per_chunk", [4, 100])
def test_gradients_are_the_slopes(items_per_chunk: int) -> None:
    states, vectors, targets, bias = problem(4, 9, bias=True)
    assert torch.autograd.gradcheck(
        lambda *inputs: softmax_loss(
            inputs[0], inputs[1], targets, inputs[2], targets_per_chunk=3, items_per_chunk=items_per_chunk
        ),
        (states, vectors, bias),
    )


def test_float32_stays_close() -> None:
    states, vectors, targets, _ = problem(300, 500, 64, dtype=torch.float32)
    loss = softmax_loss(states, vectors, targets)
    exact = softmax_loss_reference(states.double(), vectors.double(), targets)
    # Sums of 500 exponentials of scores around 30: some hundred roundings of 6e-8.
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)
    for ours, theirs in zip(gradients(loss, states, vectors), gradients(exact, states, vectors), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_padding_is_never_a_class() -> None:
    states, vectors, targets, bias = problem(5, 7, bias=True)
    assert bias is not None
    loud_vectors, loud_bias = vectors.detach().clone(), bias.detach().clone()
    loud_vectors[0], loud_bias[0] = 1e6, 1e6
    loss = softmax_loss(states, vectors, targets, bias)
    assert softmax_loss(states, loud_vectors, targets, loud_bias) == loss
    _, grad_vectors, grad_bias = gradients(loss, states, vectors, bias)
    assert (grad_vectors[0] == 0).all()
    assert grad_bias[0] == 0


def test_as_a_class_padding_is_one_more_candidate_that_is_never_right() -> None:
    states, vectors, targets, _ = problem(5, 7)
    loss = softmax_loss(states, vectors, targets, padding_class=True)
    scores = states @ vectors.T
    expected = (scores.exp().sum(1).log() - scores.gather(1, targets[:, None])[:, 0]).sum()
    torch.testing.assert_close(loss, expected)
    assert loss > softmax_loss(states, vectors, targets)
    with pytest.raises(ValueError, match=r"must be items 1\.\.6"):
        softmax_loss(states, vectors, torch.zeros_like(targets), padding_class=True)


def test_scores_beyond_the_range_of_exp_are_finite() -> None:
    states, vectors, targets, _ = problem(6, 9, dtype=torch.float32)
    loss = softmax_loss(states * 1e4, vectors, targets, items_per_chunk=4)
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(loss, states, vectors))


def test_a_sure_model_loses_nothing() -> None:
    vectors = torch.eye(5) * 100
    assert softmax_loss(torch.eye(5)[1:], vectors, torch.arange(1, 5)) == 0


@pytest.mark.parametrize("bias", [False, True])
def test_no_targets_give_zero_and_gradients_that_arrive(bias: bool) -> None:
    states, vectors, targets, offsets = problem(0, 6, bias=bias)
    loss = softmax_loss(states, vectors, targets, offsets)
    loss.backward()
    assert loss == 0
    assert states.grad is not None
    assert vectors.grad is not None
    assert (vectors.grad == 0).all()
    assert offsets is None or (offsets.grad is not None and (offsets.grad == 0).all())


class MatrixProducts(TorchDispatchMode):
    """How many products of matrices are made."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "mm" in func.__name__
        return func(*args, **(kwargs or {}))


def test_without_grad_mode_only_the_value_is_made() -> None:
    states, vectors, targets, _ = problem(5, 7)
    with torch.no_grad(), MatrixProducts() as without:
        loss = softmax_loss(states, vectors, targets)
    with MatrixProducts() as learning:
        assert loss == softmax_loss(states, vectors, targets)
    assert (without.count, learning.count) == (1, 3)  # scores, and a product for each gradient
    with torch.inference_mode():
        assert loss == softmax_loss(states, vectors, targets)


@pytest.mark.parametrize("frozen", [0, 1, 3])
def test_an_input_that_is_not_learned_gets_no_gradient(frozen: int) -> None:
    inputs = list(problem(5, 7, bias=True))
    inputs[frozen] = inputs[frozen].detach()  # type: ignore[union-attr]
    softmax_loss(*inputs).backward()  # type: ignore[arg-type]
    assert inputs[frozen].grad is None  # type: ignore[union-attr]
    all_learned = problem(5, 7, bias=True)
    softmax_loss(*all_learned).backward()  # type: ignore[arg-type]
    for place in {0, 1, 3} - {frozen}:
        assert torch.equal(inputs[place].grad, all_learned[place].grad)  # type: ignore[union-attr, arg-type]


def test_backward_can_be_called_again() -> None:
    states, vectors, targets, _ = problem(5, 7)
    loss = softmax_loss(states, vectors, targets) / 5
    loss.backward(retain_graph=True)
    once = vectors.grad.clone()
    loss.backward()
    torch.testing.assert_close(vectors.grad, 2 * once)


def test_bfloat16_is_summed_in_float32() -> None:
    states, vectors, targets, bias = problem(200, 300, 16, bias=True, dtype=torch.bfloat16)
    loss = softmax_loss(states, vectors, targets, bias)
    assert bias is not None
    exact = softmax_loss_reference(states.double(), vectors.double(), targets, bias.double())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)
    for ours, theirs in zip(
        gradients(loss, states, vectors, bias), gradients(exact, states, vectors, bias), strict=True
    ):
        assert ours.dtype == torch.bfloat16
        # Rounded once, at the end: half a unit of bfloat16's 8 bits (the reference's gradient is rounded too).
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=2**-7, atol=1e-5)


def test_autocast_changes_nothing() -> None:
    states, vectors, targets, bias = problem(40, 50, 16, bias=True, dtype=torch.float32)
    expected = softmax_loss(states, vectors, targets, bias)
    with torch.autocast("cpu", torch.bfloat16):
        loss = softmax_loss(states, vectors, targets, bias)
    assert loss == expected
    for ours, theirs in zip(
        gradients(loss, states, vectors, bias), gradients(expected, states, vectors, bias), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_half_precision_states_and_a_float32_table_go_together() -> None:
    states, vectors, targets, _ = problem(40, 50, 16, dtype=torch.float32)
    loss = softmax_loss(states.bfloat16(), vectors, targets)
    exact = softmax_loss_reference(states.bfloat16().float(), vectors, targets)
    torch.testing.assert_close(loss, exact, rtol=1e-5, atol=1e-5)
    grad_states, grad_vectors = gradients(loss, states, vectors)
    exact_states, exact_vectors = gradients(exact, states, vectors)
    torch.testing.assert_close(grad_vectors, exact_vectors, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad_states, exact_states, rtol=2**-7, atol=1e-3)  # rounded on the way to the states


@pytest.mark.parametrize("target", [0, -1, 7])
def test_a_target_that_is_no_item_is_refused(target: int) -> None:
    states, vectors, targets, _ = problem(5, 7)
    targets[2] = target
    with pytest.raises(ValueError, match=r"targets are .* but must be items 1\.\.6"):
        softmax_loss(states, vectors, targets)


def test_an_empty_chunk_is_refused() -> None:
    states, vectors, targets, _ = problem(5, 7)
    with pytest.raises(ValueError, match="at least one target and one item"):
        softmax_loss(states, vectors, targets, items_per_chunk=0)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 10**8), st.booleans())
def test_chunks_are_bounded_whatever_the_catalogue(num_targets: int, num_items: int, on_gpu: bool) -> None:
    chunks = chunk_sizes(num_targets, num_items, on_gpu=on_gpu)
    assert 1 <= chunks.targets <= max(1, num_targets)
    assert 1 <= chunks.items <= num_items
    assert chunks.scores <= (2**28 if on_gpu else 2**25)


MEASURE = """
import resource, torch
from raysrec.losses import softmax_loss
torch.set_num_threads(1)

def learn(states, vectors, targets):
    (softmax_loss(states, vectors, targets) / len(targets)).backward()

def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

# The libraries load what they load once, on small tensors.
learn(torch.randn(9, 64, requires_grad=True), torch.randn(99, 64, requires_grad=True), torch.arange(1, 10))
states = torch.randn({num_targets}, 64, requires_grad=True)
vectors = torch.randn({num_rows}, 64).mul_(0.1).requires_grad_()
targets = torch.randint(1, {num_rows}, ({num_targets},))
# The table and one gradient are what any loss must have; they are in the peak before the step.
vectors.grad = torch.ones_like(vectors)
before = peak_mib()
vectors.grad = None
learn(states, vectors, targets)
print(peak_mib() - before)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_targets_times_items() -> None:
    code = MEASURE.format(num_targets=1024, num_rows=200_001)
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    # All scores would be 781 MiB, twice. Above table and gradient there are at most 128 MiB of scores, and for a
    # moment a second gradient of 49 MiB, the scaled one.
    assert float(answer.stdout) < 200
