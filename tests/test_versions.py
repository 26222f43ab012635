import re

import torch

from raysrec.cluster.versions import ABSENT, COMPARED, differences, versions_here


def test_versions_are_those_of_what_is_imported():
    here = versions_here()
    assert here["torch"] == torch.__version__.partition("+")[0]
    assert re.fullmatch(r"3\.\d+", here["python"])
    assert re.fullmatch(r"code [0-9a-f]{12}", here["raysrec"])
    assert set(here) == {"python", "raysrec", *COMPARED}
    assert ABSENT not in here.values()


def test_differences_name_what_is_there_and_what_is_here():
    here = {"torch": "2.13.0", "ray": "2.60.0"}
    assert differences(here, here) == []
    assert differences(here, {"torch": "2.12.1"}) == ["torch 2.12.1 (here 2.13.0)", "ray not installed (here 2.60.0)"]
