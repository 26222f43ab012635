"""Where trials stand: which is next, which end early, and what a sweep that was killed goes on from."""

import sys

import pytest
import yaml
from run_folders import record_of
from sweeps import lines, make_sweep, validation

from raysrec import tune
from raysrec.config.files import ConfigError
from raysrec.config.loading import load
from raysrec.place import Place, PlaceError
from raysrec.sweep import SchedulerConfig, SweepDirectory, SweepError
from raysrec.sweep.book import TrialBook
from raysrec.sweep.loading import load_sweep
from raysrec.tuning.ray_tune import EarlyStopping

BLOCKS = {"model.num_blocks": {"grid": [1, 2, 3]}}
RATES = {"train.learning_rate": {"log_uniform": [1e-4, 1e-2]}, "model.num_heads": {"choice": [1, 2, 4]}}


def open_book(sweep):
    return TrialBook(sweep, EarlyStopping(sweep.settings.scheduler, sweep.max_epochs))


def train(book, name, scores, end="finished"):
    """What a trial tells from beginning to end; the epochs after which it was to end early."""
    stops = [epoch for epoch, score in enumerate(scores, 1) if book.heard(name, validation(epoch, score))]
    book.heard(name, {"kind": "end", "state": end, "seconds": 10.0 * len(scores)})
    return stops


def by_name(book):
    return {trial.name: trial for trial in book.trials}


def test_trials_are_begun_in_order_and_written_down_before_they_are(tmp_path):
    book = open_book(make_sweep(tmp_path, BLOCKS))
    trial, config = book.begin_next()
    assert lines(book.sweep.directory)[0]["state"] == "running"
    assert (trial.name, trial.parameters, config.model.num_blocks) == ("trial-000", {"model.num_blocks": 1}, 1)
    assert config.run_directory.uri.endswith("runs/sweep/trials/trial-000")
    assert [book.begin_next()[1].model.num_blocks for _ in range(2)] == [2, 3]
    assert book.begin_next() is None


def test_the_record_of_a_trial_can_be_read_by_itself(tmp_path):
    book = open_book(make_sweep(tmp_path, BLOCKS))
    book.begin_next()
    train(book, "trial-000", [0.1, 0.3, 0.2])
    (line,) = lines(book.sweep.directory)
    assert line["curve"] == [[1, 0.1, 10.0], [2, 0.3, 20.0], [3, 0.2, 30.0]]
    assert line["started_at"] <= line["ended_at"]
    assert {key: line[key] for key in ("state", "epoch", "score", "best_epoch", "seconds", "why")} == {
        "state": "finished", "epoch": 3, "score": 0.3, "best_epoch": 2, "seconds": 30.0, "why": "",
    }  # fmt: skip
    assert book.sweep.directory.trials == book.trials


def test_a_killed_sweep_repeats_nothing_that_is_done_and_keeps_the_parameters_of_the_rest(tmp_path):
    sweep = make_sweep(tmp_path, RATES, num_samples=4)
    killed = open_book(sweep)
    first, second = killed.begin_next()[0], killed.begin_next()[0]
    train(killed, first.name, [0.2])
    killed.heard(second.name, validation(1, 0.1))
    killed.heard(second.name, validation(2, 0.2))

    again = open_book(sweep)
    assert [trial.state for trial in again.trials] == ["finished", "interrupted"]
    going_on, _ = again.begin_next()
    assert (going_on.name, going_on.parameters, going_on.started_at) == (
        second.name,
        second.parameters,
        second.started_at,
    )
    # Its last checkpoint is that of the first epoch: the second is validated once more.
    again.heard(second.name, validation(2, 0.25))
    assert [point[:2] for point in by_name(again)[second.name].curve] == [(1, 0.1), (2, 0.25)]
    new = [again.begin_next()[0] for _ in range(2)]
    assert [trial.parameters for trial in [first, second, *new]] == list(sweep.settings.trials())
    assert again.begin_next() is None


def test_a_best_epoch_that_was_validated_while_nobody_listened_is_not_lost(tmp_path):
    book = open_book(make_sweep(tmp_path, BLOCKS))
    book.begin_next()
    book.heard("trial-000", validation(1, 0.1))
    book.heard("trial-000", {"kind": "end", "state": "finished", "best": [2, 0.4, 20.0], "seconds": 33.0})
    (trial,) = book.trials
    assert (trial.score, trial.best_epoch, trial.seconds) == (0.4, 2, 33.0)


def test_asked_to_end_a_trial_is_interrupted_and_goes_on_another_time(tmp_path):
    sweep = make_sweep(tmp_path, BLOCKS)
    book = open_book(sweep)
    book.begin_next()
    book.close()
    assert book.begin_next() is None
    train(book, "trial-000", [0.1], end="interrupted")
    assert [(trial.state, trial.why) for trial in book.trials] == [("interrupted", "the sweep was asked to end")]
    assert not book.is_done
    assert open_book(sweep).begin_next()[0].name == "trial-000"


