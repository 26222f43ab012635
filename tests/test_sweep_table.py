"""What a person sees of a sweep."""

import io

import pytest
from rich.console import Console
from sweeps import make_sweep, validation

from raysrec.sweep import table as sweep_table
from raysrec.sweep.book import TrialBook
from raysrec.sweep.table import final_table, live_table, sweep_shown

SPACE = {"model.num_blocks": {"grid": [1, 2, 3, 4]}, "model.dropout": {"grid": [0.1]}}
STEP = {"kind": "step", "progress": 1.5, "left_s": 75.0}


class Never:
    def judge(self, name, *, epoch, score, best):
        return False


@pytest.fixture
def book(tmp_path):
    return TrialBook(make_sweep(tmp_path, SPACE, max_concurrent=2), Never())


def drawn(table):
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    return console.file.getvalue()


def happens(book):
    for _ in range(3):
        book.begin_next()
    for name, score in (("trial-000", 0.1), ("trial-001", 0.3)):
        book.heard(name, validation(1, score))
    book.heard("trial-000", {"kind": "end", "state": "finished", "seconds": 100.0})
    book.heard("trial-001", STEP)
    book.heard("trial-002", {"kind": "end", "state": "failed", "why": "the loss is NaN"})


def test_the_live_table_says_of_every_trial_what_it_is_and_how_far(book):
    happens(book)
    text = drawn(live_table(book, 40))
    assert "1 of 4 trials done, the best is trial-001 with 0.3000, left about 2:18" in text
    rows = {line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[2:-1]] for line in text.splitlines()
            if "│" in line}  # fmt: skip
    assert rows["trial-000"] == ["1", "0.1", "1", "0.1000", "finished", ""]
    assert rows["trial-001"] == ["2", "0.1", "1.5", "0.3000", "running", "1:15"]
    assert rows["trial-002"] == ["3", "0.1", "0", "", "failed", ""]


def test_where_there_is_no_room_the_running_and_the_best_are_shown(book):
    happens(book)
    monitor = drawn(live_table(book, 3))
    assert "trial-002" in monitor  # three rows are always shown
    book.begin_next()
    monitor = drawn(live_table(book, 3))
    assert "trial-003" in monitor
    assert "trial-002" not in monitor
    assert "1 more that are not running" in monitor


def test_without_a_terminal_there_is_a_line_for_what_happens(book, capsys):
    with sweep_shown(book):
        happens(book)
        book.heard("trial-001", {"kind": "failure", "text": "worker 0: killed; starting again"})
    assert capsys.readouterr().err.splitlines() == [
        "trial-000  begins: model.num_blocks=1 model.dropout=0.1",
        "trial-001  begins: model.num_blocks=2 model.dropout=0.1",
        "trial-002  begins: model.num_blocks=3 model.dropout=0.1",
        "trial-000  epoch 1  validation ndcg@10 0.1000  best so far",
        "trial-001  epoch 1  validation ndcg@10 0.3000  best so far",
        "trial-000  finished after 1:40: ndcg@10 0.1000 at epoch 1; 1 of 4 trials done, the best is trial-001 with "
        "0.3000, left about 2:30",
        "trial-002  failed after 0:00 (the loss is NaN); 1 of 4 trials done, the best is trial-001 with 0.3000, left "
        "about 2:18",
        "trial-001  worker 0: killed; starting again",
    ]


def test_on_a_terminal_the_table_stays_in_its_place(monkeypatch, book):
    screen = io.StringIO()
    monkeypatch.setattr(sweep_table, "Console", lambda **_: Console(file=screen, force_terminal=True, width=100))
    with sweep_shown(book):
        happens(book)
    assert "trial-001" in screen.getvalue()
    assert "begins:" not in screen.getvalue()


def test_the_final_table_has_the_best_first_and_those_without_a_score_last(book):
    happens(book)
    rows = final_table(book.sweep.settings, book.trials).splitlines()
    assert rows[0].split() == ["trial", "model.num_blocks", "model.dropout", "validation", "ndcg@10", "best", "at",
                               "epochs", "trained", "in", "state"]  # fmt: skip
    assert [row.split()[0] for row in rows[2:]] == ["trial-001", "trial-000", "trial-002"]
    assert rows[4].endswith("failed: the loss is NaN")
    book.heard("trial-001", {"kind": "end", "state": "failed", "why": "the loss is NaN"})
    rows = final_table(book.sweep.settings, book.trials).splitlines()
    assert [row.split()[0] for row in rows[2:]] == ["trial-000", "trial-001", "trial-002"]
    assert "the best is trial-000 with 0.1000" in drawn(live_table(book, 40))
