"""The page of a sweep: its records read, which parameters mattered, and what none beats in less time."""

import sys

import numpy as np
import pytest
from sweeps import make_sweep

from raysrec import report
from raysrec.command_line import run_verb
from raysrec.comparing.importance import LEAST_TRIALS, importances
from raysrec.comparing.sweeps import SweepResults, pareto, read_sweep
from raysrec.pages import sweep_page, write_sweep_page
from raysrec.sweep import CurvePoint, SweepError, TrialRecord


def trial(number, score=None, seconds=10.0, state="finished", **parameters):
    curve = () if score is None else (CurvePoint(1, score / 2, seconds / 2), CurvePoint(2, score, seconds))
    return record(number, curve, state, **parameters)


def record(number, curve, state="finished", why="", **parameters):
    name, seconds = f"trial-{number:03}", curve[-1][2] if curve else 0.0
    return TrialRecord(
        number=number, name=name, parameters=parameters, state=state, why=why, curve=curve, seconds=seconds
    )


def drawn(number, curve, state="finished", why="", rate=0.001, gate="silu"):
    return record(number, curve, state, why, **{"train.learning_rate": rate, "model.gate": gate})


@pytest.fixture
def folder(tmp_path):
    """A sweep's folder as raysrec.tune writes it."""
    space = {"train.learning_rate": {"log_uniform": [1.0e-4, 1.0]}, "model.gate": {"choice": ["silu", "relu"]}}
    sweep = make_sweep(tmp_path, space, num_samples=4, scheduler={"name": "asha", "grace_epochs": 2})
    sweep.directory.begin(sweep.settings, sweep.config, "fingerprint")
    sweep.directory.save(
        [
            drawn(0, ((1, 0.1, 5.0), (2, 0.2, 10.0), (3, 0.15, 15.0))),
            drawn(1, ((1, 0.25, 60.0),), "stopped", rate=0.1, gate="relu"),
            drawn(2, (), "failed", "a worker ran out of memory", rate=1.0, gate="relu"),
            drawn(3, (), "waiting", rate=0.5),
        ]
    )
    return sweep.directory.path.local


def test_a_sweep_is_read_as_it_was_written(folder):
    sweep = read_sweep(folder)
    assert (sweep.metric, sweep.finished, sweep.parameters) == ("ndcg@10", False, ["train.learning_rate", "model.gate"])
    assert [trial.name for trial in sweep.ranked] == ["trial-001", "trial-000", "trial-003", "trial-002"]
    best = sweep.trials[0].best
    assert (best, sweep.trials[0].seconds) == (CurvePoint(2, 0.2, 10.0), 15.0)
    assert sweep.how.startswith("search random, scheduler asha (grace epochs 2, reduction factor")
    assert sweep.how.endswith("num samples 4, seed 0")


def test_the_page_is_written_into_the_sweep_and_says_how_far_it_is(folder):
    place = write_sweep_page(folder)
    page = place.read_text()
    assert str(place) == str(folder / "report.html")
    for text in ("1 finished, 1 stopped, 1 failed, 1 waiting", "not finished", "trial-001 reached 0.2500 at epoch 1",
                 "a worker ran out of memory", "Nothing can be said of any parameter"):  # fmt: skip
        assert text in page


def test_a_trial_that_failed_is_not_the_best_whatever_it_had_reached():
    page = sweep_page(SweepResults("s", "ndcg@10", [trial(0, 0.2, lr=1.0), trial(1, 0.9, state="failed", lr=2.0)]))
    assert "trial-000 reached 0.2000" in page
    assert [one.name for one in pareto([trial(0, 0.2), trial(1, 0.9, state="failed")])] == ["trial-000"]
    assert "Every trial that was validated has failed" in sweep_page(
        SweepResults("s", "ndcg@10", [trial(1, 0.9, state="failed", lr=2.0)])
    )


def test_the_best_configuration_stands_in_it_when_the_sweep_is_done(folder):
    (folder / "best.yaml").write_text("train: {learning_rate: 0.1}  # <best>\n")
    assert "train: {learning_rate: 0.1}  # &lt;best&gt;" in write_sweep_page(folder).read_text()


