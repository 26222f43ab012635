"""Every model is validated and ranked in this process, with every supervision's data, without Ray."""

import pytest
import torch

from raysrec.config import RunConfig
from raysrec.data.loader import epoch_steps, facts_of
from raysrec.data.reading import read_directly
from raysrec.evaluate import rank_tables, validation_sums
from raysrec.models import MODELS, build_model
from raysrec.objective import build_objective
from raysrec.prepare import prepare


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
