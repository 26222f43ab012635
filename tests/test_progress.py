import io
import json
import sys
from types import SimpleNamespace

import pytest
from events import NOTE, STEP, VALIDATION
from rich.console import Console

from raysrec.mailbox import Mailbox
from raysrec.metrics import shown_cutoff
from raysrec.tracking import progress
from raysrec.tracking.progress import PLAIN_EVERY_S, shown


@pytest.fixture
def lines():
    """Plain lines."""
    return progress._Lines()


@pytest.fixture
def written(capsys):
    """The lines that were written since the last look."""
    return lambda: capsys.readouterr().err.splitlines()


def test_a_step_is_one_line_with_speed_and_time_left(lines, written):
    lines.show(STEP)
    assert written() == [
        "epoch 2  loss 6.5432  12,346 targets/s  23,457 tokens/s  padding 12%  data wait 1.2%  left 1:02:05"
    ]


def test_a_validation_is_one_line_with_the_scores_at_ten(lines, written):
    lines.show(VALIDATION)
    lines.show(VALIDATION | {"is_best": False})
    line = "epoch 2  validation hr@10 0.3000  ndcg@10 0.1555  mrr@10 0.1000  (1:15)"
    assert written() == [f"{line}  best so far", line]


def test_a_validation_without_scores_at_ten_shows_those_at_its_largest_cutoff(lines, written):
    scores = {"validation/ndcg@5": 0.1, "validation/ndcg@20": 0.25, "validation/hr@20": 0.5}
    lines.show({"kind": "validation", "epoch": 1, "step": 5, "elapsed_s": 3.0, "is_best": True} | scores)
    assert written() == ["epoch 1  validation ndcg@20 0.2500  hr@20 0.5000  (0:03)  best so far"]


def test_a_note_is_its_text(lines, written):
    lines.show(NOTE)
    assert written() == [NOTE["text"]]


def test_plain_lines_show_a_step_now_and_then_and_every_validation(lines, written):
    for second in range(100):
        lines.show(STEP | {"elapsed_s": float(second), "epoch": second})
    shown_seconds = [int(line.split()[1]) for line in written()]
    assert shown_seconds == list(range(0, 100, int(PLAIN_EVERY_S)))
    for _ in range(3):
        lines.show(VALIDATION)
    assert len(written()) == 3


@pytest.mark.parametrize(
    ("names", "cutoff"),
    [
        (["hr@5", "hr@10", "hr@100"], 10),
        (["validation/hr@5", "validation/hr@20"], 20),
        (["hr@100"], 100),
        (["epoch", "loss"], 10),
        ([], 10),
    ],
)
def test_ten_is_shown_or_else_the_largest_cutoff(names, cutoff):
    assert shown_cutoff(names) == cutoff


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0:00"), (0.6, "0:01"), (59.6, "1:00"), (61.0, "1:01"), (3599.6, "1:00:00"), (36061.0, "10:01:01")],
)
def test_durations_read_like_a_clock(seconds, text):
    assert progress.as_clock(seconds) == text


def test_a_bar_shows_steps_in_place_and_prints_the_rest_above(monkeypatch):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=200)
    monkeypatch.setattr(progress, "Console", lambda **_: console)
    with progress._screen() as show:
        for event in (STEP, VALIDATION, NOTE):
            show(event)
    text = screen.getvalue()
    assert "25%" in text
    assert "loss 6.5432" in text
    assert "epoch 2  validation hr@10 0.3000" in text
    assert NOTE["text"] in text


@pytest.mark.parametrize("fails", [False, True])
def test_what_was_put_before_the_end_is_recorded_and_shown(tmp_path, monkeypatch, capsys, fails):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=lambda result: result))
    monkeypatch.setitem(sys.modules, "ray.exceptions", SimpleNamespace(RayError=ConnectionError))
    monkeypatch.setattr(progress, "POLL_S", 0.01)
    mailbox = Mailbox()
    handle = SimpleNamespace(take=SimpleNamespace(remote=mailbox.take))
    try:
        with shown(handle, tmp_path):
            mailbox.put(STEP)
            mailbox.put(VALIDATION)
            if fails:
                raise RuntimeError("a worker died")
    except RuntimeError:
        assert fails
    assert [json.loads(line)["kind"] for line in (tmp_path / "log.jsonl").open()] == ["step", "validation"]
    assert "best so far" in capsys.readouterr().err
