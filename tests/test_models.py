"""The promises that every model keeps, over `MODELS` and over the alternatives that each model's `Config` offers.

Those of the recurrent ones stand in test_recurrent_models.py.
"""

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_variants import NUM_ITEMS, NUM_USERS, ROWS, assert_same_states, history_of, model_of, real, variants
from safetensors.torch import load_file, save_file
from torch import Tensor

import raysrec
from raysrec.config import LossConfig
from raysrec.config.loading import load
from raysrec.history import HIDDEN, Batch, History, last_states
from raysrec.models import MODELS, ModelConfig, SequenceModel, build_model
from raysrec.models.recmamba import RecMamba
from raysrec.objective import Objective

SHIPPED = {"linrec": {"dim": 128}, "caser": {"max_length": 10}}
"""What `configs/models/` has other than a model's defaults: LinRec's width is its authors', Caser's window is short."""


@pytest.fixture(params=variants())
def config(request: pytest.FixtureRequest) -> ModelConfig:
    chosen: ModelConfig = request.param
    return chosen


@pytest.fixture
def model(config: ModelConfig) -> SequenceModel:
    return model_of(config)


def padding_leaks(model: SequenceModel) -> bool:
    """A form that repeats an authors' code in which padding reaches real states says so itself."""
    return bool(model.padding_leaks)


def learns(model: SequenceModel) -> bool:
    """Has the model anything to learn with? A baseline may have no parameters."""
    return any(True for _ in model.parameters())


def next_item_loss(model: SequenceModel, history: History) -> Tensor:
    """Cross-entropy of the last item of each row given those before it, and the penalty; rows have at least two."""
    past = [row[: int(n) - 1].tolist() for row, n in zip(history.items, history.lengths, strict=True)]
    before = history_of(*past)
    states = model.read(before)
    targets = torch.stack([row[n - 1] for row, n in zip(history.items, history.lengths, strict=True)])
    scores = states @ model.item_vectors().T
    bias = model.item_bias()
    scores = scores if bias is None else scores + bias
    loss = torch.nn.functional.cross_entropy(scores[:, 1:], targets - 1)
    penalty = model.penalty()
    return loss if penalty is None else loss + penalty.mean()


@pytest.mark.parametrize("name", MODELS)
def test_the_shipped_overlay_is_the_default_and_learns_as_the_model_can(name: str) -> None:
    run = load([Path(__file__).parent.parent / "configs" / "models" / f"{name}.yaml"])
    assert run.model == MODELS[name].Config.model_validate({"name": name} | SHIPPED.get(name, {}))
    model = model_of(run.model)
    cheapest = "every_position" if model.causal else "cloze" if model.fills_gaps else "last_position"
    assert run.train.supervision == cheapest


def test_states_and_vectors_have_the_declared_shapes(model: SequenceModel, config: ModelConfig) -> None:
    history = history_of(*ROWS)
    assert model.encode(history).shape == (*history.items.shape, config.dim)
    assert model.item_vectors().shape == (NUM_ITEMS + 1, config.dim)
    bias = model.item_bias()
    assert bias is None or bias.shape == (NUM_ITEMS + 1,)


def test_more_padding_changes_no_real_state(model: SequenceModel) -> None:
    short, long = history_of(*ROWS), history_of(*ROWS, length=11)
    assert_same_states(real(model.encode(short), short), real(model.encode(long), long))


def test_what_stands_in_padding_changes_no_real_state_unless_the_model_says_so(model: SequenceModel) -> None:
    history = history_of(*ROWS)
    before = real(model.encode(history), history)
    with torch.no_grad():
        model.item_vectors()[0] = 7 * torch.randn_like(model.item_vectors()[0])
    after = real(model.encode(history), history)
    if padding_leaks(model):
        with pytest.raises(AssertionError):
            assert_same_states(before, after)
        return
    assert_same_states(before, after)


