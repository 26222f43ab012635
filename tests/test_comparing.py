"""What runs left in their folders: how it is read, and which runs may be compared."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from run_folders import ITEMS, USERS, run_folder, three_runs

from raysrec import report
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
from raysrec.run_directory import RunError

for function in (tests_against_best, tests_of_pairs):
    function.__test__ = False  # it is raysrec's, whatever pytest makes of its name


@pytest.fixture
def three(tmp_path):
    return three_runs(tmp_path)


def board_of(paths, metric="ndcg@10"):
    (board,) = boards(read_runs(paths), split="test", metric=metric)
    return board


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


def test_a_log_that_was_cut_off_is_read_and_a_broken_one_is_said(three):
    with (three[0] / "log.jsonl").open("a") as log:
        log.write('{"kind": "step", "ep')
    (three[1] / "log.jsonl").write_text('nonsense\n[1]\n{"step": 1}\n' + (three[1] / "log.jsonl").read_text())
    cut, broken, _ = read_runs(three)
    assert cut.problems == []
    assert len(cut.of_kind("step")) == len(broken.of_kind("step")) == 40
    assert broken.problems == ["3 lines of log.jsonl are no events and are left out"]


def test_two_runs_of_one_folder_name_are_told_apart(tmp_path):
    paths = [run_folder(tmp_path / root / "run", seed=seed) for seed, root in enumerate(("one", "two"))]
    assert [run.name for run in read_runs(paths)] == ["one/run", "two/run"]
    paths = [run_folder(tmp_path / root / "heads" / "trials" / "trial-001") for root in ("one", "two")]
    assert [run.name for run in read_runs(paths)] == ["one/heads/trial-001", "two/heads/trial-001"]


def test_a_folder_that_is_no_run_is_refused(three, tmp_path):
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
