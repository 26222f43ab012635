"""Every model is validated and ranked in this process, with every supervision's data, without Ray."""

import pyarrow.parquet as pq
import pytest
import torch

from raysrec import evaluate as evaluating
from raysrec.config.run import RunConfig
from raysrec.data.batching.facts import facts_of
from raysrec.data.batching.loader import epoch_steps
from raysrec.data.batching.reading import read_directly
from raysrec.engine import build_engine
from raysrec.evaluate import evaluate
from raysrec.history import History
from raysrec.models import MODELS, build_model
from raysrec.objective import build_objective
from raysrec.prepare import prepare
from raysrec.ranker import rank_tables, validation_sums
from raysrec.run_directory import RunDirectory
from raysrec.training.validation import Validation


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


def without_the_last(tables):
    """What is left when a row group gets lost."""
    return list(tables)[:-1]


@pytest.fixture
def ranked_here(synthetic, tmp_path, monkeypatch):
    """A run, its data and how it is ranked, by who ranks in this process and not in Ray's actors."""
    monkeypatch.setattr("raysrec.data.preparing.writing.SMALLEST_ROW_GROUP", 16)
    settings = {"model": {"name": "gru4rec", "dim": 16, "max_length": 8}, "evaluate": {"exclude_seen": True}}
    config = RunConfig.model_validate({"data": synthetic | {"prepared": str(tmp_path / "prepared")}, **settings})
    data, run = prepare(config.data), RunDirectory(tmp_path / "run")
    assert len(data.row_groups()) > 2
    run.start(config, data.manifest.fingerprint)
    run.save_model(config, data.manifest.num_items, build_model(config.model, data.manifest.num_items).state_dict())

    def done_here(make, work, scale):
        return map(make(torch.device("cpu")), work)

    monkeypatch.setattr(evaluating, "done_by_actors", done_here)
    return run, data, config


def test_what_is_told_of_a_ranking_is_what_every_users_scores_say(ranked_here):
    run, data, config = ranked_here
    scores, table = evaluate(run, data, config), pq.read_table(run.ranks_file).to_pylist()
    model, vectors = run.load_model(), run.load_model().item_vectors().double()
    histories = {row["user"]: row["items"] for rows in read_directly(data.row_groups()) for row in rows.to_pylist()}
    for split, left in (("validation", 2), ("test", 1)):
        recommended = set()
        for items in histories.values():
            past = torch.tensor(items[:-left])[-8:]
            state = model.read(History(past[None], torch.zeros_like(past)[None], torch.tensor([len(past)])))
            best = (vectors @ state[0].double()).argsort(descending=True).tolist()
            recommended |= set([item for item in best if item and item not in items[:-left]][:10])
        told = {row["user"]: row["history_length"] for row in table if row["split"] == split}
        assert told == {user: len(items) - left for user, items in histories.items()}
        assert getattr(scores, split).model["coverage@10"].mean == len(recommended) / data.manifest.num_items


def test_a_ranking_that_lost_users_or_has_them_twice_is_thrown_away(ranked_here, monkeypatch):
    run, data, config = ranked_here
    units = evaluating.units_of(data, config)
    for wrong, found in ((units[:-1], r"ranked \d+ users, \d+ of them distinct"), ([*units, units[0]], "not exact")):
        monkeypatch.setattr(evaluating, "units_of", lambda data, config, wrong=wrong: wrong)
        with pytest.raises(RuntimeError, match=found):
            evaluate(run, data, config)
        assert not run.ranks_file.exists()


def test_a_validation_that_lost_users_is_an_error(ranked_here):
    _, data, config = ranked_here
    model = build_model(config.model, data.manifest.num_items).eval()
    alone = {"worker": 0, "num_workers": 1, "beside": None}
    assert Validation(model, data, config, read_directly, **alone).scores()
    losing = Validation(model, data, config, lambda groups: without_the_last(read_directly(groups)), **alone)
    with pytest.raises(RuntimeError, match=r"validation ranked \d+ users, but the data has 60 to rank"):
        losing.scores()
