"""Why a run ended, in words: what its user can fix, and memory that was too small.

Ray and torch say it in their own terms, deep in what wraps it; here stands what it means for this configuration.
"""

import re

from raysrec.config.run import RunConfig
from raysrec.data.prepared import PreparedData
from raysrec.errors import readable, unwrapped
from raysrec.memory import estimate

_SURE = re.compile(
    r"OutOfMemoryError|alloc_cpu\.cpp|can't allocate memory|CUDA out of memory|low on memory|memory pressure|"
    r"MemoryError|CUBLAS_STATUS_ALLOC_FAILED|oom-kill"
)
"""What torch, Ray, pyarrow and Python say when there is no memory left."""

_LIKELY = re.compile(r"SIGKILL|killed by the OOM killer|exit code -9|connection error code 2")
"""What Ray says of a process that ended without a word."""


def explain(error: BaseException, config: RunConfig, data: PreparedData, *, on_gpu: bool = False) -> str | None:
    """One line on what ended a run, and what to do; None where this module knows no more than the error says.

    Args:
        error: As the driver caught it.
        config: The run.
        data: Its prepared data.
        on_gpu: Did the workers have GPUs?
    """
    if said := readable(error):
        return str(said)
    found = [(type(one).__name__, " ".join(str(one).split())) for one in unwrapped(error)]
    for pattern, words in (
        (_SURE, "a worker ran out of memory"),
        (_LIKELY, "a worker was killed, as the system does where memory runs out (or somebody did)"),
    ):
        for name, text in reversed(found):
            if match := pattern.search(f"{name}: {text}"):
                return f"{words} ({_around(f'{name}: {text}', match.start())}); {_advice(config, data, on_gpu)}"
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Does torch, Ray, pyarrow or Python say that there is no memory left? A restart would end the same way."""
    return any(_SURE.search(f"{type(one).__name__}: {one}") for one in unwrapped(error))


def _advice(config: RunConfig, data: PreparedData, on_gpu: bool) -> str:
    needed = estimate(config, data, on_gpu=on_gpu)
    settings = [f"{key}={_value(config, key)}" for key in needed.settings()]
    return (
        f"by an estimate it needs {needed}. Lower {', '.join(settings)} (the largest part first), or where users are "
        f"ranked evaluate.batch_tokens={config.evaluate.batch_tokens} and "
        f"evaluate.items_per_chunk={config.evaluate.items_per_chunk}; or take machines with more memory"
    )


def _value(config: RunConfig, key: str) -> object:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def _around(text: str, start: int) -> str:
    """Some words of a long text, from shortly before the place that counts."""
    begin = max(0, start - 60)
    return ("…" if begin else "") + text[begin : begin + 240].strip()
