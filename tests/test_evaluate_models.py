"""Every model is validated and ranked in this process, with every supervision's data, without Ray."""

import pytest
import torch

from raysrec.config.run import RunConfig
from raysrec.data.batching.facts import facts_of
from raysrec.data.batching.loader import epoch_steps
from raysrec.data.batching.reading import read_directly
from raysrec.engine import build_engine
from raysrec.models import MODELS, build_model
from raysrec.objective import build_objective
from raysrec.prepare import prepare
from raysrec.ranker import rank_tables, validation_sums


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("prepared"))
    return {"prepared": folder, "synthetic": {"num_users": 60, "num_items": 30, "mean_length": 12}, "num_streams": 2}


@pytest.mark.parametrize("name", list(MODELS))
def test_a_model_is_trained_validated_and_ranked(synthetic, name):
    probe = build_model(MODELS[name].Config(name=name), num_items=1, num_users=1)
    supervision = "every_position" if probe.causal else "cloze" if probe.fills_gaps else "last_position"
    config = RunConfig.model_validate(
        {
            "data": synthetic,
            "model": {"name": name, "dim": 16, "max_length": 8},
            "train": {"supervision": supervision, "batch_targets": 64},
        }
    )
    data = prepare(config.data)
    objective, _ = build_objective(config, facts_of(data, config), torch.device("cpu"))
    model = objective.model
    (step, *_) = epoch_steps(data, config, read_directly, epoch=0, worker=0, num_workers=1)
    total = sum(objective(batch) for batch in step)
    assert torch.isfinite(total)
    model.eval()
    sums = validation_sums(model, data, config, read_directly(data.row_groups()))
    assert sums.count == data.manifest.num_users
    ranked = list(rank_tables(model, data, config, read_directly(data.row_groups()), "test"))
    users = sorted(user for part in ranked for user in part.users.tolist())
    assert users == list(range(1, data.manifest.num_users + 1))
    if name == "popularity":
        assert all((part.ranks == part.popularity_ranks).all() for part in ranked)


@pytest.mark.parametrize("name", ["bprmf", "caser"])
def test_users_nobody_learns_from_have_zeros_which_training_leaves_alone(synthetic, name):
    settings = {
        "data": {**synthetic, "split": {"name": "temporal", "validation_share": 0.2, "test_share": 0.3}},
        "model": {"name": name, "dim": 16, "max_length": 8},
        "train": {"supervision": "last_position", "batch_targets": 64, "weight_decay": 0.1},
    }
    config = RunConfig.model_validate(settings)
    data = prepare(config.data)
    groups = data.row_groups()
    taught = [0] * (data.manifest.num_users + 1)
    for table in read_directly(groups):
        for row in table.to_pylist():
            taught[row["user"]] = sum(time < data.manifest.split.validate_from for time in row["times"]) - 1
    learned = torch.tensor(taught) > 0
    assert 5 < learned.sum() < len(learned) - 5
    objective, _ = build_objective(config, facts_of(data, config), torch.device("cpu"))
    engine = build_engine(objective, config, torch.device("cpu"))
    for step in epoch_steps(data, config, read_directly, epoch=0, worker=0, num_workers=1):
        engine.step(step, learning_rate=0.01)
    model = objective.model.eval()
    assert torch.equal(model.users.table.weight.any(1), learned)
    found = [
        part
        for split in ("validation", "test")
        for part in rank_tables(model, data, config, read_directly(groups), split)
    ]
    ranks = torch.cat([torch.from_numpy(part.ranks) for part in found])
    are_last = ranks == data.manifest.num_items
    cold = ~learned[torch.cat([torch.from_numpy(part.users) for part in found])]
    assert cold.any()
    assert are_last[cold].all() == (name == "bprmf")
    assert are_last[~cold].float().mean() < 0.3