def test_other_rows_change_nothing(model: SequenceModel) -> None:
    together = history_of(*ROWS)
    assert together.users is not None
    alone = [
        replace(history_of(row, length=together.items.shape[1]), users=together.users[index : index + 1])
        for index, row in enumerate(ROWS)
    ]
    separately = [real(model.encode(history), history)[0] for history in alone]
    assert_same_states(real(model.encode(together), together), separately)


def test_causal_is_honest_both_ways(model: SequenceModel) -> None:
    others = [3, 1, 4, 1, 8, 7, 6], [3, 1, 4, 1], [3, 1, 4, 1, 5, 9, 2, 6]
    kept = model.encode(history_of([3, 1, 4, 1, 5, 9, 2]))[:, :4]
    by_items, *by_length = [model.encode(history_of(other))[:, :4] for other in others]
    if model.causal:
        assert_same_states([kept] * 3, [by_items, *by_length])
        return
    # RecMamba padded on the left knows how many items follow, and not which.
    changed = by_length if isinstance(model, RecMamba) else [by_items]
    with pytest.raises(AssertionError):
        assert_same_states([kept] * len(changed), changed)


def test_what_is_read_is_the_state_after_the_last_item(model: SequenceModel) -> None:
    if model.fills_gaps:
        pytest.skip("reads the state at a hidden item that follows")
    for history in (history_of(*ROWS), history_of(*ROWS, length=11)):
        assert_same_states([model.read(history)], [last_states(model.encode(history), history)])


def test_the_past_matters(model: SequenceModel) -> None:
    one, other = history_of([3, 1, 4]), history_of([1, 3, 4])
    changed = not torch.allclose(model.read(one), model.read(other), atol=1e-5)
    assert changed == model.reads_items


def test_hidden_items_are_guessed_from_both_sides(model: SequenceModel) -> None:
    if not model.fills_gaps:
        pytest.skip("does not fill gaps")
    assert not model.causal
    one, other = history_of([3, HIDDEN, 4, 1]), history_of([3, HIDDEN, 5, 1])
    assert not torch.allclose(model.encode(one)[0, 1], model.encode(other)[0, 1], atol=1e-5)


def test_user_vectors_want_users_they_have_met(model: SequenceModel) -> None:
    history = history_of(*ROWS)
    if not model.has_user_vectors:
        assert torch.equal(model.read(history), model.read(replace(history, users=None)))
        return
    with pytest.raises(ValueError, match="name no users"):
        model.read(replace(history, users=None))
    for stranger in (0, NUM_USERS + 1):
        with pytest.raises(ValueError, match=f"user {stranger} is unknown"):
            model.read(replace(history, users=torch.tensor([1, 2, stranger, 3])))


