import importlib.util
from pathlib import Path

import pytest

FILE = Path(__file__).parent.parent / "tools" / "audit.py"


@pytest.fixture
def audit():
    spec = importlib.util.spec_from_file_location("audit", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# As pip-audit 2.10 writes it.
KNOWN = {
    "name": "jinja2",
    "version": "2.4.1",
    "vulns": [{"id": "PYSEC-2014-8", "fix_versions": ["2.7.2"], "aliases": ["CVE-2014-1402"], "description": "…"}],
}
FINE = {"name": "six", "version": "1.17.0", "vulns": []}


def test_nothing_known_is_fine(audit):
    assert audit.judge([FINE], {}) == ("1 dependencies audited", True)


def test_what_is_known_is_printed_and_fails(audit):
    said, is_fine = audit.judge([FINE, KNOWN], {})
    assert not is_fine
    assert said.splitlines()[0].startswith(
        "jinja2 2.4.1: PYSEC-2014-8 CVE-2014-1402: fixed in 2.7.2; raise it in constraints.txt, or accept it in "
    )
    assert said.splitlines()[-1] == "2 dependencies audited"


@pytest.mark.parametrize("name", ["PYSEC-2014-8", "CVE-2014-1402"])
def test_what_is_accepted_passes_with_its_reason(audit, name):
    said, is_fine = audit.judge([KNOWN], {name: "no template is read here"})
    assert is_fine
    assert "accepted: no template is read here" in said


def test_what_is_accepted_and_gone_is_said(audit):
    said, is_fine = audit.judge([FINE], {"CVE-2014-1402": "…"})
    assert is_fine
    assert said.startswith("CVE-2014-1402 is accepted in ")


def test_what_was_not_looked_up_is_said(audit):
    said, is_fine = audit.judge([FINE, {"name": "torch", "skip_reason": "not found"}], {})
    assert is_fine
    assert said == "not audited: torch\n1 dependencies audited"


def test_where_nobody_answers_one_line_says_so_and_the_check_goes_on(audit, monkeypatch, capsys):
    pytest.importorskip("pip_audit", reason="of the dev extra")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):  # a proxy that is not there: no network, for pip-audit
        monkeypatch.setenv(name, "http://127.0.0.1:1")
        monkeypatch.setenv(name.lower(), "http://127.0.0.1:1")
    assert audit.main() == 0
    said = capsys.readouterr().out
    assert said.startswith("dependencies not audited: ")
    assert said.count("\n") == 1
