"""Is anything known against the pinned dependencies? Prints what is, and ends with 1 if it is not accepted below.

    python tools/audit.py

pip-audit asks the OSV database about each line of constraints.txt. Where that cannot be reached, one line says so and
the exit code is 0: a check without a network is still a check.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"

ACCEPTED: dict[str, str] = {}
"""Vulnerabilities by their id or an alias, each with the reason why it does not matter here."""

ANSWER_S, ALL_S = 5, 120
"""Seconds for one answer, and for all."""


def main() -> int:
    """Audit and return the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        why_not = _ask(report)
        if not report.is_file():
            print(f"dependencies not audited: {why_not}")
            return 0
        said, is_fine = judge(json.loads(report.read_text())["dependencies"], ACCEPTED)
    print(said)
    return 0 if is_fine else 1


def judge(dependencies: list[dict[str, Any]], accepted: dict[str, str]) -> tuple[str, bool]:
    """What to print of pip-audit's answer, and whether nothing in it is new.

    Args:
        dependencies: Each with `name` and either `version` and `vulns`, or `skip_reason`.
        accepted: Reasons by id.
    """
    lines, is_fine, seen = [], True, set[str]()
    skipped = [one["name"] for one in dependencies if "skip_reason" in one]
    for one in dependencies:
        for fault in one.get("vulns", []):
            names = [fault["id"], *fault.get("aliases", [])]
            seen.update(names)
            reason = next((accepted[name] for name in names if name in accepted), None)
            is_fine &= reason is not None
            mend = f"fixed in {', '.join(fault['fix_versions'])}" if fault.get("fix_versions") else "not fixed yet"
            verdict = (
                f"accepted: {reason}" if reason else f"{mend}; raise it in constraints.txt, or accept it in {__file__}"
            )
            lines.append(f"{one['name']} {one['version']}: {' '.join(names)}: {verdict}")
    lines += [
        f"{name} is accepted in {__file__}, but nobody has it any more; remove it" for name in accepted.keys() - seen
    ]
    lines += [f"not audited: {', '.join(skipped)}"] if skipped else []
    return "\n".join([*lines, f"{len(dependencies) - len(skipped)} dependencies audited"]), is_fine


def _ask(report: Path) -> str:
    """Let pip-audit write its report; why there is none, if there is none."""
    command = [
        "-m",
        "pip_audit",
        "--requirement",
        CONSTRAINTS,
        "--no-deps",
        "--disable-pip",
        "--progress-spinner",
        "off",
    ]
    service = ["--vulnerability-service", "osv", "--timeout", str(ANSWER_S), "--format", "json", "--output", report]
    try:
        done = subprocess.run([sys.executable, *command, *service], capture_output=True, text=True, timeout=ALL_S)
    except subprocess.TimeoutExpired:
        return f"the answers took longer than {ALL_S} s"
    return (done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1][:300]


if __name__ == "__main__":
    sys.exit(main())