def test_every_parameter_gets_a_gradient(model: SequenceModel) -> None:
    history = history_of(*ROWS[:2], *ROWS[3:])
    loss = next_item_loss(model.train(), history)
    if not learns(model):
        assert not loss.requires_grad
        return
    if not model.causal:
        # What looks back from the end has seen a single item where the last state is read.
        loss = loss + sum(states.pow(3).sum() for states in real(model.encode(history), history))
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_gradients_are_finite_for_a_history_of_one_item(model: SequenceModel) -> None:
    history = history_of([5], [7], length=3)
    size = model.train().read(history).square().sum()
    if not learns(model):
        assert not size.requires_grad
        return
    size.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_a_row_of_padding_only_is_no_one_and_harms_no_one(model: SequenceModel) -> None:
    history, with_empty = history_of(*ROWS), history_of(*ROWS, [])
    states = real(model.encode(with_empty), with_empty)
    assert_same_states(states[:-1], real(model.encode(history), history))
    assert_same_states([model.read(with_empty)[:-1]], [model.read(history)])
    size = model.train().read(with_empty).square().sum()
    penalty = model.penalty()
    size = size if penalty is None else size + penalty.sum()
    assert size.isfinite()
    if learns(model):
        size.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_learning_at_every_position_is_learning_from_every_prefix(model: SequenceModel) -> None:
    if not model.causal:
        pytest.skip("a state here is no function of the prefix alone")
    model = model.double()
    rows = [[3, 1, 4, 1, 5, 9, 2], [6, 5], [9, 7, 9, 3]]
    whole = history_of(*[row[:-1] for row in rows])
    targets = torch.zeros_like(whole.items)
    for each, row in zip(targets, rows, strict=True):
        each[: len(row) - 1] = torch.tensor(row[1:])
    ends = [(index, end) for index, row in enumerate(rows) for end in range(1, len(row))]
    prefixes = history_of(*[rows[index][:end] for index, end in ends])
    prefixes = replace(prefixes, users=1 + torch.tensor([index for index, _ in ends]))
    next_items = torch.zeros_like(prefixes.items)
    for each, (index, end) in zip(next_items, ends, strict=True):
        each[end - 1] = rows[index][end]
    softmax = LossConfig(name="softmax")
    at_once = Objective(model, softmax)(Batch(whole, targets))
    one_by_one = Objective(model, softmax, reads_last=True)(Batch(prefixes, next_items))
    torch.testing.assert_close(at_once, one_by_one)
    if learns(model):
        parameters = list(model.parameters())
        gradients = [torch.autograd.grad(loss, parameters, materialize_grads=True) for loss in (at_once, one_by_one)]
        torch.testing.assert_close(*gradients)


def test_two_steps_with_one_seed_are_the_same_to_the_bit(config: ModelConfig) -> None:
    def trained() -> dict[str, Tensor]:
        torch.manual_seed(3)
        model = build_model(config, NUM_ITEMS, NUM_USERS).train()
        if not learns(model):
            pytest.skip("has no parameters, so there are no steps")
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(2):
            optimizer.zero_grad()
            next_item_loss(model, history_of(ROWS[0], ROWS[3])).backward()
            optimizer.step()
        return model.state_dict()

    one, other = trained(), trained()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_dropout_is_for_training_only(config: ModelConfig) -> None:
    model, history = build_model(config, NUM_ITEMS, NUM_USERS), history_of(*ROWS)
    model.train()
    # What reads no items has nothing to drop.
    assert torch.equal(model.encode(history), model.encode(history)) == (not model.reads_items)
    model.eval()
    assert torch.equal(model.encode(history), model.encode(history))


def test_a_few_histories_can_be_memorised(config: ModelConfig) -> None:
    # Only the second and third items together tell a row's last; the others are the same in all rows.
    rows = [[8, a, b, 1, 2, 10 + 3 * i + j] for i, a in enumerate((3, 4)) for j, b in enumerate((5, 6, 7))]
    certain = {key: 0.0 for key in type(config).model_fields if key.startswith("drop")}
    model = build_model(config.model_copy(update=certain), NUM_ITEMS, NUM_USERS).train()
    if not learns(model):
        pytest.skip("has no parameters to memorise with")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(500):
        optimizer.zero_grad()
        loss = next_item_loss(model, history_of(*rows))
        loss.backward()
        optimizer.step()
        if loss.item() < 0.3:
            return
    pytest.fail(f"after 500 steps the loss is still {loss.item():.2f} nats; choosing among {len(rows)} costs 1.79")


def test_config_to_json_and_back_is_the_same_model(config: ModelConfig) -> None:
    again = MODELS[config.name].Config.model_validate_json(config.model_dump_json())
    assert again == config
    models = []
    for each in (config, again):
        torch.manual_seed(0)
        models.append(build_model(each, NUM_ITEMS, NUM_USERS).eval())
    assert torch.equal(*(model.encode(history_of(*ROWS)) for model in models))


def test_saved_and_loaded_it_gives_the_same_states(model: SequenceModel, config: ModelConfig, tmp_path: Path) -> None:
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    again = build_model(config, NUM_ITEMS, NUM_USERS).eval()
    again.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(model.encode(history_of(*ROWS)), again.encode(history_of(*ROWS)))


