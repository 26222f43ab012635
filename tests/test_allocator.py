import subprocess
import sys

import pytest

from raysrec import allocator
from raysrec.allocator import MALLOC_OPTIONS, tune_allocator


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_that_was_freed_is_given_back():
    code = """
import numpy as np
from raysrec.allocator import release_freed_memory, tune_allocator
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
tune_allocator()
blocks = [np.ones(2**17) for _ in range(200)]  # 200 MiB
last = np.ones(10)
before = resident()
del blocks
kept = resident()
release_freed_memory()
print(before - kept < 50 * 2**20, before - resident() > 150 * 2**20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


def test_the_allocator_is_tuned_where_there_is_glibc_and_left_alone_elsewhere(monkeypatch):
    asked = {}

    class Library:
        mallopt = staticmethod(asked.__setitem__)

    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: Library)
    tune_allocator()
    assert asked == MALLOC_OPTIONS

    def missing(_):
        raise OSError("no such library")

    monkeypatch.setattr(allocator.ctypes, "CDLL", missing)
    tune_allocator()
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: object())  # a C library without mallopt
    tune_allocator()
