from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from raysrec.config import DataConfig
from raysrec.config.files import ConfigError
from raysrec.config.loading import load, validate
from raysrec.config.run import RunConfig
from raysrec.data.sources.download import _target
from raysrec.data.sources.files import plain_name
from raysrec.data.sources.formats import belongs
from raysrec.models import MODELS
from raysrec.place import Place
from raysrec.run_directory import RunDirectory

CONFIGS = Path(__file__).parent.parent / "configs"
DATA_SETS = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
OVERLAYS = sorted(path.stem for path in (CONFIGS / "models").glob("*.yaml"))
PAPERS = sorted(path.stem for path in (CONFIGS / "paper").glob("*.yaml"))
ABLATIONS = sorted((path.parent.name, path.stem) for path in (CONFIGS / "paper").glob("*/*.yaml"))


def shipped(*names, overrides=()):
    return load([CONFIGS / f"{name}.yaml" for name in names], overrides)


configs = st.builds(
    lambda **chosen: validate(
        {
            "model": {"name": chosen["model"], "dropout": chosen["dropout"]},
            "data": {"user_interactions": chosen["interval"], "name": chosen["name"]},
            "train": {"learning_rate": chosen["rate"], "supervision": "last_position", "epochs": chosen["epochs"]},
            "evaluate": {"ks": chosen["ks"], "metric": f"mrr@{chosen['ks'][0]}"},
            "engine": {"name": "deepspeed", "extra": chosen["extra"]},
        }
    ),
    model=st.sampled_from(sorted(MODELS)),
    dropout=st.floats(0, 0.99),
    interval=st.builds("[{},{}]".format, st.integers(3, 9), st.integers(9, 99)) | st.just("(4,inf)"),
    name=st.text(st.characters(blacklist_categories=("Cs",)), max_size=8),
    rate=st.floats(1e-12, 1e3),
    epochs=st.integers(1, 10**9),
    ks=st.lists(st.integers(1, 1000), min_size=1, max_size=3, unique=True),
    extra=st.dictionaries(st.text("ab"), st.integers() | st.booleans() | st.none() | st.text("ab:[-1e"), max_size=2),
)


@given(config=configs)
@settings(deadline=None)  # a model is built to be asked what it promises
def test_a_config_survives_json(config):
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


@given(config=configs)
@settings(deadline=None)  # a model is built to be asked what it promises
def test_a_config_survives_yaml(config):
    assert RunConfig.model_validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config


@pytest.mark.parametrize("data_set", DATA_SETS)
def test_what_a_run_keeps_as_config_loads_as_the_same(tmp_path, data_set):
    config, run = shipped(data_set), RunDirectory(tmp_path / "run")
    run.start(config, "f")
    assert run.config() == config
    assert load([run.config_file]) == config


def test_a_config_is_frozen_in_every_section():
    config = validate({"model": {"name": "recgrela"}})
    for section in (config, config.data, config.data.columns, config.model, config.train, config.evaluate):
        name = next(iter(type(section).model_fields))
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, name, getattr(section, name))


def test_a_run_is_named_after_its_data_and_model_unless_told_otherwise():
    config = {"model": {"name": "mamba4rec"}, "data": {"name": "toys"}}
    assert validate(config).run_directory == Place.of("runs/toys-mamba4rec")
    assert validate(config | {"storage": {"root": "/a", "name": "b"}}).run_directory == Place.of("/a/b")


def test_only_the_causal_form_may_learn_at_every_position():
    validate({"model": {"name": "recgrela", "form": "causal"}})
    for form in ("bidirectional", "unmasked"):
        validate({"model": {"name": "recgrela", "form": form}, "train": {"supervision": "last_position"}})
        with pytest.raises(ConfigError, match="every_position needs a causal model"):
            validate({"model": {"name": "recgrela", "form": form}})


@pytest.mark.parametrize(
    ("interval", "good"), [("[3,inf)", True), ("(2,9]", True), ("[2,inf)", False), ("[0,9]", False)]
)
def test_users_keep_enough_interactions_to_hold_two_out(interval, good):
    if good:
        assert DataConfig(user_interactions=interval).user_interactions.low == 3
    else:
        with pytest.raises(ValidationError, match="keeps users with fewer than 3 interactions"):
            DataConfig(user_interactions=interval)


