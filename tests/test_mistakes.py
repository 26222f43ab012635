import pytest
import yaml

from raysrec.config.files import ConfigError
from raysrec.config.loading import validate
from raysrec.config.settings import nest, overlay
from raysrec.models import MODELS

MODEL = {"model": {"name": "recgrela"}}


def refusal(*overrides):
    """The text with which these settings are refused."""
    given_settings = MODEL
    for override in overrides:
        key, _, text = override.partition("=")
        given_settings = overlay(given_settings, nest(key, yaml.safe_load(text)))
    with pytest.raises(ConfigError) as error:
        validate(given_settings)
    return str(error.value)


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("data.nmae", "data.name"),
        ("data.columns.usr", "data.columns.user"),
        ("data.synthetic.users", "data.synthetic.num_users"),
        ("model.num_block", "model.num_blocks"),
        ("loss.nam", "loss.name"),
        ("train.epoch", "train.epochs"),
        ("engine.zero", "engine.zero_stage"),
        ("scale.num_workers", "scale.workers"),
        ("evaluate.metrics", "evaluate.metric"),
        ("storage.nme", "storage.name"),
        ("trian", "train"),
        ("epochs", "train.epochs"),
        ("seed", "train.seed"),
        ("model.epochs", "train.epochs"),
        ("train.dropout", "model.dropout"),
        ("train.max_length", "model.max_length"),
    ],
)
def test_an_unknown_key_is_refused_in_one_line_with_the_nearest_known_one(key, near):
    assert refusal(f"{key}=1") == f"{key} is not a known key; did you mean {near}?"


@pytest.mark.parametrize("key", ["xyzzy", "model.xyzzy", "train.qqq"])
def test_an_unknown_key_like_no_other_points_to_the_help(key):
    assert refusal(f"{key}=1") == f"{key} is not a known key; --help lists the known keys"


def test_every_mistake_has_a_line_of_its_own():
    lines = refusal("train.epoch=3", "scale.workers=0", "data.nmae=x").splitlines()
    assert [line.split()[0].split("=")[0] for line in lines] == ["data.nmae", "train.epoch", "scale.workers"]


def test_an_unknown_model_is_refused_with_the_names_of_all():
    names = ", ".join(MODELS)
    assert refusal("model.name=mamba4") == f"model.name='mamba4' is no model; did you mean mamba4rec?; known: {names}"
    assert refusal("model.name=qqq") == f"model.name='qqq' is no model; known: {names}"


@pytest.mark.parametrize("settings", [{}, {"model": {}}, {"model": {"dim": 8}}])
def test_a_missing_model_is_refused_with_the_names_of_all(settings):
    with pytest.raises(ConfigError) as error:
        validate(settings)
    assert str(error.value) == f"model.name is missing; one of {', '.join(MODELS)}"


