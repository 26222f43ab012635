"""A function of each piece of work: done by Ray Data's tasks in a cluster, or here, one after the other.

Ray Data starts no more tasks than fit, asks an autoscaler for machines while there are more, tries again what was lost
with a machine, and hands results over as they come.
"""

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

_ANYWHERE: Mapping[str, Any] = {"num_cpus": 1}

Bar = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
"""Shows a stage of so many tasks; what it gives is called when one is done."""


Do = Callable[..., Iterable[Any]]
"""What a task does with its arguments."""

Run = Callable[[str, Do, Sequence[tuple[Any, ...]]], Iterator[Any]]
"""Does a stage of that name with each of the arguments: what all that yields, in the order of the work."""


def run_here(
    name: str, do: Do, work: Sequence[tuple[Any, ...]], *, bar: Bar, options: Mapping[str, Any] = _ANYWHERE
) -> Iterator[Any]:
    """One after the other in this process, whatever they ask for; for tests, debuggers, and where there is little."""
    with bar(name, len(work)) as done:
        for arguments in work:
            yield from do(*arguments)
            done()


def run_with_ray(
    name: str, do: Do, work: Sequence[tuple[Any, ...]], *, bar: Bar, options: Mapping[str, Any] = _ANYWHERE
) -> Iterator[Any]:
    """Anywhere in the cluster, as many at once as it has room for by then; call inside a `ray_session`.

    Args:
        name: Of the stage, as it is shown.
        do: What a task does; it is done twice if a machine is lost.
        work: Arguments of each task.
        bar: Shows the stage.
        options: What each task asks Ray for (`placement.task_options`).

    Raises:
        ValueError: The first one in the order of the work, whichever came first.
        OSError: Likewise.
    """
    import ray.data

    rows = [{"arguments": pickle.dumps(arguments)} for arguments in work]
    results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Task(do), batch_size=None, batch_format="numpy", **options
    )
    # Errors, too, must not depend on which task ends first.
    results.context.execution_options.preserve_order = True
    results.context.enable_progress_bars = False
    with bar(name, len(rows)) as done:
        for block in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
            for content in block.column("result").to_pylist():
                result = pickle.loads(content)  # noqa: S301 - of this program's own tasks, from Ray's memory
                if isinstance(result, _Done):
                    done()
                elif isinstance(result, Exception):
                    raise result
                else:
                    yield result


class _Done:
    """The end of a task's results."""


class _Task:
    """What Ray Data calls with the arguments of one task."""

    def __init__(self, do: Callable[..., Iterable[Any]]) -> None:
        self._do = do

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, list[bytes]]]:
        for arguments in batch["arguments"]:
            for result in self._results(pickle.loads(arguments)):  # noqa: S301 - of this program's driver
                yield {"result": [pickle.dumps(result)]}

    def _results(self, arguments: tuple[Any, ...]) -> Iterator[Any]:
        try:
            yield from self._do(*arguments)
        except (ValueError, OSError) as error:
            yield error  # as a result, so that it has its place in the order
        yield _Done()