TEMPORAL = {"name": "temporal"}


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ({"test_share": 0.2}, "data.split.test_share is for data.split.name=temporal"),
        ({"target": "first"}, "data.split.target is for data.split.name=temporal"),
        ("temporal", "data.split='temporal': data.split is a section; set keys in it, such as data.split."),
        ({"name": "random"}, "data.split.name='random': input should be 'leave_one_out' or 'temporal'"),
        (TEMPORAL | {"test_share": 1.0}, "data.split.test_share=1.0: input should be less than 1"),
        (TEMPORAL | {"validation_share": 0.5, "test_share": 0.5}, "leave nothing to learn from; make their sum"),
        (TEMPORAL | {"test_from": "2005-09-06"}, "data.split.test_from=2005-09-06 without data.split.validate_from"),
        (TEMPORAL | {"validate_from": 5, "test_from": 5}, "data.split.validate_from=5 is not before data.split"),
        (TEMPORAL | {"validate_from": "2006-01-01", "test_from": "2005-12-31"}, "swap them or move one"),
        (TEMPORAL | {"validate_from": 1, "test_from": 2, "test_share": 0.3}, "data.split.test_share=0.3 is not used"),
        (TEMPORAL | {"validate_from": "soon"}, "data.split.validate_from: 'soon' is no moment; write a date such as"),
    ],
)  # fmt: skip
def test_a_wrong_split_is_refused_in_words(split, expected):
    with pytest.raises(ConfigError) as error:
        validate({"model": {"name": "recgrela"}, "data": {"split": split}})
    assert expected in str(error.value)


def test_moments_are_written_as_yaml_and_as_overrides_write_them(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "model: {name: recgrela}\ndata: {split: {name: temporal, test_from: 2005-09-06}}\n"
    )
    config = load(
        [tmp_path / "a.yaml"], ["data.split.validate_from=2005-09-01 06:00:00", "data.user_interactions=[1,9]"]
    )
    assert (config.data.split.validate_from, config.data.split.test_from) == ("2005-09-01 06:00:00", "2005-09-06")
    assert type(config).model_validate_json(config.model_dump_json()) == config


def test_as_many_workers_as_streams_are_allowed():
    model = {"model": {"name": "recgrela"}}
    assert validate(model | {"scale": {"workers": 4}, "data": {"num_streams": 4}}).scale.workers == 4


def test_every_model_has_an_overlay_of_its_name():
    assert sorted(MODELS) == OVERLAYS
    assert all(shipped(f"models/{name}").model.name == name for name in OVERLAYS)


@pytest.mark.parametrize("data_set", DATA_SETS)
def test_a_data_set_loads_alone_and_under_every_model(data_set):
    alone = shipped(data_set)
    for name in OVERLAYS:
        config = shipped(data_set, f"models/{name}")
        assert config.model.name == name
        assert (config.data, config.scale, config.evaluate) == (alone.data, alone.scale, alone.evaluate)
        # A model may want another supervision (and nothing to learn needs one epoch): no other way of learning.
        own = {key: getattr(config.train, key) for key in ("supervision", "prefixes_per_user", "epochs")}
        assert config.train == alone.train.model_copy(update=own)


@pytest.mark.parametrize("data_set", DATA_SETS)
def test_only_embedded_data_needs_no_file(data_set):
    assert (shipped(data_set).data.source == "synthetic") == (data_set in ("quickstart", "lifelong"))


@pytest.mark.parametrize("data_set", DATA_SETS)
def test_what_a_data_set_is_fetched_from_fits_its_source(data_set):
    data = shipped(data_set).data
    if data.url:
        folder, pattern = _target(data)
        assert folder.parts[0] == "data"
        assert belongs(data.format, plain_name(pattern))
    assert not data.checksum or data.url


def test_data_sets_go_to_different_runs():
    assert len({shipped(name).run_directory for name in DATA_SETS}) == len(DATA_SETS)


