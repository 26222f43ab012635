import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raysrec.command_line import config_parser, help_of_keys, run_verb
from raysrec.config.files import ConfigError
from raysrec.config.run import RunConfig
from raysrec.models import MODELS
from raysrec.schema import Section

ROOT = Path(__file__).parent.parent


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
    for error in (ConfigError("fix this"), FileNotFoundError("fix this")):
        with pytest.raises(SystemExit) as stopped:
            fail_with(error)
        assert stopped.value.code == 2
        assert capsys.readouterr().err == "error: fix this\n"
    for bug in (RuntimeError("a bug"), ValueError("a bug")):  # NumPy's and torch's are of the second kind
        with pytest.raises(type(bug), match="a bug"):
            fail_with(bug)
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