def test_what_failed_is_tried_again_by_the_same_command_only(tmp_path):
    sweep = make_sweep(tmp_path, BLOCKS)
    book = open_book(sweep)
    book.begin_next()
    book.heard("trial-000", {"kind": "end", "state": "failed", "why": "the loss is NaN"})
    assert book.trials[0].why == "the loss is NaN"
    assert [book.begin_next()[0].name for _ in range(2)] == ["trial-001", "trial-002"]
    book.lost("trial-001", "its process was killed")
    train(book, "trial-002", [0.1])
    assert (book.begin_next(), book.is_done) == (None, False)
    again = open_book(sweep)
    assert [again.begin_next()[0].name for _ in range(2)] == ["trial-000", "trial-001"]


def test_asha_lets_the_best_go_on_and_those_it_ends_are_done(tmp_path):
    sweep = make_sweep(tmp_path, BLOCKS, scheduler={"name": "asha", "grace_epochs": 2, "reduction_factor": 2})
    book = open_book(sweep)
    for _ in range(3):
        book.begin_next()
    assert train(book, "trial-000", [0.1, 0.3, 0.3, 0.4, 0.5, 0.5, 0.5, 0.5, 0.5]) == []
    # Worse at epoch 2, when it is asked to end; it is told so until it does.
    assert train(book, "trial-001", [0.0, 0.1, 0.9], end="stopped") == [2, 3]
    # As good at epoch 2, and worse at epoch 4.
    assert train(book, "trial-002", [0.1, 0.3, 0.1, 0.1], end="stopped") == [4]
    assert [trial.state for trial in book.trials] == ["finished", "stopped", "stopped"]
    assert book.is_done


@pytest.mark.parametrize("name", ["asha", "median"])
def test_rules_know_after_a_restart_what_they_knew_before(tmp_path, name):
    scheduler = {"name": name, "grace_epochs": 2, **({"reduction_factor": 2} if name == "asha" else {"min_trials": 2})}
    sweep = make_sweep(tmp_path, BLOCKS, scheduler=scheduler)
    book = open_book(sweep)
    for _ in range(2):
        train(book, book.begin_next()[0].name, [0.4, 0.5, 0.6, 0.6])
    book.begin_next()
    again = open_book(sweep)
    again.begin_next()
    assert not again.heard("trial-002", validation(1, 0.1))
    assert again.heard("trial-002", validation(2, 0.1))
    # Killed, or asked to end with the sweep, before it had: it is told again at once, and counts as ended early.
    train(again, "trial-002", [], end="interrupted")
    third = open_book(sweep)
    third.begin_next()
    assert third.heard("trial-002", validation(3, 0.9))
    assert train(third, "trial-002", [], end="stopped") == []
    assert by_name(third)["trial-002"].state == "stopped"


def test_without_a_rule_no_trial_ends_early():
    rule = EarlyStopping(SchedulerConfig(), max_epochs=9)
    assert not any(
        rule.judge(f"trial-{n}", epoch=e, score=1 / (n + 1), best=1.0) for n in range(5) for e in range(1, 9)
    )


def test_a_sweep_grows_and_is_otherwise_refused_where_another_lies(tmp_path):
    def begin(space=RATES, fingerprint="0123", **settings):
        sweep = make_sweep(tmp_path, space, *settings.pop("overrides", []), **{"num_samples": 4, **settings})
        sweep.directory.begin(sweep.settings, sweep.config, fingerprint)
        return sweep

    begin()
    begin(max_concurrent=3, rank="all", overrides=["scale.workers=2", "checkpoint.keep=9"])
    assert begin(num_samples=6).directory.settings.num_samples == 6
    with pytest.raises(
        SweepError, match=r"holds another sweep: sweep\.num_samples was 6 and is now 5; set storage.name"
    ):
        begin(num_samples=5)
    with pytest.raises(SweepError, match=r"sweep\.space\.model\.num_heads\.choice was \[1, 2, 4\] and is now \[1, 2\]"):
        begin({**RATES, "model.num_heads": {"choice": [1, 2]}}, num_samples=6)
    with pytest.raises(SweepError, match=r"config\.train\.epochs was 9 and is now 8"):
        begin(num_samples=6, overrides=["train.epochs=8"])
    with pytest.raises(SweepError, match="fingerprint was '0123' and is now '4567'"):
        begin(num_samples=6, fingerprint="4567")


def test_a_folder_that_is_no_sweep_is_said_to_be_none(tmp_path):
    assert not SweepDirectory.is_sweep(tmp_path)
    with pytest.raises(SweepError, match=r"is no sweep, it has no sweep\.yaml"):
        SweepDirectory.open(tmp_path)
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"sweep": {"space": {}}}))
    with pytest.raises(SweepError, match="describes no sweep"):
        SweepDirectory.open(tmp_path).settings  # noqa: B018
    for line in ("{", "[1]"):
        (tmp_path / "trials.jsonl").write_text(line)
        with pytest.raises(SweepError, match=r"trials\.jsonl: is no record of trials"):
            SweepDirectory.open(tmp_path).trials  # noqa: B018
    (tmp_path / "sweep.yaml").write_text("sweep: {space")
    with pytest.raises(SweepError, match=r"sweep\.yaml: describes no sweep: .*line 1"):
        SweepDirectory.open(tmp_path).settings  # noqa: B018