def test_keys_of_another_model_are_refused_with_its_name():
    assert refusal("model.parts=all") == (
        "model.parts is a key of model.name=mamba4rec, but not of model.name=recgrela; leave it out"
    )
    assert refusal("model.hidden_dim=16") == (
        "model.hidden_dim is a key of model.name=narm and gru4rec, but not of model.name=recgrela; leave it out"
    )


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (
            ["train.supervision=cloze"],
            "train.supervision=cloze needs a model that fills gaps, and model.name=recgrela does not; set "
            "train.supervision=every_position",
        ),
        (
            ["train.prefixes_per_user=4"],
            "train.prefixes_per_user=4 is for train.supervision=last_position or train.windows=prefixes, and "
            "every_position with windows=tile has no prefixes; drop it",
        ),
        (
            ["loss.name=bce", "loss.sampling=in_batch"],
            "loss.sampling=in_batch goes with loss.name=sampled_softmax, not with bce",
        ),
        (
            ["loss.negatives=50"],
            "loss.negatives=50 says how to sample, but loss.name=auto may take the exact softmax, which samples "
            "nothing; set loss.name=sampled_softmax (or bce, gbce, bpr), or drop it",
        ),
        (
            ["loss.sampling=in_batch"],
            "loss.sampling=in_batch says how to sample, but loss.name=auto may take the exact softmax, which samples "
            "nothing; set loss.name=sampled_softmax (or bce, gbce, bpr), or drop it",
        ),
        (
            ["loss.padding_class=true"],
            "loss.padding_class=True is for loss.name=softmax, and loss.name=auto draws its candidates or may come to; "
            "set loss.name=softmax or drop it",
        ),
        (
            ["loss.name=softmax", "loss.exclude_history=true"],
            "loss.exclude_history is for negatives of one target, but loss.name=softmax shares its negatives or "
            "has none; drop it or take bce or bpr",
        ),
        (
            ["loss.name=gbce", "loss.exclude_history=true"],
            "loss.name=gbce is calibrated for draws from the whole catalogue, not for loss.exclude_history=True; drop "
            "it or take bce",
        ),
        (
            ["loss.name=softmax", "loss.negatives=50"],
            "loss.negatives=50 is not used with loss.name=softmax and loss.sampling=uniform; drop it",
        ),
        (
            ["model.local_shortcut=false", "model.conv_kernel=9"],
            "model.conv_kernel=9 is not used with model.local_shortcut=False; drop it",
        ),
        (
            ["model={name: sigma, form: unmasked, keep: 1}", "train.supervision=last_position"],
            "model.keep=1 is not used with model.form=unmasked; drop it",
        ),
        (
            ["model={name: sigma, reversed_slots: 9}", "train.supervision=last_position"],
            "model.reversed_slots=9 is not used with model.form=masked; drop it",
        ),
        (
            ["model.form=bidirectional"],
            "train.supervision=every_position needs a causal model, but model.name=recgrela as configured sees the "
            "items it would have to predict; set train.supervision=last_position",
        ),
        (
            ["train.optimizer=muon", "engine.name=deepspeed"],
            "train.optimizer=muon needs whole matrices, which engine.name=deepspeed cuts up; set engine.name=torch or "
            "train.optimizer=adam",
        ),
        (
            ["data.user_interactions='[2,inf)'"],
            "data.user_interactions=[2,inf) keeps users with fewer than 3 interactions, but each user needs one to "
            "begin with, one to validate and one to test; start the interval at 3 or more, or set "
            "data.split.name=temporal",
        ),
        (
            ["evaluate.ks=[5, 20]"],
            "evaluate.metric=ndcg@10 is not computed with evaluate.ks=[5, 20]; one of "
            "hr@5, hr@20, ndcg@5, ndcg@20, mrr@5, mrr@20",
        ),
        (
            ["model.dim=12"],
            "model.dim=12 does not split into model.num_heads=4 heads of an even number of channels (rotations turn "
            "pairs); choose a multiple of 8",
        ),
    ],
)
def test_an_impossible_combination_is_refused_in_words(overrides, text):
    assert refusal(*overrides) == text


@pytest.mark.parametrize(
    ("override", "text"),
    [
        (
            "train.epochs=two",
            "train.epochs='two': input should be a valid integer, unable to parse string as an integer",
        ),
        ("train.epochs=0", "train.epochs=0: input should be greater than or equal to 1"),
        ("train.epochs=2.5", "train.epochs=2.5: input should be a valid integer, got a number with a fractional part"),
        ("train.learning_rate=.inf", "train.learning_rate=inf: input should be a finite number"),
        ("train.schedule=linear", "train.schedule='linear': input should be 'constant' or 'cosine'"),
        ("train.betas=[0.9]", "train.betas=[0.9]: is too short"),
        ("train.betas=0.9", "train.betas=0.9: expected a list, such as [1, 2]"),
        ("data.separator=::", "data.separator={':': None}: expected text; put it in quotes"),
        ("storage.name=2024", "storage.name=2024: expected text; put it in quotes"),
        ("train=", "train=None: train is a section; set keys in it, such as train.supervision"),
        ("model=recgrela", "model='recgrela': model is a section; set keys in it, such as model.name"),
        ("engine.zero_stage=4", "engine.zero_stage=4: input should be less than or equal to 3"),
        (
            "data.item_interactions=many",
            "data.item_interactions: 'many' is no interval; write for example [5,inf) or [50,15000]",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_what_came_and_what_was_expected(override, text):
    assert refusal(override) == text


def test_the_second_moment_cannot_decay_by_one():
    assert refusal("train.betas=[0.9, 1.0]").endswith("input should be less than 1")
