"""The page of runs: what is said on it, and drawn."""

import json
import re
import sys

import pytest
from run_folders import ITEMS, USERS, run_folder, three_runs

from raysrec import report
from raysrec.command_line import run_verb
from raysrec.comparing.runs import read_runs
from raysrec.pages import curves, runs_page
from raysrec.pages.html import Cell, Table


@pytest.fixture
def three(tmp_path):
    return three_runs(tmp_path)


def words_of(page):
    """The page's text, without its scripts."""
    return " ".join(re.sub(r"<[^>]+>", " ", re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.S)).split())


def say(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["report", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        run_verb(report.main, report.parser())
    return stopped.value.code


def test_steps_that_were_lost_at_a_restart_are_not_drawn(three):
    run = read_runs(three)[0]
    assert 99.0 in [json.loads(line).get("loss") for line in (three[0] / "log.jsonl").open()]
    epochs, losses = curves.loss(run)
    assert max(losses) < 6
    assert list(epochs) == sorted(epochs)
    assert len(losses) == 40
    assert curves.validation(run, "ndcg@10", by="minutes")[0] == [25 / 60 * epoch for epoch in (1, 2, 3, 4)]


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
    assert "Beside published figures" in words_of(runs_page(read_runs(three)))
    strict = run_folder(tmp_path / "strict", evaluate={"exclude_seen": True})
    assert "Beside published figures" not in words_of(runs_page(read_runs([strict])))


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
