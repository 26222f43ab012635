"""The page of runs: what is measured from their files, and what is said of it."""

import json
import re
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from run_folders import ITEMS, USERS, run_folder

from raysrec import report
from raysrec.command_line import run_verb
from raysrec.comparing.boards import (
    boards,
    groups_by_length,
    groups_by_popularity,
    tests_against_best,
    tests_of_pairs,
)
from raysrec.comparing.published import DEFAULT, PublishedError, read_published
from raysrec.comparing.runs import read_runs
from raysrec.metrics import holm, paired_test
from raysrec.pages import curves, runs_page
from raysrec.pages.html import Cell, Table
from raysrec.run_directory import RunError

for function in (tests_against_best, tests_of_pairs):
    function.__test__ = False  # it is raysrec's, whatever pytest makes of its name


@pytest.fixture
def three(tmp_path):
    """Two finished runs on the same targets and one that is not finished."""
    better = run_folder(tmp_path / "better", share=0.12, seed=1)
    worse = run_folder(tmp_path / "worse", model="mamba4rec", share=0.05, seed=2)
    going = run_folder(tmp_path / "going", model="sasrec", finished=False)
    return [worse, better, going]


def board_of(paths, metric="ndcg@10"):
    (board,) = boards(read_runs(paths), split="test", metric=metric)
    return board


def words_of(page):
    """The page's text, without its scripts."""
    return " ".join(re.sub(r"<[^>]+>", " ", re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.S)).split())


