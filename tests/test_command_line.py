import argparse
import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from raysrec.command_line import (
    ConfigError,
    config_parser,
    differences,
    help_of_keys,
    load,
    nest,
    overlay,
    run_verb,
    validate,
)
from raysrec.config.run import RunConfig
from raysrec.models import MODELS
from raysrec.schema import Section

ROOT = Path(__file__).parent.parent
MODEL = {"model": {"name": "recgrela"}}

keys = st.sampled_from("abc")
values = st.integers(0, 9) | st.lists(st.integers(0, 9), max_size=2)
# One shape: at each place there is always a section or never one. Upper-case keys hold sections.
settings = st.recursive(
    st.dictionaries(keys, values, max_size=3),
    lambda inner: st.builds(
        lambda leaves, sections: leaves | sections,
        st.dictionaries(keys, values, max_size=2),
        st.dictionaries(st.sampled_from("AB"), inner, max_size=2),
    ),
    max_leaves=6,
)


@pytest.fixture
def file(tmp_path):
    """A YAML file with this text."""

    def write(name, text):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


@pytest.fixture
def base(file):
    return file("base.yaml", "model: {name: recgrela, dim: 16}\ntrain: {epochs: 3, seed: 1}\n")


def refusal(*overrides):
    """The text with which these settings are refused."""
    given_settings = MODEL
    for override in overrides:
        key, _, text = override.partition("=")
        given_settings = overlay(given_settings, nest(key, yaml.safe_load(text)))
    with pytest.raises(ConfigError) as error:
        validate(given_settings)
    return str(error.value)


def keys_of(section, prefix=""):
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from keys_of(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def every_key():
    yield from ((key, field) for key, field in keys_of(RunConfig) if key != "model")
    for model in MODELS.values():
        yield from keys_of(model.Config, "model.")


@given(a=settings, b=settings, c=settings)
def test_overlay_is_associative(a, b, c):
    assert overlay(a, overlay(b, c)) == overlay(overlay(a, b), c)


@given(a=settings)
def test_overlay_of_nothing_and_of_itself_changes_nothing(a):
    assert overlay(a, {}) == overlay({}, a) == overlay(a, a) == a


@given(a=settings, b=settings)
def test_overlay_mutates_nothing(a, b):
    before = copy.deepcopy((a, b))
    overlay(a, b)
    assert (a, b) == before


@given(a=settings, b=settings)
def test_what_lies_above_wins_and_what_lies_below_stays(a, b):
    merged = overlay(a, b)
    assert overlay(merged, b) == merged
    assert set(merged) == set(a) | set(b)
    assert all(merged[key] == a[key] for key in set(a) - set(b))


def test_a_list_is_replaced_and_not_extended():
    assert overlay({"ks": [5, 10]}, {"ks": [20]}) == {"ks": [20]}


@given(parts=st.lists(st.text("abc_", min_size=1), min_size=1, max_size=4), value=values)
def test_nest_wraps_a_value_once_for_each_part_of_its_key(parts, value):
    nested = nest(".".join(parts), value)
    for part in parts:
        assert list(nested) == [part]
        nested = nested[part]
    assert nested == value


@given(a=settings, b=settings)
def test_differences_are_none_only_between_equals(a, b):
    assert (differences(a, b) == []) == (a == b)


def test_differences_name_the_full_key_and_both_values():
    old, new = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": 4}
    assert differences(old, new) == [("a.c", 2, 5), ("d", 3, None), ("e", None, 4)]


def test_later_files_and_overrides_win_key_by_key(base, file):
    above = file("above.yaml", "train: {epochs: 7}\nmodel: {num_blocks: 2}\n")
    config = load([base, above], ["train.seed=9", "train.seed=10"])
    assert (config.train.epochs, config.train.seed) == (7, 10)
    assert (config.model.dim, config.model.num_blocks) == (16, 2)
    assert load([above, base]).train.epochs == 3


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("train.epochs=3", lambda c: c.train.epochs, 3),
        ("train.learning_rate=5e-4", lambda c: c.train.learning_rate, 5e-4),
        ("train.learning_rate=1.0e-3", lambda c: c.train.learning_rate, 1e-3),
        ("evaluate.exclude_seen=true", lambda c: c.evaluate.exclude_seen, True),
        ("evaluate.ks=[1, 10]", lambda c: c.evaluate.ks, (1, 10)),
        ("train.betas=[0.9, 0.98]", lambda c: c.train.betas, (0.9, 0.98)),
        ("data.user_interactions=[5,inf)", lambda c: c.data.user_interactions, "[5,inf)"),
        ("data.user_interactions=[50,500]", lambda c: c.data.user_interactions, "[50,500]"),
        ("data.item_interactions=(4,inf)", lambda c: c.data.item_interactions.low, 5),
        ("data.separator='::'", lambda c: c.data.separator, "::"),
        ("data.separator=;", lambda c: c.data.separator, ";"),
        ("data.separator=,", lambda c: c.data.separator, ","),
        ("data.source=s3://bucket/a=b.csv", lambda c: c.data.source, "s3://bucket/a=b.csv"),
        ("storage.name='2024'", lambda c: c.storage.name, "2024"),
        (
            "engine={name: deepspeed, extra: {zero_optimization: {overlap_comm: true}}}",
            lambda c: c.engine.extra,
            {"zero_optimization": {"overlap_comm": True}},
        ),
        ("engine={name: deepspeed, extra: {a: {b: 1}}}", lambda c: c.engine.extra, {"a": {"b": 1}}),
    ],
)
def test_the_value_of_an_override_is_read_as_yaml(base, override, read, expected):
    assert read(load([base], [override])) == expected


