"""What a sweep's file may say, and which trials follow from it."""

import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from raysrec.config.files import ConfigError
from raysrec.sweep import SweepConfig, SweepError
from raysrec.sweep.loading import load_sweep
from raysrec.sweep.sampler import Sampler

CONFIGS = Path(__file__).parent.parent / "configs"


def sampler(**kinds):
    return Sampler.model_validate(kinds)


def sweep(space, **settings):
    return SweepConfig.model_validate({"space": space, **settings})


@pytest.mark.parametrize(
    ("kinds", "kind", "low", "high"),
    [
        ({"uniform": [0.1, 0.5]}, float, 0.1, 0.5),
        ({"log_uniform": ["1e-4", 1e-2]}, float, 1e-4, 1e-2),  # YAML 1.1 reads 1e-4 as text
        ({"integer": [1, 6]}, int, 1, 6),
        ({"log_integer": [8, 512]}, int, 8, 512),
    ],
)
def test_draws_lie_within_their_range_and_reach_its_ends(kinds, kind, low, high):
    drawn = [sampler(**kinds).draw(np.random.default_rng(seed)) for seed in range(2_000)]
    assert {type(value) for value in drawn} == {kind}
    assert low <= min(drawn)
    assert max(drawn) <= high
    if kinds.keys() & {"integer", "uniform"}:
        assert np.mean(drawn) == pytest.approx((low + high) / 2, rel=0.05)
    else:
        assert np.mean(np.log(drawn)) == pytest.approx((math.log(low) + math.log(high)) / 2, rel=0.05)
    if kind is int:
        assert {low, high} <= set(drawn)


def test_a_choice_is_drawn_alike_and_keeps_its_types():
    values = [1, "a", None, True, [0.9, 0.99]]
    drawn = [repr(sampler(choice=values).draw(np.random.default_rng(seed))) for seed in range(500)]
    assert all(60 < drawn.count(repr(value)) < 140 for value in values)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (0.3, r"0\.3 does not say how values are drawn; write for example"),
        ({"uniform": [0, 1], "grid": [1]}, "does not say how values are drawn"),
        ({"loguniform": [1, 2]}, r"'loguniform' is no way to draw a value; did you mean log_uniform\?"),
        ({"grid": 4}, r"grid: 4 is no list; write for example grid: \[1, 2\]"),
        ({"grid": []}, r"grid: \[\] is empty; name at least one value"),
        ({"choice": [1, 2, 1]}, "choice: names 1 twice"),
        ({"uniform": [0.5, 0.1]}, "is empty; the first number must be below the second"),
        ({"uniform": [0.5]}, "must be two numbers, the lowest and the highest"),
        ({"uniform": [0, float("inf")]}, "must be two numbers"),
        ({"integer": [1, 2.5]}, "must be two whole numbers"),
        ({"log_uniform": [0, 1]}, "has no logarithm at 0; begin above 0"),
    ],
)
def test_what_cannot_be_drawn_from_is_refused(given, says):
    with pytest.raises(ValidationError, match=says):
        Sampler.model_validate(given)


def test_grids_are_crossed_and_the_last_one_varies_fastest():
    grid = sweep({"model.num_blocks": {"grid": [1, 2]}, "model.num_heads": {"grid": [4, 8]}})
    assert grid.num_trials == 4
    points = [tuple(parameters.values()) for parameters in grid.trials()]
    assert points == [(1, 4), (1, 8), (2, 4), (2, 8)]


SPACE = {
    "model.dropout": {"uniform": [0.1, 0.5]},
    "model.num_heads": {"choice": [1, 2, 4]},
    "model.num_blocks": {"grid": [1, 2]},
}


def test_more_samples_begin_with_the_same_trials_and_another_seed_with_others():
    few, many = (list(sweep(SPACE, num_samples=n).trials()) for n in (3, 7))
    assert len(few) == 6
    assert many[:6] == few
    assert list(sweep(SPACE, num_samples=3, seed=1).trials()) != few
    assert [parameters["model.num_blocks"] for parameters in few] == [1, 2] * 3