def say(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["report", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        run_verb(report.main, report.parser())
    return stopped.value.code


def test_only_runs_that_ranked_the_same_targets_by_the_same_rule_are_compared(tmp_path):
    run_folder(tmp_path / "a", seed=1)
    run_folder(tmp_path / "b", seed=2)
    run_folder(tmp_path / "ties", seed=3, targets=1)
    run_folder(tmp_path / "strict", seed=4, evaluate={"exclude_seen": True})
    run_folder(tmp_path / "toys", seed=5, data="toys")
    runs = read_runs(sorted(tmp_path.iterdir()))
    counted = [line.split("  ")[0] for line in report.table(runs).splitlines() if line.startswith("popularity")]
    assert counted == [
        "popularity (ml-1m)",
        "popularity (ml-1m (2, with other held-out items))",
        "popularity (ml-1m, seen items left out)",
        "popularity (toys)",
    ]
    found = boards(runs, split="test", metric="ndcg@10")
    assert [(board.title, board.rule, sorted(run.name for run in board.runs)) for board in found] == [
        ("ml-1m", "", ["a", "b"]),
        ("ml-1m", "seen items left out", ["strict"]),
        ("ml-1m (2, with other held-out items)", "", ["ties"]),
        ("toys", "", ["toys"]),
    ]


def test_a_run_whose_ranks_are_gone_keeps_its_row_and_says_so(three):
    (three[0] / "ranks.parquet").unlink()
    board = board_of(three)
    assert [run.name for run in board.runs] == ["better", "worse"]
    assert tests_against_best(board) == {}
    assert "no ranks.parquet" in board.runs[1].problems[0]


def test_runs_are_tested_against_the_best_on_the_same_users(three, tmp_path):
    third = run_folder(tmp_path / "third", share=0.05, seed=9)
    board = board_of([*three, third])
    ranks = {}
    for path in (*three[:2], third):
        table = pq.read_table(path / "ranks.parquet", filters=[("split", "=", "test")])
        ranks[path.name] = table["rank"].to_numpy().copy()
    expected = [paired_test(ranks["better"], ranks[name]) for name in ("worse", "third")]
    found = tests_against_best(board)
    assert [found[name].test for name in ("worse", "third")] == expected
    assert [found[name].p_holm for name in ("worse", "third")] == holm([test.p_value for test in expected])
    assert found["worse"].test.difference < 0
    assert len(tests_of_pairs(board)) == 3


def test_the_correction_for_many_tests_is_holms():
    assert holm([0.01, 0.04, 0.03]) == [0.03, 0.06, 0.06]
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("groups_of", [groups_by_length, groups_by_popularity])
def test_groups_hold_every_user_once_and_their_scores_make_up_the_whole(three, groups_of):
    board = board_of(three)
    groups = groups_of(board)
    assert len(groups) > 3
    assert sum(group.users for group in groups) == USERS
    for run in board.runs:
        whole = sum(group.users * group.scores[run.name][0] for group in groups) / USERS
        assert whole == pytest.approx(run.record.splits.test.model["ndcg@10"].mean, abs=1e-9)


def test_groups_are_named_by_what_is_in_them(three):
    board = board_of(three)
    lengths = board.ranks(board.runs[0]).lengths
    for group in groups_by_length(board):
        low, _, high = group.label.partition("–")
        assert group.users == ((lengths >= int(low)) & (lengths <= int(high or low))).sum()
    places = board.ranks(board.runs[0]).popularity_ranks
    first = groups_by_popularity(board)[0]
    assert (first.label, first.users) == ("top 1 %", (places <= 0.01 * ITEMS).sum())


def test_steps_that_were_lost_at_a_restart_are_not_drawn(three):
    run = read_runs(three)[0]
    assert 99.0 in [json.loads(line).get("loss") for line in (three[0] / "log.jsonl").open()]
    epochs, losses = curves.loss(run)
    assert max(losses) < 6
    assert list(epochs) == sorted(epochs)
    assert len(losses) == 40
    assert curves.validation(run, "ndcg@10", by="minutes")[0] == [25 / 60 * epoch for epoch in (1, 2, 3, 4)]


def test_a_log_that_was_cut_off_is_read_and_a_broken_one_is_said(three):
    with (three[0] / "log.jsonl").open("a") as log:
        log.write('{"kind": "step", "ep')
    (three[1] / "log.jsonl").write_text('nonsense\n[1]\n{"step": 1}\n' + (three[1] / "log.jsonl").read_text())
    cut, broken, _ = read_runs(three)
    assert cut.problems == []
    assert len(cut.of_kind("step")) == len(broken.of_kind("step")) == 40
    assert broken.problems == ["3 lines of log.jsonl are no events and are left out"]


def test_the_page_says_what_the_files_say(three):
    text = words_of(runs_page(read_runs(three)))
    record = json.loads((three[1] / "metrics.json").read_text())["splits"]["test"]
    for score in (record["model"]["ndcg@10"], record["popularity"]["mrr@10"]):
        assert f"{score['mean']:.4f} ±{(score['high'] - score['low']) / 2:.4f}" in text
    assert "2 finished, 1 not finished" in text
    assert f"{USERS} users ranked against {ITEMS} items" in text
    assert re.search(r"mamba4rec RecGRELA, Table 2 0\.3230 0\.1869", text)
    assert re.search(r"going not finished ml-1m sasrec 4\.0 of 4", text)
    assert "a worker was lost; starting again" in text
    assert "model.num_blocks" in text


def test_published_figures_stand_only_beside_what_was_ranked_as_they_were(three, tmp_path):
    assert "Beside published figures" not in words_of(runs_page(read_runs(three), split="validation"))
    assert "Beside published figures" not in words_of(runs_page(read_runs(three), published=tmp_path / "none"))


def test_a_page_needs_nothing_from_elsewhere_and_may_load_nothing(three):
    page = runs_page(read_runs(three))
    markup = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#)""", markup)
    assert "url(" not in markup
    assert "default-src 'none'" in markup
    assert page.count("data-plot=") == 6


def test_names_are_text_wherever_they_stand(tmp_path):
    hostile = "</script><img src=x onerror=alert(1)>"
    run_folder(tmp_path / "a" / hostile.replace("/", "∕"), seed=1)
    run_folder(tmp_path / "b", seed=2, data=hostile)
    page = runs_page(read_runs([tmp_path / "a" / hostile.replace("/", "∕"), tmp_path / "b"]))
    assert "<img" not in page.replace(_library(), "")


def _library():
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def test_two_runs_of_one_folder_name_are_told_apart(tmp_path):
    paths = [run_folder(tmp_path / root / "run", seed=seed) for seed, root in enumerate(("one", "two"))]
    assert [run.name for run in read_runs(paths)] == ["one/run", "two/run"]
    paths = [run_folder(tmp_path / root / "heads" / "trials" / "trial-001") for root in ("one", "two")]
    assert [run.name for run in read_runs(paths)] == ["one/heads/trial-001", "two/heads/trial-001"]


def test_a_page_of_nothing_finished_is_one(tmp_path):
    page = runs_page(read_runs([run_folder(tmp_path / "going", finished=False)]))
    assert "0 finished, 1 not finished" in words_of(page)


def test_a_configuration_of_another_version_is_shown_as_it_stands(three):
    with (three[0] / "config.yaml").open("a") as config:
        config.write("surprise: {key: 7}\n")
    assert "of another version" in read_runs(three)[0].problems[0]
    text = words_of(runs_page(read_runs(three)))
    assert "surprise.key" in text
    assert "of another version" in text


def test_many_runs_are_all_in_the_table_and_the_best_are_drawn(tmp_path):
    paths = [run_folder(tmp_path / f"run-{n:02}", share=0.03 + 0.01 * n, seed=n) for n in range(14)]
    page = runs_page(read_runs(paths))
    assert "Plots show the 8 best runs; 6 others stand in the tables." in words_of(page)
    drawn = json.loads(re.search(r'data-plot="plot-1-3-1">(.*?)</script>', page, re.S)[1])
    assert len(drawn["data"]) == 8


def test_columns_of_numbers_stand_to_the_right():
    rows = [
        [Cell("a"), Cell("0.5", note="±0.1", sort=0.5), Cell("gelu"), Cell("")],
        [Cell("b"), Cell(""), Cell("–"), Cell("7")],
    ]
    assert Table("", ["run", "score", "gate", "epoch"], rows).numeric == [False, True, False, True]


def test_the_verb_writes_the_page_here_or_where_it_is_told_to(three, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert say(monkeypatch, *three) == 0
    assert capsys.readouterr().err == "page  report.html\n"
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert say(monkeypatch, *three, "--page", tmp_path / "new" / "page.html") == 0
    assert capsys.readouterr().err == f"page  {tmp_path / 'new' / 'page.html'}\n"
    assert (tmp_path / "new" / "page.html").read_text().startswith("<!DOCTYPE html>")


def test_a_folder_that_nobody_may_write_to_takes_only_the_page(three, monkeypatch, capsys, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "report.html").mkdir()  # root may write anywhere, but not over a folder
    monkeypatch.chdir(tmp_path / "full")
    assert say(monkeypatch, three[0]) == 0
    said = capsys.readouterr()
    assert "worse" in said.out
    assert re.search("the page cannot be written: .*; name another place with --page FILE", said.err)
    assert say(monkeypatch, three[0], "--page", tmp_path / "full") == 2


def test_what_a_run_left_that_is_no_record_is_said_and_the_others_are_compared(three, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    record = json.loads((three[0] / "metrics.json").read_text())
    for damaged, where in (
        ({}, "data"),
        ({"splits": {"test": {}}}, "splits.validation"),
        ({"training": 3}, "training"),
    ):
        left = {key: value for key, value in record.items() if damaged} | damaged
        (three[0] / "metrics.json").write_text(json.dumps(left))
        assert say(monkeypatch, *three) == 0
        shown = capsys.readouterr().out
        assert re.search(r"^better +300 ", shown, re.MULTILINE)
        assert re.search(r"^worse +damaged$", shown, re.MULTILINE)
        assert re.search(rf"^worse  its metrics.json is damaged \({where}: ", shown, re.MULTILINE)
        page = words_of((tmp_path / "report.html").read_text())
        assert "1 finished, 1 damaged, 1 not finished" in page
        assert f"its metrics.json is damaged ({where}: " in page


def test_a_sweep_among_runs_stands_for_its_trials(three, monkeypatch, capsys, tmp_path):
    sweep = tmp_path / "rates"
    run_folder(sweep / "trials" / "trial-000", share=0.2, seed=4)
    over = run_folder(sweep / "trials" / "trial-001", finished=False)
    (over / "model").mkdir()
    (over / "model" / "model.json").write_text(json.dumps({"num_items": ITEMS}))
    run_folder(sweep / "trials" / "trial-002", finished=False)
    (sweep / "trials" / "trial-003").mkdir()  # nothing of it was written yet
    (sweep / "sweep.yaml").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert say(monkeypatch, *sorted(path for path in tmp_path.iterdir())) == 0
    rows = [re.split("  +", line)[:2] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows[:4]] == ["rates/trial-000", "better", "worse", "popularity (ml-1m)"]
    assert rows[4:] == [
        ["going", "not finished"],
        ["rates/trial-001", "not ranked"],
        ["rates/trial-002", "not finished"],
    ]
    page = words_of((tmp_path / "report.html").read_text())
    assert "3 finished, 2 not finished, 1 not ranked" in page
    assert "rates/trial-001 not ranked ml-1m" in page


def test_a_folder_that_is_no_run_is_refused_before_a_page_is_written(three, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"empty: is no run, it has no config\.yaml"):
        read_runs([*three, tmp_path / "empty"])


@pytest.mark.parametrize(
    "text",
    ["[", "source: x\nresults: {ml-1m: {sasrec: [0.1]}}", "- 1", "source: x\nmetrics: [a]\nresults: {d: {m: [x]}}"],
)
def test_published_figures_that_do_not_read_are_an_error_in_words(tmp_path, text):
    (tmp_path / "paper.yaml").write_text(text)
    with pytest.raises(PublishedError, match=r"paper\.yaml: expected source, metrics and results"):
        read_published(tmp_path)


def test_what_the_papers_print_is_read(three):
    figures = read_published(DEFAULT)
    one = next(
        one for one in figures if (one.source, one.data, one.model) == ("RecGRELA, Table 2", "ml-1m", "recgrela")
    )
    assert one.scores == {"hr@10": 0.3311, "ndcg@10": 0.1959, "mrr@10": 0.1545}
    assert np.all([0 < score < 1 for figure in figures for score in figure.scores.values()])