@pytest.mark.parametrize(
    ("data_set", "users", "items", "max_length"),
    [
        ("ml-1m", "[5,inf)", "[5,inf)", 200),
        ("ml-20m", "[5,inf)", "[5,inf)", 200),
        ("ml-32m", "[5,inf)", "[5,inf)", 200),
        ("amazon-beauty", "[5,inf)", "[5,inf)", 50),
        ("amazon-video-games", "[5,inf)", "[5,inf)", 50),
        ("netflix", "[50,inf)", "[50,15000]", 200),
        ("lfm-1b", "[50,500]", "[1,inf)", 200),
    ],
)
def test_data_sets_are_filtered_and_cut_as_the_papers_say(data_set, users, items, max_length):
    config = shipped(data_set)
    assert (config.data.user_interactions, config.data.item_interactions) == (users, items)
    assert config.model.max_length == max_length


@pytest.mark.parametrize("data_set", [name for name in DATA_SETS if name not in ("quickstart", "lifelong")])
@pytest.mark.parametrize("paper", ["paper/mamba4rec", "paper/recgrela"])
def test_papers_learn_one_prefix_at_a_time_with_plain_adam(data_set, paper):
    config = shipped(data_set, paper)
    train = config.train
    assert (train.supervision, train.batch_targets, train.epochs) == ("last_position", 2048, 300)
    assert (train.learning_rate, train.betas, train.weight_decay) == (1e-3, (0.9, 0.999), 0.0)
    assert train.optimizer == "adam"
    assert (train.clip_norm, train.schedule, train.warmup_steps) == (0.0, "constant", 0)
    assert (train.validate_every, train.patience) == (1, 11)
    assert (config.loss.name, config.evaluate.metric, config.evaluate.exclude_seen) == ("softmax", "ndcg@10", False)
    assert config.loss.padding_class  # RecBole's models have it


def test_mamba4rec_is_as_its_paper_says():
    model = shipped("ml-1m", "paper/mamba4rec").model
    assert (model.name, model.dim, model.num_layers, model.max_length) == ("mamba4rec", 64, 1, 200)
    assert (model.d_state, model.d_conv, model.expand, model.mamba_init) == (32, 4, 2, "init02")
    assert model.dropout == 0.2
    amazon = shipped("amazon-beauty", "paper/mamba4rec", "paper/mamba4rec-amazon").model
    assert amazon == model.model_copy(update={"dropout": 0.4, "max_length": 50})


def test_every_model_has_its_papers_dropout_and_a_data_set_may_ask_for_another():
    dropouts = {
        **dict.fromkeys(["sasrec", "bert4rec", "lrurec", "mamba4rec", "recmamba", "linrec"], 0.2),
        **dict.fromkeys(["echomamba4rec", "eulerformer", "recblr", "sigma"], 0.2),
    }
    dropouts |= {"recgrela": 0.1, "caser": 0.4, "gru4rec": 0.3, "narm": 0.25}
    assert {name: shipped("ml-20m", f"models/{name}").model.dropout for name in dropouts} == dropouts
    assert {name: MODELS[name].Config(name=name).dropout for name in dropouts} == dropouts
    assert shipped("amazon-beauty", "models/mamba4rec").model.dropout == 0.4
    assert shipped("ml-1m", "models/mamba4rec").model.dropout == 0.1


def test_recgrela_is_as_its_paper_says():
    config = shipped("ml-1m", "paper/recgrela", "paper/recgrela-ml-1m")
    model = config.model
    assert (model.name, model.form, model.dim, model.max_length) == ("recgrela", "unmasked", 64, 200)
    assert (model.num_blocks, model.num_heads, model.mlp_dim, model.conv_kernel) == (4, 4, 256, 4)
    assert (model.dropout, model.drop_path, model.residual) == (0.1, 0.1, "auto")
    assert config.train.patience == 21
    assert shipped("amazon-beauty", "paper/recgrela").train.patience == 11


def test_every_paper_overlay_is_one_of_those_above():
    assert PAPERS == ["mamba4rec", "mamba4rec-amazon", "recgrela", "recgrela-ml-1m"]


def test_a_paper_overlay_leaves_the_data_as_it_is():
    for data_set in ("ml-1m", "amazon-beauty"):
        assert all(
            shipped(data_set, f"paper/{name}").data == shipped(data_set).data for name in ("mamba4rec", "recgrela")
        )


