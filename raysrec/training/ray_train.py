"""Our hooks into Ray Train: how its workers find each other, listen, and what is told when they fail."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.train import UserCallback
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from raysrec.config.run import RunConfig
from raysrec.data.prepared import PreparedData
from raysrec.faults import explain
from raysrec.training.leaving import Leaving, listen

NOTICED = re.compile(r"Connection (reset|closed)|gloo|NCCL|Broken pipe", re.IGNORECASE)
"""What workers say whose neighbour is gone."""


class _ListeningBackend(_TorchBackend):
    """Ray's process group, in processes that remember a SIGTERM instead of dying of it."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        # Calls of a worker's actor run in the main thread of its process, which alone may set signal handlers.
        worker_group.execute(listen)
        super().on_start(worker_group, backend_config)


class _ListeningTorchConfig(TorchConfig):
    @property
    def backend_cls(self) -> type[_ListeningBackend]:
        return _ListeningBackend


class _Failures(UserCallback):
    """Tells the mailbox why workers ended; runs in Ray Train's controller, before it starts them again."""

    def __init__(self, mailbox: str, config: str, prepared: str, on_gpu: bool) -> None:
        self._mailbox, self._config, self._prepared, self._on_gpu = mailbox, config, prepared, on_gpu

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        mailbox: Any = ray.get_actor(self._mailbox)
        expected = any(Leaving.__name__ in f"{type(error)}{error}" for error in worker_exceptions.values())
        ray.get(mailbox.failed.remote(failures_in_words(worker_exceptions, self._explained), expected=expected))

    def _explained(self, error: Exception) -> str | None:
        config = RunConfig.model_validate_json(self._config)
        return explain(error, config, PreparedData.open(self._prepared), on_gpu=self._on_gpu)


def torch_config(*, use_gpu: bool, stalled_after_s: float) -> TorchConfig:
    """How workers speak: counts are exchanged on the CPU, and gradients where they are.

    Args:
        use_gpu: Do workers have GPUs?
        stalled_after_s: So long they wait for one that says nothing.
    """
    return _ListeningTorchConfig(
        backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo", timeout_s=math.ceil(stalled_after_s)
    )


def failures_told(mailbox: str, *, config: str, prepared: str, on_gpu: bool) -> UserCallback:
    """A callback that tells the mailbox of this name why workers failed.

    Args:
        mailbox: Name of the actor.
        config: The run, as JSON.
        prepared: Place of its data.
        on_gpu: Do the workers have GPUs?
    """
    return _Failures(mailbox, config, prepared, on_gpu)


def failures_in_words(worker_exceptions: Mapping[int, Exception], explained: Callable[[Exception], str | None]) -> str:
    """One line: what each worker raised, without those that only noticed that another was gone."""
    said = {worker: explained(error) or _last_line(error) for worker, error in sorted(worker_exceptions.items())}
    first = {worker: text for worker, text in said.items() if not NOTICED.search(text)} or said
    who: dict[str, list[str]] = {}
    for worker, text in first.items():
        who.setdefault(text, []).append(str(worker))
    return "; ".join(f"worker{'s' * (len(some) > 1)} {', '.join(some)}: {text}" for text, some in who.items())


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
