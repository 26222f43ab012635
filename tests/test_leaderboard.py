import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from run_folders import record_of

from raysrec.models import MODELS
from raysrec.stopping import ends_when_terminated

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
import leaderboard

ROOT = Path(__file__).parent.parent


def parse(*arguments):
    return leaderboard.parser().parse_intermixed_args([*map(str, arguments)])


def job(arguments, data, model, seed=0):
    return leaderboard.Job(leaderboard.Board.of(arguments), data, model, seed)


def finished(root, name, ndcg, seconds=100.0, exclude_seen=False):
    score = {"mean": ndcg, "low": max(0.0, ndcg - 0.01), "high": ndcg + 0.01}
    scores = {
        "model": dict.fromkeys(leaderboard.METRICS, score),
        "popularity": dict.fromkeys(leaderboard.METRICS, score),
    }
    times = {"seconds": 9 * seconds, "seconds_to_best": seconds, "cpu_seconds": seconds}
    training = {**times, "cpu_seconds_to_best": seconds / 2, "loss": "softmax"}
    data, model = name.removesuffix(name[name.index("-seed") :]).rsplit("-", 1)
    arguments = parse("--root", root, "--data", data)
    leaderboard.RunDirectory(root / name).start(job(arguments, data, model, int(name[-1])).config(), "f")
    scores |= {"users": 6040}
    leaderboard.RunDirectory(root / name).save_record(
        record_of(
            data=data,
            training=training,
            splits={"validation": scores, "test": scores},
            evaluate={"exclude_seen": exclude_seen, "ks": [5, 10, 20]},
        )
    )


def test_every_model_and_data_set_of_the_default_board_has_a_config():
    for data in parse().data:
        for model in MODELS:
            config = job(parse(), data, model).config()
            assert (config.data.name, config.model.name) == (data, model)