def test_a_sweep_without_any_score_has_a_page(tmp_path):
    assert "No trial has been validated yet" in sweep_page(
        SweepResults("new", "ndcg@10", [trial(0, lr=1.0)], finished=False)
    )
    assert "none yet" in sweep_page(SweepResults("new", "ndcg@10", [], finished=False))


def test_a_folder_that_is_no_sweep_is_an_error_in_words(folder, tmp_path):
    with pytest.raises(SweepError, match=r"is no sweep, .* name a folder that raysrec.tune has written"):
        write_sweep_page(tmp_path)
    (folder / "trials.jsonl").write_text('{"name": "trial-000"}\n')
    with pytest.raises(SweepError, match=r"trials\.jsonl: is no record of trials .*restore it"):
        read_sweep(folder)


def test_the_verb_makes_the_page_of_a_sweep(folder, monkeypatch, capsys, tmp_path):
    def say(*words):
        monkeypatch.setattr(sys, "argv", ["report", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            run_verb(report.main, report.parser())
        return stopped.value.code

    assert say(folder, "--page", tmp_path / "page.html") == 0
    assert "Sweep sweep" in (tmp_path / "page.html").read_text()
    capsys.readouterr()
    assert say(folder) == 0
    assert capsys.readouterr().err == f"page  {folder / 'report.html'}\n"
    assert "Sweep sweep" in (folder / "report.html").read_text()


def test_the_parameter_that_decides_the_score_is_the_most_important():
    draw = np.random.default_rng(1)
    trials = []
    for number in range(32):
        rate, blocks, gate = 10 ** draw.uniform(-4, -1), int(draw.integers(1, 4)), str(draw.choice(["silu", "relu"]))
        score = 0.5 - abs(blocks - 2) * 0.2 + 0.02 * draw.random()  # neither more nor less of it is better
        trials.append(trial(number, score, rate=rate, blocks=blocks, gate=gate))
    first, *others = importances(trials, ["rate", "blocks", "gate"])
    assert first.parameter == "blocks"
    assert first.share > 0.4
    assert first.p_value < 0.001
    assert all(other.share < 0.3 and other.p_value > 0.01 for other in others)


def test_a_number_is_important_by_its_quarters():
    trials = [trial(number, score=0.1 + 0.01 * number, rate=float(2**number), noise=number % 5) for number in range(16)]
    found = {one.parameter: one for one in importances(trials, ["noise", "rate"])}
    assert found["rate"].share > 0.8
    assert found["rate"].p_value < 0.01
    assert found["noise"].p_value > 0.05


@pytest.mark.parametrize(
    ("trials", "reason"),
    [
        (
            [trial(n, 0.1 * n, lr=n % 2) for n in range(LEAST_TRIALS - 1)],
            "too few trials have a score: 7, of at least 8",
        ),
        ([trial(n, lr=n % 2) for n in range(20)], "too few trials have a score: 0, of at least 8"),
        ([trial(n, 0.01 * n, lr="same") for n in range(20)], "fewer than two of its values were tried 2 times or more"),
        ([trial(n, 0.01 * n, lr=str(n)) for n in range(20)], "fewer than two of its values were tried 2 times or more"),
        ([trial(n, 0.3, lr=n % 2) for n in range(20)], "all scores are the same"),
    ],
)
def test_nothing_is_said_where_nothing_can_be(trials, reason):
    (one,) = importances(trials, ["lr"])
    assert (one.share, one.p_value, one.reason) == (None, None, reason)


def test_the_front_is_what_none_beats_in_less_time():
    trials = [
        trial(0, 0.2, 10.0),
        trial(1, 0.1, 20.0),
        trial(2, 0.3, 30.0),
        trial(3, 0.3, 40.0),
        trial(4),
        trial(5, 0.25, 10.0),
    ]
    assert [one.name for one in pareto(trials)] == ["trial-005", "trial-002"]