@pytest.mark.s3
def test_a_sweep_is_kept_in_a_store_as_it_is_here(tmp_path, s3):
    sweep = make_sweep(tmp_path, BLOCKS, f"storage.root={s3}/runs")
    sweep.directory.begin(sweep.settings, sweep.config, "0123")
    book = open_book(sweep)
    book.begin_next()
    train(book, "trial-000", [0.1, 0.2])
    found = SweepDirectory.open(f"{s3}/runs/sweep")
    assert found.trials == book.trials
    assert found.settings == sweep.settings
    assert open_book(sweep).begin_next()[1].run_directory.uri == f"{s3}/runs/sweep/trials/trial-001"

    tune.keep_best(sweep, found.trials)
    ready = load([found.best_file])  # as the command that is printed does
    assert (ready.model.num_blocks, ready.run_directory.uri) == (1, f"{s3}/runs/sweep-best")
    with pytest.raises(
        ConfigError, match=r"--config s3://.*/bets\.yaml: there is no such file; did you mean best\.yaml"
    ):
        load([f"{s3}/runs/sweep/bets.yaml"])
    with pytest.raises(ConfigError, match=r"--config s3://.*/runs: is a folder; name a YAML file in it"):
        load([f"{s3}/runs"])
    with pytest.raises(PlaceError, match="there is no bucket nowhere"):
        load(["s3://nowhere/best.yaml"])
    (Place.of(s3) / "more.yaml").write("num_samples: 1\nspace: {model.num_blocks: {integer: [1, 3]}}\n")
    assert load_sweep(f"{s3}/more.yaml", [found.best_file]).settings.name == "more"


def test_optuna_that_is_not_there_is_said_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SweepError, match=r"search=optuna needs Optuna, which is not installed; pip install 'raysrec"):
        make_sweep(tmp_path, RATES, num_samples=4, search="optuna")


def test_optuna_learns_from_what_was_trained_and_proposes_the_same_after_a_restart(tmp_path):
    pytest.importorskip("optuna", reason="search=optuna is an extra")
    space = {**RATES, "model.dropout": {"uniform": [0, 0.9]}, "train.betas": {"choice": [[0.9, 0.99], [0.9, 0.999]]}}
    sweep = make_sweep(tmp_path, space, num_samples=40, search="optuna")
    book = open_book(sweep)
    for number in range(30):
        if number == 20:
            book = open_book(sweep)
        trial, config = book.begin_next()
        assert config.train.betas == tuple(trial.parameters["train.betas"])
        # The less dropout the better.
        train(book, trial.name, [1 - trial.parameters["model.dropout"]], end=["finished", "stopped"][number % 7 == 3])
    rates = [trial.parameters["model.dropout"] for trial in book.trials]
    assert sum(rates[-10:]) / 10 < sum(rates[:10]) / 10 / 2
    proposed = book.begin_next()[0].parameters
    sweep.directory.save(sweep.directory.trials[:30])
    assert open_book(sweep).begin_next()[0].parameters == proposed


def test_optuna_never_trains_the_same_parameters_twice_and_is_the_same_after_a_restart(tmp_path):
    pytest.importorskip("optuna", reason="search=optuna is an extra")
    space = {"model.num_blocks": {"integer": [1, 3]}, "model.num_heads": {"choice": [1, 2, 4]}}

    def searched(folder, restart_after):
        folder.mkdir()
        sweep = make_sweep(folder, space, num_samples=9, search="optuna")
        book = open_book(sweep)
        for number in range(9):
            if number == restart_after:
                book = open_book(sweep)
            trial, _ = book.begin_next()
            parameters = trial.parameters
            score = 0.1 * parameters["model.num_blocks"] + 0.01 * parameters["model.num_heads"]
            train(book, trial.name, [score], end=["finished", "stopped"][number % 3 == 2])
        assert book.begin_next() is None
        return [tuple(trial.parameters.values()) for trial in book.trials]

    trials = searched(tmp_path / "one", 4)
    assert len(set(trials)) == 9
    assert searched(tmp_path / "other", 7) == trials


def test_the_best_is_a_trial_that_did_not_fail_and_which_are_ranked_may_change(tmp_path):
    def begun(*overrides):
        sweep = make_sweep(tmp_path, BLOCKS, *overrides)
        sweep.directory.begin(sweep.settings, sweep.config, "0123")
        return sweep

    sweep = begun()
    book = open_book(sweep)
    for scores, end in (([0.1, 0.2], "finished"), ([0.15], "finished"), ([0.1, 0.9], "failed")):
        train(book, book.begin_next()[0].name, scores, end)
    tune.keep_best(sweep, book.trials)
    assert load([sweep.directory.best_file]).model.num_blocks == 1
    assert [trial.name for trial in tune.to_rank(sweep)] == ["trial-000"]
    sweep.directory.run(book.trials[0]).save_record(record_of())
    assert tune.to_rank(sweep) == []
    assert [trial.name for trial in tune.to_rank(begun("sweep.rank=all"))] == ["trial-001"]