@pytest.mark.parametrize("recipe", sorted((leaderboard.CONFIGS / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_of_some_run_and_changes_it(recipe):
    data = max(
        (path.stem for path in leaderboard.CONFIGS.glob("*.yaml") if recipe.stem.startswith(f"{path.stem}-")), key=len
    )
    used = [run for model in MODELS if recipe in (run := job(parse(), data, model)).files()]
    assert used
    for run in used:
        before = run.files()[: run.files().index(recipe)]
        assert leaderboard.load(before) != leaderboard.load([*before, recipe])


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--models", "sasrec", "train.epochs=2"], "train.epochs=2 is no model: settings stand before it or after"),
        (["--models", "sasrek"], "sasrek is no model: bprmf, caser"),
        (["--data", "ml-1k"], "ml-1k is no data set: amazon-2018"),
    ],
)
def test_names_that_there_are_not_are_refused(words, complaint, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse(*words)
    assert complaint in capsys.readouterr().err


def test_later_seeds_are_only_for_runs_that_take_little(tmp_path):
    arguments = parse("--root", tmp_path, "--data", "ml-1m", "--models", "recgrela", "mamba4rec")
    assert [job.name for job in leaderboard.jobs_to_do(arguments)] == ["ml-1m-recgrela-seed0", "ml-1m-mamba4rec-seed0"]
    finished(tmp_path, "ml-1m-recgrela-seed0", 0.17, seconds=3000)
    finished(tmp_path, "ml-1m-mamba4rec-seed0", 0.16, seconds=800)
    names = [job.name for job in leaderboard.jobs_to_do(arguments)]
    assert names == ["ml-1m-mamba4rec-seed1", "ml-1m-mamba4rec-seed2"]


def test_what_is_finished_is_not_repeated_and_an_empty_budget_starts_nothing(tmp_path, capsys):
    finished(tmp_path, "ml-1m-recgrela-seed0", 0.17, seconds=3000)
    leaderboard.train_all(parse("--root", tmp_path, "--data", "ml-1m", "--models", "recgrela"))
    assert capsys.readouterr().out == ""
    leaderboard.train_all(parse("--root", tmp_path, "--data", "ml-1m", "--budget", "0"))
    assert "the same command goes on" in capsys.readouterr().out


def test_a_run_that_outlasts_the_budget_is_stopped(tmp_path):
    command = [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"]
    assert leaderboard.run_for(command, 8.0, tmp_path / "log") != 0
    assert "begun" in (tmp_path / "log").read_text()


def test_a_run_may_save_what_it_has_when_the_board_is_interrupted(tmp_path):
    script = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit("gently"))
print("begun", flush=True)
time.sleep(60)
"""
    log = tmp_path / "log"
    log.touch()

    def interrupt() -> None:
        while "begun" not in log.read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(SystemExit), ends_when_terminated():
        leaderboard.run_for([sys.executable, "-c", script], 60.0, log)
    assert log.read_text().splitlines() == ["begun", "gently"]


@pytest.mark.parametrize("leader", ["exit 3", "kill -9 $$", "exec sleep 60"])
def test_nothing_that_a_run_started_outlives_it(leader, tmp_path):
    script = f"(sleep 60; echo left) & echo $! > {tmp_path}/child; {leader}"
    assert leaderboard.run_for(["bash", "-c", script], 3.0, tmp_path / "log") != 0
    child = Path("/proc", (tmp_path / "child").read_text().strip(), "stat")
    for _ in range(100):  # killed, and not yet reaped by whoever has adopted it
        if not child.exists() or child.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    pytest.fail(f"{child.read_text()} still runs")


def test_the_table_has_means_over_seeds_beside_what_was_published(tmp_path):
    arguments = parse("--root", tmp_path, "--data", "ml-1m")
    for seed, ndcg in enumerate((0.17, 0.18, 0.19)):
        finished(tmp_path, f"ml-1m-recgrela-seed{seed}", ndcg)
    finished(tmp_path, "ml-1m-mamba4rec-seed0", 0.16)
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in leaderboard.table(arguments, "ml-1m").splitlines()
    ]
    assert [row[0] for row in rows[2:]] == ["recgrela", "mamba4rec", "popularity (counted)"]
    assert rows[2][2:7] == [
        "3",
        "0.1800 [0.1700, 0.1900]",
        "0.1800 [0.1700, 0.1900]",
        "0.1800 [0.1700, 0.1900]",
        "0.0100",
    ]
    assert rows[2][7] == "100 (50)"
    assert rows[2][8] == "0.3311 / 0.1959 / 0.1545 (RecGRELA, Table 2)"
    assert rows[3][8].count("Table") == 2


def test_published_figures_name_models_that_exist():
    for path in (ROOT / "configs" / "published").glob("*.yaml"):
        for scores in yaml.safe_load(path.read_text())["results"].values():
            assert set(scores) <= set(MODELS)
            assert all(len(row) == 3 and row[0] > row[1] > row[2] for row in scores.values())


def test_a_run_with_other_settings_is_not_taken_for_the_one_that_is_asked_for(tmp_path):
    finished(tmp_path, "ml-1m-recgrela-seed0", 0.17)
    asked = parse("train.epochs=3", "--root", tmp_path, "--data", "ml-1m", "--models", "recgrela", "--table-only")
    with pytest.raises(leaderboard.RunError, match=r"train\.epochs was 36 and is now 3; take another --root"):
        leaderboard.main(asked)


def test_a_run_that_was_ranked_by_another_rule_is_not_averaged_with_the_others(tmp_path):
    finished(tmp_path, "ml-1m-recgrela-seed0", 0.17)
    finished(tmp_path, "ml-1m-recgrela-seed1", 0.21, exclude_seen=True)
    asked = parse("--root", tmp_path, "--data", "ml-1m", "--models", "recgrela", "--table-only")
    with pytest.raises(
        leaderboard.RunError,
        match=r"seed1 was ranked with evaluate.exclude_seen=true, .*raysrec.evaluate .*seed1 'evaluate.exclude_seen=f",
    ):
        leaderboard.main(asked)


def test_the_interval_of_a_score_near_zero_stays_where_scores_are(tmp_path):
    finished(tmp_path, "ml-1m-recgrela-seed0", 0.004)
    assert "0.0040 [0.0000, 0.0140]" in leaderboard.table(parse("--root", tmp_path, "--data", "ml-1m"), "ml-1m")


def test_a_run_that_fails_is_named_and_the_board_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(leaderboard.Job, "command", lambda job: [sys.executable, "-c", "raise SystemExit(3)"])
    arguments = parse("--root", tmp_path, "--data", "ml-1m", "--models", "recgrela", "mamba4rec", "--seeds", 1)
    with pytest.raises(leaderboard.RunError, match="failed: ml-1m-recgrela-seed0, ml-1m-mamba4rec-seed0"):
        leaderboard.main(arguments)
    assert capsys.readouterr().out.count("failed with 3") == 2


@pytest.mark.ray
@pytest.mark.slow
def test_a_board_trains_what_is_missing_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = [
        "data.synthetic.num_users=60",
        "train.epochs=1",
        "scale.workers=1",
        "--data",
        "quickstart",
        "--models",
        "mamba4rec",
    ]
    arguments = parse(*arguments, "--seeds", 1)
    leaderboard.main(arguments)
    first = capsys.readouterr().out
    assert first.count("raysrec.train") == 1
    leaderboard.main(arguments)
    again = capsys.readouterr().out
    assert "raysrec.train" not in again
    assert again.strip() in first