@pytest.mark.parametrize("text", ["train.epochs", "=3", "--epochs"])
def test_what_is_no_setting_is_refused_with_an_example(base, text):
    with pytest.raises(ConfigError, match=r"is no setting; write section\.key=value, for example train\.epochs=3"):
        load([base], [text])


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
    assert refusal("model.name=mamba4") == f"model.name='mamba4' is no model; did you mean mamba4rec? known: {names}"
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


def test_a_missing_file_is_refused_with_the_nearest_name(file, tmp_path):
    file("netflix.yaml", "")
    with pytest.raises(ConfigError, match=r"netflx\.yaml: there is no such file; did you mean netflix\.yaml\?$"):
        load([tmp_path / "netflx.yaml"])
    with pytest.raises(ConfigError, match=r"zzz\.yaml: there is no such file$"):
        load([tmp_path / "zzz.yaml"])
    with pytest.raises(ConfigError, match=r"there is no such file$"):
        load([tmp_path / "nowhere" / "netflix.yaml"])


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is a folder; name a YAML file in it"):
        load([tmp_path])


def test_broken_yaml_is_refused_in_one_line_with_its_line_number(file):
    broken = file("broken.yaml", "model:\n  name: recgrela\ntrain: {epochs: 3\ndata: x\n")
    with pytest.raises(ConfigError, match=r"broken\.yaml: is not YAML: .*line 4") as error:
        load([broken])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("train: {epochs: 3}\ntrain: {batch_targets: 7}\n", "train", 2),
        ("train:\n  epochs: 3\n  epochs: 4\n", "epochs", 3),
    ],
)
def test_a_key_that_stands_twice_is_refused_since_one_of_them_would_be_lost(file, text, key, line):
    with pytest.raises(ConfigError, match=rf"twice\.yaml: .*{key} stands twice .*line {line}"):
        load([file("twice.yaml", text)])


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.yaml: is not YAML"):
        load([tmp_path / "binary.yaml"])


def test_a_file_without_sections_is_refused_and_an_empty_one_says_nothing(base, file):
    with pytest.raises(ConfigError, match="holds a list, expected sections such as data: and model:"):
        load([file("list.yaml", "- a\n- b\n")])
    assert load([base, file("empty.yaml", "# nothing\n")]) == load([base])


def test_help_prints_every_key_with_its_default_and_docstring(capsys):
    with pytest.raises(SystemExit) as stopped:
        config_parser("train", "Train.").parse_args(["--help"])
    assert stopped.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    for key, field in every_key():
        shown = field.default if str(field.default) else "''"
        assert f"  {key} ({shown})" in lines, key
        assert f"      {' '.join(field.description.split())}" in lines, key


def test_help_names_each_key_once_for_each_model():
    named = [line.split()[0] for line in help_of_keys().splitlines() if line.startswith("  ") and line[2] != " "]
    assert sorted(named) == sorted(key for key, _ in every_key())


def test_config_is_required_and_may_be_repeated(capsys):
    parser = config_parser("train", "Train.")
    arguments = parser.parse_args(["--config", "a.yaml", "--config", "b.yaml", "x.y=1", "z=2"])
    assert (arguments.config, arguments.overrides) == (["a.yaml", "b.yaml"], ["x.y=1", "z=2"])
    with pytest.raises(SystemExit):
        parser.parse_args(["x.y=1"])
    assert "--config" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["--config", "a", "x=1", "--config", "b", "y=2", "--dry-run"],
        ["x=1", "--config", "a", "--dry-run", "--config", "b", "y=2"],
        ["--dry-run", "--config", "a", "--config", "b", "x=1", "y=2"],
    ],
)
def test_options_and_settings_come_in_any_order(monkeypatch, words):
    seen = []
    parser = config_parser("train", "Train.")
    parser.add_argument("--dry-run", action="store_true")
    monkeypatch.setattr(sys, "argv", ["train", *words])
    with pytest.raises(SystemExit) as stopped:
        run_verb(seen.append, parser)
    assert stopped.value.code == 0
    assert seen == [argparse.Namespace(config=["a", "b"], overrides=["x=1", "y=2"], dry_run=True)]


def test_what_a_user_can_mend_is_printed_and_what_nobody_foresaw_keeps_its_traceback(monkeypatch, capsys):
    def fail_with(error):
        def main(_):
            raise error

        run_verb(main, argparse.ArgumentParser())

    monkeypatch.setattr(sys, "argv", ["verb"])
    for error in (ConfigError("mend this"), FileNotFoundError("mend this")):
        with pytest.raises(SystemExit) as stopped:
            fail_with(error)
        assert stopped.value.code == 2
        assert capsys.readouterr().err == "error: mend this\n"
    with pytest.raises(RuntimeError, match="a bug"):
        fail_with(RuntimeError("a bug"))
    with pytest.raises(SystemExit) as stopped:
        fail_with(KeyboardInterrupt())
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on\n"


def test_training_with_a_bad_config_ends_in_one_line_and_never_touches_ray(tmp_path):
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text("raise AssertionError('ray was imported')\n")
    ended = subprocess.run(
        [sys.executable, "-m", "raysrec.train", "--config", "configs/quickstart.yaml", "train.epoch=3"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 2
    assert ended.stderr == "error: train.epoch is not a known key; did you mean train.epochs?\n"
    assert ended.stdout == ""
