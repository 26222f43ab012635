"""What we hang into Ray Train: how its workers find each other, listen, and what is told when they fail."""

from collections.abc import Mapping
from typing import Any

import ray
from ray.train import UserCallback
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from raysrec.leaving import listen


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

    def __init__(self, mailbox: str) -> None:
        self._mailbox = mailbox

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        mailbox: Any = ray.get_actor(self._mailbox)
        expected = any(
            "Leaving" in type(error).__name__ or "Leaving(" in str(error) for error in worker_exceptions.values()
        )
        ray.get(mailbox.failed.remote(in_words(worker_exceptions), expected=expected))


def torch_config(*, use_gpu: bool, stalled_after_s: float) -> TorchConfig:
    """How workers speak: counts are exchanged on the CPU, and gradients where they are.

    Args:
        use_gpu: Do workers have GPUs?
        stalled_after_s: So long they wait for one that says nothing.
    """
    return _ListeningTorchConfig(backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo", timeout_s=stalled_after_s)


def failures_told(mailbox: str) -> UserCallback:
    """A callback that tells the mailbox of this name why workers failed."""
    return _Failures(mailbox)


def in_words(worker_exceptions: Mapping[int, Exception]) -> str:
    """One line: what each worker raised, those first that did not only notice that another was gone."""
    said = {worker: _last_line(error) for worker, error in sorted(worker_exceptions.items())}
    first = {worker: text for worker, text in said.items() if "Connection" not in text} or said
    return "; ".join(f"worker {worker}: {text}" for worker, text in first.items())


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
