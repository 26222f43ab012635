import json
import os
import sys

import torch

from raysrec import provenance
from raysrec.config.loading import validate
from raysrec.run_directory import RunDirectory


def test_provenance_says_where_a_run_comes_from(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["raysrec.train", "--config", "a.yaml"])
    run = RunDirectory(tmp_path / "new")
    run.start(validate({"model": {"name": "recgrela", "dim": 16}}), "fedcba9876543210")
    found = json.loads((run.path / "provenance.json").read_text())
    assert found["data_fingerprint"] == "fedcba9876543210"
    assert found["command"] == ["raysrec.train", "--config", "a.yaml"]
    assert found["packages"]["torch"] == torch.__version__
    assert set(found["packages"]) == {"raysrec", "torch", "ray", "deepspeed", "pyarrow", "numpy"}
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["machine"]["cores"] == os.cpu_count()
    assert found["started_at"].endswith("+00:00")
    assert set(found) == {"data_fingerprint", "commit", "command", "started_at", "python", "packages", "machine"}


def test_outside_a_checkout_there_is_no_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance._commit() is None
