import json
import sys

import pytest
from run_folders import record_of

from raysrec import report
from raysrec.command_line import run_verb
from raysrec.comparing.runs import read_runs
from raysrec.config.loading import validate
from raysrec.run_directory import RunDirectory


def split_of(scores, popularity, users=6040):
    def interval(mean):
        return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01}

    return {
        "users": users,
        "model": {name: interval(mean) for name, mean in scores.items()} | {"coverage@10": {"mean": 0.5}},
        "popularity": {name: interval(mean) for name, mean in popularity.items()},
    }


def at(k, ndcg):
    return {f"hr@{k}": 2 * ndcg, f"ndcg@{k}": ndcg, f"mrr@{k}": ndcg / 2}


@pytest.fixture
def run(tmp_path):
    """A run's directory; finished if it has a score."""

    def make(name, ndcg=None, data="ml-1m", ks=(5, 10), workers=2, exclude_seen=False, **more):
        directory = RunDirectory(tmp_path / name)
        directory.start(validate({"model": {"name": "recgrela"}, "data": {"name": data}}), "fingerprint")
        if ndcg is not None:
            own = {key: value for k in ks for key, value in at(k, ndcg).items()}
            test = split_of(own, {key: value for k in ks for key, value in at(k, 0.02).items()})
            validation = split_of({key: value + 0.001 for key, value in own.items()}, at(ks[0], 0.03))
            training = {
                "supervision": "every_position", "workers": workers, "epochs": 9, "best_epoch": 7, "seconds": 123.4,
                "seconds_to_best": 99.6,
            }  # fmt: skip
            splits = {"validation": validation, "test": test}
            known = {"data": data, "prepared": "prepared/x", "evaluate": {"exclude_seen": exclude_seen}}
            directory.save_record(record_of(training=training, splits=splits, **known, **more))
        return directory.path

    return make


