"""The promises of a recurrent form: it is what `encode` is, in constant memory and at a constant cost."""

import copy
from collections import Counter
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from model_variants import NUM_ITEMS, TINY, history_of, model_of, real, variants
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from raysrec.history import History
from raysrec.models import MODELS, ModelConfig, SequenceModel, build_model

RECURRENT = [variant for variant in variants() if build_model(variant.values[0], 1, 1).recurrent]


@pytest.fixture(params=RECURRENT)
def model(request: pytest.FixtureRequest) -> SequenceModel:
    return model_of(request.param)


def stepped(model: SequenceModel, items: Tensor) -> Tensor:
    """The states of histories [B L] that are taken item by item."""
    state, states = model.initial_state(len(items)), []
    for column in items.unbind(1):
        output, state = model.step(column, state)
        states.append(output)
    return torch.stack(states, dim=1)


def test_stepping_is_encoding(model: SequenceModel) -> None:
    assert model.causal
    history = history_of([3, 1, 4, 1, 5, 9, 2], [2, 7, 1, 8, 2, 8, 1])
    one, whole = stepped(model, history.items), model.encode(history)
    # RecMamba's states are hundreds and more here: a channel near zero among such has no digits of its own in float32.
    assert ((one - whole).norm(dim=-1) <= 1e-5 * whole.norm(dim=-1)).all()
    model.double()
    torch.testing.assert_close(stepped(model, history.items), model.encode(history))


def test_memory_of_a_history_does_not_grow_with_it(model: SequenceModel) -> None:
    state = model.initial_state(3)
    shapes = [leaf.shape for leaf in tree_leaves(state)]
    for _ in range(3):
        _, state = model.step(torch.tensor([1, 2, 3]), state)
    assert [leaf.shape for leaf in tree_leaves(state)] == shapes
    assert all(shape[0] == 3 for shape in shapes)


class Work(TorchDispatchMode):
    """Counts the operators that torch runs, and the values of the tensors that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()
        self.values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operators[str(func)] += 1
        self.values += sum(leaf.numel() for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor))
        return result


LONG = 301
CASES = [
    *[{"name": name} for name in MODELS if build_model(MODELS[name].Config(name=name), 1, 1).recurrent],
    {"name": "linrec", "form": "causal"},
    {"name": "gru4rec", "num_layers": 2},
    {"name": "mamba4rec", "num_layers": 2, "mamba_init": "library", "positions": "learned"},
    {"name": "recblr", "pad_to_power_of_two": True},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@torch.no_grad()
def test_through_a_long_history_stepping_is_encoding_and_no_step_costs_more_than_another(case: dict[str, Any]) -> None:
    config: ModelConfig = MODELS[case["name"]].Config.model_validate({**TINY, "max_length": LONG, **case})
    model = build_model(config, NUM_ITEMS).double().eval()
    items = torch.randint(1, NUM_ITEMS + 1, (2, LONG))
    history = History(items, torch.zeros_like(items), torch.full((2,), LONG))
    state, states, early, late = model.initial_state(2), [], Work(), Work()
    for position in range(LONG):
        with {3: early, 300: late}.get(position, nullcontext()):
            output, state = model.step(items[:, position], state)
        states.append(output)
    torch.testing.assert_close(torch.stack(states, dim=1), model.encode(history))
    assert early.operators == late.operators
    assert early.values == late.values > 0


LIFELONG = ("mamba4rec", "recmamba", "recgrela", "recblr", "lrurec")


@pytest.mark.parametrize("name", LIFELONG)
def test_five_thousand_items_are_encoded_and_learned_from_as_precisely_as_a_few(name: str) -> None:
    """Sums over so many steps lose digits in float32 where a scan forms them from powers of decays."""
    config: ModelConfig = MODELS[name].Config.model_validate({"name": name, **TINY, "max_length": 5_000, "dropout": 0})
    model = build_model(config, NUM_ITEMS).eval()
    items = torch.randint(1, NUM_ITEMS + 1, (2, 5_000))
    history = History(items, torch.zeros_like(items), torch.tensor([5_000, 4_321]))
    directions = real(torch.randn(2, 5_000, config.dim, dtype=torch.float64), history)

    def learned(model: SequenceModel) -> tuple[list[Tensor], dict[str, Tensor]]:
        model.zero_grad()
        states = real(model.encode(history), history)
        sums = [(state * way.to(state.dtype)).sum() for state, way in zip(states, directions, strict=True)]
        torch.stack(sums).sum().backward()
        return states, {key: weight.grad for key, weight in model.named_parameters() if weight.grad is not None}

    single, gradients = learned(model)
    double, expected = learned(copy.deepcopy(model).double())
    for got, exact in zip(single, double, strict=True):
        torch.testing.assert_close(got.double(), exact, atol=1e-4, rtol=1e-3)
    assert gradients.keys() == expected.keys()
    for key, exact in expected.items():
        assert (gradients[key].double() - exact).norm() <= 1e-3 * exact.norm(), key
