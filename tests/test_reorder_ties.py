import sys
from pathlib import Path

import pytest

from raysrec.config import DataConfig

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
from reorder_ties import reordered


@pytest.fixture
def source(tmp_path):
    """Two users; 881250949 and 881250951 are one float32, and 881251000 is another."""
    path = tmp_path / "events.csv"
    rows = ["b,10,881251000", "a,9,881250951", "a,10,881250949", "a,2,881250949", "a,1,881251100", "b,3,881251000"]
    path.write_text("user,item,time\n" + "\n".join(rows) + "\n")
    return DataConfig(source=str(path), format="csv")


def histories(table):
    found: dict[str, list[tuple[int, str]]] = {}
    for row in table.to_pylist():
        found.setdefault(row["user"], []).append((row["time"], row["item"]))
    assert all(sorted(time for time, _ in rows) == list(range(len(rows))) for rows in found.values())
    return {user: [item for _, item in sorted(rows)] for user, rows in found.items()}


@pytest.mark.parametrize(
    ("times", "ties", "a", "b"),
    [
        ("whole", "file", ["10", "2", "9", "1"], ["10", "3"]),
        ("whole", "item", ["2", "10", "9", "1"], ["3", "10"]),
        ("float32", "file", ["9", "10", "2", "1"], ["10", "3"]),
        ("float32", "item", ["2", "9", "10", "1"], ["3", "10"]),
    ],
)
def test_ties_are_broken_as_asked(source, times, ties, a, b):
    source = source.model_copy(update={"time_precision": times})
    assert histories(reordered(source, ties=ties)) == {"a": a, "b": b}


def test_a_random_order_moves_ties_only(source):
    orders = {tuple(histories(reordered(source, ties="random", seed=seed))["a"]) for seed in range(20)}
    assert orders == {("10", "2", "9", "1"), ("2", "10", "9", "1")}
