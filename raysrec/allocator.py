"""What glibc does with memory that was freed: kept while a process works, given back when it asks for that."""

import contextlib
import ctypes

MALLOC_OPTIONS = {
    -3: 2**25,  # M_MMAP_THRESHOLD: 32 MiB is the most that glibc allows
    -1: 2**31 - 1,  # M_TRIM_THRESHOLD
    -2: 2**26,  # M_TOP_PAD
}
"""Options of `mallopt` by their numbers in malloc.h, in bytes."""


def tune_allocator() -> None:
    """Let glibc keep freed memory instead of returning every large tensor to the system and faulting it in again.

    Measured on two cores: 18 % more training steps a second. Does nothing where the C library is another.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for option, value in MALLOC_OPTIONS.items():
            libc.mallopt(option, value)


def release_freed_memory() -> None:
    """Let glibc give back what was freed, which it keeps in the heaps of each thread and finds ever less use for.

    Seen on batches of prefixes, whose sizes all differ: a worker grew from 1.2 to 3.9 GB in 21 epochs, and had 0.9 GB
    after this. It takes some milliseconds, and what is used again has to be faulted in again.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