def test_every_table_and_figure_of_the_papers_has_its_ablations():
    tables = {folder: [name for other, name in ABLATIONS if other == folder] for folder, _ in ABLATIONS}
    assert {folder: len(names) for folder, names in tables.items()} == {
        "mamba4rec-table4": 6,
        "recgrela-table3": 6,
        "recgrela-ablation": 6,
        "recgrela-positions": 4,
        "recgrela-activation": 4,
        "recgrela-gate-activation": 3,
        "recgrela-mlp-activation": 3,
        "recgrela-length": 5,
        "recgrela-heads": 5,
        "recgrela-dropout": 5,
        "recgrela-drop-path": 5,
    }


@pytest.mark.parametrize(("folder", "name"), ABLATIONS)
def test_an_ablation_changes_the_model_and_nothing_else(folder, name):
    paper = f"paper/{folder.split('-')[0]}"
    whole, changed = shipped("ml-1m", paper), shipped("ml-1m", paper, f"paper/{folder}/{name}")
    assert changed.model_copy(update={"model": whole.model}) == whole
    assert changed.model.name == whole.model.name


@pytest.mark.parametrize("folder", sorted({folder for folder, _ in ABLATIONS}))
def test_the_ablations_of_a_table_are_different_models_and_one_of_them_is_the_papers(folder):
    paper = f"paper/{folder.split('-')[0]}"
    models = [shipped("ml-1m", paper, f"paper/{folder}/{name}").model for other, name in ABLATIONS if other == folder]
    assert all(one != other for index, one in enumerate(models) for other in models[:index])
    assert shipped("ml-1m", paper).model in models


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "engine.extra.wall_clock_breakdown=true",
            "engine.extra is DeepSpeed's, and engine.name=torch would ignore it",
        ),
        ("train.supervision=last_position train.windows=overlap", "train.windows=overlap is how rows are cut"),
        ("train.windows=prefixes", "train.windows=prefixes would learn a target once for each prefix that holds it"),
        (
            "engine.name=deepspeed engine.extra.zero_optimization.stage=2",
            "engine.extra.zero_optimization.stage: the stage is set by engine.zero_stage",
        ),
        (
            "engine.name=deepspeed engine.extra.zero_optimization=3",
            "engine.extra.zero_optimization=3: is a section",
        ),
        (
            "engine.name=deepspeed engine.extra.gradient_accumulation_steps=4",
            "engine.extra.gradient_accumulation_steps: that is decided by train.micro_batch_tokens; set it there",
        ),
        ("engine.zero_stage=3", "engine.zero_stage=3 is not used with engine.name=torch; drop it"),
        (
            "scale.stalled_after_s=.inf",
            "scale.stalled_after_s=inf",
        ),
        (
            "engine.name=deepspeed engine.extra.fp16.enabled=true",
            "engine.extra.fp16 keeps, with engine.zero_stage=1, a state that no checkpoint holds",
        ),
        (
            "engine.name=deepspeed engine.zero_stage=0 engine.extra.bf16.enabled=true",
            "engine.extra.bf16 keeps, with engine.zero_stage=0, a state that no checkpoint holds",
        ),
    ],
)
def test_what_would_be_ignored_is_refused(override, message):
    with pytest.raises(ConfigError) as refused:
        load([], ["model.name=recgrela", *override.split()])
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_workers_are_a_number_or_bounds():
    model = {"model": {"name": "recgrela"}, "data": {"num_streams": 8}}
    assert validate(model | {"scale": {"workers": 3}}).scale.min_workers == 3
    elastic = validate(model | {"scale": {"workers": {"min": 2, "max": 4}}}).scale
    assert (elastic.min_workers, elastic.max_workers) == (2, 4)
    for value, said in (
        ({"min": 4, "max": 2}, r"scale\.workers\.min=4 exceeds scale\.workers\.max=2; lower it"),
        ({"min": 1}, r"scale\.workers\.max is missing; set it, too"),
        ({"min": 1, "max": 2, "most": 3}, r"scale\.workers\.most is not a known key"),
        ({"min": 0, "max": 2}, r"scale\.workers\.min=0: input should be greater than or equal to 1"),
        ("many", r"scale\.workers='many': input should be a valid integer"),
    ):
        with pytest.raises(ConfigError, match=said):
            validate(model | {"scale": {"workers": value}})