@pytest.mark.parametrize("how", ["autocast", "to"])
def test_bfloat16_runs_and_stays_close(model: SequenceModel, how: str) -> None:
    history = history_of(*ROWS)
    truth = torch.cat(real(model.encode(history), history))
    if how == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            states = model.encode(history)
    else:
        states = model.to(torch.bfloat16).encode(history)
    rough = torch.cat(real(states.float(), history))
    # Eight bits of mantissa through several layers: a few percent of the states' size. Of all of them together, for a
    # single one may be all but zero where nothing normalises it.
    assert (rough - truth).norm() <= 0.05 * truth.norm()


def test_without_a_recurrent_form_none_is_begun(model: SequenceModel) -> None:
    if not model.recurrent:
        with pytest.raises(NotImplementedError, match="no recurrent form"):
            model.initial_state(1)
        if type(model).step is SequenceModel.step:
            with pytest.raises(NotImplementedError, match="no recurrent form"):
                model.step(torch.tensor([1]), None)


def test_a_new_model_scores_all_items_about_alike(config: ModelConfig) -> None:
    model, history = build_model(config, NUM_ITEMS, NUM_USERS).eval(), history_of(*ROWS)
    scores = model.read(history) @ model.item_vectors().T
    assert scores.abs().max() < 5


INTERFACE = {"MODELS", "ModelConfig", "SequenceModel", "State", "build_model"}
"""What others may take from the models' package."""


def knowledge_of_models(source: str) -> list[str]:
    """Where a file knows one model from another: by name, class, or attribute."""
    # Popularity is also a way to draw negatives, a row of every table, and the title of a picture.
    models = {name: model for name, model in MODELS.items() if name != "popularity"}
    classes = {kind.__name__ for model in models.values() for kind in (model, model.Config)}
    tree = ast.parse(source)
    texts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module)) if module.startswith("raysrec.models"):
                imported = {alias.name for alias in node.names}
                known = module != "raysrec.models" or not imported <= INTERFACE
            case ast.Import():
                known = any(alias.name.startswith("raysrec.models.") for alias in node.names)
            case ast.Name(id=name) | ast.Attribute(attr=name):
                known = name in classes
            case ast.Constant(value=str(text)):
                known = (text in models or text in classes) and id(node) not in texts
            case ast.Call(func=ast.Name(id="isinstance" | "type" | "hasattr" | "getattr"), args=[subject, *_]):
                known = ast.unparse(subject).lower().endswith("model")
            case _:
                known = False
        if known:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def test_nothing_outside_the_models_knows_a_model_by_name() -> None:
    root = Path(raysrec.__file__).parent
    files = [path for path in root.rglob("*.py") if "models" not in path.relative_to(root).parts]
    assert len(files) > 30
    assert {str(path): found for path in files if (found := knowledge_of_models(path.read_text()))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "from raysrec.models import SASRec",
        "from raysrec.models import caser",
        "from raysrec.models.caser import VerticalFilters",
        "import raysrec.models.caser",
        "if config.model.name == 'sasrec': pass",
        "if type(model).__name__ == 'SASRec': pass",
        "if isinstance(self.model, EulerFormer): pass",
        "if isinstance(config.model, models.RecGRELAConfig): pass",
        "if hasattr(objective.model, 'contrast'): pass",
    ],
)
def test_who_knows_a_model_is_found(line: str) -> None:
    assert knowledge_of_models(f"import os\n{line}\n") != []


def test_there_are_all_the_models_of_the_three_papers() -> None:
    compared = {"bprmf", "caser", "narm", "gru4rec", "sasrec", "bert4rec", "lrurec", "linrec"}
    compared |= {"echomamba4rec", "eulerformer", "recblr", "sigma"}
    assert MODELS.keys() >= compared | {"mamba4rec", "recmamba", "recgrela", "popularity"}