def test_no_two_trials_are_alike_also_where_there_are_just_enough():
    space = {"model.num_blocks": {"integer": [1, 4]}, "model.num_heads": {"choice": [1, 2]}}
    trials = [tuple(parameters.values()) for parameters in sweep(space, num_samples=8).trials()]
    assert len(set(trials)) == 8


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"space": {}}, "space: is empty; name at least one parameter"),
        ({"space": SPACE}, r"num_samples is missing: how many trials are drawn, for model\.dropout is no grid"),
        ({"space": {"train.epochs": {"grid": [1, 2]}}, "num_samples": 3}, "would be trained 3 times alike"),
        ({"space": {"train.seed": {"choice": [1, 2]}}, "num_samples": 3}, "there are only 2 different trials"),
        (
            {"space": {"data.num_streams": {"grid": [2]}}},
            r"space\.data\.num_streams: cannot be swept, for trials share",
        ),
        ({"space": {"scale.workers": {"grid": [2]}}}, "cannot be swept, for it changes no score"),
        ({"space": SPACE, "num_samples": 1, "search": "optuna"}, r"space\.model\.num_blocks: a grid leaves nothing"),
        ({"space": SPACE, "num_samples": 1, "scheduler": {"min_trials": 5}}, "is for scheduler.name=median"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(settings, says):
    with pytest.raises(ValidationError, match=says):
        SweepConfig.model_validate(settings)


@pytest.fixture
def file(tmp_path):
    """Writes a sweep's file and gives its path."""

    def write(**content):
        path = tmp_path / "search.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


BASE = [CONFIGS / "ml-100k.yaml"]


@pytest.mark.parametrize("data", ["ml-100k", "ml-1m"])
@pytest.mark.parametrize("path", sorted((CONFIGS / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_sweep_loads_over_the_data_sets_it_is_for(path, data):
    loaded = load_sweep(path, [CONFIGS / f"{data}.yaml"])
    assert loaded.directory.path.name == f"{data}-{loaded.config.model.name}-{path.stem}"
    configs = [loaded.config_of("trial", parameters) for parameters in loaded.settings.trials()]
    assert len(configs) == loaded.settings.num_trials > 4
    assert len({config.model_dump_json() for config in configs}) == len(configs)


def test_layers_lie_over_each_other_in_the_order_they_are_told(file):
    path = file(space={"model.num_blocks": {"grid": [1, 2]}}, config={"model": {"dropout": 0.25, "num_heads": 8}})
    loaded = load_sweep(path, BASE, ["model.num_heads=2", "sweep.max_concurrent=3", "storage.name=mine"])
    assert loaded.settings.max_concurrent == 3
    assert loaded.settings.name == "search"
    config = loaded.config_of("trial-001", {"model.num_blocks": 2})
    assert (config.model.dropout, config.model.num_heads, config.model.num_blocks) == (0.25, 2, 2)
    assert str(config.run_directory) == str((loaded.directory.runs / "trial-001").absolute())
    assert loaded.directory.path.uri == "runs/mine"
    assert str(loaded.best_config({"model.num_blocks": 2}).run_directory) == "runs/mine-best"


@pytest.mark.parametrize(
    ("content", "overrides", "says"),
    [
        ({"space": {"model.droput": {"grid": [0.1]}}}, [], r"search.yaml: space.model.droput at 0.1: model.droput is "
         r"not a known key; did you mean model.dropout\?"),
        ({"space": {"model.num_heads": {"grid": [4, 5]}}}, [], r"space.model.num_heads at 5: model.dim=64 does not"),
        ({"space": {"model.dropout": {"uniform": [0.1, 1.5]}}, "num_samples": 1}, [], r"at 1.5: model.dropout=1.5"),
        ({"space": {"model.num_blocks": {"uniform": [1, 6]}}, "num_samples": 2}, [], "valid integer"),
        ({"space": {"model.dim": {"grid": [64, 80]}, "model.num_heads": {"grid": [4, 16]}}}, [],
         r"space at model.dim=80, model.num_heads=16: model.dim=80 does not split"),
        ({"space": {"model.dropout": {"grid": [0.1]}}, "metric": "loss"}, [], "metric=loss is not reported with"),
        ({"space": {"model.dropout": {"grid": [0.1]}}, "metric": "ndgc@10"}, [], r"did you mean ndcg@10\?"),
        ({"space": {"model.dropout": {"grid": [0.1]}}, "metric": "test/hr@10"}, [], "a test score never steers"),
        ({"space": {"model.dropout": {"grid": [0.1]}}}, ["model.dropout=0.2"], "model.dropout is swept by"),
        ({"space": {"model.dropout": {"grid": [0.1]}}, "num_sample": 3}, [], r"did you mean num_samples\?"),
        ({"space": {"model.dropout": {"grid": [0.1]}}, "scheduler": {"nam": "asha"}}, [], r"mean scheduler.name\?"),
        ({"space": {"model.dropout": {"grd": [0.1]}}}, [], r"search.yaml: space.model.dropout: 'grd' is no way"),
        ({"num_samples": 3}, [], "search.yaml: space is missing"),
        ({"space": {"model.dropout": {"grid": [0.1]}}, "scheduler": {"name": "asha", "grace_epochs": 40}}, [],
         "scheduler.grace_epochs=40 leaves nothing to end early in train.epochs=40"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_the_file_the_parameter_and_the_value(file, content, overrides, says):
    with pytest.raises(SweepError, match=says):
        load_sweep(file(**content), BASE, overrides)


def test_both_ends_of_a_range_are_checked_before_anything_starts(file):
    """Only the highest value cannot be, and no trial draws it."""
    path = file(space={"model.dropout": {"uniform": [0.1, 1.0]}}, num_samples=2)
    with pytest.raises(SweepError, match=r"space\.model\.dropout at 1\.0: model\.dropout=1\.0: input should be less"):
        load_sweep(path, BASE)


def test_what_is_no_sweep_is_refused_with_what_one_looks_like(file, tmp_path):
    (tmp_path / "list.yaml").write_text("- model.dropout\n")
    with pytest.raises(ConfigError, match=r"--sweep .*holds a list, expected keys such as space: and num_samples:"):
        load_sweep(tmp_path / "list.yaml", BASE)
    path = file(space={"model.dropout": {"grid": [0.1]}})
    with pytest.raises(ConfigError, match=r"'sweep\.num_samples' is no setting; .* for example sweep\.num_samples=20"):
        load_sweep(path, BASE, ["sweep.num_samples"])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"--sweep .*layers\.yaml: there is no such file"):
        load_sweep(tmp_path / "layers.yaml", BASE)


def test_a_metric_also_chooses_the_weights(file):
    loaded = load_sweep(file(space={"model.dropout": {"grid": [0.1]}}, metric="validation/hr@20"), BASE)
    assert loaded.settings.metric == "hr@20"
    assert loaded.config_of("trial", {"model.dropout": 0.1}).evaluate.metric == "hr@20"
