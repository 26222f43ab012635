"""The pages as a browser draws them: every plot is there, and nothing is wrong by its console."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from run_folders import run_folder

from raysrec.comparing.runs import read_runs
from raysrec.comparing.sweeps import SweepResults
from raysrec.pages import runs_page, sweep_page
from raysrec.sweep import CurvePoint, TrialRecord

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here; tools/check installs it (apt-get install chromium)"
)


def opened(page: Path, *options: str) -> tuple[str, list[str]]:
    """What the page's DOM is after its scripts have run, and what the console says; there is no network."""
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr",
        f"--user-data-dir={page.parent / 'profile'}",
        "--window-size=1200,900", "--dump-dom", *options, page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    return done.stdout, re.findall(r"CONSOLE\S* (.*)", done.stderr)


def drawn(dom: str) -> list[str]:
    """Each figure with what plotly has drawn into it."""
    return [part for part in re.split(r"<figure", dom)[1:] if "main-svg" in part]


def test_every_plot_of_runs_is_drawn_and_the_console_is_silent(tmp_path):
    paths = [
        run_folder(tmp_path / "runs" / "better", share=0.12, seed=1),
        run_folder(tmp_path / "runs" / "worse", model="mamba4rec", seed=2),
        run_folder(tmp_path / "runs" / "going", model="sasrec", finished=False),
    ]
    (tmp_path / "page.html").write_text(runs_page(read_runs(paths)))
    dom, console = opened(tmp_path / "page.html", "--blink-settings=preferredColorScheme=0")
    assert console == []
    figures = drawn(dom)
    assert len(figures) == 6
    points = [len(re.findall(r'<path class="point', figure)) for figure in figures]
    assert points[:2] == [5, 12]  # two scores and three of papers; four validations of three runs
    assert points[3] == 0  # the loss is a line
    assert all(figure.count("errorbar") for figure in figures[4:])
    assert "rgb(106, 169, 234)" in figures[1]  # the first run's colour on a dark page


def test_every_plot_of_a_sweep_is_drawn_and_the_console_is_silent(tmp_path):
    trials = [
        TrialRecord(
            number=number,
            name=f"trial-{number:03}",
            parameters={"train.learning_rate": 10.0 ** -(number % 4), "model.gate": "silu" if number % 2 else "relu"},
            state="finished",
            curve=tuple(CurvePoint(epoch, 0.01 * epoch * (1 + number % 4), epoch * 10.0) for epoch in (1, 2, 3)),
        )
        for number in range(12)
    ]
    (tmp_path / "page.html").write_text(sweep_page(SweepResults("rates", "ndcg@10", trials)))
    dom, console = opened(tmp_path / "page.html")
    assert console == []
    figures = drawn(dom)
    assert len(figures) == 5
    assert figures[0].count('<g class="point"') == 2  # a bar per parameter
    assert [len(re.findall(r'<path class="point', figure)) for figure in figures[1:3]] == [12, 12]
    assert figures[3].count("js-line") == 12


def test_a_console_that_is_not_silent_is_heard_and_the_page_may_load_nothing(tmp_path):
    page = sweep_page(SweepResults("rates", "ndcg@10", []))
    (tmp_path / "page.html").write_text(
        page.replace("</main>", '<img src="https://example.org/x.png"></main><script>fail()</script>')
    )
    _, console = opened(tmp_path / "page.html")
    assert any("fail is not defined" in line for line in console)
    assert any("Content Security Policy" in line for line in console)
