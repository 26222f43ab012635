import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_first_screen_shows_the_two_commands():
    first_block = re.search(r"(?:^    .*\n)+", README, re.M)
    assert first_block is not None
    assert re.findall(r"tools/\w+", first_block[0]) == ["tools/quickstart", "tools/check"]
    assert README[: first_block.end()].count("\n") < 15


def test_the_map_names_every_file_and_no_other():
    tree = README.split("## What is in which file")[1].split("\n## ")[0]
    package = tree.split("\nraysrec/\n")[1].split("\ntests/")[0]
    folders, named = ["raysrec"], set()
    for line in package.splitlines():
        if entry := re.match(r"( +)(\w+/)?", line):
            depth = len(entry[1]) // 2
            if depth <= len(folders) + 1:  # else the line above goes on
                folders = folders[:depth] + ([entry[2].rstrip("/")] if entry[2] else [])
            named |= {"/".join([*folders, name]) for name in re.findall(r"\w+\.py", line)}
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "raysrec").rglob("*.py") if path.name != "__init__.py"}
    assert named == there


def test_the_tools_page_says_what_each_tool_answers():
    table = (ROOT / "tools/README.md").read_text().split("\n## ")[0]
    programs = {path.name for path in (ROOT / "tools").glob("*.py")} - {"leaderboard.py"}  # `leaderboard` starts it
    assert set(re.findall(r"`(\w+\.py)`", table)) == programs


PAGES = ["README.md", "configs/README.md", "cluster/README.md", "raysrec/models/README.md", "tools/README.md"]


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_mentioned_exist(page):
    text = (ROOT / page).read_text()
    mentioned = set(re.findall(r"(?<![\w/.])(?:configs|tools|tests)/[\w/.-]+\.(?:yaml|py|md)", text))
    assert {name for name in mentioned if not (ROOT / name).exists()} == set()


@pytest.mark.parametrize("page", ["README.md", "configs/README.md", "tools/README.md"])
def test_no_number_is_still_to_be_filled_in(page):
    assert re.findall(r"\b[A-Z]+_[A-Z_]+\b", re.sub(r"`[^`]*`", "", (ROOT / page).read_text())) == []
