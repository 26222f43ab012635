import fcntl
import os

import pytest

from raysrec.data.preparing.publishing import appearing_whole, sweep

NAME = "0123456789abcdef"
HIDDEN = f".{NAME}.{'0' * 32}.tmp"


def publish(folder, content):
    with appearing_whole(folder, is_whole=lambda there: (there / "a").exists()) as scratch:
        (scratch / "inner").mkdir()
        (scratch / "inner" / "b").write_text(content)
        (scratch / "a").write_text(content)
        assert scratch.parent == folder.parent
        assert scratch.name.startswith(".")


def test_a_folder_appears_with_all_that_was_written(tmp_path):
    folder = tmp_path / "parent" / NAME
    publish(folder, "text")
    assert (folder / "inner" / "b").read_text() == "text"
    assert os.listdir(folder.parent) == [NAME]


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        publish(tmp_path / NAME, None)  # fails within the block: None is no text
    assert os.listdir(tmp_path) == []


def test_a_whole_folder_in_the_way_stays(tmp_path):
    publish(tmp_path / NAME, "first")
    publish(tmp_path / NAME, "second")
    assert (tmp_path / NAME / "a").read_text() == "first"
    assert os.listdir(tmp_path) == [NAME]


def test_a_broken_folder_in_the_way_is_replaced(tmp_path):
    publish(tmp_path / NAME, "first")
    (tmp_path / NAME / "a").unlink()
    publish(tmp_path / NAME, "second")
    assert (tmp_path / NAME / "a").read_text() == "second"
    assert os.listdir(tmp_path) == [NAME]


def test_a_file_in_the_way_is_an_error(tmp_path):
    (tmp_path / NAME).write_text("not a folder")
    with pytest.raises(NotADirectoryError):
        publish(tmp_path / NAME, "text")
    assert os.listdir(tmp_path) == [NAME]


def test_only_what_a_killed_process_left_is_swept(tmp_path):
    for name in (HIDDEN, NAME, ".mine.tmp"):
        (tmp_path / name).mkdir()
    lock = os.open(tmp_path / HIDDEN, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([HIDDEN, NAME, ".mine.tmp"])
    os.close(lock)
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([NAME, ".mine.tmp"])


@pytest.mark.parametrize("moment", ["open", "flock"])
def test_a_folder_that_another_process_sweeps_before_it_is_locked_is_made_again(tmp_path, monkeypatch, moment):
    module = {"open": os, "flock": fcntl}[moment]
    swept, call = [], getattr(module, moment)

    def sweep_first(*arguments):
        if not swept:
            swept.extend(tmp_path.glob(".*.tmp"))
            swept[0].rmdir()
        return call(*arguments)

    monkeypatch.setattr(module, moment, sweep_first)
    publish(tmp_path / NAME, "text")
    assert len(swept) == 1
    assert (tmp_path / NAME / "a").read_text() == "text"
    assert os.listdir(tmp_path) == [NAME]
