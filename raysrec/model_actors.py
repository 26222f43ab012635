"""A trained model on each of some actors of Ray Data, which do pieces of work with it, on GPUs if there are any.

An actor may die, or its machine be taken away. Ray would start it again and let its work wait for it, for ever where
there is no room for it any more; so it is not restarted, and what has not arrived is begun again with new actors
wherever there is room. What an actor gives depends on its piece of work alone, so nobody can tell.
"""

import logging
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from raysrec.cluster.bundles import model_options
from raysrec.cluster.runtime import ClusterError, threads_per_worker, wants_gpu
from raysrec.config import ScaleConfig
from raysrec.errors import readable
from raysrec.faults import is_out_of_memory

Do = Callable[[Any], Any]
"""Does a piece of work."""

_say = partial(print, flush=True)

PIECES_AHEAD = 2
"""Pieces that an actor has been given at any time: one that it does, and the next."""


def done_by_actors(
    make: Callable[[torch.device], Do], work: Sequence[Any], scale: ScaleConfig, *, say: Callable[[str], None] = _say
) -> Iterator[Any]:
    """The result of each piece of work, in the order of the work; call inside `ray_session`.

    Args:
        make: Called once by each actor, with the device that it has, for what does the work.
        work: Pieces; small, and enough of them that all actors end at about the same time.
        scale: How many actors there are, at most, and how often in a row one may die.
        say: Is told when one has died.

    Raises:
        ClusterError: Actors died again and again with nothing done in between, or ran out of memory.
    """
    from ray.exceptions import RayActorError, RayError

    done = failures = 0
    while done < len(work):
        try:
            for result in _attempt(make, work[done:], scale):
                done, failures = done + 1, 0
                yield result
        except RayError as error:
            died = isinstance(error, RayActorError) and "creation task" not in str(error)
            if readable(error) or not (died or is_out_of_memory(error)):
                raise
            failures += 1
            reason = str(error).strip().splitlines()[-1][:200]
            smaller = "lower evaluate.batch_tokens and evaluate.items_per_chunk, or take machines with more"
            if is_out_of_memory(error):  # it would again
                raise ClusterError(f"a process that held the model ran out of memory: {reason}; {smaller}") from error
            if failures > scale.max_failures:
                raise ClusterError(
                    f"a process that held the model died, {failures} times in a row (scale.max_failures="
                    f"{scale.max_failures}): {reason}; if it lacked memory, {smaller}"
                ) from error
            say(f"a process that held the model died ({reason}); its work is done again")


def _attempt(make: Callable[[torch.device], Do], work: Sequence[Any], scale: ScaleConfig) -> Iterator[Any]:
    """Results as far as they come before an actor dies."""
    import ray.data
    from ray.util.annotations import RayDeprecationWarning

    on_gpu, workers = wants_gpu(scale), min(scale.max_workers, len(work))
    pieces = [{"work": pickle.dumps(piece)} for piece in work]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)  # of max_restarts, for which there is no other way yet
        results = ray.data.from_items(pieces, override_num_blocks=len(pieces)).map_batches(
            _Actor,
            fn_constructor_args=(make, threads_per_worker(scale), on_gpu),
            compute=ray.data.ActorPoolStrategy(
                # With fewer than asked for it begins; the others come when there is room.
                min_size=1,
                max_size=workers,
                initial_size=workers,
                max_tasks_in_flight_per_actor=PIECES_AHEAD,
            ),
            batch_size=None,
            batch_format="numpy",
            **model_options(scale, use_gpu=on_gpu),
            max_restarts=0,
        )
    results.context.execution_options.preserve_order = True
    results.context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it would log is raised, too
    # Nothing is fetched ahead: what has arrived is handed on before the next piece can fail.
    for block in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for content in block.column("result").to_pylist():
            yield pickle.loads(content)  # noqa: S301 - of this program's own actors, from Ray's memory


class _Actor:
    """What Ray Data calls with pieces of work; the model is loaded with the first, so that what fails is told."""

    def __init__(self, make: Callable[[torch.device], Do], threads: int, on_gpu: bool) -> None:
        torch.set_num_threads(threads)
        self._make, self._device = make, torch.device("cuda" if on_gpu else "cpu")
        self._do: Do | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, list[bytes]]]:
        self._do = self._do or self._make(self._device)
        for piece in batch["work"]:
            yield {"result": [pickle.dumps(self._do(pickle.loads(piece)))]}  # noqa: S301 - of this program's driver