def cells(text):
    """The rows of a GitHub table, without its rule."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return [lines[0], *lines[2:]]


@pytest.fixture(autouse=True)
def _pages_lie_elsewhere(monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))


def table(paths, **how):
    return report.table(read_runs(paths), **how)


def say(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["report", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        run_verb(report.main, report.parser())
    return stopped.value.code


def test_runs_on_another_split_stand_apart_and_say_so(run):
    temporal = {"name": "temporal", "target": "last", "validate_from": 1125964800, "test_from": 1125964801}
    paths = [run("old", 0.1), run("one", 0.2, split={"name": "leave_one_out"}), run("in-time", 0.3, split=temporal)]
    words = ", learned before 2005-09-06 00:00:00, tested on last items from 2005-09-06 00:00:01"
    _, *rows = cells(table(paths, style="github"))
    names = ["one", "old", "popularity (ml-1m)", f"in-time{words}", f"popularity (ml-1m{words})"]
    assert [name for name, *_ in rows] == names


def test_runs_are_sorted_and_popularity_stands_once_below_them(run):
    headers, *rows = cells(table([run("worse", 0.1), run("better", 0.2)], style="github"))
    assert headers == [
        "run", "users", "hr@10", "ndcg@10", "mrr@10", "coverage@10", "validation ndcg@10", "trained in", "best at",
    ]  # fmt: skip
    assert rows == [
        ["better", "6,040", "0.4000 ±0.0100", "0.2000 ±0.0100", "0.1000 ±0.0100", "0.5000", "0.2010",
         "123 s, 2 workers", "epoch 7, 100 s"],
        ["worse", "6,040", "0.2000 ±0.0100", "0.1000 ±0.0100", "0.0500 ±0.0100", "0.5000", "0.1010",
         "123 s, 2 workers", "epoch 7, 100 s"],
        ["popularity (ml-1m)", "6,040", "0.0400 ±0.0100", "0.0200 ±0.0100", "0.0100 ±0.0100", "", "", "", ""],
    ]  # fmt: skip


def test_every_data_set_has_its_own_popularity_row(run):
    paths = [run("a", 0.1, "toys"), run("b", 0.3, "books"), run("c", 0.2, "toys"), run("d", 0.4, "books")]
    names = [row[0] for row in cells(table(paths, style="github"))[1:]]
    assert names == ["d", "b", "popularity (books)", "c", "a", "popularity (toys)"]


def test_runs_that_have_not_finished_are_named_last(run):
    rows = cells(table([run("going"), run("done", 0.1)], style="github"))[1:]
    assert [row[0] for row in rows] == ["done", "popularity (ml-1m)", "going"]
    assert rows[-1][1] == "not finished"


def test_a_table_of_unfinished_runs_only_is_one(run):
    assert [row[:2] for row in cells(table([run("going")], style="github"))[1:]] == [["going", "not finished"]]


def test_validation_scores_can_be_shown_instead(run):
    rows = cells(table([run("a", 0.1)], split="validation", style="github"))[1:]
    assert rows[0][3] == "0.1010 ±0.0100"
    assert rows[0][6] == "0.1010"


def test_scores_at_other_cutoffs_are_shown_where_there_are_none_at_ten(run):
    headers, *rows = cells(table([run("a", 0.1, ks=(5, 20))], style="github"))
    assert headers[2:7] == ["hr@20", "ndcg@20", "mrr@20", "coverage@10", "validation ndcg@20"]
    assert rows[0][3] == "0.1000 ±0.0100"


def test_a_run_without_scores_at_ten_stands_below_those_that_have_them(run):
    rows = cells(table([run("at twenty", 0.9, ks=(20,)), run("at ten", 0.1)], style="github"))[1:]
    assert [row[0] for row in rows[:2]] == ["at ten", "at twenty"]
    assert rows[1][2:5] == ["", "", ""]
    assert rows[1][6] == ""
    assert rows[2][:4] == ["popularity (ml-1m)", "6,040", "0.0400 ±0.0100", "0.0200 ±0.0100"]


def test_one_worker_is_one_worker(run):
    assert "123 s, 1 worker " in table([run("a", 0.1, workers=1)])


def test_the_verb_prints_the_format_that_was_asked_for(run, monkeypatch, capsys):
    path = run("a", 0.1)
    assert say(monkeypatch, path, "--format", "github") == 0
    assert capsys.readouterr().out == table([path], style="github") + "\n"
    assert say(monkeypatch, path, "--format", "gihtub") == 2
    assert "invalid choice: 'gihtub'" in capsys.readouterr().err


def test_files_beside_the_runs_are_passed_over(run, monkeypatch, capsys, tmp_path):
    path = run("a", 0.1)
    (tmp_path / "notes.txt").write_text("")
    assert say(monkeypatch, *sorted(tmp_path.iterdir())) == 0
    assert capsys.readouterr().out == table([path]) + "\n"


def test_no_run_is_an_error_in_words(monkeypatch, capsys, tmp_path):
    assert say(monkeypatch, tmp_path / "none") == 2
    expected = f"error: {tmp_path / 'none'}: holds no run directory; runs are made by raysrec.train\n"
    assert capsys.readouterr().err == expected


def test_a_run_is_named_by_its_folder_wherever_one_stands(run, monkeypatch):
    path = run("a", 0.1)
    monkeypatch.chdir(path)
    assert table([type(path)(".")]) == table([path])


def test_the_record_is_read_and_not_changed(run):
    path = run("a", 0.1)
    before = json.loads((path / "metrics.json").read_text())
    table([path])
    assert json.loads((path / "metrics.json").read_text()) == before


def test_runs_ranked_by_another_rule_stand_apart(run):
    paths = [run("papers", 0.18), run("strict", 0.2, exclude_seen=True)]
    assert [row[0] for row in cells(table(paths, style="github"))[1:]] == [
        "papers",
        "popularity (ml-1m)",
        "strict, seen items left out",
        "popularity (ml-1m, seen items left out)",
    ]
